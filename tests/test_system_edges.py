"""Worker processes of both kinds: a task sees how the tasks of a map have ended, and a chain is canceled to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from taskpool import TaskStatus
from tests.support import PATIENCE_S
from tests.worker_pool import WorkerPool, pool_with_redis

TASKS = str(Path(__file__).with_name("tasks_for_edges.py"))
ROWS = 250
LEVELS = 300


@pytest.fixture(scope="module", params=[1, 3], ids=["one slot", "three slots"])
def workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None
) -> Iterator[WorkerPool]:
    """A pool of one process: with several slots it is another kind of process."""
    directory = tmp_path_factory.mktemp("workers")
    with pool_with_redis(directory, redis_binary, tasks=TASKS, slots=request.param) as workers:
        yield workers


@pytest.mark.parametrize("looks", ["look", "look_async"])
def test_a_task_sees_which_rows_of_a_map_failed(workers: WorkerPool, looks: str) -> None:
    with workers.pool.workflow("rows") as workflow:
        workflow.add("fan_out", "fan_out", {"rows": ROWS, "looks": looks})

    ended = workers.pool.wait_workflow(workflow.id, timeout_s=PATIENCE_S)

    (seen,) = workers.pool.list_tasks(type=looks, limit=1).items
    bad = [n for n in range(ROWS) if n % 3 == 0]
    assert ended.status == "done"
    assert seen.result["size"] == ROWS
    assert seen.result["bad"] == [f"ValueError: row {n} is bad" for n in bad]
    assert seen.result["first"] == 1
    assert "it has none, its status is failed" in seen.result["refused"]


def test_a_chain_whose_first_task_fails_is_canceled_to_its_end(workers: WorkerPool) -> None:
    head = workers.pool.add_task("row", {"n": 0}, delay_s=3600)
    ids = [head.id]
    for _ in range(LEVELS):
        ids.append(workers.pool.add_task("row", {"n": 1}, depends_on=[ids[-1]]).id)
    with Redis.from_url(workers.pool.redis_url) as redis:
        redis.zadd("rq:scheduled:default", {head.id: 1})

    last = workers.pool.wait(ids[-1], timeout_s=PATIENCE_S)

    assert (last.status, last.reason, last.canceled_by) == (TaskStatus.CANCELED, "dependency_failed", ids[-2])
    assert workers.pool.get(head.id).status is TaskStatus.FAILED
    assert workers.pool.list_tasks(status=TaskStatus.WAITING, limit=1).items == ()
