"""What a task says when its attempt didn't work out: again, later, never; and how long the waits are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from taskpool import InvalidTask, NonRetryable, Registry, Retry, Snooze, Task, TaskContext, TaskStatus, task
from taskpool.errors import ConfigurationError
from taskpool.operations.documents import TaskDocument
from taskpool.tasks.attempt import MOST_SNOOZES, Outcome, backoff_s, execute_task
from taskpool.tasks.context import TaskContext as Context
from taskpool.testing import InlinePool, RecordingSink
from taskpool.types import RunningTask

S = TaskStatus


class OutOfPaper(NonRetryable):
    """A task's own."""


@task("ask", max_attempts=3, backoff_s=5, backoff_max_s=8)
def ask(ctx: TaskContext, how: str = "retry", after_s: float | None = None) -> int:
    if how == "retry" and ctx.attempt < 3:
        raise Retry("the line is busy", after_s=after_s)
    if how == "always":
        raise Retry("the line is busy", after_s=0)
    if how == "never":
        raise NonRetryable("there is no such printer")
    if how == "never, in other words":
        raise OutOfPaper
    if how == "wrongly":
        raise Retry(after_s=-1)
    if how == "fail":
        raise ValueError("no luck")
    return ctx.attempt


@task("snooze", max_attempts=1)
def snooze(ctx: TaskContext, after_s: float = 60) -> int:
    ctx.progress(1)
    if len(READY) < 3:
        READY.append(ctx.attempt)
        raise Snooze("not yet", after_s=after_s)
    return ctx.attempt


@task("group", max_attempts=2)
async def group(how: str = "retry") -> None:
    async def retry() -> None:
        raise Retry(after_s=7)

    async def fail() -> None:
        raise ValueError("no luck")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(retry())
        if how == "both":
            tasks.create_task(fail())


class Patient(Task):
    """As a class."""

    type = "patient"
    max_attempts = 2
    backoff_s = 0
    backoff_max_s = 0

    def run(self, ctx: TaskContext) -> None:
        raise ValueError("no luck")


READY: list[int] = []


@pytest.fixture
def pool() -> Iterator[InlinePool]:
    READY.clear()
    with InlinePool(ask, snooze, group, Patient) as pool:
        yield pool


def waits_ms(pool: InlinePool, id: str) -> list[Any]:
    return [event.data["delay_ms"] for event in pool.events(id) if event.event in ("retry", "snoozed")]


def test_a_retry_runs_the_task_again_after_the_time_it_names(pool: InlinePool) -> None:
    task = pool.add_task("ask", {"after_s": 12.5})

    first = pool.run_next()
    record = pool.wait(task.id)

    assert first is not None
    assert (first.status, first.error) == (S.SCHEDULED, "Retry: the line is busy")
    assert first.failure is not None
    assert first.failure["reason"] == "retry"
    assert (record.status, record.result, record.attempt, record.error) == (S.DONE, 3, 3, None)
    assert waits_ms(pool, task.id) == [12_500, 12_500]


def test_a_retry_that_names_no_time_waits_as_long_as_any_failure(pool: InlinePool) -> None:
    record = pool.run("ask")

    first, second = waits_ms(pool, record.id)
    assert 0 <= first <= 5_000
    assert 0 <= second <= 8_000


def test_a_retry_without_attempts_left_fails_the_task(pool: InlinePool) -> None:
    record = pool.run("ask", {"how": "always"}, max_attempts=2)

    assert (record.status, record.attempt, record.error) == (S.FAILED, 2, "Retry: the line is busy")


@pytest.mark.parametrize(
    ("how", "error"),
    [("never", "NonRetryable: there is no such printer"), ("never, in other words", "OutOfPaper")],
)
def test_what_is_not_retryable_fails_at_once(pool: InlinePool, how: str, error: str) -> None:
    record = pool.run("ask", {"how": how})

    assert (record.status, record.attempt, record.error, record.reason) == (S.FAILED, 1, error, "non_retryable")
    assert record.failure is not None
    assert "Traceback" in record.failure["traceback"]


def test_a_snooze_costs_no_attempt(pool: InlinePool) -> None:
    task = pool.add_task("snooze")

    first = pool.run_next()
    record = pool.wait(task.id)

    assert first is not None
    assert (first.status, first.attempt, first.snoozes, first.error, first.progress) == (S.SCHEDULED, 0, 1, None, None)
    assert (record.status, record.attempt, record.snoozes, READY) == (S.DONE, 1, 3, [1, 1, 1])
    assert waits_ms(pool, task.id) == [60_000] * 3
    assert [event.data.get("error") for event in pool.events(task.id) if event.event == "snoozed"] == [
        "Snooze: not yet"
    ] * 3
    assert TaskDocument.of(record).snoozes == 3


def test_a_snooze_for_no_time_goes_to_the_end_of_its_queue(pool: InlinePool) -> None:
    first, second = pool.add_task("snooze", {"after_s": 0}), pool.add_task("ask", {"how": "ok"}, queue="default")

    assert [record.id for record in pool.run_all()[:2]] == [first.id, second.id]


def test_the_last_snooze_a_task_has_fails_it() -> None:
    def outcome(snoozes: int) -> Outcome:
        running = RunningTask(
            id="a", type="snooze", payload={}, queue="default", attempt=1, attempt_id="1", worker="w", max_attempts=5,
            timeout_s=None, result_ttl_s=1, failure_ttl_s=1, started_ms=0, snoozes=snoozes,
        )  # fmt: skip
        READY.clear()
        context = Context(RecordingSink(), id="a", type="snooze")
        registry = Registry(builtins=False)
        registry.add(snooze)
        return execute_task(running, registry, context, max_result_bytes=1000, run_coroutine=asyncio.run)

    before, last = outcome(MOST_SNOOZES - 1), outcome(MOST_SNOOZES)

    assert (before.status, before.counts) == (S.SCHEDULED, False)
    assert (last.status, last.failure["reason"]) == (S.FAILED, "snoozed")
    assert last.error == "Snooze: not yet (it snoozed 1,000 times already)"


def test_a_retry_by_hand_gives_a_task_all_its_snoozes_back(pool: InlinePool) -> None:
    task = pool.add_task("snooze")
    pool.run_next()
    pool.kill_task(task.id)

    record = pool.retry_task(task.id)

    assert record.snoozes == 0


def test_what_one_task_of_a_group_raises_counts_for_all(pool: InlinePool) -> None:
    record = pool.run("group")
    other = pool.run("group", {"how": "both"})

    assert waits_ms(pool, record.id) == [7_000]
    assert (record.error, record.attempt) == ("Retry", 2)
    assert other.error is not None
    assert "ExceptionGroup" in other.error


def test_a_time_that_is_none_is_the_task_s_own_mistake(pool: InlinePool) -> None:
    record = pool.run("ask", {"how": "wrongly"}, max_attempts=1)

    assert record.error == "ValueError: Retry(after_s=...) must be a number of seconds from 0 to 316224000, not -1"


@pytest.mark.parametrize("after_s", [-1, float("inf"), float("nan"), "5"])
def test_a_snooze_takes_seconds(after_s: Any) -> None:
    with pytest.raises(ValueError, match="must be a number of seconds"):
        Snooze(after_s=after_s)


def test_a_class_has_its_own_waits(pool: InlinePool) -> None:
    record = pool.run("patient")

    assert waits_ms(pool, record.id) == [0]
    assert (record.backoff_s, record.backoff_max_s) == (0, 0)


def test_a_submission_chooses_other_waits(pool: InlinePool) -> None:
    task = pool.add_task("ask", {"how": "fail"}, max_attempts=9, backoff_s=0.25, backoff_max_s=0.5)

    record = pool.wait(task.id)

    assert (task.backoff_s, task.backoff_max_s) == (record.backoff_s, record.backoff_max_s) == (0.25, 0.5)
    assert len(waits_ms(pool, task.id)) == 8
    assert max(waits_ms(pool, task.id)) <= 500


@task("alone", on_lost_lease="kill")
def alone() -> None: ...


class AloneAsAClass(Task):
    type = "alone_as_a_class"
    on_lost_lease = "kill"

    def run(self, ctx: TaskContext) -> None: ...


@pytest.mark.parametrize("type", ["alone", "alone_as_a_class"])
def test_a_type_says_what_becomes_of_an_attempt_without_a_lease_and_a_submission_says_otherwise(type: str) -> None:
    with InlinePool(alone, AloneAsAClass) as pool:
        ids = [pool.add_task(type, on_lost_lease=how).id for how in (None, "kill", "continue")]
        records = [pool.wait(id) for id in ids]

        assert [record.on_lost_lease for record in records] == ["kill", "kill", "continue"]


def test_wrong_words_for_a_lost_lease_are_refused(pool: InlinePool) -> None:
    wrong: Any = "stop"

    with pytest.raises(InvalidTask, match="/on_lost_lease: must be 'continue' or 'kill'"):
        pool.add_task("ask", on_lost_lease=wrong)

    with pytest.raises(ConfigurationError, match="on_lost_lease must be 'continue' or 'kill', not 'stop'"):
        Registry(builtins=False).add(task("wrong", on_lost_lease=wrong)(lambda: None))


def test_wrong_waits_are_refused(pool: InlinePool) -> None:
    with pytest.raises(InvalidTask, match="/backoff_s: must be a number of seconds"):
        pool.add_task("ask", backoff_s=-1)

    with pytest.raises(ConfigurationError, match="backoff_max_s must be a number of seconds from 0 to "):
        Registry(builtins=False).add(task("wrong", backoff_max_s=-1)(lambda: None))


@pytest.mark.parametrize(
    ("attempt", "options", "longest"),
    [
        (1, {}, 1), (3, {}, 4), (20, {}, 300), (3, {"first_s": 10}, 40), (9, {"first_s": 10, "longest_s": 60}, 60),
        (1, {"first_s": 900}, 900), (1, {"longest_s": 0.5}, 0.5), (2, {"first_s": 0}, 0),
    ],
)  # fmt: skip
def test_the_waits_double_up_to_the_longest(attempt: int, options: dict[str, float], longest: float) -> None:
    assert backoff_s(attempt, 1.0, **options) == longest
    assert backoff_s(attempt, 0.0, **options) == 0
