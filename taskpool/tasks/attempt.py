"""Runs one attempt at a task: finds its type, reads its payload, calls it, and says how it ended.

Everything that a task's code can do is turned into an `Outcome` here; nothing is written to Redis. The worker process
decides when to interrupt the task: it raises `TaskStopped` or `SoftTimeout` inside it.

The task's code runs in `run_in_fence`, which catches everything that it raises. The exception and the result are the
task's own objects, so what is kept of them goes through `context.py`, which trusts none of their methods. The functions
here never raise.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any, Final, TypeVar, cast

import msgspec

from taskpool.errors import InvalidPayload, NonRetryable
from taskpool.tasks import hooks
from taskpool.tasks.context import (
    Retry,
    Snooze,
    SoftTimeout,
    TaskContext,
    TaskStopped,
    attribute_of,
    described,
    name_of,
    place_of,
    qualified_name_of,
    seconds_of,
    traceback_of,
)
from taskpool.tasks.fingerprints import fingerprint_of
from taskpool.tasks.payload.encode import encode_value
from taskpool.tasks.questions import Parked
from taskpool.tasks.registry import Registry
from taskpool.text import SecretsGone, hidden
from taskpool.types import MOST_ASKED, RunningTask, TaskStatus
from taskpool.validation import shortened

FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 300.0
LONGEST_TRACEBACK: Final = 20_000
LONGEST_ERROR: Final = 500
MOST_SNOOZES: Final = 1000
"""How often a task may snooze. A task that always does must end as well."""

_SIZED: Final = frozenset({str, bytes, list, dict, tuple})
_EXCEPTIONS: Final = BaseExceptionGroup.__dict__["exceptions"]
_NO_LOOP: Final = ("no running event loop", "no current event loop", "attached to a different loop")

E = TypeVar("E", bound=BaseException)
RunCoroutine = Callable[[Coroutine[Any, Any, Any]], Any]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended. `status`: done, failed, stopped, or scheduled (it runs again after `delay_s`).

    A task that asks a person has the status waiting_confirmation and the `question` as JSON.

    `result` is JSON. `failure` has `reason` (exception, retry, non_retryable, snoozed, timeout, stopped, unknown_task,
    invalid_payload, secrets_gone, too_many_questions, result_not_json, result_too_large, worker_error) and `message`,
    and `exception`, `place`, `fingerprint` and `traceback` after an exception.
    `counts` is false for a snooze: the attempt isn't counted.
    """

    status: TaskStatus
    result: bytes = b""
    error: str = ""
    failure: Mapping[str, Any] = {}
    traceback: str = ""
    delay_s: float = 0.0
    counts: bool = True
    question: bytes = b""


def execute_task(
    running: RunningTask,
    registry: Registry,
    context: TaskContext,
    *,
    max_result_bytes: int,
    run_coroutine: RunCoroutine,
) -> Outcome:
    """Run one attempt to its end, in this thread. `run_coroutine` runs the coroutine of an `async def` task.

    It runs in a copy of the caller's context: a context variable that a task sets ends with its attempt.
    """
    return copy_context().run(_execute, running, registry, context, max_result_bytes, run_coroutine)


def _execute(
    running: RunningTask,
    registry: Registry,
    context: TaskContext,
    max_result_bytes: int,
    run_coroutine: RunCoroutine,
) -> Outcome:
    call = _bind(running, registry, context, run_coroutine)
    if isinstance(call, Outcome):
        return call
    result, error = run_in_fence(call, run_coroutine)
    outcome = _returned(running, result, max_result_bytes) if error is None else raised(running, error)
    if outcome.status is TaskStatus.DONE and context.has_uncommitted:
        _, error = run_in_fence(context.commit, run_coroutine)
        return outcome if error is None else raised(running, error)
    return outcome


def run_in_fence(call: Callable[[], Any], run_coroutine: RunCoroutine) -> tuple[Any, BaseException | None]:
    """Call the task's code, and return its result or its exception.

    A signal handler may raise an interrupt in any frame above this one, and it is caught here. The handler never raises
    in this frame itself (see `workers/process/interruption.py`), so nothing may be added outside of the `try`.
    """
    try:
        result = call()
        if hasattr(type(result), "__await__"):
            ended = run_coroutine(_awaited(result))
            return ended.result, ended.error
        return result, None
    except BaseException as error:  # a task may raise anything, even SystemExit: its process continues
        return None, error


def _call_to_its_end(call: Callable[[], Any], run_coroutine: RunCoroutine) -> Any:
    """Call a plain function, and run the coroutine that it may return, so that hooks around it see how it ends."""
    result = call()
    if not hasattr(type(result), "__await__"):
        return result
    ended = run_coroutine(_awaited(result))
    if ended.error is not None:
        raise ended.error
    return ended.result


class _Ended:
    """The result or the exception of a task's coroutine. It hides them from the event loop, which calls methods of the
    results and exceptions of its tasks."""

    __slots__ = ("error", "result")

    def __init__(self, result: Any = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error


async def _awaited(result: Any) -> _Ended:
    """How a coroutine, a future or another awaitable ends. An `async def` may return an asyncio task.

    Raises:
        asyncio.CancelledError: the task was cancelled, by itself or from outside.
    """
    try:
        while hasattr(type(result), "__await__"):
            result = await result
        return _Ended(result)
    except BaseException as error:
        if _was_cancelled(error):
            raise asyncio.CancelledError from None
        return _Ended(error=error)


def _was_cancelled(error: BaseException) -> bool:
    """Whether an exception is a real cancellation. A task may also raise a CancelledError itself."""
    if not issubclass(type(error), asyncio.CancelledError):
        return False  # a process that the task forked has no loop, and may exit
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def execute_task_async(
    running: RunningTask, registry: Registry, context: TaskContext, *, max_result_bytes: int
) -> Outcome:
    """Run one attempt at an `async def` task on the running event loop.

    Raises:
        asyncio.CancelledError: the caller cancelled it.
    """
    call = _bind(running, registry, context, None)
    if isinstance(call, Outcome):
        return call
    try:
        ended = await _awaited(call())
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # of a function that isn't `async def` and returns an awaitable
        return raised(running, error)
    if ended.error is not None:
        return raised(running, ended.error)
    outcome = _returned(running, ended.result, max_result_bytes)
    if outcome.status is TaskStatus.DONE and context.has_uncommitted:
        ended = await _awaited(asyncio.to_thread(context.commit))
        return outcome if ended.error is None else raised(running, ended.error)
    return outcome


def stopped(reason: str = "stopped") -> Outcome:
    """The outcome of a task that was asked to stop."""
    error = "stopped on request"
    return Outcome(TaskStatus.STOPPED, error=error, failure={"reason": reason, "message": error})


def timed_out(running: RunningTask, error: BaseException | None = None) -> Outcome:
    """The outcome of an attempt that took longer than `timeout_s`: a failure, retried while attempts are left."""
    text = f"timed out: it ran longer than its timeout_s of {running.timeout_s:g} s"
    return _failed(running, text, "timeout", error)


def asked_too_often(running: RunningTask) -> Outcome:
    """The outcome of a task that asks once more than it may."""
    return _refused("too_many_questions", f"it has asked {MOST_ASKED} questions already")


def worker_error(running: RunningTask, error: BaseException) -> Outcome:
    """The outcome of an attempt during which the worker's own code failed: a failure, retried while attempts are left.

    It is a bug in Taskpool, and affects no other task.
    """
    text = f"the worker failed while it ran this task: {name_of(type(error))}: {described(error)}"
    return _failed(running, hidden(text, running.secrets), "worker_error", error)


def _bind(
    running: RunningTask, registry: Registry, context: TaskContext, run_coroutine: RunCoroutine | None
) -> Callable[[], Any] | Outcome:
    if running.refusal is not None:
        return _refused("unknown_task", f"refused: {running.refusal}")
    task_type = registry.get(running.type)
    if task_type is None:
        return _refused("unknown_task", f"this worker doesn't know the task type {running.type!r}")
    try:
        payload = running.payload if running.secrets is None else running.secrets.put_into(running.payload)
        call = task_type.bind(task_type.decode(payload), context)
        if not hooks.arounds:
            return call
        if task_type.runs_on_loop or run_coroutine is None:
            return hooks.surrounded(call, context, is_async=True)
        return hooks.surrounded(partial(_call_to_its_end, call, run_coroutine), context, is_async=False)
    except SecretsGone as error:
        return _refused("secrets_gone", str(error))
    except InvalidPayload as error:
        return _refused("invalid_payload", hidden(described(error), running.secrets))
    except BaseException as error:  # a task class may raise anything in its __init__
        return raised(running, error)


def _returned(running: RunningTask, result: Any, max_result_bytes: int) -> Outcome:
    try:
        if (least := _least_bytes(result)) > max_result_bytes:
            return _too_large(f"at least {least:,}", max_result_bytes)
        encoded = encode_value(result)
        if running.secrets is not None:
            encoded = _encode(running.secrets.hide_in(_decode(encoded)))
    except BaseException as error:  # methods of the result's objects run here: they may raise anything
        text = f"its result is not JSON: {hidden(described(error), running.secrets)}"
        return _refused("result_not_json", shortened(text, LONGEST_ERROR))
    if len(encoded) > max_result_bytes:
        return _too_large(f"{len(encoded):,}", max_result_bytes)
    return Outcome(TaskStatus.DONE, result=encoded)


def _least_bytes(result: Any) -> int:
    """A lower limit of the size of its JSON, quickly found: a list of large texts isn't encoded in vain."""
    kind = type(result)
    if kind is str or kind is bytes:
        return len(result)
    if kind is dict:
        return 2 * len(result) + sum([len(each) for each in result.values() if type(each) in _SIZED])
    if kind is list or kind is tuple:
        return 2 * len(result) + sum([len(each) for each in result if type(each) in _SIZED])
    return 0


def _too_large(size: str, most: int) -> Outcome:
    return _refused(
        "result_too_large",
        f"its result is {size} bytes as JSON; at most {most:,} are kept"
        " (TASKPOOL_MAX_RESULT_BYTES): store it in another place and return a reference",
    )


def raised(running: RunningTask, error: BaseException) -> Outcome:
    """The outcome of an attempt whose code raised."""
    if found_in(error, TaskStopped):
        return stopped()
    if found_in(error, SoftTimeout):
        return timed_out(running, error)
    if parked := found_in(error, Parked):
        return Outcome(TaskStatus.WAITING_CONFIRMATION, question=parked.question)
    error = only_one(error)
    kind = type(error)  # `isinstance` reads the exception's own `__class__`, which may raise
    message = hidden(described(error), running.secrets)
    text = f"{name_of(kind)}: {message}" if message else name_of(kind)
    if issubclass(kind, Snooze):
        return _snoozed(running, text, error)
    if issubclass(kind, Retry):
        after_s = attribute_of(error, "after_s")
        return _failed(running, text, "retry", error, after_s=None if after_s is None else seconds_of(after_s))
    if issubclass(kind, NonRetryable):
        return _failed(running, text, "non_retryable", error, is_final=True)
    if issubclass(kind, RuntimeError) and any(words in message for words in _NO_LOOP):
        text += " (no event loop runs in a plain function: write the task as `async def`, or call asyncio.run)"
    return _failed(running, text, "exception", error)


def only_one(error: BaseException) -> BaseException:
    """The exception in a group of one. An exception in a TaskGroup counts as if the task had raised it."""
    while issubclass(type(error), BaseExceptionGroup):
        inner = _EXCEPTIONS.__get__(error)
        if len(inner) != 1:
            break
        error = inner[0]
    return error


def _snoozed(running: RunningTask, text: str, snooze: BaseException) -> Outcome:
    if running.snoozes >= MOST_SNOOZES:
        return _failed(running, f"{text} (it snoozed {MOST_SNOOZES:,} times already)", "snoozed", snooze, is_final=True)
    after_s = seconds_of(attribute_of(snooze, "after_s"))
    if after_s is None:  # its class doesn't call `Snooze.__init__`, or sets another value
        after_s = backoff_s(running.snoozes + 1, first_s=running.backoff_s, longest_s=running.backoff_max_s)
    text = shortened(text, LONGEST_ERROR)
    failure = {"reason": "snoozed", "message": text}
    return Outcome(TaskStatus.SCHEDULED, error=text, failure=failure, delay_s=after_s, counts=False)


def found_in(error: BaseException, kind: type[E]) -> E | None:
    """The exception of this kind that it is, or that is in its group; or None. An `asyncio.TaskGroup` raises groups.

    Groups may be nested deeper than Python can recurse.
    """
    left = [error]
    while left:
        each = left.pop()
        if issubclass(type(each), kind):
            return cast(E, each)
        if issubclass(type(each), BaseExceptionGroup):
            left += _EXCEPTIONS.__get__(each)
    return None


def _failed(
    running: RunningTask,
    text: str,
    reason: str,
    error: BaseException | None,
    *,
    after_s: float | None = None,
    is_final: bool = False,
) -> Outcome:
    """A failure: scheduled again while attempts are left, after `after_s` if that is given."""
    text = shortened(text, LONGEST_ERROR)
    failure: dict[str, Any] = {"reason": reason, "message": text}
    trace = ""
    if error is not None:
        # Cutting the traceback may cut a secret in two, and half of one isn't masked: mask first, then cut again.
        trace = hidden(traceback_of(error, __name__, 2 * LONGEST_TRACEBACK), running.secrets)[-LONGEST_TRACEBACK:]
        kind = qualified_name_of(type(error))
        failure |= {"exception": kind, "traceback": trace}
        if place := place_of(error, __name__):
            failure["place"] = place.shown
            if reason != "timeout":  # where a timeout found the task says little about its cause
                failure["fingerprint"] = fingerprint_of(kind, place.key)
    if running.attempt < running.max_attempts and not is_final:
        if after_s is None:
            after_s = running.retry_in_s
        if after_s is None:
            after_s = backoff_s(running.attempt, first_s=running.backoff_s, longest_s=running.backoff_max_s)
        return Outcome(TaskStatus.SCHEDULED, error=text, failure=failure, traceback=trace, delay_s=after_s)
    return Outcome(TaskStatus.FAILED, error=text, failure=failure, traceback=trace)


def _refused(reason: str, text: str) -> Outcome:
    """A failure that another attempt would repeat."""
    return Outcome(TaskStatus.FAILED, error=text, failure={"reason": reason, "message": text})


def backoff_s(
    attempt: int, random_unit: float | None = None, *, first_s: float | None = None, longest_s: float | None = None
) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1): a random number from 0 to `first_s` (1), twice
    that, and so on, up to `longest_s` (300). None means the default.

    Exponential back-off with full jitter, from "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015).
    """
    unit = random.random() if random_unit is None else random_unit
    first_s = FIRST_BACKOFF_S if first_s is None else first_s
    longest_s = max(LONGEST_BACKOFF_S, first_s) if longest_s is None else longest_s
    return unit * min(longest_s, first_s * 2.0 ** min(attempt - 1, 30))
