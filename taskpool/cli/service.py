"""What the commands talk to: Redis itself, or the HTTP API of `--server`. They know no difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, Unpack

from taskpool.cli.exits import Exit, Failure
from taskpool.cli.options import CONNECTION, load_settings
from taskpool.fleet import QueueInfo, TypeInfo, WorkerInfo
from taskpool.logs.line import LogLine
from taskpool.settings import Settings, resolve_redis_url
from taskpool.types import Page, QueuedTask, TaskOptions, TaskRecord

SERVICE: Final = (*CONNECTION, "server", "api_key")
"""The settings of every command that talks to either."""

RETRIES: Final = 3
"""About a second: a person is waiting."""


class Added(Protocol):
    """A task that was added."""

    @property
    def id(self) -> str:
        """Its id."""


class Service(Protocol):
    """The part of `TaskPool` that commands need, which `Client` has too."""

    def add_task(self, type: str, payload: Any = None, **options: Unpack[TaskOptions]) -> Added: ...

    def get(self, id: str) -> TaskRecord: ...

    def follow(self, id: str, *, timeout_s: float | None = None) -> Iterator[TaskRecord]: ...

    def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord: ...

    def retry_task(self, id: str) -> TaskRecord: ...

    def logs(self, id: str, *, cursor: str | None = None, limit: int = 100) -> Page[LogLine]: ...

    def follow_log(self, id: str, *, cursor: str | None = None) -> Iterator[LogLine]: ...

    def get_queue(self, name: str = "default", *, cursor: str | None = None, limit: int = 100) -> Page[QueuedTask]: ...

    def queues(self) -> Sequence[QueueInfo]: ...

    def types(self) -> Sequence[TypeInfo]: ...

    def workers(self) -> Sequence[WorkerInfo]: ...

    def worker_warnings(self) -> Sequence[str]: ...


@contextmanager
def open_service(flags: Mapping[str, Any]) -> Iterator[Service]:
    """A connection to the API of these flags, else to their Redis: a given one, or that of a running `taskpool up`.

    Raises:
        ConfigurationError: a setting is wrong, or nothing runs in the data directory.
        RedisUnavailable: Redis can't be reached.
    """
    settings = load_settings(flags)
    if is_server_meant(settings, flags):
        from taskpool.client.client import Client

        with Client(settings.server or "", settings.api_key, retries=RETRIES) as client:
            yield client
        return
    from taskpool.cli.person import PersonsPool

    with PersonsPool(resolve_redis_url(settings), settings=settings) as pool:
        yield pool


def is_server_meant(settings: Settings, flags: Mapping[str, Any]) -> bool:
    """Whether it is the API. A flag goes before a variable, whichever of the two ways it names.

    Raises:
        Failure: both were given as flags.
    """
    redis_flags = [name for name in CONNECTION if flags.get(name) is not None]
    if flags.get("server") is None:
        return settings.server is not None and not redis_flags
    if redis_flags:
        raise Failure("--server and --redis-url or --data-dir exclude each other", Exit.USAGE)
    return True
