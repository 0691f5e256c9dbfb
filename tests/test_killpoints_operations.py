"""At every command of an operation on many tasks, or of a redrive, its process is killed, frozen or cut off, or the
operation is canceled.

There is one operation for each of its commands. All of them run at once, each in a process of its own and on tasks of
its own, and a worker pool goes on with those whose process is gone. Whatever happens at whichever command, each task is
changed once, the counts are right, the audit tells of it, and an undo restores all of it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import pytest
from redis import Redis

from taskpool import TaskPool, TaskStatus
from taskpool.access.audit import Actor, AuditEntry, AuditFilter, read_audit
from taskpool.errors import RedisUnavailable
from taskpool.operations.control import bulk
from taskpool.operations.control.drive import drive
from taskpool.operations.insight.redrive import drive_redrive, start_redrive
from taskpool.operations.records import fetch_if_there
from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, as_it_is, one
from taskpool.redis.embedded import RedisServer
from taskpool.redis.store import Store
from taskpool.types.control import Filter, Operation, OperationSpec, OperationStatus
from taskpool.types.insight import Redrive, RedriveStatus
from tests.proxy import Proxy, Trap
from tests.support import eventually
from tests.worker_pool import WorkerPool, lines

pytestmark = pytest.mark.long(about_s=35)
S = TaskStatus
TASKS = str(Path(__file__).with_name("tasks_for_killpoints.py"))
EACH: Final = 4
"""Tasks of each operation."""
ANN: Final = Actor("k1", "Ann", None, "10.0.0.1")
UNSERVED: Final = "unserved"
"""A queue that the worker pool doesn't serve."""
processes = multiprocessing.get_context("forkserver")


class Site:
    """Redis, the proxy before it through which the killed processes reach it, and a worker pool."""

    def __init__(self, directory: Path, redis_binary: str | None) -> None:
        self._open = ExitStack()
        self._directory, self._binary = directory, redis_binary

    def __enter__(self) -> Site:
        server = RedisServer(self._directory, binary=self._binary)
        server.start()
        self._open.callback(server.stop)
        self.proxy = Proxy(self._directory, server.socket_path)
        self._open.callback(self.proxy.close)
        self.url = server.url
        self.redis: Any = self._open.enter_context(Redis.from_url(server.url))
        self.store = Store(server.url)
        self._open.callback(self.store.close)
        self.workers = WorkerPool(server.url, self._directory / "log", tasks=TASKS, slots=500, lease_s=900)
        self._open.callback(self.workers.__exit__, None, None, None)
        self.workers.__enter__()
        self.pool: TaskPool = self.workers.pool
        processes.set_forkserver_preload([__name__])
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @contextmanager
    def frozen_supervisor(self) -> Iterator[None]:
        """Meanwhile no pool takes operations and redrives. The worker processes run on."""
        self.workers.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.workers.send(signal.SIGCONT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), redis_binary) as site:
        yield site


# --- the processes -------------------------------------------------------------------------------------------


def carry_out(url: str, name: str, step: Callable[[str, str], Plan[Any]], about: str) -> None:
    """What each process does. It leaves what it does to others when it can't reach Redis, as the API does."""
    store = Store(url, name=name)
    try:
        while store.carry_out(step(about, name)):
            time.sleep(0.005)
    except RedisUnavailable:
        sys.exit(3)


def go_on(id: str, name: str) -> Plan[bool]:
    """A step of an operation."""
    return drive(id, name, 10)


def redrive_on(fingerprint: str, name: str) -> Plan[bool]:
    """A round of a redrive, until that has ended or another program has it."""
    yield from drive_redrive(fingerprint, name)
    now = yield from one(Call(("HMGET", keys.REDRIVE + fingerprint, "status", "driver"), as_it_is, again=True))
    return bool(now == [b"running", name.encode()])


class Crowd:
    """The processes of a sweep: number `n` gets into trouble before its n-th command."""

    def __init__(self, site: Site, what: str, fault: str, harm: Callable[[BaseProcess, str], None]) -> None:
        self._site, self._what, self._fault, self._harm = site, what, fault, harm
        self.traps: list[Trap] = []
        self._processes: dict[str, BaseProcess] = {}

    def name(self, n: int) -> str:
        return f"{self._what}-{self._fault}-{n}"

    def begin(self, abouts: Sequence[str], step: Callable[[str, str], Plan[Any]]) -> None:
        """Start a process for each of these, and wait until each is in trouble, or has ended."""
        for n, about in enumerate(abouts):
            name = self.name(n)
            process: BaseProcess = processes.Process(
                target=carry_out, args=(self._site.proxy.url, name, step, about), daemon=True
            )
            self._processes[name] = process
            on_close = lambda name, about=about: self._harm(self._processes[name], about)  # noqa: E731
            self.traps.append(Trap(name.__eq__, "before", n + 1, on_close))
            self._site.proxy.traps[name] = self.traps[-1]
            process.start()
        for process, trap in zip(self._processes.values(), self.traps, strict=True):
            eventually(lambda: trap.closed.is_set() or not process.is_alive())  # noqa: B023 - it is called here

    def wake_and_end(self) -> None:
        """Let frozen processes go on, and wait for the end of all."""
        for process in self._processes.values():
            if process.is_alive():
                os.kill(pid_of(process), signal.SIGCONT)
        for name, process in self._processes.items():
            process.join(60)
            assert process.exitcode in (0, 3, -signal.SIGKILL), name

    def check(self, least: int, *, has_all: bool = True) -> None:
        """Every command had its turn, of which there are so many at least: the last process has met no trap. Without
        `has_all`, only the first ones had."""
        closed = [trap.closed.is_set() for trap in self.traps]
        assert sum(closed) >= least, self.traps[-1].passed
        assert not (has_all and closed[-1]), self.traps[-1].passed


def pid_of(process: BaseProcess) -> int:
    """Of one that may be so new that its start hasn't returned."""
    return eventually(lambda: process.pid)


def kill(process: BaseProcess, _: str) -> None:
    os.kill(pid_of(process), signal.SIGKILL)


def freeze(process: BaseProcess, _: str) -> None:
    os.kill(pid_of(process), signal.SIGSTOP)


def cut(process: BaseProcess, _: str) -> None:
    """Only its connection ends."""


FAULTS: Final = {"killed": kill, "frozen": freeze, "cut": cut}


# --- operations ----------------------------------------------------------------------------------------------


class Operations:
    """Operations with one action, number `n` on tasks with the tag `tags[n]`."""

    def __init__(self, site: Site, action: str, fault: str, count: int) -> None:
        self.site, self.action, self.fault = site, action, fault
        self.tags = [f"{action}-{fault}-{n}" for n in range(count)]
        self.ids: dict[str, list[str]] = {}

    def add(self, make: Callable[[str, int], dict[str, Any]]) -> None:
        """Add the tasks of all: `make` gets the tag and a number."""
        for tag in self.tags:
            given = [{"tags": [tag], **make(tag, n)} for n in range(EACH)]
            self.ids[tag] = [self.site.pool.add_task(**each).id for each in given]

    @property
    def all(self) -> list[str]:
        return [id for ids in self.ids.values() for id in ids]

    def statuses(self) -> Counter[str]:
        found = self.site.store.run_many([fetch_if_there(id) for id in self.all])
        return Counter(record.status.value for record in found if record is not None)

    def wait_for(self, **counts: int) -> None:
        """Wait until so many tasks of each operation have each status."""
        wanted = {status: count * len(self.tags) for status, count in counts.items()}
        eventually(lambda: dict(self.statuses()) == wanted, 60)

    def start(self, crowd: Crowd, **given: Any) -> list[str]:
        """Start all, each for its process."""
        specs = [OperationSpec(action=self.action, filter=Filter(tag=tag), **given) for tag in self.tags]  # type: ignore[arg-type]
        plans = [bulk.start_operation(spec, ANN, driver=crowd.name(n)) for n, spec in enumerate(specs)]
        return [self.site.store.carry_out(plan).id for plan in plans]

    def sweep(self, least: int, harm: Callable[[BaseProcess, str], None], **given: Any) -> list[Operation]:
        crowd = Crowd(self.site, self.action, self.fault, harm)
        with self.site.frozen_supervisor():
            ids = self.start(crowd, **given)
            crowd.begin(ids, go_on)
        return self._end(crowd, ids, least)

    def undo(self, ids: Sequence[str], least: int, harm: Callable[[BaseProcess, str], None]) -> list[Operation]:
        crowd = Crowd(self.site, f"undo-{self.action}", self.fault, harm)
        plans = [bulk.undo_operation(id, ANN, driver=crowd.name(n)) for n, id in enumerate(ids)]
        with self.site.frozen_supervisor():
            undoing = [self.site.store.carry_out(plan).id for plan in plans]
            crowd.begin(undoing, go_on)
        return self._end(crowd, undoing, least)

    def _end(self, crowd: Crowd, ids: list[str], least: int) -> list[Operation]:
        for id in ids:  # the leases of the processes end
            if self.site.redis.hexists(keys.OPERATION + id, "driver"):
                self.site.redis.hset(keys.OPERATION + id, "driver_ms", 1)
        found = [eventually(lambda: self._ended(id), 60) for id in ids]  # noqa: B023 - it is called here
        crowd.wake_and_end()
        assert found == [self.site.pool.get_operation(id) for id in ids]  # those that woke up have changed nothing
        crowd.check(least)
        return found

    def _ended(self, id: str) -> Operation | None:
        operation = self.site.pool.get_operation(id)
        return operation if operation.status.is_terminal else None

    def check(self, found: Sequence[Operation], changed: int = EACH) -> None:
        """Each has changed its tasks, and counted each of them once; the audit tells of it, also about each task."""
        for tag, operation in zip(self.tags, found, strict=True):
            assert (operation.status, operation.error) == (OperationStatus.DONE, None), tag
            assert (operation.matched, operation.changed, dict(operation.skipped)) == (EACH, changed, {}), tag
            told = [(entry.what, entry.count, entry.name) for entry in audit(self.site, operation.id)]
            begins = [] if operation.undoes else [("operation.started", 0, "Ann")]
            assert told == [*begins, ("operation.ended", changed, "Ann")], tag
            for id in self.ids[tag]:
                assert ("operation.ended", operation.id) in [
                    (entry.what, entry.about) for entry in audit(self.site, id)
                ], tag


def audit(site: Site, about: str) -> list[AuditEntry]:
    """The entries about an operation or a task, the oldest first."""
    page = site.store.carry_out(read_audit(AuditFilter(about=about), limit=500))
    return [each.entry for each in reversed(page.items)]


def noted(note: Path, **more: Any) -> dict[str, Any]:
    return {"type": "noted", "payload": {"note": str(note), **more}}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_task_is_retried_once(site: Site, tmp_path: Path, fault: str) -> None:
    note = tmp_path / "note"
    operations = Operations(site, "retry", fault, 25)
    operations.add(lambda tag, n: noted(note, fails=9))  # what is retried fails once more, and could be retried again
    operations.wait_for(failed=EACH)

    found = operations.sweep(12, FAULTS[fault])

    eventually(lambda: len(lines(note)) >= 2 * len(operations.all))
    operations.wait_for(failed=EACH)
    operations.check(found)
    assert Counter(lines(note)) == dict.fromkeys(operations.all, 2)
    assert {site.pool.get(id).attempt for id in operations.all} == {2}


def test_each_scheduled_task_runs_once(site: Site, tmp_path: Path) -> None:
    note = tmp_path / "note"
    operations = Operations(site, "run_now", "killed", 25)
    operations.add(lambda tag, n: {**noted(note), "delay_s": 3600})

    found = operations.sweep(12, kill)

    operations.wait_for(done=EACH)
    operations.check(found)
    assert Counter(lines(note)) == dict.fromkeys(operations.all, 1)


def test_each_task_is_moved_once(site: Site, tmp_path: Path) -> None:
    note = tmp_path / "note"
    operations = Operations(site, "move", "killed", 22)
    operations.add(lambda tag, n: {**noted(note), "queue": UNSERVED})

    found = operations.sweep(9, kill, queue="default")

    operations.wait_for(done=EACH)
    operations.check(found)
    assert Counter(lines(note)) == dict.fromkeys(operations.all, 1)


def test_each_task_is_stopped_once(site: Site) -> None:
    operations = Operations(site, "stop", "killed", 26)
    operations.add(lambda tag, n: {"type": "patient", "delay_s": 3600 if n % 2 else None})
    operations.wait_for(in_progress=EACH // 2, scheduled=EACH // 2)

    found = operations.sweep(12, kill)

    operations.wait_for(stopped=EACH // 2, canceled=EACH // 2)
    operations.check(found)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_each_task_is_canceled_once_and_restored_once(site: Site, tmp_path: Path, fault: str) -> None:
    note = tmp_path / "note"
    operations = Operations(site, "cancel", fault, 22)
    operations.add(
        lambda tag, n: {
            **noted(note),
            **({"delay_s": 3600} if n % 2 else {"queue": UNSERVED, "unique_key": f"{tag}{n}"}),
        }
    )
    before = operations.statuses()

    found = operations.sweep(9, FAULTS[fault])
    assert operations.statuses() == {"canceled": len(operations.all)}
    restored = operations.undo([operation.id for operation in found], 9, FAULTS[fault])

    operations.check(restored)
    assert operations.statuses() == before
    queued = site.redis.lrange(f"rq:queue:{UNSERVED}", 0, -1)
    assert sorted(queued) == sorted(id.encode() for ids in operations.ids.values() for id in ids[::2])
    site.pool.operate("cancel", Filter(queue=UNSERVED))


def test_each_task_is_removed_once_and_restored_once(site: Site, tmp_path: Path) -> None:
    note = tmp_path / "note"
    operations = Operations(site, "remove", "killed", 25)
    operations.add(lambda tag, n: noted(note, fails=n % 2))
    operations.wait_for(done=EACH // 2, failed=EACH // 2)
    records = [site.pool.get(id) for id in operations.all]

    found = operations.sweep(12, kill)
    assert not operations.statuses()
    operations.check(found)
    restored = operations.undo([operation.id for operation in found], 9, kill)

    operations.check(restored)
    assert [(record.status, record.error) for record in records] == [
        (record.status, record.error) for record in map(site.pool.get, operations.all)
    ]
    assert not site.redis.keys("taskpool:trash:*")


def test_an_operation_that_is_canceled_at_any_command_changes_nothing_more(site: Site, tmp_path: Path) -> None:
    note = tmp_path / "note"
    operations = Operations(site, "retry", "canceled", 25)
    operations.add(lambda tag, n: noted(note, fails=1))
    operations.wait_for(failed=EACH)
    changed: dict[str, int] = {}

    def cancel(_: BaseProcess, id: str) -> None:
        changed[id] = mine.carry_out(bulk.cancel_operation(id, ANN)).changed

    mine = Store(site.url)  # of the proxy's threads
    found = operations.sweep(12, cancel)
    mine.close()

    canceled = [operation for operation in found if operation.status is OperationStatus.CANCELED]
    assert len(canceled) == len(changed) >= 12
    assert {operation.id: operation.changed for operation in canceled} == changed
    assert set(changed.values()) == set(range(EACH + 1))
    for tag, operation in zip(operations.tags, found, strict=True):
        retried = [id for id in operations.ids[tag] if operation.id in site.pool.get(id).operations]
        assert len(retried) == operation.changed
        if operation in canceled:
            told = [(entry.what, entry.count) for entry in audit(site, operation.id)]
            assert told == [("operation.started", 0), ("operation.canceled", operation.changed)]
    eventually(lambda: len(lines(note)) == len(operations.all) + sum(operation.changed for operation in found))


# --- redrives ------------------------------------------------------------------------------------------------


def redrives(site: Site, tmp_path: Path, fault: str, count: int) -> tuple[Path, dict[str, list[str]]]:
    """A group of failures for each command: the tasks of each, by fingerprint."""
    note = tmp_path / "note"
    groups = []
    for n in range(count):
        given = noted(note, fails=1, kind=f"Broken_{fault}_{n}")
        groups.append([site.pool.add_task(**given).id for _ in range(EACH)])
    for each in groups:
        for id in each:
            site.pool.wait(id, timeout_s=60)
    return note, {site.pool.get(each[0]).fingerprint or "": each for each in groups}


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_each_task_of_a_group_is_redriven_once(site: Site, tmp_path: Path, fault: str) -> None:
    note, groups = redrives(site, tmp_path, fault, 30)
    crowd = Crowd(site, "redrive", fault, FAULTS[fault])
    with site.frozen_supervisor():
        for fingerprint in groups:
            site.store.carry_out(start_redrive(fingerprint, steps=[1, "all"], by=ANN))
        crowd.begin(list(groups), redrive_on)
        for fingerprint in groups:
            site.redis.hset(keys.REDRIVE + fingerprint, "driver_ms", 1)

    found = [eventually(lambda: _ended(site, each), 60) for each in groups]  # noqa: B023 - it is called here
    crowd.wake_and_end()

    crowd.check(20, has_all=False)
    assert found == [site.pool.get_redrive(each) for each in groups]
    for redrive in found:
        assert (redrive.status, redrive.retried, redrive.succeeded) == (RedriveStatus.DONE, EACH, EACH)
        assert (redrive.failed_again, redrive.left_out) == (0, 0)
    ids = [id for each in groups.values() for id in each]
    assert Counter(lines(note)) == dict.fromkeys(ids, 2)
    for fingerprint, tasks in groups.items():
        told = Counter((entry.what, entry.count) for entry in audit(site, fingerprint))
        assert told == {("failures.redriven", 0): 1, ("failures.redrive_ended", EACH): 1}
        assert [[entry.what for entry in audit(site, id)] for id in tasks] == [["task.retried"]] * EACH


def _ended(site: Site, fingerprint: str) -> Redrive | None:
    redrive = site.pool.get_redrive(fingerprint)
    return redrive if redrive.status is not RedriveStatus.RUNNING else None
