"""Quick tasks are claimed and ended several at once, and what befalls one of them befalls no other."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from taskpool import TaskRecord, TaskSpec, TaskStatus
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines, pool_with_redis

S = TaskStatus
COUNT, PLACE = 40, 20
ROUNDS = 50
"""A busy machine may make quick tasks slow, so that they are claimed one by one."""


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[WorkerPool]:
    with pool_with_redis(tmp_path_factory.mktemp("batches"), redis_binary) as workers:
        yield workers


class Burst:
    """Tasks that are submitted at once: quick ones, and at PLACE one that does something else."""

    def __init__(self, workers: WorkerPool, note: Path, do: str = "", **options: Any) -> None:
        self.note, self.go = note, note.with_suffix(".go")
        self._pool = workers.pool
        payload = {"note": str(note), "until": str(self.go)}
        specs = [TaskSpec(type="mark", payload=payload, queue="default") for _ in range(COUNT)]
        specs[PLACE] = TaskSpec(type="mark", payload={**payload, "do": do}, queue="default", **options)
        self.ids = [record.id for record in self._pool.add_tasks(specs)]
        self.other = self.ids[PLACE]
        self.quick = [id for id in self.ids if id != self.other]

    def begin_other(self) -> None:
        """Returns when the other task runs."""
        eventually(lambda: self.other in lines(self.note))

    def records(self) -> list[TaskRecord]:
        return [self._pool.get(id) for id in self.ids]

    def end(self) -> dict[str, TaskRecord]:
        """All records, by id, when all tasks have ended."""
        self.go.touch()
        return {id: self._pool.wait(id, timeout_s=PATIENCE_S) for id in self.ids}

    def place_in_batch(self) -> int:
        """The place of the other task in its batch; 0 if it is the first, or the only one."""
        with Redis.from_url(self._pool.redis_url) as redis:
            attempt_id = redis.hget(f"rq:job:{self.other}", "attempt_id") or b""
        return int(attempt_id.decode().partition("-")[2] or 0)


def bursts(workers: WorkerPool, directory: Path, do: str = "", **options: Any) -> Iterator[Burst]:
    """Bursts, as many as it takes until tasks were claimed together as the test needs it."""
    for number in range(ROUNDS):
        yield Burst(workers, directory / f"{do}{number}", do, **options)
    raise AssertionError("no tasks were claimed together")


def ran_once(burst: Burst, records: dict[str, TaskRecord], *, besides: str = "") -> None:
    """Each task ran once, and is done, except this one."""
    ran = Counter(lines(burst.note))
    for id, record in records.items():
        if id != besides:
            assert (record.status, record.attempt, record.crashes, ran[id]) == (S.DONE, 1, 0, 1), record


def test_quick_tasks_are_claimed_and_ended_together_each_with_its_own_record(
    workers: WorkerPool, tmp_path: Path
) -> None:
    for burst in bursts(workers, tmp_path):
        records = burst.end()

        ran_once(burst, records)
        assert lines(burst.note) == burst.ids  # in the order of the queue
        assert all(record.result == id for id, record in records.items())
        if burst.place_in_batch() > 0:
            break


@pytest.mark.parametrize("do", ["wait", "grip"])
def test_what_is_claimed_behind_a_slow_task_is_queued_again_and_what_is_done_is_written(
    workers: WorkerPool, tmp_path: Path, do: str
) -> None:
    for burst in bursts(workers, tmp_path, do):
        burst.begin_other()
        place = burst.place_in_batch()
        expected = [S.DONE] * PLACE + [S.IN_PROGRESS] + [S.QUEUED] * (COUNT - PLACE - 1)

        def are_expected(burst: Burst = burst, expected: list[TaskStatus] = expected) -> bool:
            return [record.status for record in burst.records()] == expected

        eventually(are_expected)
        waiting = [item.record.id for item in workers.pool.get_queue("default").items]
        assert waiting == burst.ids[PLACE + 1 :]  # in their order

        ran_once(burst, burst.end())
        if place > 0:
            break


def test_a_task_that_ends_its_process_costs_those_that_were_claimed_with_it_nothing(
    workers: WorkerPool, tmp_path: Path
) -> None:
    for burst in bursts(workers, tmp_path, "die", max_attempts=1):
        records = burst.end()

        ran_once(burst, records, besides=burst.other)
        assert records[burst.other].status is S.FAILED
        assert records[burst.other].reason == "crashed"
        if any(past.outcome == "given_back" for id in burst.quick for past in records[id].history):
            break


@pytest.mark.parametrize("do", ["fail", "talk", "much"])
def test_a_task_of_a_batch_that_ends_in_another_way_is_written_as_alone(
    workers: WorkerPool, tmp_path: Path, do: str
) -> None:
    for burst in bursts(workers, tmp_path, do):
        records = burst.end()

        ran_once(burst, records, besides=burst.other)
        other = records[burst.other]
        assert other.status is (S.FAILED if do == "fail" else S.DONE)
        if do == "talk":
            assert [line.text for line in workers.pool.logs(other.id).items] == [f"said {other.id}"]
        if burst.place_in_batch() > 0:
            break


@pytest.mark.parametrize("options", [{"on_lost_lease": "kill"}, {"unique_key": "only"}, {"timeout_s": 5}])
def test_a_task_with_options_may_stand_among_quick_ones(
    workers: WorkerPool, tmp_path: Path, options: dict[str, Any]
) -> None:
    burst = Burst(workers, tmp_path / "note", **options)

    ran_once(burst, burst.end())
    assert lines(burst.note) == burst.ids


def test_a_pool_that_ends_gives_back_what_it_has_not_begun(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log") as workers:
        found = [Burst(workers, tmp_path / str(number)) for number in range(20)]
        eventually(lambda: lines(found[2].note))
        workers.send(signal.SIGTERM)
        assert workers.end() == 0

    with WorkerPool(redis_url, tmp_path / "log2"):
        for burst in found:
            ran_once(burst, burst.end())


# --- a supervisor that is frozen --------------------------------------------------------------------------------------


def test_a_task_that_is_stopped_before_it_begins_never_runs(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log") as workers:
        for burst in bursts(workers, tmp_path, "wait"):
            workers.send(signal.SIGSTOP)
            burst.begin_other()
            behind = [record.id for record in burst.records()[PLACE + 1 :] if record.status is S.IN_PROGRESS]
            if behind:
                workers.pool.kill_task(behind[0])
            workers.send(signal.SIGCONT)
            if behind:
                assert workers.pool.wait(behind[0], timeout_s=PATIENCE_S).status is S.STOPPED
                burst.end()
                assert behind[0] not in lines(burst.note)
                break
            ran_once(burst, burst.end())


def test_of_a_batch_whose_host_dies_no_task_is_charged(redis_url: str, redis: Any, tmp_path: Path) -> None:
    for number in range(ROUNDS):
        with WorkerPool(redis_url, tmp_path / f"log{number}", lease_s=3) as workers:
            Burst(workers, tmp_path / f"warm{number}").end()
            burst = Burst(workers, tmp_path / f"note{number}", "wait")
            workers.send(signal.SIGSTOP)
            burst.begin_other()
            claimed = [record.id for record in burst.records() if record.status is S.IN_PROGRESS]
            for process in [*workers.descendants(), psutil.Process(workers.process.pid)]:
                process.kill()
            with WorkerPool(redis_url, tmp_path / f"again{number}", lease_s=3):
                records = burst.end()
        assert {(record.status, record.attempt, record.crashes) for record in records.values()} == {(S.DONE, 1, 0)}
        if len(claimed) > 1:
            return
    raise AssertionError("no tasks were claimed together")
