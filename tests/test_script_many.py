"""A call that changes many tasks leaves some of them to the next one: Redis serves its other clients (taker.lua)."""

from __future__ import annotations

import pytest

from taskpool.redis import bulk_scripts, scripts
from taskpool.redis.scripts import Work
from tests.states import World, new_task


@pytest.mark.parametrize("action", ["cancel", "move"])
def test_a_call_leaves_tasks_to_the_next_one_when_it_has_taken_long(world: World, action: str) -> None:
    ids = [f"t{n:04}" for n in range(3000)]  # they would take ten times as long as a call may take, and more
    for at in range(0, len(ids), 500):
        world.run(scripts.add([new_task(id) for id in ids[at : at + 500]]))
    left, hints, calls = ids, bulk_scripts.NO_HINTS, 0

    while left:
        work = Work("m")
        call = (
            bulk_scripts.cancel_many(left, work, hints)
            if action == "cancel"
            else bulk_scripts.move_many(left, "other", work, hints)
        )
        done = world.run(call)
        assert set(done.words) == {"ok"}
        left, hints, calls = left[len(done.words) :], done.hints, calls + 1

    assert calls > 2
    assert world.redis.llen("rq:queue:default") == 0
