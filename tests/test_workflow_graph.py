"""The graph of a submitted workflow: each fault with its place, and the order of the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from taskpool import InvalidTask, TaskSpec, task
from taskpool.operations.flow.graph import Member, check_graph, members, ranked
from taskpool.operations.flow.values import MOST_ADDED, MOST_TASKS, NodeRecord, NodeSpec, WorkflowSpec
from taskpool.tasks.node import After, Node, afters

ECHO = TaskSpec(type="echo")


@task("work")
def work() -> None: ...


def workflow(*nodes: NodeSpec, name: Any = "import") -> WorkflowSpec:
    return WorkflowSpec(name=name, nodes=nodes)


def node(name: Any, *after: Any, **content: Any) -> NodeSpec:
    return NodeSpec(name=name, after=after, **(content or {"task": ECHO}))


def faults(spec: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidTask) as refused:
        check_graph(spec)
    return [(fault.pointer, fault.detail) for fault in refused.value.errors]


def test_the_rank_of_a_node_is_one_more_than_that_of_the_last_node_before_it() -> None:
    stored = [
        NodeRecord(name="a", id="ta"),
        NodeRecord(name="b", size=3, after=(After("a"),)),
        NodeRecord(name="c", id="tc", after=(After("a"), After("b", "any"), After("gone"))),
        NodeRecord(name="added", id="tx", added_by="tc"),
        NodeRecord(name="alone", id="ty", added_by="tz"),
    ]

    assert {each.name: each.rank for each in ranked(stored)} == {"a": 0, "b": 1, "c": 2, "added": 3, "alone": 0}


def test_each_node_comes_after_those_it_names() -> None:
    spec = workflow(node("d", "b", "c"), node("c", "a"), node("b", After("a", "any")), node("a"), node("alone"))

    order = [each.name for each in check_graph(spec)]

    assert sorted(order) == ["a", "alone", "b", "c", "d"]
    assert order.index("a") < min(order.index("b"), order.index("c"))
    assert order[-1] == "d"


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (workflow(), ("/nodes", "a workflow has 1 to 10,000 tasks, not 0")),
        (workflow(node("rows", map=[])), ("/nodes", "a workflow has 1 to 10,000 tasks, not 0")),
        (workflow(node("a"), name="a b"), ("/name", "must be a name: ")),
        (workflow(node("a"), name=None), ("/name", "must be a name: ")),
        (workflow(node("a:b")), ("/nodes/0/name", "must be a name: ")),
        (workflow(node(7)), ("/nodes/0/name", "must be a name: ")),
        (workflow(node("a"), node("a")), ("/nodes/1/name", "the node with the index 0 has the same name")),
        (workflow(node("a"), node("b", "c")), ("/nodes/1/after/0", "no node has the name 'c'")),
        (workflow(node("rows"), node("b", "rws")), ("/nodes/1/after/0", "did you mean 'rows'?")),
        (workflow(node("a"), node("b", After("c"))), ("/nodes/1/after/0/name", "no node has the name 'c'")),
        (workflow(node("a"), node("b", "a", After("a", "any"))), ("/nodes/1/after/1/name", "names the node 'a' twice")),
        (
            workflow(node("a"), node("b", After("a", "never"))),  # type: ignore[arg-type]
            ("/nodes/1/after/0/on", "must be one of success, failure, any, not 'never'"),
        ),
        (workflow(node("a", 3)), ("/nodes/0/after/0/name", "must be a name: ")),
        (workflow(NodeSpec(name="a", task=ECHO, after="b")), ("/nodes/0/after", "must be a list")),
        (workflow(NodeSpec(name="a")), ("/nodes/0", "needs either a task or a map")),
        (workflow(node("a", task=ECHO, map=[ECHO])), ("/nodes/0/map", "give either task or map, not both")),
        (workflow(node("a", task={"type": "echo"})), ("/nodes/0/task", "must be a TaskSpec, not dict")),
        (workflow(node("a", map=[ECHO, None])), ("/nodes/0/map/1", "must be a TaskSpec, not NoneType")),
        (workflow(node("a", map=[work])), ("/nodes/0/map/0", "must be a TaskSpec, not function: write work.spec(...)")),
        (workflow(node("a", map=ECHO)), ("/nodes/0/map", "must be a list of tasks, not TaskSpec")),
        (workflow(node("a", map=[ECHO, TaskSpec(type=7)])), ("/nodes/0/map/1/type", "must be the name")),  # type: ignore[arg-type]
        (workflow(node("a", "a")), ("/nodes/0/after/0", "makes a cycle: a → a")),
    ],
)
def test_a_fault_has_its_place(spec: WorkflowSpec, fault: tuple[str, str]) -> None:
    pointer, detail = faults(spec)[0]

    assert pointer == fault[0]
    assert fault[1] in detail


def test_a_cycle_is_shown_in_the_order_of_its_edges() -> None:
    spec = workflow(
        node("start"), node("behind", "c"), node("a", "c", "start"), node("b", "a"), node("c", "start", "b")
    )

    assert faults(spec) == [("/nodes/4/after/1", "makes a cycle: c → a → b → c")]


def test_of_a_long_cycle_a_part_is_shown() -> None:
    nodes = [node(f"n{at}", f"n{(at or 5000) - 1}") for at in range(5000)]

    ((pointer, detail),) = faults(workflow(*nodes))

    assert pointer == "/nodes/0/after/0"
    assert detail.startswith("makes a cycle: n0 → n1 → ")
    assert detail.endswith(" → … → n0")
    assert len(detail) < 100


def test_all_faults_are_found_up_to_a_hundred() -> None:
    spec = workflow(*[node("a", f"missing{at}") for at in range(200)])

    assert len(faults(spec)) == 100


@pytest.mark.parametrize("spec", [None, {}, "a", workflow(None), WorkflowSpec(name="a", nodes=7)])  # type: ignore[arg-type]
def test_what_is_no_workflow_is_refused(spec: Any) -> None:
    with pytest.raises(InvalidTask):
        check_graph(spec)


def test_too_many_tasks_are_refused_and_the_most_are_not() -> None:
    most = [ECHO] * MOST_TASKS

    assert check_graph(workflow(node("rows", map=most)))
    assert faults(workflow(node("rows", map=most), node("one")))[0] == (
        "/nodes",
        "a workflow has 1 to 10,000 tasks, not 10,001",
    )


def test_too_many_nodes_and_edges_are_refused() -> None:
    empty = [node(f"n{at}", map=[]) for at in range(MOST_TASKS)]
    parents = [node(f"p{at}") for at in range(100)]

    assert faults(workflow(node("one"), *empty)) == [("/nodes", "a workflow has at most 10,000 nodes, not 10,001")]
    assert check_graph(workflow(*parents, node("rows", *[each.name for each in parents], map=[ECHO] * 2_000)))
    ((pointer, detail),) = faults(
        workflow(*parents, node("rows", *[each.name for each in parents], map=[ECHO] * 2_001))
    )
    assert (pointer, detail.partition(":")[0]) == (
        "/nodes",
        "the tasks wait for nodes 200,100 times, and may 200,000 times",
    )


def test_a_deep_graph_needs_no_deep_stack() -> None:
    nodes = [node(f"n{at}", *([f"n{at - 1}"] if at else [])) for at in range(MOST_TASKS)]

    assert [each.name for each in check_graph(workflow(*nodes[::-1]))] == [each.name for each in nodes]


def test_each_task_knows_its_place() -> None:
    other = TaskSpec(type="other")
    spec = workflow(node("rows", map=[ECHO, other]), node("end", After("rows", "any"), task=other))

    assert list(members(spec)) == [
        Member(ECHO, "rows", 0, "/nodes/0/map/0"),
        Member(other, "rows", 1, "/nodes/0/map/1"),
        Member(other, "end", None, "/nodes/1/task"),
    ]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a", [After("a")]),
        (Node("a"), [After("a")]),
        (Node("a").any(), [After("a", "any")]),
        (["a", Node("b"), Node("c").failure(), Node("d").success()],
         [After("a"), After("b"), After("c", "failure"), After("d")]),
        ((), []),
        (iter(["a"]), [After("a")]),
        (None, [None]),
    ],
)  # fmt: skip
def test_after_takes_one_or_several(given: Any, meant: Sequence[After]) -> None:
    assert list(afters(given)) == meant


def test_a_document_names_nodes_briefly_or_with_how_they_end() -> None:
    text = b"""{"name": "import", "nodes": [
        {"name": "rows", "map": [{"type": "echo"}]},
        {"name": "end", "task": {"type": "echo"}, "after": ["rows", {"name": "rows", "on": "any"}]}]}"""

    spec = msgspec.json.decode(text, type=WorkflowSpec)

    assert spec.nodes[1].edges == (After("rows"), After("rows", "any"))


def test_a_running_task_adds_a_limited_number_of_nodes_and_tasks_at_once() -> None:
    task = TaskSpec(type="echo")
    nodes = [NodeSpec(name=f"n{number}", task=task) for number in range(MOST_TASKS + 1)]
    rows = [NodeSpec(name="rows", map=(task,) * (MOST_ADDED + 1))]
    for each in (nodes, rows):
        with pytest.raises(InvalidTask) as refused:
            check_graph(WorkflowSpec(name="added", nodes=each), known=())
        assert refused.value.errors[0].pointer == "/nodes"

    assert len(check_graph(WorkflowSpec(name="added", nodes=nodes[:-1]), known=())) == MOST_TASKS
