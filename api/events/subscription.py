"""What one client wants to hear of, and how far it has been told: nothing twice, nothing left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.events.outlet import Outlet, Step, Steps
from taskpool.eventlog import START, UNKNOWN, Position
from taskpool.types import TaskStatus


@dataclass(frozen=True, slots=True)
class Wanted:
    """One task (`task`), or all tasks that fit the rest and that the caller may see; None fits all.

    `project` is the caller's: if it has one, the tasks of others don't exist for it. `snapshots`: tell first how things
    stand.
    """

    project: str | None
    task: str | None = None
    status: TaskStatus | None = None
    queue: str | None = None
    type: str | None = None
    tag: str | None = None
    snapshots: bool = True

    def sees(self, project: str | None) -> bool:
        """Whether a task of this project exists for the caller."""
        return self.project is None or self.project == project

    def fits(self, step: Step) -> bool:
        """Whether an event is wanted. The attributes of its task must be known, unless it is wanted by id."""
        if self.task is not None:
            return step.event.id == self.task
        of = step.attributes or UNKNOWN
        return (
            self.sees(of.project)
            and (self.status is None or step.event.status is self.status)
            and (self.queue is None or of.queue == self.queue)
            and (self.type is None or of.type == self.type)
            and (self.tag is None or self.tag in of.tags)
        )


@dataclass(eq=False, slots=True)
class Subscription:
    """One of a client's subscriptions. `after`: what came up to here was told, or isn't wanted. `seen`: the last step
    that a snapshot showed of each task. `sent`: up to where its messages have left for the client."""

    wanted: Wanted
    outlet: Outlet
    name: str = ""
    after: Position = START
    sent: Position = START
    seen: Mapping[str, int] = field(default_factory=dict)
    live: bool = False
    closed: bool = False
    extra: Any = None

    def tell(self, steps: Sequence[Step], *, bounded: bool) -> None:
        """Tell of what is wanted among these events, which come in order; `bounded` if the client may be too slow."""
        if self.closed or not steps:
            return
        wanted, seen = self.wanted, self.seen
        fresh = [
            step
            for step in steps
            if step.at > self.after
            and wanted.fits(step)
            and not (seen and step.event.seq <= seen.get(step.event.id, 0))
        ]
        self.after = max(self.after, steps[-1].at)
        if fresh:
            item = Steps(self, fresh)
            if bounded:
                self.outlet.offer(item)
            else:
                self.outlet.put(item)
