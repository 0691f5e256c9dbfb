"""`pool.workflow` and `pool.batch`: what they submit, and when they submit nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from taskpool import InvalidTask, TaskSpec
from taskpool.operations.flow.builder import AsyncWorkflow, Workflow, batch_of
from taskpool.operations.flow.values import NodeSpec, WorkflowSpec
from taskpool.tasks.node import After

ECHO = TaskSpec(type="echo")


class Receipt(NamedTuple):
    id: str


class Pool:
    """Remembers what is submitted."""

    def __init__(self) -> None:
        self.submitted: list[WorkflowSpec] = []

    def submit(self, spec: WorkflowSpec) -> Receipt:
        self.submitted.append(spec)
        return Receipt("w1")

    async def submit_async(self, spec: WorkflowSpec) -> Receipt:
        return self.submit(spec)


def test_the_end_of_the_block_submits_all_nodes_at_once() -> None:
    pool = Pool()

    with Workflow("import", pool.submit) as w:
        rows = w.map("rows", (TaskSpec(type="row", payload={"n": n}) for n in range(2)))
        w.add("load", "load", {"url": "u"}, after="rows", max_attempts=3)
        w.add("summary", TaskSpec(type="sum", queue="a"), after=[rows.any(), "load"], queue="b")
        assert pool.submitted == []

    assert w.id == "w1"
    assert pool.submitted == [
        WorkflowSpec(
            name="import",
            nodes=(
                NodeSpec(name="rows", map=tuple(TaskSpec(type="row", payload={"n": n}) for n in range(2))),
                NodeSpec(
                    name="load",
                    task=TaskSpec(type="load", payload={"url": "u"}, max_attempts=3),
                    after=(After("rows"),),
                ),
                NodeSpec(
                    name="summary",
                    task=TaskSpec(type="sum", queue="b"),
                    after=(After("rows", "any"), After("load")),
                ),
            ),
        )
    ]  # fmt: skip


def test_the_async_form_does_the_same() -> None:
    pool = Pool()

    async def build() -> str:
        async with AsyncWorkflow("import", pool.submit_async) as w:
            w.add("a", ECHO)
        return w.id

    assert asyncio.run(build()) == "w1"
    assert pool.submitted == [WorkflowSpec(name="import", nodes=(NodeSpec(name="a", task=ECHO),))]


def test_an_exception_in_the_block_submits_nothing() -> None:
    pool = Pool()

    async def build() -> None:
        async with AsyncWorkflow("import", pool.submit_async) as w:
            w.add("a", ECHO)
            raise KeyError("row")

    w = Workflow("import", pool.submit)
    with suppress(KeyError), w:
        w.add("a", ECHO)
        raise KeyError("row")
    with pytest.raises(KeyError):
        asyncio.run(build())

    assert pool.submitted == []
    with pytest.raises(RuntimeError, match="submitted at the end"):
        _ = w.id


def test_a_name_twice_is_refused_at_its_line() -> None:
    pool = Pool()

    with suppress(InvalidTask), Workflow("import", pool.submit) as w:
        w.add("a", ECHO)
        with pytest.raises(InvalidTask, match=r"/nodes/1/name: the workflow has a node 'a' already"):
            w.map("a", [])
        w.map("a", [])

    assert pool.submitted == []


@pytest.mark.parametrize(
    ("specs", "pointer"), [([ECHO, "echo"], "/nodes/0/map/1"), ("echo", "/nodes/0/map"), (None, "/nodes/0/map")]
)
def test_what_is_no_list_of_tasks_is_refused_at_its_line(specs: Any, pointer: str) -> None:
    with pytest.raises(InvalidTask) as refused, Workflow("import", Pool().submit) as w:
        w.map("rows", specs)

    assert refused.value.errors[0].pointer == pointer


def test_a_batch_is_a_map_with_handlers_behind_it() -> None:
    handler = TaskSpec(type="handler")

    spec = batch_of(iter([ECHO, ECHO]), name="mails", on_done=ECHO, on_failure=None, on_end=handler)

    assert spec == WorkflowSpec(
        name="mails",
        nodes=(
            NodeSpec(name="tasks", map=(ECHO, ECHO)),
            NodeSpec(name="on_done", task=ECHO, after=(After("tasks"),)),
            NodeSpec(name="on_end", task=handler, after=(After("tasks", "any"),)),
        ),
    )
