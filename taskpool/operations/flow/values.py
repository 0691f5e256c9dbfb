"""The values of workflows: their statuses, what is submitted, and what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Final, NamedTuple

import msgspec

from taskpool.tasks.node import NODE_NAME, NODE_TAKES, After
from taskpool.types import Document, Exit, OpenEnum, TaskSpec, TaskStatus
from taskpool.validation import Field

MOST_TASKS: Final = 10_000
"""The tasks of one submission, and its nodes. Running tasks may add more."""
MOST_EDGES: Final = 200_000
"""How often the tasks of one submission may wait for a node: each task of a map waits for all nodes in `after`."""
MOST_ADDED: Final = 100_000
"""The tasks that a running task adds to its workflow at once."""
REMOVED: Final = "removed"
"""The word in `counts` for tasks that were removed, or whose record is gone."""


class WorkflowStatus(OpenEnum):
    """The status of a workflow. Later releases may add statuses. An unknown status isn't terminal."""

    IN_PROGRESS = "in_progress"
    STOPPING = "stopping"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_terminal(self) -> bool:
        """True if all its tasks have ended. Only a retry changes it then."""
        return self in WORKFLOW_TERMINAL


class WorkflowFacts(NamedTuple):
    """What the code needs to know about a status of a workflow, declared once."""

    moves: tuple[WorkflowStatus, ...]  # the statuses that may follow by themselves; a terminal status has none
    is_retryable: bool = False
    colour: str | None = None  # of its word on the command line
    exit_status: Exit = Exit.DONE  # of the command line, for a workflow that ended with it


W = WorkflowStatus

WORKFLOW_STATUSES: Final[Mapping[WorkflowStatus, WorkflowFacts]] = {
    W.IN_PROGRESS: WorkflowFacts((W.STOPPING, W.DONE, W.FAILED), colour="cyan"),
    W.STOPPING: WorkflowFacts((W.STOPPED,), colour="yellow"),  # asked to stop; tasks of it still run
    W.DONE: WorkflowFacts((), is_retryable=True, colour="green"),  # if failures of it were handled
    W.FAILED: WorkflowFacts((), is_retryable=True, colour="red", exit_status=Exit.FAILED),
    W.STOPPED: WorkflowFacts((), is_retryable=True, colour="yellow", exit_status=Exit.STOPPED),
}
"""Every status of a workflow. A retry leads from a retryable one back to `in_progress`."""

WORKFLOW_TERMINAL: Final = frozenset(status for status, facts in WORKFLOW_STATUSES.items() if not facts.moves)
WORKFLOW_RETRYABLE: Final = frozenset(status for status, facts in WORKFLOW_STATUSES.items() if facts.is_retryable)


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node of a submitted workflow: one task, or a map of tasks that is known by one name."""

    name: Annotated[
        str,
        Field("The node's name: 1 to 64 letters, digits or `_.-`.", pattern=NODE_NAME, takes=NODE_TAKES),
    ]
    task: Annotated[TaskSpec | None, Field("The task, as `POST /tasks` takes it. Either this or `map`.")] = None
    map: Annotated[Sequence[TaskSpec] | None, Field("The tasks of a map.", most=MOST_TASKS)] = None
    after: Annotated[
        Sequence[str | After],
        Field(
            "The nodes that must have ended before: names, or objects with `name` and `on` (`success`, `failure` or"
            " `any`). A name alone means `success`.",
            default="none",
            most=MOST_TASKS,
        ),
    ] = ()

    @property
    def edges(self) -> tuple[After, ...]:
        """`after`, with `success` where only a name is given."""
        return tuple(After(each) if isinstance(each, str) else each for each in self.after)


class WorkflowSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A submitted workflow: its name and its nodes. `graph.check_graph` says whether it is valid."""

    name: Annotated[
        str,
        Field("What it is called: 1 to 64 letters, digits or `_.-`. Several workflows may have the same name.",
              pattern=NODE_NAME, takes=NODE_TAKES, examples=["import"]),
    ]  # fmt: skip
    nodes: Annotated[
        Sequence[NodeSpec], Field(f"Its nodes, with at most {MOST_TASKS:,} tasks in all.", least=1, most=MOST_TASKS)
    ]


class WorkflowReceipt(NamedTuple):
    """What the API answers to the submission of a workflow."""

    id: str
    status: WorkflowStatus


class NodeRecord(Document, frozen=True, kw_only=True):
    """A node of a stored workflow: a task (`id`, `status`), or a map of tasks (`size`, `counts`)."""

    name: Annotated[str, Field(examples=["import"])]
    id: Annotated[str | None, Field("The id of its task.", examples=["d217r8m2n3aolstf2ch5"])] = None
    status: Annotated[TaskStatus | None, Field("The status of its task; without it, the task is gone.")] = None
    size: Annotated[int | None, Field("The number of tasks of the map.", least=0)] = None
    counts: Annotated[Mapping[str, int] | None, Field("The tasks of the map that have ended, by status.")] = None
    after: Annotated[tuple[After, ...], Field("The nodes that must have ended before.")] = ()
    added_by: Annotated[str | None, Field("The id of the task that added it while it ran.")] = None
    rank: Annotated[
        int, Field("Its column in a drawing: one more than the highest rank of the nodes before it.", least=0)
    ] = 0


class WorkflowRecord(Document, frozen=True, kw_only=True):
    """A workflow as it is stored. Times are aware, in UTC. A listing leaves out the nodes."""

    id: Annotated[str, Field(examples=["d217r8m2n3aolstf2ch5"])]
    name: Annotated[str, Field(examples=["import"])]
    status: WorkflowStatus
    total: Annotated[int, Field("The number of its tasks so far. Running tasks may add more.", least=0)]
    ended: Annotated[int, Field("How many of them have ended.", least=0)] = 0
    counts: Annotated[
        Mapping[str, int],
        Field("Those that have ended, by status. `removed`: tasks that are gone.", examples=[{"done": 3, "failed": 1}]),
    ]
    project: Annotated[str | None, Field("The project of the API key it was submitted with.")] = None
    created_at: datetime | None = None
    ended_at: datetime | None = None
    nodes: Annotated[tuple[NodeRecord, ...], Field("Its graph, in the order in which the nodes were added.")] = ()
    seq: Annotated[int, Field("Grows by one with each event of the workflow.", least=0)] = 0
