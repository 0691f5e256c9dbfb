"""What tasks depend on, as users write it: the id of a task, or `Dependency`.

pool.add_task("clean_up", depends_on=[Dependency(import_id, on="any")])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, get_args

import msgspec

from taskpool.validation import TASK_ID, Field, Guesses

On = Literal["success", "failure", "any"]
"""How something must have ended for what comes after it to run. `success`: it is done. `failure`: it ended otherwise.
`any`: it ended. A map is done when all of its tasks are."""

ONS: Final = get_args(On)
_TAKES: Final = "a task's id"
WORKFLOW_MARK: Final = "workflow"


class Dependency(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task that must have ended before, and how; or a workflow."""

    id: Annotated[str | None, Field("The task's id. Either this or `workflow`.", pattern=TASK_ID)] = None
    on: Annotated[
        On,
        Field("How it must have ended: done (`success`), not done (`failure`), or in whatever way (`any`)."),
    ] = "success"
    workflow: Annotated[str | None, Field("The id of a workflow, all of which must have ended.", pattern=TASK_ID)] = (
        None
    )

    node: Annotated[str | None, Field("Only in records: the map of the workflow that the task waits for.")] = None

    def __str__(self) -> str:
        """As the command line takes it: ``ID:any``, ``workflow:ID``. The map of a workflow is ``map NAME``."""
        parts = (self.id,) if self.workflow is None else (WORKFLOW_MARK, self.workflow)
        if self.node is not None:
            parts = (f"map {self.node}",)
        return ":".join([part or "" for part in parts] + ([] if self.on == "success" else [self.on]))

    @classmethod
    def parse(cls, text: str) -> str | Dependency:
        """What the command line means: ``ID``, ``ID:ON``, ``workflow:ID``, ``workflow:ID:ON``. Ids aren't checked.

        Raises:
            ValueError: it has too many parts, or an unknown ON.
        """
        is_workflow = text.startswith(WORKFLOW_MARK + ":")
        id, colon, on = text.removeprefix(WORKFLOW_MARK + ":" if is_workflow else "").partition(":")
        if colon and on not in ONS:
            raise ValueError(f"{on[:40]!r} is not one of {', '.join(ONS)}")
        if is_workflow:
            return cls(workflow=id, on=on or "success")  # type: ignore[arg-type] # it is one of ONS
        return cls(id, on) if colon else id  # type: ignore[arg-type] # as above


if TYPE_CHECKING:
    Parent = str | Dependency | Mapping[str, str]
else:  # msgspec reads an object in a document as a `Dependency`
    Parent = str | Dependency
"""One item of `depends_on`: the id of a task, a `Dependency`, or a mapping with the same fields."""


class Edge(NamedTuple):
    """What a task waits for as it is stored. `ref` is the id of a task, ``{workflow}:{map}`` or ``{workflow}:`` for all
    of a workflow."""

    ref: str
    on: str = "success"

    @property
    def is_plain(self) -> bool:
        """Whether it is the success of a task, which RQ knows, too."""
        return self.on == "success" and ":" not in self.ref

    @property
    def shown(self) -> str | Dependency:
        """As a record shows it."""
        workflow, colon, node = self.ref.partition(":")
        if not colon:
            return self.ref if self.on == "success" else Dependency(self.ref, self.on)  # type: ignore[arg-type]
        return Dependency(workflow=workflow, on=self.on, node=node or None)  # type: ignore[arg-type]


def faults_of(item: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with one item of `depends_on`, each fault with its JSON Pointer below the item."""
    if isinstance(item, str):
        if not TASK_ID.fullmatch(item):
            yield "", f"must be {_TAKES}"
        return
    if isinstance(item, Dependency):
        fields = {name: getattr(item, name) for name in Dependency.__struct_fields__}
    elif isinstance(item, Mapping):
        fields = dict(item)
    else:
        yield "", f"must be {_TAKES}, or an object with `id` or `workflow`, and `on`"
        return
    for name in fields.keys() - {*Dependency.__struct_fields__}:
        yield f"/{name}", "unknown field" + Guesses().hint(str(name), Dependency.__struct_fields__)
    if fields.get("node") is not None:
        yield (
            "/node",
            "is only in records: a task can wait for a whole workflow",
        )
    given = [name for name in ("id", "workflow") if fields.get(name) is not None]
    for name in given:
        if not (isinstance(fields[name], str) and TASK_ID.fullmatch(fields[name])):
            yield f"/{name}", f"must be {_TAKES if name == 'id' else 'the id of a workflow'}"
    if len(given) != 1:
        yield "", "needs an id or a workflow" if not given else "give either id or workflow, not both"
    if fields.get("on", "success") not in ONS:
        yield "/on", f"must be one of {', '.join(ONS)}"


def edges_of(depends_on: Iterable[Any]) -> tuple[Edge, ...]:
    """What a task with this `depends_on`, which has no faults, waits for: each edge once, plain ones first."""
    edges = dict.fromkeys(map(_edge_of, depends_on))
    return tuple(sorted(edges, key=lambda edge: not edge.is_plain))


def _edge_of(item: str | Dependency | Mapping[str, Any]) -> Edge:
    if isinstance(item, str):
        return Edge(item)
    given = item if isinstance(item, Dependency) else Dependency(**item)
    return Edge(given.id if given.workflow is None else f"{given.workflow}:", given.on)  # type: ignore[arg-type]


def names(depends_on: Iterable[Any], id: str) -> bool:
    """Whether one of them is the task or the workflow with this id."""
    return any(edge.ref.partition(":")[0] == id for edge in edges_of(depends_on))
