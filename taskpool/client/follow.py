"""What goes on for a while: a wait for a task's end, its events, its log. Once begun, it outlives an absent API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import msgspec

from taskpool.client import operations, values
from taskpool.client.request import Answer, Plan, Read, Request, Retrying, Sleep, Tell, sending, strange_answer
from taskpool.client.values import EventStream, Message
from taskpool.errors import TaskNotFound, WaitTimeout
from taskpool.operations.specs import patience_s
from taskpool.types import TaskRecord

T = TypeVar("T")

EARLY_S: Final = 0.05


class Pace(NamedTuple):
    """How long the API may wait for the task's end before it tells how the task stands: the first time, and then."""

    first_s: float
    then_s: float


WAITING: Final = Pace(1.0, 30.0)
"""Soon it has had an answer, and outlives whatever comes then; and few requests are made for nothing."""
WATCHING: Final = Pace(0.0, 0.5)


def follow(id: str, timeout_s: float | None, pace: Pace, retrying: Retrying) -> Plan[TaskRecord]:
    """Tell the task's record at this pace, and when it has ended; return the last one.

    Raises:
        TaskNotFound
        WaitTimeout: it hasn't ended in `timeout_s`.
        InvalidTask: `timeout_s` can't be.
    """
    clock = retrying.clock
    end = clock() + patience_s("timeout_s", timeout_s)
    patience, look_s, soon = retrying, pace.first_s, 0
    while True:
        asked = clock()
        wait_s = max(0.0, min(look_s, end - asked))
        record = yield from sending(operations.get(id, wait_s=wait_s), patience, end)
        yield Tell(record)
        if record.status.is_terminal:
            return record
        if clock() >= end:
            raise WaitTimeout(record, max(timeout_s or 0.0, 0.0))
        soon = soon + 1 if clock() - asked < wait_s - EARLY_S else 0
        if soon:  # that API is stopping, and answers whoever waits at once
            yield Sleep(max(0.0, min(retrying.pause_s(soon), end - clock())))
        patience, look_s = retrying.without_end(), pace.then_s


def events(id: str, after: str | None, retrying: Retrying) -> Plan[None]:
    """Tell each event of a task, until it has ended.

    Raises:
        TaskNotFound
    """
    feed = _Feed(lambda last_id: operations.event_stream(id, last_id), after, retrying)
    while (messages := (yield from feed.take())) is not None:
        for message in messages:
            if message.event == "snapshot":
                event = _read(values.told_snapshot, message)
            elif message.event == "message":
                event = _read(values.told_event, message)
            elif message.event == "gone":
                raise TaskNotFound(id)
            else:  # `resync`: a new snapshot follows
                continue
            yield Tell(event)
            if event.status.is_terminal:
                return


def follow_log(id: str, cursor: str | None, retrying: Retrying) -> Plan[None]:
    """Tell each line of a task's log, until it has ended.

    Raises:
        TaskNotFound
        InvalidTask: the cursor isn't one of a log.
    """
    feed = _Feed(lambda last_id: operations.log_stream(id, last_id), cursor, retrying)
    while (messages := (yield from feed.take())) is not None:
        for message in messages:
            if message.event == "end":
                return
            if message.event == "gone":
                raise TaskNotFound(id)
            if message.event == "message":
                yield Tell(_read(values.told_line, message))


def _read(read: Callable[[Message], T], message: Message) -> T:
    try:
        return read(message)
    except msgspec.DecodeError as error:
        raise strange_answer(Answer(200, {}), str(error)) from error


class _Feed:
    """The messages of a stream, which is opened again behind the last one whenever it ends."""

    def __init__(self, request_of: Callable[[str], Request[bool]], after: str | None, retrying: Retrying) -> None:
        self._request_of = request_of
        self._retrying = retrying
        self._last_id = after or ""
        self._stream: EventStream | None = None
        self._opened = 0
        """How often, since the last message."""

    def take(self) -> Plan[list[Message] | None]:
        """The next messages; None: there will be no more."""
        while True:
            if self._stream is None:
                if self._opened:
                    yield Sleep(self._retrying.pause_s(self._opened - 1))
                if not (yield from sending(self._request_of(self._last_id), self._retrying)):
                    return None
                self._stream = EventStream(self._last_id)
                self._opened += 1
                self._retrying = self._retrying.without_end()
            piece: bytes | None = yield Read()
            if piece is None:
                self._stream = None
            elif messages := self._stream.feed(piece):
                self._last_id, self._opened = messages[-1].id, 1
                return messages
