"""Each operation of the HTTP API as a request: where it is sent, what with, and what its answer means.

/keys and /audit as requests, for holders of a key with the scope admin. None that changes anything is sent twice.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from taskpool.access.api_key import KEY_ID, KeySpec
from taskpool.access.audit import EVERYTHING, AuditFilter
from taskpool.client import values
from taskpool.client.request import About, Answer, Plan, Request, Retrying, sending
from taskpool.errors import KeyNotFound, TaskConflict, TaskNotFound
from taskpool.operations.documents import AuditEntryDocument, KeyDocument
from taskpool.operations.specs import check_seconds, read_specs
from taskpool.tasks.log_lines import LogLine
from taskpool.types import Page, QueuedTask, QueueInfo, Receipt, TaskRecord, TaskSpec, TaskStatus, TypeInfo, WorkerInfo
from taskpool.validation import LONGEST_GRACE_S

STREAM_SILENCE_S: Final = 35.0
"""Beyond the usual time: streams send a comment every 15 s, so one that is silent for longer was cut."""

_JSON: Final = {"content-type": "application/json"}
_STREAM: Final = {"accept": "text/event-stream"}
_is_id: Final = re.compile(r"[A-Za-z0-9_-]{1,200}").fullmatch


def add_task(spec: TaskSpec) -> Request[Receipt]:
    """Submit a task: once, however often this request is sent.

    Raises: InvalidTask, when the submission has no JSON form.
    """
    return Request(
        method="POST",
        path="/tasks",
        read=values.receipt,
        headers={**_JSON, "idempotency-key": secrets.token_hex(16)},
        body=values.submission(spec),
        about=About(specs=(spec,)),
    )


def add_tasks(specs: Sequence[TaskSpec]) -> Request[list[Receipt]]:
    """Submit tasks, all or none: once, however often this request is sent. Raises: as `add_task`."""
    specs = read_specs(specs)
    return Request(
        method="POST",
        path="/tasks/batch",
        read=values.receipts,
        headers={**_JSON, "idempotency-key": secrets.token_hex(16)},
        body=values.submissions(specs),
        about=About(specs=tuple(specs), prefix="/tasks"),
    )


def get(id: str, *, wait_s: float = 0.0) -> Request[TaskRecord]:
    """Read a task; with `wait_s`, once it has ended or so many seconds have passed."""
    query = {"wait": f"{wait_s:.3f}"} if wait_s > 0 else {}
    return Request(
        method="GET", path=_task(id), query=query, read=values.record, waits_s=max(wait_s, 0.0), about=About(id)
    )


def list_tasks(*, cursor: str | None, limit: int, **filters: str | None) -> Request[Page[TaskRecord]]:
    """A page of the tasks that fit the filters (`status`, `queue`, `type`, `tag`)."""
    query = _given(**filters, cursor=cursor, limit=limit)
    return Request(method="GET", path="/tasks", query=query, read=values.records)


def get_queue(name: str, cursor: str | None, limit: int) -> Request[Page[QueuedTask]]:
    """A page of a queue."""
    path = f"/queues/{quote(name, safe='')}"
    return Request(method="GET", path=path, query=_given(cursor=cursor, limit=limit), read=values.queued)


def remove_task(id: str) -> Request[TaskStatus | None]:
    """Cancel a task, or purge it. Not to be sent again: the first may cancel what the second purges."""

    def read(answer: Answer) -> TaskStatus | None:
        record = values.changed_or_none(answer)
        return None if record is None else record.status

    return Request(method="DELETE", path=_task(id), read=read, again=False, about=About(id))


def kill_task(id: str, *, grace_s: float, force: bool, retrying: Retrying) -> Plan[TaskRecord]:
    """Stop a task; one that has ended is left as it is.

    Raises:
        InvalidTask: `grace_s` is no number of seconds from 0 to a day.
    """
    check_seconds("grace_s", grace_s, most_s=LONGEST_GRACE_S)
    body = msgspec.json.encode({"grace_s": grace_s, "force": force})
    path = f"{_task(id)}/stop"
    stop = Request(method="POST", path=path, headers=_JSON, body=body, read=values.changed, about=About(id))
    try:
        return (yield from sending(stop, retrying))
    except TaskConflict:
        return (yield from sending(get(id), retrying))


def retry_task(id: str) -> Request[TaskRecord]:
    """Queue a task again. Not to be sent again: it may have run and failed in between."""
    return Request(method="POST", path=f"{_task(id)}/retry", read=values.changed, again=False, about=About(id))


def queues(retrying: Retrying) -> Plan[list[QueueInfo]]:
    """Every queue, page by page."""
    found: list[QueueInfo] = []
    cursor = None
    while True:
        page = yield from sending(
            Request(method="GET", path="/queues", query=_given(cursor=cursor), read=values.queues), retrying
        )
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found


def types() -> Request[list[TypeInfo]]:
    """Every task type."""
    return Request(method="GET", path="/types", read=values.types)


def workers() -> Request[list[WorkerInfo]]:
    """Every worker process."""
    return Request(method="GET", path="/workers", read=values.workers)


def worker_warnings() -> Request[list[str]]:
    """What is wrong with the RQ programs beside the workers."""
    return Request(method="GET", path="/workers", read=values.worker_warnings)


def logs(id: str, cursor: str | None, limit: int) -> Request[Page[LogLine]]:
    """A page of a task's log."""
    query = _given(cursor=cursor, limit=limit)
    return Request(method="GET", path=f"{_task(id)}/logs", query=query, read=values.lines, about=About(id))


def event_stream(id: str, last_id: str) -> Request[bool]:
    """The stream of a task's events behind `last_id`; whether there is one."""
    return _stream(id, f"{_task(id)}/events", {}, last_id)


def log_stream(id: str, last_id: str) -> Request[bool]:
    """The stream of a task's log behind `last_id`; whether there is one."""
    return _stream(id, f"{_task(id)}/logs", {"follow": "1"}, last_id)


def _stream(id: str, path: str, query: Mapping[str, str], last_id: str) -> Request[bool]:
    return Request(
        method="GET",
        path=path,
        query=query,
        read=lambda answer: answer.status == 200,
        headers={**_STREAM, "last-event-id": last_id} if last_id else _STREAM,
        waits_s=STREAM_SILENCE_S,
        streams=True,
        about=About(id),
    )


def _task(id: Any) -> str:
    """The path of a task.

    Raises:
        TaskNotFound: no task can have this id.
    """
    if not (isinstance(id, str) and _is_id(id)):
        raise TaskNotFound(id[:200] if isinstance(id, str) else id)
    return f"/tasks/{id}"


def _given(**parameters: Any) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items() if value is not None}


class AuditPart(msgspec.Struct):
    """A page of the audit, newest first, and where to go on."""

    entries: Sequence[AuditEntryDocument]
    next_cursor: str | None = None


class _Keys(msgspec.Struct):
    keys: list[KeyDocument]


def create(spec: KeySpec) -> Request[KeyDocument]:
    """Make a key; it, with its text."""
    body = {name: value for name, value in msgspec.structs.asdict(spec).items() if value is not None}
    return _change("POST", "/keys", body)


def listed() -> Request[list[KeyDocument]]:
    """All keys, the oldest first."""
    return Request(method="GET", path="/keys", read=lambda answer: msgspec.json.decode(answer.body, type=_Keys).keys)


def rotate(id: str, grace_s: float) -> Request[KeyDocument]:
    """Give a key a new secret; it, with its new text. Raises: KeyNotFound, when that can't be an id."""
    return _change("POST", f"{_key(id)}/rotate", {"grace_s": grace_s}, id)


def revoke(id: str) -> Request[None]:
    """Take a key back. Raises: KeyNotFound, when that can't be an id."""
    return Request(method="DELETE", path=_key(id), read=lambda answer: None, again=False, about=About(id=id))


def audit(wanted: AuditFilter = EVERYTHING, cursor: str | None = None, limit: int = 100) -> Request[AuditPart]:
    """A page of those entries of the audit; it may be short, or empty, and have a `next_cursor` yet."""
    asked = {**msgspec.to_builtins(wanted), "cursor": cursor, "limit": limit}
    query = {name: str(value) for name, value in asked.items() if value is not None}

    def read(answer: Answer) -> AuditPart:
        return msgspec.json.decode(answer.body, type=AuditPart)

    return Request(method="GET", path="/audit", read=read, query=query)


def _change(method: str, path: str, body: object, id: str = "") -> Request[KeyDocument]:
    return Request(
        method=method,
        path=path,
        read=lambda answer: msgspec.json.decode(answer.body, type=KeyDocument),
        headers={"content-type": "application/json"},
        body=msgspec.json.encode(body),
        again=False,
        about=About(id=id),
    )


def _key(id: str) -> str:
    if not KEY_ID.fullmatch(id):
        raise KeyNotFound(id[:200])
    return f"/keys/{quote(id)}"
