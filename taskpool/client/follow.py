"""Operations of a client that go on for a while: waiting for a task, and following its events or its log.

Once the API has answered the first request, they continue after an outage of the API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from taskpool.client import operations, values
from taskpool.client.request import Answer, Emit, Plan, Read, Request, Retrying, Sleep, sending, strange_answer
from taskpool.client.values import EventStream, Message
from taskpool.errors import TaskNotFound, WaitTimeout
from taskpool.operations.specs import patience_s
from taskpool.types import TaskRecord

EARLY_S: Final = 0.05


class Pace(NamedTuple):
    """How long the API may wait for the task's end before it answers: the first time, and each time after that."""

    first_s: float
    then_s: float


WAITING: Final = Pace(1.0, 30.0)
"""The first answer comes soon, because only then a wait continues after an outage. Later ones take few requests."""
WATCHING: Final = Pace(0.0, 0.5)


def follow(id: str, timeout_s: float | None, pace: Pace, retrying: Retrying) -> Plan[TaskRecord]:
    """Emit the task's record at this pace, and when it has ended; return the last one.

    Raises:
        TaskNotFound
        WaitTimeout: it hasn't ended in `timeout_s`.
        InvalidTask: `timeout_s` isn't a valid number of seconds.
    """
    clock = retrying.clock
    end = clock() + patience_s("timeout_s", timeout_s)
    patience, look_s, early = retrying, pace.first_s, 0
    while True:
        asked = clock()
        wait_s = max(0.0, min(look_s, end - asked))
        record = yield from sending(operations.get(id, wait_s=wait_s), patience, end)
        yield Emit(record)
        if record.status.is_terminal:
            return record
        if clock() >= end:
            raise WaitTimeout(record, max(timeout_s or 0.0, 0.0))
        early = early + 1 if clock() - asked < wait_s - EARLY_S else 0
        if early:  # that API is stopping, and answers every wait at once
            yield Sleep(max(0.0, min(retrying.pause_s(early), end - clock())))
        patience, look_s = retrying.without_end(), pace.then_s


def events(id: str, after: str | None, retrying: Retrying) -> Plan[None]:
    """Emit each event of a task, until it has ended.

    Raises:
        TaskNotFound
    """
    readers = {"snapshot": values.told_snapshot, "message": values.told_event}
    return _messages(
        id, operations.event_stream, after, retrying, readers=readers, is_last=lambda event: event.status.is_terminal
    )


def follow_log(id: str, cursor: str | None, retrying: Retrying) -> Plan[None]:
    """Emit each line of a task's log, until it has ended.

    Raises:
        TaskNotFound
        InvalidTask: the cursor isn't one of a log.
    """
    return _messages(id, operations.log_stream, cursor, retrying, readers={"message": values.told_line})


def _messages(
    id: str,
    request_of: Callable[[str, str], Request[bool]],
    after: str | None,
    retrying: Retrying,
    *,
    readers: Mapping[str, Callable[[Message], Any]],
    is_last: Callable[[Any], bool] = lambda value: False,
) -> Plan[None]:
    """Emit the messages of a stream that have a reader. A stream that breaks off is opened again after the last one."""
    last_id, opened = after or "", 0  # how often it was opened since the last message
    while True:
        if opened:
            yield Sleep(retrying.pause_s(opened - 1))
        if not (yield from sending(request_of(id, last_id), retrying)):
            return
        stream = EventStream(last_id)
        retrying, opened = retrying.without_end(), opened + 1
        while (piece := (yield Read())) is not None:
            for message in stream.feed(piece):
                last_id, opened = message.id, 1
                if message.event == "gone":
                    raise TaskNotFound(id)
                if message.event == "end":
                    return
                if read := readers.get(message.event):
                    value = _read(read, message)
                    yield Emit(value)
                    if is_last(value):
                        return


def _read(read: Callable[[Message], Any], message: Message) -> Any:
    try:
        return read(message)
    except msgspec.DecodeError as error:
        raise strange_answer(Answer(200, {}), str(error)) from error
