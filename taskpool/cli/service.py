"""The service that commands use: Redis itself, or the HTTP API of `--server`. `TaskPool` and `Client` have the same
methods; on Redis, the audit names the user of this machine.

`taskpool keys` and `taskpool audit` start the embedded Redis for a moment if it isn't running, so that the first key
can be created.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.access.audit import Actor
from taskpool.cli.options import Command, Flags, load_settings
from taskpool.errors import ConfigurationError
from taskpool.operations.control import bulk, pauses
from taskpool.operations.flow import schedules, workflows
from taskpool.operations.flow.confirmations import answer_task, confirm_task
from taskpool.operations.flow.occurrences import run_schedule
from taskpool.operations.flow.schedule_values import ScheduleRecord, spec_of
from taskpool.operations.flow.values import WorkflowRecord, WorkflowSpec
from taskpool.operations.insight.failure_values import STEPS
from taskpool.operations.insight.redrive import start_redrive, stop_redrive
from taskpool.pool import TaskPool
from taskpool.runner import kill_task, retry_task
from taskpool.settings import Settings, resolve_redis_url
from taskpool.tasks.schedule import Times
from taskpool.types import Pause, Receipt, TaskRecord, TaskSpec
from taskpool.types.control import Action, Filter, Operation, OperationSpec, Preview
from taskpool.types.insight import Redrive

if TYPE_CHECKING:  # httpx is imported only for a command that asks the API
    from taskpool.client.client import Client

    Service = TaskPool | Client

CONNECTION: Final = ("redis_url", "data_dir")
SERVICE: Final = (*CONNECTION, "server", "api_key")
"""The settings of every command that talks to either."""

RETRIES: Final = 3
"""About a second: a person is waiting."""


def person() -> Actor:
    """The user who runs this command."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = "?"
    return Actor(None, f"taskpool ({user})", None, socket.gethostname())


class PersonsPool(TaskPool):
    """A pool that changes tasks in the name of this user."""

    def add_spec(self, spec: TaskSpec) -> TaskRecord:
        """As a pool does."""
        return self.get(self.submit(spec, by=person()).receipts[0].id)

    def confirm(self, id: str, *, comment: str | None = None) -> TaskRecord:
        """As a pool does."""
        return self.store.carry_out(confirm_task(id, "confirmed", comment=comment, by=person()))

    def reject(self, id: str, *, comment: str | None = None) -> TaskRecord:
        """As a pool does."""
        return self.store.carry_out(confirm_task(id, "rejected", comment=comment, by=person()))

    def answer(self, id: str, answer: Any, *, question: str | None = None, comment: str | None = None) -> TaskRecord:
        """As a pool does."""
        return self.store.carry_out(answer_task(id, answer, question=question, comment=comment, by=person()))

    def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord:
        """As a pool does."""
        return self.store.carry_out(kill_task(id, grace_s=grace_s, force=force, by=person()))

    def retry_task(self, id: str) -> TaskRecord:
        """As a pool does."""
        return self.store.carry_out(retry_task(id, person()))

    def add_workflow(self, spec: WorkflowSpec) -> WorkflowRecord:
        """As a pool does."""
        return self.store.carry_out(workflows.submit_workflow(spec, self.rules, by=person()))

    def stop_workflow(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> WorkflowRecord:
        """As a pool does."""
        return self.store.carry_out(workflows.stop_workflow(id, grace_s=grace_s, force=force, by=person()))

    def retry_workflow(self, id: str) -> WorkflowRecord:
        """As a pool does."""
        return self.store.carry_out(workflows.retry_workflow(id, by=person()))

    def remove_workflow(self, id: str) -> None:
        """As a pool does."""
        self.store.carry_out(workflows.remove_workflow(id, by=person()))

    def set_schedule(self, name: str, times: Times, task: TaskSpec) -> ScheduleRecord:
        """As a pool does."""
        spec = spec_of(times, task)
        record, _ = self.store.carry_out(schedules.set_schedule(name, spec, self.rules, person()))
        return record

    def pause_schedule(self, name: str) -> ScheduleRecord:
        """As a pool does."""
        return self.store.carry_out(schedules.pause_schedule(name, person()))

    def resume_schedule(self, name: str) -> ScheduleRecord:
        """As a pool does."""
        return self.store.carry_out(schedules.resume_schedule(name, person()))

    def run_schedule(self, name: str) -> Receipt:
        """As a pool does."""
        return self.store.carry_out(run_schedule(name, self.rules, person()))

    def redrive(
        self, fingerprint: str, *, steps: Sequence[int | str] = STEPS, include_nonretryable: bool = False
    ) -> Redrive:
        """As a pool does."""
        plan = start_redrive(fingerprint, steps=steps, include_nonretryable=include_nonretryable, by=person())
        return self.store.carry_out(plan)

    def stop_redrive(self, fingerprint: str) -> Redrive:
        """As a pool does."""
        return self.store.carry_out(stop_redrive(fingerprint, person()))

    def remove_schedule(self, name: str) -> None:
        """As a pool does."""
        self.store.carry_out(schedules.remove_schedule(name, person()))

    def pause_queue(self, name: str, *, why: str | None = None) -> Pause:
        """As a pool does."""
        return self.store.carry_out(pauses.pause_queue(name, why=why, by=person()))

    def resume_queue(self, name: str) -> None:
        """As a pool does."""
        self.store.carry_out(pauses.resume_queue(name, by=person()))

    def pause_all(self, *, why: str | None = None) -> Pause:
        """As a pool does."""
        return self.store.carry_out(pauses.pause_all(why=why, by=person()))

    def resume_all(self) -> None:
        """As a pool does."""
        self.store.carry_out(pauses.resume_all(by=person()))

    def pause_pool(self, name: str, *, why: str | None = None) -> Pause:
        """As a pool does."""
        return self.store.carry_out(pauses.pause_pool(name, why=why, by=person()))

    def resume_pool(self, name: str) -> None:
        """As a pool does."""
        self.store.carry_out(pauses.resume_pool(name, by=person()))

    def drain_pool(self, name: str, *, why: str | None = None) -> Pause:
        """As a pool does."""
        return self.store.carry_out(pauses.drain_pool(name, why=why, by=person()))

    def preview_operation(
        self, action: Action, filter: Filter, *, queue: str | None = None, include_nonretryable: bool = False
    ) -> Preview:
        """As a pool does."""
        spec = OperationSpec(action=action, filter=filter, queue=queue, include_nonretryable=include_nonretryable)
        return self.store.carry_out(bulk.preview_operation(spec, person()))

    def start_operation(
        self, action: Action, filter: Filter, *, queue: str | None = None, include_nonretryable: bool = False
    ) -> Operation:
        """As a pool does, but goes on with it itself."""
        spec = OperationSpec(action=action, filter=filter, queue=queue, include_nonretryable=include_nonretryable)
        return self.store.carry_out(bulk.start_operation(spec, person(), driver=self.driver))

    def cancel_operation(self, id: str) -> Operation:
        """As a pool does."""
        return self.store.carry_out(bulk.cancel_operation(id, person()))

    def undo_operation(self, id: str) -> Operation:
        """As a pool does, but goes on with it itself."""
        return self.store.carry_out(bulk.undo_operation(id, person(), driver=self.driver))


@contextmanager
def open_service(flags: Flags, *, starts_redis: bool = False) -> Iterator[Service]:
    """A connection to the API of these flags, else to their Redis: a given one, or that of a running `taskpool up`.

    Raises:
        ConfigurationError: a setting is wrong, or nothing runs in the data directory.
        RedisUnavailable: Redis can't be reached.
    """
    settings = load_settings(flags)
    with ExitStack() as stack:
        if _means_server(settings, flags):
            from taskpool.client.client import Client

            yield stack.enter_context(Client(settings.server or "", settings.api_key, retries=RETRIES))
            return
        try:
            url = resolve_redis_url(settings)
        except ConfigurationError:
            if not starts_redis:
                raise
            from taskpool.redis.embedded import EmbeddedRedis

            url = stack.enter_context(EmbeddedRedis(settings.data_dir, binary=settings.redis_server)).url
        yield stack.enter_context(PersonsPool(url, settings=settings))


def _means_server(settings: Settings, flags: Flags) -> bool:
    """Whether it is the API. A flag goes before a variable, whichever of the two ways it names."""
    by_flag = any(flags[name] is not None for name in CONNECTION)
    if flags["server"] is None:
        return settings.server is not None and not by_flag
    if by_flag:
        raise ConfigurationError("--server and --redis-url or --data-dir exclude each other")
    return True


def service_command(name: str | None = None, **attributes: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command that gets the service first."""
    return click.command(name, **{"cls": Command, "settings": SERVICE, "opens": open_service, **attributes})
