"""All that is known of a run when it is over, and what is wrong with it: findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.chaos.harm import AWAY, NETWORK, Fault
from benchmarks.chaos.load import Ledger
from benchmarks.chaos.plan import Plan
from benchmarks.chaos.witness import Effect, Use
from taskpool.types import Event, TaskRecord, TaskStatus

NOTICE_S: Final = 12.0
"""How long a client may take to notice that its connection is dead: it waits 10 s for a reply."""
SETTLE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `kind` is a word of a short list; `id` is the task's, if it is about one."""

    kind: str
    text: str
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the run left behind. `records` are the tasks in Redis at the end, `specs` of all that were submitted."""

    plan: Plan
    ledger: Ledger
    events: Mapping[str, Sequence[Event]]
    effects: Mapping[str, Sequence[Effect]]
    faults: Sequence[Fault]
    records: Mapping[str, TaskRecord]
    growth: Mapping[tuple[str, int], tuple[Use, Use]]
    rolled_back: int
    heal_s: float

    def specs(self) -> dict[str, dict[str, Any]]:
        """What each accepted task was to be."""
        return self.ledger.accepted()

    def last_status(self, id: str) -> TaskStatus | None:
        """A task's status by its last event; None: it has none."""
        events = self.events.get(id)
        return events[-1].status if events else None

    def faults_at(self, pools: set[str], began_ms: float, ended_ms: float) -> list[Fault]:
        """The faults that could be felt in one of these pools (none named: anywhere) within a time."""
        return [
            fault
            for fault in self.faults
            if (not pools or fault.scope & pools)
            and fault.began_ms <= ended_ms
            and began_ms <= fault.ended_ms + self.felt_s(fault) * 1000
        ]

    def felt_s(self, fault: Fault) -> float:
        """How long after its end a fault can still be felt: nobody takes tasks back for a lease after an outage."""
        slow = fault.kind in AWAY | NETWORK - {"cut"}
        return 2 * self.plan.lease_s + SETTLE_S + (NOTICE_S if slow else 0)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt by the event stream: from `started` to whatever came next, and what it did outside Redis."""

    number: int
    started_ms: int
    over: Event | None
    """The event that ended it; None when nothing did."""
    effects: tuple[Effect, ...]

    @property
    def pids(self) -> set[int]:
        return {effect.pid for effect in self.effects}

    @property
    def pools(self) -> set[str]:
        return {effect.pool for effect in self.effects}


WHILE_RUNNING: Final = frozenset({TaskStatus.IN_PROGRESS, TaskStatus.STOPPING})


def attempts(events: Sequence[Event], effects: Sequence[Effect]) -> Iterator[Attempt]:
    """A task's attempts in order. An effect belongs to the last attempt of its number that had started by then."""
    starts = [event for event in events if event.event == "started"]
    owned: dict[int, list[Effect]] = {}
    for effect in effects:
        mine = [
            at
            for at, start in enumerate(starts)
            if start.data["attempt"] == effect.attempt and start.at_ms <= effect.at_ms + 1
        ]
        if mine:
            owned.setdefault(mine[-1], []).append(effect)
    for at, start in enumerate(starts):
        later = (event for event in events if event.seq > start.seq and event.status not in WHILE_RUNNING)
        yield Attempt(start.data["attempt"], start.at_ms, next(later, None), tuple(owned.get(at, ())))
