"""What a soak found, for people: figures, and for each finding all that is known of its task."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.chaos.cluster import OLDER
from benchmarks.chaos.effects import BESIDE_MS, duplicates
from benchmarks.chaos.evidence import Evidence, Finding
from benchmarks.chaos.load import edges
from benchmarks.chaos.recovery import recoveries
from benchmarks.chaos.soak import Result

SHOWN = 12
MISSING = f"the repository doesn't have {OLDER}: all pools run this release"


def figures(result: Result) -> dict[str, Any]:
    """The figures of a run."""
    evidence = result.evidence
    submissions = evidence.ledger.submissions
    faults = Counter(fault.kind for fault in evidence.faults)
    ended = Counter(str(evidence.status(id)) for id in evidence.events)
    words = Counter(submission.word for submission in submissions)
    return {
        "seed": evidence.plan.seed,
        "seconds": evidence.plan.seconds,
        "tasks": len(evidence.events),
        "accepted": len(evidence.specs()),
        "submissions": dict(words),
        "ended": dict(ended),
        "lost": sum(finding.kind in ("lost", "unfinished") for finding in result.findings),
        "attempts": sum(event.event == "started" for events in evidence.events.values() for event in events),
        "crashes": sum(
            event.event in ("crashed", "lease_lost") for events in evidence.events.values() for event in events
        ),
        "steered": len(evidence.ledger.steered),
        "faults": dict(sorted(faults.items())),
        "recovery_s": {kind: _quantiles(kind, evidence) for kind in sorted(faults) if kind.startswith("kill_")},
        "healed_s": round(evidence.heal_s, 1),
        "webhooks": dict(Counter(message.status for message in evidence.messages)),
        "told": {name: len(told) for name, told in evidence.told.items()},
        "by_rq": sum(evidence.ran_in_rq(id) for id in evidence.events),
        "older": OLDER if evidence.has_older else "none" if not evidence.plan.profile.older else MISSING,
        "done_twice": dict(duplicates(evidence)),
        "findings": dict(Counter(finding.kind for finding in result.findings)),
    }


def render(result: Result) -> str:
    """The whole report as text."""
    lines = [f"{name:<12} {value}" for name, value in figures(result).items()]
    for finding in result.findings[:SHOWN]:
        lines += ["", f"FINDING {finding.kind}: {finding.id or ''} {finding.text}"]
        if finding.id is not None:
            lines += [f"    {line}" for line in history(result.evidence, finding)]
    if len(result.findings) > SHOWN:
        lines += ["", f"... and {len(result.findings) - SHOWN} more"]
    return "\n".join(lines)


def history(evidence: Evidence, finding: Finding) -> Iterator[str]:
    """All that is known of a task in the order of time, the faults of that time between."""
    id = finding.id or ""
    spec = evidence.specs().get(id)
    yield f"submitted as {json.dumps(spec)}" if spec else "its submission was never answered"
    steps: list[tuple[float, str]] = []
    for event in evidence.events.get(id, ()):
        steps.append(
            (event.at_ms, f"event {event.seq:>3} {event.event} -> {event.status} {json.dumps(dict(event.data))}")
        )
    for effect in evidence.effects.get(id, ()):
        steps.append(
            (effect.at_ms, f"EFFECT {effect.what}, attempt {effect.attempt}, pool {effect.pool}, {effect.pid}")
        )
    for at_ms, what, steered, status in evidence.ledger.steered:
        if steered == id:
            steps.append((at_ms, f"asked to {what}: {status}"))
    if not steps:
        return
    ended_ms = max(steps)[0]
    pids = {effect.pid for effect in evidence.effects.get(id, ())}
    for other, effects in evidence.effects.items():
        if other != id and any(effect.pid in pids for effect in effects):
            steps += [
                (event.at_ms, f"beside it {other}: {event.event}")
                for event in evidence.events.get(other, ())
                if abs(event.at_ms - ended_ms) < BESIDE_MS
            ]
    for parent in edges(spec or {}):
        steps += [(event.at_ms, f"parent {parent}: {event.event}") for event in evidence.events.get(parent, ())]
        steps += [
            (at_ms, f"parent {parent}: asked to {what}: {status}")
            for at_ms, what, asked, status in evidence.ledger.steered
            if asked == parent
        ]
    first, last = min(steps)[0] - 5000, max(steps)[0] + 5000
    for fault in evidence.faults:
        if fault.began_ms <= last and fault.ended_ms >= first:
            steps += [(fault.began_ms, f"FAULT begins: {fault}"), (fault.ended_ms, f"FAULT ends: {fault}")]
    origin = evidence.faults[0].began_ms if evidence.faults else first
    for at_ms, text in sorted(steps):
        yield f"{(at_ms - origin) / 1000:+9.3f} s  {text}"


def _quantiles(kind: str, evidence: Evidence) -> dict[str, float] | None:
    """Of all recoveries; and how many no other fault was in the way of, with the longest of them."""
    found = [recovery for recovery in recoveries(evidence) if recovery.kind == kind]
    if not found:
        return None
    took_s = sorted(recovery.took_s for recovery in found)
    undisturbed_s = sorted(recovery.took_s for recovery in found if recovery.is_undisturbed)
    return {
        "n": len(took_s),
        "p50": _at(took_s, 0.5),
        "p99": _at(took_s, 0.99),
        "max": round(took_s[-1], 2),
        "undisturbed": len(undisturbed_s),
        "undisturbed_max": round(undisturbed_s[-1], 2) if undisturbed_s else 0,
    }


def _at(ordered: Sequence[float], share: float) -> float:
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 2)
