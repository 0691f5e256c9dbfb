"""All that is known of a run when it is over, and what is wrong with it: findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.chaos.cluster import RQ
from benchmarks.chaos.followers import Told
from benchmarks.chaos.harm import AWAY, NETWORK, Fault
from benchmarks.chaos.load import Ledger, Submission
from benchmarks.chaos.plan import Plan
from benchmarks.chaos.receiver import Message
from benchmarks.chaos.witness import Effect, Use
from taskpool.types import Event, TaskRecord, TaskStatus

NOTICE_S: Final = 12.0
"""How long a client may take to notice that its connection is dead: it waits 10 s for a reply."""
SETTLE_S: Final = 3.0
LEASE_ENDED: Final = "its worker was not heard of before the lease ended"
"""How the release before says that a lease was lost."""
VERIFIED: Final = "its process was killed before the lease ended"
"""An attempt with `on_lost_lease` "kill", by the supervisor that has seen its process end."""


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
    order: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """At which place of the stream an event, by its task and number, stands."""
    messages: Sequence[Message] = ()
    """What the receiver of webhooks was sent."""
    secret: str = ""
    """With which callbacks are signed."""
    told: Mapping[str, Sequence[Told]] = field(default_factory=dict)
    """What each follower was told."""
    has_older: bool = False
    """A pool ran the release before."""

    def spec(self, id: str) -> dict[str, Any]:
        """What a task was to be, also one whose submission was never answered; {}: it isn't known."""
        if id in (specs := self.specs()):
            return specs[id]
        batch, number = "", 0
        if id in self.records:
            batch, number = self.records[id].payload["batch"], self.records[id].payload["n"]
        elif effects := self.effects.get(id):
            batch, number = effects[0].batch, effects[0].n
        found = self.submission(batch)
        return found.specs[found.numbers.index(number)] if found else {}

    def submission(self, batch: str) -> Submission | None:
        """By the name that its tasks carry."""
        return next((each for each in self.ledger.submissions if each.batch == batch), None)

    def ran_in_rq(self, id: str) -> bool:
        """Whether a plain RQ worker ran it, of which no event tells."""
        return any(effect.pool == RQ for effect in self.effects.get(id, ()))

    def status(self, id: str) -> TaskStatus | None:
        """How a task ended, or stands: by its last event, or by its record if a plain RQ worker ran it."""
        if self.ran_in_rq(id) and id in self.records:
            return self.records[id].status
        return self.last_status(id)

    def is_presumed(self, event: Event) -> bool:
        """Whether this end of an attempt is presumed only: its lease ended, and the process may live on.

        The release before says so in the error alone."""
        error = str(event.data.get("error", ""))
        if "lease_lost" in (event.event, event.data.get("reason")):
            return VERIFIED not in error
        return self.has_older and LEASE_ENDED in error

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
        slow = fault.kind in AWAY | NETWORK - {"cut", "cut_api"}
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
    """A task's attempts in order, without those of plain RQ workers.

    What one process did from one `start` on belongs together, and to the last attempt of its number that had started
    by then: an attempt that was given back has the same number as the next one.
    """
    starts = [event for event in events if event.event == "started"]
    owned: dict[int, list[Effect]] = {}
    runs: dict[tuple[int, int], int] = {}
    for effect in effects:
        if effect.pool == RQ:  # which may run a task that was given back
            continue
        if effect.what == "start":
            mine = [
                at
                for at, start in enumerate(starts)
                if start.data["attempt"] == effect.attempt and start.at_ms <= effect.at_ms + 1
            ]
            runs[effect.pid, effect.attempt] = mine[-1] if mine else -1
        owned.setdefault(runs.get((effect.pid, effect.attempt), -1), []).append(effect)
    for at, start in enumerate(starts):
        later = (event for event in events if event.seq > start.seq and event.status not in WHILE_RUNNING)
        yield Attempt(start.data["attempt"], start.at_ms, next(later, None), tuple(owned.get(at, ())))


def is_given_back(before: Event, event: Event) -> bool:
    """Whether this event gives an attempt back, so that the next one has its number: on purpose, by a snooze or a
    question, or because its process died, and it isn't known of which of its tasks."""
    if before.status not in WHILE_RUNNING:
        return False
    if event.event in ("crashed", "lease_lost"):
        return "none is charged" in str(event.data.get("error", ""))
    is_queued = event.event == "queued" and event.status is TaskStatus.QUEUED
    return is_queued or event.event in ("snoozed", "waiting_confirmation")
