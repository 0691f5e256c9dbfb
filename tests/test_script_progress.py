"""progress.lua and log.lua: what a running attempt tells, and that nobody else can."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from taskpool import scripts
from taskpool.types import TaskStatus
from tests.states import SEED, World

S = TaskStatus
LINES = [{"at_ms": 5, "text": "one"}, {"at_ms": 6, "text": 'two "quoted"\nand\u2028more'}]


def test_progress_is_kept_on_the_record_and_told(world: World) -> None:
    running = world.start("a")
    before = world.snapshot()

    assert world.run(scripts.progress(running, {"done": 1, "total": None, "note": '50 % "é"'})) == "ok"

    assert world.since(before) == {
        "rq:job:a progress": '{"done":1,"total":null,"note":"50 % \\"é\\""}',
        "rq:job:a seq": "3",
        "taskpool:events a 3": {
            "event": "progress",
            "status": "in_progress",
            "at_ms": "now",
            "progress": {"done": 1, "total": None, "note": '50 % "é"'},
        },
    }


def test_lines_are_kept_in_order_and_told_in_one_event(world: World) -> None:
    running = world.start("a")
    before = world.snapshot()

    assert world.run(scripts.log(running, LINES, keep=100, ttl_s=500)) == "ok"

    assert world.since(before) == {
        "rq:job:a seq": "3",
        "taskpool:log:a 1": LINES[0],
        "taskpool:log:a 2": LINES[1],
        "taskpool:log:a expires": "now+500 s",
        "taskpool:events a 3": {
            "event": "log",
            "status": "in_progress",
            "at_ms": "now",
            "count": 2,
            "last": world.redis.xrevrange("taskpool:log:a")[0][0].decode(),
        },
    }


def test_a_log_keeps_about_the_last_lines_it_may(world: World) -> None:
    running = world.start("a")

    for start in range(0, 2000, 100):
        lines = [{"at_ms": 0, "text": str(n)} for n in range(start, start + 100)]
        world.run(scripts.log(running, lines, keep=500, ttl_s=500))

    kept = world.redis.xrange("taskpool:log:a")
    assert 500 <= len(kept) <= 700
    assert b'"1999"' in kept[-1][1][b"l"]


def test_a_task_that_is_asked_to_stop_may_still_report(world: World) -> None:
    running = world.start("a")
    world.run(scripts.stop("a", grace_s=5, force=False))

    assert world.run(scripts.progress(running, {"done": 1})) == "ok"
    assert world.run(scripts.log(running, LINES, keep=100, ttl_s=500)) == "ok"

    assert world.events("a")[3:] == [(4, "progress", "stopping"), (5, "log", "stopping")]


@pytest.mark.parametrize("status", SEED)
def test_an_attempt_that_does_not_hold_the_task_reports_nothing(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    world.start("other", attempt_id="9")
    world.running["a"] = replace(world.running["other"], id="a")
    before = world.snapshot()

    assert world.run(scripts.progress(world.running["a"], {"done": 1})) == "lost"
    assert world.run(scripts.log(world.running["a"], LINES, keep=100, ttl_s=500)) == "lost"

    assert world.since(before) == {}


@pytest.mark.parametrize("status", [S.DONE, S.FAILED, S.STOPPED])
def test_an_attempt_that_has_ended_reports_nothing_more(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    assert world.run(scripts.progress(world.running["a"], {"done": 1})) == "lost"
    assert world.run(scripts.log(world.running["a"], LINES, keep=100, ttl_s=500)) == "lost"

    assert world.since(before) == {}
