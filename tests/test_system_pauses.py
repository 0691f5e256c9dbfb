"""Pauses and drains with real worker processes: what runs goes on, what waits goes on at once when it is resumed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from redis import Redis

from taskpool import TaskStatus
from taskpool.redis import keys
from taskpool.types.fleet import PoolState
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, started

S = TaskStatus


@pytest.mark.parametrize("what", ["queue", "pool", "everything"])
def test_tasks_wait_while_it_is_paused_and_start_when_it_is_resumed(
    redis_url: str, redis: Redis, tmp_path: Path, what: str
) -> None:
    note = tmp_path / "note"
    with WorkerPool(redis_url, tmp_path / "log", workers=2) as workers:
        pool = workers.pool
        (name,) = [each.name for each in pool.pools()]
        running = workers.submit("hang", note=note, until=tmp_path / "go")
        started(note)
        if what == "queue":
            pool.pause_queue("default")
        elif what == "pool":
            pool.pause_pool(name)
        else:
            pool.pause_all()

        waiting = [workers.submit("ok").id for _ in range(3)]
        # The rings of the submissions are taken when the idle process has looked, and has found nothing.
        eventually(lambda: not redis.exists("taskpool:doorbell:default"))
        assert [pool.get(id).status for id in waiting] == [S.QUEUED] * 3
        (tmp_path / "go").touch()
        assert pool.wait(running.id, timeout_s=PATIENCE_S).status is S.DONE, "what runs goes on"
        assert [pool.get(id).status for id in waiting] == [S.QUEUED] * 3
        if what == "queue":
            pool.resume_queue("default")
        elif what == "pool":
            pool.resume_pool(name)
        else:
            pool.resume_all()

        assert [pool.wait(id, timeout_s=PATIENCE_S).status for id in waiting] == [S.DONE] * 3


def test_a_pool_is_drained_from_afar(redis_url: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with WorkerPool(redis_url, tmp_path / "log", workers=2) as workers:
        running = workers.submit("hang", note=note, until=tmp_path / "go")
        started(note)
        (pool,) = workers.pool.pools()
        assert (pool.state, pool.processes, pool.busy, pool.queues[0]) == (PoolState.RUNNING, 2, 1, "default")
        assert pool.started_at is not None
        assert pool.started_at.timestamp() == pytest.approx(time.time(), abs=120)
        (task,) = [worker.task for worker in workers.pool.workers() if worker.task]
        assert (task.id, task.type) == (running.id, "act")

        workers.pool.drain_pool(pool.name, why="a new kernel")
        eventually(lambda: "draining" in workers.log.read_text())
        waiting = workers.submit("ok")
        assert workers.pool.pools()[0].state is PoolState.DRAINING
        (tmp_path / "go").touch()

        assert workers.end() == 0
        assert workers.pool.get(running.id).result == "slept"
        assert workers.pool.get(waiting.id).status is S.QUEUED
        assert workers.pool.pools() == [], "a pool that has drained isn't missed"
        assert "a second signal" not in workers.log.read_text()


def test_a_drain_whose_message_was_lost_is_found_with_the_next_heartbeat(
    redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1) as workers:
        (pool,) = workers.pool.pools()

        redis.hset(keys.SWITCHES, f"pool:{pool.name}", '{"at_ms":1,"drain":true}')

        assert workers.end() == 0


def test_a_pool_that_is_killed_is_gone_and_its_memory_was_known(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1) as workers:
        pool = eventually(lambda: next((each for each in workers.pool.pools() if each.memory_bytes), None))
        assert pool.memory_bytes is not None
        assert pool.memory_bytes > 2**20
        assert eventually(lambda: [each for each in workers.pool.workers() if each.memory_bytes])

        workers.process.kill()

        gone = eventually(lambda: next((each for each in workers.pool.pools() if each.state is PoolState.GONE), None))
        assert (gone.name, gone.busy) == (pool.name, 0)
