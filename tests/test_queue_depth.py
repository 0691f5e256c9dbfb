"""A queue that holds as many tasks as it may takes no more, and says when to come back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

from taskpool import QueueFull, Registry, TaskPool, TaskSpec, TaskStatus
from taskpool.redis import scripts
from taskpool.settings import Settings
from tests.api_client import api, publish_types
from tests.states import World

ECHO = TaskSpec(type="echo", payload={"message": 1})


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    settings = Settings(max_queue_depth=3)
    with TaskPool(redis_url, registry=Registry(builtins=True), settings=settings) as pool:
        yield pool


def fill(pool: TaskPool, count: int = 3, **options: Any) -> list[str]:
    return [pool.add_task("echo", {"message": 1}, **options).id for _ in range(count)]


def age_head(redis: Redis, id: str, seconds: float) -> None:
    """Make a task have waited that long."""
    since = datetime.now(UTC) - timedelta(seconds=seconds)
    redis.hset(f"rq:job:{id}", "enqueued_at", since.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def test_a_full_queue_refuses_and_changes_nothing(pool: TaskPool, world: World) -> None:
    fill(pool)
    before = world.snapshot()

    with pytest.raises(QueueFull, match="'default' has no room: it holds 3 tasks, and may hold 3") as refused:
        pool.add_task("echo", {"message": 1})

    assert (refused.value.queue, refused.value.held) == ("default", 3)
    assert world.since(before) == {}


def test_each_kind_of_waiting_has_its_own_room(pool: TaskPool) -> None:
    ready = fill(pool)
    fill(pool, delay_s=100)
    fill(pool, depends_on=ready[:1])

    cases: list[dict[str, Any]] = [{}, {"front": True}, {"delay_s": 1.0}, {"depends_on": ready[:1]}]
    for options in cases:
        with pytest.raises(QueueFull):
            fill(pool, 1, **options)
    fill(pool, 1, queue="another")


def test_a_batch_fits_as_a_whole_or_is_refused_as_a_whole(pool: TaskPool) -> None:
    fill(pool, 2)

    with pytest.raises(QueueFull):
        pool.add_tasks([TaskSpec(type="echo", payload={"message": 1}, queue="another"), ECHO, ECHO])

    assert [(info.name, info.queued) for info in pool.queues()] == [("default", 2)]
    assert len(pool.add_tasks([ECHO])) == 1


def test_a_task_that_takes_the_place_of_another_needs_no_room(pool: TaskPool) -> None:
    (held,) = fill(pool, 1, unique_key="one")
    fill(pool, 2)

    (replacing,) = fill(pool, 1, unique_key="one", on_conflict="replace")
    (same,) = fill(pool, 1, unique_key="one", on_conflict="return")

    assert pool.get(held).status is TaskStatus.CANCELED
    assert same == replacing
    with pytest.raises(QueueFull):
        fill(pool, 1, unique_key="another", on_conflict="replace")


def test_when_to_come_back_follows_the_pace_of_the_queue(pool: TaskPool, redis: Redis) -> None:
    head, *_ = fill(pool)

    def retry_after_s(**options: Any) -> float:
        with pytest.raises(QueueFull) as refused:
            fill(pool, 1, **options)
        return refused.value.retry_after_s

    age_head(redis, head, 30)
    assert retry_after_s() == pytest.approx(10, abs=1)
    age_head(redis, head, 100_000)
    assert retry_after_s() == 60
    age_head(redis, head, 0)
    assert retry_after_s() == 1
    redis.hdel(f"rq:job:{head}", "enqueued_at")
    assert retry_after_s() == 10


def test_what_was_accepted_always_finds_room(pool: TaskPool, world: World) -> None:
    parent, canceled, *_ = fill(pool)
    (child,), (scheduled,) = fill(pool, 1, depends_on=[parent]), fill(pool, 1, delay_s=100)
    running = world.claim()
    fill(pool, 1)

    assert world.run(scripts.give_back(running)) == "ok"
    world.make_due(scheduled)
    assert world.run(scripts.promote(scheduled, "default")) == "ok"
    assert world.finish(world.claim(attempt_id="2")) == "children"
    assert world.run(scripts.release(parent)) == []
    assert pool.remove_task(canceled) is TaskStatus.CANCELED
    assert pool.retry_task(canceled).status is TaskStatus.QUEUED

    queued = [item.record.id for item in pool.get_queue().items]
    assert len(queued) == 5
    assert {scheduled, child, canceled} < set(queued)


def test_no_cap_is_no_cap(redis_url: str) -> None:
    settings = Settings(max_queue_depth=0)
    with TaskPool(redis_url, registry=Registry(builtins=True), settings=settings) as pool:
        fill(pool, 5)


async def test_the_api_answers_429_and_when_to_come_back(redis_url: str) -> None:
    publish_types(redis_url)
    body = {"type": "echo", "payload": {"message": 1}}
    async with api(redis_url, max_queue_depth=2) as client:
        await client.post("/tasks", json=body)

        batch = await client.post("/tasks/batch", json={"tasks": [body, body]})
        await client.post("/tasks", json=body)
        single = await client.post("/tasks", json=body)

    for refused in (batch, single):
        assert refused.status_code == 429
        assert refused.json()["type"] == "urn:taskpool:problem:queue-full"
        assert refused.json()["queue"] == "default"
        assert refused.json()["held"] in (1, 2)
        assert int(refused.headers["retry-after"]) >= 1
