"""A host that is cut off from Redis while others aren't: what is only presumed is said to be presumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from taskpool import TaskStatus
from taskpool.redis.embedded import RedisServer
from tests.black_hole import BlackHole
from tests.support import PATIENCE_S, eventually, is_running
from tests.worker_pool import WorkerPool, started

LEASE_S = 2


class TwoHosts:
    """A pool that can be cut off from Redis, and one that can't and that begins when the first one has a task."""

    def __init__(self, stack: ExitStack, server: RedisServer, directory: Path) -> None:
        self.note = directory / "note"
        self._stack, self._server, self._directory = stack, server, directory
        self.hole = BlackHole(directory, server.socket_path)
        stack.callback(self.hole.close)
        self.cut_off = stack.enter_context(WorkerPool(self.hole.url, directory / "log", lease_s=LEASE_S, max_crashes=2))

    def other(self) -> WorkerPool:
        return self._stack.enter_context(
            WorkerPool(self._server.url, self._directory / "other-log", lease_s=LEASE_S, max_crashes=2)
        )


@pytest.fixture
def hosts(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> Iterator[TwoHosts]:
    with ExitStack() as stack:
        yield TwoHosts(stack, redis_server, tmp_path)


@pytest.mark.parametrize("force", [False, True])
def test_a_stop_of_a_task_whose_host_is_cut_off_is_reported_as_presumed(hosts: TwoHosts, force: bool) -> None:
    task = hosts.cut_off.submit("work", note=hosts.note, max_attempts=3)
    pid = started(hosts.note)
    hosts.hole.cut()
    other = hosts.other()

    other.pool.kill_task(task.id, grace_s=0, force=force)
    record = other.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert is_running(pid)  # what the record says is true
    assert (record.status, record.reason) == (TaskStatus.STOPPED, "lease_lost")
    assert record.failure == {
        "reason": "lease_lost",
        "message": "lease lost: its worker can't be reached and may still be running",
        "may_still_run": True,
    }
    assert [attempt.outcome for attempt in record.history] == ["lease_lost"]
    received = f"task {task.id}: the lease of worker {record.history[0].worker} has ended"
    eventually(lambda: received in other.log.read_text())


def test_a_task_whose_host_is_cut_off_runs_elsewhere_and_its_history_says_what_is_known(hosts: TwoHosts) -> None:
    task = hosts.cut_off.submit("hang_once", note=hosts.note)
    started(hosts.note)
    hosts.hole.cut()
    other = hosts.other()

    record = other.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.result, record.crashes) == ("the second time", 1)
    assert [attempt.outcome for attempt in record.history] == ["lease_lost", "done"]
