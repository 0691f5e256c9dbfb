"""One attempt: every way in which a task's code can end becomes an outcome, and none ends the worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from taskpool import Registry, SoftTimeout, Task, TaskContext, TaskStopped, task
from taskpool.tasks.attempt import (
    LONGEST_ERROR,
    LONGEST_TRACEBACK,
    Outcome,
    backoff_s,
    execute_task,
    execute_task_async,
    stopped,
    timed_out,
)
from taskpool.testing import RecordingSink
from taskpool.types import RunningTask, TaskStatus

S = TaskStatus


@dataclass
class Point:
    x: int
    y: float = 0.5


def attempt(source: Any, payload: Any = None, **fields: Any) -> Outcome:
    """The outcome of one attempt at a function or a class of tasks."""
    registry = Registry()
    task_type = registry.add(source if isinstance(source, type) else task("t")(source))
    running = replace(a_running(task_type.name), payload={} if payload is None else payload, **fields)
    context = TaskContext(RecordingSink(), id="a", type=task_type.name)
    return execute_task(running, registry, context, max_result_bytes=100, run_coroutine=asyncio.run)


def a_running(type: str) -> RunningTask:
    return RunningTask(
        id="a",
        type=type,
        payload={},
        queue="default",
        attempt=1,
        attempt_id="1",
        worker="w",
        max_attempts=1,
        timeout_s=2.5,
        result_ttl_s=1000,
        failure_ttl_s=2000,
        started_ms=0,
    )


def returns(value: Any) -> Callable[[], Any]:
    def give() -> Any:
        return value

    return give


def raises(error: BaseException | type[BaseException]) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


# --- it ends well --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (None, "null"),
        ({"n": [1, 2.5, "é", None, True]}, '{"n":[1,2.5,"é",null,true]}'),
        (Point(1), '{"x":1,"y":0.5}'),
        ((1, 2), "[1,2]"),
        ({1: "a"}, '{"1":"a"}'),
        (10**30, str(10**30)),
    ],
)
def test_what_a_task_returns_is_kept_as_json(value: Any, result: str) -> None:
    assert attempt(returns(value)) == Outcome(S.DONE, result=result.encode())


def test_a_payload_arrives_as_the_types_of_the_signature() -> None:
    def length(ctx: TaskContext, at: Point, times: int = 2) -> list[Any]:
        assert isinstance(at, Point)
        return [ctx.id, at.x * times]

    assert attempt(length, {"at": {"x": 3}}).result == b'["a",6]'


def test_a_coroutine_is_run_to_its_end() -> None:
    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    assert attempt(later, {"n": 1}).result == b"2"


def test_a_class_gets_an_instance_for_each_attempt() -> None:
    class Count(Task):
        type = "count"
        calls = 0

        def run(self, ctx: TaskContext) -> Any:
            self.calls += 1
            return [self.id, self.calls]

    assert [attempt(Count).result for _ in range(2)] == [b'["a",1]', b'["a",1]']


async def test_an_async_attempt_runs_on_the_loop_that_is_there() -> None:
    registry = Registry()

    @task("t")
    async def here() -> bool:
        return loop is asyncio.get_running_loop()

    registry.add(here)
    loop = asyncio.get_running_loop()
    context = TaskContext(RecordingSink(), id="a", type="t")

    outcome = await execute_task_async(a_running("t"), registry, context, max_result_bytes=100)

    assert outcome.result == b"true"


# --- it fails ------------------------------------------------------------------------------------------------


def test_an_exception_fails_the_task_and_says_where() -> None:
    def divide(by: int) -> float:
        return 1 / by

    outcome = attempt(divide, {"by": 0})

    assert (outcome.status, outcome.error) == (S.FAILED, "ZeroDivisionError: division by zero")
    assert outcome.failure == {
        "reason": "exception",
        "message": outcome.error,
        "exception": "ZeroDivisionError",
        "traceback": outcome.traceback,
        "place": f"test_attempt.py:{divide.__code__.co_firstlineno + 1} in divide",
        "fingerprint": outcome.failure["fingerprint"],
    }
    assert outcome.traceback.startswith("Traceback (most recent call last):\n")
    assert "return 1 / by" in outcome.traceback
    assert "taskpool/tasks/attempt.py" not in outcome.traceback


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError, "ValueError"),
        (ValueError(""), "ValueError"),
        (ValueError("half \ud800"), "ValueError: half ?"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (ExceptionGroup("two", [ValueError("a"), KeyError("b")]), "ExceptionGroup: two (2 sub-exceptions)"),
    ],
)
def test_whatever_is_raised_is_a_failure_of_the_task_alone(error: Any, text: str) -> None:
    outcome = attempt(raises(error))

    assert (outcome.status, outcome.error) == (S.FAILED, text)
    json.dumps(dict(outcome.failure)).encode()
    outcome.traceback.encode()


def test_a_coroutine_that_is_cancelled_from_within_fails() -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError

    assert attempt(cancel).failure["exception"] == "CancelledError"


def test_an_exception_that_cannot_be_shown_is_a_failure_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    outcome = attempt(raises(Mute()))

    assert outcome.status is S.FAILED
    assert "Mute" in outcome.error


def test_a_long_error_and_a_long_traceback_are_cut() -> None:
    outcome = attempt(raises(ValueError("x" * 100_000)))

    assert len(outcome.error) == LONGEST_ERROR
    assert outcome.error.endswith("…")
    assert len(outcome.traceback) == LONGEST_TRACEBACK


def test_endless_recursion_is_a_failure() -> None:
    def deeper() -> Any:
        return deeper()

    assert attempt(deeper).failure["exception"] == "RecursionError"


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {"a": {1j}},
        float("nan"),
        [float("inf")],
        {"a": (float("-inf"),)},
        "\ud800",
        print,
        {(1, 2): 3},
    ],
)
def test_a_result_that_is_no_json_fails_the_task_for_good(value: Any) -> None:
    outcome = attempt(returns(value), max_attempts=5)

    assert (outcome.status, outcome.failure["reason"]) == (S.FAILED, "result_not_json")
    assert outcome.error.startswith("its result is not JSON: ")


def test_a_result_within_itself_fails_the_task() -> None:
    endless: list[Any] = []
    endless.append(endless)

    assert attempt(returns(endless)).failure["reason"] == "result_not_json"


def test_a_result_may_have_just_as_many_bytes_as_are_kept() -> None:
    fits, too_large = attempt(returns("x" * 98)), attempt(returns("é" * 50), max_attempts=5)

    assert fits.status is S.DONE
    assert (too_large.status, too_large.failure["reason"]) == (S.FAILED, "result_too_large")
    assert "102 bytes" in too_large.error
    assert "TASKPOOL_MAX_RESULT_BYTES" in too_large.error


def test_a_payload_that_does_not_fit_fails_the_task_for_good() -> None:
    def wants(n: int) -> None: ...

    outcome = attempt(wants, {"n": "5"}, max_attempts=5)

    assert (outcome.status, outcome.failure["reason"]) == (S.FAILED, "invalid_payload")
    assert "/payload/n" in outcome.error


def test_a_type_this_worker_does_not_know_fails_the_task_for_good() -> None:
    outcome = attempt(returns(1), type="other", max_attempts=5)

    assert (outcome.status, outcome.failure["reason"]) == (S.FAILED, "unknown_task")


def test_what_must_not_run_never_runs() -> None:
    ran = []

    outcome = attempt(lambda: ran.append(1), refusal="it calls os.system", max_attempts=5)

    assert (outcome.status, outcome.failure["reason"]) == (S.FAILED, "unknown_task")
    assert outcome.error == "refused: it calls os.system"
    assert ran == []


def test_a_class_that_cannot_be_made_fails_the_task() -> None:
    class Broken(Task):
        type = "broken"

        def __init__(self) -> None:
            raise ValueError("not today")

        def run(self, ctx: TaskContext) -> None: ...

    assert attempt(Broken).error == "ValueError: not today"


# --- it runs again -------------------------------------------------------------------------------------------


def test_a_failure_is_retried_while_attempts_are_left() -> None:
    outcomes = [attempt(raises(ValueError("no")), attempt=n, max_attempts=3) for n in (1, 2, 3, 4)]

    assert [outcome.status for outcome in outcomes] == [S.SCHEDULED, S.SCHEDULED, S.FAILED, S.FAILED]
    assert all(outcome.failure["reason"] == "exception" for outcome in outcomes)
    assert 0 <= outcomes[0].delay_s <= 1
    assert 0 <= outcomes[1].delay_s <= 2


def test_the_wait_doubles_up_to_five_minutes_and_may_be_anything_below() -> None:
    assert [backoff_s(n, 1) for n in (1, 2, 3, 8, 9, 10, 1000)] == [1, 2, 4, 128, 256, 300, 300]
    assert backoff_s(5, 0) == 0
    assert len({backoff_s(9) for _ in range(20)}) > 1


# --- it is ended from outside --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [TaskStopped, BaseExceptionGroup("group", [TaskStopped()]), BaseExceptionGroup("g", [ValueError(), TaskStopped()])],
)
def test_a_task_that_is_stopped_is_not_retried(error: Any) -> None:
    assert attempt(raises(error), max_attempts=3) == stopped()
    assert (stopped().status, stopped().failure["reason"]) == (S.STOPPED, "stopped")


@pytest.mark.parametrize("error", [SoftTimeout, BaseExceptionGroup("group", [SoftTimeout()])])
def test_a_task_that_took_too_long_says_how_long_it_may(error: Any) -> None:
    outcome = attempt(raises(error))

    assert (outcome.status, outcome.failure["reason"]) == (S.FAILED, "timeout")
    assert outcome.error == "timed out: it ran longer than its timeout_s of 2.5 s"
    assert attempt(raises(error), max_attempts=3).status is S.SCHEDULED


def test_a_task_that_was_killed_for_its_time_says_the_same_without_a_traceback() -> None:
    outcome = timed_out(a_running("t"))

    assert (outcome.error, outcome.traceback) == ("timed out: it ran longer than its timeout_s of 2.5 s", "")


def test_a_task_may_tidy_up_when_it_is_stopped() -> None:
    tidied = []

    def tidy() -> None:
        try:
            raise TaskStopped
        finally:
            tidied.append(True)

    assert attempt(tidy).status is S.STOPPED
    assert tidied == [True]


async def test_a_cancelled_async_attempt_is_for_its_canceller_to_explain() -> None:
    registry = Registry()

    @task("t")
    async def wait() -> None:
        await asyncio.Event().wait()

    registry.add(wait)
    context = TaskContext(RecordingSink(), id="a", type="t")
    running = asyncio.create_task(execute_task_async(a_running("t"), registry, context, max_result_bytes=100))
    await asyncio.sleep(0)

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
