"""One attempt at a task: find its type, read the payload, call it, and say how it ended.

Everything a task's code can do is turned into an `Outcome` here; nothing is written to Redis. The worker process
decides when to interrupt it (it raises `TaskStopped` or `SoftTimeout` inside the task).
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import msgspec

from taskpool.context import TaskContext
from taskpool.errors import InvalidPayload
from taskpool.interrupts import NonRetryable, Retry, Snooze, SoftTimeout, TaskStopped
from taskpool.payload.encode import encode_value
from taskpool.payload.faults import NotJson
from taskpool.registry import Registry
from taskpool.retry import backoff_s
from taskpool.secret import SecretsGone, hidden
from taskpool.types import RunningTask, TaskStatus

LONGEST_TRACEBACK: Final = 20_000
LONGEST_ERROR: Final = 500
MOST_SNOOZES: Final = 1000
"""How often a task may snooze: one that always does ends some day."""

RunCoroutine = Callable[[Coroutine[Any, Any, Any]], Any]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended. `status`: done, failed, stopped, or scheduled (it runs again after `delay_s`).

    `result` is JSON. `failure` has `reason` (exception, retry, non_retryable, snoozed, timeout, stopped, unknown_task,
    invalid_payload, secrets_gone, result_not_json, result_too_large) and, where there was one, `exception`, `message`
    and `traceback`. With `counts` false the attempt, which is to be scheduled, isn't counted: a snooze.
    """

    status: TaskStatus
    result: bytes = b""
    error: str = ""
    failure: Mapping[str, Any] = {}
    traceback: str = ""
    delay_s: float = 0.0
    counts: bool = True


def execute_task(
    running: RunningTask,
    registry: Registry,
    context: TaskContext,
    *,
    max_result_bytes: int,
    run_coroutine: RunCoroutine,
) -> Outcome:
    """Run one attempt to its end, in this thread. `run_coroutine` runs what an `async def` task returns."""
    call = _bind(running, registry, context)
    if isinstance(call, Outcome):
        return call
    try:
        result = call()
        if hasattr(type(result), "__await__"):
            result = run_coroutine(_awaited(result))
    except BaseException as error:  # a task may raise anything, SystemExit too: its process goes on
        return _raised(running, error)
    return _returned(running, result, max_result_bytes)


async def execute_task_async(
    running: RunningTask, registry: Registry, context: TaskContext, *, max_result_bytes: int
) -> Outcome:
    """Run one attempt at an `async def` task on the running event loop.

    Raises:
        asyncio.CancelledError: whoever runs it cancelled it, and says why.
    """
    call = _bind(running, registry, context)
    if isinstance(call, Outcome):
        return call
    try:
        result = await _awaited(call())
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # as above
        return _raised(running, error)
    return _returned(running, result, max_result_bytes)


async def _awaited(result: Any) -> Any:
    """What is at the end of a coroutine, a future or another awaitable. An `async def` may return an asyncio task."""
    while hasattr(type(result), "__await__"):
        result = await result
    return result


def stopped(reason: str = "stopped") -> Outcome:
    """The outcome of a task that was asked to stop."""
    error = "stopped on request"
    return Outcome(TaskStatus.STOPPED, error=error, failure={"reason": reason, "message": error})


def timed_out(running: RunningTask, error: BaseException | None = None) -> Outcome:
    """The outcome of an attempt that took longer than `timeout_s`: a failure, retried while attempts are left."""
    text = f"timed out: it ran longer than its timeout_s of {running.timeout_s:g} s"
    return _failed(running, text, "timeout", error)


def _bind(running: RunningTask, registry: Registry, context: TaskContext) -> Callable[[], Any] | Outcome:
    if running.refusal is not None:
        return _refused("unknown_task", f"refused: {running.refusal}")
    task_type = registry.get(running.type)
    if task_type is None:
        return _refused("unknown_task", f"this worker doesn't know the task type {running.type!r}")
    try:
        payload = running.payload if running.secrets is None else running.secrets.put_into(running.payload)
        return task_type.bind(task_type.decode(payload), context)
    except SecretsGone as error:
        return _refused("secrets_gone", str(error))
    except InvalidPayload as error:
        return _refused("invalid_payload", hidden(str(error), running.secrets))
    except BaseException as error:  # a task class may raise anything in its __init__
        return _raised(running, error)


def _returned(running: RunningTask, result: Any, max_result_bytes: int) -> Outcome:
    try:
        encoded = encode_value(result)
        if running.secrets is not None:
            encoded = _encode(running.secrets.hide_in(_decode(encoded)))
    except NotJson as error:
        return _refused("result_not_json", f"its result is not JSON: {hidden(_clean(str(error)), running.secrets)}")
    if len(encoded) > max_result_bytes:
        return _refused(
            "result_too_large",
            f"its result is {len(encoded):,} bytes as JSON; at most {max_result_bytes:,} are kept"
            " (TASKPOOL_MAX_RESULT_BYTES): store it elsewhere and return where",
        )
    return Outcome(TaskStatus.DONE, result=encoded)


def _raised(running: RunningTask, error: BaseException) -> Outcome:
    if _is_or_holds(error, TaskStopped):
        return stopped()
    if _is_or_holds(error, SoftTimeout):
        return timed_out(running, error)
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # what one of a TaskGroup's tasks raised counts as if the task itself had
    message = hidden(_message(error), running.secrets)
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    match error:
        case Snooze():
            return _snoozed(running, text, error)
        case Retry():
            return _failed(running, text, "retry", error, after_s=error.after_s)
        case NonRetryable():
            return _failed(running, text, "non_retryable", error, is_final=True)
    return _failed(running, text, "exception", error)


def _snoozed(running: RunningTask, text: str, snooze: Snooze) -> Outcome:
    if running.snoozes >= MOST_SNOOZES:
        return _failed(running, f"{text} (it snoozed {MOST_SNOOZES:,} times already)", "snoozed", snooze, is_final=True)
    text = _shortened(text)
    failure = {"reason": "snoozed", "message": text}
    return Outcome(TaskStatus.SCHEDULED, error=text, failure=failure, delay_s=snooze.after_s, counts=False)


def _is_or_holds(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether it is one, or a group with one in it: what passes through an `asyncio.TaskGroup` comes out as a group."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(kind) is not None
    return isinstance(error, kind)


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
    text = _shortened(text)
    failure: dict[str, Any] = {"reason": reason, "message": text}
    trace = ""
    if error is not None:
        whole = _clean("".join(traceback.format_exception(error.with_traceback(_users_part(error)))))
        trace = hidden(whole, running.secrets)[-LONGEST_TRACEBACK:]
        failure |= {"exception": type(error).__qualname__, "traceback": trace}
    if running.attempt < running.max_attempts and not is_final:
        if after_s is None:
            after_s = running.retry_in_s
        if after_s is None:
            after_s = backoff_s(running.attempt, first_s=running.backoff_s, longest_s=running.backoff_max_s)
        return Outcome(TaskStatus.SCHEDULED, error=text, failure=failure, traceback=trace, delay_s=after_s)
    return Outcome(TaskStatus.FAILED, error=text, failure=failure, traceback=trace)


def _refused(reason: str, text: str) -> Outcome:
    """A failure that another attempt would only repeat."""
    return Outcome(TaskStatus.FAILED, error=text, failure={"reason": reason, "message": text})


def _users_part(error: BaseException) -> Any:
    """The traceback from the task's own first line on: our frames above it help nobody."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") == __name__:
        trace = trace.tb_next
    return trace if trace is not None else error.__traceback__


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_ERROR else text[: LONGEST_ERROR - 1] + "…"


def _message(error: BaseException) -> str:
    try:
        return _clean(str(error))
    except Exception:  # it is a task's own class: its text may fail as well
        return "<its text can't be read>"


def _clean(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()
