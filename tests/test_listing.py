"""Lists by status, queue, type and tag: what they hold, newest first, and each task once however it is paged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count, product
from typing import Any

import pytest

from taskpool.errors import InvalidTask
from taskpool.operations import listing
from taskpool.operations.listing import FEW_PLACES, LONGEST_PAGE, MOST_LOOKED_AT, MOST_SCANNED
from taskpool.redis import bulk_scripts, scripts
from taskpool.redis.add_script import attempt_guard
from taskpool.redis.calls import encode_cursor
from taskpool.redis.keys import REGISTRY_OF
from taskpool.types import RQ_STATUS, Page, TaskRecord, TaskStatus
from taskpool.types.control import Filter
from taskpool.types.dependency import Dependency
from taskpool.validation import derived_id, new_id
from tests.states import SEED, World, new_task

S = TaskStatus


def page(world: World, wanted: Filter, cursor: str | None = None, limit: int = 50) -> Page[TaskRecord]:
    return world.store.carry_out(listing.list_tasks(wanted, cursor=cursor, limit=limit))


def ids(world: World, limit: int = 50, between: Callable[[], Any] = lambda: None, **wanted: Any) -> list[str]:
    """The ids of a whole listing read page by page, with something happening between the pages."""
    found: list[str] = []
    cursor = None
    while True:
        part = page(world, Filter(**wanted), cursor, limit)
        assert len(part.items) <= limit
        found += [record.id for record in part.items]
        if part.next_cursor is None:
            return found
        cursor = part.next_cursor
        between()


def add(world: World, *names: str, **options: Any) -> None:
    world.run(scripts.add([new_task(name, **options) for name in names]))


# --- what is in it -------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(world: World) -> World:
    """Tasks of two types in two queues, with and without a tag, in every status."""
    for status, kind, place, tag in product(SEED, ("work", "play"), ("default", "other"), ("x", "")):
        id = f"{status}-{kind}-{place}-{tag or 'none'}"
        SEED[status](_Placed(world, type=kind, queue=place, tags=[tag] if tag else []), id)
    return world


class _Placed(World):
    """The same world, where every task that is added gets these options too."""

    def __init__(self, world: World, **options: Any) -> None:
        self.__dict__.update(world.__dict__)
        self.options = options

    def add(self, id: str, **options: Any) -> scripts.Added:
        mine = {} if id.endswith("-parent") else self.options
        return super().add(id, **{**options, **mine})

    def claim(self, *queues: str, **options: Any) -> Any:
        return super().claim(self.options["queue"], **options)


@pytest.mark.parametrize("status", [None, *SEED])
@pytest.mark.parametrize("limit", [3, 200])
def test_every_filter_keeps_what_fits_and_nothing_else(crowd: World, status: TaskStatus | None, limit: int) -> None:
    everything = [crowd.get(key.decode().removeprefix("rq:job:")) for key in crowd.redis.keys("rq:job:*")]
    for queue, type, tag in product((None, "other"), (None, "play"), (None, "x")):
        wanted = Filter(status, queue, type, tag)

        found = ids(crowd, limit, status=status, queue=queue, type=type, tag=tag)

        assert sorted(found) == sorted(record.id for record in everything if wanted.keeps(record)), wanted


@pytest.mark.parametrize("wanted", [{"status": S.THROTTLED}, {"queue": "nowhere"}, {"type": "none"}, {"tag": "none"}])
def test_what_fits_nothing_is_an_empty_page(crowd: World, wanted: dict[str, Any]) -> None:
    assert page(crowd, Filter(**wanted)) == Page((), None)


def test_tasks_are_listed_whose_type_no_pool_has_announced(world: World) -> None:
    add(world, "a", "b")

    assert ids(world) == ["b", "a"]


def test_a_type_is_looked_at_no_more_when_its_last_task_is_gone(world: World) -> None:
    world.end("a")
    world.end("b", type="play")
    world.end_minute()

    world.run(scripts.purge("a"))

    assert world.snapshot()["taskpool:types:used"] == {"play"}
    assert ids(world) == ["b"]


def test_ids_without_a_record_are_passed_over(world: World) -> None:
    add(world, "a", "b", "c", tags=["x"])
    world.redis.delete("rq:job:b")

    assert ids(world, type="work") == ids(world, tag="x") == ids(world, status=S.QUEUED) == ["c", "a"]


# --- the order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [{}, {"type": "work"}, {"tag": "x"}, {"status": S.QUEUED}, {"queue": "default"}])
def test_the_newest_come_first(world: World, wanted: dict[str, Any]) -> None:
    names = [f"t{n:02}" for n in range(30)]
    add(world, *names, tags=["x"])

    assert ids(world, 7, **wanted) == names[::-1]


def test_what_ended_last_comes_first(world: World) -> None:
    for name in ("b", "c", "a"):
        world.end(name)
        world.redis.zincrby("rq:finished:default", 10 * world.redis.zcard("rq:finished:default"), name)

    assert ids(world, 1, status=S.DONE) == ["a", "c", "b"]


def test_many_that_ended_in_the_same_moment_are_each_listed_once(world: World) -> None:
    names = [f"t{n:02}" for n in range(50)]
    for name in names:
        world.end(name)
    world.redis.zadd("rq:finished:default", dict.fromkeys(names, 2_000_000_000.123))

    assert sorted(ids(world, 7, status=S.DONE)) == names


def test_what_is_kept_for_ever_is_listed_with_the_rest(world: World) -> None:
    names = [f"t{n}" for n in range(6)]
    for name in names:
        world.end(name)
    world.redis.zadd("rq:finished:default", dict.fromkeys(names[::2], "inf"))

    assert sorted(ids(world, 2, status=S.DONE)) == names


# --- what happens between two pages --------------------------------------------------------------------------


def test_claims_between_pages_neither_hide_nor_repeat_what_still_waits(world: World) -> None:
    names = [f"t{n:02}" for n in range(40)]
    add(world, *names)
    claimed: list[str] = []

    def claim() -> None:
        for _ in range(2):
            claimed.append(world.claim(attempt_id=f"{len(claimed)}").id)

    found = ids(world, 5, claim, status=S.QUEUED)

    assert found == sorted(set(found), reverse=True)
    assert set(found) >= set(names) - set(claimed)


def test_new_tasks_between_pages_neither_hide_nor_repeat_the_older_ones(world: World) -> None:
    names = [f"t{n:02}" for n in range(20)]
    add(world, *names)
    newer = count()

    def submit() -> None:
        add(world, *[f"u{next(newer):04}" for _ in range(3)])

    for wanted in ({"status": S.QUEUED}, {"type": "work"}, {"queue": "default"}, {}):
        found = ids(world, 3, submit, **wanted)
        assert found == sorted(set(found), reverse=True), wanted
        assert set(found) >= set(names), wanted


def test_claims_and_new_tasks_together_do_no_harm_either(world: World) -> None:
    names = [f"t{n:02}" for n in range(30)]
    add(world, *names)
    number = count()

    def work() -> None:
        world.claim(attempt_id=f"{next(number)}")
        add(world, f"u{next(number):04}", f"u{next(number):04}")

    found = ids(world, 4, work, status=S.QUEUED)

    assert found == sorted(set(found), reverse=True)
    still_waiting = {id.decode() for id in world.redis.lrange("rq:queue:default", 0, -1)} & set(names)
    assert set(found) >= still_waiting


def test_a_task_canceled_between_pages_is_all_that_may_be_missing(world: World) -> None:
    names = [f"t{n:02}" for n in range(20)]
    add(world, *names)
    waiting = list(names)

    def cancel() -> None:
        world.cancel(waiting.pop())

    found = ids(world, 3, cancel, type="work")

    assert found == names[::-1]


def test_heartbeats_between_pages_neither_hide_nor_repeat_what_runs(world: World) -> None:
    names = [f"t{n:02}" for n in range(20)]
    for name in names:
        world.start(name)
    beats = iter(range(100))

    def beat() -> None:
        lease_ms = 200_000 + 1000 * next(beats)
        world.run(scripts.heartbeat([(name, "1", "default") for name in names[::-2]], lease_ms))

    assert ids(world, 3, beat, status=S.IN_PROGRESS) == names[::-1]


def test_a_new_queue_between_pages_neither_hides_nor_repeats_the_others(world: World) -> None:
    for queue in ("b", "d"):
        add(world, *[f"{queue}{n}" for n in range(4)], queue=queue)
    new = iter("acdefghijk")

    def appear() -> None:
        queue = next(new)
        add(world, f"{queue}-new", queue=queue)

    found = ids(world, 3, appear, status=S.QUEUED)

    assert [id for id in found if not id.endswith("-new")] == ["b3", "b2", "b1", "b0", "d3", "d2", "d1", "d0"]
    assert len(found) == len(set(found))


def test_a_queue_that_vanishes_between_pages_takes_only_itself_along(world: World) -> None:
    for queue in ("a", "b", "c"):
        add(world, *[f"{queue}{n}" for n in range(4)], queue=queue)

    def vanish() -> None:
        world.redis.srem("rq:queues", "rq:queue:a")
        world.redis.delete("rq:queue:a")

    assert ids(world, 3, vanish, status=S.QUEUED) == [
        "a3",
        "a2",
        "a1",
        *[f"{q}{n}" for q in "bc" for n in (3, 2, 1, 0)],
    ]


def test_purges_between_pages_take_only_what_they_purge(world: World) -> None:
    names = [f"t{n:02}" for n in range(20)]
    for at, name in enumerate(names):
        world.end(name)
        world.redis.zadd("rq:finished:default", {name: 2_000_000_000 + at})
    oldest = iter(names)

    found = ids(world, 3, lambda: world.run(scripts.purge(next(oldest))), status=S.DONE)

    assert found == names[: -len(found) - 1 : -1]
    assert len(found) >= 14


@pytest.mark.parametrize("limit", [1, 3])
def test_what_is_retried_or_canceled_page_by_page_hides_nothing(world: World, limit: int) -> None:
    names = [f"t{n}" for n in range(7)]
    for name in names:
        world.end(name, S.FAILED)
    shown: list[str] = []

    def page_by_page(change: Callable[[str], Any], **wanted: Any) -> set[str]:
        found: set[str] = set()
        cursor = None
        while True:
            part = page(world, Filter(**wanted), cursor, limit)
            shown.extend(record.id for record in part.items)
            found |= {record.id for record in part.items}
            for record in part.items:
                change(record.id)
            if (cursor := part.next_cursor) is None:
                return found

    assert page_by_page(lambda id: world.run(scripts.revive(id)), status=S.FAILED) == {*names}
    assert page_by_page(world.cancel, status=S.QUEUED) == {*names}
    world.redis.zadd("rq:canceled:default", dict.fromkeys(names, "+inf"))  # as those of a workflow
    assert page_by_page(lambda id: world.run(scripts.purge(id)), status=S.CANCELED) == {*names}
    assert len(shown) == 3 * len(names)


def test_tasks_that_are_moved_from_the_tail_hide_no_others(world: World) -> None:
    names = [f"t{n:02}" for n in range(20)]
    add(world, *names)
    moved = names[:9:-1]

    def move() -> None:
        if moved:
            world.run(bulk_scripts.move_many([moved.pop(0) for _ in range(5)], "other", scripts.Work("mark")))

    assert {*ids(world, 3, move, queue="default", status=S.QUEUED)} >= {*names[:10]}


def test_a_listing_stays_on_its_way_when_queues_come_and_go(world: World) -> None:
    for n in range(FEW_PLACES):
        add(world, f"{n:02}-a", f"{n:02}-b", queue=f"q{n:02}", tags=["x"])
    add(world, *[f"more{n:03}" for n in range(100)], tags=["x"], delay_s=100)
    new = iter(range(50))

    def appear() -> None:
        add(world, f"new{next(new)}", queue=f"z{next(new)}")

    found = ids(world, 3, appear, status=S.QUEUED, tag="x")

    assert sorted(found) == sorted(f"{n:02}-{letter}" for n in range(FEW_PLACES) for letter in "ab")


@pytest.mark.parametrize(
    ("status", "id"),
    [
        *product((S.QUEUED, S.FAILED), ("report.2026-11", "a:b", "with blanks", "ä/%2F", "x" * 300)),
        (S.IN_PROGRESS, "report.2026-11"),
    ],
)
def test_jobs_of_other_programs_have_any_ids(world: World, id: str, status: TaskStatus) -> None:
    for name in (id, f"{id}2"):
        world.redis.hset(f"rq:job:{name}", mapping={"status": RQ_STATUS[status], "created_at": "2026-11-24T00:00:00Z",
                                                    "data": "x", "origin": "default"})  # fmt: skip
        if status is S.QUEUED:
            world.redis.rpush("rq:queue:default", name)
        else:
            world.redis.zadd(REGISTRY_OF[status] + "default", {name: 2_000_000_000})
    world.redis.sadd("rq:queues", "rq:queue:default")

    found = ids(world, 1, status=status)

    assert found == [f"{id}2", id]


@pytest.mark.parametrize("score", ["-inf", "+inf", "-5", "1e-30", "1e300", "0.0001234567890123456"])
def test_scores_of_other_programs_end_no_listing(world: World, score: str) -> None:
    for name in ("a", "b", "c"):
        world.end(name, S.FAILED)
        world.redis.zadd("rq:failed:default", {name: score})

    assert ids(world, 1, status=S.FAILED) == ["c", "b", "a"]


def test_a_cursor_of_another_listing_is_refused(world: World) -> None:
    add(world, "a", "b", tags=["x"])
    for name in ("c", "d"):
        world.end(name, tags=["x"])
    listings: list[dict[str, Any]] = [{"tag": "x"}, {"type": "work"}, {"status": S.QUEUED}, {"status": S.DONE}, {}]
    cursors = [page(world, Filter(**wanted), limit=1).next_cursor for wanted in listings]

    for at, wanted in enumerate(listings):
        for other in (*cursors[:at], *cursors[at + 1 :]):
            with pytest.raises(InvalidTask, match="cursor"):
                page(world, Filter(**wanted), other)


def test_no_listing_of_a_project_tells_anything_of_another_one(world: World) -> None:
    add(world, "theirs", project="bank")
    world.redis.hset("taskpool:workflow:w0000000000000000000", mapping={"project": "bank", "reserved": 50})

    texts = [page(world, Filter(project="shop", text=text)) for text in ("theirs", "nothing")]
    workflows = [page(world, Filter(project="shop", workflow=id)) for id in ("w0000000000000000000", "nothing")]

    assert texts == workflows == [Page((), None, 0)] * 2


@pytest.mark.parametrize("name", ["counted", "nodes", "order", "expanding", "reviving"])
def test_a_criterion_names_no_other_key(world: World, name: str) -> None:
    world.redis.set(f"taskpool:workflow:w:{name}", "d")

    assert page(world, Filter(workflow=f"w:{name}")).items == ()
    assert page(world, Filter(workflow=f"w:{name}", node="a")).items == ()


# --- bounds --------------------------------------------------------------------------------------------------


def test_a_page_looks_at_a_bounded_number_of_records_and_goes_on(world: World) -> None:
    world.end("needle", S.FAILED, tags=["x"])
    for start in range(0, MOST_SCANNED + 500, 500):
        add(world, *[f"t{start + n:05}" for n in range(500)], tags=["x"])

    first = page(world, Filter(tag="x", error="LUCK"))

    assert (first.items, first.looked_at, first.complete) == ((), MOST_SCANNED, False)
    last = page(world, Filter(tag="x", error="LUCK"), first.next_cursor)
    assert ([record.id for record in last.items], last.looked_at, last.complete) == (["needle"], 501, True)


def test_the_smallest_index_is_walked_and_a_listing_stays_on_it(world: World) -> None:
    for start in range(0, MOST_LOOKED_AT + 500, 500):
        add(world, *[f"t{start + n:05}" for n in range(500)], tags=["x"])
    add(world, *[f"p{n}" for n in range(5)], tags=["x"], type="play", queue="other")

    first = page(world, Filter(tag="x", type="play"), limit=3)
    add(world, *[f"q{n:04}" for n in range(600)], type="play")  # now there are more of the type than before
    rest = page(world, Filter(tag="x", type="play"), first.next_cursor, limit=3)

    assert [record.id for record in (*first.items, *rest.items)] == ["p4", "p3", "p2", "p1", "p0"]
    assert ids(world, status=S.QUEUED, type="play", tag="x") == ["p4", "p3", "p2", "p1", "p0"]


@pytest.mark.parametrize(("limit", "length"), [(1, 1), (LONGEST_PAGE, LONGEST_PAGE), (10_000, LONGEST_PAGE)])
def test_a_page_has_a_sensible_length_whatever_is_asked(world: World, limit: int, length: int) -> None:
    add(world, *[f"t{n:03}" for n in range(LONGEST_PAGE + 10)])

    assert len(page(world, Filter(), limit=limit).items) == length


@pytest.mark.parametrize(
    "wanted", [{}, {"status": S.QUEUED}, {"status": S.DONE}, {"status": S.IN_PROGRESS}, {"tag": "x"}]
)
@pytest.mark.parametrize(
    "cursor",
    [
        "!",
        "a" * 3000,
        encode_cursor(),
        encode_cursor(5),
        encode_cursor("a", "b", "c"),
        encode_cursor("rq:queue:default", "x/y"),
        encode_cursor("rq:queue:default", "-5/a"),
        encode_cursor("rq:finished:default", "nan/1"),
        encode_cursor("rq:finished:default", "5/-1"),
        encode_cursor("rq:wip:default", "[ \n"),
        encode_cursor("taskpool:tag:x", "[ \n"),
        encode_cursor("x", 5),
    ],
)
def test_a_cursor_of_ones_own_making_is_refused_or_harmless(world: World, wanted: dict[str, Any], cursor: str) -> None:
    add(world, "a", tags=["x"])
    world.end("b", tags=["x"])
    world.start("c", tags=["x"])
    before = world.snapshot()

    with suppress(InvalidTask):
        page(world, Filter(**wanted), cursor)

    assert world.since(before) == {}


# --- what it costs -------------------------------------------------------------------------------------------


def test_a_page_of_large_tasks_is_short_and_none_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_BYTES", 50_000)
    add(world, *[f"t{number:02}" for number in range(20)], payload={"text": "x" * 10_000})

    first = page(world, Filter())

    assert 0 < len(first.items) < 10
    assert ids(world) == [f"t{number:02}" for number in reversed(range(20))]


def test_large_tasks_of_others_end_a_page_as_well(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_BYTES", 50_000)
    add(world, "wanted")
    add(world, *[f"x{number:02}" for number in range(20)], payload={"text": "x" * 10_000})

    first = page(world, Filter(type="work", queue="default", tag=None, status=None))
    narrow = page(world, Filter(status=S.QUEUED, since="1h"))

    assert len(first.items) < 10
    assert (len(narrow.items) < 10, narrow.next_cursor is None) == (True, False)


def test_few_records_are_read_at_once_where_they_are_large(world: World) -> None:
    add(world, *[f"t{number:02}" for number in range(40)], payload={"text": "x" * 60_000})
    plan = listing.list_tasks(Filter())
    calls: Any = next(plan)
    reads = []
    with suppress(StopIteration):
        while True:
            reads.append(sum(call.command[0] == "HGETALL" for call in calls))
            calls = plan.send(world.store.run_many(calls))

    assert sum(reads) == 40
    assert max(reads) < 10


def test_a_status_is_listed_across_thousands_of_queues_in_bounded_steps(world: World) -> None:
    world.redis.sadd("rq:queues", *[f"rq:queue:idle{n:04}" for n in range(2500)])
    for n in range(5):
        add(world, f"a{n}", queue=f"idle{n * 600:04}")

    assert sorted(ids(world, status=S.QUEUED)) == [f"a{n}" for n in range(5)]

    world.redis.config_resetstat()
    page(world, Filter(status=S.QUEUED))
    assert world.redis.info("commandstats")["cmdstat_exists"]["calls"] <= MOST_LOOKED_AT + listing.BATCH


# --- criteria without an index -------------------------------------------------------------------------------


def names(world: World, **wanted: Any) -> set[str]:
    return {*ids(world, **wanted)}


def test_criteria_without_an_index_look_at_the_records(world: World) -> None:
    slow = world.start("slow")
    world.redis.hset("rq:job:slow", "started_at", "2026-01-01T00:00:00.000Z")
    world.finish(slow)
    failed = world.start("failed", attempt_id="2")
    failure = {"reason": "exception", "message": "Disk full", "fingerprint": "a1b2c3d4e5f6"}
    world.run(scripts.finish(failed, S.FAILED, error="OSError: Disk full", failure=failure))
    world.run(scripts.retry(world.start("again"), delay_ms=60_000, error="no luck", failure=failure))
    running = world.start("runs", attempt_id="3")
    add(world, "old")
    world.redis.hset("rq:job:old", "created_at", "2026-01-01T00:00:00.000Z")
    everything = {"slow", "failed", "again", running.id, "old"}

    assert names(world, error="disk FULL") == names(world, text="disk FULL") == {"failed"}
    assert names(world, fingerprint="a1b2c3d4e5f6") == {"failed", "again"}
    assert names(world, worker="w") == everything - {"old"}
    assert names(world, attempts=1) == everything - {"old"}
    assert names(world, min_duration="1d") == {"slow"}
    assert names(world, since="1h") == everything - {"old"}
    assert names(world, until="1h") == names(world, until="2026-02-01T00:00:00Z") == {"old"}
    assert names(world, since="2025-12-31T00:00:00Z", until="2026-01-01T00:00:01+00:00") == {"old"}
    assert names(world, error="disk", status=S.FAILED, worker="w", since="1h", attempts=1) == {"failed"}


@pytest.mark.parametrize("limit", [1, 7, 200])
@pytest.mark.parametrize("many", [1, 400])
def test_the_tasks_that_depend_on_one_are_found(world: World, many: int, limit: int) -> None:
    add(world, "parent", "other", "own")
    children = [f"c{n}" for n in range(many)]
    world.run(scripts.add([new_task(name, depends_on=["parent", "own"]) for name in children]))
    add(world, "always", depends_on=[Dependency(id="parent", on="any")])
    add(world, "stranger", depends_on=["other"])

    assert sorted(ids(world, limit, parent="parent")) == sorted([*children, "always"])
    assert names(world, parent="parent", status=S.QUEUED) == set()
    assert names(world, parent="parent", type="work") == {*children, "always"}
    assert names(world, parent="nothing") == set()


def add_from(world: World, parent: str, *names: str, **options: Any) -> None:
    """Have a task that runs add tasks with these ids."""
    running = world.start(parent, queue="parents", attempt_id=parent)
    tasks = [new_task(name, **options) for name in names]
    assert world.run(scripts.add(tasks, guard=attempt_guard(running))).statuses == ("queued",) * len(names)


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_what_a_task_has_added_is_found_by_its_ids(world: World, limit: int) -> None:
    parent = new_id()
    sibling = parent[:8] + new_id()[8:]
    children = [derived_id(parent, b"%d" % n) for n in range(30)]
    other = derived_id(sibling, b"1")
    add(world, *[new_id() for _ in range(5)])
    add_from(world, parent, *children[:10])
    add_from(world, sibling, other, type="play")
    guard = attempt_guard(world.running[parent])
    world.run(scripts.add([new_task(id, type="play") for id in children[10:20]], guard=guard))
    world.run(scripts.add([new_task(id, project="shop", tags=["x"]) for id in children[20:]], guard=guard))

    assert ids(world, limit, added_by=parent) == sorted(children, reverse=True)
    assert ids(world, limit, added_by=sibling) == [other]
    assert names(world, added_by=parent, type="play") == {*children[10:20]}
    assert names(world, added_by=parent, type="play", status=S.QUEUED, queue="default") == {*children[10:20]}
    assert names(world, added_by=parent, project="shop") == names(world, added_by=parent, tag="x") == {*children[20:]}
    assert names(world, added_by=parent, project="other") == set()
    assert names(world, added_by=parent, parent=other) == set()
    assert names(world, added_by=new_id()) == names(world, added_by="nothing") == set()


def test_looking_for_what_a_task_has_added_reads_no_other_tasks(world: World) -> None:
    parent = new_id()
    add_from(world, parent, child := derived_id(parent, b"1"))
    world.run(scripts.add([new_task(f"{n:020}") for n in range(500)]))

    def looked_at(**wanted: Any) -> int | None:
        found = page(world, Filter(added_by=parent, **wanted))
        assert [task.id for task in found.items] == [child]
        assert found.complete
        return found.looked_at

    assert looked_at() == 2  # the parent is of the same type and time
    assert looked_at(type="work") == looked_at(status=S.QUEUED) == looked_at(queue="default") == 2
    walk = world.store.carry_out(listing.walk_of(Filter(added_by=parent)))
    assert world.store.carry_out(walk.size()) == 2


def test_what_a_job_with_another_id_has_added_is_found_among_all_tasks(world: World) -> None:
    """RQ gives its jobs other ids, and programs may choose them."""
    for parent in ("a-job", "0b4e6cf0-6e4d-4e0e-9d7b-2f0d0f2b5d2a"):
        add_from(world, parent, child := derived_id(parent, b"1"))
        add(world, *[new_id() for _ in range(20)])

        assert names(world, added_by=parent) == names(world, added_by=parent, type="work") == {child}


def test_a_cursor_leads_to_nothing_else(world: World) -> None:
    parent = new_id()
    add_from(world, parent, child := derived_id(parent, b"1"))
    add(world, *[new_id() for _ in range(5)])

    for position in ("zzzz", "0", parent, child):
        found = page(world, Filter(added_by=parent), encode_cursor("ids", position))
        assert {task.id for task in found.items} <= {child}


def test_the_tasks_of_an_api_key_are_found(world: World) -> None:
    add(world, "a", "b", "c")
    world.redis.hset("rq:job:b", "submitted_by", "a service")

    assert names(world, submitted_by="a service") == names(world, submitted_by="a service", queue="default") == {"b"}
    assert names(world, submitted_by="service") == set()


def test_a_text_that_is_an_id_means_that_task_alone(world: World) -> None:
    add(world, "a", "b")

    assert names(world, text="a") == {"a"}
    assert names(world, text="a", queue="other") == set()
    assert names(world, text="c") == set()


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        ({"status": "lost"}, "/status"),
        ({"since": "yesterday"}, "/since"),
        ({"until": "2026-01-01"}, "/until"),
        ({"since": "1h", "until": "2h"}, "/until"),
        ({"attempts": 0}, "/attempts"),
        ({"min_duration": "long"}, "/min_duration"),
        ({"error": "x" * 501}, "/error"),
        ({"node": "a"}, "/node"),
        ({"worker": 5}, "/worker"),
        ({"added_by": ""}, "/added_by"),
        ({"submitted_by": "x" * 129}, "/submitted_by"),
    ],
)
def test_a_criterion_that_cannot_be_read_is_refused(world: World, wanted: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        page(world, Filter(**wanted))

    assert [fault.pointer for fault in caught.value.errors] == [pointer]
