"""For users' tests: a task pool that runs tasks inline, on a Redis in the test's own memory.

It needs no server and no processes, and never waits. Scripts, records and execution are the same as in production. It
has no worker processes, and therefore no leases, timeouts or stops of a running task. Needs the extra
`taskpool-jobs[testing]`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import fakeredis
import hiredis
import msgspec
import pytest
from redis.exceptions import NoScriptError, ResponseError

from taskpool.errors import WaitTimeout
from taskpool.operations.listing import all_queues
from taskpool.operations.specs import AddTask
from taskpool.operations.status import read_event
from taskpool.pool import TaskPool
from taskpool.redis import keys, scripts
from taskpool.redis.calls import Call, Part
from taskpool.redis.store import Store
from taskpool.settings import Settings
from taskpool.tasks.registry import Registry
from taskpool.types import Event, RunningTask, TaskRecord, TaskSpec

WORKER: Final = "inline"
T = TypeVar("T")


@pytest.fixture
def inline_pool() -> Iterator[InlinePool]:
    """An `InlinePool` with the built-in types; give it yours with `use`.

    To have it, write `pytest_plugins = ["taskpool.testing"]` into the top conftest.py.
    """
    with InlinePool() as pool:
        yield pool


class InlinePool(TaskPool):
    """A `TaskPool` that runs its tasks itself, in the test's thread, when a method says so or waits for them.

        def test_resize_keeps_the_url() -> None:
            with InlinePool(resize) as pool:
                record = pool.run("resize", {"url": "u", "width": 10})

            assert record.result == {"url": "u", "width": 10}

    `tasks` are functions marked by @task, subclasses of Task, and names of modules and .py files. Delays take no time:
    a delayed task or a retry runs once nothing else is ready.
    """

    def __init__(self, *tasks: Any, builtins: bool | Collection[str] = True, settings: Settings | None = None) -> None:
        store = Store(transport=MemoryTransport())
        super().__init__("", settings=settings, registry=Registry(builtins=builtins), store=store)
        self.use(*tasks)

    def __enter__(self) -> InlinePool:
        return self

    def use(self, *tasks: Any) -> None:
        """Add task types: functions, classes, or names of modules and .py files.

        Raises:
            ConfigurationError: a task is faulty, or DuplicateType.
        """
        registry = self.known_types()
        for each in tasks:
            if isinstance(each, str):
                registry.load([each])
            else:
                registry.add(each)

    if TYPE_CHECKING:
        run: AddTask[TaskRecord]
    else:

        def run(self, *given: Any, **named: Any) -> TaskRecord:
            """Add a task as `add_task` does, run it to its end and return its record.

            Raises:
                InvalidTask: as `add_task`.
            """
            return self.wait(self.add_task(*given, **named).id)

    def run_next(self) -> TaskRecord | None:
        """Run one attempt at the next task, a delayed one if no other is ready. Returns its record, or None."""
        self._release_dependents()
        running = self._claim()
        while running is None and self._bring_forward():
            running = self._claim()
        if running is None:
            return None
        self.execute_task(running)
        self._release_dependents()
        return self.get(running.id)

    def run_all(self) -> list[TaskRecord]:
        """Run attempts until no task is left to run. Returns the record after each attempt, in order."""
        records = []
        while (record := self.run_next()) is not None:
            records.append(record)
        return records

    def add_and_wait(self, spec: TaskSpec, *, wait_s: float | None = None) -> TaskRecord:
        """Submit a task and run it to its end, and before it all tasks that are ready."""
        return self.wait(self.store.carry_out(self.adding(spec)).id, timeout_s=wait_s)

    def wait(self, id: str, *, timeout_s: float | None = None) -> TaskRecord:
        """Run attempts until this task has ended.

        Raises:
            TaskNotFound
            WaitTimeout: no task is left to run and this one hasn't ended; `timeout_s` has no other effect here.
        """
        while not (record := self.get(id)).status.is_terminal:
            if self.run_next() is None and not self.get(id).status.is_terminal:
                raise WaitTimeout(record, timeout_s or 0)
        return record

    def events(self, id: str | None = None) -> list[Event]:
        """The events so far, of one task or of all, oldest first."""
        entries = self.store.run(Call(("XRANGE", keys.EVENTS, "-", "+"), _entries))
        events = [read_event(document) for document in entries]
        return [event for event in events if id in {None, event.id}]

    def log_of(self, id: str) -> list[str]:
        """The lines a task wrote with `ctx.log`."""
        entries = self.store.run(Call(("XRANGE", keys.LOG + id, "-", "+"), _entries))
        return [msgspec.json.decode(document)["text"] for document in entries]

    def _claim(self) -> RunningTask | None:
        queues = self._queues()
        return self.run_task(queues, worker=WORKER, attempt_id=secrets.token_hex(8)) if queues else None

    def _run_task_code(self, work: Callable[[Store], T]) -> T:
        if not _in_event_loop():
            return work(self.store)
        # In an async test: a loop can't run in another one, so an `async def` task gets one in a thread of its own.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(work, self.store).result()

    def _release_dependents(self) -> None:
        """Do what housekeeping does in a worker pool. Each round may end tasks that others wait for."""
        while ended := self.store.run(Call(("SMEMBERS", keys.OUTBOX), _texts)):
            for id in ended:
                self.store.run(scripts.release(id))

    def _bring_forward(self) -> bool:
        """Queue the scheduled task that is due first; False: there is none."""
        first: tuple[float, str, str] | None = None
        for queue in self._queues():
            head = self.store.run(Call(("ZRANGE", keys.SCHEDULED + queue, 0, 0, "WITHSCORES"), list))
            if head and (first is None or float(head[1]) < first[0]):
                first = (float(head[1]), head[0].decode(), queue)
        if first is None:
            return False
        _, id, queue = first
        self.store.run(Call(("ZADD", keys.SCHEDULED + queue, 0, id), int))
        self.store.run(scripts.promote(id, queue))
        return True

    def _queues(self) -> list[str]:
        return self.store.run(all_queues())


@dataclass
class RecordingSink:
    """For the context of a task that a test calls directly: it records what the task reports.

    `is_stopped` and `results` are what the task sees.

    ctx = TaskContext(sink := RecordingSink(is_stopped=True), id="t1", type="resize")
    """

    is_stopped: bool = False
    results: Mapping[str, Any] = field(default_factory=dict)
    reports: list[tuple[float, float | None, str | None]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Keep it in `reports`."""
        self.reports.append((done, total, note))

    def log(self, message: str) -> None:
        """Keep it in `lines`."""
        self.lines.append(message)

    def is_cancelled(self) -> bool:
        """What the test said."""
        return self.is_stopped

    def parents(self) -> Mapping[str, Any]:
        """What the test gave."""
        return self.results


class MemoryTransport:
    """The connection of a store to a Redis in memory."""

    def __init__(self) -> None:
        client = fakeredis.FakeRedis(server=fakeredis.FakeServer(version=(7,)), protocol=2)
        self._connection: Any = client.connection_pool.get_connection()

    def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]:
        """The raw replies, errors as values."""
        return [self._reply(command) for command in commands]

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def _reply(self, command: Sequence[Part]) -> Any:
        self._connection.send_command(*command)
        try:
            return self._connection.read_response()
        except NoScriptError as error:
            return hiredis.ReplyError(f"NOSCRIPT {error}")
        except ResponseError as error:
            return hiredis.ReplyError(str(error))


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _entries(reply: list[Any]) -> list[bytes]:
    """The one field of each entry of a stream."""
    return [fields[1] for _, fields in reply]


def _texts(reply: list[bytes]) -> list[str]:
    return [each.decode() for each in reply]
