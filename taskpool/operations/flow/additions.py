"""Tasks that a running task adds: `ctx.add_task` and `ctx.add_tasks`; in a workflow also `ctx.add` and `ctx.map`.

They get the project and the trace context of the running task. Each has an id that follows from the running task, from
what is submitted, and from how often the same was submitted before in this attempt. So another attempt that submits the
same gets the same ids, and what exists isn't added again. `add.lua` adds only while the attempt holds its lease.

Nodes of a workflow are collected, and committed together when the attempt ends as done, or at `ctx.commit()`. They are
known by their names: a node that an earlier attempt at the same task has committed stays as it is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from taskpool.access.audit import Actor
from taskpool.errors import AttemptLost, FieldError, InvalidTask, WorkflowNotFound
from taskpool.operations.flow.builder import WorkflowBuilder
from taskpool.operations.flow.expansion import CheckedNode, NotAdded, StoredNode, commit, name_exists, refuse_options
from taskpool.operations.flow.graph import check_graph
from taskpool.operations.flow.values import NodeSpec
from taskpool.operations.flow.workflows import stored_nodes
from taskpool.operations.queue import CHUNK, Rules, refuse
from taskpool.operations.specs import read_specs, spec_given
from taskpool.operations.submit import as_json, check_task, check_tasks
from taskpool.redis import add_script, keys, workflow_scripts
from taskpool.redis.add_script import NewTask, accepted_status, attempt_guard
from taskpool.redis.calls import Call, Plan, one
from taskpool.tasks.context import TaskStopped
from taskpool.tasks.hooks import sending
from taskpool.tasks.node import NODE_NAME, NODE_TAKES, Afters, Node
from taskpool.types import OPTIONS, Receipt, RunningTask, TaskSpec
from taskpool.validation import derived_id, is_text

ADDED: Final = "added"

_encode: Final = msgspec.json.Encoder(order="sorted", enc_hook=str).encode


class Additions:
    """What one attempt has added so far. Its plans are carried out one after the other."""

    def __init__(self, running: RunningTask, rules: Rules) -> None:
        self._running, self._rules = running, rules
        self._by: Actor | None = None
        self._counts = Counter[bytes]()  # by what was submitted
        self._nodes = WorkflowBuilder[Any](ADDED)
        self._committed = set[str]()  # the names of nodes that this attempt has committed

    def add_task(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> Plan[Receipt]:
        """Add the task that these arguments of `ctx.add_task` submit.

        Raises:
            InvalidTask, UniqueConflict, QueueFull: as `TaskPool.add_task`; nothing was stored.
            AttemptLost: the attempt no longer holds its lease; nothing was stored.
        """
        spec = self._traced(spec_given(given, dict(named)))
        by = yield from self._actor()
        with sending([spec]) as sent:
            task = yield from check_task(sent.specs[0], *self._rules, by=by)
            sent.note((task,))
            (receipt,) = yield from self._store([spec], [task])
        return receipt

    def add_tasks(self, specs: Iterable[TaskSpec]) -> Plan[list[Receipt]]:
        """Add tasks, in order: all are checked before the first is stored, and each thousand is stored whole or not.

        Raises: as `add_task`; pointers start with the index of the task.
        """
        listed = [self._traced(spec, f"/{index}") for index, spec in enumerate(read_specs(specs))]
        by = yield from self._actor()
        with sending(listed) as sent:
            checked = yield from check_tasks(sent.specs, *self._rules, by=by)
            sent.note(checked)
            return (yield from self._store(listed, checked))

    def add_node(self, name: str, given: tuple[Any, ...], after: Afters, options: Mapping[str, Any]) -> Node:
        """Collect a node with one task. Raises: InvalidTask."""
        self._check_name(name)
        return self._nodes.add(name, *given, after=after, **options)

    def add_map(self, name: str, specs: Iterable[TaskSpec], after: Afters) -> Node:
        """Collect a map. Raises: InvalidTask."""
        self._check_name(name)
        return self._nodes.map(name, specs, after=after)

    def _check_name(self, name: object) -> None:
        if self._running.workflow is None:
            text = f"the task {self._running.id} belongs to no workflow, so it can't add to one: use ctx.add_task"
            raise InvalidTask(text, [FieldError("/name", text)])
        if not (isinstance(name, str) and NODE_NAME.fullmatch(name)):
            text = f"{name!r} can't be {NODE_TAKES}"
            raise InvalidTask(f"/name: {text}", [FieldError("/name", text)])
        if name in self._committed:
            raise name_exists(name)

    def commit(self) -> Plan[list[str]]:
        """Add the collected nodes to the workflow, all or none; lines for the task's log. Refused nodes are dropped.

        Raises:
            InvalidTask, UniqueConflict, QueueFull: as `add_workflow`; or another task has added a node with one of the
                names. Nothing was stored.
            AttemptLost: the attempt no longer holds its lease; nothing was stored.
            TaskStopped: the workflow was stopped; nothing was stored.
            WorkflowNotFound: it was removed.
        """
        workflow = self._running.workflow
        if not self._nodes.spec.nodes or workflow is None:
            return []
        try:
            lines = yield from self._commit_all(workflow)
        except InvalidTask:
            self._nodes = WorkflowBuilder(ADDED)
            raise
        self._nodes = WorkflowBuilder(ADDED)
        return lines

    def _commit_all(self, workflow: str) -> Plan[list[str]]:
        nodes = self._nodes.spec.nodes
        stored = yield from _known(workflow, _names(nodes))
        checked = yield from self._checked(check_graph(self._nodes.spec, stored.keys()))
        lines, fresh = [], []
        for node in checked:
            there = stored.get(node.name)
            if there is None:
                fresh.append(node)
            elif there.by != self._running.id:
                raise name_exists(node.name)
            elif there.digest != node.digest:
                what = "list of tasks" if node.is_map else "task"
                lines.append(f"the node {node.name!r} stays as an earlier attempt has added it, with another {what}")
        if fresh:
            yield from self._commit(workflow, fresh, stored)
        self._committed |= {node.name for node in nodes}
        return lines

    def _checked(self, nodes: Sequence[NodeSpec]) -> Plan[list[CheckedNode]]:
        by = yield from self._actor()
        specs = [
            (self._traced(spec, pointer), pointer)
            for at, node in enumerate(nodes)
            for spec, pointer in (
                [(node.task, f"/nodes/{at}/task")]
                if node.task is not None
                else [(spec, f"/nodes/{at}/map/{index}") for index, spec in enumerate(node.map or ())]
            )
        ]
        refuse_options(specs)
        pointers = [pointer for _, pointer in specs]
        with sending([spec for spec, _ in specs]) as sent:
            tasks = yield from check_tasks(sent.specs, *self._rules, by=by, pointers=pointers)
            sent.note(tasks)
        checked = []
        rest = iter(zip(specs, tasks, strict=True))
        for node in nodes:
            of_node = list(islice(rest, 1 if node.map is None else len(node.map)))
            after = _encode([(each.name, each.on) for each in node.edges])
            digest = hashlib.blake2b(after, digest_size=16)
            for (spec, pointer), task in of_node:
                if any(edge.ref == f"{self._running.workflow}:" for edge in task.edges):
                    text = "a task can't wait for the workflow that it belongs to"
                    raise InvalidTask(f"{pointer}/depends_on: {text}", [FieldError(f"{pointer}/depends_on", text)])
                digest.update(_identity(spec, task))
            checked.append(CheckedNode.of(node, [task for _, task in of_node], digest.hexdigest()))
        return checked

    def _commit(self, workflow: str, nodes: Sequence[CheckedNode], known: Mapping[str, StoredNode]) -> Plan[None]:
        running = self._running
        first = yield from one(workflow_scripts.reserve(workflow, sum(len(node.tasks) for node in nodes)))
        if first is None:
            raise WorkflowNotFound(workflow)
        by = yield from self._actor()
        try:
            yield from commit(workflow, nodes, first=first, known=known, project=by.project, running=running)
        except NotAdded as refusal:
            match str(refusal):
                case "stopping":
                    raise TaskStopped from None
                case "gone":
                    raise WorkflowNotFound(workflow) from None
            lost = f"attempt {running.attempt} of task {running.id} no longer holds its lease: it can't add tasks"
            raise AttemptLost(lost) from None

    def _traced(self, spec: TaskSpec, start: str = "") -> TaskSpec:
        """The submission with JSON values, and with the trace context of the running task if it has none."""
        spec = replace(spec, payload=as_json(spec, start))
        if spec.traceparent is not None or self._running.traceparent is None:
            return spec
        return replace(spec, traceparent=self._running.traceparent, tracestate=self._running.tracestate)

    def _actor(self) -> Plan[Actor]:
        """Who adds them: the running task, in its project."""
        if self._by is None:
            id = self._running.id
            project = yield from one(Call(("HGET", keys.JOB + id, "project"), _text, again=True))
            self._by = Actor(None, f"task {id}", project, "")
        return self._by

    def _store(self, specs: Sequence[TaskSpec], checked: Sequence[NewTask]) -> Plan[list[Receipt]]:
        running, counts = self._running, self._counts.copy()
        tasks, receipts = [], []
        for spec, task in zip(specs, checked, strict=True):
            what = _identity(spec, task)
            counts[what] += 1
            tasks.append(replace(task, id=derived_id(running.id, b"%s%d" % (what, counts[what]))))
        for at in range(0, len(tasks), CHUNK):
            chunk = tasks[at : at + CHUNK]
            added = yield from one(add_script.add(chunk, guard=attempt_guard(running)))
            if added.broken_guard:
                lost = f"attempt {running.attempt} of task {running.id} no longer holds its lease: it can't add tasks"
                raise AttemptLost(lost)
            refuse(chunk, added, at)
            receipts += [
                Receipt(added.existing.get(index, task.id), accepted_status(status), index in added.existing)
                for index, (task, status) in enumerate(zip(chunk, added.statuses, strict=True))
            ]
        self._counts = counts  # only now: a task may catch the error and submit the same again
        return receipts


def _identity(spec: TaskSpec, task: NewTask) -> bytes:
    """A hash of what is submitted, with masks in place of secrets."""
    options = {each.name: value for each in OPTIONS if (value := getattr(spec, each.name)) != each.default}
    return hashlib.blake2b(_encode((spec.type, task.payload, options)), digest_size=16).digest()


def _names(nodes: Sequence[NodeSpec]) -> list[str]:
    """The names of nodes, and of those that they follow."""
    names = dict.fromkeys(name for node in nodes for name in (node.name, *(each.name for each in node.edges)))
    return [name for name in names if is_text(name)]


def _known(workflow: str, names: Sequence[str]) -> Plan[dict[str, StoredNode]]:
    """The stored nodes with these names, and what maps without tasks come after: see `expansion`."""
    found: dict[str, StoredNode] = {}
    while names:
        more = yield from stored_nodes(workflow, names)
        found |= more
        behind = dict.fromkeys(name for node in more.values() if node.size == 0 for name, _ in node.after)
        names = [name for name in behind if name not in found]
    return found


def _text(reply: bytes | None) -> str | None:
    return None if reply is None else reply.decode()
