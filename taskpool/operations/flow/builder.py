"""Builds workflows in programs: `pool.workflow` and `pool.batch`.

with pool.workflow("import") as w:
    rows = w.map("rows", [import_row.spec(row=row) for row in rows])
    w.add("summary", import_summary.spec(), after=rows.any())
print(w.id)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar, Unpack

from taskpool.errors import FieldError, InvalidTask
from taskpool.operations.flow.values import NodeSpec, WorkflowSpec
from taskpool.operations.specs import read_specs, spec_given
from taskpool.tasks.node import Afters, Node, afters
from taskpool.types import TaskOptions, TaskSpec

BATCH: Final = "tasks"
"""The name of the map in a batch."""


class HasId(Protocol):
    """A submitted workflow."""

    @property
    def id(self) -> str:
        """Its id."""


S = TypeVar("S", bound=HasId)


class WorkflowBuilder(Generic[S]):
    """Collects the nodes of a workflow. They are submitted together at the end of the `with` block; if the block raises
    an exception, nothing is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: dict[str, NodeSpec] = {}
        self._submitted: S | None = None

    def add(
        self,
        name: str,
        task: TaskSpec | str,
        payload: Any = None,
        /,
        *,
        after: Afters = (),
        **options: Unpack[TaskOptions],
    ) -> Node:
        """Add a task: a `TaskSpec`, or the name of a task type and its payload. Options given here replace those of the
        spec. `after` names the nodes that must have ended before: names, or nodes with `any()` or `failure()`.

        Raises: InvalidTask, if a node has this name already."""
        spec = spec_given((task,) if payload is None else (task, payload), dict(options))
        return self._add(NodeSpec(name=name, task=spec, after=afters(after)))

    def map(self, name: str, specs: Iterable[TaskSpec], *, after: Afters = ()) -> Node:
        """Add many tasks under one name. What comes after a map waits for all of them.

        Raises: InvalidTask, if a node has this name already, or one of them is no `TaskSpec`."""
        start = f"/nodes/{len(self._nodes)}/map"
        return self._add(NodeSpec(name=name, map=tuple(read_specs(specs, start)), after=afters(after)))

    def _add(self, node: NodeSpec) -> Node:
        if node.name in self._nodes:
            fault = FieldError(f"/nodes/{len(self._nodes)}/name", f"the workflow has a node {node.name!r} already")
            raise InvalidTask(f"{fault.pointer}: {fault.detail}", [fault])
        self._nodes[node.name] = node
        return Node(node.name)

    @property
    def spec(self) -> WorkflowSpec:
        """What has been added so far."""
        return WorkflowSpec(name=self._name, nodes=tuple(self._nodes.values()))

    @property
    def submitted(self) -> S:
        """What the submission returned. Raises: RuntimeError, before the end of the block."""
        if self._submitted is None:
            raise RuntimeError("the workflow is submitted at the end of its `with` block; it has no id before")
        return self._submitted

    @property
    def id(self) -> str:
        """The id of the submitted workflow. Raises: RuntimeError, before the end of the block."""
        return self.submitted.id


class Workflow(WorkflowBuilder[S]):
    """A workflow that is submitted at the end of a `with` block."""

    def __init__(self, name: str, submit: Callable[[WorkflowSpec], S]) -> None:
        super().__init__(name)
        self._submit = submit

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self._submitted = self._submit(self.spec)


class AsyncWorkflow(WorkflowBuilder[S]):
    """A workflow that is submitted at the end of an `async with` block."""

    def __init__(self, name: str, submit: Callable[[WorkflowSpec], Awaitable[S]]) -> None:
        super().__init__(name)
        self._submit = submit

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self._submitted = await self._submit(self.spec)


def batch_of(
    specs: Iterable[TaskSpec],
    *,
    name: str,
    on_done: TaskSpec | None,
    on_failure: TaskSpec | None,
    on_end: TaskSpec | None,
) -> WorkflowSpec:
    """The workflow of a batch: a map of the tasks, and after it a node for each handler, with the handler's name.

    Raises: InvalidTask, if one of them is no `TaskSpec`."""
    builder = WorkflowBuilder[Any](name)
    tasks = builder.map(BATCH, specs)
    for handler, spec, after in (
        ("on_done", on_done, tasks.success()),
        ("on_failure", on_failure, tasks.failure()),
        ("on_end", on_end, tasks.any()),
    ):
        if spec is not None:
            builder.add(handler, spec, after=after)
    return builder.spec
