"""Where a running task is: its supervisor has its process write its stacks, and answers through Redis."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from taskpool.errors import TaskConflict, TaskNotFound
from taskpool.operations.records import check_id
from taskpool.redis import keys, rq_job
from taskpool.redis.calls import Call, Plan, one
from taskpool.types import TaskStatus
from taskpool.types.fleet import Stack

COMMAND: Final = "taskpool-stack"
POLL_S: Final = 0.05
POLLS: Final = 80
"""How often the answer is looked for: for 4 seconds."""
ANSWER_TTL_S: Final = 30

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Stack).decode


class Asked(NamedTuple):
    """A request for the stack of a task; the answer comes under the token."""

    id: str
    status: TaskStatus
    token: str


def ask_for_stack(id: str) -> Plan[Asked]:
    """Ask the worker process of a running task where it is. Raises: TaskNotFound, TaskConflict (it doesn't run)."""
    check_id(id)
    command = ("HMGET", keys.JOB + id, "data", "status", "stop_ms", "asked_ms", "worker_name", "attempt_id")
    h: Sequence[bytes | None] = yield from one(Call(command, list, again=True))
    if h[0] is None:
        raise TaskNotFound(id)
    status = rq_job.status_of(*h[1:4])
    if status not in (TaskStatus.IN_PROGRESS, TaskStatus.STOPPING):
        raise TaskConflict(id, status, f"task {id} doesn't run: it is {status}")
    asked = Asked(id, status, secrets.token_hex(16))
    worker, attempt_id = rq_job.text_of(h[4]) or "", rq_job.text_of(h[5]) or ""
    message = _encode({"command": COMMAND, "attempt_id": attempt_id, "token": asked.token})
    if not (yield from one(Call(("PUBLISH", keys.COMMANDS + worker, message), int))):
        raise unanswered(asked)
    return asked


def answer_of(asked: Asked) -> Call[Stack | None]:
    """The answer, if it has come."""
    return Call(("GET", keys.STACK + asked.token), lambda reply: None if reply is None else _decode(reply), again=True)


def answer(token: str, stack: Stack) -> Call[None]:
    """Answer a request with this token."""
    return Call(("SET", keys.STACK + token, _encode(stack), "EX", ANSWER_TTL_S), lambda reply: None, again=True)


def unanswered(asked: Asked) -> TaskConflict:
    """The error if no answer comes."""
    text = f"the worker process of task {asked.id} doesn't tell where it is: it may have ended, or be a plain RQ worker"
    return TaskConflict(asked.id, asked.status, text)


def for_tenants(stack: Stack) -> Stack:
    """The same without the stacks of other tasks in the same process."""
    lines = [f'  File "{each.file}", line {each.line} in {each.function}\n' for each in stack.frames]
    return replace(stack, text="".join(lines))
