"""Redis's clock is stepped: running tasks run on, dead ones are recovered in time, delays stay as long as they were."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis import Redis

from taskpool import TaskPool, TaskStatus
from tests.shifted_clock import ShiftedRedis
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines, started

S = TaskStatus
LEASE_S = 2.0


@pytest.fixture
def redis(tmp_path: Path, redis_binary: str | None) -> Iterator[ShiftedRedis]:
    """A Redis whose clock can be stepped."""
    redis = ShiftedRedis(tmp_path / "redis", redis_binary)
    yield redis
    redis.server.stop()


def noted(*pools: WorkerPool) -> bool:
    """Whether one of them has noticed a step. A pool that has only just started may have begun to look after it."""
    return any("Redis's clock was set" in pool.log.read_text() for pool in pools)


STEPS = {"+120 s": (120,), "-600 s": (-600,), "+1 h": (3600,), "small ones": (1.5, 1.5, 1.5, -4, 1.5)}


@pytest.mark.parametrize("name", STEPS)
def test_running_tasks_run_on_and_delays_stay(redis: ShiftedRedis, tmp_path: Path, name: str) -> None:
    with (
        WorkerPool(redis.url, tmp_path / "one", lease_s=LEASE_S, workers=2) as one,
        WorkerPool(redis.url, tmp_path / "two", lease_s=LEASE_S) as two,
        TaskPool(redis.url) as pool,
    ):
        notes = [tmp_path / f"note{n}" for n in range(3)]
        running = [one.submit("hang", note=note, until=tmp_path / "go") for note in notes]
        for note in notes:
            started(note)
        asked_at = time.monotonic()
        later = one.submit(note=tmp_path / "later", delay_s=4)
        much_later = one.submit(delay_s=300)

        for step in STEPS[name]:
            redis.step(step)
        unnoticed = one.submit(delay_s=300)
        stepped_at = time.monotonic()
        with WorkerPool(redis.url, tmp_path / "late", lease_s=LEASE_S) as late:
            eventually(lambda: noted(one, two))
            eventually(lambda: time.monotonic() - asked_at > 2 * LEASE_S + 1)
            (tmp_path / "go").touch()
            records = [pool.wait(task.id, timeout_s=PATIENCE_S) for task in running]
            delayed = pool.wait(later.id, timeout_s=PATIENCE_S)
            waited_s = time.monotonic() - asked_at

            assert {(record.status, record.attempt, record.crashes) for record in records} == {(S.DONE, 1, 0)}
            assert [len(lines(note)) for note in notes] == [1] * 3
            assert delayed.status is S.DONE
            assert waited_s >= 3.5
            for task, submitted_at in ((much_later, asked_at), (unnoticed, stepped_at)):
                run_at = pool.get(task.id).run_at
                assert run_at is not None
                assert abs((run_at - redis_now(redis)).total_seconds() - (300 - (time.monotonic() - submitted_at))) < 5
            assert late.result().status is S.DONE
            assert "lease lost" not in one.log.read_text() + two.log.read_text() + late.log.read_text()


def redis_now(redis: ShiftedRedis) -> datetime:
    with Redis.from_url(redis.url) as client:
        seconds, micros = client.time()
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=micros)


@pytest.mark.parametrize("step_s", [120, -600])
def test_a_dead_supervisors_task_comes_back_within_its_lease(
    redis: ShiftedRedis, tmp_path: Path, step_s: float
) -> None:
    with WorkerPool(redis.url, tmp_path / "two", lease_s=LEASE_S) as two:
        with WorkerPool(redis.url, tmp_path / "one", lease_s=LEASE_S, env={"TASKPOOL_QUEUES": "doomed"}) as one:
            task = one.submit("hang_once", note=tmp_path / "note", queue="doomed")
            started(tmp_path / "note")
        redis.step(step_s)
        dead_at = time.monotonic()

        eventually(lambda: two.pool.get(task.id).status is S.QUEUED)

        assert time.monotonic() - dead_at < 3 * LEASE_S + 4
        assert two.pool.get(task.id).crashes == 1


def test_a_pool_that_starts_after_a_step_back_finds_it(redis: ShiftedRedis, tmp_path: Path) -> None:
    with WorkerPool(redis.url, tmp_path / "one", lease_s=LEASE_S) as one:
        task = one.submit("hang_once", note=tmp_path / "note")
        started(tmp_path / "note")
        one.process.kill()
        one.process.wait()
    redis.step(-600)

    with WorkerPool(redis.url, tmp_path / "two", lease_s=LEASE_S) as two:
        record = two.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.result, record.crashes) == ("the second time", 1)


def test_a_time_that_was_named_stays(redis: ShiftedRedis, tmp_path: Path) -> None:
    with WorkerPool(redis.url, tmp_path / "log", lease_s=LEASE_S) as workers:
        at = redis_now(redis) + timedelta(seconds=3000)
        absolute, relative = workers.submit(run_at=at), workers.submit(delay_s=3000)
        expiring = workers.submit(delay_s=9000, expires_in_s=5000)
        relative_at, expires_at = workers.pool.get(relative.id).run_at, workers.pool.get(expiring.id).expires_at
        assert relative_at is not None

        redis.step(-600)
        eventually(lambda: noted(workers))
        eventually(lambda: workers.pool.get(relative.id).run_at != relative_at)
        eventually(lambda: workers.pool.get(expiring.id).expires_at != expires_at)

        found = workers.pool.get(absolute.id).run_at
        assert found is not None
        assert abs((found - at).total_seconds()) < 0.01
        moved_to = workers.pool.get(relative.id).run_at
        assert moved_to is not None
        assert abs((relative_at - moved_to).total_seconds() - 600) < 3

        redis.step(3700)  # beyond the named time
        assert workers.pool.wait(absolute.id, timeout_s=PATIENCE_S).status is S.DONE
        assert workers.pool.get(relative.id).status is S.SCHEDULED
        assert workers.pool.get(expiring.id).status is S.SCHEDULED
