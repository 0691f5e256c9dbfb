"""A task file for the tests of telemetry and error reports. SENTRY_NOTE: the file that Sentry's transport writes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taskpool import NonRetryable, TaskContext, around_attempt, on_process_start, on_process_stop, task

log = logging.getLogger("shop")

if "SENTRY_NOTE" in os.environ:
    import sentry_sdk
    from sentry_sdk.envelope import Envelope
    from sentry_sdk.transport import Transport

    class Note(Transport):
        """In the place of the one that sends to Sentry."""

        def __init__(self) -> None:
            super().__init__()
            self._unsent: list[bytes] = []

        def capture_envelope(self, envelope: Envelope) -> None:
            self._unsent += [item.get_bytes() for item in envelope.items if item.type == "event"]

        def flush(self, timeout: float, callback: Any = None) -> None:
            with open(os.environ["SENTRY_NOTE"], "ab") as file:
                file.write(b"".join(item + b"\n" for item in self._unsent))
            self._unsent.clear()

    @on_process_start
    def start_sentry() -> None:
        sentry_sdk.init(dsn="https://key@sentry.invalid/1", transport=Note(), include_local_variables=False)

    @on_process_stop
    def stop_sentry() -> None:
        sentry_sdk.flush(timeout=2)

    @around_attempt
    @contextmanager
    def report(ctx: TaskContext) -> Iterator[None]:
        with sentry_sdk.isolation_scope() as scope:
            scope.set_tags({"task.type": ctx.type, "task.queue": ctx.queue})
            scope.set_context("task", {"id": ctx.id, "attempt": ctx.attempt})
            try:
                yield
            except Exception as error:
                sentry_sdk.capture_exception(error)
                raise


@task("ships")
def ships(ctx: TaskContext, name: str) -> str:
    log.warning("ships %s", name)
    return name


@task("sinks")
def sinks(ctx: TaskContext, name: str) -> None:
    raise NonRetryable(f"{name} sank")


@task("sinks_async")
async def sinks_async(name: str) -> None:
    raise NonRetryable(f"{name} sank")
