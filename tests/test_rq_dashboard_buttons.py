"""What rq-dashboard's buttons do to our tasks, while our own workers serve the queue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from taskpool import TaskPool
from taskpool.redis.embedded import RedisServer
from taskpool.tasks.registry import Registry
from taskpool.types import TaskStatus
from tests.rq_processes import TASKS, Dashboard, dashboard, is_gone, numbers, once, traces, workers
from tests.support import PATIENCE_S, eventually

S = TaskStatus
NO_SUCH_FILE = {"path": "/no/such/file"}


@pytest.fixture(scope="module")
def pages(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """rq-dashboard, and two workers of ours on the default queue."""
    directory = tmp_path_factory.mktemp("dashboard")
    with dashboard(redis_server.url, directory) as pages, workers(redis_server.url, directory):
        yield pages


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    """A pool that submits."""
    with TaskPool(redis_url, registry=Registry([TASKS], builtins=True)) as pool:
        yield pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """The file that `hold` tasks wait for; it is there at the end of the test, whatever happened."""
    gate = tmp_path / "gate"
    yield gate
    gate.touch()


def test_requeue_runs_a_failed_task_again(pages: Dashboard, pool: TaskPool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    task = pool.add_task("read", {"path": str(file)})
    failed = pool.wait(task.id, timeout_s=PATIENCE_S)
    file.write_text("there")

    pages.press(f"job/{task.id}/requeue")

    done = once(pool, task.id, S.DONE)
    assert (failed.status, failed.attempt) == (S.FAILED, 1)
    assert (done.result, done.attempt, done.error, done.failure, done.reason) == ("there", 2, None, None, None)
    assert (numbers(pool).queued, numbers(pool).failed, numbers(pool).done) == (0, 0, 1)
    assert pages.job(task.id)["status"] == "finished"


def test_a_requeued_task_is_queued_until_it_runs(pages: Dashboard, pool: TaskPool) -> None:
    task = pool.add_task("read", NO_SUCH_FILE, queue="unserved")
    running = pool.run_task(["unserved"], worker="ann", attempt_id="attempt1")
    assert running is not None
    pool.execute_task(running)

    pages.press(f"job/{task.id}/requeue")

    record = pool.get(task.id)
    assert record.status is S.QUEUED
    assert record.ended_at is None
    assert [item.record.id for item in pool.get_queue("unserved").items] == [task.id]
    assert [each.id for each in pool.list_tasks(status=S.FAILED).items] == []
    assert (numbers(pool, "unserved").queued, numbers(pool, "unserved").failed) == (1, 0)


def test_requeue_all_runs_every_failed_and_stopped_task_again(
    pages: Dashboard, pool: TaskPool, tmp_path: Path, gate: Path
) -> None:
    file = tmp_path / "file"
    failed = [pool.add_task("read", {"path": str(file)}).id for _ in range(3)]
    held = pool.add_task("hold", {"path": str(gate)}).id
    once(pool, held, S.IN_PROGRESS)
    pool.kill_task(held)
    for id in (*failed, held):
        pool.wait(id, timeout_s=PATIENCE_S)
    file.write_text("there")
    gate.touch()

    answer = pages.press("requeue/default")

    assert answer["count"] == 4
    for id in (*failed, held):
        once(pool, id, S.DONE)
    assert (numbers(pool).failed, numbers(pool).done) == (0, 4)


def test_delete_leaves_nothing_of_a_task_that_has_ended(pages: Dashboard, pool: TaskPool, redis: Redis) -> None:
    done = pool.add_task("echo", {"message": 1}, tags=["red"])
    failed = pool.add_task("read", NO_SUCH_FILE, tags=["red"])
    for task in (done, failed):
        pool.wait(task.id, timeout_s=PATIENCE_S)

        pages.press(f"job/{task.id}/delete")

        assert is_gone(pool, task.id)
        eventually(lambda id=task.id: not traces(redis, pool, id))  # type: ignore[misc]
    assert (numbers(pool).done, numbers(pool).failed) == (0, 0)
    assert pool.list_tasks(tag="red").items == pool.list_tasks(queue="default").items == ()


def test_delete_leaves_nothing_of_a_task_that_has_not_started(pages: Dashboard, pool: TaskPool, redis: Redis) -> None:
    tasks = {
        "queued": pool.add_task("echo", {"message": 1}, queue="unserved", tags=["red"]),
        "scheduled": pool.add_task("echo", {"message": 2}, queue="unserved", delay_s=3600),
    }
    tasks["deferred"] = pool.add_task("collect", queue="unserved", depends_on=[tasks["scheduled"].id])
    for task in reversed(tasks.values()):
        pages.press(f"job/{task.id}/delete")

        assert is_gone(pool, task.id)
    for task in tasks.values():
        eventually(lambda id=task.id: not traces(redis, pool, id))  # type: ignore[misc]
    info = numbers(pool, "unserved")
    assert (info.queued, info.scheduled, info.waiting, info.canceled) == (0, 0, 0, 0)


def test_what_waits_for_a_deleted_task_is_canceled(pages: Dashboard, pool: TaskPool) -> None:
    parent = pool.add_task("echo", {"message": 1}, queue="unserved")
    child = pool.add_task("collect", depends_on=[parent.id])

    pages.press(f"job/{parent.id}/delete")

    canceled = once(pool, child.id, S.CANCELED)
    assert canceled.reason == "dependency_failed"


def test_a_worker_whose_task_is_deleted_stops_it_and_goes_on(
    pages: Dashboard, pool: TaskPool, redis: Redis, gate: Path
) -> None:
    task = pool.add_task("hold", {"path": str(gate)})
    once(pool, task.id, S.IN_PROGRESS)

    pages.press(f"job/{task.id}/delete")

    assert is_gone(pool, task.id)
    eventually(lambda: not traces(redis, pool, task.id))
    after = [pool.add_task("echo", {"message": n}) for n in range(10)]
    assert [pool.wait(each.id, timeout_s=PATIENCE_S).result for each in after] == list(range(10))
    eventually(lambda: [worker["current_job"] for worker in pages.workers()] == ["idle", "idle"])
    assert (numbers(pool).in_progress, numbers(pool).done) == (0, 10)


@pytest.mark.parametrize("registry", ["queued", "scheduled", "deferred", "finished", "failed", "canceled"])
def test_empty_leaves_no_ghost_in_a_registry(registry: str, pages: Dashboard, pool: TaskPool, redis: Redis) -> None:
    ids = [fill(pool, registry) for _ in range(3)]
    assert pages.queue("unserved")[registry] == 3

    pages.press(f"queue/unserved/{registry}/empty")

    assert pages.queue("unserved")[registry] == 0
    assert pages.jobs(registry, "unserved") == []
    assert all(is_gone(pool, id) for id in ids)
    assert pool.get_queue("unserved").items == ()
    assert not {record.id for record in pool.list_tasks(queue="unserved").items} & set(ids)
    for parent in pool.list_tasks(queue="elsewhere").items:  # they remember who waits for them until they end
        pool.remove_task(parent.id)
    for id in ids:
        eventually(lambda id=id: not traces(redis, pool, id))  # type: ignore[misc]


def fill(pool: TaskPool, registry: str) -> str:
    """Bring one more task of the queue `unserved` into a registry; its id."""
    if registry == "deferred":
        parent = pool.add_task("echo", {"message": 1}, delay_s=3600, queue="elsewhere")
        return pool.add_task("collect", queue="unserved", depends_on=[parent.id]).id
    delay_s = 3600 if registry == "scheduled" else None
    task = pool.add_task(
        "read", {"path": __file__ if registry == "finished" else "/no"}, queue="unserved", delay_s=delay_s
    )
    if registry == "canceled":
        pool.remove_task(task.id)
    if registry in ("finished", "failed"):
        running = pool.run_task(["unserved"], worker="ann", attempt_id="attempt1")
        assert running is not None
        pool.execute_task(running)
    return task.id


def test_empty_of_the_running_ones_stops_them(pages: Dashboard, pool: TaskPool, redis: Redis, gate: Path) -> None:
    tasks = [pool.add_task("hold", {"path": str(gate)}) for _ in range(2)]
    for task in tasks:
        once(pool, task.id, S.IN_PROGRESS)

    pages.press("queue/default/started/empty")

    assert all(is_gone(pool, task.id) for task in tasks)
    for task in tasks:
        eventually(lambda id=task.id: not traces(redis, pool, id))  # type: ignore[misc]
    assert pool.wait(pool.add_task("echo", {"message": 1}).id, timeout_s=PATIENCE_S).status is S.DONE


def test_compact_keeps_what_is_queued_in_order(pages: Dashboard, pool: TaskPool) -> None:
    ids = [pool.add_task("echo", {"message": n}, queue="unserved").id for n in range(3)]

    pages.press("queue/unserved/compact")

    assert [item.record.id for item in pool.get_queue("unserved").items] == ids


def test_the_workers_page_shows_what_each_worker_runs(pages: Dashboard, pool: TaskPool, gate: Path) -> None:
    task = pool.add_task("hold", {"path": str(gate)})
    running = once(pool, task.id, S.IN_PROGRESS)

    # They enter themselves again after the test before this one.
    eventually(lambda: [row["state"] for row in pages.workers()] == ["busy", "idle"])
    eventually(lambda: any(row["current_job"] != "idle" for row in pages.workers()))  # shown after a second

    rows = {row["name"]: row for row in pages.workers()}
    row = rows.pop(running.worker or "")
    assert (row["state"], row["queues"]) == ("busy", ["default"])
    assert row["current_job"]["job_id"] == task.id
    assert row["current_job"]["call_string"].startswith("hold(path=&#x27;/")
    assert [(row["state"], row["current_job"]) for row in rows.values()] == [("idle", "idle")]
    assert {row["pid"], *(row["pid"] for row in rows.values())} == {worker.pid for worker in pool.workers()}
