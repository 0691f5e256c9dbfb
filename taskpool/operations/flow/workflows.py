"""Workflows: submit one, read one, list them. See `expansion` for how its tasks are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from taskpool.access.audit import Actor, entry
from taskpool.errors import FieldError, InvalidTask, WorkflowConflict, WorkflowNotFound
from taskpool.operations.flow import graph
from taskpool.operations.flow.expansion import (
    CheckedNode,
    StoredNode,
    commit,
    member_id,
    read_node,
    refuse_options,
    replayed,
)
from taskpool.operations.flow.upkeep import REVIVED, purge_workflow, stop_members
from taskpool.operations.flow.values import (
    WORKFLOW_RETRYABLE,
    NodeRecord,
    NodeSpec,
    WorkflowRecord,
    WorkflowSpec,
    WorkflowStatus,
)
from taskpool.operations.queue import Rules
from taskpool.operations.specs import check_seconds, check_text
from taskpool.operations.status import attributes_of
from taskpool.operations.submit import check_tasks
from taskpool.redis import add_script, calls, keys, rq_job, workflow_scripts
from taskpool.redis.add_script import Once
from taskpool.redis.calls import Call, Plan, collected, hash_of, one, texts, tolerant
from taskpool.tasks.hooks import sending
from taskpool.tasks.node import After
from taskpool.types import Page, TaskStatus
from taskpool.validation import LONGEST_GRACE_S, TASK_ID, is_text, new_id, shortened

LONGEST_PAGE: Final = 200
NODES_A_STEP: Final = 500
"""Nodes that are read in one round trip."""
RERUN: Final = frozenset("fscw")
"""How members are counted that a retry runs again, whatever they depend on: they failed, were stopped, or canceled by
hand or with the workflow."""
FINAL: Final = (TaskStatus.DONE, TaskStatus.FAILED, TaskStatus.STOPPED, TaskStatus.CANCELED, "removed")
"""The words by which ended tasks are counted."""


def new_workflow_id() -> str:
    """The id of a new workflow. Those of its tasks begin with the same 16 characters (see `member_id`)."""
    return member_id(new_id(), 0)


def submit_workflow(
    spec: WorkflowSpec, rules: Rules, by: Actor | None = None, once: Once | None = None
) -> Plan[WorkflowRecord]:
    """Submit a workflow: all of its tasks or none. `by` as in `submit`.

    Raises:
        InvalidTask: with a JSON Pointer for each fault; nothing was stored.
        UniqueConflict, QueueFull, UnknownDependency, KeyReused, NotAllowed: as `submit`; nothing was stored.
    """
    id, _ = yield from submit_once(spec, rules, once, by=by)
    return (yield from fetch_workflow(id))


def submit_once(
    spec: WorkflowSpec,
    rules: Rules,
    once: Once | None = None,
    *,
    by: Actor | None = None,
    order: Sequence[NodeSpec] | None = None,
) -> Plan[tuple[str, bool]]:
    """As `submit_workflow`; only the id of the workflow, and whether an earlier call with the same key submitted it.
    `order`: what `check_graph` has returned, if it was called already."""
    try:
        nodes = yield from _checked(spec, rules, by, graph.check_graph(spec) if order is None else order)
    except InvalidTask:
        added = None if once is None else (yield from one(add_script.added_before(once)))
        if added is None:
            raise
        return replayed(added), True
    project = None if by is None else by.project
    new = new_workflow_id()
    id = yield from commit(new, nodes, name=spec.name, project=project, once=once, by=by)
    return id, id != new


def _checked(spec: WorkflowSpec, rules: Rules, by: Actor | None, order: Sequence[NodeSpec]) -> Plan[list[CheckedNode]]:
    """The nodes of a submission, in the order of their edges, with their checked tasks."""
    members = yield from collected(graph.members(spec))
    specs, pointers = [each.spec for each in members], [each.pointer for each in members]
    refuse_options(zip(specs, pointers, strict=True))
    with sending(specs) as sent:
        tasks = yield from check_tasks(sent.specs, *rules, by=by, pointers=pointers)
        sent.note(tasks)
    of_node: dict[str, list[Any]] = {node.name: [] for node in order}
    for member, task in zip(members, tasks, strict=True):
        of_node[member.node].append(task)
    return (yield from collected(CheckedNode.of(node, of_node[node.name]) for node in order))


def fetch_workflow(id: str, *, with_nodes: bool = True) -> Plan[WorkflowRecord]:
    """Read a workflow, with the nodes of its graph. Raises: WorkflowNotFound."""
    record = yield from one(tolerant(_head(_checked_id(id)), None))
    if record is None:
        raise WorkflowNotFound(id)
    return replace(record[0], nodes=(yield from _nodes(id, record[1]))) if with_nodes else record[0]


def workflow_is_there(id: str) -> Call[bool]:
    """Whether the workflow still exists."""

    def read(reply: Sequence[bytes | None]) -> bool:
        return reply[0] is not None and reply[1] is None

    return Call(("HMGET", keys.WORKFLOW + id, "status", "removed"), read, again=True)


Hash = Mapping[bytes, bytes]


def _head(id: str) -> Call[tuple[WorkflowRecord, Hash] | None]:
    """A workflow without its nodes, and its hash."""

    def read(reply: Any) -> tuple[WorkflowRecord, Hash] | None:
        h = hash_of(reply)
        return (_record(id, h), h) if b"status" in h and b"removed" not in h else None

    return Call(("HGETALL", keys.WORKFLOW + id), read, again=True)


def _record(id: str, h: Hash) -> WorkflowRecord:
    number = rq_job.number_of
    total, ended = number(h.get(b"total"), 0), number(h.get(b"ended"), 0)
    return WorkflowRecord(
        id=id,
        name=rq_job.text_of(h.get(b"name")) or "",
        status=WorkflowStatus(h[b"status"].decode()),
        total=total,
        counts=_counts(h, "n:"),
        ended=ended,
        project=rq_job.text_of(h.get(b"project")),
        created_at=rq_job.time_of(h.get(b"created_at")),
        ended_at=rq_job.time_of(h.get(b"ended_at")),
        seq=number(h.get(b"seq"), 0),
    )


def _counts(h: Hash, prefix: str) -> dict[str, int]:
    """Its ended tasks by status."""
    counts = {str(word): rq_job.number_of(h.get(f"{prefix}{word}".encode()), 0) for word in FINAL}
    return {word: count for word, count in counts.items() if count}


def _nodes(id: str, h: Hash) -> Plan[tuple[NodeRecord, ...]]:
    found: list[NodeRecord] = []
    while True:
        order = Call(
            ("ZRANGE", keys.WORKFLOW + id + keys.WORKFLOW_ORDER, len(found), len(found) + NODES_A_STEP - 1),
            texts, again=True,
        )  # fmt: skip
        (names,) = yield (order,)
        if not names:
            return tuple((yield from collected(graph.ranked(found))))
        stored = yield from stored_nodes(id, names)
        singles = [name for name in names if name in stored and stored[name].size is None]
        statuses = yield [_status_of(member_id(id, stored[name].first)) for name in singles]
        status_by_name = dict(zip(singles, statuses, strict=True))
        found += [_node(id, name, stored.get(name, StoredNode(0)), status_by_name.get(name), h) for name in names]


def _node(id: str, name: str, node: StoredNode, status: TaskStatus | None, h: Hash) -> NodeRecord:
    after = tuple(After(each, on) for each, on in node.after)
    if node.size is None:
        return NodeRecord(name=name, id=member_id(id, node.first), status=status, after=after, added_by=node.by)
    counts = _counts(h, f"map:{name}:n:")
    return NodeRecord(name=name, size=node.size, counts=counts, after=after, added_by=node.by)


def _status_of(id: str) -> Call[TaskStatus | None]:
    def read(reply: Sequence[bytes | None]) -> TaskStatus | None:
        return None if reply[0] is None else rq_job.status_of(*reply)

    return tolerant(Call(("HMGET", keys.JOB + id, "status", "stop_ms", "asked_ms"), read, again=True), None)


def stored_nodes(id: str, names: Sequence[str]) -> Plan[dict[str, StoredNode]]:
    """The nodes of a workflow with these names, as far as they exist."""

    def read(reply: Sequence[bytes | None]) -> dict[str, StoredNode]:
        return calls.readable(
            [(name, raw) for name, raw in zip(names, reply, strict=True) if raw is not None], read_node, "the node"
        )

    if not names:
        return {}
    return (yield from one(Call(("HMGET", keys.WORKFLOW + id + keys.WORKFLOW_NODES, *names), read, again=True)))


def member_numbers(id: str, node: str | None) -> Plan[tuple[int, int]]:
    """The numbers of the first and the last task of a workflow, or of its node; the last is before the first if there
    are none."""
    if node is not None:
        stored = (yield from stored_nodes(id, [node])).get(node)
        return (
            (1, 0) if stored is None else (stored.first, stored.first + (1 if stored.size is None else stored.size) - 1)
        )
    read = Call(("HGET", keys.WORKFLOW + id, "reserved"), lambda raw: rq_job.number_of(raw, 0), again=True)
    return 1, (yield from one(tolerant(read, 0)))


def member_kinds(id: str) -> Plan[set[tuple[str, str]]]:
    """The types and queues of a workflow's tasks."""
    found: set[tuple[str, str]] = set()
    _, last = yield from member_numbers(id, None)
    for first in range(1, last + 1, NODES_A_STEP):
        numbers = range(first, min(first + NODES_A_STEP, last + 1))
        read = yield [attributes_of(member_id(id, number)) for number in numbers]
        found |= {(each.type, each.queue) for each in read if each is not None}
    return found


def list_workflows(
    *,
    cursor: str | None = None,
    limit: int = 50,
    status: WorkflowStatus | None = None,
    name: str | None = None,
    project: str | None = None,
) -> Plan[Page[WorkflowRecord]]:
    """One page of the workflows, newest first, without their nodes. A page may be short where few have this status and
    this name; its cursor goes on. Raises: InvalidTask (the cursor, the limit, the status or the name is invalid)."""
    if name is not None:
        check_text("name", name)
    if status is not None and status not in tuple(WorkflowStatus):
        text = f"must be one of {', '.join(WorkflowStatus)}, not {status!r}"
        raise InvalidTask(f"/status: {text}", [FieldError("/status", text)])
    limit = calls.page_length(limit, LONGEST_PAGE)
    position = calls.decode_cursor(cursor, (str,))[0] if cursor else ""
    if position and not position.isalnum():
        raise calls.wrong_cursor()
    index = keys.WORKFLOWS if project is None else keys.WORKFLOWS_OF + project
    newest = f"({position}" if position else "+"
    listed = Call(("ZREVRANGEBYLEX", index, newest, "-", "LIMIT", 0, LONGEST_PAGE), texts, again=True)
    ids = yield from one(tolerant(listed, []))
    kept: list[WorkflowRecord] = []
    for at in range(0, len(ids), limit):
        heads = yield [tolerant(_head(id), None) for id in ids[at : at + limit]]
        for id, head in zip(ids[at : at + limit], heads, strict=True):
            position = id
            if head is not None and status in (None, head[0].status) and name in (None, head[0].name):
                kept.append(head[0])
            if len(kept) == limit:
                break
        if len(kept) == limit:
            break
    is_last = len(ids) < LONGEST_PAGE and (not ids or position == ids[-1])
    return Page(tuple(kept), None if is_last else calls.encode_cursor(position))


def stop_workflow(
    id: str, *, grace_s: float = 10.0, force: bool = False, by: Actor | None = None
) -> Plan[WorkflowRecord]:
    """Stop a workflow: what waits is canceled, what runs is asked to stop and killed after `grace_s` (`force`: at
    once), and nothing is added any more. An ended workflow stays as it is. Returns the record as it is then.

    Raises:
        WorkflowNotFound
        InvalidTask: `grace_s` is no number of seconds from 0 to a day.
    """
    check_seconds("grace_s", grace_s, most_s=LONGEST_GRACE_S)
    audited = entry(by, "workflow.stopped", id)
    word = yield from one(workflow_scripts.stop(_checked_id(id), grace_s=grace_s, force=force, audited=audited))
    if word == "ok":
        yield from stop_members(id)
    return (yield from fetch_workflow(id))


def retry_workflow(id: str, by: Actor | None = None) -> Plan[WorkflowRecord]:
    """Run again what failed, was stopped or canceled in an ended workflow, and all tasks that come after those, also
    handlers that are done. A task that can't run again stays as it is: its secrets are gone, or another task holds its
    unique key.

    Raises:
        WorkflowNotFound
        WorkflowConflict: it hasn't ended, or nothing of it failed, or what failed was removed.
    """
    _checked_id(id)
    audited = entry(by, "workflow.retried", id)
    word = "changed"
    while word == "changed":
        record = yield from fetch_workflow(id, with_nodes=False)
        numbers = (yield from _to_retry(id)) if record.status in WORKFLOW_RETRYABLE else []
        if not numbers:
            break
        word = yield from one(workflow_scripts.retry(id, numbers, seq=record.seq, audited=audited))
    if word == "gone":
        raise WorkflowNotFound(id)
    if record.status not in WORKFLOW_RETRYABLE:
        text = f"workflow {id} is {record.status}; only ended ones can be retried"
        raise WorkflowConflict(id, record.status, text)
    if not numbers:
        raise WorkflowConflict(id, record.status, f"workflow {id}: no task of it failed that is still there")
    if word != "ok":
        raise WorkflowConflict(id, word, f"workflow {id} is {word} now")
    while (yield from one(workflow_scripts.revive(id, REVIVED))) == "more":
        pass
    return (yield from fetch_workflow(id))


def _to_retry(id: str) -> Plan[list[int]]:
    """The numbers of the members that a retry runs again, in ascending order. A node comes after those that it
    follows."""
    key = keys.WORKFLOW + id
    (letters,) = yield (Call(("GET", key + keys.WORKFLOW_COUNTED), lambda raw: (raw or b"").decode(), again=True),)
    chosen, rerun = list[int](), set[str]()
    at = 0
    while True:
        order = Call(("ZRANGE", key + keys.WORKFLOW_ORDER, at, at + NODES_A_STEP - 1), texts, again=True)
        (names,) = yield (order,)
        if not names:
            return chosen
        at += len(names)
        stored = yield from stored_nodes(id, names)
        for name in names:
            node = stored.get(name)
            if node is None:
                continue
            numbers = list(range(node.first, node.first + (1 if node.size is None else node.size)))
            if any(before in rerun for before, _ in node.after):
                rerun.add(name)
            else:
                numbers = [number for number in numbers if letters[number - 1 : number] in RERUN]
            if numbers:
                rerun.add(name)
                chosen += numbers


def remove_workflow(id: str, by: Actor | None = None) -> Plan[None]:
    """Remove an ended workflow and its tasks. Housekeeping does the rest if the caller dies.

    Raises:
        WorkflowNotFound
        WorkflowConflict: it hasn't ended.
    """
    word = yield from one(workflow_scripts.remove(_checked_id(id), entry(by, "workflow.removed", id)))
    if word == "gone":
        raise WorkflowNotFound(id)
    if word != "ok":
        raise WorkflowConflict(id, word, f"workflow {id} is {word}: stop it first")
    yield from purge_workflow(id)


def _checked_id(id: object) -> str:
    if not (is_text(id) and TASK_ID.fullmatch(id)):  # it could name another key
        raise WorkflowNotFound(shortened(str(id)))
    return id
