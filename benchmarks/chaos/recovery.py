"""How soon what ran in a process that was killed ran again, or was settled: measured, and held to the promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks.chaos.evidence import NOTICE_S, Attempt, Evidence, Finding, attempts
from benchmarks.chaos.harm import AWAY, FREEZES, NETWORK, Fault

CHILD_S: Final = 1.0
HOST_S: Final = 2.0
"""Beyond the lease."""
MARGIN_S: Final = 4.0
"""For a machine that has other things to do."""
BACK_S: Final = 3.0
"""How long after the end of a fault a pool may take to be at work again, on such a machine."""
HINDERS: Final = AWAY | FREEZES | NETWORK | {"kill_supervisor", "drain_pool", "kill_fork_server", "clock_step"}
"""What keeps a pool from settling what it should."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One attempt that a kill ended: how long until it was settled, and whether another fault kept all who could."""

    id: str
    kind: str
    took_s: float
    is_undisturbed: bool


def recoveries(evidence: Evidence) -> Iterator[Recovery]:
    """Every attempt that ran in a process when that was killed."""
    for fault in evidence.faults:
        if fault.kind not in ("kill_child", "kill_fork_server", "kill_supervisor") or not fault.pids:
            continue
        for id, effects in evidence.effects.items():
            for attempt in attempts(evidence.events.get(id, ()), effects):
                if _was_hit(attempt, fault) and attempt.over is not None:
                    took_s = (attempt.over.at_ms - fault.began_ms) / 1000
                    yield Recovery(id, fault.kind, max(took_s, 0.0), _somebody_could(evidence, fault))


def _somebody_could(evidence: Evidence, fault: Fault) -> bool:
    """Whether a pool was free to settle it in time: the pool itself a dead process, any other one a dead host."""
    pools = {pool.name for pool in evidence.plan.pools}
    helpers = pools - fault.scope if fault.kind == "kill_supervisor" else fault.scope
    return any(not _is_hindered(evidence, fault, helper) for helper in helpers)


def _is_hindered(evidence: Evidence, fault: Fault, helper: str) -> bool:
    until_ms = fault.began_ms + limit_s(evidence, fault.kind) * 1000
    for other in evidence.faults:
        if other is fault or other.kind not in HINDERS or helper not in other.scope:
            continue
        felt_s = BACK_S
        if other.kind == "black_hole":
            felt_s += NOTICE_S
        if fault.kind == "kill_supervisor" and other.kind in AWAY | NETWORK:
            felt_s += evidence.plan.lease_s  # every pool may renew its own leases first
        if other.began_ms <= until_ms and fault.began_ms <= other.ended_ms + felt_s * 1000:
            return True
    return False


def limit_s(evidence: Evidence, kind: str) -> float:
    """What is promised: a process's task is settled within a second, a host's within the lease and two."""
    return evidence.plan.lease_s + HOST_S if kind == "kill_supervisor" else CHILD_S


def check_recoveries(evidence: Evidence) -> Iterator[Finding]:
    """Findings: late."""
    for recovery in recoveries(evidence):
        if recovery.is_undisturbed and recovery.took_s > limit_s(evidence, recovery.kind) + MARGIN_S:
            yield Finding("late", f"it was settled {recovery.took_s:.1f} s after {recovery.kind}", recovery.id)


def _was_hit(attempt: Attempt, fault: Fault) -> bool:
    began = [effect for effect in attempt.effects if effect.what == "start" and effect.pid in fault.pids]
    ended = any(effect.what == "end" for effect in attempt.effects)
    over_ms = attempt.over.at_ms if attempt.over else float("inf")
    return bool(began) and not ended and began[0].at_ms <= fault.began_ms <= over_ms
