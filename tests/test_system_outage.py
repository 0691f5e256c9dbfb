"""Redis goes away and comes back: workers wait, lose nothing, and say so once."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool import TaskStatus
from taskpool.redis.embedded import RedisServer
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines, started

LEASE_S = 1.5


@pytest.fixture
def server(tmp_path: Path, redis_binary: str | None) -> Iterator[RedisServer]:
    """A Redis of the test's own, that keeps everything it said yes to."""
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(directory, binary=redis_binary, config={"appendonly": "yes", "appendfsync": "always"})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def workers(server: RedisServer, tmp_path: Path) -> Iterator[WorkerPool]:
    with WorkerPool(server.url, tmp_path / "log", workers=2, lease_s=LEASE_S) as workers:
        yield workers


def log_has(workers: WorkerPool, text: str) -> bool:
    return workers.log.read_text().count(text) == 1


def test_idle_workers_come_back_by_themselves(workers: WorkerPool, server: RedisServer) -> None:
    server.kill()
    eventually(lambda: log_has(workers, "Redis is away"))
    server.start()

    assert workers.result("ok").status is TaskStatus.DONE
    eventually(lambda: log_has(workers, "Redis is back"))
    assert log_has(workers, "Redis is away")
    assert "Traceback" not in workers.log.read_text()


def test_what_ends_while_redis_is_away_is_written_when_it_is_back(
    workers: WorkerPool, server: RedisServer, tmp_path: Path
) -> None:
    task = workers.submit("hang", note=tmp_path / "note", until=tmp_path / "go")
    started(tmp_path / "note")

    server.kill()
    (tmp_path / "go").touch()
    eventually(lambda: log_has(workers, "Redis is away"))
    server.start()
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.result, record.attempt, record.crashes) == ("slept", 1, 0)


def test_an_outage_longer_than_the_lease_runs_nothing_twice(
    workers: WorkerPool, server: RedisServer, tmp_path: Path
) -> None:
    task = workers.submit("hang", note=tmp_path / "note", seconds=3 * LEASE_S)
    started(tmp_path / "note")

    server.kill()
    eventually(lambda: log_has(workers, "Redis is away"))
    with pytest.raises(subprocess.TimeoutExpired):  # the outage lasts longer than the lease
        workers.process.wait(2 * LEASE_S)
    server.start()
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.status, record.attempt, record.crashes) == (TaskStatus.DONE, 1, 0)
    assert len(lines(tmp_path / "note")) == 1


def test_a_process_that_dies_while_redis_is_away_is_settled_later(
    workers: WorkerPool, server: RedisServer, tmp_path: Path
) -> None:
    task = workers.submit("hang_once", note=tmp_path / "note")
    pid = started(tmp_path / "note")

    server.kill()
    for process in workers.descendants():
        if process.pid == pid:
            process.kill()
    eventually(lambda: log_has(workers, "Redis is away"))
    server.start()
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.result, record.crashes) == ("the second time", 1)


def test_a_shutdown_while_redis_is_away_ends(server: RedisServer, tmp_path: Path) -> None:
    with WorkerPool(server.url, tmp_path / "log", grace_s=0.5) as workers:
        workers.submit("hang", note=tmp_path / "note")
        started(tmp_path / "note")

        server.kill()
        eventually(lambda: log_has(workers, "Redis is away"))
        workers.send(signal.SIGTERM)

        assert workers.end() == 0
        assert "queued again when its leases end" in workers.log.read_text()
