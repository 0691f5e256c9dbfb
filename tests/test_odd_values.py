"""Any value or exception of a task ends with a documented outcome, and its process continues."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from taskpool import Registry, TaskContext, TaskPool, TaskStatus
from taskpool.operations.status import update_status
from taskpool.tasks.attempt import LONGEST_ERROR, LONGEST_TRACEBACK, Outcome, execute_task
from taskpool.testing import RecordingSink
from tests.odd_values import ERRORS, VALUES
from tests.support import PATIENCE_S, eventually
from tests.tasks_for_values import WAYS, hand_over, odd, odd_async
from tests.test_attempt import a_running
from tests.worker_pool import WorkerPool, pool_with_redis

S = TaskStatus
EXPECTED = {S.DONE, S.FAILED, S.SCHEDULED, S.STOPPED}
REASONS = {
    "exception",
    "retry",
    "non_retryable",
    "snoozed",
    "timeout",
    "stopped",
    "result_not_json",
    "result_too_large",
}


def outcome_of(way: str, name: str, source: Any = odd, **fields: Any) -> Outcome:
    """The outcome of one attempt in this process."""
    registry = Registry()
    registry.add(source)
    running = replace(a_running("odd" if source is odd else "odd_async"), payload={"way": way, "name": name}, **fields)
    context = TaskContext(RecordingSink(), id="a", type=running.type)
    return execute_task(running, registry, context, max_result_bytes=100_000, run_coroutine=asyncio.run)


def check(outcome: Outcome) -> None:
    """It is one of those that are documented, and it can be stored."""
    assert outcome.status in EXPECTED
    if outcome.status is S.DONE:
        json.loads(outcome.result)
    else:
        assert outcome.failure["reason"] in REASONS
        assert outcome.error
    assert type(outcome.error) is str
    assert len(outcome.error) <= LONGEST_ERROR
    assert len(outcome.traceback) <= LONGEST_TRACEBACK
    assert 0 <= outcome.delay_s < 1e9
    json.dumps(dict(outcome.failure)).encode()
    update_status(a_running("t"), outcome)


@contextmanager
def quiet() -> Iterator[None]:
    """Without pytest's own handlers: they raise what they can't format, and their report can't be sent to another
    process if it has half of a surrogate pair. (They are added after the fixtures.)"""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [logging.NullHandler()]
    try:
        yield
    finally:
        root.handlers = handlers


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("source", [odd, odd_async])
@pytest.mark.parametrize("name", VALUES)
def test_any_value_in_any_way_is_an_outcome(name: str, source: Any, capsys: Any) -> None:
    with quiet():
        for way in WAYS:
            check(outcome_of(way, name, source))
    gc.collect()  # the coroutines that were never awaited warn here, where that is ignored, and not in a later test
    capsys.readouterr()  # a report with half of a surrogate pair can't be sent to another process


@pytest.mark.parametrize("source", [odd, odd_async])
@pytest.mark.parametrize("name", ERRORS)
def test_any_exception_is_an_outcome(name: str, source: Any) -> None:
    for fields in ({}, {"max_attempts": 5}, {"snoozes": 1000}):
        check(outcome_of("raise", name, source, **fields))


@pytest.mark.parametrize(
    ("name", "after_s"),
    [
        ("busy", None),
        ("after a decimal", 0.25),
        ("after NaN", None),
        ("after a negative", None),
        ("after raising", None),
    ],
)
def test_a_retry_that_says_no_time_waits_for_the_back_off(name: str, after_s: float | None) -> None:
    outcome = outcome_of("raise", name, attempt=1, max_attempts=5, backoff_s=0.5)

    assert (outcome.status, outcome.failure["reason"]) == (S.SCHEDULED, "retry")
    assert outcome.delay_s == after_s if after_s is not None else 0 <= outcome.delay_s <= 0.5


@pytest.mark.parametrize(("name", "after_s"), [("later", None), ("snooze after a fraction", 0.25)])
def test_a_snooze_that_says_no_time_waits_for_the_back_off(name: str, after_s: float | None) -> None:
    outcome = outcome_of("raise", name, backoff_s=0.5)

    assert (outcome.status, outcome.failure["reason"], outcome.counts) == (S.SCHEDULED, "snoozed", False)
    assert outcome.delay_s == after_s if after_s is not None else 0 <= outcome.delay_s <= 0.5


def test_a_stop_within_many_groups_is_a_stop() -> None:
    assert outcome_of("raise", "groups with a stop").status is S.STOPPED


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Fraction(1, 2), 0.5),
        (Fraction(4, 2), 2),
        (Decimal("0.25"), 0.25),
        (Decimal(3), 3),
        (True, 1),
        ("an int's child", 3),
        (2.0, 2.0),
        ((1 << 64) - 1, (1 << 64) - 1),
    ],
)
def test_progress_is_stored_as_a_plain_number(value: Any, stored: float) -> None:
    sink = RecordingSink()
    value = VALUES[value]() if isinstance(value, str) else value

    TaskContext(sink, id="a", type="t").progress(value, value)

    (report,) = sink.reports
    assert report == (stored, stored, None)
    assert [type(number) for number in report[:2]] == [type(stored)] * 2


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1 << 64, "a huge int", "5", b"5", 1j, None, [1]])
def test_progress_that_is_no_number_is_refused_where_the_task_reports_it(value: Any) -> None:
    sink = RecordingSink()

    with pytest.raises(ValueError, match=r"progress: done must be a finite number, 0 or more, not "):
        TaskContext(sink, id="a", type="t").progress(VALUES.get(value, lambda: value)() if value != [1] else value)

    assert sink.reports == []


@pytest.mark.parametrize(
    ("note", "stored"),
    [
        ("half \ud800", "half ?"),
        ("a str's child", "text"),
        (5, "5"),
        ("mute", "<Mute: its text can't be read>"),
        ("leaves", "<Leaves: its text can't be read>"),
        ("x" * 1000, "x" * 500),
        ("a huge int", "<int: its text can't be read>"),
    ],
)
def test_a_note_and_a_log_line_are_plain_text(note: Any, stored: str) -> None:
    sink = RecordingSink()
    note = VALUES[note]() if note in VALUES else note
    context = TaskContext(sink, id="a", type="t")

    context.progress(0, 1, note)
    context.log(note)

    assert sink.reports == [(0, 1, stored)]
    assert sink.lines[0][:500] == stored
    assert type(sink.lines[0]) is str


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.decimals() | st.binary(),
    lambda children: st.lists(children) | st.dictionaries(st.text() | st.integers(), children) | st.tuples(children),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON, st.sampled_from(("return", "done", "total", "note", "log")))
def test_whatever_hypothesis_finds_is_an_outcome(value: Any, way: str) -> None:
    VALUES["found"] = lambda: value
    try:
        check(outcome_of(way, "found"))
    finally:
        del VALUES["found"]


def test_a_large_result_is_refused_before_it_is_written_out() -> None:
    outcome = outcome_of("return", "a list of large texts")

    assert outcome.failure["reason"] == "result_too_large"
    assert "at least 2,000,200 bytes" in outcome.error


# --- in real processes ---------------------------------------------------------------------------------------

TASKS = str(Path(__file__).with_name("tasks_for_values.py"))


@pytest.fixture(scope="module", params=[1, 4], ids=["slots 1", "slots 4"])
def workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None
) -> Iterator[WorkerPool]:
    """One pool for all: it must outlive what its tasks hand over."""
    directory = tmp_path_factory.mktemp(f"slots-{request.param}", numbered=False)
    root = str(Path(__file__).parents[1])
    with pool_with_redis(
        directory, redis_binary, slots=request.param, tasks=TASKS, lease_s=5, env={"PYTHONPATH": root}
    ) as workers:
        yield workers


def test_every_value_ends_its_task_alone_and_the_process_goes_on(workers: WorkerPool) -> None:
    pool = workers.pool
    before = pool.wait(pool.add_task("pid").id, timeout_s=PATIENCE_S).result
    odd_ones = [(way, name) for name in VALUES for way in WAYS if name != "a liar" or way != "return"]
    odd_ones += [("raise", name) for name in ERRORS]
    tasks = {
        pool.add_task(type, {"way": way, "name": name}, timeout_s=20).id: (way, name)
        for at, (way, name) in enumerate(odd_ones)
        for type in (("odd", "odd_async")[at % 2],)
    }

    for id, (way, name) in tasks.items():
        record = pool.wait(id, timeout_s=PATIENCE_S) if not _snoozes(name, way) else _scheduled(pool, id)
        assert record.status in EXPECTED, (way, name)
        assert record.crashes == 0, (way, name)
        assert record.failure is None or record.failure["reason"] in REASONS, (way, name, record.failure)

    after = pool.wait(pool.add_task("pid").id, timeout_s=PATIENCE_S).result
    assert (before, [after]) == (after, workers.pids())
    assert {record.status for record in pool.list_tasks(limit=1000).items} <= EXPECTED | {S.CANCELED}


def _snoozes(name: str, way: str) -> bool:
    return way == "raise" and name in ("later", "snooze after NaN", "snooze after a text", "snooze after a fraction")


def _scheduled(pool: TaskPool, id: str) -> Any:
    record = eventually(lambda: found if (found := pool.get(id)).snoozes else None)
    pool.kill_task(id)
    return record


def test_two_halves_of_a_character_are_joined(workers: WorkerPool) -> None:
    pool = workers.pool
    # Only a process with one slot knows whose the descriptors are.
    ways = ["buffer", "descriptor"] if workers.log.parent.name.endswith("1") else ["buffer"]
    for way in ways * 2:
        task = pool.add_task("halves", {"way": way})
        pool.wait(task.id, timeout_s=PATIENCE_S)

        lines = [line.text for line in pool.logs(task.id).items]

        assert lines == ["aéb", "\ufffd"], way


def test_hand_over_is_what_the_task_types_do() -> None:
    sink = RecordingSink()

    assert hand_over(TaskContext(sink, id="a", type="t"), "log", "none") == "handed over"
    assert sink.lines == ["None"]
