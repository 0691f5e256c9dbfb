"""The life of secret values: stored separately, passed to attempts, removed when they are no longer needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from taskpool import InvalidPayload, NonRetryable, Secret, Snooze, TaskContext, TaskPool, TaskStatus, task
from taskpool.errors import TaskConflict
from taskpool.redis import scripts
from taskpool.settings import Settings
from taskpool.tasks.registry import Registry
from taskpool.types import TaskRecord, TaskSpec

S = TaskStatus
TTL_S = 1000
TIMEOUT_S = 50
FAILURE_TTL_S = 300
CANARY = "canary-5f2e77"


@task("use", timeout_s=TIMEOUT_S)
def use(ctx: TaskContext, token: Secret[str], do: str = "length") -> Any:
    ctx.log(f"it is {token}")
    ctx.progress(1, 2, f"{'x' * 490} {token}")
    match do:
        case "fail":
            raise NonRetryable(f"{'x' * 480} {token}")
        case "snooze" if ctx.attempt == 1:
            raise Snooze(f"not now, {token}", after_s=500)
        case "return":
            return {"kept": [token], token: 1}
    return len(token)


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    registry = Registry()
    registry.add(use)
    settings = Settings(secret_ttl_s=TTL_S, failure_ttl_s=FAILURE_TTL_S)
    with TaskPool(redis_url, registry=registry, settings=settings) as pool:
        yield pool


def add(pool: TaskPool, do: str = "length", **options: Any) -> str:
    return pool.add_task("use", {"token": CANARY, "do": do}, **options).id


def run(pool: TaskPool, attempt_id: str = "a1") -> TaskRecord:
    running = pool.run_task(["default"], worker="w", attempt_id=attempt_id)
    assert running is not None
    assert CANARY not in repr(running)
    pool.execute_task(running)
    return pool.get(running.id)


def ttl(redis: Redis, id: str) -> int:
    """Seconds that the secrets of a task are still kept, to the next ten; -2: they are gone."""
    left = redis.ttl(f"taskpool:secrets:{id}")
    return left if left < 0 else -(-left // 10) * 10


def everything(redis: Redis) -> str:
    """All that Redis holds but the secrets themselves."""
    readers: dict[Any, Any] = {
        b"string": redis.get, b"hash": redis.hgetall, b"set": redis.smembers, b"stream": redis.xrange,
        b"list": lambda key: redis.lrange(key, 0, -1), b"zset": lambda key: redis.zrange(key, 0, -1),
    }  # fmt: skip
    keys = [key for key in redis.scan_iter() if not key.startswith(b"taskpool:secrets:")]
    return repr([(key, readers[redis.type(key)](key)) for key in keys])


def test_only_the_task_gets_its_secret_and_all_others_get_a_mask(pool: TaskPool, redis: Redis) -> None:
    submitted = pool.add_task("use", {"token": CANARY})

    assert submitted.payload == {"token": "***"}
    assert pool.get(submitted.id).payload == {"token": "***"}
    assert pool.get_queue().items[0].record.payload == {"token": "***"}
    assert redis.hget(f"rq:job:{submitted.id}", "description") == b"use(token='***')"
    assert json.loads(redis.get(f"taskpool:secrets:{submitted.id}") or b"") == [[["token"], CANARY]]

    assert run(pool).result == len(CANARY)
    assert CANARY not in everything(redis)


def test_secrets_are_masked_in_everything_that_a_task_reports(pool: TaskPool, redis: Redis) -> None:
    returned = add(pool, "return")
    run(pool)
    failed = add(pool, "fail")
    run(pool, "a2")

    assert pool.get(returned).result == {"kept": ["***"], "***": 1}
    record = pool.get(failed)
    assert (record.error or "").endswith(" ***")
    assert record.progress == {"done": 1, "total": 2, "note": f"{'x' * 490} ***"}
    assert record.failure is not None
    assert record.failure["traceback"].rstrip().endswith(" ***")
    assert CANARY[:5] not in everything(redis)


def test_a_task_that_is_done_leaves_no_secret(pool: TaskPool, redis: Redis) -> None:
    id = add(pool)
    assert ttl(redis, id) == TTL_S

    running = pool.run_task(["default"], worker="w", attempt_id="a1")
    assert running is not None
    assert ttl(redis, id) == TTL_S + TIMEOUT_S
    pool.execute_task(running)

    assert ttl(redis, id) == -2


def test_a_task_that_may_be_retried_by_hand_keeps_its_secret_as_long_as_its_record(
    pool: TaskPool, redis: Redis
) -> None:
    failed, canceled = add(pool, "fail"), add(pool, delay_s=100)
    run(pool)
    assert ttl(redis, canceled) == TTL_S + 100
    pool.remove_task(canceled)

    assert [ttl(redis, id) for id in (failed, canceled)] == [FAILURE_TTL_S + 60] * 2

    assert pool.retry_task(canceled).status is S.QUEUED
    assert ttl(redis, canceled) == TTL_S
    assert run(pool, "a2").status is S.DONE
    pool.remove_task(failed)
    assert not list(redis.scan_iter("taskpool:secrets:*"))


def test_a_task_that_runs_again_later_keeps_its_secret_until_then(pool: TaskPool, redis: Redis) -> None:
    parent = pool.add_task("use", {"token": CANARY}).id
    waiting = add(pool, depends_on=[parent], delay_s=2000)
    redis.expire(f"taskpool:secrets:{waiting}", 5)
    run(pool)
    assert pool.store.run(scripts.release(parent)) == []
    snoozing = add(pool, "snooze")
    run(pool, "a2")

    assert ttl(redis, snoozing) == TTL_S + 500
    assert ttl(redis, waiting) == TTL_S + 2000


def test_a_task_whose_secret_is_gone_fails_with_the_reason(pool: TaskPool, redis: Redis) -> None:
    id = add(pool)
    redis.delete(f"taskpool:secrets:{id}")

    record = run(pool)

    assert record.status is S.FAILED
    assert record.failure == {
        "reason": "secrets_gone",
        "message": "its secret fields are no longer kept (TASKPOOL_SECRET_TTL_S): submit it again",
    }
    before = redis.hgetall(f"rq:job:{id}")
    with pytest.raises(TaskConflict, match="submit it again"):
        pool.retry_task(id)
    assert redis.hgetall(f"rq:job:{id}") == before


def test_a_secret_that_cannot_be_read_fails_its_task_alone(pool: TaskPool, redis: Redis) -> None:
    id = add(pool)
    redis.set(f"taskpool:secrets:{id}", b"\xff{")

    record = run(pool)

    assert (record.status, record.error) == (S.FAILED, "refused: its secret fields can't be read")


def test_the_refusal_of_a_payload_does_not_contain_its_secrets(pool: TaskPool, redis: Redis) -> None:
    with pytest.raises(InvalidPayload) as refused:
        pool.add_task("use", {"token": CANARY, "do": 3})
    assert CANARY not in f"{refused.value} {refused.value.errors}"

    assert redis.dbsize() == 0


def test_a_batch_keeps_each_secret_with_its_task(pool: TaskPool, redis: Redis) -> None:
    specs = [TaskSpec(type="use", payload={"token": f"{CANARY}{'x' * size}"}) for size in range(3)]

    ids = [record.id for record in pool.add_tasks(specs)]

    assert len(list(redis.scan_iter("taskpool:secrets:*"))) == 3
    for number in range(3):
        run(pool, f"a{number}")
    assert [pool.get(id).result for id in ids] == [len(CANARY) + size for size in range(3)]


def test_a_claim_that_is_answered_again_has_the_secret_again(pool: TaskPool) -> None:
    add(pool)
    first = pool.run_task(["default"], worker="w", attempt_id="a1")
    again = pool.run_task(["default"], worker="w", attempt_id="a1")

    assert first is not None
    assert again is not None
    assert again.secrets is not None
    assert again.secrets.put_into(again.payload) == {"token": CANARY, "do": "length"}
    assert pool.execute_task(again) is S.DONE
