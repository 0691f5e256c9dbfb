"""Pages of the audit: all streams as one, in order, by filters, each page at a bounded cost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from taskpool.access import keyring
from taskpool.access.api_key import KeySpec
from taskpool.access.audit import MOST_LOOKED_AT, Actor, AuditFilter, What, entry, read_audit
from taskpool.errors import InvalidTask
from taskpool.redis import keys, scripts
from tests.states import World

ANNA = Actor("a" * 12, "anna", None, "10.0.0.1")
SHOP = Actor("s" * 12, "shop", "shop", "10.0.0.2")
NOBODY = Actor(None, "anonymous", None, "127.0.0.1")
WHATS = (What.TASK_SUBMITTED, What.TASK_STOPPED, What.TASK_SUBMITTED, What.KEY_CREATED, What.TASK_RETRIED)
SECOND_MS = 1_795_500_000_000
FIRST = datetime.fromtimestamp(SECOND_MS / 1000, UTC)


def note(world: World, by: Actor, what: What, about: str, *, at_ms: int, n: int = 0) -> None:
    """One entry of that time, in the stream that it belongs to."""
    of_tasks = "taskpool:audit:submitted" if what is What.TASK_SUBMITTED else "taskpool:audit:tasks"
    stream = of_tasks if what.startswith("task.") else "taskpool:audit"
    world.redis.xadd(stream, {"e": entry(by, what, about)}, id=f"{at_ms}-{n}")


def fill(world: World, count: int = 60) -> None:
    """Entries of three callers and four kinds, a second apart, each about its number."""
    for number in range(count):
        by = (ANNA, SHOP, NOBODY)[number % 3]
        note(world, by, WHATS[number % 5], str(number), at_ms=SECOND_MS + number * 1000)


def pages(world: World, wanted: AuditFilter, limit: int = 500) -> list[list[str]]:
    """What each entry of each page is about."""
    found, cursor = [], None
    while True:
        page = world.store.carry_out(read_audit(wanted, cursor=cursor, limit=limit))
        found.append([each.entry.about for each in page.items])
        cursor = page.next_cursor
        if cursor is None:
            return found


def walked(world: World, wanted: AuditFilter, limit: int = 500) -> list[int]:
    """The numbers on all pages."""
    return [int(about) for page in pages(world, wanted, limit) for about in page]


def at(number: float) -> datetime:
    return FIRST + timedelta(seconds=number)


FILTERS = [
    (AuditFilter(), range(60)),
    (AuditFilter(what=What.TASK_SUBMITTED), [n for n in range(60) if n % 5 in (0, 2)]),
    (AuditFilter(what=What.TASK_STOPPED), range(1, 60, 5)),
    (AuditFilter(what=What.DELIVERY_REPLAYED), []),
    (AuditFilter(key=ANNA.key), range(0, 60, 3)),
    (AuditFilter(key="0" * 12), []),
    (AuditFilter(project="shop"), range(1, 60, 3)),
    (AuditFilter(about="17"), [17]),
    (AuditFilter(about="17", key=ANNA.key), []),
    (AuditFilter(what=What.TASK_STOPPED, project="shop"), range(1, 60, 15)),
    (AuditFilter(since=at(58)), [58, 59]),
    (AuditFilter(until=at(2)), [0, 1]),
    (AuditFilter(since=at(10), until=at(13)), [10, 11, 12]),
    (AuditFilter(since=at(9.0001), until=at(12.0001)), [10, 11, 12]),
    (AuditFilter(since=at(10).astimezone(timezone(timedelta(hours=-5))), until=at(11)), [10]),
    (AuditFilter(since=at(10), until=at(40), key=SHOP.key, what=What.TASK_SUBMITTED), [10, 22, 25, 37]),
    (AuditFilter(since=datetime.min.replace(tzinfo=UTC), until=datetime.max.replace(tzinfo=UTC)), range(60)),
    (AuditFilter(until=datetime(1969, 1, 1, tzinfo=UTC)), []),
    (AuditFilter(since=at(1000)), []),
]


@pytest.mark.parametrize("limit", [1, 7, 500])
@pytest.mark.parametrize(
    ("wanted", "expected"), FILTERS, ids=lambda value: None if isinstance(value, AuditFilter) else ""
)
def test_the_pages_have_what_fits_the_newest_first_and_each_once(
    world: World, wanted: AuditFilter, expected: Any, limit: int
) -> None:
    fill(world)

    assert walked(world, wanted, limit) == sorted(expected, reverse=True)


def test_no_page_is_longer_than_was_asked(world: World) -> None:
    fill(world)

    assert max(map(len, pages(world, AuditFilter(), 7))) == 7
    assert max(map(len, pages(world, AuditFilter(key=ANNA.key), 7))) == 7


def test_a_batch_is_about_its_first_and_its_last_task(world: World) -> None:
    made = entry(ANNA, What.TASK_SUBMITTED, "1", count=3, last="3")
    world.redis.xadd("taskpool:audit:submitted", {"e": made})

    assert [pages(world, AuditFilter(about=id)) for id in ("1", "2", "3")] == [[["1"]], [[]], [["1"]]]


def test_entries_of_one_millisecond_keep_their_order(world: World) -> None:
    for number in range(9):
        note(world, ANNA, What.TASK_STOPPED, str(number), at_ms=SECOND_MS, n=number)

    assert walked(world, AuditFilter(since=FIRST, until=at(0.001)), 2) == list(range(8, -1, -1))


def test_few_among_many_are_found_by_pages_of_bounded_cost(world: World) -> None:
    note(world, ANNA, What.TASK_SUBMITTED, "0", at_ms=SECOND_MS)
    pipe = world.redis.pipeline()
    for number in range(1, 3 * MOST_LOOKED_AT - 1):
        pipe.xadd("taskpool:audit:submitted", {"e": entry(SHOP, What.TASK_SUBMITTED, str(number))})
    pipe.execute()

    found = pages(world, AuditFilter(key=ANNA.key))

    assert found == [[], [], ["0"]]


def test_a_kind_is_looked_for_in_its_own_stream(world: World) -> None:
    fill(world)

    for what in (What.TASK_SUBMITTED, What.KEY_CREATED):
        (call,) = next(read_audit(AuditFilter(what=what)))

        assert (call.command[1] == "taskpool:audit:submitted") == (what is What.TASK_SUBMITTED)


def test_entries_about_tasks_of_an_earlier_release_are_read_with_those_of_this_one(world: World) -> None:
    world.redis.xadd("taskpool:audit", {"e": entry(ANNA, What.TASK_STOPPED, "0")}, id=f"{SECOND_MS}-0")
    note(world, ANNA, What.TASK_STOPPED, "1", at_ms=SECOND_MS)
    note(world, ANNA, What.KEY_CREATED, "2", at_ms=SECOND_MS + 1)

    assert walked(world, AuditFilter(), 1) == [2, 0, 1]
    assert walked(world, AuditFilter(what=What.TASK_STOPPED), 1) == [0, 1]


def test_no_number_of_tasks_that_a_caller_removes_pushes_out_what_admins_did(world: World) -> None:
    key, _ = world.store.carry_out(keyring.create(KeySpec(name="k"), ANNA))
    world.add("a")
    for script in (scripts.cancel("a", reason="canceled", error=""), scripts.revive("a")):
        world.run(script)  # Redis knows both from here on, and answers them in order
    for _ in range(24):
        moves = [
            move
            for _ in range(250)
            for move in (
                scripts.cancel("a", reason="canceled", error="", audited=entry(SHOP, "task.canceled", "a")),
                scripts.revive("a", entry(SHOP, "task.retried", "a")),
            )
        ]
        assert set(world.store.run_many(moves)) == {"ok"}

    found = pages(world, AuditFilter(what=What.KEY_CREATED))

    assert found == [[key.id]]
    assert world.redis.xlen("taskpool:audit:tasks") < 2 * keys.AUDIT_MAXLEN


def test_a_cursor_goes_on_where_the_page_ended_while_entries_come(world: World) -> None:
    fill(world)
    wanted = AuditFilter(project="shop")
    first = world.store.carry_out(read_audit(wanted, limit=5))
    note(world, SHOP, What.TASK_STOPPED, "new", at_ms=SECOND_MS + 100_000)

    second = world.store.carry_out(read_audit(wanted, cursor=first.next_cursor, limit=5))

    assert [each.entry.about for each in (*first.items, *second.items)] == [str(n) for n in range(58, 29, -3)]


@pytest.mark.parametrize("until", [FIRST, at(-1)])
def test_times_between_which_nothing_is_are_refused(world: World, until: datetime) -> None:
    with pytest.raises(InvalidTask) as refused:
        world.store.carry_out(read_audit(replace(AuditFilter(), since=FIRST, until=until)))

    assert [fault.pointer for fault in refused.value.errors] == ["/until"]
