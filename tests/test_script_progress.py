"""progress.lua and log.lua: what a running attempt reports, and that only it can."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from taskpool.redis import scripts
from taskpool.types import LogLimits, TaskStatus
from tests.states import SEED, World

S = TaskStatus
DOCUMENTS = [{"at_ms": 5, "text": "one"}, {"at_ms": 6, "text": 'two "quoted"\nand\u2028more'}]
LINES = [json.dumps(document, separators=(",", ":")).encode() for document in DOCUMENTS]
LIMITS = LogLimits(lines=10, bytes=100_000)
FAILURE = {"reason": "exception", "message": "no luck"}


def test_progress_is_kept_on_the_record_and_published(world: World) -> None:
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


def test_lines_are_kept_in_order_and_counted_in_one_event(world: World) -> None:
    world.start("a")
    before = world.snapshot()

    assert world.run(scripts.log("a", "1", LINES, LIMITS)) == "ok"

    after = world.since(before)
    last = world.redis.xrevrange("taskpool:log:a", count=1)[0][0].decode()
    state = json.loads(after.pop("rq:job:a log"))
    event = after.pop("taskpool:events a 3")
    assert after == {
        "rq:job:a seq": "3",
        "taskpool:log:a 1": DOCUMENTS[0],
        "taskpool:log:a 2": DOCUMENTS[1],
        "taskpool:log:a expires": "now+2592000 s",
    }
    assert event == {"event": "log", "status": "in_progress", "at_ms": "now", "count": 2, "last": last}
    assert state[:6] == ["1", 2, 2, sum(map(len, LINES)), 0, 0]


def test_numbered_lines_that_are_there_already_are_not_added_again(world: World) -> None:
    world.start("a")
    lines = [numbered(n) for n in range(1, 5)]
    world.run(scripts.log("a", "1", lines[:2], LIMITS, first=1))
    before = world.snapshot()

    assert world.run(scripts.log("a", "1", lines[:2], LIMITS, first=1)) == "ok"
    assert world.since(before) == {}

    assert world.run(scripts.log("a", "1", lines[1:], LIMITS, first=2)) == "ok"
    assert texts(world) == ["line 1", "line 2", "line 3", "line 4"]


def test_a_line_in_the_log_counts_the_lines_that_never_came(world: World) -> None:
    world.start("a")

    world.run(scripts.log("a", "1", [numbered(1)], LIMITS, first=1))
    world.run(scripts.log("a", "1", [numbered(9)], LIMITS, first=9))
    world.run(scripts.log("a", "1", [numbered(11)], LIMITS, first=11))

    assert texts(world) == ["line 1", "7 lines are missing here", "line 9", "1 line is missing here", "line 11"]


def test_a_new_attempt_drops_what_is_older_than_the_last_one_once_that_is_too_much(world: World) -> None:
    world.start("a", max_attempts=4)

    for attempt in "1234":
        world.run(scripts.log("a", attempt, [numbered(n) for n in range(1, 9)], LIMITS, first=1))
        if attempt < "4":
            world.run(scripts.retry(world.running["a"], delay_ms=0, error="no luck", failure=FAILURE))
            world.claim(attempt_id=str(int(attempt) + 1))

    kept = texts(world)
    dropped = "the log of the attempts before the last one was dropped: it had grown too large"
    assert kept == [dropped, *[f"line {n}" for n in range(1, 9)]] * 2


def test_a_log_is_kept_as_long_as_its_task(world: World) -> None:
    running = world.start("a", failure_ttl_s=500)
    world.run(scripts.log("a", "1", LINES, LIMITS))

    world.finish(running, S.FAILED)
    kept = world.redis.ttl("taskpool:log:a")
    world.run(scripts.revive("a"))
    revived = world.redis.ttl("taskpool:log:a")

    assert 550 <= kept <= 560
    assert revived > 2_500_000


def test_a_task_that_is_asked_to_stop_may_still_report(world: World) -> None:
    running = world.start("a")
    world.run(scripts.stop("a", grace_s=5, force=False))

    assert world.run(scripts.progress(running, {"done": 1})) == "ok"
    assert world.run(scripts.log("a", "1", LINES, LIMITS)) == "ok"

    assert world.events("a")[3:] == [(4, "progress", "stopping"), (5, "log", "stopping")]


@pytest.mark.parametrize("status", SEED)
def test_an_attempt_that_does_not_hold_the_task_reports_nothing(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    world.start("other", attempt_id="9")
    world.running["a"] = replace(world.running["other"], id="a")
    before = world.snapshot()

    assert world.run(scripts.progress(world.running["a"], {"done": 1})) == "lost"
    assert world.run(scripts.log("a", "9", LINES, LIMITS)) == "lost"

    assert world.since(before) == {}


@pytest.mark.parametrize("status", [S.DONE, S.FAILED, S.STOPPED])
def test_an_attempt_that_has_ended_reports_nothing_more(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    assert world.run(scripts.progress(world.running["a"], {"done": 1})) == "lost"
    assert world.run(scripts.log("a", world.running["a"].attempt_id, LINES, LIMITS)) == "lost"

    assert world.since(before) == {}


def numbered(number: int) -> bytes:
    """A line as it is stored."""
    return b'{"at_ms":5,"text":"line %d"}' % number


def texts(world: World) -> list[str]:
    """What the log says."""
    return [json.loads(fields[b"l"])["text"] for _, fields in world.redis.xrange("taskpool:log:a")]
