"""From the API's answers to the values that a `TaskPool` returns, from submissions to bodies, and a reader of
Server-Sent Events (WHATWG HTML, 9.2.6).

A document has the names of the value's fields, so most are decoded as they are.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from taskpool.client.request import Answer
from taskpool.errors import FieldError, InvalidTask
from taskpool.operations.documents import EventDocument, LogLineDocument, Shown, TypeDocument
from taskpool.operations.flow.schedule_values import ScheduleRecord, ScheduleSpec
from taskpool.operations.flow.values import WorkflowReceipt, WorkflowRecord, WorkflowSpec
from taskpool.tasks.log_lines import LogLine
from taskpool.tasks.payload.encode import fault_in, is_faithful, json_value, strict_json_value
from taskpool.tasks.payload.faults import NotJson, not_json
from taskpool.tasks.schedule import Timing
from taskpool.text import refuse_nan
from taskpool.types import (
    OPTIONS,
    Event,
    Page,
    Pause,
    QueuedTask,
    QueueInfo,
    Receipt,
    TaskRecord,
    TaskSpec,
    TaskStatus,
    TypeInfo,
    WorkerInfo,
)
from taskpool.types.control import Operation, Preview
from taskpool.types.fleet import PoolRecord, QueueLoad, Stack, TypeStorage, Why
from taskpool.types.insight import Durations, FailureGroup, Finding, Redrive, Stats, Waits
from taskpool.validation import declared

_split_lines: Final = re.compile(r"\r\n|\n|\r").split


class Message(NamedTuple):
    """One message: its event's name, its data (lines joined with line feeds), and the last id received so far."""

    event: str
    data: str
    id: str


class EventStream:
    """The messages in the pieces of one stream. `last_id` is that of the message it goes on from."""

    def __init__(self, last_id: str = "") -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._rest = ""
        self._ended_with_cr = False
        self._id, self._event = last_id, ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[Message]:
        """The messages that the next piece completes."""
        text = self._decode(piece)
        if text:
            if self._ended_with_cr:  # an LF that follows is a part of that end of a line
                text = text.removeprefix("\n")
            self._ended_with_cr = text.endswith("\r")
        *lines, self._rest = _split_lines(self._rest + text)
        messages = []
        for line in lines:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if self._data:
                    messages.append(Message(self._event or "message", "\n".join(self._data), self._id))
                self._event, self._data = "", []
            elif name == "data":
                self._data.append(value)
            elif name == "event":
                self._event = value
            elif name == "id" and "\0" not in value:
                self._id = value
        return messages


T = TypeVar("T")

_encode: Final = msgspec.json.Encoder().encode


def submission(spec: TaskSpec) -> bytes:
    """The body that submits a task. Raises: InvalidTask, when the payload or an option has no JSON form."""
    return _encode(_submission(spec, ""))


def submissions(specs: Sequence[TaskSpec]) -> bytes:
    """The body that submits a batch. Raises: as `submission`; pointers start with the task's index."""
    return _encode({"tasks": [_submission(spec, f"/{index}") for index, spec in enumerate(specs)]})


def workflow_submission(spec: WorkflowSpec) -> bytes:
    """The body that submits a workflow with a valid graph. Raises: as `submission`; pointers name the node."""
    nodes: list[dict[str, Any]] = []
    for at, node in enumerate(spec.nodes):
        form: dict[str, Any] = {"name": node.name, "after": node.edges}
        if node.task is not None:
            form["task"] = _submission(node.task, f"/nodes/{at}/task")
        if node.map is not None:
            form["map"] = [_submission(each, f"/nodes/{at}/map/{index}") for index, each in enumerate(node.map)]
        nodes.append(form)
    return _encode({"name": spec.name, "nodes": nodes})


def schedule_submission(spec: ScheduleSpec) -> bytes:
    """The body that makes a schedule. Raises: as `submission`; pointers begin with ``/task``."""
    given = {each.name: value for each in declared(Timing) if (value := getattr(spec, each.name)) != each.default}
    return _encode({**given, "task": _submission(spec.task, "/task")})


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


# --- answers -------------------------------------------------------------------------------------------------


class _Changed(TaskRecord, frozen=True, kw_only=True, gc=False):
    type: str = ""
    queue: str = ""
    payload: Any = None


class _ChangedWorkflow(WorkflowRecord, frozen=True, kw_only=True):
    name: str = ""
    total: int = 0
    counts: Mapping[str, int] = {}


class _ChangedSchedule(ScheduleRecord, frozen=True, kw_only=True):
    words: str = ""
    task: Mapping[str, Any] = {}


class _Receipt(msgspec.Struct):
    id: str
    status: TaskStatus
    existing: bool = False


class _Place(msgspec.Struct):
    position: int
    wait_s: float


class _Warnings(msgspec.Struct):
    warnings: list[str] = []  # an older API has no such member


def decoded(wanted: type[T]) -> Callable[[Answer], T]:
    """Reads an answer whose document has the members of the value."""
    decode = msgspec.json.Decoder(wanted).decode
    return lambda answer: decode(answer.body)


def page_of(member: str, wanted: Any, made: Callable[[Any], T] | None = None) -> Callable[[Answer], Page[T]]:
    """Reads a page: `wanted` is the form of each entry of the member, and `made` makes the value of it, if that is
    something else."""
    members: list[Any] = [
        (member, tuple[wanted, ...]),
        ("next_cursor", str | None, None),
        ("looked_at", int | None, None),
    ]
    page_type = msgspec.defstruct("_Page", members)
    decode = msgspec.json.Decoder(page_type).decode

    def read(answer: Answer) -> Page[T]:
        page: Any = decode(answer.body)
        entries = getattr(page, member)
        return Page(tuple(map(made, entries) if made else entries), page.next_cursor, page.looked_at)

    return read


def list_of(member: str, wanted: Any, made: Callable[[Any], T] | None = None) -> Callable[[Answer], list[T]]:
    """Reads all that there is, as `page_of`."""
    read = page_of(member, wanted, made)
    return lambda answer: list(read(answer).items)


def _value(members: dict[str, Any], wanted: type[T], document: type[Shown]) -> T:
    """The value that a document shows, with its times in ms."""
    for name, member in document.moments.items():
        if member in members:
            members[name] = round(msgspec.convert(members.pop(member), datetime).timestamp() * 1000)
    return msgspec.convert(members, wanted)


def _queued(members: dict[str, Any]) -> QueuedTask:
    place = msgspec.convert(members, _Place)
    return QueuedTask(msgspec.convert(members, TaskRecord), place.position, place.wait_s)


def _log_line(members: dict[str, Any]) -> LogLine:
    return _value(members, LogLine, LogLineDocument)


_object: Final = msgspec.json.Decoder(dict[str, Any]).decode
_receipt, _warnings = decoded(_Receipt), decoded(_Warnings)
_workflow_receipt = decoded(_ChangedWorkflow)

record = decoded(TaskRecord)
changed: Callable[[Answer], TaskRecord] = decoded(_Changed)
"""A task that was changed. With a key that may not read tasks, only its id and status are known."""
records: Callable[[Answer], Page[TaskRecord]] = page_of("tasks", TaskRecord)
workflow = decoded(WorkflowRecord)
changed_workflow: Callable[[Answer], WorkflowRecord] = decoded(_ChangedWorkflow)
"""As `changed`, of a workflow."""
workflows: Callable[[Answer], Page[WorkflowRecord]] = page_of("workflows", WorkflowRecord)
schedule = decoded(ScheduleRecord)
changed_schedule: Callable[[Answer], ScheduleRecord] = decoded(_ChangedSchedule)
"""As `changed`, of a schedule."""
schedules: Callable[[Answer], Page[ScheduleRecord]] = page_of("schedules", ScheduleRecord)
failure = decoded(FailureGroup)
failures: Callable[[Answer], list[FailureGroup]] = list_of("groups", FailureGroup)
redrive = decoded(Redrive)
findings: Callable[[Answer], list[Finding]] = list_of("findings", Finding)
operation = decoded(Operation)
operations: Callable[[Answer], Page[Operation]] = page_of("operations", Operation)
preview = decoded(Preview)
queued = page_of("tasks", dict[str, Any], _queued)
queues: Callable[[Answer], Page[QueueInfo]] = page_of("queues", QueueInfo)
lines = page_of("lines", dict[str, Any], _log_line)
receipts = list_of("tasks", _Receipt, lambda each: Receipt(each.id, each.status, each.existing))
types = list_of("types", dict[str, Any], lambda each: _value(each, TypeInfo, TypeDocument))
workers: Callable[[Answer], list[WorkerInfo]] = list_of("workers", WorkerInfo)
pools: Callable[[Answer], list[PoolRecord]] = list_of("pools", PoolRecord)
pause = decoded(Pause)
stats = decoded(Stats)
durations = decoded(Durations)
queue_load = decoded(QueueLoad)
storage: Callable[[Answer], list[TypeStorage]] = list_of("types", TypeStorage)
waits = decoded(Waits)
why = decoded(Why)
stack = decoded(Stack)


def receipt(answer: Answer) -> Receipt:
    """What a submission became: with 200, it is a task that was there already."""
    found = _receipt(answer)
    return Receipt(found.id, found.status, answer.status == 200)


def workflow_receipt(answer: Answer) -> WorkflowReceipt:
    """What the submission of a workflow became."""
    found = _workflow_receipt(answer)
    return WorkflowReceipt(found.id, found.status)


def worker_warnings(answer: Answer) -> list[str]:
    """Problems with the RQ programs beside the workers."""
    return _warnings(answer).warnings


def told_line(message: Message) -> LogLine:
    """The line in a message of a log that is followed."""
    return _log_line(_object(message.data))


def told_event(message: Message) -> Event:
    """The event in a message of a stream of events."""
    return _value(_object(message.data), Event, EventDocument)


def told_snapshot(message: Message) -> Event:
    """The state of a task as the first event of its stream; its data is the task's document."""
    data = _object(message.data)
    task = msgspec.convert(data, TaskRecord)
    at_ms = message.id.partition("-")[0]
    return Event(
        id=task.id,
        seq=task.seq,
        event="snapshot",
        status=task.status,
        at_ms=int(at_ms) if at_ms.isdecimal() else 0,
        data=data,
        stream=message.id,
    )
