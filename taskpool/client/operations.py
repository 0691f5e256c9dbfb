"""Operations of the HTTP API as requests: where each is sent, with which content, and how its answer is read.

The clients make the simplest requests, which only read, with `fetch`. The last section needs an API key with the scope
admin.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from taskpool.access.api_key import KEY_ID, KeySpec
from taskpool.access.audit import EVERYTHING, AuditFilter
from taskpool.client import values
from taskpool.client.request import About, Answer, Plan, Request, Retrying, sending
from taskpool.errors import KeyNotFound, TaskConflict, TaskNotFound
from taskpool.operations.documents import AuditEntryDocument, KeyDocument
from taskpool.operations.specs import check_seconds, read_specs
from taskpool.types import QueueInfo, Receipt, TaskRecord, TaskSpec, TaskStatus
from taskpool.validation import LONGEST_GRACE_S

T = TypeVar("T")

STREAM_SILENCE_S: Final = 35.0
"""On top of the usual time: streams send a comment every 15 s, so one that is silent for longer was cut."""

NOTHING: Final = About()

_is_id: Final = re.compile(r"[A-Za-z0-9_-]{1,200}").fullmatch


def fetch(path: str, read: Callable[[Answer], T], *, about: About = NOTHING, **parameters: Any) -> Request[T]:
    """A GET request. Parameters that are None are left out of its query."""
    query = {name: str(value) for name, value in parameters.items() if value is not None}
    return Request(method="GET", path=path, read=read, query=query, about=about)


def add_task(spec: TaskSpec) -> Request[Receipt]:
    """Submit a task: once, however often this request is sent.

    Raises: InvalidTask, when the submission has no JSON form.
    """
    return _submit("/tasks", values.submission(spec), values.receipt, About(specs=(spec,)))


def add_tasks(specs: Sequence[TaskSpec]) -> Request[list[Receipt]]:
    """Submit tasks, all or none: once, however often this request is sent. Raises: as `add_task`."""
    specs = read_specs(specs)
    about = About(specs=tuple(specs), prefix="/tasks")
    return _submit("/tasks/batch", values.submissions(specs), values.receipts, about)


def get(id: str, *, wait_s: float = 0.0) -> Request[TaskRecord]:
    """Read a task; with `wait_s`, once it has ended or that time has passed."""
    query = {"wait": f"{wait_s:.3f}"} if wait_s > 0 else {}
    waits_s = max(wait_s, 0.0)
    return Request(method="GET", path=task_path(id), query=query, read=values.record, waits_s=waits_s, about=About(id))


def remove_task(id: str) -> Request[TaskStatus | None]:
    """Cancel a task, or delete it. Not sent again: the first request may cancel what the second one deletes."""

    def read(answer: Answer) -> TaskStatus | None:
        record = values.changed_or_none(answer)
        return None if record is None else record.status

    return Request(method="DELETE", path=task_path(id), read=read, again=False, about=About(id))


def kill_task(id: str, *, grace_s: float, force: bool, retrying: Retrying) -> Plan[TaskRecord]:
    """Stop a task; one that has ended is left as it is.

    Raises:
        InvalidTask: `grace_s` isn't a number of seconds from 0 to a day.
    """
    check_seconds("grace_s", grace_s, most_s=LONGEST_GRACE_S)
    stop = _post(f"{task_path(id)}/stop", {"grace_s": grace_s, "force": force}, values.changed, About(id))
    try:
        return (yield from sending(stop, retrying))
    except TaskConflict:
        return (yield from sending(get(id), retrying))


def retry_task(id: str) -> Request[TaskRecord]:
    """Queue a task again. Not sent again: the task may have run and failed in between."""
    return Request(method="POST", path=f"{task_path(id)}/retry", read=values.changed, again=False, about=About(id))


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


def event_stream(id: str, last_id: str) -> Request[bool]:
    """Open the stream of a task's events after `last_id`; the value is whether there is one."""
    return _stream(id, "events", {}, last_id)


def log_stream(id: str, last_id: str) -> Request[bool]:
    """Open the stream of a task's log after `last_id`; the value is whether there is one."""
    return _stream(id, "logs", {"follow": "1"}, last_id)


def task_path(id: Any) -> str:
    """The path of a task.

    Raises:
        TaskNotFound: no task can have this id.
    """
    if not (isinstance(id, str) and _is_id(id)):
        raise TaskNotFound(id[:200] if isinstance(id, str) else id)
    return f"/tasks/{id}"


def _stream(id: str, what: str, query: dict[str, str], last_id: str) -> Request[bool]:
    return Request(
        method="GET",
        path=f"{task_path(id)}/{what}",
        query=query,
        read=lambda answer: answer.status == 200,
        headers={"accept": "text/event-stream", **({"last-event-id": last_id} if last_id else {})},
        waits_s=STREAM_SILENCE_S,
        streams=True,
        about=About(id),
    )


def _submit(path: str, body: bytes, read: Callable[[Answer], T], about: About) -> Request[T]:
    headers = {"content-type": "application/json", "idempotency-key": secrets.token_hex(16)}
    return Request(method="POST", path=path, read=read, headers=headers, body=body, about=about)


def _post(path: str, body: object, read: Callable[[Answer], T], about: About, *, again: bool = True) -> Request[T]:
    headers, content = {"content-type": "application/json"}, msgspec.json.encode(body)
    return Request(method="POST", path=path, read=read, headers=headers, body=content, again=again, about=about)


# --- /keys and /audit; none that changes anything is sent twice ----------------------------------------------


class AuditPart(msgspec.Struct):
    """A page of the audit, newest first."""

    entries: Sequence[AuditEntryDocument]
    next_cursor: str | None = None


class _Keys(msgspec.Struct):
    keys: list[KeyDocument]


def create(spec: KeySpec) -> Request[KeyDocument]:
    """Make a key; the value contains its secret text."""
    body = {name: value for name, value in msgspec.structs.asdict(spec).items() if value is not None}
    return _post("/keys", body, _decoded(KeyDocument), NOTHING, again=False)


def listed() -> Request[list[KeyDocument]]:
    """All keys, the oldest first."""
    read = _decoded(_Keys)
    return fetch("/keys", lambda answer: read(answer).keys)


def rotate(id: str, grace_s: float) -> Request[KeyDocument]:
    """Give a key a new secret; the value contains its new text. Raises: KeyNotFound, when the id is invalid."""
    return _post(f"{_key_path(id)}/rotate", {"grace_s": grace_s}, _decoded(KeyDocument), About(id), again=False)


def revoke(id: str) -> Request[None]:
    """Revoke a key. Raises: KeyNotFound, when the id is invalid."""
    return Request(method="DELETE", path=_key_path(id), read=lambda answer: None, again=False, about=About(id))


def audit(wanted: AuditFilter = EVERYTHING, cursor: str | None = None, limit: int = 100) -> Request[AuditPart]:
    """A page of the matching entries of the audit. A page may be short or empty and still have a `next_cursor`."""
    return fetch("/audit", _decoded(AuditPart), **msgspec.to_builtins(wanted), cursor=cursor, limit=limit)


def _decoded(type: type[T]) -> Callable[[Answer], T]:
    return lambda answer: msgspec.json.decode(answer.body, type=type)


def _key_path(id: str) -> str:
    if not KEY_ID.fullmatch(id):
        raise KeyNotFound(id[:200])
    return f"/keys/{quote(id)}"
