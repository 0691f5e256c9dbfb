"""Reads how the tasks that a task depends on have ended, for `ctx.parents` and `ctx.outcomes`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from taskpool.operations.flow.expansion import StoredNode, member_id, read_node
from taskpool.redis import keys, rq_job
from taskpool.redis.calls import Call, Plan, hash_of, one, readable
from taskpool.tasks.outcomes import AnyOutcome, GroupOutcomes, Outcomes, TaskOutcome
from taskpool.types import TaskStatus
from taskpool.types.dependency import Edge

T = TypeVar("T")
CarryOut = Callable[[Plan[Any]], Any]
"""Carries out a plan on the connection of the process that runs the task."""

_FIELDS: Final = ("status", "stop_ms", "asked_ms", "result", "data", "error")
_SUCCEEDED: Final = b"1"  # RQ's number of an entry in its result stream

_decode = msgspec.json.Decoder().decode


def outcomes_of(id: str, edges: Sequence[Edge], carry_out: CarryOut) -> Mapping[str, AnyOutcome]:
    """How what the task `id` depends on has ended: by id, in order; of a workflow's task, also by the names of nodes.
    Maps are read later, in pages, by the same `carry_out`."""
    refs = list(dict.fromkeys([edge.ref for edge in edges]))
    tasks = [ref for ref in refs if ":" not in ref]
    by_ref: dict[str, AnyOutcome] = dict(zip(tasks, carry_out(read_outcomes(tasks)), strict=True))
    names = carry_out(_names(id)) if refs else {}
    for ref in refs:
        if ref not in by_ref:
            by_ref[ref] = _group(ref, carry_out)
    ordered = {ref: by_ref[ref] for ref in refs}
    return Outcomes(ordered, names) if names or len(tasks) < len(refs) else ordered


def read_outcomes(ids: Sequence[str]) -> Plan[list[TaskOutcome]]:
    """How tasks have ended, in order."""
    hashes: list[list[bytes | None]] = yield [Call(("HMGET", keys.JOB + id, *_FIELDS), list, again=True) for id in ids]
    statuses = [None if h[0] is None else rq_job.status_of(*h[:3]) for h in hashes]
    # A task that is done, without a result on its record: a plain RQ worker ran a function that isn't ours.
    in_stream = [id for id, status, h in zip(ids, statuses, hashes, strict=True) if _is_in_stream(status, h)]
    calls = [Call(("XREVRANGE", keys.RESULTS + id, "+", "-", "COUNT", 1), _newest, again=True) for id in in_stream]
    entries = dict(zip(in_stream, (yield calls) if calls else (), strict=True))
    return [
        _outcome(id, status, h[3], h[5], entries.get(id, {}))
        for id, status, h in zip(ids, statuses, hashes, strict=True)
    ]


def _is_in_stream(status: TaskStatus | None, h: Sequence[bytes | None]) -> bool:
    return status is TaskStatus.DONE and h[3] is None


def _newest(reply: Sequence[Any]) -> Mapping[bytes, bytes]:
    """The fields of the only entry in a reply; none if there is no entry."""
    return hash_of(reply[0][1]) if reply else {}


def _outcome(
    id: str, status: TaskStatus | None, result: bytes | None, error: bytes | None, entry: Mapping[bytes, bytes]
) -> TaskOutcome:
    if status is None:
        return TaskOutcome(id=id, error="its record expired or was removed")
    if status is not TaskStatus.DONE:
        return TaskOutcome(id=id, status=status, error=rq_job.text_of(error))
    if result is None and entry.get(b"type") != _SUCCEEDED:
        return TaskOutcome(id=id, status=status, error="it is no longer stored")
    try:
        if result is not None:
            return TaskOutcome(id=id, status=status, result=_decode(result))
        value = entry.get(b"return_value")  # RQ stores none for None
        return TaskOutcome(id=id, status=status, result=None if value is None else _decode(base64.b64decode(value)))
    except (ValueError, RecursionError):
        return TaskOutcome(id=id, status=status, error="what is stored is not JSON")


def _group(ref: str, carry_out: CarryOut) -> AnyOutcome:
    """How a map has ended, task by task, or a whole workflow."""
    workflow, _, name = ref.partition(":")
    if not name:
        return carry_out(_of_workflow(workflow))  # type: ignore[no-any-return]
    node = carry_out(_nodes(workflow, [name])).get(name)
    first, size = (1, 0) if node is None else (node.first, node.size or 0)

    def read(at: int, end: int) -> Sequence[TaskOutcome]:
        ids = [member_id(workflow, first + place) for place in range(at, end)]
        return carry_out(read_outcomes(ids))  # type: ignore[no-any-return]

    return GroupOutcomes(size, read)


def _of_workflow(id: str) -> Plan[TaskOutcome]:
    status = yield from one(Call(("HGET", keys.WORKFLOW + id, "status"), rq_job.text_of, again=True))
    if status is None:
        return TaskOutcome(id=id, error="its record expired or was removed")
    error = None if status == TaskStatus.DONE else f"the workflow is {status}"
    return TaskOutcome(id=id, status=TaskStatus(status), error=error)


def _names(id: str) -> Plan[dict[str, str]]:
    """Of a workflow's task: the refs of the nodes that it follows, by name."""
    command = ("HMGET", keys.JOB + id, "workflow", "node")
    workflow, name = yield from one(Call(command, lambda reply: [rq_job.text_of(each) for each in reply], again=True))
    if not workflow or not name:
        return {}
    own = (yield from _nodes(workflow, [name])).get(name)
    if own is None or not own.after:
        return {}
    nodes = yield from _nodes(workflow, [each for each, _ in own.after])
    return {each: node.ref(workflow, each) for each, node in nodes.items()}


def _nodes(workflow: str, names: Sequence[str]) -> Plan[dict[str, StoredNode]]:
    def read(reply: Sequence[bytes | None]) -> dict[str, StoredNode]:
        pairs = [(name, raw) for name, raw in zip(names, reply, strict=True) if raw is not None]
        return readable(pairs, read_node, "the node")

    return (yield from one(Call(("HMGET", keys.WORKFLOW + workflow + keys.WORKFLOW_NODES, *names), read, again=True)))
