"""Why a task isn't running: one test for each reason, and what becomes of it when the reason goes."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from taskpool import TaskPool, TaskSpec, TaskStatus
from taskpool.errors import TaskNotFound
from taskpool.operations.catalog import PoolInfo, publish, retire
from taskpool.operations.insight import why as insight
from taskpool.operations.insight.why import for_tenants, why_not_running
from taskpool.redis import pause_scripts, scripts
from taskpool.types import TypeInfo
from taskpool.types.fleet import Reason, ReasonKind, TypeCount, Why
from tests.states import FAILURE, World

S, K = TaskStatus, ReasonKind
WORKERS = ("h.7.ab.1", "h.7.ab.2")


def pool_of(id: str = "h.7.ab", **given: Any) -> PoolInfo:
    fields: dict[str, Any] = {
        "id": id, "host": "h", "pid": 7, "queues": ("default",), "types": ("work",), "workers": WORKERS, **given
    }  # fmt: skip
    return PoolInfo(**fields)


@pytest.fixture
def pool(world: World) -> PoolInfo:
    world.run(publish(pool_of(), (), ttl_s=100))
    return pool_of()


def publish_work(world: World) -> None:
    info = TypeInfo(name="work", queue="default", schema={})
    world.run(publish(pool_of(), [info], ttl_s=100))


def spec(**payload: Any) -> TaskSpec:
    return TaskSpec(type="work", payload=payload)


def why(world: World, id: str = "a") -> Why:
    return world.store.carry_out(why_not_running(id))


def kinds(world: World, id: str = "a") -> list[ReasonKind]:
    found = why(world, id)
    assert found.can_run == (found.status == S.QUEUED and not found.reasons)
    assert all(reason.text.strip() == reason.text and reason.text for reason in found.reasons)
    return [reason.kind for reason in found.reasons]


def only(world: World, id: str = "a") -> Reason:
    (reason,) = why(world, id).reasons
    return reason


@pytest.mark.usefixtures("pool")
def test_a_task_that_a_free_worker_takes_next_has_no_reason(world: World) -> None:
    world.add("a")

    assert why(world) == Why(id="a", status="queued", can_run=True)


def test_no_worker_serves_its_queue(world: World, pool: PoolInfo) -> None:
    world.add("a", queue="reports")

    assert kinds(world) == [K.NO_WORKER_FOR_QUEUE]
    world.run(publish(pool_of("other", queues=("reports",)), (), ttl_s=100))
    assert kinds(world) == []


def test_a_plain_rq_worker_serves_its_queue(world: World, pool: PoolInfo) -> None:
    world.add("a", queue="reports")
    world.redis.sadd("rq:workers:reports", "rq:worker:plain", f"rq:worker:{WORKERS[0]}")

    assert kinds(world) == [K.NO_WORKER_FOR_QUEUE], "the entry of a worker that is dead"
    world.redis.hset("rq:worker:plain", "birth", "now")
    assert kinds(world) == []


def test_no_worker_of_its_queue_knows_its_type(world: World, pool: PoolInfo) -> None:
    world.add("a", type="resize")

    assert kinds(world) == [K.NO_WORKER_FOR_TYPE]
    world.run(publish(pool_of("other", types=("resize",), queues=("else",)), (), ttl_s=100))
    assert kinds(world) == [K.NO_WORKER_FOR_TYPE], "a pool of another queue is of no use"
    world.run(publish(pool_of("other", types=("resize",)), (), ttl_s=100))
    assert kinds(world) == []


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize(("field", "what"), [("all", "all"), ("queue:default", "queue"), ("pool:h.7.ab", "pool")])
def test_it_is_paused(world: World, field: str, what: str) -> None:
    world.add("a")
    pause = world.run(pause_scripts.pause(field, "Ann", "a reason"))
    assert pause is not None

    reason = only(world)

    assert (reason.kind, reason.paused, reason.by, reason.at) == (K.PAUSED, what, "Ann", pause.at)
    assert reason.name == (None if what == "all" else field.partition(":")[2])
    assert "by Ann: a reason." in reason.text
    assert world.try_claim(worker=WORKERS[0]) is None
    world.run(pause_scripts.resume(field, []))
    assert kinds(world) == []


def test_one_of_its_pools_is_paused_and_another_is_not(world: World, pool: PoolInfo) -> None:
    world.add("a")
    world.run(pause_scripts.pause("pool:h.7.ab", None, None, drains=True))

    assert "drains since" in only(world).text
    world.run(publish(pool_of("other", workers=("other.1",)), (), ttl_s=100))
    assert kinds(world) == []
    world.claim(worker="other.1")
    world.add("b")
    assert only(world, "b").workers == 1, "the slots of a paused pool don't count"


@pytest.mark.usefixtures("pool")
def test_rq_suspend_holds_all_workers(world: World) -> None:
    world.add("a")
    world.redis.set("rq:suspended", 1)

    assert kinds(world) == [K.SUSPENDED]


@pytest.mark.usefixtures("pool")
def test_it_waits_for_tasks_and_they_for_others_to_the_root(world: World) -> None:
    world.add("root", queue="reports")
    world.add("b", depends_on=["root"])
    world.add("done", front=True)
    world.finish(world.claim(worker="w"))
    world.add("a", depends_on=["done", "b", {"id": "root", "on": "any"}])

    reason = only(world)

    assert (reason.kind, [(task.id, task.status) for task in reason.tasks], reason.more) == (
        K.WAITS_FOR,
        [("b", "waiting"), ("root", "queued")],
        0,
    )
    of_b, of_root = reason.tasks
    assert [each.kind for each in of_root.why] == [K.NO_WORKER_FOR_QUEUE]
    assert [each.kind for each in of_b.why] == [K.WAITS_FOR]
    assert of_b.why[0].tasks[0] == of_root


@pytest.mark.usefixtures("pool")
def test_what_it_waited_for_has_ended_and_it_is_not_released_yet(world: World) -> None:
    world.start("parent")
    world.add("a", depends_on=["parent"])
    assert world.finish(world.running["parent"]) == "children"

    reason = only(world)

    assert (reason.kind, reason.tasks) == (K.WAITS_FOR, ())
    world.run(scripts.release("parent"))
    assert kinds(world) == []


def test_it_waits_for_a_workflow_and_for_a_map(redis_url: str, world: World) -> None:
    with TaskPool(redis_url) as pool:
        publish_work(world)
        with pool.workflow("import") as w:
            rows = w.map("rows", [spec(n=n) for n in range(3)])
            w.add("summary", spec(), after=rows)
        workflow = pool.get_workflow(w.id)
        (summary,) = [node.id for node in workflow.nodes if node.name == "summary"]
        outside = pool.add_task("work", {}, depends_on=[{"workflow": w.id, "on": "any"}])

        assert [(each.id, each.status) for each in pool.why(summary or "").reasons[0].tasks] == [
            (f"{w.id}:rows", "in_progress")
        ]
        assert [(each.id, each.status) for each in pool.why(outside.id).reasons[0].tasks] == [(w.id, "in_progress")]


def test_large_families_are_explained_within_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(25):
        world.add(f"p{number}")
    world.add("a", depends_on=[f"p{number}" for number in range(25)])
    reason = only(world)
    assert (len(reason.tasks), reason.more) == (20, 5)
    assert all(task.why for task in reason.tasks)
    before = "a"
    for number in range(15):
        world.add(f"c{number}", depends_on=[before])
        before = f"c{number}"

    depth, reasons = 0, why(world, before).reasons
    while reasons and reasons[0].tasks:
        depth, reasons = depth + 1, reasons[0].tasks[0].why

    assert depth == insight.DEEPEST + 1
    monkeypatch.setattr(insight, "MOST_TASKS", 3)
    monkeypatch.setattr(insight._Fleet, "__init__", _with_few(insight._Fleet.__init__))
    assert sum(bool(task.why) for task in only(world).tasks) == 2


def _with_few(init: Any) -> Any:
    def limited(self: Any, *given: Any) -> None:
        init(self, *given)
        self.tasks_left = insight.MOST_TASKS

    return limited


@pytest.mark.usefixtures("pool")
def test_it_is_scheduled(world: World) -> None:
    world.add("a", delay_s=500)

    reason = only(world)

    assert (reason.kind, reason.at) == (K.SCHEDULED, world.get("a").run_at)


@pytest.mark.usefixtures("pool")
def test_it_was_put_back(world: World) -> None:
    world.run(scripts.snooze(world.start("a"), delay_ms=500_000, message="not yet"))

    reason = only(world)

    assert (reason.kind, reason.at, "not yet" in reason.text) == (K.SCHEDULED, world.get("a").run_at, True)


@pytest.mark.usefixtures("pool")
def test_its_next_attempt_begins_later(world: World) -> None:
    running = world.start("a", max_attempts=3)
    world.run(scripts.retry(running, delay_ms=500_000, error="no luck", failure=FAILURE))

    reason = only(world)

    assert (reason.kind, reason.at, "attempt 1 failed" in reason.text) == (
        K.RETRY_BACKOFF,
        world.get("a").run_at,
        True,
    )


def test_its_time_has_come_and_no_pool_runs(world: World, pool: PoolInfo) -> None:
    world.add("a", delay_s=500)
    world.redis.hset("rq:job:a", "run_ms", 1000)

    assert kinds(world) == [K.SCHEDULED]
    world.store.carry_out(retire("h.7.ab"))
    assert kinds(world) == [K.SCHEDULED, K.NO_WORKER_FOR_QUEUE]


@pytest.mark.usefixtures("pool")
def test_a_person_has_to_confirm_it(world: World) -> None:
    world.add("a", confirm="Import?")

    reason = only(world)

    assert (reason.kind, reason.at) == (K.CONFIRMATION, world.get("a").answer_by)
    assert reason.text == "It waits for a person: Import?"


@pytest.mark.usefixtures("pool")
def test_another_program_queued_what_a_person_has_to_confirm(world: World) -> None:
    world.add("a", confirm="Import?")
    world.redis.hset("rq:job:a", "status", "queued")
    world.redis.rpush("rq:queue:default", "a")

    assert kinds(world) == [K.CONFIRMATION]


def test_the_free_workers_take_others_first(world: World, pool: PoolInfo) -> None:
    for id in ("one", "two"):
        world.add(id)
        world.claim(worker=WORKERS[id == "two"], attempt_id=id)
    for id in ("b", "a"):
        world.add(id)

    reason = only(world)

    assert (reason.kind, reason.ahead, reason.workers) == (K.BUSY, 1, 2)
    assert reason.running == (TypeCount("work", 2),)
    assert reason.text == "1 task is ahead of it, and all 2 slots of its workers are taken."
    world.finish(world.running["one"])
    assert (kinds(world, "b"), kinds(world)) == ([], [K.BUSY])
    assert only(world).text == "1 task is ahead of it, and 1 of its workers' 2 slots are free."
    world.finish(world.running["two"])
    assert kinds(world) == []
    world.claim(worker=WORKERS[0])
    assert kinds(world) == []


def test_tasks_of_more_urgent_queues_come_first(world: World) -> None:
    world.run(publish(pool_of(queues=("high", "default"), workers=WORKERS[:1]), (), ttl_s=100))
    world.add("b", queue="high")
    world.add("a")

    assert (only(world).kind, only(world).ahead) == (K.BUSY, 1)
    world.run(pause_scripts.pause("queue:high", None, None))
    assert kinds(world) == []


@pytest.mark.usefixtures("pool")
def test_the_search_in_a_long_queue_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insight, "LOOKED_AT", 3)
    world.add("a")
    for side in ("lpush", "rpush"):
        getattr(world.redis, side)("rq:queue:default", *[f"{side}{number}" for number in range(2)])
    assert only(world).ahead == 2
    for side in ("lpush", "rpush"):
        getattr(world.redis, side)("rq:queue:default", *[f"{side}{number}" for number in range(10)])
    world.redis.lpop("rq:queue:default", 8)
    assert only(world).ahead == 3, "at least"


@pytest.mark.usefixtures("pool")
def test_a_plain_rq_worker_has_taken_it_out_of_its_queue(world: World) -> None:
    world.add("a")
    world.redis.delete("rq:queue:default")

    assert kinds(world) == [K.HELD_BACK]


def test_a_suspect_waits_for_an_empty_process(world: World) -> None:
    world.run(publish(pool_of(slots=5), (), ttl_s=100))
    world.add("a")
    world.redis.hset("rq:job:a", "suspect", 1)
    assert kinds(world) == []
    for worker in WORKERS:
        world.redis.sadd(f"rq:worker:{worker}:executions", f"x{worker}:1")

    assert kinds(world) == [K.HELD_BACK]
    world.redis.hdel("rq:job:a", "suspect")
    assert kinds(world) == [], "other tasks run beside what runs"


@pytest.mark.usefixtures("pool")
def test_it_has_expired(world: World) -> None:
    world.add("a", expires_in_s=500)
    assert kinds(world) == []
    world.redis.hset("rq:job:a", "expires_ms", 1000)

    assert kinds(world) == [K.EXPIRED]
    assert world.try_claim(worker=WORKERS[0]) is None
    assert kinds(world) == [K.ENDED]


def test_its_workflow_was_stopped(redis_url: str, world: World) -> None:
    with TaskPool(redis_url) as pool:
        publish_work(world)
        with pool.workflow("import") as w:
            w.add("one", spec())
        (task,) = [node.id for node in pool.get_workflow(w.id).nodes]
        world.redis.hset(f"taskpool:workflow:{w.id}", "stop", "1")

        assert kinds(world, task or "") == [K.WORKFLOW_STOPPED]


@pytest.mark.usefixtures("pool")
def test_it_runs_or_has_ended(world: World) -> None:
    world.start("a")
    reason = only(world)
    assert (reason.kind, reason.worker, reason.at) == (K.RUNNING, "w", world.get("a").started_at)

    world.finish(world.running["a"], S.FAILED)

    assert (only(world).kind, only(world).at) == (K.ENDED, world.get("a").ended_at)
    with pytest.raises(TaskNotFound):
        why(world, "nobody")


@pytest.mark.usefixtures("pool")
def test_a_task_of_another_program_is_run_whatever_its_type(world: World) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", mapping={"data": '["jobs.send", null, [], {}]', "type": "jobs.send"})

    assert kinds(world) == []


@pytest.mark.usefixtures("pool")
def test_tenants_see_nothing_of_others(world: World) -> None:
    world.add("parent")
    world.run(pause_scripts.pause("queue:default", "Ann", "customer 7 is late"))
    world.add("a", depends_on=["parent"])
    busy = Reason(kind=K.BUSY, text="x", running=(TypeCount("secret", 1),))

    shown = for_tenants(replace(why(world), reasons=(*why(world).reasons, busy)))

    waits, kept = shown.reasons
    assert kept.running == ()
    paused = waits.tasks[0].why[0]
    assert (paused.kind, paused.text, paused.by, paused.name) == (K.PAUSED, "It is paused.", None, "default")
