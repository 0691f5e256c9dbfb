"""The scripts of what people are asked, as typed functions; see `scripts`."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from taskpool.redis import keys, rq_job
from taskpool.redis.calls import Call, Script
from taskpool.types import Answer, RunningTask

_confirm, _unanswered, _ask, _answer = map(Script, ("confirm", "unanswered", "ask", "answer"))
_checkpoint: Final = Script("checkpoint")
_encode: Final = msgspec.json.Encoder().encode


class By(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who answers, and why: the name and the id of an API key, if one was asked for."""

    name: str | None = None
    key: str | None = None
    comment: str | None = None


def confirm(id: str, decision: str, by: By, audited: bytes = b"") -> Call[str]:
    """Decide about a task that waits for confirmation, ``confirmed`` or ``rejected``: ``ok``, ``children`` (tasks wait
    for it: release them), ``gone``, ``not_allowed``, ``decided`` (otherwise, before), or RQ's word of its status."""
    return _confirm.word(id, decision, _encode(by), audited)


def unanswered(id: str) -> Call[str]:
    """Have the default answer count if its time has come: ``ok``, ``children``, ``early`` or ``gone``."""
    return _unanswered.word(id)


def ask(running: RunningTask, question: bytes) -> Call[str]:
    """End the attempt, uncounted, and ask a question (JSON): ``ok``, ``stopping``, ``too_many`` or ``lost``."""
    return _ask.word(running.id, running.attempt_id, running.queue, running.worker, question)


def answer(id: str, step: int, answer: bytes, by: By, audited: bytes = b"") -> Call[str]:
    """Answer (JSON) what a task has asked with the step of this number: ``ok``, ``gone``, ``other`` (there is another
    answer), or ``changed`` (it doesn't ask that, and didn't)."""
    return _answer.word(id, step, answer, _encode(by), audited)


def answers_of(id: str) -> Call[tuple[Answer, ...]]:
    """The answers that a task has got in this life, the oldest first."""
    return Call(("HGET", keys.JOB + id, "answers"), rq_job.answers_of, again=True)


def checkpoint(running: RunningTask, state: bytes) -> Call[str]:
    """Keep a running task's state (JSON): ``ok`` or ``lost``."""
    return _checkpoint.word(running.id, running.attempt_id, state)


def checkpoint_of(id: str) -> Call[Any]:
    """The state that a task has kept; None if there is none."""
    return Call(("GET", keys.CHECKPOINT + id), rq_job.json_of, again=True)
