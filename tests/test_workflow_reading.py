"""A workflow as a JSON document: what it stands for, and each fault with its place."""

from __future__ import annotations

from typing import Any

import pytest

from taskpool import InvalidTask, TaskSpec
from taskpool.operations.flow.graph import check_graph
from taskpool.operations.flow.values import NodeSpec, WorkflowSpec
from taskpool.operations.reading import read_workflow
from taskpool.tasks.node import After

ECHO = {"type": "echo"}


def one(node: Any) -> dict[str, Any]:
    return {"name": "import", "nodes": [{"name": "first", "task": ECHO}, node]}


def test_a_document_is_read_as_a_workflow() -> None:
    document = {
        "name": "import",
        "nodes": [
            {"name": "rows", "map": [{"type": "row", "payload": {"n": 1}, "max_attempts": 3.0}, ECHO]},
            {"name": "end", "task": {"type": "sum", "delay": "5m"}, "after": ["rows", {"name": "other", "on": "any"}]},
            {"name": "other", "task": ECHO, "map": None, "after": []},
        ],
    }

    spec = read_workflow(document)

    assert spec == WorkflowSpec(
        name="import",
        nodes=[
            NodeSpec(name="rows", map=[TaskSpec(type="row", payload={"n": 1}, max_attempts=3), TaskSpec(type="echo")]),
            NodeSpec(name="end", task=TaskSpec(type="sum", delay_s=300.0), after=["rows", After("other", "any")]),
            NodeSpec(name="other", task=TaskSpec(type="echo"), after=[]),
        ],
    )


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        (7, ""),
        ([], ""),
        ({}, "/name"),
        ({"name": "a", "nodes": {}}, "/nodes"),
        ({"name": "a", "nodes": []}, "/nodes"),
        ({"name": "a", "nodes": [], "tasks": []}, "/tasks"),
        (one(7), "/nodes/1"),
        (one({"task": ECHO}), "/nodes/1/name"),
        (one({"name": 7, "task": ECHO}), "/nodes/1/name"),
        (one({"name": "b", "task": 7}), "/nodes/1/task"),
        (one({"name": "b", "task": {}}), "/nodes/1/task/type"),
        (one({"name": "b", "task": ECHO | {"dealy": 5}}), "/nodes/1/task/dealy"),
        (one({"name": "b", "task": ECHO | {"max_attempts": "x"}}), "/nodes/1/task/max_attempts"),
        (one({"name": "b", "map": ECHO}), "/nodes/1/map"),
        (one({"name": "b", "map": [ECHO, None]}), "/nodes/1/map/1"),
        (one({"name": "b", "map": [ECHO, ECHO | {"tags": [7]}]}), "/nodes/1/map/1/tags/0"),
        (one({"name": "b", "task": ECHO, "after": "first"}), "/nodes/1/after"),
        (one({"name": "b", "task": ECHO, "after": ["first", 7]}), "/nodes/1/after/1"),
        (one({"name": "b", "task": ECHO, "after": [{"name": "first", "on": "end"}]}), "/nodes/1/after/0/on"),
        (one({"name": "b", "task": ECHO, "after": ["third"]}), "/nodes/1/after/0"),
        (one({"name": "b", "task": ECHO, "deps": ["first"]}), "/nodes/1/deps"),
        (one({"name": "b"}), "/nodes/1"),
    ],
)
def test_a_fault_has_its_place(document: Any, pointer: str) -> None:
    with pytest.raises(InvalidTask) as refused:
        check_graph(read_workflow(document))

    assert refused.value.errors[0].pointer == pointer


def test_all_faults_of_all_nodes_are_named() -> None:
    document = {
        "name": "a",
        "nodes": [
            {"name": "b", "task": {"typ": "echo"}},
            {"name": "c", "map": [{"type": "echo", "front": 7}, {"type": 7}], "when": 1},
            {"name": "d", "map": [{"type": "echo", "front": 7}, {"type": 7}]},
        ],
    }

    with pytest.raises(InvalidTask) as refused:
        read_workflow(document)

    assert [each.pointer for each in refused.value.errors] == [
        "/nodes/0/task/typ",
        "/nodes/0/task/type",
        "/nodes/1/when",
        "/nodes/2/map/0/front",
        "/nodes/2/map/1/type",
    ]
    assert str(refused.value).endswith("(and 4 more)")


@pytest.mark.parametrize(
    "nodes", [[{}] * 300_000, [{"name": "a", "map": [{}] * 300_000}], [{"name": "a", "map": []}] * 20_000]
)
def test_a_document_with_too_many_tasks_is_refused_before_they_are_read(nodes: Any) -> None:
    with pytest.raises(InvalidTask) as refused:
        read_workflow({"name": "a", "nodes": nodes})

    assert [each.pointer for each in refused.value.errors] == ["/nodes"]
