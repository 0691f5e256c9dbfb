"""Tasks that must not outlive their leases: two attempts never overlap, whatever is cut off or frozen.

What a task does is written to a file, outside of Redis, with the time of a clock that all processes of the host share.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from taskpool import TaskStatus
from taskpool.redis.embedded import RedisServer
from tests.black_hole import BlackHole
from tests.support import PATIENCE_S, eventually, is_running
from tests.worker_pool import WorkerPool, lines, started

LEASE_S = 3


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note"


class Hosts:
    """Pools on one Redis, which end with the test."""

    def __init__(self, stack: ExitStack, server: RedisServer, directory: Path) -> None:
        self._stack, self._server, self._directory = stack, server, directory

    def pool(self, **settings: Any) -> WorkerPool:
        """A pool that reaches Redis."""
        return self._start(self._server.url, "log", **settings)

    def pool_behind(self, hole: BlackHole, **settings: Any) -> WorkerPool:
        """A pool that can be cut off."""
        return self._start(hole.url, "log-behind", **settings)

    def hole(self) -> BlackHole:
        hole = BlackHole(self._directory, self._server.socket_path)
        self._stack.callback(hole.close)
        return hole

    def other(self) -> WorkerPool:
        """The pool that takes over."""
        return self._start(self._server.url, "log-other")

    def _start(self, url: str, log: str, **settings: Any) -> WorkerPool:
        chosen = {"lease_s": LEASE_S, **settings}
        return self._stack.enter_context(WorkerPool(url, self._directory / log, **chosen))


@pytest.fixture
def hosts(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(stack, redis_server, tmp_path)


def spans(note: Path) -> list[tuple[float, float]]:
    """When each attempt worked, from its first line to its last, in the order of their beginnings."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines(note):
        if line.startswith("works") and len(parts := line.split()) == 5:
            times[parts[4], parts[1]].append(float(parts[2]))
    return sorted((min(each), max(each)) for each in times.values())


def overlap(found: Sequence[tuple[float, float]]) -> bool:
    return any(end >= begin for (_, end), (begin, _) in pairwise(found))


def worked(note: Path, attempts: int) -> list[tuple[float, float]]:
    """Waits until so many attempts have worked."""
    return eventually(lambda: found if len(found := spans(note)) >= attempts else None)


@pytest.mark.parametrize("slots", [1, 4])
def test_an_attempt_on_a_host_that_is_cut_off_ends_before_the_next_one_begins(
    hosts: Hosts, tmp_path: Path, note: Path, slots: int
) -> None:
    first = hosts.pool_behind(hole := hosts.hole(), slots=slots)
    task = first.submit("work", note=note, until=tmp_path / "until", on_lost_lease="kill")
    pid = started(note)
    worked(note, 1)

    hole.cut()
    other = hosts.other()
    found = worked(note, 2)
    (tmp_path / "until").touch()
    record = other.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert not overlap(found), found
    assert not is_running(pid), first.log.read_text()
    assert [attempt.outcome for attempt in record.history] == ["lease_lost", "done"]
    eventually(lambda: f"task {task.id}: its lease can't be renewed" in first.log.read_text())


def test_only_the_main_thread_of_a_worker_process_receives_sigcont(hosts: Hosts, tmp_path: Path, note: Path) -> None:
    """Otherwise a process that continues too late could run task code before its main thread ends the process."""
    pool = hosts.pool()
    task = pool.submit("work", note=note, until=tmp_path / "until", on_lost_lease="kill")
    pid = started(note)

    threads = [Path(f"/proc/{pid}/task/{thread}/status").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
    receivers = [status for status in threads if not blocked_signals(status) & 1 << signal.SIGCONT - 1]
    (tmp_path / "until").touch()
    pool.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert len(threads) > 1
    assert [f"\nPid:\t{pid}\n" in status for status in receivers] == [True]


def blocked_signals(status: str) -> int:
    """The mask of blocked signals in the text of /proc/PID/status."""
    return int(next(line for line in status.splitlines() if line.startswith("SigBlk:")).split()[1], 16)


@pytest.mark.parametrize("do", ["work", "hold"])
def test_a_process_whose_supervisor_is_frozen_ends_itself_even_while_it_holds_the_interpreter(
    hosts: Hosts, tmp_path: Path, note: Path, do: str
) -> None:
    first = hosts.pool()
    task = first.submit(do, note=note, until=tmp_path / "until", on_lost_lease="kill")
    pid = started(note)
    worked(note, 1)

    first.send(signal.SIGSTOP)
    other = hosts.other()
    found = worked(note, 2)
    (tmp_path / "until").touch()
    record = other.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert not overlap(found)
    assert not is_running(pid)
    assert [attempt.outcome for attempt in record.history] == ["lease_lost", "done"]
    number = len(lines(note))
    first.send(signal.SIGCONT)
    assert first.result("ok").status is TaskStatus.DONE
    assert len(lines(note)) == number  # what it had started is gone, too
    assert other.pool.get(task.id) == record


@pytest.mark.parametrize("slots", [1, 4])
def test_a_pool_that_was_frozen_as_a_whole_does_not_go_on_with_its_attempts(
    hosts: Hosts, tmp_path: Path, note: Path, slots: int
) -> None:
    first = hosts.pool(slots=slots)
    task = first.submit("work", note=note, until=tmp_path / "until", on_lost_lease="kill")
    pid = started(note)
    worked(note, 1)
    everything = [psutil.Process(first.process.pid), *first.descendants()]

    for process in everything:
        process.suspend()
    other = hosts.other()
    worked(note, 2)
    for process in sorted(everything, key=lambda process: process.pid != pid):  # the worker goes on before the others
        with suppress(psutil.NoSuchProcess):  # what ended with the worker
            process.resume()
    eventually(lambda: not is_running(pid))
    (tmp_path / "until").touch()

    assert other.pool.wait(task.id, timeout_s=PATIENCE_S).status is TaskStatus.DONE
    assert not overlap(spans(note))


def test_a_unique_key_that_is_free_again_after_a_lost_lease_is_held_by_one_alone(
    hosts: Hosts, tmp_path: Path, note: Path
) -> None:
    first = hosts.pool_behind(hole := hosts.hole())
    options: dict[str, Any] = {"note": note, "until": tmp_path / "until", "on_lost_lease": "kill", "unique_key": "k"}
    task = first.submit("work", **options)
    worked(note, 1)
    hole.cut()
    other = hosts.other()

    other.pool.kill_task(task.id, force=True)
    stopped = other.pool.wait(task.id, timeout_s=PATIENCE_S)
    second = other.submit("work", **options)
    found = worked(note, 2)
    (tmp_path / "until").touch()

    assert (stopped.status, stopped.reason) == (TaskStatus.STOPPED, "lease_lost")
    assert other.pool.wait(second.id, timeout_s=PATIENCE_S).status is TaskStatus.DONE
    assert not overlap(found)


def test_an_outage_of_redis_ends_it_and_it_runs_again_when_redis_is_back(
    hosts: Hosts, tmp_path: Path, note: Path
) -> None:
    first = hosts.pool_behind(hole := hosts.hole(), slots=4)
    task = first.submit("work", note=note, until=tmp_path / "until", on_lost_lease="kill")
    beside = first.submit("work", note=tmp_path / "beside", until=tmp_path / "until")
    pid = started(note)
    worked(note, 1)
    worked(tmp_path / "beside", 1)

    hole.cut()
    eventually(lambda: not is_running(pid))
    hole.mend()
    worked(note, 2)
    (tmp_path / "until").touch()
    record, other = (first.pool.wait(id, timeout_s=PATIENCE_S) for id in (task.id, beside.id))

    assert not overlap(spans(note))
    assert (record.status, record.crashes) == (TaskStatus.DONE, 1)
    assert [attempt.outcome for attempt in record.history] == ["lease_lost", "done"]
    assert (other.status, other.crashes) == (TaskStatus.DONE, 0)
    assert {attempt.outcome for attempt in other.history} == {"given_back", "done"}


def test_a_guardian_that_is_killed_or_frozen_is_replaced_before_the_next_task(hosts: Hosts) -> None:
    workers = hosts.pool(lease_s=20)
    (pid,) = workers.pids()
    assert workers.result("ok").status is TaskStatus.DONE
    assert len(workers.descendants()) == 2  # without such a task there is no guardian

    def guardians() -> list[int]:
        others = {each.pid for each in workers.descendants()} - {pid, psutil.Process(pid).ppid()}
        return [other for other in others if is_running(other)]

    def guardian() -> int:
        assert workers.result("ok", on_lost_lease="kill").result["pid"] == pid
        return eventually(lambda: found[0] if len(found := guardians()) == 1 else None)

    first = guardian()
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: found if (found := guardian()) != first else None)
    os.kill(second, signal.SIGSTOP)
    third = eventually(lambda: found if (found := guardian()) != second else None)  # it counts as alive for two seconds

    assert len({first, second, third}) == 3
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(third))
