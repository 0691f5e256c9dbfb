"""Schedules in one process: what they submit and when, what is refused, catch-up and overlap, and their history.

A test doesn't wait for a schedule: it moves the next occurrence into the past, as if that time had passed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from taskpool import At, Confirm, Cron, Every, InvalidTask, Registry, Secret, TaskPool, TaskSpec, TaskStatus, task
from taskpool.access.audit import Actor
from taskpool.errors import CapReached, InvalidSchedule, NotAllowed, ScheduleNotFound
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.operations.flow import occurrences, schedules
from taskpool.operations.flow.schedule_values import ScheduleRecord, ScheduleSpec, ScheduleStatus
from taskpool.operations.status import release_dependents
from taskpool.redis import keys, schedule_scripts
from taskpool.settings import Settings
from taskpool.tasks.context import TaskContext
from taskpool.tasks.schedule import Times

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
WORK = TaskSpec(type="work")
seen: list[datetime | None] = []


@task("work")
def work(ctx: TaskContext, n: int = 0) -> None:
    seen.append(ctx.occurrence)


@task("secretive")
def secretive(password: Secret[str]) -> str:
    return password[::-1]


class Bench(TaskPool):
    """A pool that fires schedules when a test says so."""

    def fire(self) -> float:
        """One round of a worker pool's duty, without declared schedules."""
        return self.store.carry_out(occurrences.fire_due(self.rules, []))

    def fire_all(self) -> None:
        """Rounds until nothing is due."""
        for _ in range(1000):
            if self.fire() > 0.02:
                return
        raise AssertionError("schedules are due without end")

    def now_ms(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds * 1000 + micros // 1000)

    @property
    def client(self) -> Any:
        from redis import Redis

        return Redis.from_url(self.redis_url)

    def shift(self, name: str, ms: int) -> int:
        """Has the next occurrence come that much earlier; its nominal time."""
        client = self.client
        next_ms = int(client.hget(f"taskpool:schedule:{name}", "next_ms")) - ms
        client.hset(f"taskpool:schedule:{name}", "next_ms", next_ms)
        client.zadd("taskpool:schedules:due", {name: next_ms / 1000})
        return next_ms

    def make_due(self, name: str, times: Times, missed: int = 1) -> list[int]:
        """Makes the last occurrences before now due; their nominal times."""
        now_ms = self.now_ms()
        start_ms = now_ms
        found: list[int] = []
        while len(found) < missed:
            start_ms -= 366 * 24 * HOUR_MS if isinstance(times, Cron) and missed == 1 else missed * HOUR_MS
            found = list(_until(times, start_ms, now_ms))[-missed:]
        client = self.client
        client.hset(f"taskpool:schedule:{name}", "next_ms", found[0])
        client.zadd("taskpool:schedules:due", {name: found[0] / 1000})
        return found

    def outcomes(self, name: str) -> list[str]:
        return [run.outcome for run in self.get_schedule(name).history]


def _until(times: Times, start_ms: int, until_ms: int) -> Iterator[int]:
    for each in times.from_on(start_ms):
        if each > until_ms:
            return
        yield each


@pytest.fixture
def pool(redis_url: str) -> Iterator[Bench]:
    registry = Registry()
    registry.add(work)
    registry.add(secretive)
    with Bench(redis_url, registry=registry) as pool:
        yield pool


def submitted(pool: TaskPool, type: str = "work") -> list[datetime]:
    """The nominal times of the tasks there are, in order."""
    return sorted(record.occurrence for record in pool.list_tasks(type=type).items if record.occurrence)


def at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def test_an_occurrence_is_submitted_once_with_its_nominal_time_and_the_next_is_set(pool: Bench) -> None:
    times = Every("1h")
    made = pool.set_schedule("hourly", times, TaskSpec(type="work", payload={"n": 3}, tags=["x"]))
    (due_ms,) = pool.make_due("hourly", times)

    pool.fire()
    pool.fire()

    (record,) = pool.list_tasks(type="work").items
    assert (record.payload, record.tags, record.schedule, record.occurrence) == ({"n": 3}, ("x",), "hourly", at(due_ms))
    after = pool.get_schedule("hourly")
    assert after.next_at == at(due_ms + HOUR_MS) == made.next_at
    assert (after.last_at, after.last_task) == (at(due_ms), record.id)
    assert [(run.outcome, run.occurrence, run.task) for run in after.history] == [("submitted", at(due_ms), record.id)]


def test_a_task_sees_its_nominal_time(pool: Bench) -> None:
    times = Every("1h")
    pool.set_schedule("hourly", times, WORK)
    (due_ms,) = pool.make_due("hourly", times)
    pool.fire()
    seen.clear()

    for _ in range(2):
        running = pool.run_task(["default"], worker="w", attempt_id="a")
        if running is None:
            pool.add_task("work")
            running = pool.run_task(["default"], worker="w", attempt_id="b")
        assert running is not None
        pool.execute_task(running)

    assert seen == [at(due_ms), None]


def test_nothing_is_due_before_its_time_and_the_wait_is_known(pool: Bench) -> None:
    pool.set_schedule("soon", At(datetime.now(UTC) + timedelta(seconds=30)), WORK)

    assert 0 < pool.fire() < 31
    assert pool.list_tasks().items == ()


@pytest.mark.parametrize(
    ("catch_up", "expected", "outcomes"),
    [
        ("last", [4], ["submitted", "missed"]),
        ("all", [0, 1, 2, 3, 4], ["submitted"] * 5),
        ("none", [], ["missed", "missed"]),
    ],
)
def test_missed_runs_are_caught_up_with_as_the_schedule_says(
    pool: Bench, catch_up: Any, expected: list[int], outcomes: list[str]
) -> None:
    half_an_hour_ago = at(pool.now_ms() - 30 * MINUTE_MS)
    times = Cron(f"{half_an_hour_ago.minute} * * * *", catch_up=catch_up)
    pool.set_schedule("s", times, WORK)
    due = pool.make_due("s", times, missed=5)

    pool.fire_all()

    assert submitted(pool) == [at(due[index]) for index in expected]
    assert pool.outcomes("s") == outcomes
    assert pool.get_schedule("s").next_at == at(times.after(pool.now_ms()) or 0)


def test_all_missed_runs_are_caught_up_with_up_to_a_limit(pool: Bench) -> None:
    times = Every("1h", catch_up="all", catch_up_limit=3)
    pool.set_schedule("s", times, WORK)
    due = pool.make_due("s", times, missed=50)

    pool.fire_all()

    assert submitted(pool) == [at(each) for each in due[-3:]]
    missed = pool.get_schedule("s").history[-1]
    assert (missed.outcome, missed.occurrence, missed.until) == ("missed", at(due[0]), at(due[-3]))


def test_a_run_that_is_a_little_late_is_not_missed(pool: Bench) -> None:
    times = Every("10s", catch_up="none")
    pool.set_schedule("s", times, WORK)
    (due_ms,) = pool.make_due("s", times)

    pool.fire()

    assert submitted(pool) == [at(due_ms)]


def running(pool: Bench, name: str, times: Times) -> str:
    """Starts a run of a schedule, and makes another one due; the id of the first."""
    _, second = pool.make_due(name, times, missed=2)
    client = pool.client
    pool.run_schedule(name)
    claimed = pool.run_task(["default"], worker="w", attempt_id=name)
    assert claimed is not None
    client.hset(f"taskpool:schedule:{name}", "next_ms", second)
    client.zadd("taskpool:schedules:due", {name: second / 1000})
    return claimed.id


def test_a_run_is_skipped_while_the_one_before_has_not_ended(pool: Bench) -> None:
    times = Every("1h", overlap="skip")
    pool.set_schedule("s", times, WORK)
    before = running(pool, "s", times)

    pool.fire_all()

    assert [record.id for record in pool.list_tasks().items] == [before]
    assert pool.outcomes("s") == ["skipped", "submitted"]


def finish(pool: Bench, id: str) -> None:
    """Ends the running attempt of `running` as done, as a worker does."""
    (name,) = [each.name for each in pool.list_schedules().items]
    held = pool.run_task(["default"], worker="w", attempt_id=name)  # answered once more
    assert held is not None
    assert held.id == id
    pool.execute_task(held)
    pool.store.carry_out(release_dependents(id))


def test_one_run_waits_behind_the_one_before_and_the_next_ones_are_left_out(pool: Bench) -> None:
    times = Every("1h", overlap="queue_one")
    pool.set_schedule("s", times, WORK)
    before = running(pool, "s", times)

    pool.fire_all()
    (waiting,) = [record for record in pool.list_tasks().items if record.id != before]
    assert waiting.status is TaskStatus.WAITING
    pool.make_due("s", times)
    pool.client.hdel("taskpool:schedule:s", "last_ms")
    pool.fire_all()
    assert pool.outcomes("s") == ["skipped", "submitted", "submitted"]

    finish(pool, before)
    assert pool.get(waiting.id).status is TaskStatus.QUEUED


def test_a_run_waits_for_any_end_of_the_one_before(pool: Bench) -> None:
    times = Every("1h", overlap="queue_one")
    pool.set_schedule("s", times, WORK)
    pool.run_schedule("s")
    (before,) = pool.list_tasks().items
    pool.make_due("s", times)
    pool.fire_all()
    (waiting,) = [record for record in pool.list_tasks().items if record.id != before.id]

    pool.remove_task(before.id)

    assert pool.get(before.id).status is TaskStatus.CANCELED
    assert pool.get(waiting.id).status is TaskStatus.QUEUED


def test_a_run_takes_the_place_of_one_that_has_not_started(pool: Bench) -> None:
    times = Every("1h", overlap="replace")
    pool.set_schedule("s", times, WORK)
    pool.run_schedule("s")
    (before,) = pool.list_tasks().items
    pool.make_due("s", times)

    pool.fire_all()

    replaced = pool.get(before.id)
    assert (replaced.status, replaced.reason) == (TaskStatus.CANCELED, "replaced")
    (latest,) = [record for record in pool.list_tasks().items if record.id != before.id]
    assert latest.status is TaskStatus.QUEUED


def test_a_run_stops_the_one_before_and_starts_behind_it(pool: Bench) -> None:
    times = Every("1h", overlap="replace")
    pool.set_schedule("s", times, WORK)
    before = running(pool, "s", times)

    pool.fire_all()

    assert pool.get(before).status is TaskStatus.STOPPING
    (latest,) = [record for record in pool.list_tasks().items if record.id != before]
    assert latest.status is TaskStatus.WAITING
    finish(pool, before)
    assert pool.get(latest.id).status is TaskStatus.QUEUED


def test_overlap_rules_apply_to_missed_runs(pool: Bench) -> None:
    times = Every("1h", overlap="queue_one", catch_up="all")
    pool.set_schedule("s", times, WORK)
    due = pool.make_due("s", times, missed=5)

    pool.fire_all()

    assert submitted(pool) == [at(due[0]), at(due[1])]
    assert pool.outcomes("s") == ["skipped", "skipped", "skipped", "submitted", "submitted"]


def test_back_off_counts_as_running(pool: Bench) -> None:
    times = Every("1h", overlap="skip")
    pool.set_schedule("s", times, TaskSpec(type="work", delay_s=None, max_attempts=2))
    before = running(pool, "s", times)
    pool.client.hset(f"rq:job:{before}", "status", "scheduled")

    pool.fire_all()

    assert pool.outcomes("s") == ["skipped", "submitted"]


def test_a_run_that_waits_for_a_person_counts_as_running(pool: Bench) -> None:
    times = Every("1h", overlap="skip", catch_up="all")
    made = pool.set_schedule("s", times, TaskSpec(type="work", confirm=Confirm("Go?", timeout="1d")))
    due = pool.make_due("s", times, missed=2)

    pool.fire_all()

    (record,) = pool.list_tasks().items
    assert (record.status, record.occurrence) == (TaskStatus.WAITING_CONFIRMATION, at(due[0]))
    assert pool.outcomes("s") == ["skipped", "submitted"]
    assert made.task["confirm"]["text"] == "Go?"


def test_runs_may_overlap_by_default_and_follow_one_that_has_ended(pool: Bench) -> None:
    for overlap, is_ended in (("allow", False), ("skip", True)):
        times = Every("1h", overlap=overlap)  # type: ignore[arg-type]
        pool.set_schedule(overlap, times, WORK)
        before = running(pool, overlap, times)
        if is_ended:
            pool.client.hset(f"rq:job:{before}", "status", "finished")

        pool.fire_all()

        assert pool.outcomes(overlap) == ["submitted", "submitted"]
        pool.client.delete("rq:queue:default")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"payload": {"n": "many"}}, "n: Expected `int`"),
        ({"unique_key": "held"}, "has the unique key 'held'"),
        ({"type": "secretive", "payload": {}}, "password"),
    ],
)
def test_a_refusal_is_noted_and_the_schedule_goes_on(pool: Bench, options: dict[str, Any], reason: str) -> None:
    times = Every("1h")
    pool.set_schedule("s", times, WORK)
    document = json.dumps({"type": "work", **options})
    pool.client.hset("taskpool:schedule:s", "task", document)  # as if the type had changed since
    holder = pool.add_task("work", unique_key="held", delay_s=1000)
    (due_ms,) = pool.make_due("s", times)

    pool.fire_all()

    assert [record.id for record in pool.list_tasks().items] == [holder.id]
    (run,) = pool.get_schedule("s").history
    assert (run.outcome, run.occurrence) == ("refused", at(due_ms))
    assert reason in (run.reason or "")
    assert pool.get_schedule("s").next_at == at(due_ms + HOUR_MS)


@pytest.mark.parametrize("cause", ["full", "unknown"])
def test_a_full_queue_and_an_unserved_type_are_tried_again_for_a_minute(redis_url: str, cause: str) -> None:
    times = Every("1h")
    registry = Registry()
    registry.add(work)
    with Bench(redis_url, registry=registry, settings=Settings(max_queue_depth=1)) as pool:
        pool.set_schedule("s", times, WORK)
        if cause == "full":
            pool.add_task("work")
        else:
            pool.client.hset("taskpool:schedule:s", "task", json.dumps({"type": "unserved"}))
        (due_ms,) = pool.make_due("s", times)

        pool.fire()

        assert pool.get_schedule("s").next_at == at(due_ms)
        assert pool.get_schedule("s").history == ()
        retry_ms = int(pool.client.hget("taskpool:schedule:s", "retry_ms"))
        pool.client.hset("taskpool:schedule:s", "retry_ms", retry_ms - MINUTE_MS)
        pool.shift("s", 0)

        pool.fire()

        assert pool.outcomes("s") == ["refused"]
        assert pool.get_schedule("s").next_at == at(due_ms + HOUR_MS)


def test_a_queue_with_room_again_gets_the_run(redis_url: str) -> None:
    registry = Registry()
    registry.add(work)
    with Bench(redis_url, registry=registry, settings=Settings(max_queue_depth=1)) as pool:
        pool.set_schedule("s", Every("1h"), WORK)
        filler = pool.add_task("work")
        (due_ms,) = pool.make_due("s", Every("1h"))
        pool.fire()
        pool.remove_task(filler.id)
        pool.remove_task(filler.id)
        pool.shift("s", 0)

        pool.fire()

        assert submitted(pool) == [at(due_ms)]


def test_a_paused_schedule_submits_nothing_and_goes_on_from_now(pool: Bench) -> None:
    times = Every("1h")
    pool.set_schedule("s", times, WORK)
    pool.make_due("s", times)

    paused = pool.pause_schedule("s")
    pool.fire_all()

    assert (paused.status, paused.next_at) == (ScheduleStatus.PAUSED, None)
    assert pool.list_tasks().items == ()
    changed = pool.set_schedule("s", Every("2h"), WORK)
    assert changed.status is ScheduleStatus.PAUSED
    resumed = pool.resume_schedule("s")
    assert (resumed.status, resumed.next_at) == (ScheduleStatus.ACTIVE, at(Every("2h").after(pool.now_ms())))


def test_a_schedule_that_is_paused_while_a_pool_looks_at_it_is_kept(pool: Bench) -> None:
    pool.set_schedule("s", Every("1h"), WORK)
    pool.make_due("s", Every("1h"))
    pool.pause_schedule("s")
    pool.client.zadd(keys.SCHEDULES_DUE, {"s": 1})  # as if the pool had read what is due before

    pool.fire()

    assert pool.get_schedule("s").status is ScheduleStatus.PAUSED
    assert pool.resume_schedule("s").next_at == at(Every("1h").after(pool.now_ms()))


def test_a_change_of_a_due_schedule_fires_as_it_is_then(pool: Bench) -> None:
    times = Every("1h")
    pool.set_schedule("s", times, WORK)
    (due_ms,) = pool.make_due("s", times)
    (old,) = pool.store.carry_out(_read(pool, "s"))

    pool.set_schedule("s", times, TaskSpec(type="work", payload={"n": 2}))

    firing = occurrences.decide(old, pool.now_ms())
    assert pool.store.run(schedule_scripts.settle(firing.occurrence, "refused")) == "stale"
    pool.fire_all()
    (record,) = pool.list_tasks().items
    assert (record.payload, record.occurrence) == ({"n": 2}, at(due_ms))


def _read(pool: Bench, *ids: str) -> Any:
    return (yield [schedules.stored(id) for id in ids])


def test_an_occurrence_is_never_submitted_again_after_redis_s_clock_went_back(pool: Bench) -> None:
    times = Every("1h")
    pool.set_schedule("s", times, WORK)
    tomorrow_ms = pool.now_ms() + 24 * HOUR_MS
    pool.client.hset("taskpool:schedule:s", "last_ms", tomorrow_ms)  # before the clock was put back by a day

    changed = pool.set_schedule("s", Every("30m"), WORK)

    assert changed.next_at is not None
    assert changed.next_at > at(tomorrow_ms)
    pool.client.hset("taskpool:schedule:s", "next_ms", tomorrow_ms)
    pool.client.zadd("taskpool:schedules:due", {"s": 1})
    pool.fire()
    assert pool.list_tasks().items == ()


def test_a_schedule_that_is_removed_and_added_again_fires_the_same_occurrence(pool: Bench) -> None:
    times = Every("1h")
    for _ in range(2):
        pool.set_schedule("s", times, WORK)
        pool.make_due("s", times)
        pool.fire_all()
        pool.remove_schedule("s")

    first, second = submitted(pool)
    assert first == second
    with pytest.raises(ScheduleNotFound):
        pool.get_schedule("s")
    assert pool.client.keys("taskpool:*s:s") == []


def test_a_single_time_ends_and_is_removed_after_a_week(pool: Bench) -> None:
    pool.set_schedule("once", At(datetime.now(UTC) + timedelta(hours=1)), WORK)
    due_ms = pool.shift("once", HOUR_MS)
    pool.client.hset("taskpool:schedule:once", "timing", json.dumps({"at": at(due_ms).isoformat()}))

    pool.fire_all()

    assert pool.get_schedule("once").status is ScheduleStatus.ENDED
    assert len(submitted(pool)) == 1
    left_s = pool.client.zscore("taskpool:schedules:due", "once") - pool.now_ms() / 1000
    assert left_s == pytest.approx(7 * 86_400, abs=60)
    pool.client.zadd("taskpool:schedules:due", {"once": 1})
    pool.fire_all()
    assert pool.list_schedules().items == ()
    assert pool.client.zcard("taskpool:schedules:due") == 0


def test_jitter_delays_the_start_and_not_the_nominal_time(pool: Bench) -> None:
    times = Every("1h", jitter="50m")
    offsets = []
    for name in ("a", "b", "c", "d"):
        record = pool.set_schedule(name, times, WORK)
        assert record.next_at == at(times.after(pool.now_ms()))
        offsets.append(pool.client.zscore("taskpool:schedules:due", name) - record.next_at.timestamp())

    assert len(set(offsets)) == 4
    assert all(0 <= offset < 3000 for offset in offsets)


def test_secrets_of_the_payload_are_kept_apart_and_reach_the_task(pool: Bench) -> None:
    times = Every("1h")
    made = pool.set_schedule("s", times, TaskSpec(type="secretive", payload={"password": "hunter2"}))
    pool.make_due("s", times)

    pool.fire_all()

    assert made.task == {"type": "secretive", "payload": {"password": "***"}}
    (record,) = pool.list_tasks(type="secretive").items
    assert record.payload == {"password": "***"}
    claimed = pool.run_task(["default"], worker="w", attempt_id="a")
    assert claimed is not None
    pool.execute_task(claimed)
    assert "hunter2" not in str(pool.get_schedule("s"))
    assert pool.get(record.id).status is TaskStatus.DONE


def test_a_person_can_have_it_run_now(pool: Bench) -> None:
    pool.set_schedule("s", Every("1h"), WORK)
    before = pool.pause_schedule("s")

    receipt = pool.run_schedule("s")

    after = pool.get_schedule("s")
    assert pool.get(receipt.id).schedule == "s"
    assert after.last_task == receipt.id
    assert (after.status, after.next_at) == (before.status, before.next_at)
    assert [run.outcome for run in after.history] == ["submitted"]


def test_what_is_read_of_a_schedule(pool: Bench) -> None:
    times = Cron("0 2 * * *", tz="Europe/Berlin", overlap="skip")
    pool.set_schedule("nightly", times, WORK)

    record = pool.get_schedule("nightly")

    assert record.words == "At 02:00 every day (Europe/Berlin)"
    assert (record.cron, record.tz, record.overlap, record.status) == (
        "0 2 * * *",
        "Europe/Berlin",
        "skip",
        ScheduleStatus.ACTIVE,
    )
    assert len(record.next_runs) == 10
    assert record.next_runs[0] == record.next_at
    assert all(later > earlier for earlier, later in pairwise(record.next_runs))
    assert len(record.clock_changes) == 2
    (listed,) = pool.list_schedules().items
    assert (listed.name, listed.next_runs) == ("nightly", ())


def test_a_listing_shows_the_last_ten_runs_of_each_schedule(pool: Bench) -> None:
    for name in ("often", "never"):
        pool.set_schedule(name, Every("1h", catch_up="all", overlap="allow"), WORK)
    pool.make_due("often", Every("1h"), missed=12)
    pool.fire_all()

    never, often = pool.list_schedules().items

    assert often.history == pool.get_schedule("often").history[:10]
    assert (len(often.history), never.history) == (10, ())


def test_schedules_are_listed_by_name_in_pages(pool: Bench) -> None:
    for name in ("b", "d", "a", "c", "e"):
        pool.set_schedule(name, Every("1h"), WORK)

    first = pool.list_schedules(limit=2)
    second = pool.list_schedules(limit=2, cursor=first.next_cursor)
    third = pool.list_schedules(limit=2, cursor=second.next_cursor)

    assert [record.name for page in (first, second, third) for record in page.items] == list("abcde")
    assert third.next_cursor is None


def put(pool: Bench, name: str, by: Actor, **options: Any) -> ScheduleRecord:
    spec = ScheduleSpec(every="1h", task=TaskSpec(type="work", **options))
    record, _ = pool.store.carry_out(schedules.set_schedule(name, spec, pool.rules, by))
    return record


def test_a_project_has_schedules_of_its_own(pool: Bench) -> None:
    shop, other = (Actor("k", "a key", project, "") for project in ("shop", "other"))
    put(pool, "s", shop)
    put(pool, "s", other, payload={"n": 1})

    pool.make_due("shop:s", Every("1h"))
    pool.fire_all()

    (record,) = pool.list_tasks().items
    assert (record.project, record.schedule) == ("shop", "s")
    mine = pool.store.carry_out(schedules.list_schedules(project="shop"))
    assert [(each.name, each.project) for each in mine.items] == [("s", "shop")]
    assert pool.get_schedule("other:s").project == "other"
    with pytest.raises(ScheduleNotFound):
        pool.store.carry_out(schedules.get_schedule("other:s", shop))
    with pytest.raises(ScheduleNotFound):
        pool.get_schedule("s")


def test_a_key_s_types_and_queues_hold_for_every_change(pool: Bench) -> None:
    bound = Actor("k", "a key", None, "", queues=("mails",))
    pool.set_schedule("s", Every("1h"), WORK)

    for change in (
        schedules.pause_schedule("s", bound),
        schedules.remove_schedule("s", bound),
        occurrences.run_schedule("s", pool.rules, bound),
        schedules.set_schedule(
            "s", ScheduleSpec(every="2h", task=TaskSpec(type="work", queue="mails")), pool.rules, bound
        ),
        schedules.set_schedule("t", ScheduleSpec(every="2h", task=WORK), pool.rules, bound),
    ):
        with pytest.raises(NotAllowed):
            pool.store.carry_out(change)
    assert put(pool, "t", bound, queue="mails").name == "t"


def test_a_project_has_so_many_schedules_and_no_more(redis_url: str) -> None:
    registry = Registry()
    registry.add(work)
    with Bench(redis_url, registry=registry, settings=Settings(max_schedules=2)) as pool:
        shop = Actor("k", "a key", "shop", "")
        for name in ("a", "b"):
            put(pool, name, shop)

        with pytest.raises(CapReached, match="TASKPOOL_MAX_SCHEDULES"):
            put(pool, "c", shop)

        put(pool, "b", shop, payload={"n": 2})
        put(pool, "c", Actor("k", "a key", "another", ""))


@pytest.mark.parametrize(
    ("name", "times", "spec", "pointer"),
    [
        ("s", Cron("0 25 * * *"), WORK, "/cron"),
        ("s", At(datetime(2020, 1, 1, tzinfo=UTC)), WORK, "/at"),
        ("s", Every("1h"), TaskSpec(type="work", depends_on=["a"]), "/task/depends_on"),
        ("s", Every("1h"), TaskSpec(type="work", delay="5m"), "/task/delay_s"),
        ("s", Every("1h"), TaskSpec(type="work", payload={"n": "x"}), "/task/payload/n"),
        ("s", Every("1h"), TaskSpec(type="work", tags=["no space"]), "/task/tags/0"),
        ("s", Every("1h"), TaskSpec(type="nothing"), "/task/type"),
        ("a name", Every("1h"), WORK, "/name"),
        ("s", "0 2 * * *", WORK, "/times"),
        ("s", Every("1h"), "work", "/task"),
    ],
)
def test_what_is_refused_with_its_place(pool: Bench, name: str, times: Any, spec: Any, pointer: str) -> None:
    with pytest.raises((InvalidSchedule, InvalidTask)) as refused:
        pool.set_schedule(name, times, spec)

    assert [fault.pointer for fault in refused.value.errors] == [pointer]
    assert pool.client.keys("taskpool:schedule*") == []


def test_a_declared_schedule_runs_only_while_a_live_pool_declares_it(pool: Bench) -> None:
    times = Every("1h")
    pool.set_schedule("s", times, WORK)
    pool.client.hset("taskpool:schedule:s", mapping={"module": "jobs", "digest": "1", "place": "jobs.py:7"})
    (due_ms,) = pool.make_due("s", times)

    pool.fire()
    assert pool.get_schedule("s").status is ScheduleStatus.UNDECLARED
    assert pool.list_tasks().items == ()

    live = PoolInfo(id="p", host="h", pid=1, queues=(), types=(), workers=(), declares={"jobs": "1"})
    pool.store.run(publish(live, [], ttl_s=60))
    pool.shift("s", 0)
    pool.store.carry_out(occurrences.fire_due(pool.rules, [live]))
    assert pool.get_schedule("s").status is ScheduleStatus.ACTIVE
    assert submitted(pool) == [at(due_ms)]


@pytest.mark.parametrize(
    "timing", ["{not JSON", '{"cron":"0 2 * * *","tz":"Mars/Olympus"}', '{"cron":"x"}', "{}", "[]"]
)
def test_an_unreadable_schedule_keeps_no_other_back(pool: Bench, timing: str) -> None:
    times = Every("1h")
    for name in ("a", "b"):
        pool.set_schedule(name, times, WORK)
        pool.make_due(name, times)
    pool.client.hset("taskpool:schedule:a", "timing", timing)

    pool.fire_all()

    assert len(submitted(pool)) == 1
    left_s = pool.client.zscore("taskpool:schedules:due", "a") - pool.now_ms() / 1000
    assert left_s == pytest.approx(60, abs=30)
    assert [record.name for record in pool.list_schedules().items] == ["b"]
    with pytest.raises(ScheduleNotFound, match="can't be read"):
        pool.get_schedule("a")
