"""What the main operations cost Redis: commands, those of scripts included, and round trips. They are exact, so that no
change makes an operation dearer unseen; one that makes it cheaper changes the number here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from taskpool.redis import scripts
from taskpool.redis.scripts import Done
from taskpool.types import RunningTask, TaskStatus
from tests.states import LEASE_MS, World, new_task

BATCH = 16


def costs(world: World) -> Counter[str]:
    """The commands since the last call, by name."""
    stats: Any = world.redis.info("commandstats")
    world.redis.config_resetstat()
    counts = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
    return Counter({name: count for name, count in counts.items() if name not in ("info", "config|resetstat")})


def claim(
    world: World, *, most: int, done: Sequence[Done] = (), queues: Sequence[str] = ("default",)
) -> list[RunningTask]:
    call = scripts.turn(queues, done, worker="w", attempt_id=f"a{len(done)}", lease_ms=LEASE_MS, most=most)
    return list(world.run(call).claimed)


@pytest.fixture
def warm(world: World) -> World:
    """A Redis that knows the scripts and the type."""
    world.end("warm")
    world.run(scripts.finish(world.start("other"), TaskStatus.DONE, result=b"1"))
    world.run(scripts.add([new_task(f"more{n}") for n in range(2)]))
    claim(world, most=2)
    world.redis.delete("rq:queue:default", "taskpool:doorbell:default")
    costs(world)
    return world


def test_a_task_alone_costs_nineteen_commands_from_its_claim_to_its_end(warm: World) -> None:
    world = warm
    world.run(scripts.add([new_task("a"), new_task("b")]))
    (first,) = claim(world, most=1)
    costs(world)

    claim(world, most=1, done=[Done(first, b"1")])

    assert costs(world) == Counter(
        evalsha=1, time=1,
        hmget=1, zrem=1, srem=1, hset=2, expire=2, zadd=2, exists=1, xadd=2, publish=2,
        lpop=1, hgetall=1, sadd=1,
    )  # fmt: skip


def test_a_task_of_a_batch_costs_ten_commands_and_a_share_of_ten_more(warm: World) -> None:
    world = warm
    world.run(scripts.add([new_task(f"t{n}") for n in range(2 * BATCH)]))
    first = claim(world, most=BATCH)
    costs(world)

    second = claim(world, most=BATCH, done=[Done(running, b"1") for running in first])

    assert (len(first), len(second)) == (BATCH, BATCH)
    each = Counter(lpop=1, hgetall=1, hset=2, hmget=1, expire=1, xadd=2, publish=2)
    once = Counter(evalsha=1, time=1, llen=1, zrem=1, srem=1, zadd=2, exists=1, sadd=1, expire=1)
    assert costs(world) == Counter({name: BATCH * count for name, count in each.items()}) + once


def test_a_claim_that_finds_nothing_costs_as_much_with_one_queue_as_with_fifty(warm: World) -> None:
    world = warm
    claim(world, most=1)
    one = costs(world)

    claim(world, most=1, queues=[f"q{n}" for n in range(50)])

    assert one == Counter(evalsha=1, time=1, exists=2, lpop=1) + Counter({"del": 1})
    assert costs(world).total() <= one.total() + 1


def test_a_submission_costs_twelve_commands(warm: World) -> None:
    warm.run(scripts.add([new_task("a")]))

    assert costs(warm).total() == 12
