"""Operations of the HTTP API as requests: where each is sent, with which content, and how its answer is read.

Those that go on for a while (waiting for a task, following its events or its log) are plans. Once the API has answered
their first request, they continue after an outage of the API. The clients make the simplest requests, which only read,
with `fetch`. The last section needs an API key with the scope admin.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar, get_args
from urllib.parse import quote

import msgspec

from taskpool.access.api_key import KEY_ID, KeySpec
from taskpool.access.audit import EVERYTHING, AuditFilter
from taskpool.client import values
from taskpool.client.request import About, Answer, Emit, Plan, Read, Request, Retrying, Sleep, sending, strange_answer
from taskpool.client.values import EventStream, Message
from taskpool.errors import (
    FieldError,
    InvalidTask,
    KeyNotFound,
    OperationNotFound,
    PoolNotFound,
    ScheduleNotFound,
    TaskConflict,
    TaskNotFound,
    WaitTimeout,
    WorkflowConflict,
    WorkflowNotFound,
    WorkflowTimeout,
)
from taskpool.operations.control.criteria import checked, checked_operation
from taskpool.operations.control.pauses import check_queue
from taskpool.operations.documents import AuditEntryDocument, KeyDocument
from taskpool.operations.flow.graph import check_graph
from taskpool.operations.flow.schedule_values import SCHEDULE_ID, ScheduleRecord, ScheduleSpec, check_name
from taskpool.operations.flow.values import WorkflowReceipt, WorkflowRecord, WorkflowSpec
from taskpool.operations.insight.failure_values import check_fingerprint, check_steps
from taskpool.operations.specs import check_seconds, check_word, duration_s, patience_s, read_specs
from taskpool.tasks.payload.encode import json_value
from taskpool.text import refuse_nan
from taskpool.types import Page, Pause, QueueInfo, Receipt, TaskRecord, TaskSpec, TaskStatus
from taskpool.types.control import Filter, Operation, OperationSpec, Past, Preview
from taskpool.types.fleet import LEAST_TARGET_S, MOST_TARGET_S, QueueLoad, Stack
from taskpool.types.insight import FailureGroup, Redrive, Waits, WaitsBy
from taskpool.validation import LONGEST_GRACE_S, Duration, is_text

T = TypeVar("T")

STREAM_SILENCE_S: Final = 35.0
"""On top of the usual time: streams send a comment every 15 s, so one that is silent for longer was cut."""
EARLY_S: Final = 0.05
NOTHING: Final = About()

_is_id: Final = re.compile(r"[A-Za-z0-9_-]{1,200}").fullmatch


def fetch(path: str, read: Callable[[Answer], T], *, about: About = NOTHING, **parameters: Any) -> Request[T]:
    """A GET request. Parameters that are None are left out of its query."""
    query = {name: str(value) for name, value in parameters.items() if value is not None}
    return Request(method="GET", path=path, read=read, query=query, about=about)


def add_task(spec: TaskSpec) -> Request[Receipt]:
    """Submit a task: once, however often this request is sent. Raises: InvalidTask."""
    return _submit("/tasks", values.submission(spec), values.receipt, About(specs=(spec,)))


def add_tasks(specs: Sequence[TaskSpec]) -> Request[list[Receipt]]:
    """Submit tasks, all or none: once, however often this request is sent. Raises: InvalidTask."""
    specs = read_specs(specs)
    about = About(specs=tuple(specs), prefix="/tasks")
    return _submit("/tasks/batch", values.submissions(specs), values.receipts, about)


def get(id: str, *, wait_s: float = 0.0) -> Request[TaskRecord]:
    """Read a task; with `wait_s`, once it has ended or that time has passed."""
    query = {"wait": f"{wait_s:.3f}"} if wait_s > 0 else {}
    waits_s = max(wait_s, 0.0)
    return Request(method="GET", path=task_path(id), query=query, read=values.record, waits_s=waits_s, about=About(id))


def list_tasks(wanted: Filter, cursor: str | None, limit: int) -> Request[Page[TaskRecord]]:
    """A page of the tasks that match. Raises: InvalidTask."""
    criteria = msgspec.to_builtins(checked(wanted)) | {"cursor": cursor, "limit": limit}
    return fetch("/tasks", values.records, **criteria)


def remove_task(id: str) -> Request[TaskStatus | None]:
    """Cancel a task, or delete it. Not sent again: the first request may cancel what the second one deletes."""

    def read(answer: Answer) -> TaskStatus | None:
        return None if answer.status == 204 else values.changed(answer).status

    return Request(method="DELETE", path=task_path(id), read=read, again=False, about=About(id))


def kill_task(id: str, *, grace_s: float, force: bool, retrying: Retrying) -> Plan[TaskRecord]:
    """Stop a task; one that has ended is left as it is. Raises: InvalidTask."""
    check_seconds("grace_s", grace_s, most_s=LONGEST_GRACE_S)
    stop = _post(f"{task_path(id)}/stop", {"grace_s": grace_s, "force": force}, values.changed, About(id))
    try:
        return (yield from sending(stop, retrying))
    except TaskConflict:
        return (yield from sending(get(id), retrying))


def retry_task(id: str) -> Request[TaskRecord]:
    """Queue a task again. Not sent again: the task may have run and failed in between."""
    return Request(method="POST", path=f"{task_path(id)}/retry", read=values.changed, again=False, about=About(id))


def decide(id: str, what: str, comment: str | None) -> Request[TaskRecord]:
    """Confirm or reject a task. Sent again, it agrees with itself."""
    return _post(f"{task_path(id)}/{what}", {"comment": comment}, values.changed, About(id))


def answer(id: str, answer: Any, question: str | None, comment: str | None) -> Request[TaskRecord]:
    """Answer what a task asks. Sent again only if the question is named: the task may ask another one meanwhile.
    Raises: InvalidTask."""
    try:
        body = {"answer": json_value(answer), "question": question, "comment": comment}
        refuse_nan(body, msgspec.json.encode(body))
    except (ValueError, TypeError) as error:
        fault = FieldError("/answer", f"is not JSON: {error}")
        raise InvalidTask(f"{fault.pointer}: {fault.detail}", [fault]) from None
    return _post(f"{task_path(id)}/answer", body, values.changed, About(id), again=question is not None)


def add_workflow(spec: WorkflowSpec, headers: Mapping[str, str]) -> Request[WorkflowReceipt]:
    """Submit a workflow: once, however often this request is sent. `headers`: more of the request's headers. Raises:
    InvalidTask."""
    check_graph(spec)
    request = _submit("/workflows", values.workflow_submission(spec), values.workflow_receipt, NOTHING)
    return replace(request, headers={**request.headers, **headers}) if headers else request


def get_workflow(id: str) -> Request[WorkflowRecord]:
    """Read a workflow."""
    return fetch(workflow_path(id), values.workflow, about=About(id))


def stop_workflow(id: str, *, grace_s: float, force: bool, retrying: Retrying) -> Plan[WorkflowRecord]:
    """Stop a workflow; one that has ended is left as it is. Raises: InvalidTask."""
    check_seconds("grace_s", grace_s, most_s=LONGEST_GRACE_S)
    body = {"grace_s": grace_s, "force": force}
    try:
        stop = _post(f"{workflow_path(id)}/stop", body, values.changed_workflow, About(id))
        return (yield from sending(stop, retrying))
    except WorkflowConflict:
        return (yield from sending(get_workflow(id), retrying))


def retry_workflow(id: str) -> Request[WorkflowRecord]:
    """Retry a workflow. Not sent again: it may have ended in between."""
    path, read = f"{workflow_path(id)}/retry", values.changed_workflow
    return Request(method="POST", path=path, read=read, again=False, about=About(id))


def remove_workflow(id: str) -> Request[None]:
    """Remove a workflow. Not sent again: the second request wouldn't find it."""
    path = workflow_path(id)
    return Request(method="DELETE", path=path, read=lambda answer: None, again=False, about=About(id))


def workflow_path(id: Any) -> str:
    """The path of a workflow. Raises: WorkflowNotFound, when no workflow can have this id."""
    if not (isinstance(id, str) and _is_id(id)):
        raise WorkflowNotFound(id[:200] if isinstance(id, str) else repr(id))
    return f"/workflows/{id}"


def follow_workflow(id: str, timeout_s: float | None, retrying: Retrying) -> Plan[WorkflowRecord]:
    """Emit the workflow now, again a few times a second, and when it has ended; return the last one.
    Raises: WorkflowNotFound, WorkflowTimeout, InvalidTask."""
    clock = retrying.clock
    end = clock() + patience_s("timeout_s", timeout_s)
    patience = retrying
    while True:
        began = clock()
        record = yield from sending(get_workflow(id), patience, end)
        yield Emit(record)
        if record.status.is_terminal:
            return record
        if began >= end:
            raise WorkflowTimeout(record, max(timeout_s or 0.0, 0.0))
        patience = retrying.without_end()
        pause_s = max(WATCHING.then_s, 4 * (clock() - began))  # a large graph takes long to read
        yield Sleep(max(0.0, min(pause_s, end - clock())))


def set_schedule(name: str, spec: ScheduleSpec) -> Request[ScheduleRecord]:
    """Make or replace a schedule: with the same result, however often this request is sent. Raises: InvalidTask."""
    check_name(name)
    headers, body = {"content-type": "application/json"}, values.schedule_submission(spec)
    return Request(method="PUT", path=schedule_path(name), read=values.changed_schedule, headers=headers, body=body)


def change_schedule(name: str, verb: str) -> Request[ScheduleRecord]:
    """Pause or resume a schedule."""
    return Request(method="POST", path=f"{schedule_path(name)}/{verb}", read=values.changed_schedule)


def run_schedule(name: str) -> Request[Receipt]:
    """Submit the task of a schedule now. Not sent again: each request submits one."""
    return Request(method="POST", path=f"{schedule_path(name)}/run", read=values.receipt, again=False)


def remove_schedule(name: str) -> Request[None]:
    """Remove a schedule. Not sent again: the second request wouldn't find it."""
    return Request(method="DELETE", path=schedule_path(name), read=lambda answer: None, again=False)


def failures(type: str | None, since: Past | None, limit: int) -> Request[list[FailureGroup]]:
    """Groups of failures. Raises: InvalidTask."""
    wanted = msgspec.to_builtins(checked(Filter(type=type, since=since)))
    return fetch("/failures", values.failures, **wanted, limit=limit)


def redrive(fingerprint: str, steps: Sequence[int | str], include_nonretryable: bool) -> Request[Redrive]:
    """Retry a group of failures in steps. Not sent again: the first request may have begun it. Raises: InvalidTask."""
    body = {"steps": list(check_steps(steps)), "include_nonretryable": include_nonretryable}
    return _post(f"{failure_path(fingerprint)}/redrive", body, values.redrive, NOTHING, again=False)


def stop_redrive(fingerprint: str) -> Request[Redrive]:
    """Stop a redrive. Not sent again: the second request finds it stopped."""
    return Request(method="POST", path=f"{failure_path(fingerprint)}/redrive/stop", read=values.redrive, again=False)


def failure_path(fingerprint: object) -> str:
    """The path of a group of failures. Raises: FailureNotFound, when none can have this fingerprint."""
    check_fingerprint(fingerprint)
    return f"/failures/{fingerprint}"


def schedule_path(name: Any) -> str:
    """The path of a schedule. Raises: ScheduleNotFound, when none can have this name."""
    if not (isinstance(name, str) and SCHEDULE_ID.fullmatch(name)):
        raise ScheduleNotFound(name)
    return f"/schedules/{name}"


def preview_operation(spec: OperationSpec) -> Request[Preview]:
    """What an operation would do. Raises: InvalidOperation."""
    return _operation(spec, values.preview, preview=True)


def start_operation(spec: OperationSpec) -> Request[Operation]:
    """Start an operation. Not sent again: each request starts one. Raises: InvalidOperation."""
    return _operation(spec, values.operation, again=False)


def _operation(spec: OperationSpec, read: Callable[[Answer], T], *, again: bool = True, **more: bool) -> Request[T]:
    body = msgspec.to_builtins(msgspec.structs.replace(checked_operation(spec), **more))
    return _post("/operations", {name: value for name, value in body.items() if value}, read, NOTHING, again=again)


def change_operation(id: str, verb: str) -> Request[Operation]:
    """Cancel or undo an operation. Not sent again: the second request may be refused."""
    return Request(method="POST", path=f"{operation_path(id)}/{verb}", read=values.operation, again=False)


def follow_operation(id: str, retrying: Retrying) -> Plan[None]:
    """Emit the operation now, again twice a second, and when it has ended. Raises: OperationNotFound."""
    patience = retrying
    while True:
        operation = yield from sending(fetch(operation_path(id), values.operation), patience)
        yield Emit(operation)
        if operation.status.is_terminal:
            return
        patience = retrying.without_end()
        yield Sleep(WATCHING.then_s)


def operation_path(id: Any) -> str:
    """The path of an operation. Raises: OperationNotFound, when none can have this id."""
    if not (isinstance(id, str) and _is_id(id)):
        raise OperationNotFound(id[:200] if isinstance(id, str) else repr(id))
    return f"/operations/{id}"


def queues(retrying: Retrying) -> Plan[list[QueueInfo]]:
    """Every queue, page by page."""
    found: list[QueueInfo] = []
    cursor = None
    while True:
        page = yield from sending(fetch("/queues", values.queues, cursor=cursor), retrying)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found


def queue_path(name: Any) -> str:
    """The path of a queue that may be paused. Raises: InvalidTask, when none can have this name."""
    check_queue(name)
    return f"/queues/{name}"


def queue_load(name: str, target: Duration) -> Request[QueueLoad]:
    """Read the load of a queue. Raises: InvalidTask."""
    target_s = duration_s("target", target, LEAST_TARGET_S, MOST_TARGET_S)
    return fetch(f"{queue_path(name)}/load", values.queue_load, target=f"{target_s:.9g}")


def waits(by: WaitsBy) -> Request[Waits]:
    """Read who waits longest. Raises: InvalidTask."""
    check_word("by", by, get_args(WaitsBy))
    return fetch("/waits", values.waits, by=by)


def pool_path(name: Any) -> str:
    """The path of a worker pool. Raises: PoolNotFound, when none can have this name."""
    if not (is_text(name) and name.strip(".")):  # dots would lead to another path
        raise PoolNotFound(str(name))
    return f"/pools/{quote(name, safe='')}"


def pause(path: str, verb: str, why: str | None) -> Request[Pause]:
    """Pause or drain what has this path. Sent again, it agrees with itself."""
    return _post(f"{path}/{verb}", {"why": why}, values.pause, NOTHING)


def stack(id: str) -> Request[Stack]:
    """Where a running task is."""
    return Request(method="POST", path=f"{task_path(id)}/stack", read=values.stack, about=About(id))


def resume(path: str) -> Request[None]:
    """Resume what has this path. Sent again, it agrees with itself."""
    return Request(method="POST", path=f"{path}/resume", read=lambda answer: None)


def task_path(id: Any) -> str:
    """The path of a task. Raises: TaskNotFound, when no task can have this id."""
    if not (isinstance(id, str) and _is_id(id)):
        raise TaskNotFound(id[:200] if isinstance(id, str) else id)
    return f"/tasks/{id}"


def _submit(path: str, body: bytes, read: Callable[[Answer], T], about: About) -> Request[T]:
    headers = {"content-type": "application/json", "idempotency-key": secrets.token_hex(16)}
    return Request(method="POST", path=path, read=read, headers=headers, body=body, about=about)


def _post(path: str, body: object, read: Callable[[Answer], T], about: About, *, again: bool = True) -> Request[T]:
    headers, content = {"content-type": "application/json"}, msgspec.json.encode(body)
    return Request(method="POST", path=path, read=read, headers=headers, body=content, again=again, about=about)


# --- following -----------------------------------------------------------------------------------------------


class Pace(NamedTuple):
    """How long the API may wait for the task's end before it answers: the first time, and each time after that."""

    first_s: float
    then_s: float


WAITING: Final = Pace(1.0, 30.0)
"""The first answer comes soon, because only then a wait continues after an outage. Later ones take few requests."""
WATCHING: Final = Pace(0.0, 0.5)


def follow(id: str, timeout_s: float | None, pace: Pace, retrying: Retrying) -> Plan[TaskRecord]:
    """Emit the task's record at this pace, and when it has ended; return the last one.
    Raises: TaskNotFound, WaitTimeout, InvalidTask."""
    clock = retrying.clock
    end = clock() + patience_s("timeout_s", timeout_s)
    patience, look_s, early = retrying, pace.first_s, 0
    while True:
        asked = clock()
        wait_s = max(0.0, min(look_s, end - asked))
        record = yield from sending(get(id, wait_s=wait_s), patience, end)
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
    """Emit each event of a task, until it has ended. Raises: TaskNotFound."""
    readers = {"snapshot": values.told_snapshot, "message": values.told_event}
    return _messages(id, "events", after, retrying, readers, is_last=lambda event: event.status.is_terminal)


def follow_log(id: str, cursor: str | None, retrying: Retrying) -> Plan[None]:
    """Emit each line of a task's log, until it has ended. Raises: TaskNotFound, InvalidTask."""
    return _messages(id, "logs", cursor, retrying, {"message": values.told_line}, follow="1")


def _messages(
    id: str,
    what: str,
    after: str | None,
    retrying: Retrying,
    readers: Mapping[str, Callable[[Message], Any]],
    *,
    is_last: Callable[[Any], bool] = lambda value: False,
    **query: str,
) -> Plan[None]:
    """Emit the messages of a stream that have a reader. A stream that breaks off is opened again after the last one."""
    last_id, opened = after or "", 0  # how often it was opened since the last message
    while True:
        if opened:
            yield Sleep(retrying.pause_s(opened - 1))
        request = Request(
            method="GET",
            path=f"{task_path(id)}/{what}",
            query=query,
            read=lambda answer: answer.status == 200,
            headers={"accept": "text/event-stream", **({"last-event-id": last_id} if last_id else {})},
            waits_s=STREAM_SILENCE_S,
            streams=True,
            about=About(id),
        )
        if not (yield from sending(request, retrying)):
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


# --- /keys and /audit; none that changes anything is sent twice ----------------------------------------------

_key: Final = values.decoded(KeyDocument)
_keys: Final[Callable[[Answer], Page[KeyDocument]]] = values.page_of("keys", KeyDocument)
_audit: Final[Callable[[Answer], Page[AuditEntryDocument]]] = values.page_of("entries", AuditEntryDocument)


def create(spec: KeySpec) -> Request[KeyDocument]:
    """Make a key; the value contains its secret text."""
    body = {name: value for name, value in msgspec.structs.asdict(spec).items() if value is not None}
    return _post("/keys", body, _key, NOTHING, again=False)


def listed() -> Request[Page[KeyDocument]]:
    """All keys, the oldest first."""
    return fetch("/keys", _keys)


def rotate(id: str, grace_s: float) -> Request[KeyDocument]:
    """Give a key a new secret; the value contains its new text. Raises: KeyNotFound, when the id is invalid."""
    return _post(f"{_key_path(id)}/rotate", {"grace_s": grace_s}, _key, About(id), again=False)


def revoke(id: str) -> Request[None]:
    """Revoke a key. Raises: KeyNotFound, when the id is invalid."""
    return Request(method="DELETE", path=_key_path(id), read=lambda answer: None, again=False, about=About(id))


def audit(
    wanted: AuditFilter = EVERYTHING, cursor: str | None = None, limit: int = 100
) -> Request[Page[AuditEntryDocument]]:
    """A page of the matching entries of the audit, newest first. It may be short and still have a `next_cursor`."""
    return fetch("/audit", _audit, **msgspec.to_builtins(wanted), cursor=cursor, limit=limit)


def _key_path(id: str) -> str:
    if not KEY_ID.fullmatch(id):
        raise KeyNotFound(id[:200])
    return f"/keys/{quote(id)}"
