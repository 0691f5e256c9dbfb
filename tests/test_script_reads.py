"""queue_page.lua, count.lua and publish.lua: a queue at one moment, running totals, who serves what."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from taskpool.operations import catalog
from taskpool.operations.catalog import PoolInfo
from taskpool.redis import scripts
from taskpool.redis.store import Store
from taskpool.types import TypeInfo
from tests.states import World

POOL = PoolInfo(id="p1", host="h", pid=7, queues=("default",), types=("work",), workers=("w",))
TYPE = TypeInfo(name="work", queue="default", schema={"type": "object"})


def test_a_page_of_a_queue_has_its_records_from_the_head_on_and_changes_nothing(world: World) -> None:
    for id in "abcd":
        world.add(id)
    before = world.snapshot()

    now_ms, length, offset, *rest = world.run(scripts.queue_page("default", 1, 2))

    assert (length, offset, rest[0], rest[2], len(rest)) == (4, 1, b"b", b"c", 4)
    assert abs(now_ms / 1000 - world.redis.time()[0]) < 10
    assert rest[1] == [part for item in world.redis.hgetall("rq:job:b").items() for part in item]
    assert world.since(before) == {}


def test_a_page_shows_an_id_without_a_record_as_such(world: World) -> None:
    world.redis.rpush("rq:queue:default", "ghost")

    _, length, _, *rest = world.run(scripts.queue_page("default", 0, 10))

    assert (length, rest) == (1, [b"ghost", []])


def test_a_page_of_large_records_is_short(world: World) -> None:
    for number in range(12):
        world.add(f"t{number:02}", payload={"text": "x" * 200_000})

    _, length, _, *rest = world.run(scripts.queue_page("default", 2, 10))

    assert (length, rest[::2]) == (12, [f"t{number:02}".encode() for number in range(2, 5)])


def test_a_page_of_a_queue_that_does_not_exist_is_empty(world: World) -> None:
    _, *rest = world.run(scripts.queue_page("nowhere", 0, 10))

    assert rest == [0, 0]
    assert world.snapshot() == {}


def test_counts_add_up(world: World) -> None:
    world.run(scripts.count({"tasks|done|work|default": 2, "run_us_sum|work|default": 1500}))
    world.run(scripts.count({"tasks|done|work|default": 3}))

    assert world.snapshot() == {}
    assert world.counted() == {"tasks|done|work|default": 5, "run_us_sum|work|default": 1500}


def test_a_report_of_counts_that_is_sent_again_counts_once(world: World) -> None:
    for number in (1, 1, 2, 2, 2):
        assert world.run(scripts.count({"tasks|done|work|default|b": 1}, ("w", number))) == "ok"

    assert world.counted() == {"tasks|done|work|default|b": 2}


def test_counting_nothing_changes_nothing(world: World) -> None:
    world.run(scripts.count({}))

    assert world.redis.keys("*") == []


def test_counts_of_many_connections_add_up(world: World) -> None:
    def count(_: int) -> None:
        store = Store(world.url)
        for _ in range(50):
            store.run(scripts.count({"n": 1}))
        store.close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(4)))

    assert world.counted() == {"n": 200}


def test_a_pool_announces_itself_and_its_types(world: World) -> None:
    world.run(catalog.publish(POOL, [TYPE], ttl_s=100))

    snapshot = dict(world.snapshot())
    announced = snapshot.pop("taskpool:pool:p1")
    assert snapshot.pop("taskpool:pool:known:p1") == announced
    assert json.loads(announced) == {
        "id": "p1",
        "host": "h",
        "pid": 7,
        "queues": ["default"],
        "types": ["work"],
        "workers": ["w"],
        "slots": 1,
        "version": "",
        "build": "",
        "declares": {},
        "started_ms": None,
        "memory_bytes": None,
        "is_draining": False,
    }
    type = json.loads(snapshot.pop("taskpool:types work"))
    assert {name: value for name, value in type.items() if value is not None} == {
        "name": "work",
        "queue": "default",
        "schema": {"type": "object"},
        "description": "",
        "max_attempts": 1,
        "is_async": False,
        "served_by": [],
    }
    assert snapshot == {
        "taskpool:pool:p1 expires": "now+100 s",
        "taskpool:pool:known:p1 expires": "now+86400 s",
        "taskpool:pools p1": "now",
        "taskpool:pools:known p1": "now",
        "taskpool:types:seen work": "now",
    }


def test_announcing_again_renews_and_replaces(world: World) -> None:
    world.run(catalog.publish(POOL, [TYPE], ttl_s=100))
    world.redis.zadd("taskpool:types:seen", {"work": 1})
    newer = TypeInfo(name="work", queue="other", schema={})

    world.run(catalog.publish(POOL, [newer], ttl_s=500))

    after = world.snapshot()
    assert after["taskpool:pool:p1 expires"] == "now+500 s"
    assert after["taskpool:types:seen work"] == "now"
    assert '"queue":"other"' in after["taskpool:types work"]


def test_a_pool_that_was_not_heard_of_is_forgotten_and_its_types_stay_known(world: World) -> None:
    world.run(catalog.publish(POOL, [TYPE], ttl_s=100))
    world.redis.zadd("taskpool:pools", {"p1": 1})
    other = PoolInfo(id="p2", host="h", pid=8, queues=(), types=(), workers=())

    world.run(catalog.publish(other, [], ttl_s=100))

    after = world.snapshot()
    assert "taskpool:pools p1" not in after
    assert {"taskpool:pools p2", "taskpool:types work"} <= after.keys()
