"""Which requests are sent again, when, and for how long.

Again is what can't be carried out twice by it: what surely never was, and what may be (`Request.again`).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, TypeVar

import msgspec

from taskpool.client.problem import error_of, strange_answer
from taskpool.client.request import Answer, Lost, Plan, Request, Send, Sleep
from taskpool.errors import ApiError, ApiUnavailable, QueueFull, RedisUnavailable, TaskpoolError

T = TypeVar("T")

TIMEOUT_S: Final = 10.0
RETRIES: Final = 6
"""A client's defaults: how long an answer may take, and how often a request is sent again."""

FIRST_S: Final = 0.2
LONGEST_S: Final = 5.0
MOST_S: Final = 30.0

NOTHING_DONE: Final = frozenset({"too-many-streams", "too-many-connections"})
"""Problems with the status 503 of requests that weren't looked at."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """How often a request is sent again, and within how many seconds after it was sent first.

    `clock` tells the time in seconds, `chance` is a number from 0 to 1.
    """

    retries: float = RETRIES
    most_s: float = MOST_S
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def pause_s(self, tried: int, told_s: float | None = None) -> float:
        """How long to wait after so many tries: twice as long each time, and never all clients at once; at least as
        long as the API has told."""
        pause_s = min(FIRST_S * 2.0 ** min(tried, 10), LONGEST_S)
        share = self.chance() / 2
        return max(pause_s * (1 - share), (told_s or 0.0) * (1 + share / 2))

    def without_end(self) -> Retrying:
        """As often as it takes: for what has begun, and is only looked at."""
        return replace(self, retries=math.inf, most_s=math.inf)


def sending(request: Request[T], retrying: Retrying, until: float = math.inf) -> Plan[T]:
    """Send a request, again where that is safe, and no later than at `until` (by the clock of `retrying`).

    Raises:
        TaskpoolError: what the API answered, or ApiUnavailable when it didn't.
    """
    end = min(until, retrying.clock() + retrying.most_s)
    for tried in count():
        try:
            return (yield from _attempt(request))
        except TaskpoolError as error:
            if tried >= retrying.retries or not _is_safe(error, request):
                raise
            pause_s = retrying.pause_s(tried, getattr(error, "retry_after_s", None))
            if retrying.clock() + pause_s >= end:
                raise
        yield Sleep(pause_s)
    raise AssertionError("unreachable")


def _attempt(request: Request[T]) -> Plan[T]:
    reply: Answer | Lost = yield Send(request)
    if isinstance(reply, Lost):
        raise ApiUnavailable(reply.why, was_sent=reply.was_sent)
    if not 200 <= reply.status < 300:
        raise error_of(reply, request.about)
    try:
        return request.read(reply)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise strange_answer(reply, str(error)) from error


def _is_safe(error: TaskpoolError, request: Request[T]) -> bool:
    """Whether the request may be sent again after this error: it wasn't carried out, or it doesn't matter."""
    match error:
        case ApiUnavailable():
            return request.again or not error.was_sent
        case QueueFull():
            return True
        case RedisUnavailable():
            return request.again
        case ApiError():
            nothing_done = error.status == 429 or error.kind in NOTHING_DONE
            return nothing_done or (request.again and error.status in (502, 503, 504))
    return False
