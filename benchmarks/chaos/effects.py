"""Did the tasks do what their histories say? What they did stands in a file outside Redis.

A task may run again only if something could have ended its attempt: a fault, what it was told to do itself, or what
happened to another task of the same process.
"""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from benchmarks.chaos.cluster import RQ
from benchmarks.chaos.evidence import LEASE_ENDED, VERIFIED, Attempt, Evidence, Finding, attempts
from benchmarks.chaos.harm import AWAY, FREEZES, NETWORK
from benchmarks.chaos.load import SOON_PURGED_S, edges
from taskpool.types import TERMINAL, Event, TaskStatus

CLOCK_MS: Final = 2
ENDS_FOR: Final = {"success": {TaskStatus.DONE}, "failure": TERMINAL - {TaskStatus.DONE}, "any": TERMINAL}
BESIDE_MS: Final = 10_000
"""How long ago a task beside this one may have shown its process, and how long after one another both are settled."""
DEATHS: Final = frozenset({"kill_child", "kill_fork_server"})
"""What ends a process whose supervisor lives to tell."""
LOST_LEASES: Final = AWAY | FREEZES | {"kill_supervisor"} | NETWORK - {"cut", "cut_api"}
"""What keeps a pool from renewing its leases. Lost connections alone don't: new ones are made in time."""
CONTINUED: Final = f"process ended with exit status {int(signal.SIGCONT)}"
"""A process with a task in a thread that must not outlive its lease ends itself so when it continues after a freeze."""
ENDS: Final = frozenset({"drain_pool"})
"""What has an attempt given back on purpose that has begun."""
RETURNS: Final = AWAY | DEATHS | FREEZES | NETWORK | {"drain_pool", "freeze_child", "freeze_fork_server"}
"""What has claims given back: on purpose, or because nobody saw their answers."""


def check_effects(evidence: Evidence) -> Iterator[Finding]:
    """Findings: effect, once, order, stopped, gone, overlap, canceled, failed."""
    for id, events in evidence.events.items():
        effects = evidence.effects.get(id, ())
        starts = sum(effect.what == "start" and effect.pool != RQ for effect in effects)
        in_rq = sum(effect.what == "start" and effect.pool == RQ for effect in effects)
        claims = sum(event.event == "started" for event in events)
        ends = [effect for effect in effects if effect.what == "end"]
        if starts > claims:
            yield Finding("once", f"it began {starts} times, and was claimed {claims} times", id)
        if in_rq > 1:
            yield Finding("once", f"RQ's worker began it {in_rq} times", id)
        if evidence.status(id) is TaskStatus.DONE:
            before = [end for end in ends if end.at_ms <= events[-1].at_ms + CLOCK_MS or end.pool == RQ]
            if not before:
                yield Finding("effect", "it is done, and nothing shows that its work was done before", id)
            if claims + in_rq == 1 and (starts + in_rq, len(ends)) != (1, 1):
                yield Finding("once", f"claimed once, it began {starts} times and ended {len(ends)} times", id)
        yield from _check_order(evidence, id, events)
        yield from _check_causes(evidence, id, events)
        made = list(attempts(events, effects))
        for attempt in made:
            yield from _check_gone(evidence, id, attempt)
            if is_again(attempt) and explanation(evidence, id, attempt) is None:
                yield Finding("once", f"attempt {attempt.number} ended in {attempt.over}, and nothing explains it", id)
        if evidence.spec(id).get("on_lost_lease") == "kill":
            yield from _check_overlap(id, made)
        yield from _check_failure(evidence, id, events)
    for id in evidence.effects:
        if id not in evidence.events:
            yield Finding("effect", "it did something, and no event tells of it", id)
    yield from _check_words(evidence)


def is_again(attempt: Attempt) -> bool:
    """Whether it ended in a way that has the task run again though its code didn't ask for that, or fail for that."""
    over = attempt.over
    if over is None or over.event in ("retry", "snoozed"):
        return False
    # A process whose supervisor a busy machine keeps waiting gives back what it has claimed and not begun.
    if over.event == "queued" and not attempt.effects:
        return False
    return over.status in (TaskStatus.QUEUED, TaskStatus.SCHEDULED) or (
        "crashed" in str(over.data.get("error", "")) or over.data.get("reason") == "lease_lost"
    )


def explanation(evidence: Evidence, id: str, attempt: Attempt) -> str | None:
    """What ended an attempt before its time; None: nothing that happened could have."""
    if evidence.spec(id).get("payload", {}).get("do") == "die" and attempt.number == 1:
        return "it killed its process itself"
    over_ms = attempt.over.at_ms if attempt.over else attempt.started_ms
    causes = _causes(attempt, evidence.spec(id).get("payload", {}))
    faults = [
        fault
        for fault in evidence.faults_at(attempt.pools, attempt.started_ms, over_ms)
        if fault.kind in causes and (fault.kind not in DEATHS or not attempt.pids or attempt.pids & set(fault.pids))
    ]
    if faults:
        return "+".join(sorted({fault.kind for fault in faults}))
    if causes >= LOST_LEASES:
        return None
    return _beside(evidence, id, attempt, over_ms)


def _causes(attempt: Attempt, payload: Mapping[str, Any]) -> frozenset[str]:
    """The kinds of faults that can end an attempt at a task with this payload as this one ended."""
    error = str(attempt.over.data.get("error", "")) if attempt.over else ""
    if not error.startswith("lease lost") and LEASE_ENDED not in error:
        if attempt.over is not None and attempt.over.event == "queued" and attempt.effects:
            # It had begun, so its claim was seen. If a process dies while it writes an outcome, that attempt is given
            # back when the code of another one still ran, which is charged. One that fails or snoozes leaves no "end".
            ends_early = payload.get("fails", 0) >= attempt.number or "snoozes" in payload
            return ENDS | DEATHS if attempt.effects[-1].what == "end" or ends_early else ENDS
        if CONTINUED in error:
            return DEATHS | FREEZES | {"freeze_child"}
        return DEATHS if "process ended" in error else RETURNS
    # Its supervisor renews what a frozen process runs, but not a claim that it was frozen before it saw (and that is
    # given back, unless the lease ends before the supervisor could tell).
    over_ms = attempt.over.at_ms if attempt.over else 0
    unseen = all(effect.at_ms > over_ms for effect in attempt.effects)
    return LOST_LEASES | {"freeze_child"} if unseen else LOST_LEASES


def _beside(evidence: Evidence, id: str, attempt: Attempt, over_ms: float) -> str | None:
    """Whether it was another task of the same process that ended the process, or had it ended."""
    for other, effects in evidence.effects.items():
        spec = evidence.spec(other)
        beside = [
            effect
            for effect in effects
            if attempt.started_ms - BESIDE_MS <= effect.at_ms <= over_ms
            if effect.pid in attempt.pids or not attempt.pids
        ]
        if other == id or not beside or not spec:
            continue
        if spec["payload"].get("do") == "die":
            return "beside one that killed its process"
        for event in evidence.events.get(other, ()):
            if abs(event.at_ms - over_ms) < BESIDE_MS:
                error = str(event.data.get("error", ""))
                if event.event == "stopped" or "timed out" in error or VERIFIED in error:
                    return "beside one that was stopped, timed out or lost its lease"
    return None


def duplicates(evidence: Evidence) -> Counter[str]:
    """Why tasks did their whole work more than once, and how many did."""
    why: Counter[str] = Counter()
    for id, effects in evidence.effects.items():
        ends = sum(effect.what == "end" for effect in effects)
        events = evidence.events.get(id, ())
        by_hand = sum(event.data.get("retried_by") == "hand" for event in events)
        if ends > 1 + by_hand:
            found = [explanation(evidence, id, each) for each in attempts(events, effects) if is_again(each)]
            why[next((word for word in found if word), "unexplained")] += 1
    return why


def _check_gone(evidence: Evidence, id: str, attempt: Attempt) -> Iterator[Finding]:
    """An attempt that has ended does nothing more, whatever faults there were: its process is gone, or has said itself
    that it is done with it. The one exception is an end that is presumed, because the lease ended."""
    over = attempt.over
    if over is None or evidence.is_presumed(over):
        return
    late = [effect for effect in attempt.effects if effect.at_ms > over.at_ms + CLOCK_MS]
    if late:
        kind = "stopped" if over.event == "stopped" else "gone"
        text = f"attempt {attempt.number} ended as {over.event}, and {late[-1].at_ms - over.at_ms:.0f} ms later it"
        yield Finding(kind, f"{text} had an effect ({late[-1].what})", id)


def _check_overlap(id: str, made: Sequence[Attempt]) -> Iterator[Finding]:
    """Two attempts never run at the same time where a lost lease kills."""
    for before, after in pairwise(made):
        first = min((effect.at_ms for effect in after.effects), default=math.inf)
        late = [effect for effect in before.effects if effect.at_ms > first + CLOCK_MS]
        if late:
            yield Finding("overlap", f"attempt {before.number} did something {late[-1].at_ms - first:.0f} ms after", id)


def _may_be_gone(evidence: Evidence, parent: str) -> bool:
    """Whether a parent was removed; or purged by the release before, to which its result is None then."""
    return parent in evidence.ledger.asked("remove") or evidence.spec(parent).get("result_ttl_s") == SOON_PURGED_S


def _check_failure(evidence: Evidence, id: str, events: Sequence[Event]) -> Iterator[Finding]:
    """What failed was meant to: its code said so, its time was over, or its attempts kept dying."""
    if events[-1].status is not TaskStatus.FAILED:
        return
    spec, error = evidence.spec(id), str(events[-1].data.get("error", ""))
    payload = spec.get("payload", {})
    removed = evidence.ledger.asked("remove")
    crashes = sum(event.event in ("crashed", "lease_lost") for event in events)
    is_meant = (
        not spec
        or ("as planned" in error and payload.get("fails", 0) >= spec.get("max_attempts", 1))
        or ("timed out" in error and "timeout_s" in spec)
        or (
            "ParentResultGone" in error
            and any(parent in error and parent in removed for parent in payload.get("parents", ()))
        )
        or (evidence.has_older and "NoneType" in error and any(_may_be_gone(evidence, id) for id in payload["parents"]))
        or crashes >= evidence.plan.max_crashes - 1
    )
    if not is_meant:
        yield Finding("failed", f"it failed, and nothing explains why: {error}", id)


def _check_order(evidence: Evidence, id: str, events: Sequence[Event]) -> Iterator[Finding]:
    """A task starts after the tasks it depends on have ended as it needs. (One that was removed counts as any end.)"""
    started = next((event for event in events if event.event == "started"), None)
    order = evidence.order
    for parent, on in edges(evidence.specs().get(id, {})).items() if started else ():
        ends = [event for event in evidence.events.get(parent, ()) if event.status in ENDS_FOR[on]]
        if started and not any(order[parent, end.seq] < order[id, started.seq] for end in ends):
            yield Finding("order", f"it started before {parent} had ended as it needs ({on})", id)


def _check_causes(evidence: Evidence, id: str, events: Sequence[Event]) -> Iterator[Finding]:
    """What is canceled because of another task depends on that one, and not on how it ended."""
    wanted = edges(evidence.spec(id))
    for event in events:
        if event.data.get("reason") in ("dependency_failed", "not_needed"):
            cause = str(event.data.get("dependency"))
            ends = [each.status for each in evidence.events.get(cause, ()) if each.status in TERMINAL]
            if wanted.get(cause, "any") == "any":
                yield Finding("canceled", f"it was canceled because of {cause}, whose end it doesn't need", id)
            elif event.data["reason"] == "not_needed" and not {TaskStatus.DONE, TaskStatus.CANCELED} & {*ends}:
                yield Finding("canceled", f"it was canceled as not needed, and {cause} has ended {ends}", id)


def _check_words(evidence: Evidence) -> Iterator[Finding]:
    """Nothing is stopped or canceled that nobody wanted stopped or canceled."""
    stops, removals = evidence.ledger.asked("stop"), evidence.ledger.asked("remove")
    workflows = {id[:16] for id in evidence.ledger.asked("stop_workflow")}  # so the ids of their tasks begin
    for id, events in evidence.events.items():
        for event in events:
            if event.event == "stopped" and id not in stops and id[:16] not in workflows:
                yield Finding("stopped", "it was stopped, and nobody asked for that", id)
            # A stop of a task that hasn't started cancels it.
            if event.data.get("reason") == "canceled" and id not in removals | stops:
                yield Finding("canceled", "it was canceled, and nobody asked for that", id)
