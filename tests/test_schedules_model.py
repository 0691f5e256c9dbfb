"""Schedules through any sequence of changes, runs, downtimes and steps of the clock: what always holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from taskpool import Confirm, Cron, Every, TaskSpec, TaskStatus, task
from taskpool.operations.flow.schedule_values import ScheduleStatus
from taskpool.redis.calls import Call, texts
from taskpool.testing import InlinePool


@task("work")
def work() -> None: ...


CONFIRMED = TaskSpec(type="work", confirm=Confirm("Go?", timeout="300d"), result_ttl_s=864_000)
PLAIN = TaskSpec(type="work", result_ttl_s=864_000)
NAMES = st.sampled_from(["a", "b"])
TIMES = st.one_of(
    st.builds(
        Every,
        st.sampled_from([1800, 3600, 7000]),
        overlap=st.sampled_from(["allow", "skip", "queue_one", "replace"]),
        catch_up=st.sampled_from(["last", "none", "all"]),
        catch_up_limit=st.integers(1, 5),
        jitter=st.sampled_from([None, 300]),
    ),
    st.builds(
        Cron,
        st.sampled_from(["0 2 * * *", "*/30 2 * * *", "15 */3 * * *"]),
        tz=st.just("Europe/Berlin"),
        overlap=st.sampled_from(["allow", "skip"]),
        catch_up=st.sampled_from(["last", "all"]),
    ),
)


class Schedules(RuleBasedStateMachine):
    """A pool with up to two schedules, on a night in which the clock is changed."""

    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.pool = InlinePool(work, now=datetime(2026, 10, 24, 20, tzinfo=UTC))
        self.by_hand: set[str] = set()

    def teardown(self) -> None:
        self.pool.close()

    @rule(target=made, name=NAMES, times=TIMES, spec=st.sampled_from([PLAIN, CONFIRMED]))
    def set(self, name: str, times: Any, spec: TaskSpec) -> str:
        was_paused = name in self.names() and self.status(name) is ScheduleStatus.PAUSED
        record = self.pool.set_schedule(name, times, spec)
        assert (record.status is ScheduleStatus.PAUSED) == was_paused
        return name

    @rule(name=made)
    def pause(self, name: str) -> None:
        if name in self.names():
            assert self.pool.pause_schedule(name).status is ScheduleStatus.PAUSED

    @rule(name=made)
    def resume(self, name: str) -> None:
        if name in self.names():
            assert self.pool.resume_schedule(name).status is ScheduleStatus.ACTIVE

    @rule(name=made)
    def run(self, name: str) -> None:
        if name in self.names():
            self.by_hand.add(self.pool.run_schedule(name).id)

    @rule(name=consumes(made))
    def remove(self, name: str) -> None:
        if name in self.names():
            self.pool.remove_schedule(name)

    @rule(minutes=st.integers(60, 200))
    def advance(self, minutes: int) -> None:
        self.pool.advance(minutes=minutes)

    @rule(minutes=st.integers(60, 3000))
    def no_pool_is_up(self, minutes: int) -> None:
        self.step(minutes)

    @rule(minutes=st.integers(30, 300))
    def redis_s_clock_is_put_back(self, minutes: int) -> None:
        self.step(-minutes)

    @rule(name=made, minutes=st.integers(30, 300), times=TIMES)
    def it_is_put_back_and_a_schedule_is_changed(self, name: str, minutes: int, times: Any) -> None:
        self.pool.advance(minutes=minutes)
        self.step(-minutes)
        self.set(name, times, PLAIN)

    def step(self, minutes: int) -> None:
        self.pool._clock.set((self.pool.now + timedelta(minutes=minutes)).timestamp())

    @rule()
    def confirm_all(self) -> None:
        for record in self.pool.list_tasks(limit=500).items:
            if record.status is TaskStatus.WAITING_CONFIRMATION:
                self.pool.confirm(record.id)
        self.pool.advance(0)

    def names(self) -> list[str]:
        return [each.name for each in self.pool.list_schedules().items]

    def status(self, name: str) -> ScheduleStatus:
        return self.pool.get_schedule(name).status

    @invariant()
    def each_active_schedule_is_due_at_its_next_run(self) -> None:
        due = self.pool.store.run(Call(("ZRANGE", "taskpool:schedules:due", 0, -1), texts))
        active = [each.name for each in self.pool.list_schedules().items if each.status is not ScheduleStatus.PAUSED]
        assert sorted(due) == sorted(active)
        for each in self.pool.list_schedules().items:
            assert (each.next_at is None) == (each.status is not ScheduleStatus.ACTIVE)
            if each.next_at is not None and each.last_at is not None:
                assert each.next_at > each.last_at

    @invariant()
    def no_occurrence_comes_twice_or_out_of_order(self) -> None:
        for name in self.names():
            history = [run for run in reversed(self.pool.get_schedule(name).history) if run.task not in self.by_hand]
            for before, run in pairwise(history):
                assert run.occurrence >= (before.until or before.occurrence + timedelta(milliseconds=1)), history
            assert {run.outcome for run in history} <= {"submitted", "skipped", "missed"}


Schedules.TestCase.settings = settings(
    max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
test_what_always_holds = pytest.mark.long(about_s=8)(Schedules.TestCase)
