"""What one task does to its process is not the next task's problem."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import TaskStatus
from tests.support import PATIENCE_S, eventually
from tests.tasks_for_surroundings import HARM
from tests.worker_pool import WorkerPool, pool_with_redis

TASKS = str(Path(__file__).with_name("tasks_for_surroundings.py"))
S = TaskStatus
LOOP_HARM = [
    *("exit", "stop", "cancel all", "factory", "raising callback", "close", "executor", "default executor"),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[WorkerPool]:
    """A process with one slot."""
    with pool_with_redis(tmp_path_factory.mktemp("one"), redis_binary, tasks=TASKS) as workers:
        yield workers


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[WorkerPool]:
    """A process with several slots."""
    with pool_with_redis(tmp_path_factory.mktemp("many"), redis_binary, tasks=TASKS, slots=4) as workers:
        yield workers


def run(workers: WorkerPool, type: str, **payload: Any) -> Any:
    """The record of a task at its end."""
    return workers.pool.wait(workers.pool.add_task(type, payload).id, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("what", HARM)
def test_the_next_task_finds_the_process_as_it_began(one: WorkerPool, what: str) -> None:
    before = run(one, "look").result
    harmful = run(one, "harm", what=what)

    after = run(one, "look")

    assert harmful.status is S.DONE
    assert (after.status, after.result) == (S.DONE, before)
    lines = {(line.stream, line.text) for line in one.pool.logs(after.id).items}
    assert {("stdout", "printed"), ("logging", "logged"), ("stdout", "written")} <= lines
    assert run(one, "look_async").result == "nobody"


@pytest.mark.parametrize("what", ["signals", "alarm"])
def test_the_next_task_has_its_timeout(one: WorkerPool, what: str) -> None:
    run(one, "harm", what=what)

    record = run(one, "late")

    assert record.failure["reason"] == "timeout"
    assert record.crashes == 0
    eventually(lambda: len(one.pids()) == 1)


@pytest.mark.parametrize(
    ("slots", "what"), [(1, "methods"), *((slots, what) for slots in (1, 4) for what in LOOP_HARM)]
)
def test_what_a_task_does_to_the_event_loop_harms_neither_its_process_nor_the_next_task(
    one: WorkerPool, many: WorkerPool, slots: int, what: str
) -> None:
    workers = one if slots == 1 else many
    (pid,) = eventually(lambda: pids if len(pids := workers.pids()) == 1 else None)

    record = run(workers, "loop_harm", what=what)

    assert record.status in (S.DONE, S.FAILED)
    assert record.crashes == 0
    assert {run(workers, "look_async").result for _ in range(3)} == {"nobody"}
    assert workers.pids() == [pid]


@pytest.mark.parametrize("what", ["exit", "stop", "cancel all", "factory", "raising callback"])
def test_its_neighbours_go_on(many: WorkerPool, tmp_path: Path, what: str) -> None:
    neighbours = [many.pool.add_task("wait", {"until": str(tmp_path / "go")}) for _ in range(2)]
    eventually(lambda: all(many.pool.get(each.id).status is S.IN_PROGRESS for each in neighbours))

    run(many, "loop_harm", what=what)
    (tmp_path / "go").touch()

    records = [many.pool.wait(each.id, timeout_s=PATIENCE_S) for each in neighbours]
    assert [(each.status, each.attempt, each.crashes) for each in records] == [(S.DONE, 1, 0)] * 2


@pytest.mark.parametrize("way", ["sub-task", "thread"])
@pytest.mark.parametrize("slots", [1, 4])
def test_a_generator_exit_that_is_awaited_fails_the_task_and_frees_its_slot(
    one: WorkerPool, many: WorkerPool, slots: int, way: str
) -> None:
    workers = one if slots == 1 else many

    records = [run(workers, "awaits_exit", way=way) for _ in range(slots + 1)]

    assert {(each.status, each.crashes, each.error) for each in records} == {(S.FAILED, 0, "GeneratorExit")}
    assert run(workers, "look_async").result == "nobody"


def test_a_neighbour_whose_own_part_is_cancelled_by_another_task_runs_again_at_no_cost(
    many: WorkerPool, tmp_path: Path
) -> None:
    neighbour = many.pool.add_task("wait_for_another", {"until": str(tmp_path / "go")})
    eventually(lambda: many.pool.get(neighbour.id).status is S.IN_PROGRESS)

    run(many, "loop_harm", what="cancel all")
    eventually(lambda: many.pool.get(neighbour.id).snoozes == 1)
    (tmp_path / "go").touch()

    record = many.pool.wait(neighbour.id, timeout_s=PATIENCE_S)
    assert (record.status, record.attempt, record.crashes) == (S.DONE, 1, 0)


@pytest.mark.parametrize("what", [each for each in HARM if each not in ("directory", "removed directory", "umask")])
def test_with_several_slots_the_next_task_and_the_worker_go_on(many: WorkerPool, what: str) -> None:
    for type in ("harm", "harm_async"):
        if type == "harm" and what in ("signals", "alarm"):  # Python allows that in the main thread alone
            continue
        assert run(many, type, what=what).status is S.DONE, type

        after = run(many, "look")
        assert after.status is S.DONE, (type, after)
        assert after.result["user"] == "nobody"
        lines = {(line.stream, line.text) for line in many.pool.logs(after.id).items}
        assert {("stdout", "printed"), ("logging", "logged")} <= lines, type


@pytest.mark.parametrize("way", ["close", "replace"])
@pytest.mark.parametrize("type", ["take_descriptors", "take_descriptors_async"])
def test_a_process_whose_descriptors_a_task_has_closed_is_replaced_before_its_next_task(
    one: WorkerPool, type: str, way: str
) -> None:
    (pid,) = eventually(lambda: pids if len(pids := one.pids()) == 1 else None)

    harmful = run(one, type, way=way)
    next_ones = [run(one, "look_async"), run(one, "look")]

    assert (harmful.status, harmful.crashes) == (S.DONE if type == "take_descriptors" else S.FAILED, 0)
    assert [(each.status, each.attempt) for each in next_ones] == [(S.DONE, 1)] * 2
    assert pid not in one.pids()


@pytest.mark.parametrize("type", ["take_descriptors", "take_descriptors_async"])
def test_a_task_that_closes_the_descriptors_of_its_process_costs_its_neighbours_no_attempt(
    many: WorkerPool, tmp_path: Path, type: str
) -> None:
    neighbour = many.pool.add_task("wait", {"until": str(tmp_path / "go")})
    eventually(lambda: many.pool.get(neighbour.id).status is S.IN_PROGRESS)

    harmful = many.pool.add_task(type, {"way": "close"})
    eventually(lambda: many.pool.get(neighbour.id).history)
    (tmp_path / "go").touch()

    record = many.pool.wait(neighbour.id, timeout_s=PATIENCE_S)
    assert (record.status, record.attempt, record.crashes) == (S.DONE, 1, 0)
    assert many.pool.wait(harmful.id, timeout_s=PATIENCE_S).reason == "crashed"
    assert run(many, "look_async").status is S.DONE


@pytest.mark.parametrize("slots", [1, 4])
def test_a_process_that_a_thread_of_an_executor_starts_ends_well(one: WorkerPool, many: WorkerPool, slots: int) -> None:
    assert run(one if slots == 1 else many, "multiprocess").result == [0, 0]
