"""Did the tasks do what their histories say? What they did stands in a file outside Redis.

A task may run again only if something could have ended its attempt: a fault, what it was told to do itself, or what
happened to another task of the same process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks.chaos.evidence import Attempt, Evidence, Finding, attempts
from benchmarks.chaos.harm import AWAY, NETWORK
from taskpool.types import Event, TaskStatus

CLOCK_MS: Final = 2
DEATHS: Final = frozenset({"kill_child", "kill_fork_server"})
"""What ends a process whose supervisor lives to tell."""
LOST_LEASES: Final = AWAY | {"kill_supervisor", "freeze_pool"} | NETWORK - {"cut"}
"""What keeps a pool from renewing its leases. Lost connections alone don't: new ones are made in time."""
RETURNS: Final = AWAY | DEATHS | NETWORK | {"drain_pool", "freeze_child", "freeze_pool"}
"""What has claims given back: on purpose, or because nobody saw their answers."""
REFUSED_RIGHTLY: Final = ("depends_on", "UnknownDependency")
"""What it depends on may have been purged by then."""


def check_effects(evidence: Evidence) -> Iterator[Finding]:
    """Findings: effect, once, order, stopped, canceled, batch, twice-submitted."""
    for id, events in evidence.events.items():
        effects = evidence.effects.get(id, ())
        starts = sum(effect.what == "start" for effect in effects)
        claims = sum(event.event == "started" for event in events)
        ends = [effect for effect in effects if effect.what == "end"]
        if starts > claims:
            yield Finding("once", f"it began {starts} times, and was claimed {claims} times", id)
        if events[-1].status is TaskStatus.DONE:
            before = [end for end in ends if end.at_ms <= events[-1].at_ms + CLOCK_MS]
            if not before:
                yield Finding("effect", "it is done, and nothing shows that its work was done before", id)
            if claims == 1 and (starts, len(ends)) != (1, 1):
                yield Finding("once", f"claimed once, it began {starts} times and ended {len(ends)} times", id)
        yield from _check_order(evidence, id, events)
        for attempt in attempts(events, effects):
            if attempt.over and attempt.over.event == "stopped":
                yield from _check_stop(evidence, id, attempt, attempt.over)
            if is_again(attempt) and explanation(evidence, id, attempt) is None:
                yield Finding("once", f"attempt {attempt.number} ended in {attempt.over}, and nothing explains it", id)
    for id in evidence.effects:
        if id not in evidence.events:
            yield Finding("effect", "it did something, and no event tells of it", id)
    yield from _check_words(evidence)
    yield from _check_submissions(evidence)


def is_again(attempt: Attempt) -> bool:
    """Whether it ended in a way that has the task run again though its code didn't ask for that, or fail for that."""
    over = attempt.over
    if over is None or over.event == "retry":
        return False
    return over.status in (TaskStatus.QUEUED, TaskStatus.SCHEDULED) or (
        "crashed" in str(over.data.get("error", "")) or over.data.get("reason") == "lease_lost"
    )


def explanation(evidence: Evidence, id: str, attempt: Attempt) -> str | None:
    """What ended an attempt before its time; None: nothing that happened could have."""
    if evidence.specs().get(id, {}).get("payload", {}).get("do") == "die" and attempt.number == 1:
        return "it killed its process itself"
    over_ms = attempt.over.at_ms if attempt.over else attempt.started_ms
    causes = _causes(attempt)
    faults = [
        fault
        for fault in evidence.faults_at(attempt.pools, attempt.started_ms, over_ms)
        if fault.kind in causes and (causes is not DEATHS or not attempt.pids or attempt.pids & set(fault.pids))
    ]
    if faults:
        return "+".join(sorted({fault.kind for fault in faults}))
    if causes >= LOST_LEASES:
        return None
    return "it was stopped" if id in evidence.ledger.asked("stop") else _beside(evidence, id, attempt, over_ms)


def _causes(attempt: Attempt) -> frozenset[str]:
    """The kinds of faults that can end an attempt as this one ended."""
    error = str(attempt.over.data.get("error", "")) if attempt.over else ""
    if not error.startswith("lease lost"):
        return DEATHS if "process ended" in error else RETURNS
    # Its supervisor renews what a frozen process runs, but not a claim that it was frozen before it saw (and that is
    # given back, unless the lease ends before the supervisor could tell).
    over_ms = attempt.over.at_ms if attempt.over else 0
    unseen = all(effect.at_ms > over_ms for effect in attempt.effects)
    return LOST_LEASES | {"freeze_child"} if unseen else LOST_LEASES


def _beside(evidence: Evidence, id: str, attempt: Attempt, over_ms: float) -> str | None:
    """Whether it was another task of the same process that ended the process, or had it ended."""
    for other, effects in evidence.effects.items():
        spec = evidence.specs().get(other, {})
        beside = [
            effect
            for effect in effects
            if attempt.started_ms - 10_000 <= effect.at_ms <= over_ms
            if effect.pid in attempt.pids or not attempt.pids
        ]
        if other == id or not beside or not spec:
            continue
        if spec["payload"].get("do") == "die":
            return "beside one that killed its process"
        if other in evidence.ledger.asked("stop") or spec.get("timeout_s"):
            return "beside one that was stopped"
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


def _check_stop(evidence: Evidence, id: str, attempt: Attempt, over: Event) -> Iterator[Finding]:
    """What is stopped does nothing more. An end with the reason `lease_lost` is only presumed."""
    late = [effect for effect in attempt.effects if effect.at_ms > over.at_ms + CLOCK_MS]
    if late and over.data.get("reason") != "lease_lost":
        yield Finding("stopped", f"after it was stopped it went on to {late[0].what}", id)


def _check_order(evidence: Evidence, id: str, events: Sequence[Event]) -> Iterator[Finding]:
    """A task starts after the tasks it depends on are done."""
    started = next((event for event in events if event.event == "started"), None)
    for parent in evidence.specs().get(id, {}).get("depends_on", ()) if started else ():
        done = next((event for event in evidence.events.get(parent, ()) if event.status is TaskStatus.DONE), None)
        if started and (done is None or done.at_ms > started.at_ms):
            yield Finding("order", f"it started before {parent}, which it depends on, was done", id)


def _check_words(evidence: Evidence) -> Iterator[Finding]:
    """Nothing is stopped or canceled that nobody wanted stopped or canceled."""
    stops, removals = evidence.ledger.asked("stop"), evidence.ledger.asked("remove")
    for id, events in evidence.events.items():
        for event in events:
            if event.event == "stopped" and id not in stops:
                yield Finding("stopped", "it was stopped, and nobody asked for that", id)
            # A stop of a task that hasn't started cancels it.
            if event.data.get("reason") == "canceled" and id not in removals | stops:
                yield Finding("canceled", "it was canceled, and nobody asked for that", id)


def _check_submissions(evidence: Evidence) -> Iterator[Finding]:
    """Each submission became each of its tasks once, or none of them; what the service can't blame on Redis is ours."""
    known: dict[str, dict[int, set[str]]] = {}
    for id, record in evidence.records.items():
        known.setdefault(record.payload["batch"], {}).setdefault(record.payload["n"], set()).add(id)
    for submission in evidence.ledger.submissions:
        if submission.status >= 500 and submission.status != 503:
            yield Finding("answer", f"the API answered {submission.status}: {submission.detail}")
        if submission.word == "refused" and not any(word in submission.detail for word in REFUSED_RIGHTLY):
            yield Finding("answer", f"a good submission was refused: {submission.detail}")
        found = known.get(submission.batch, {})
        for number, ids in found.items():
            if len(ids) > 1:
                yield Finding("twice-submitted", f"{submission.batch} number {number} exists as {sorted(ids)}")
        kept = {n for n, spec in zip(submission.numbers, submission.specs, strict=True) if spec["result_ttl_s"] > 60}
        removed = evidence.ledger.asked("remove")
        if submission.word == "unknown" and found and kept - set(found) and not removed:
            yield Finding("batch", f"of {submission.batch} only {sorted(found)} exist, not {sorted(kept - set(found))}")
