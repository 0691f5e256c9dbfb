"""The tools for users' tests: the pool that runs tasks inline."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskpool import (
    InvalidPayload,
    Registry,
    Retry,
    Task,
    TaskContext,
    TaskNotFound,
    TaskSpec,
    TaskStatus,
    UniqueConflict,
    UnknownType,
    WaitTimeout,
    task,
)
from taskpool.errors import ConfigurationError
from taskpool.settings import Settings
from taskpool.testing import InlinePool, RecordingSink, inline_pool

S = TaskStatus
__all__ = ["inline_pool"]


@task("add", queue="sums", max_attempts=2)
def add(ctx: TaskContext, a: int, b: int = 1) -> int:
    ctx.progress(1, 2, note="half")
    ctx.log("adding")
    return a + b


@task("fail")
def fail() -> None:
    raise ValueError("no luck")


@task("sum_up")
def sum_up(ctx: TaskContext) -> dict[str, Any]:
    return dict(ctx.parents)


@task("nap")
async def nap(seconds: float) -> float:
    await asyncio.sleep(0)
    return seconds


class Endless(Task):
    type = "endless"

    def run(self, ctx: TaskContext) -> None:
        while True:
            ctx.raise_if_cancelled()
            stop(ctx.id)


def stop(id: str) -> None:
    """Replaced by a test."""


@pytest.fixture
def pool() -> Any:
    with InlinePool(add, fail, sum_up, nap, Endless) as pool:
        yield pool


def test_a_task_runs_inline_to_a_complete_record(pool: InlinePool) -> None:
    task = pool.add_task("add", {"a": 2}, tags=["t"])

    record = pool.wait(task.id)

    assert task.status is S.QUEUED
    assert (record.status, record.result, record.queue, record.tags, record.attempt, record.max_attempts) == (
        S.DONE, 3, "sums", ("t",), 1, 2,
    )  # fmt: skip
    assert record.progress == {"done": 1, "total": 2, "note": "half"}
    assert pool.log_of(task.id) == ["adding"]
    assert [(event.seq, event.event) for event in pool.events(task.id)] == [
        (1, "queued"), (2, "started"), (3, "progress"), (4, "log"), (5, "done"),
    ]  # fmt: skip
    assert pool.list_tasks(tag="t").items == (record,)
    assert pool.run_all() == []


def test_it_takes_the_task_function_itself(pool: InlinePool) -> None:
    assert pool.run(add, a=1, b=2).result == 3
    assert pool.run(nap, seconds=0.5).result == 0.5


def test_a_failure_is_retried_without_waiting_for_its_time(pool: InlinePool) -> None:
    record = pool.run("fail", max_attempts=3)

    assert (record.status, record.error, record.attempt) == (S.FAILED, "ValueError: no luck", 3)
    assert record.failure is not None
    assert record.failure["traceback"].count("Traceback") == 1
    assert [event.event for event in pool.events(record.id)] == [
        "queued", "started", "retry", "queued", "started", "retry", "queued", "started", "failed",
    ]  # fmt: skip


def test_delayed_tasks_run_last_in_the_order_of_their_times(pool: InlinePool) -> None:
    late = pool.add_task("add", {"a": 3}, delay_s=7200)
    soon = pool.add_task("add", {"a": 2}, delay_s=60)
    now = pool.add_task("add", {"a": 1})

    ran = pool.run_all()

    assert [(record.id, record.result) for record in ran] == [(now.id, 2), (soon.id, 3), (late.id, 4)]


def test_a_child_reads_its_parents_results_in_order(pool: InlinePool) -> None:
    first, second = pool.add_tasks([TaskSpec(type="add", payload={"a": n}) for n in (1, 2)])

    record = pool.run("sum_up", depends_on=[second.id, first.id])

    assert list(record.result.items()) == [(second.id, 3), (first.id, 2)]


def test_a_chain_behind_a_failure_is_canceled(pool: InlinePool) -> None:
    failing = pool.add_task("fail")
    child = pool.add_task("sum_up", depends_on=[failing.id])
    grandchild = pool.add_task("sum_up", depends_on=[child.id])

    record = pool.wait(grandchild.id)

    assert [pool.get(id).status for id in (failing.id, child.id)] == [S.FAILED, S.CANCELED]
    assert (record.status, record.reason) == (S.CANCELED, "dependency_failed")


def test_a_coroutine_function_runs_in_a_plain_test(pool: InlinePool) -> None:
    assert pool.run("nap", {"seconds": 1.5}).result == 1.5


async def test_a_coroutine_function_runs_in_an_async_test(pool: InlinePool) -> None:
    assert pool.run("nap", {"seconds": 1.5}).result == 1.5


def test_a_task_that_is_asked_to_stop_ends_as_stopped(pool: InlinePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.stop", pool.kill_task)

    record = pool.run("endless")

    assert (record.status, record.reason) == (S.STOPPED, "stopped")


def test_waiting_with_nothing_left_to_run_raises(pool: InlinePool) -> None:
    task = pool.add_task("add", {"a": 1})
    pool.run_task(["sums"], worker="somebody else", attempt_id="a1")

    with pytest.raises(WaitTimeout) as over:
        pool.wait(task.id)

    assert over.value.record.status is S.IN_PROGRESS


def test_what_does_not_fit_is_refused_as_in_production(pool: InlinePool) -> None:
    with pytest.raises(InvalidPayload):
        pool.run("add", {"a": "1"})
    with pytest.raises(UnknownType):
        pool.run("ad", {"a": 1})

    assert pool.list_tasks().items == ()


def test_two_pools_share_nothing() -> None:
    with InlinePool(add) as one, InlinePool(add) as other:
        one.add_task("add", {"a": 1})

        assert other.run_all() == []
        assert len(one.run_all()) == 1


def test_a_pool_takes_files_settings_and_no_built_ins(tmp_path: Path) -> None:
    file = tmp_path / "tasks_of_inline_test.py"
    file.write_text('from taskpool import task\n@task("big")\ndef big(): return "x" * 100\n')

    with InlinePool(str(file), builtins=False, settings=Settings(max_result_bytes=50)) as pool:
        record = pool.run("big")

    assert isinstance(pool.registry, Registry)
    assert pool.registry.names() == ["big"]
    assert record.failure is not None
    assert record.failure["reason"] == "result_too_large"


def test_the_fixture_has_the_built_in_types_and_takes_more(inline_pool: InlinePool) -> None:
    inline_pool.use(add)

    assert inline_pool.run("echo", {"message": [1]}).result == [1]
    assert inline_pool.run("add", {"a": 1}).result == 2


def test_a_task_can_be_called_directly_with_a_recording_context() -> None:
    ctx = TaskContext(sink := RecordingSink(results={"p": 4}), id="t1", type="add")

    result = add(ctx, 1)

    assert (result, sink.reports, sink.lines) == (2, [(1, 2, "half")], ["adding"])
    assert sum_up(ctx) == {"p": 4}
    assert not ctx.cancelled
    sink.is_stopped = True
    assert ctx.cancelled


@pytest.mark.parametrize("numbers", [(-1, None), (float("nan"), None), (1, float("inf"))])
def test_progress_that_is_no_number_is_refused(numbers: tuple[float, float | None]) -> None:
    ctx = TaskContext(sink := RecordingSink(), id="t1", type="add")

    with pytest.raises(ValueError, match="must be a finite number, 0 or more"):
        ctx.progress(*numbers)

    assert sink.reports == []


def test_a_task_submitted_and_waited_for_at_once_runs(inline_pool: InlinePool) -> None:
    ended = inline_pool.add_and_wait(TaskSpec(type="echo", payload={"message": "hello"}))

    assert ended.result == "hello"


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fakeredis", None)
    monkeypatch.delitem(sys.modules, "taskpool.testing")

    with pytest.raises(ModuleNotFoundError, match=r'needs fakeredis: pip install "taskpool-jobs\[testing\]"'):
        importlib.import_module("taskpool.testing")


# --- the clock ----------------------------------------------------------------------------------------------------


@task("flaky", max_attempts=3, backoff_s=60)
def flaky(ctx: TaskContext) -> int:
    if ctx.attempt < 3:
        raise Retry(after_s=60 * ctx.attempt)
    return ctx.attempt


START = datetime(2026, 10, 24, 12, tzinfo=UTC)


@pytest.fixture
def clocked() -> Iterator[InlinePool]:
    with InlinePool(add, fail, flaky, now=START) as pool:
        yield pool


def test_time_passes_only_by_advance_and_each_delayed_task_runs_at_its_time(clocked: InlinePool) -> None:
    late = clocked.add_task("add", {"a": 2}, delay="3h")
    soon = clocked.add_task("add", {"a": 1}, delay="1h")

    assert [record.id for record in clocked.advance(minutes=59)] == []
    assert [record.id for record in clocked.advance("2h")] == [soon.id]
    assert [record.id for record in clocked.advance(days=1)] == [late.id]

    assert soon.run_at is not None
    assert abs(clocked.now - START - timedelta(days=1, hours=2, minutes=59)) < timedelta(minutes=1)


def test_what_runs_meanwhile_has_the_times_of_the_clock(clocked: InlinePool) -> None:
    task = clocked.add_task("add", {"a": 1}, run_at=START + timedelta(hours=6), result_ttl_s=7 * 86_400)

    (record,) = clocked.advance(hours=24)

    assert record.id == task.id
    for at in (record.enqueued_at, record.started_at, record.ended_at):
        assert at is not None
        assert timedelta(0) <= at - START - timedelta(hours=6) < timedelta(minutes=1)


def test_a_retry_comes_at_its_time(clocked: InlinePool) -> None:
    clocked.add_task("flaky")

    ran = clocked.advance(minutes=10)

    assert [(record.status, record.attempt) for record in ran] == [(S.SCHEDULED, 1), (S.SCHEDULED, 2), (S.DONE, 3)]
    starts = [record.started_at - START for record in ran if record.started_at is not None]
    assert [round(start.total_seconds() / 60) for start in starts] == [0, 1, 3]


def test_what_is_not_started_in_time_expires(clocked: InlinePool) -> None:
    parent = clocked.add_task("add", {"a": 1}, delay="2h")
    child = clocked.add_task("add", {"a": 2}, depends_on=[parent.id], expires_in_s=3600)

    clocked.advance(hours=3)

    assert (clocked.get(child.id).status, clocked.get(child.id).reason) == (S.CANCELED, "expired")
    assert clocked.get(parent.id).status is S.DONE


def test_records_and_unique_keys_expire_with_the_clock(clocked: InlinePool) -> None:
    first = clocked.run("add", {"a": 1}, unique_key="k", unique_for_s=3600, result_ttl_s=60)
    with pytest.raises(UniqueConflict):
        clocked.add_task("add", {"a": 1}, unique_key="k")

    clocked.advance(minutes=59)
    assert clocked.get(first.id).status is S.DONE
    clocked.advance(minutes=2)

    with pytest.raises(TaskNotFound):
        clocked.get(first.id)
    assert clocked.list_tasks().items == ()
    assert clocked.add_task("add", {"a": 1}, unique_key="k").status is S.QUEUED


def test_a_record_that_another_task_needs_does_not_hold_the_clock_up(clocked: InlinePool) -> None:
    parent = clocked.add_task("add", {"a": 1}, result_ttl_s=60)
    child = clocked.add_task("add", {"a": 2}, depends_on=[parent.id], delay="2d")

    assert [record.id for record in clocked.advance(days=3)] == [parent.id, child.id]


def test_run_all_needs_no_time(clocked: InlinePool) -> None:
    clocked.add_task("add", {"a": 1}, delay="100d")

    (record,) = clocked.run_all()

    assert record.status is S.DONE
    assert clocked.now - START < timedelta(minutes=1)


@pytest.mark.parametrize("span", [{"hours": -1}, {"days": 1e9}, {"span": "soon"}, {"span": -1}])
def test_a_span_that_is_no_duration_is_refused(clocked: InlinePool, span: dict[str, Any]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        clocked.advance(**span)

    assert clocked.now - START < timedelta(minutes=1)


def test_the_clock_of_a_pool_is_its_own(pool: InlinePool, clocked: InlinePool) -> None:
    before = time.time()
    clocked.advance(days=1000)
    there = clocked.add_task("add", {"a": 1})
    here = pool.add_task("add", {"a": 1})

    assert before <= time.time() < before + 60
    assert here.created_at is not None
    assert there.created_at is not None
    assert there.created_at - START >= timedelta(days=1000)
    assert abs(here.created_at.timestamp() - before) < 60


def test_the_clock_starts_at_a_time_with_a_zone() -> None:
    with pytest.raises(ConfigurationError, match="needs a time zone"):
        InlinePool(now=datetime(2026, 10, 24, 12))


def test_records_that_others_needed_go_when_their_time_is_over() -> None:
    with InlinePool() as pool:
        with pool.workflow("w") as workflow:
            first = workflow.add("first", "echo", {"message": 1})
            workflow.add("second", "echo", {"message": 2}, after=first)
        parent = pool.add_task("echo", {"message": 3})
        pool.add_task("echo", {"message": 4}, depends_on=[parent.id])
        pool.run_all()
        assert pool.list_tasks().items

        pool.advance(days=60)

        assert pool.list_tasks().items == ()
