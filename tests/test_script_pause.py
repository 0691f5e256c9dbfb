"""pause.lua and resume.lua: what is paused, and what claims leave alone then."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from taskpool.operations.catalog import PoolInfo, publish, retire
from taskpool.operations.control.pauses import resume_all
from taskpool.operations.control.pools import list_pools
from taskpool.redis import pause_scripts
from taskpool.redis.calls import Call
from taskpool.types.fleet import Pause, PoolState
from tests.states import World
from tests.support import PATIENCE_S

POOL = PoolInfo(id="h.7.ab", host="h", pid=7, queues=("default", "other"), types=("work",), workers=("h.7.ab.1",))
WORKER = "h.7.ab.1"


@pytest.fixture
def pool(world: World) -> PoolInfo:
    world.run(publish(POOL, (), ttl_s=100))
    return POOL


def pause(world: World, field: str, why: str | None = None, **options: Any) -> Pause:
    held = world.run(pause_scripts.pause(field, "Ann", why, **options))
    assert held is not None
    return held


@pytest.mark.parametrize("field", ["all", "queue:default", "pool:h.7.ab"])
def test_what_is_paused_is_left_alone_until_it_is_resumed(world: World, pool: PoolInfo, field: str) -> None:
    world.add("a")
    world.add("b")
    world.claim(worker=WORKER)
    pause(world, field)
    before = world.snapshot()

    assert world.try_claim(worker=WORKER) is None
    assert {key for key in world.since(before) if not key.startswith("taskpool:doorbell")} == set()
    assert world.run(pause_scripts.resume(field, ["default"])) == "ok"

    assert world.redis.llen("taskpool:doorbell:default") == 1, "an idle worker is woken at once"
    assert world.claim(worker=WORKER, attempt_id="2").id == "b"
    assert world.finish(world.running["a"]) == "ok", "what ran went on"


def test_other_queues_and_other_pools_are_served(world: World, pool: PoolInfo) -> None:
    world.add("a")
    world.add("b", queue="other")
    world.add("c")
    pause(world, "queue:default")

    assert world.claim("default", "other", worker=WORKER).id == "b"
    world.run(pause_scripts.resume("queue:default", []))
    pause(world, "pool:h.7.ab")
    assert world.try_claim(worker=WORKER) is None
    assert world.claim(worker="h.8.cd.1", attempt_id="2").id == "a"
    assert world.claim(worker="w", attempt_id="3").id == "c", "the name of a worker that belongs to no pool"


def test_a_claim_takes_the_rings_of_a_paused_queue(world: World) -> None:
    pause(world, "all")
    for number in range(3):
        world.add(f"t{number}")

    assert world.try_claim() is None

    assert not world.redis.exists("taskpool:doorbell:default"), "they would wake idle workers in vain, again and again"


def test_the_first_pause_counts(world: World, pool: PoolInfo) -> None:
    first = pause(world, "pool:h.7.ab", 'of a "drain":true', audited=b'{"what":"pool.paused"}')
    before = world.snapshot()

    assert pause(world, "pool:h.7.ab", "later", audited=b"{}") == first
    assert world.since(before) == {}
    assert (first.by, first.why, first.drains) == ("Ann", 'of a "drain":true', False)
    drain = pause(world, "pool:h.7.ab", drains=True, audited=b'{"what":"pool.drained"}')
    assert (drain.drains, drain.why) == (True, None), "a drain takes the place of a pause"
    assert pause(world, "pool:h.7.ab", "later") == drain
    assert world.run(pause_scripts.resume("pool:h.7.ab", ["default"], b"{}")) == "draining"
    assert [json.loads(fields[b"e"])["what"] for _, fields in world.redis.xrange("taskpool:audit:tasks")] == [
        "pool.paused",
        "pool.drained",
    ]


def test_a_pool_that_does_not_live_is_not_paused(world: World) -> None:
    before = world.snapshot()

    assert world.run(pause_scripts.pause("pool:nobody", None, None)) is None

    assert world.since(before) == {}


def test_a_second_resume_adds_nothing_to_the_audit(world: World) -> None:
    pause(world, "queue:default")

    for _ in range(2):
        assert world.run(pause_scripts.resume("queue:default", ["default", "no such"], b'{"what":"x"}')) == "ok"

    assert world.redis.xlen("taskpool:audit:tasks") == 1
    assert not world.redis.exists("taskpool:switches", "taskpool:doorbell:default", "taskpool:doorbell:no such")


def test_resuming_everything_wakes_the_workers_of_all_pools(world: World, pool: PoolInfo) -> None:
    for queue in POOL.queues:
        world.add(queue, queue=queue)
    pause(world, "all")
    assert world.try_claim(*POOL.queues) is None

    world.store.carry_out(resume_all())

    assert [world.redis.llen(f"taskpool:doorbell:{queue}") for queue in POOL.queues] == [1, 1]


def test_a_damaged_hash_pauses_nothing(world: World) -> None:
    world.add("a")
    world.redis.set("taskpool:switches", "of another program")

    assert world.claim().id == "a"
    assert world.run(pause_scripts.paused()) == {}


def test_suspension_by_rq_holds_as_before(world: World) -> None:
    world.add("a")
    world.redis.set("rq:suspended", 1)
    pause(world, "queue:other")

    assert world.try_claim() is None
    world.redis.delete("rq:suspended")
    assert world.claim().id == "a"


def test_a_pool_hears_of_a_drain_with_its_next_heartbeat(world: World, pool: PoolInfo) -> None:
    assert world.run(publish(POOL, (), ttl_s=100)) is False
    pause(world, "pool:h.7.ab")
    assert world.run(publish(POOL, (), ttl_s=100)) is False
    with world.redis.pubsub() as channel:
        channel.subscribe("rq:pubsub:h.7.ab")
        channel.get_message(timeout=PATIENCE_S)

        pause(world, "pool:h.7.ab", drains=True)

        message: Mapping[str, Any] = channel.get_message(timeout=PATIENCE_S)
    assert json.loads(message["data"]) == {"command": "taskpool-drain"}
    assert world.run(publish(POOL, (), ttl_s=100)) is True


def test_a_pool_that_went_away_is_listed_for_a_day_unless_it_drained(world: World) -> None:
    other = PoolInfo(id="other", host="h", pid=8, queues=(), types=(), workers=())
    world.run(publish(POOL, (), ttl_s=100))
    pause(world, "pool:h.7.ab")
    world.add("a")
    world.add("b")
    world.redis.sadd("rq:worker:h.7.ab.1:executions", "x:1")

    def states() -> dict[str, PoolState]:
        return {record.name: record.state for record in world.store.carry_out(list_pools())}

    def busy() -> list[int]:
        return [record.busy for record in world.store.carry_out(list_pools())]

    assert (states(), busy()) == ({"h.7.ab": PoolState.PAUSED}, [1])
    world.redis.delete("taskpool:pools", "taskpool:pool:h.7.ab")  # as after its TTL
    assert (states(), busy()) == ({"h.7.ab": PoolState.GONE}, [0])
    world.run(publish(other, (), ttl_s=100))
    assert states() == {"h.7.ab": PoolState.GONE, "other": PoolState.RUNNING}
    world.store.carry_out(retire("other"))
    assert states() == {"h.7.ab": PoolState.GONE}
    world.redis.zadd("taskpool:pools:known", {"h.7.ab": 1})  # as after a day
    world.run(publish(other, (), ttl_s=100))
    assert states() == {"other": PoolState.RUNNING}
    assert not [key for key in world.redis.scan_iter() if re.search(rb"h\.7\.ab$", key)]
    assert not world.redis.exists("taskpool:switches"), "what was paused of it is gone, too"


def test_pools_that_come_and_go_are_remembered_up_to_a_cap(world: World) -> None:
    world.redis.zadd("taskpool:pools:known", {f"gone{number:04}": 10**13 + number for number in range(1050)})

    world.run(publish(POOL, (), ttl_s=100))

    assert world.redis.zcard("taskpool:pools:known") == 1000


def calls() -> list[Call[Any]]:
    return [
        pause_scripts.pause("all", None, None),
        pause_scripts.pause("queue:default", "Ann", "why"),
        pause_scripts.resume("all", ["default"]),
    ]


@pytest.mark.parametrize("number", range(3))
def test_a_call_that_is_sent_again_changes_nothing(world: World, number: int) -> None:
    world.add("a")
    answers = [world.run(calls()[number])]
    before = world.snapshot()

    answers.append(world.run(calls()[number]))

    assert answers[0] == answers[1]
    assert world.since(before) == {}
