"""For users' tests: a task pool that runs tasks inline, on a Redis in the test's own memory.

It needs no server and no processes, and never waits. Scripts, records and execution are the same as in production. It
has no worker processes, and therefore no leases, timeouts or stops of a running task. All scripts read one clock, which
a test can advance. Needs the extra `taskpool-jobs[testing]`.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import hiredis
import msgspec
from redis.exceptions import NoScriptError, ResponseError

from taskpool.errors import ConfigurationError, WaitTimeout, WorkflowTimeout
from taskpool.operations.flow.builder import WorkflowBuilder
from taskpool.operations.flow.occurrences import fire_due
from taskpool.operations.flow.upkeep import purge_workflow
from taskpool.operations.flow.values import WorkflowRecord
from taskpool.operations.listing import all_queues
from taskpool.operations.specs import AddTask, read_specs, spec_given
from taskpool.operations.status import read_event
from taskpool.pool import TaskPool
from taskpool.redis import keys, people_scripts, scripts
from taskpool.redis.calls import Call, Part, Plan, one
from taskpool.redis.store import Store
from taskpool.settings import Settings
from taskpool.tasks.context import Asking
from taskpool.tasks.node import Afters, Node
from taskpool.tasks.outcomes import AnyOutcome, TaskOutcome
from taskpool.tasks.questions import Asked, state_document
from taskpool.tasks.registry import Registry
from taskpool.text import Secrets
from taskpool.types import Event, Receipt, RunningTask, TaskRecord, TaskSpec, TaskStatus, utc
from taskpool.validation import Duration, seconds_of

try:
    import fakeredis
    import pytest
except ModuleNotFoundError as error:
    if error.name not in ("fakeredis", "pytest"):
        raise
    message = f'taskpool.testing needs {error.name}: pip install "taskpool-jobs[testing]"'
    raise ModuleNotFoundError(message, name=error.name) from error

WORKER: Final = "inline"
MOST_HELD: Final = 10_000
T = TypeVar("T")


class _Due(NamedTuple):
    at_s: float
    key: str
    member: str
    act: Callable[[str], Plan[Any]]


def _planned(make: Callable[..., Call[Any]], **named: Any) -> Callable[[str], Plan[Any]]:
    return lambda id: one(make(id, **named))


@pytest.fixture
def inline_pool() -> Iterator[InlinePool]:
    """An `InlinePool` with the built-in types; give it yours with `use`.

    To have it, write `pytest_plugins = ["taskpool.testing"]` into the top conftest.py."""
    with InlinePool() as pool:
        yield pool


class InlinePool(TaskPool):
    """A `TaskPool` that runs its tasks itself, in the test's thread, when a method says so or waits for them.

        def test_resize_keeps_the_url() -> None:
            with InlinePool(resize) as pool:
                record = pool.run("resize", {"url": "u", "width": 10})

            assert record.result == {"url": "u", "width": 10}

    `tasks` are functions marked by @task, subclasses of Task, and names of modules and .py files.

    Delays take no time in `run_all`, `run_next` and `wait`: a delayed task or a retry runs once nothing else is ready.
    Where times matter, use `advance`: it lets time pass on the clock that all scripts read, and expiries follow. The
    clock starts at `now` (a time with a zone; None: the present).

    Raises: ConfigurationError (a task is faulty, or `now` has no time zone)."""

    def __init__(
        self,
        *tasks: Any,
        builtins: bool | Collection[str] = True,
        settings: Settings | None = None,
        now: datetime | None = None,
    ) -> None:
        self._clock = VirtualClock()
        if now is not None:
            if now.tzinfo is None:
                raise ConfigurationError(f"now needs a time zone, such as tzinfo=UTC; {now!r} has none")
            self._clock.set(now.timestamp())
        store = Store(transport=MemoryTransport(self._clock))
        super().__init__("", settings=settings, registry=Registry(builtins=builtins), store=store)
        self.use(*tasks)

    def use(self, *tasks: Any) -> None:
        """Add task types: functions, classes, or names of modules and .py files.
        Raises: ConfigurationError (a task is faulty, or DuplicateType)."""
        registry = self.known_types()
        for each in tasks:
            if isinstance(each, str):
                registry.load([each])
            else:
                registry.add(each)
        for each in registry:
            if each.schedule is not None:
                self.set_schedule(each.name, each.schedule, TaskSpec(type=each.name))

    if TYPE_CHECKING:
        run: AddTask[TaskRecord]
    else:

        def run(self, *given: Any, **named: Any) -> TaskRecord:
            """Add a task as `add_task` does, run it to its end and return its record.
            Raises: InvalidTask (as `add_task`)."""
            return self.wait(self.add_task(*given, **named).id)

    def run_next(self) -> TaskRecord | None:
        """Run one attempt at the next task, a delayed one if no other is ready. Returns its record, or None."""
        record = self._run_ready()
        while record is None and self._bring_forward():
            record = self._run_ready()
        return record

    def _run_ready(self) -> TaskRecord | None:
        self._release_dependents()
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

    @property
    def now(self) -> datetime:
        """The time of the clock that all scripts read, in UTC."""
        return utc(self._clock.now_s() * 1000)

    def advance(
        self,
        span: Duration = 0,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        workers: bool = True,
    ) -> list[TaskRecord]:
        """Let time pass, as if a worker pool ran meanwhile: what is ready runs at once, and delayed tasks, retries,
        schedules (also those that tasks declare) and everything else that is due at a time comes at its time, in that
        order. Returns the record after each attempt.

            pool.advance(hours=24)
            pool.advance("1h30m")

        With `workers=False`, time passes as if no worker pool ran: nothing happens until the next call.

        Raises: ValueError, if the span isn't a duration."""
        total_s = seconds_of(span) + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
        until_s = self._clock.now_s() + seconds_of(total_s)
        if not workers:
            self._clock.set(until_s)
            return []
        records = list(iter(self._run_ready, None))
        passed: set[tuple[str, str, float]] = set()  # what stayed although it was due, such as a record that is needed
        while (due := self._first_due(until_s, passed)) is not None:
            passed.add((due.key, due.member, due.at_s))
            self._clock.set(max(due.at_s, self._clock.now_s()))
            self.store.carry_out(due.act(due.member))
            records += iter(self._run_ready, None)
        self._clock.set(max(until_s, self._clock.now_s()))
        for id in self.store.run(scripts.due(keys.HELD, limit=MOST_HELD)).members:  # no task needs them any more
            self.store.run(scripts.purge(id, keys.HELD))
        return records

    def _first_due(self, until_s: float, passed: set[tuple[str, str, float]]) -> _Due | None:
        due = []
        for key, act in self._timers():
            most = 1 + sum(key == each for each, _, _ in passed)
            head = ("ZRANGEBYSCORE", key, "-inf", until_s, "WITHSCORES", "LIMIT", 0, most)
            entries = self.store.run(Call(head, list))
            found = [_Due(float(s), key, id.decode(), act) for id, s in zip(entries[::2], entries[1::2], strict=True)]
            due += [each for each in found if (key, each.member, each.at_s) not in passed][:1]
        return min(due, key=lambda each: each.at_s, default=None)

    def _timers(self) -> Iterator[tuple[str, Callable[[str], Plan[Any]]]]:
        """The sorted sets with what is due at a time, in seconds, and what a worker pool does to a member then."""
        yield keys.WORKFLOWS_ENDED, purge_workflow
        yield keys.SCHEDULES_DUE, lambda _: fire_due(self.rules, ())
        yield keys.EXPIRING, _planned(scripts.cancel, reason="expired", error=keys.EXPIRED)
        yield keys.CONFIRMATIONS, _planned(people_scripts.unanswered)
        for queue in self._queues():
            yield keys.SCHEDULED + queue, _planned(scripts.promote, queue=queue)
            for registry in (keys.FINISHED + queue, keys.FAILED + queue, keys.CANCELED + queue):
                yield registry, _planned(scripts.purge, registry=registry)

    def add_and_wait(self, spec: TaskSpec, *, wait_s: float | None = None) -> TaskRecord:
        """Submit a task and run it to its end, and before it all tasks that are ready."""
        return self.wait(self.store.carry_out(self.adding(spec)).id, timeout_s=wait_s)

    def wait(self, id: str, *, timeout_s: float | None = None) -> TaskRecord:
        """Run attempts until this task has ended. `timeout_s` has no effect here.
        Raises: TaskNotFound; WaitTimeout (no task is left to run and this one hasn't ended)."""
        while not (record := self.get(id)).status.is_terminal:
            if self.run_next() is None and not self.get(id).status.is_terminal:
                raise WaitTimeout(record, timeout_s or 0)
        return record

    def follow_workflow(self, id: str, *, timeout_s: float | None = None) -> Iterator[WorkflowRecord]:
        """The workflow before each attempt at a task, and last when it has ended; `timeout_s` has no effect here.
        `wait_workflow` runs it to its end. Raises: WorkflowNotFound; WorkflowTimeout (no task is left to run and it
        hasn't ended)."""
        while True:
            record = self.get_workflow(id)
            yield record
            if record.status.is_terminal:
                return
            if self.run_next() is None and not self.get_workflow(id).status.is_terminal:
                raise WorkflowTimeout(record, timeout_s or 0)

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
        loop = None
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
        if loop is None:
            return work(self.store)
        # In an async test: a loop can't run in another one, so an `async def` task gets one in a thread of its own.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(work, self.store).result()

    def _release_dependents(self) -> None:
        """Do what housekeeping does in a worker pool. Each round may end tasks that others wait for."""
        while ended := self.store.run(Call(("SMEMBERS", keys.OUTBOX), list[bytes])):
            for id in ended:
                self.store.run(scripts.release(id.decode()))

    def _bring_forward(self) -> bool:
        """Queue the scheduled task that is due first; False: there is none."""
        due: list[tuple[float, str, str]] = []
        for queue in self._queues():
            head = self.store.run(Call(("ZRANGE", keys.SCHEDULED + queue, 0, 0, "WITHSCORES"), list))
            due += [(float(ms), id.decode(), queue) for id, ms in zip(head[::2], head[1::2], strict=True)]
        if not due:
            return False
        _, id, queue = min(due, key=itemgetter(0))
        self.store.run(Call(("ZADD", keys.SCHEDULED + queue, 0, id), int))
        self.store.run(scripts.promote(id, queue))
        return True

    def _queues(self) -> list[str]:
        return self.store.run(all_queues())


@dataclass
class RecordingSink:
    """For the context of a task that a test calls directly: it records what the task reports.

    `is_stopped`, `results`, `ended` (the outcomes of parents, by id or name), the `answers` to its questions by name,
    and the state in `kept` are what the task sees.

    ctx = TaskContext(sink := RecordingSink(is_stopped=True), id="t1", type="resize")
    """

    is_stopped: bool = False
    results: Mapping[str, Any] = field(default_factory=dict)
    ended: Mapping[str, AnyOutcome] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)
    kept: Any = None
    reports: list[tuple[float, float | None, str | None]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    added: list[TaskSpec] = field(default_factory=list)
    nodes: WorkflowBuilder[Any] = field(default_factory=lambda: WorkflowBuilder[Any]("added"))

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Keep it in `reports`."""
        self.reports.append((done, total, note))

    def log(self, message: str) -> None:
        """Keep it in `lines`."""
        self.lines.append(message)

    def is_cancelled(self) -> bool:
        """As `is_stopped`."""
        return self.is_stopped

    def outcomes(self) -> Mapping[str, AnyOutcome]:
        """Those in `results`, which are done, and those in `ended`."""
        done = {id: TaskOutcome(id=id, status=TaskStatus.DONE, result=result) for id, result in self.results.items()}
        return done | dict(self.ended)

    def add_task(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> Receipt:
        """Keep it in `added`; its id is "added-1" for the first."""
        (receipt,) = self.add_tasks([spec_given(given, dict(named))])
        return receipt

    def add_tasks(self, specs: Iterable[TaskSpec]) -> list[Receipt]:
        """As `add_task`."""
        first = len(self.added) + 1
        self.added += read_specs(specs)
        return [Receipt(f"added-{number}", TaskStatus.QUEUED) for number in range(first, len(self.added) + 1)]

    def ask(self, asking: Asking) -> Any:
        """The answer in `answers`. Raises: KeyError, if there is none."""
        Asked(asking)
        return self.answers[asking.name]

    def checkpoint(self, state: Any, secrets: Secrets | None) -> None:
        """Keep it in `kept`, as JSON values."""
        self.kept = msgspec.json.decode(state_document(state, secrets))

    def state(self) -> Any:
        """As `kept`."""
        return self.kept

    def add_node(self, name: str, given: tuple[Any, ...], after: Afters, options: Mapping[str, Any]) -> Node:
        """Keep it in `nodes`."""
        return self.nodes.add(name, *given, after=after, **options)

    def add_map(self, name: str, specs: Iterable[TaskSpec], after: Afters) -> Node:
        """Keep it in `nodes`."""
        return self.nodes.map(name, specs, after=after)

    def commit(self) -> None:
        """Nothing: `nodes` has what was added."""


class VirtualClock:
    """A clock that runs as the machine's does, and that a test can set: the time of a Redis in memory."""

    _patch = threading.Lock()

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now_s(self) -> float:
        """Its time, in seconds since 1970."""
        return time.time() + self._ahead_s

    def set(self, now_s: float) -> None:
        """Set it to this time, or to the next millisecond: scripts read no smaller unit."""
        self._ahead_s = math.ceil(now_s * 1000) / 1000 - time.time()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let `time.time`, which fakeredis reads, tell the time of this clock to this thread meanwhile."""
        if not self._ahead_s:
            yield
            return
        with self._patch:
            real, thread, ahead_s = time.time, threading.get_ident(), self._ahead_s
            time.time = lambda: real() + (ahead_s if threading.get_ident() == thread else 0)
            try:
                yield
            finally:
                time.time = real


class MemoryTransport:
    """The connection of a store to a Redis in memory."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        client = fakeredis.FakeRedis(server=fakeredis.FakeServer(version=(7,)), protocol=2)
        self._connection: Any = client.connection_pool.get_connection()

    def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]:
        """The raw replies, errors as values."""
        with self._clock.shown():
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


def _entries(reply: list[Any]) -> list[bytes]:
    """The one field of each entry of a stream."""
    return [fields[1] for _, fields in reply]
