"""Checks the graph of a submitted workflow, and puts its nodes in order. Nothing is sent from here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, get_args

from msgspec.structs import replace

from taskpool.errors import FieldError, InvalidTask
from taskpool.operations.flow.values import MOST_ADDED, MOST_EDGES, MOST_TASKS, NodeRecord, NodeSpec, WorkflowSpec
from taskpool.operations.specs import hint_of
from taskpool.tasks.node import After
from taskpool.types import TaskSpec
from taskpool.types.dependency import On
from taskpool.validation import Guesses, declared, is_text, shortened

MOST_FAULTS: Final = 100
LONGEST_SHOWN: Final = 10
"""Nodes of a cycle that its fault names."""

_ONS: Final = get_args(On)
_NAME_FAULT: Final = {kind: next(each.fault for each in declared(kind) if each.name == "name")
                      for kind in (NodeSpec, WorkflowSpec, After)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """A task of a submitted workflow."""

    spec: TaskSpec
    node: str
    index: int | None  # its place in the map; None for a node with one task
    pointer: str  # to its submission in the document, for faults


def check_graph(spec: object, known: Collection[str] | None = None) -> list[NodeSpec]:
    """The nodes of a workflow in an order in which each comes after those it names.

    The options and payloads of the tasks aren't checked here. With `known`, the nodes are added to a workflow that has
    nodes with those names, and may have no tasks.

    Raises:
        InvalidTask: with a JSON Pointer for each fault: a name that can't be, a name twice, an unknown name, a cycle,
            no task, too many tasks, nodes or edges.
    """
    if not isinstance(spec, WorkflowSpec):
        raise InvalidTask(f"must be a WorkflowSpec, not {type(spec).__name__}")
    if faults := list(islice(_faults(spec, known), MOST_FAULTS)):
        raise InvalidTask(f"{faults[0].pointer}: {faults[0].detail}", faults)
    order = [spec.nodes[place] for place in in_order([(node.name, node.edges) for node in spec.nodes])]
    if len(order) < len(spec.nodes):
        fault = _cycle(spec.nodes, {node.name for node in order})
        raise InvalidTask(f"{fault.pointer}: {fault.detail}", [fault])
    return order


def members(spec: WorkflowSpec) -> Iterator[Member]:
    """Each task of a checked workflow, in the order of the document."""
    for at, node in enumerate(spec.nodes):
        if node.task is not None:
            yield Member(node.task, node.name, None, f"/nodes/{at}/task")
        for index, task in enumerate(node.map or ()):
            yield Member(task, node.name, index, f"/nodes/{at}/map/{index}")


def _faults(spec: WorkflowSpec, known: Collection[str] | None) -> Iterator[FieldError]:
    if fault := _NAME_FAULT[WorkflowSpec](spec.name):
        yield FieldError("/name", fault)
    if not _is_list(spec.nodes):
        yield FieldError("/nodes", f"must be a list of nodes, not {type(spec.nodes).__name__}")
        return
    first: dict[str, int] = {}
    count, guesses = 0, Guesses()
    for at, node in enumerate(spec.nodes):
        if not isinstance(node, NodeSpec):
            yield FieldError(f"/nodes/{at}", f"must be a NodeSpec, not {type(node).__name__}")
            return
        if fault := _NAME_FAULT[NodeSpec](node.name):
            yield FieldError(f"/nodes/{at}/name", fault)
        elif first.setdefault(node.name, at) != at:
            yield FieldError(f"/nodes/{at}/name", f"the node with the index {first[node.name]} has the same name")
        count += 1 if node.map is None else len(node.map) if _is_list(node.map) else 0
        yield from _content_faults(node, f"/nodes/{at}")
    yield from _size_faults(len(spec.nodes), count, is_new=known is None)
    names = {*first, *(known or ())}
    edges = 0
    for at, node in enumerate(spec.nodes):
        yield from _after_faults(node.after, names, f"/nodes/{at}/after", guesses)
        if isinstance(node.after, Sequence):
            edges += len(node.after) * (len(node.map) if isinstance(node.map, Sequence) else 1)
    if known is None and edges > MOST_EDGES:
        text = f"the tasks wait for nodes {edges:,} times, and may {MOST_EDGES:,} times"
        yield FieldError("/nodes", f"{text}: let them wait for one node that waits for the others")


def _size_faults(nodes: int, tasks: int, *, is_new: bool) -> Iterator[FieldError]:
    """What is wrong with the numbers of nodes and tasks of a new workflow, or of what is added to one."""
    if is_new and not 1 <= tasks <= MOST_TASKS:
        yield FieldError("/nodes", f"a workflow has 1 to {MOST_TASKS:,} tasks, not {tasks:,}")
    elif nodes > MOST_TASKS:
        most = "a workflow has at most {:,} nodes" if is_new else "at most {:,} nodes are added at once"
        yield FieldError("/nodes", f"{most.format(MOST_TASKS)}, not {nodes:,}")
    elif tasks > MOST_ADDED:
        yield FieldError("/nodes", f"at most {MOST_ADDED:,} tasks are added at once, not {tasks:,}")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _content_faults(node: NodeSpec, start: str) -> Iterator[FieldError]:
    if node.task is None and node.map is None:
        yield FieldError(start, "needs either a task or a map")
    elif node.task is not None and node.map is not None:
        yield FieldError(f"{start}/map", "give either task or map, not both")
    elif node.map is None:
        yield from _task_fault(node.task, f"{start}/task")
    elif not _is_list(node.map):
        yield FieldError(f"{start}/map", f"must be a list of tasks, not {type(node.map).__name__}")
    else:
        for index, task in enumerate(node.map):
            yield from _task_fault(task, f"{start}/map/{index}")


def _task_fault(task: object, start: str) -> Iterator[FieldError]:
    if not isinstance(task, TaskSpec):
        yield FieldError(start, f"must be a TaskSpec, not {type(task).__name__}{hint_of(task)}")
    elif not is_text(task.type):
        yield FieldError(f"{start}/type", f"must be the name of a task type, not {shortened(repr(task.type))}")


def _after_faults(after: Any, known: Collection[str], start: str, guesses: Guesses) -> Iterator[FieldError]:
    if not _is_list(after):
        yield FieldError(start, "must be a list of names, or of objects with `name` and `on`")
        return
    seen = set()
    for index, each in enumerate(after):
        at = f"{start}/{index}" if isinstance(each, str) else f"{start}/{index}/name"
        name, on = (each.name, each.on) if isinstance(each, After) else (each, "success")
        if fault := _NAME_FAULT[After](name):
            yield FieldError(at, fault)
        elif name not in known:
            near = guesses.near(name, known)
            yield FieldError(at, f"no node has the name {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif name in seen:
            yield FieldError(at, f"names the node {name!r} twice")
        if on not in _ONS:
            yield FieldError(f"{start}/{index}/on", f"must be one of {', '.join(_ONS)}, not {shortened(repr(on))}")
        if isinstance(name, str):
            seen.add(name)


def in_order(nodes: Sequence[tuple[str, Sequence[After]]]) -> list[int]:
    """The places of nodes, given by their names and edges, in topological order (Kahn's algorithm). Nodes on a cycle or
    behind one are left out; edges to unknown names are ignored."""
    known = {name for name, _ in nodes}
    behind: dict[str, list[int]] = {}
    missing = [0] * len(nodes)
    for place, (_, edges) in enumerate(nodes):
        for edge in edges:
            if edge.name in known:
                behind.setdefault(edge.name, []).append(place)
                missing[place] += 1
    order = [place for place, count in enumerate(missing) if not count]
    for place in order:  # grows while it is read
        for child in behind.get(nodes[place][0], ()):
            missing[child] -= 1
            if not missing[child]:
                order.append(child)
    return order


def ranked(nodes: Iterable[NodeRecord]) -> Iterator[NodeRecord]:
    """Stored nodes with their ranks: 0 without nodes before it, else one more than the highest rank of those. The node
    of the task that added a node is before it, too. Stored nodes come after those that they name: one pass is enough.
    """
    ranks: dict[str, int] = {}
    names: dict[str | None, str] = {}
    for node in nodes:
        before = [ranks[edge.name] for edge in node.after if edge.name in ranks]
        if node.added_by in names:
            before.append(ranks[names[node.added_by]])
        rank = max(before, default=-1) + 1
        ranks[node.name] = rank
        if node.id:
            names[node.id] = node.name
        yield replace(node, rank=rank)


def _cycle(nodes: Sequence[NodeSpec], ordered: set[str]) -> FieldError:
    """The fault of a graph in which only the nodes with the names `ordered` aren't on a cycle or behind one."""
    left = {node.name: node for node in nodes if node.name not in ordered}
    trail: dict[str, int] = {}  # each node that is left comes after another one that is left: so this walk meets itself
    name = next(iter(left))
    while name not in trail:
        trail[name] = len(trail)
        name = next(edge.name for edge in left[name].edges if edge.name in left)
    cycle = [each for each, place in trail.items() if place >= trail[name]]
    node = left[cycle[0]]
    at = next(place for place, each in enumerate(nodes) if each is node)
    index = next(place for place, edge in enumerate(node.edges) if edge.name in left)
    shown = [cycle[0], *cycle[:0:-1], cycle[0]]  # in the order in which they would run
    if len(shown) > LONGEST_SHOWN:
        shown[LONGEST_SHOWN - 2 : -1] = ["…"]
    return FieldError(f"/nodes/{at}/after/{index}", f"makes a cycle: {' → '.join(shown)}")
