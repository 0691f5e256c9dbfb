"""The scripts of schedules: what each leaves in Redis, that a refusal changes nothing, and calls that come twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from taskpool.redis import schedule_scripts, scripts
from taskpool.redis.calls import Call
from taskpool.redis.schedule_scripts import Occurrence, schedule_guard
from taskpool.redis.scripts import Added
from tests.states import World, new_task, race

NEXT, THEN, LAST = 900_000_000_000, 900_003_600_000, 900_007_200_000  # long ago: the scripts compare no time
FIELDS: Mapping[str, Any] = {"timing": "{}", "task": "{}", "queue": "default", "next_ms": NEXT}
DUE = Occurrence("s", "i", 1, NEXT, NEXT, THEN, THEN + 5)


def save(id: str = "s", revision: int | None = None, **options: Any) -> Call[str]:
    fields = {**FIELDS, **options.pop("fields", {})}
    settings = {"incarnation": "i", "due_ms": NEXT, "next_ms": None if revision is None else NEXT}
    return schedule_scripts.save(id, fields, revision=revision, **{**settings, **options})


def fire(id: str = "a", occurrence: Occurrence = DUE, overlaps: str | bool = True, **options: Any) -> Call[Added]:
    return scripts.add([replace(new_task(id, **options), is_plain=False)], guard=schedule_guard(occurrence, overlaps))


def hash_of(**fields: Any) -> dict[str, Any]:
    shown = {"revision": "1", "incarnation": "i", "by_call": "the mark of a call", **FIELDS, **fields}
    return {f"taskpool:schedule:s {name}": str(value) for name, value in shown.items()}


def schedule_of(world: World) -> dict[str, Any]:
    return {name: value for name, value in world.snapshot().items() if name.startswith("taskpool:schedule")}


def occurrences(world: World) -> list[dict[str, Any]]:
    found = [msgspec.json.decode(each) for each in world.redis.lrange("taskpool:occurrences:s", 0, -1)]
    for each in found:
        del each["at_ms"]
    return found


def test_a_new_schedule_is_stored_listed_and_due(world: World) -> None:
    assert world.run(save()) == "ok"

    assert world.snapshot() == {
        **hash_of(),
        "taskpool:schedules s": "0",
        "taskpool:schedules:due s": str(NEXT // 1000),
    }


def test_a_change_counts_the_revision_and_removes_empty_fields(world: World) -> None:
    world.run(save())

    assert world.run(save(revision=1, fields={"next_ms": "", "paused_ms": 5}, due_ms=None)) == "ok"

    expected = hash_of(revision="2", paused_ms=5)
    del expected["taskpool:schedule:s next_ms"]
    assert world.snapshot() == {**expected, "taskpool:schedules s": "0"}


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (save, "changed"),
        (lambda: save(revision=2), "changed"),
        (lambda: save(revision=1, incarnation="other"), "changed"),
        (lambda: save(revision=1, next_ms=THEN), "changed"),
        (lambda: save("t", revision=1), "changed"),
        (lambda: save("t", most=1), "full"),
        (lambda: schedule_scripts.remove("s", "i", 2), "changed"),
        (lambda: schedule_scripts.remove("s", "other", 1), "changed"),
        (lambda: schedule_scripts.remove("t", "i", 1), "gone"),
        (lambda: schedule_scripts.settle(DUE._replace(revision=2), "refused"), "stale"),
        (lambda: schedule_scripts.settle(DUE._replace(expected_ms=THEN, at_ms=THEN), "refused"), "stale"),
        (lambda: schedule_scripts.postpone(DUE._replace(incarnation="other"), 5), "stale"),
        (lambda: schedule_scripts.postpone(DUE._replace(schedule="t"), 5), "gone"),
    ],
)
def test_a_call_that_comes_too_late_changes_nothing(world: World, make: Callable[[], Call[str]], answer: str) -> None:
    world.run(save())
    before = world.snapshot()

    assert world.run(make()) == answer

    assert world.since(before) == {}


def test_a_cap_counts_the_schedules_of_one_project(world: World) -> None:
    for id in ("shop:a", "shop:b", "shop2:a", "a", "sho:a"):
        assert world.run(save(id, most=2)) == ("ok" if id != "a" else "full")

    assert world.run(save("shop:c", most=2)) == "full"
    assert world.run(save("shop2:b", most=2)) == "ok"


def test_an_occurrence_is_submitted_and_the_next_one_set_in_one_step(world: World) -> None:
    world.run(save())
    before = world.snapshot()

    added = world.run(fire())

    assert added.statuses == ("queued",)
    assert {name: value for name, value in world.since(before).items() if name.startswith("taskpool:schedule")} == {
        "taskpool:schedule:s next_ms": str(THEN),
        "taskpool:schedule:s last_ms": str(NEXT),
        "taskpool:schedule:s last_task": "a",
        "taskpool:schedule:s behind": "",
        "taskpool:schedules:due s": f"{(THEN + 5) / 1000:.3f}",
    }
    assert occurrences(world) == [{"occurrence_ms": NEXT, "outcome": "submitted", "task": "a"}]
    assert world.get("a").id == "a"


@pytest.mark.parametrize(
    "occurrence",
    [
        DUE._replace(revision=2),
        DUE._replace(incarnation="other"),
        DUE._replace(expected_ms=THEN),
        DUE._replace(schedule="t"),
    ],
)
def test_one_that_the_schedule_does_not_expect_is_not_submitted(world: World, occurrence: Occurrence) -> None:
    world.run(save())
    before = world.snapshot()

    assert world.run(fire(occurrence=occurrence)).broken_guard == "stale"

    assert world.since(before) == {}


def test_a_paused_schedule_and_one_whose_clock_went_back_submit_nothing(world: World) -> None:
    world.run(save(fields={"paused_ms": 5}))
    assert world.run(fire()).broken_guard == "stale"

    world.run(save(revision=1, fields={"paused_ms": "", "last_ms": NEXT}))
    assert world.run(fire(occurrence=DUE._replace(revision=2))).broken_guard == "stale"
    assert "rq:job:a status" not in world.snapshot()


def test_missed_ones_are_noted_and_the_latest_is_submitted(world: World) -> None:
    world.run(save())

    world.run(fire(occurrence=DUE._replace(at_ms=THEN, next_ms=LAST, due_ms=LAST)))

    assert occurrences(world) == [
        {"occurrence_ms": THEN, "outcome": "submitted", "task": "a"},
        {"occurrence_ms": NEXT, "outcome": "missed", "until_ms": THEN},
    ]
    assert world.redis.hget("taskpool:schedule:s", "last_ms") == str(THEN).encode()


def test_one_that_a_person_asks_for_leaves_the_next_as_it_is(world: World) -> None:
    world.run(save(fields={"paused_ms": 5}))
    before = schedule_of(world)

    world.run(fire(occurrence=Occurrence("s", "i", 1, 77, None)))

    after = schedule_of(world)
    assert after.pop("taskpool:schedule:s last_task") == "a"
    assert after.pop("taskpool:schedule:s behind") == ""
    assert after == before
    assert occurrences(world) == [{"occurrence_ms": 77, "outcome": "submitted", "task": "a"}]


def test_without_a_next_one_the_schedule_is_kept_for_a_week(world: World) -> None:
    world.run(save())

    world.run(fire(occurrence=DUE._replace(next_ms=None, due_ms=None)))

    assert world.redis.hget("taskpool:schedule:s", "next_ms") == b""
    assert world.snapshot()["taskpool:schedules:due s"] == "now+604800 s"


def test_while_the_run_before_has_not_ended_the_answer_names_it(world: World) -> None:
    world.run(save(fields={"last_task": "before"}))
    world.add("before")
    snapshot = world.snapshot()

    assert world.run(fire(overlaps=False)).overlap == ("before", False)
    assert world.run(fire(overlaps="another")).overlap == ("before", False)
    assert world.since(snapshot) == {}

    world.run(fire(overlaps="before"))
    assert world.redis.hmget("taskpool:schedule:s", "last_task", "behind") == [b"a", b"before"]
    later = DUE._replace(at_ms=THEN, expected_ms=THEN, next_ms=LAST, due_ms=LAST)
    assert world.run(fire("b", later, overlaps=False)).overlap == ("a", True)


def test_a_refused_task_leaves_the_schedule_as_it_is(world: World) -> None:
    world.run(save())
    world.add("holder", unique_key="k")
    before = world.snapshot()

    assert world.run(fire(unique_key="k")).conflict is not None

    assert world.since(before) == {}


def test_a_task_that_is_answered_with_another_one_counts_as_that(world: World) -> None:
    world.run(save())
    world.add("holder", unique_key="k")

    world.run(fire(unique_key="k", on_conflict="return"))

    assert occurrences(world) == [{"occurrence_ms": NEXT, "outcome": "submitted", "task": "holder"}]
    assert world.redis.hget("taskpool:schedule:s", "last_task") == b"holder"


def test_an_occurrence_without_a_task_is_noted_and_the_next_one_set(world: World) -> None:
    world.run(save(fields={"retry_ms": 5}))

    assert world.run(schedule_scripts.settle(DUE, "refused", 'it says "no"')) == "ok"

    assert occurrences(world) == [{"occurrence_ms": NEXT, "outcome": "refused", "reason": 'it says "no"'}]
    assert world.redis.hmget("taskpool:schedule:s", "next_ms", "last_ms", "retry_ms", "last_task") == [
        str(THEN).encode(),
        str(NEXT).encode(),
        None,
        None,
    ]


def test_the_history_has_a_hundred_entries(world: World) -> None:
    world.run(save())
    for number in range(120):
        at_ms = NEXT + number
        world.run(schedule_scripts.settle(Occurrence("s", "i", 1, at_ms, at_ms, at_ms + 1, at_ms + 1), "refused"))

    found = occurrences(world)
    assert (len(found), found[0]["occurrence_ms"]) == (100, NEXT + 119)


def test_one_that_is_tried_again_keeps_when_it_was_tried_first(world: World) -> None:
    world.run(save())

    assert world.run(schedule_scripts.postpone(DUE, 5000, is_retry=True)) == "ok"
    first = world.redis.hget("taskpool:schedule:s", "retry_ms")
    assert world.run(schedule_scripts.postpone(DUE, 500_000, is_retry=True)) == "ok"

    assert world.redis.hget("taskpool:schedule:s", "retry_ms") == first
    assert world.snapshot()["taskpool:schedules:due s"] == "now+500 s"
    assert world.redis.hget("taskpool:schedule:s", "next_ms") == str(NEXT).encode()


def test_a_removed_schedule_leaves_nothing_but_its_tasks(world: World) -> None:
    world.run(save(fields={"module": "jobs"}))
    world.run(fire())

    assert world.run(schedule_scripts.remove("s", "i", 1)) == "ok"

    assert not [name for name in world.snapshot() if "schedule" in name or "occurrences" in name or "declared" in name]
    assert world.get("a").id == "a"


def test_a_declared_schedule_is_known_to_its_module_alone(world: World) -> None:
    world.run(save(fields={"module": "jobs"}))
    world.run(save(revision=1, fields={"module": "jobs2"}))

    assert world.run(schedule_scripts.declare("jobs", "d", (), has_any=True)) == ("d", [])
    assert world.run(schedule_scripts.declare("jobs2", "d", (), has_any=True)) == ("d", ["s"])


def test_of_declarations_the_one_that_was_first_seen_last_counts(world: World) -> None:
    assert world.run(schedule_scripts.declare("jobs", "old", (), has_any=True))[0] == "old"
    world.redis.hset("taskpool:declaring:jobs", "old", 1000)
    assert world.run(schedule_scripts.declare("jobs", "new", ("old",), has_any=True))[0] == "new"

    assert world.run(schedule_scripts.declare("jobs", "old", ("new",), has_any=True))[0] == "new"
    assert world.run(schedule_scripts.declare("jobs", "old", (), has_any=True))[0] == "old"
    assert world.snapshot()["taskpool:declaring:jobs expires"] == "now+7776000 s"


def test_a_module_that_never_declared_a_schedule_leaves_nothing(world: World) -> None:
    assert world.run(schedule_scripts.declare("jobs", "d", (), has_any=False)) == ("d", [])

    assert world.snapshot() == {}


CALLS: dict[str, tuple[Callable[[World], Call[Any]], Any]] = {
    "save": (lambda world: save("t"), "ok"),
    "change": (lambda world: save(revision=1), "ok"),
    "remove": (lambda world: schedule_scripts.remove("s", "i", 1), "gone"),
    "settle": (lambda world: schedule_scripts.settle(DUE, "refused"), "stale"),
    "declare": (lambda world: schedule_scripts.declare("jobs", "d", (), has_any=True), ("d", [])),
    "fire": (lambda world: fire(), Added(broken_guard="stale")),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_comes_twice_is_carried_out_once(world: World, name: str) -> None:
    world.run(save())
    make, answer = CALLS[name]
    call = make(world)
    world.run(call)
    before = world.snapshot()

    assert call.again
    assert world.run(call) == answer
    assert world.since(before) == {}


def test_of_pools_that_race_for_occurrences_one_submits_each(world: World) -> None:
    world.run(save())

    def of(number: int) -> Occurrence:
        return Occurrence("s", "i", 1, NEXT + number, NEXT + number, NEXT + number + 1, NEXT + number + 1)

    answers = race(
        world.url,
        40,
        lambda number: fire(f"t{number}", of(number)),
        lambda number: fire(f"t{number}", of(number)),
        lambda number: schedule_scripts.settle(of(number), "refused"),
    )

    for first, second, settled in answers:
        won = [isinstance(each, Added) and not each.broken_guard for each in (first, second)] + [settled == "ok"]
        assert sorted(won) == [False, False, True]
    assert len(occurrences(world)) == 40
