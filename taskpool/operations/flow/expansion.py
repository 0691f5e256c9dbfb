"""From checked nodes to stored tasks: chunks that wait in Redis, one commit, and then the tasks, chunk by chunk.

Nothing of a workflow is listed, announced or run before its commit, and all of it is stored after it: by the caller, or
by housekeeping if the caller dies. A new workflow and what running tasks add to one take the same way.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from taskpool.access.audit import Actor, entry
from taskpool.errors import FieldError, InvalidTask, RedisUnavailable
from taskpool.operations.flow.values import NodeSpec
from taskpool.operations.queue import refuse
from taskpool.redis import add_script, keys, workflow_scripts
from taskpool.redis.add_script import Added, NewTask, Once
from taskpool.redis.calls import Plan, collected, one
from taskpool.redis.replies import ReplyFault
from taskpool.tasks.node import After
from taskpool.types import RunningTask, TaskSpec
from taskpool.types.dependency import Edge, On

CHUNK: Final = 250
"""Most tasks of one chunk. Redis serves no other client while it stores one."""
CHUNK_BYTES: Final = 512 * 1024
"""A chunk ends with the task that brings its payloads to this size."""
CHUNK_EDGES: Final = 5000
"""Most edges of the tasks of one chunk, if it has several: the script looks at the other end of each."""
NODES_AT_ONCE: Final = 1000
MOST_INHERITED: Final = 100_000
"""Edges that the nodes of one commit may have because they come after maps without tasks."""
AT_ONCE: Final = 4
"""Chunks that are sent in one round trip."""

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"
_encode: Final = msgspec.json.Encoder().encode


def member_id(workflow: str, number: int) -> str:
    """The id of a workflow's task with this number, from 1 in the order in which they were added."""
    digits = "".join([_DIGITS[number >> shift & 31] for shift in (15, 10, 5, 0)])
    return workflow[:16] + digits


class StoredNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node as the hash of a workflow's nodes has it: the number of its first task, and of a map how many it has.

    `by` is the task that added it, and `digest` tells whether that asks for the same once more."""

    first: int
    size: int | None = None
    after: tuple[tuple[str, On], ...] = ()
    by: str | None = None
    digest: str | None = None

    def ids(self, workflow: str) -> list[str]:
        """The ids of its tasks."""
        return [member_id(workflow, self.first + at) for at in range(1 if self.size is None else self.size)]

    def ref(self, workflow: str, name: str) -> str:
        """What an edge to it names: its task, or its group."""
        return member_id(workflow, self.first) if self.size is None else f"{workflow}:{name}"


read_node: Final = msgspec.json.Decoder(StoredNode).decode


class CheckedNode(msgspec.Struct, frozen=True):
    """A node whose tasks have been checked."""

    name: str
    tasks: Sequence[NewTask]
    is_map: bool
    after: tuple[After, ...]
    digest: str | None = None

    @classmethod
    def of(cls, node: NodeSpec, tasks: Sequence[NewTask], digest: str | None = None) -> CheckedNode:
        """The node with the tasks that its specs became."""
        return cls(node.name, tasks, node.map is not None, node.edges, digest)


def commit(
    workflow: str,
    nodes: Sequence[CheckedNode],
    *,
    first: int = 1,
    known: Mapping[str, StoredNode] | None = None,
    name: str | None = None,
    project: str | None = None,
    running: RunningTask | None = None,
    once: Once | None = None,
    by: Actor | None = None,
) -> Plan[str]:
    """Stage these nodes, commit them, and store their tasks. Each comes after those it follows, or follows those that
    are `known`. The id of the workflow: another one, if an earlier call had the same idempotency key.

    A new workflow has a `name`. The attempt `running` adds to its own.

    Raises:
        InvalidTask: UniqueConflict, UnknownDependency, QueueFull, KeyReused; or a name exists. Nothing was stored.
        NotAdded: the attempt can't add any more. Nothing was stored.
    """
    token = secrets.token_hex(10)
    placed = dict(known or {})
    own: dict[str, StoredNode] = {}
    added_by = None if running is None else running.id
    number = first
    for node in nodes:
        size = len(node.tasks) if node.is_map else None
        after = tuple((each.name, each.on) for each in node.after)
        own[node.name] = placed[node.name] = StoredNode(number, size, after, added_by, node.digest)
        number += len(node.tasks)
    yield ()
    tasks = yield from collected(_members(workflow, nodes, placed))
    chunks = yield from collected(_chunks(tasks))
    yield from _stage(token, chunks, own)
    asked = {
        "workflow": workflow,
        "token": token,
        "chunks": len(chunks),
        "count": len(tasks),
        "maps": [(name, node.size) for name, node in own.items() if node.size is not None],
        "handled": sorted({each.name for node in nodes for each in node.after if each.on != "success"}),
        **_checks(nodes, tasks),
        "ttl": _longest(tasks),
    }
    optional: dict[str, Any] = {"name": name, "project": project, "once": None if once is None else once.asked()}
    yield ()
    if running is not None:
        optional["attempt"] = (running.id, running.attempt_id)
    asked |= {key: value for key, value in optional.items() if value is not None}
    audited = b"" if name is None else entry(by, "workflow.submitted", workflow, count=len(tasks))
    reply = yield from one(workflow_scripts.commit(asked, audited))
    if reply[0] == b"replayed" and once is not None:
        return replayed(add_script.read_replayed(reply[1], once))
    _refuse(tasks, reply, workflow)
    if chunks:
        yield from _expand(workflow)
    return workflow


def replayed(added: Added) -> str:
    """The id of the workflow that an earlier call with the same idempotency key submitted. Raises: KeyReused."""
    refuse((), added)
    return added.replayed[0]


class NotAdded(Exception):
    """A running task can't add to its workflow: ``lost`` (its attempt holds no lease any more), ``stopping`` (the
    workflow was stopped) or ``gone`` (it was removed)."""


def _expand(workflow: str) -> Plan[None]:
    """Store the tasks of committed chunks, those of earlier commits first: later ones may depend on them. If Redis is
    away or full, housekeeping does it later: the commit counts."""
    with suppress(RedisUnavailable, ReplyFault):
        while (yield from one(add_script.add_chunk(workflow))):
            pass


def _members(workflow: str, nodes: Iterable[CheckedNode], placed: Mapping[str, StoredNode]) -> Iterator[NewTask]:
    """The tasks as members of the workflow: with their ids, and with what they wait for."""
    inherited = 0
    for node in nodes:
        after, more = _edges(workflow, node.after, placed)
        inherited += more
        if inherited > MOST_INHERITED:
            raise _fault("/nodes", f"maps without tasks stand for more than {MOST_INHERITED:,} edges")
        mark = ("workflow", workflow, "node", node.name, *(("map", "1") if node.is_map else ()))
        kinds: dict[int, add_script.Shared] = {}
        for number, task in enumerate(node.tasks, start=placed[node.name].first):
            kind = kinds.get(id(task.shared))
            if kind is None:
                kind = kinds[id(task.shared)] = msgspec.structs.replace(task.shared, fields=task.shared.fields + mark)
            edges = dict.fromkeys([*map(Edge, task.parents), *task.edges, *after])
            yield msgspec.structs.replace(
                task,
                id=member_id(workflow, number),
                shared=kind,
                parents=tuple([edge.ref for edge in edges if edge.is_plain]),
                edges=tuple([edge for edge in edges if not edge.is_plain]),
                is_plain=False,
            )


def _edges(workflow: str, after: Iterable[After], placed: Mapping[str, StoredNode]) -> tuple[list[Edge], int]:
    """What the tasks of a node wait for. An empty map has ended from the start: what comes after it also waits for what
    the map comes after. The second value: how many edges those are."""
    found = dict.fromkeys(after)
    waiting = list(found)
    given = len(waiting)
    for each in waiting:  # grows while it is read
        node = placed[each.name]
        if node.size == 0 and each.on != "failure":
            behind = [After(name, on if each.on == "success" else "any") for name, on in node.after]
            waiting += dict.fromkeys([one for one in behind if one not in found])
            found |= dict.fromkeys(behind)
    return [Edge(placed[each.name].ref(workflow, each.name), each.on) for each in found], len(found) - given


def _chunks(tasks: Sequence[NewTask]) -> Iterator[bytes]:
    chunk: list[NewTask] = []
    size = edges = 0
    for task in tasks:
        more = len(task.parents) + len(task.edges)
        if chunk and edges + more > CHUNK_EDGES:
            yield add_script.chunk_of(chunk)
            chunk, size, edges = [], 0, 0
        chunk.append(task)
        size += len(task.data)
        edges += more
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield add_script.chunk_of(chunk)
            chunk, size, edges = [], 0, 0
    if chunk:
        yield add_script.chunk_of(chunk)


def _stage(token: str, chunks: Sequence[bytes], own: Mapping[str, StoredNode]) -> Plan[None]:
    # An empty map has no number of its own: its place is before the node that has its first one.
    entries = yield from collected(
        (name, node.first if node.size != 0 else node.first - 0.5 + at * 1e-6, _encode(node))
        for at, (name, node) in enumerate(own.items())
    )
    calls = [workflow_scripts.stage(token, at, chunk) for at, chunk in enumerate(chunks)]
    calls += [
        workflow_scripts.stage(token, 0, nodes=entries[at : at + NODES_AT_ONCE])
        for at in range(0, len(entries), NODES_AT_ONCE)
    ]
    for at in range(0, len(calls), AT_ONCE):
        if "lost" in (yield calls[at : at + AT_ONCE]):
            raise _unstaged()


def _unstaged() -> RedisUnavailable:
    return RedisUnavailable("Redis has lost the tasks of a workflow before they were committed: submit it again")


def _checks(nodes: Iterable[CheckedNode], tasks: Sequence[NewTask]) -> dict[str, Any]:
    """What the commit checks: what tasks depend on besides nodes, unique keys, room in the queues, and caps."""
    given = (task for node in nodes for task in node.tasks)
    refs = dict.fromkeys(ref for task in given for ref in (*task.parents, *(each.ref for each in task.edges)))
    places: Counter[tuple[str, str]] = Counter()
    for task in tasks:
        waits, is_later = task.parents or task.edges or task.confirm, task.run_ms or task.delay_ms
        places["deferred" if waits else "scheduled" if is_later else "queue", task.shared.queue] += 1
    return {
        "parents": [ref for ref in refs if ":" not in ref],
        "groups": [ref.partition(":")[0] for ref in refs if ":" in ref],
        "unique": [(task.unique.name, task.id) for task in tasks if task.unique is not None],
        "places": [(*place, count) for place, count in places.items()],
        "names": {
            "queues": list({task.shared.queue for task in tasks}),
            "tags": list({tag for task in tasks for tag in task.tags}),
        },
        **({"caps": tasks[0].caps._asdict()} if tasks else {}),
        **({"most": tasks[0].max_depth} if tasks and tasks[0].max_depth else {}),
    }


def _longest(tasks: Sequence[NewTask]) -> tuple[int, int]:
    """How long the workflow is kept that is done, and one that isn't: as long as any of its tasks asks for."""
    done = [task.shared.recorded["result_ttl_s"] for task in tasks]
    failed = [task.shared.failure_ttl_s for task in tasks]
    return tuple(-1 if min(ttls, default=0) < 0 else max(ttls, default=0) for ttls in (done, failed))  # type: ignore[return-value]


def _refuse(tasks: Sequence[NewTask], reply: list[Any], workflow: str) -> None:
    """Raise the error of a commit that stored nothing."""
    match reply:
        case [b"ok"]:
            return
        case [b"conflict", place, holder, status]:
            held = [index for index, task in enumerate(tasks) if task.unique is not None][place - 1]
            refuse(tasks, Added(conflict=(held, holder.decode(), status.decode())))
        case [b"unknown_dependency" | b"full" | b"capped", *_]:
            refuse(tasks, add_script.read_refusal(reply, tasks[0].max_depth))
        case [b"name", name]:
            raise name_exists(name.decode())
        case [b"many"]:
            raise _fault("/nodes", f"a workflow has at most {keys.WORKFLOW_MOST:,} tasks")
        case [b"unstaged"]:
            raise _unstaged()
    raise NotAdded(reply[0].decode())


def refuse_options(specs: Iterable[tuple[TaskSpec, str]]) -> None:
    """Refuse what a task of a workflow can't have; each comes with its JSON Pointer. Its place can't be taken by
    another task. Raises: InvalidTask."""
    for spec, pointer in specs:
        if spec.on_conflict not in (None, "reject"):
            text = "a task of a workflow can't be answered with another task, or replace one: only `reject` is possible"
            raise _fault(f"{pointer}/on_conflict", text)


def name_exists(name: str) -> InvalidTask:
    """The error for a name that another node of the workflow has."""
    return _fault("/name", f"the workflow has a node {name!r} already")


def _fault(pointer: str, text: str) -> InvalidTask:
    return InvalidTask(f"{pointer}: {text}", [FieldError(pointer, text)])
