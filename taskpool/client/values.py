"""From the API's answers to the values that a `TaskPool` returns, from submissions to bodies, and a reader of
Server-Sent Events (WHATWG HTML, 9.2.6).

A document has the names of the value's fields, so most are decoded as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from taskpool.client.request import Answer
from taskpool.errors import FieldError, InvalidTask
from taskpool.operations.documents import EventDocument, LogLineDocument, Shown, TypeDocument
from taskpool.tasks.log_lines import LogLine
from taskpool.tasks.payload.encode import fault_in, is_faithful, json_value, strict_json_value
from taskpool.tasks.payload.faults import NotJson, not_json
from taskpool.text import refuse_nan
from taskpool.types import (
    OPTIONS,
    Event,
    Page,
    QueuedTask,
    QueueInfo,
    Receipt,
    TaskRecord,
    TaskSpec,
    TaskStatus,
    TypeInfo,
    WorkerInfo,
)

_END_OF_LINE: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"


class Message(NamedTuple):
    """One message: its event's name, its data (lines joined with line feeds), and the last id received so far."""

    event: str
    data: str
    id: str


class EventStream:
    """The messages in the pieces of one stream. `last_id` is that of the message it goes on from."""

    def __init__(self, last_id: str = "") -> None:
        self._rest = b""
        self._ended_with_cr = False
        self._is_first_line = True
        self._id = last_id
        self._event = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[Message]:
        """The messages that the next piece completes."""
        messages = []
        for line in self._lines(piece):
            if line:
                self._field(line.decode("utf-8", "replace"))
                continue
            if self._data:
                messages.append(Message(self._event or "message", "\n".join(self._data), self._id))
            self._event, self._data = "", []
        return messages

    def _lines(self, piece: bytes) -> list[bytes]:
        if not piece:
            return []
        if self._ended_with_cr:  # an LF that follows is a part of that end of a line
            piece = piece.removeprefix(b"\n")
        self._ended_with_cr = piece.endswith(b"\r")
        *lines, self._rest = _END_OF_LINE.split(self._rest + piece)
        if lines and self._is_first_line:
            self._is_first_line = False
            lines[0] = lines[0].removeprefix(_BOM)
        return lines

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value


T = TypeVar("T")

_encode: Final = msgspec.json.Encoder().encode


class _Receipt(msgspec.Struct):
    id: str
    status: TaskStatus
    existing: bool = False


class _Changed(TaskRecord, frozen=True, kw_only=True, gc=False):
    type: str = ""
    queue: str = ""
    payload: Any = None


class _Receipts(msgspec.Struct):
    tasks: list[_Receipt]


class _Place(msgspec.Struct):
    position: int
    wait_s: float


class _Tasks(msgspec.Struct):
    tasks: list[msgspec.Raw]
    next_cursor: str | None = None


class _Lines(msgspec.Struct):
    lines: list[msgspec.Raw]
    next_cursor: str | None = None


class _Queues(msgspec.Struct):
    queues: list[QueueInfo]
    next_cursor: str | None = None


class _Types(msgspec.Struct):
    types: list[msgspec.Raw]


class _Workers(msgspec.Struct):
    workers: list[WorkerInfo]
    warnings: list[str] = []


class _Reader(Generic[T]):
    """Reads a document of one type."""

    def __init__(self, wanted: type[T]) -> None:
        self.read: Callable[[bytes | msgspec.Raw], T] = msgspec.json.Decoder(wanted).decode


_record, _changed = _Reader(TaskRecord).read, _Reader(_Changed).read
_receipt, _receipts = _Reader(_Receipt).read, _Reader(_Receipts).read
_tasks, _place = _Reader(_Tasks).read, _Reader(_Place).read
_lines, _types = _Reader(_Lines).read, _Reader(_Types).read
_queues, _workers = _Reader(_Queues).read, _Reader(_Workers).read
_object = _Reader(dict[str, Any]).read


def _value(raw: bytes | msgspec.Raw, wanted: type[T], document: type[Shown]) -> T:
    """The value that a document shows, with its times in ms."""
    members = _object(raw)
    for name, member in document.moments.items():
        if member in members:
            members[name] = _ms(msgspec.convert(members.pop(member), datetime))
    return msgspec.convert(members, wanted)


def submission(spec: TaskSpec) -> bytes:
    """The body that submits a task.

    Raises:
        InvalidPayload: the payload has no JSON form.
        InvalidTask: one of its options has none.
    """
    return _encode(_submission(spec, ""))


def submissions(specs: Sequence[TaskSpec]) -> bytes:
    """The body that submits a batch. Raises: as `submission`; pointers start with the task's index."""
    return _encode({"tasks": [_submission(spec, f"/{index}") for index, spec in enumerate(specs)]})


def _submission(spec: TaskSpec, start: str) -> dict[str, Any]:
    try:
        payload = {} if spec.payload is None else json_value(spec.payload)
        if not is_faithful(spec.payload, _encode(payload)):
            strict_json_value(spec.payload)
    except ValueError as error:  # half a surrogate pair has no pointer yet
        raise not_json(spec.type, fault_in(spec.payload) or NotJson((), str(error)), start) from None
    given = {each.name: value for each in OPTIONS if (value := getattr(spec, each.name)) != each.default}
    try:
        options = msgspec.to_builtins(given)
        refuse_nan(options, _encode(options))
    except (TypeError, ValueError) as error:
        raise InvalidTask(str(error), [FieldError(start, str(error))]) from None
    return {"type": spec.type, "payload": payload, **options}


def record(answer: Answer) -> TaskRecord:
    """A task."""
    return _record(answer.body)


def changed(answer: Answer) -> TaskRecord:
    """A task that was changed. With a key that may not read tasks, only its id and status are known."""
    return _changed(answer.body)


def changed_or_none(answer: Answer) -> TaskRecord | None:
    """The same, or nothing when it is gone."""
    return None if answer.status == 204 else changed(answer)


def receipt(answer: Answer) -> Receipt:
    """What a submission became: with 200, it is a task that was there already."""
    found = _receipt(answer.body)
    return Receipt(found.id, found.status, answer.status == 200)


def receipts(answer: Answer) -> list[Receipt]:
    """What a batch became."""
    return [Receipt(each.id, each.status, each.existing) for each in _receipts(answer.body).tasks]


def records(answer: Answer) -> Page[TaskRecord]:
    """A page of a listing."""
    page = _tasks(answer.body)
    return Page(tuple(map(_record, page.tasks)), page.next_cursor)


def queued(answer: Answer) -> Page[QueuedTask]:
    """A page of a queue."""
    page = _tasks(answer.body)
    places = [(_record(task), _place(task)) for task in page.tasks]
    return Page(tuple([QueuedTask(each, place.position, place.wait_s) for each, place in places]), page.next_cursor)


def queues(answer: Answer) -> Page[QueueInfo]:
    """A page of the queues."""
    page = _queues(answer.body)
    return Page(tuple(page.queues), page.next_cursor)


def types(answer: Answer) -> list[TypeInfo]:
    """Every task type."""
    return [_value(each, TypeInfo, TypeDocument) for each in _types(answer.body).types]


def workers(answer: Answer) -> list[WorkerInfo]:
    """Every worker process."""
    return _workers(answer.body).workers


def worker_warnings(answer: Answer) -> list[str]:
    """What is wrong with the RQ programs beside the workers; an older API says nothing of it."""
    return _workers(answer.body).warnings


def lines(answer: Answer) -> Page[LogLine]:
    """A page of a log."""
    page = _lines(answer.body)
    return Page(tuple([_value(each, LogLine, LogLineDocument) for each in page.lines]), page.next_cursor)


def told_line(message: Message) -> LogLine:
    """The line in a message of a log that is followed."""
    return _value(message.data.encode(), LogLine, LogLineDocument)


def told_event(message: Message) -> Event:
    """The event in a message of a stream of events."""
    return _value(message.data.encode(), Event, EventDocument)


def told_snapshot(message: Message) -> Event:
    """How a task stands, as the first event of who follows it; its data is the task's document."""
    raw = message.data.encode()
    task = _record(raw)
    at_ms = message.id.partition("-")[0]
    return Event(
        id=task.id,
        seq=task.seq,
        event="snapshot",
        status=task.status,
        at_ms=int(at_ms) if at_ms.isdecimal() else 0,
        data=msgspec.json.decode(raw),
        stream=message.id,
    )


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
