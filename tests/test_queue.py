"""Waiting tasks: what is added and published, a queue page by page, and how a task is taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskpool import Registry, task
from taskpool.errors import InvalidPayload, InvalidTask, TaskConflict, TaskNotFound, UnknownDependency, UnknownType
from taskpool.operations import catalog, queue
from taskpool.operations.catalog import Catalogue, PoolInfo
from taskpool.operations.queue import CHUNK
from taskpool.operations.submit import Defaults
from taskpool.redis import scripts
from taskpool.redis.calls import encode_cursor
from taskpool.types import Page, QueuedTask, TaskRecord, TaskSpec, TaskStatus
from tests.states import ENDED, SEED, WAITS, World, new_task

S = TaskStatus
DEFAULTS = Defaults(timeout_s=600, result_ttl_s=1000, failure_ttl_s=2000, max_attempts=5)
POOL = PoolInfo(id="p1", host="h", pid=7, queues=(), types=("resize",), workers=())


@task("resize", queue="images", timeout_s=2.5)
def resize(width: int = 80, at: datetime | None = None) -> int:
    return width


@task("echo")
def echo(message: Any) -> Any:
    return message


REGISTRY = Registry()
REGISTRY.add(resize)
REGISTRY.add(echo)


@dataclass
class Submitter:
    """Adds tasks as a program does that knows the types itself, or only from what worker pools announced."""

    world: World
    registry: Registry | None

    def __post_init__(self) -> None:
        self.catalogue = Catalogue(type_grace_s=100)
        if self.registry is None:
            types = [each.info(max_attempts=5) for each in REGISTRY]
            self.world.run(catalog.publish(POOL, types, ttl_s=100))

    def add(self, type: str = "resize", payload: Any = None, **options: Any) -> TaskRecord:
        spec = TaskSpec(type=type, payload={} if payload is None else payload, **options)
        return self.world.store.carry_out(queue.add_task(spec, queue.Rules(self.catalogue, self.registry, DEFAULTS)))

    def add_many(self, specs: Sequence[TaskSpec]) -> list[TaskRecord]:
        return self.world.store.carry_out(queue.add_tasks(specs, queue.Rules(self.catalogue, self.registry, DEFAULTS)))


@pytest.fixture(params=["of its own", "announced"])
def submitter(request: pytest.FixtureRequest, world: World) -> Submitter:
    return Submitter(world, REGISTRY if request.param == "of its own" else None)


def tasks_in(world: World) -> set[str]:
    return {name for name in world.snapshot() if name.startswith(("rq:", "taskpool:events", "taskpool:type:"))}


# --- adding --------------------------------------------------------------------------------------------------


def test_what_is_answered_is_what_was_stored(submitter: Submitter, world: World) -> None:
    now = datetime.fromtimestamp(world.redis.time()[0], UTC)
    parent = submitter.add(queue="parents")
    bad = submitter.add(queue="parents")
    world.cancel(bad.id)

    added = [
        submitter.add(payload={"width": 3}),
        submitter.add(queue="q", front=True, tags=["a", "b", "a"], timeout_s=1, max_attempts=1, result_ttl_s=7),
        submitter.add(delay_s=500.25),
        submitter.add(delay_s=0),
        submitter.add(run_at=now + timedelta(seconds=500)),
        submitter.add(run_at=now - timedelta(seconds=500)),
        submitter.add(expires_in_s=300.5),
        submitter.add(depends_on=[parent.id], delay_s=500, expires_in_s=300),
        submitter.add(depends_on=[parent.id, bad.id], delay_s=500, expires_in_s=300),
    ]

    assert added == [world.get(record.id) for record in added]
    assert [record.status for record in added] == [
        S.QUEUED,
        S.QUEUED,
        S.SCHEDULED,
        S.QUEUED,
        S.SCHEDULED,
        S.QUEUED,
        S.QUEUED,
        S.WAITING,
        S.CANCELED,
    ]


def test_types_and_settings_fill_in_what_a_submission_leaves_open(submitter: Submitter) -> None:
    record = submitter.add()

    assert (record.queue, record.timeout_s, record.max_attempts) == ("images", 2.5, 5)
    assert (record.result_ttl_s, record.failure_ttl_s) == (1000, 2000)


def test_python_values_are_submitted_as_json(submitter: Submitter) -> None:
    record = submitter.add(payload={"at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)})

    assert record.payload == {"at": "2026-01-02T03:04:05Z"}


@pytest.mark.parametrize(
    "payload",
    [
        {"width": "5"},
        {"widht": 5},
        {"width": float("nan")},
        {"at": object()},
        {"at": "\ud800"},
        {"\ud800": 1},
        {5: 5},
        [],
        "text",
        7,
    ],
)
def test_a_payload_that_does_not_fit_is_refused_and_nothing_stored(
    submitter: Submitter, world: World, payload: Any
) -> None:
    before = world.snapshot()

    with pytest.raises(InvalidPayload) as refused:
        submitter.add(payload=payload)

    assert all(fault.pointer.startswith("/payload") for fault in refused.value.errors)
    assert refused.value.errors
    assert world.since(before) == {}


@pytest.mark.parametrize(
    "message", [float("nan"), float("inf"), {"a": [float("-inf")]}, "\ud800", {"a": "x\udfff"}, {"\ud800": 1}, object()]
)
def test_what_json_cannot_hold_is_refused_wherever_it_stands(submitter: Submitter, world: World, message: Any) -> None:
    before = world.snapshot()

    with pytest.raises(InvalidPayload):
        submitter.add("echo", {"message": message})

    assert world.since(before) == {}


@pytest.mark.parametrize(
    "message", [None, True, 0, -1.5e300, 2**63, 10**40, "", "é\u2028\0", [], {"null": None}, [[[{}]]], {"": ""}]
)
def test_every_json_value_is_kept_as_it_is(submitter: Submitter, world: World, message: Any) -> None:
    record = submitter.add("echo", {"message": message})

    assert world.get(record.id).payload == {"message": message}
    assert world.claim().payload == {"message": message}


def test_an_unknown_type_is_refused_with_its_likes(world: World) -> None:
    submitter = Submitter(world, None)

    with pytest.raises(UnknownType) as unknown:
        submitter.add("resise")

    assert unknown.value.near == ("resize",)
    assert tasks_in(world) == set()


def test_a_type_of_ones_own_needs_no_announcement_and_others_do(world: World) -> None:
    submitter = Submitter(world, None)
    own = Registry()
    own.add(echo)
    submitter.registry = own

    echoed, resized = submitter.add_many([TaskSpec(type="echo", payload={"message": 1}), TaskSpec(type="resize")])

    assert (echoed.type, resized.type, resized.queue) == ("echo", "resize", "images")


def test_an_unknown_parent_is_refused_by_name(submitter: Submitter, world: World) -> None:
    before = world.snapshot()

    with pytest.raises(UnknownDependency) as unknown:
        submitter.add(depends_on=["ghost"])

    assert unknown.value.id == "ghost"
    assert [fault.pointer for fault in unknown.value.errors] == ["/depends_on"]
    assert world.since(before) == {}


def test_many_tasks_are_stored_and_answered_in_order(submitter: Submitter, world: World) -> None:
    specs = [TaskSpec(type="resize", payload={"width": n}) for n in range(2 * CHUNK + 1)]

    records = submitter.add_many(specs)

    assert [record.payload["width"] for record in records] == list(range(len(specs)))
    assert world.redis.lrange("rq:queue:images", 0, -1) == [record.id.encode() for record in records]


def test_adding_nothing_is_possible(submitter: Submitter) -> None:
    assert submitter.add_many([]) == []


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        (TaskSpec(type="resize", payload={"width": "5"}), "/1200/payload/width"),
        (TaskSpec(type="resize", payload={"width": object()}), "/1200/payload/width"),
        (TaskSpec(type="resize", queue="a b"), "/1200/queue"),
        (TaskSpec(type="resize", tags=["ok", "a b"]), "/1200/tags/1"),
    ],
)
def test_a_fault_of_the_last_of_many_refuses_them_all(
    submitter: Submitter, world: World, wrong: TaskSpec, pointer: str
) -> None:
    before = world.snapshot()
    specs = [TaskSpec(type="resize") for _ in range(1200)]

    with pytest.raises(InvalidTask) as refused:
        submitter.add_many([*specs, wrong])

    assert refused.value.errors[0].pointer == pointer
    assert world.since(before) == {}


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"payload": {"width": "5"}}, "/1/payload/width"),
        ({"queue": "a b"}, "/1/queue"),
        ({"unique_key": "k"}, "/1/unique_key"),
    ],
)
def test_the_text_of_a_refusal_names_the_same_place_as_its_pointer(
    submitter: Submitter, wrong: dict[str, Any], place: str
) -> None:
    with pytest.raises(InvalidTask) as refused:
        submitter.add_many([TaskSpec(type="resize", unique_key="k"), TaskSpec(type="resize", **wrong)])

    assert refused.value.errors[0].pointer == place
    assert f"{place}: " in str(refused.value)


@pytest.mark.parametrize("wrong", [TaskSpec(type="nope"), TaskSpec(type="resize", depends_on=["ghost"])])
def test_what_is_unknown_in_the_last_of_many_refuses_them_all(
    submitter: Submitter, world: World, wrong: TaskSpec
) -> None:
    before = world.snapshot()
    specs = [TaskSpec(type="resize") for _ in range(1200)]

    with pytest.raises(InvalidTask):
        submitter.add_many([*specs, wrong])

    assert world.since(before) == {}


# --- looking -------------------------------------------------------------------------------------------------


def pages(world: World, limit: int, **between: Any) -> list[QueuedTask]:
    """A queue read page by page."""
    found: list[QueuedTask] = []
    cursor = None
    while True:
        page = world.store.carry_out(queue.get_queue("default", cursor=cursor, limit=limit))
        found += page.items
        if page.next_cursor is None:
            return found
        cursor = page.next_cursor


def test_a_queue_is_shown_in_dispatch_order_with_positions_and_changes_nothing(world: World) -> None:
    world.run(scripts.add([new_task(id) for id in "abcde"]))
    world.add("first", front=True)
    before = world.snapshot()

    found = pages(world, 2)

    assert [(each.record.id, each.position) for each in found] == [
        ("first", 1),
        ("a", 2),
        ("b", 3),
        ("c", 4),
        ("d", 5),
        ("e", 6),
    ]
    assert found[0].record == world.get("first")
    assert world.since(before) == {}


def test_the_order_shown_is_the_order_of_the_claims(world: World) -> None:
    world.run(scripts.add([new_task(f"t{n}", front=n % 3 == 0) for n in range(10)]))

    shown = [each.record.id for each in pages(world, 3)]

    assert [world.claim().id for _ in range(10)] == shown


def test_a_wait_counts_from_when_the_task_was_queued(world: World) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", "enqueued_at", "2020-01-01T00:00:00.000Z")
    world.add("b")

    first, second = pages(world, 10)

    assert first.wait_s > 5 * 365 * 86_400
    assert 0 <= second.wait_s < 10


def test_an_empty_queue_has_no_items_and_no_further_page(world: World) -> None:
    page = world.store.carry_out(queue.get_queue("default"))

    assert (page.items, page.next_cursor) == ((), None)


def test_an_id_without_a_record_is_left_out_and_keeps_its_place(world: World) -> None:
    world.add("a")
    world.redis.rpush("rq:queue:default", "ghost")
    world.add("b")

    assert [(each.record.id, each.position) for each in pages(world, 1)] == [("a", 1), ("b", 3)]


def next_page(world: World, page: Page[QueuedTask], limit: int = 2) -> list[str]:
    """The ids of the page after one, which shows `limit`."""
    assert page.next_cursor is not None
    found = world.store.carry_out(queue.get_queue("default", cursor=page.next_cursor, limit=limit))
    return [each.record.id for each in found.items]


@pytest.fixture
def page(world: World) -> Page[QueuedTask]:
    """The first page, "abc", of a queue with "abcdefgh"."""
    world.run(scripts.add([new_task(id) for id in "abcdefgh"]))
    return world.store.carry_out(queue.get_queue("default", limit=3))


def test_tasks_that_start_between_two_pages_let_the_second_skip_none(world: World, page: Page[QueuedTask]) -> None:
    assert [world.claim().id for _ in range(2)] == ["a", "b"]

    assert next_page(world, page) == ["d", "e"]


def test_tasks_that_come_between_two_pages_let_the_second_show_none_again(world: World, page: Page[QueuedTask]) -> None:
    for n in range(5):
        world.add(f"front{n}", front=True)
        world.add(f"tail{n}")

    assert next_page(world, page) == ["d", "e"]


def test_tasks_may_start_and_come_in_front_between_two_pages(world: World, page: Page[QueuedTask]) -> None:
    world.claim()
    world.add("front", front=True)

    assert next_page(world, page) == ["d", "e"]
    assert world.claim().id == "front"


@pytest.mark.parametrize("started", [3, 5])
def test_when_all_that_was_shown_has_started_the_rest_is_shown_from_the_head_on(
    world: World, page: Page[QueuedTask], started: int
) -> None:
    for _ in range(started):
        world.claim()

    assert next_page(world, page) == list("abcdefgh"[started : started + 2])


def test_one_that_was_shown_last_may_be_taken_out(world: World, page: Page[QueuedTask]) -> None:
    world.claim()
    world.store.carry_out(queue.remove_task("c"))

    assert next_page(world, page) == ["d", "e"]


def test_a_whole_page_may_be_taken_out_of_a_queue_that_moves(world: World, page: Page[QueuedTask]) -> None:
    second = world.store.carry_out(queue.get_queue("default", cursor=page.next_cursor, limit=3))
    for id in "def":
        world.store.carry_out(queue.remove_task(id))
    world.claim()
    world.add("i")

    assert next_page(world, second) == ["g", "h"]


def test_removing_each_page_that_is_shown_reaches_all_tasks(world: World) -> None:
    world.run(scripts.add([new_task(id) for id in "abcdefgh"]))
    shown, cursor = "", None
    while True:
        page = world.store.carry_out(queue.get_queue("default", cursor=cursor, limit=3))
        for each in page.items:
            shown += each.record.id
            world.store.carry_out(queue.remove_task(each.record.id))
        cursor = page.next_cursor
        if cursor is None:
            break

    assert shown == "abcdefgh"


def test_rather_than_skip_one_a_page_shows_some_again(world: World, page: Page[QueuedTask]) -> None:
    world.add("z", front=True)
    for id in "abc":
        world.store.carry_out(queue.remove_task(id))

    assert next_page(world, page) == ["z", "d"]


def test_one_that_came_back_to_the_tail_is_no_place_to_go_on_from(world: World) -> None:
    world.run(scripts.add([new_task(id) for id in "ab"]))
    page = world.store.carry_out(queue.get_queue("default", limit=1))
    running = world.claim()
    world.redis.hset("rq:job:a", "enqueued_at", "2020-01-01T00:00:00.000Z")  # or it would be within a millisecond
    world.add("c")

    world.redis.rpush("rq:queue:default", running.id)
    world.redis.hset("rq:job:a", "status", "queued")

    assert next_page(world, page, limit=3) == ["b", "c", "a"]


def test_a_page_has_a_sensible_length_whatever_is_asked(world: World) -> None:
    world.run(scripts.add([new_task(f"t{n}") for n in range(600)]))

    lengths = [len(world.store.carry_out(queue.get_queue("default", limit=n)).items) for n in (1, 500, 10_000)]

    assert lengths == [1, 500, 500]


@pytest.mark.parametrize(
    "cursor",
    ["x", "!", "é", "a" * 5000, encode_cursor("a"), encode_cursor(1, 2), encode_cursor(-1), encode_cursor(2**70)],
)
def test_a_cursor_of_ones_own_making_is_refused(world: World, cursor: str) -> None:
    with pytest.raises(InvalidTask) as refused:
        world.store.carry_out(queue.get_queue("default", cursor=cursor))

    assert [fault.pointer for fault in refused.value.errors] == ["/cursor"]


# --- taking out ----------------------------------------------------------------------------------------------


def remove(world: World, id: str) -> TaskStatus | None:
    return world.store.carry_out(queue.remove_task(id))


@pytest.mark.parametrize("status", WAITS)
def test_a_task_that_waits_is_canceled_first_and_purged_when_removed_again(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")

    assert remove(world, "a") is S.CANCELED
    assert world.get("a").status is S.CANCELED
    assert remove(world, "a") is None
    with pytest.raises(TaskNotFound):
        remove(world, "a")


@pytest.mark.parametrize("status", ENDED)
def test_an_ended_task_is_purged(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")

    assert remove(world, "a") is None

    with pytest.raises(TaskNotFound):
        world.get("a")


@pytest.mark.parametrize("status", [S.IN_PROGRESS, S.STOPPING])
def test_a_running_task_is_left_alone(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    with pytest.raises(TaskConflict, match="stop it first") as conflict:
        remove(world, "a")

    assert (conflict.value.id, conflict.value.status) == ("a", S.IN_PROGRESS)
    assert world.since(before) == {}


def test_a_job_that_rq_holds_back_is_left_alone(world: World) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", "status", "rate_limited")
    before = world.snapshot()

    with pytest.raises(TaskConflict) as conflict:
        remove(world, "a")

    assert conflict.value.status == S.THROTTLED
    assert world.since(before) == {}


@pytest.mark.parametrize(("end", "then"), [(S.DONE, S.QUEUED), (S.FAILED, S.CANCELED)])
def test_what_waits_for_a_task_learns_of_its_end_before_it_is_purged(
    world: World, end: TaskStatus, then: TaskStatus
) -> None:
    world.start("p")
    world.run(scripts.add([new_task(f"c{n}", depends_on=["p"]) for n in range(250)]))
    world.finish(world.running["p"], end)

    assert remove(world, "p") is None

    assert {world.get(f"c{n}").status for n in range(250)} == {then}
    assert not world.redis.exists("taskpool:dependents:p", "rq:job:p")
