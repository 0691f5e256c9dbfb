"""What comes back late is found by the chaos soak, unless all who could have settled it in time were kept from it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.chaos.evidence import Evidence
from benchmarks.chaos.harm import Fault
from benchmarks.chaos.load import Ledger
from benchmarks.chaos.plan import Plan
from benchmarks.chaos.recovery import check_recoveries
from benchmarks.chaos.witness import Effect
from taskpool.types import Event, TaskStatus

ALL = frozenset({"a", "b", "c", "api"})


def fault(kind: str, scope: frozenset[str] | set[str], began_s: float, ended_s: float, *pids: int) -> Fault:
    return Fault(kind, frozenset(scope), began_s * 1000, ended_s * 1000, pids)


def findings(*faults: Fault, settled_s: float) -> list[str]:
    """Of a task that pool a's process 7 began at 99 s, and that was settled at `settled_s`."""
    plan = Plan(seed=1, seconds=60)
    steps: Sequence[tuple[str, TaskStatus, float]] = (
        ("queued", TaskStatus.QUEUED, 98),
        ("started", TaskStatus.IN_PROGRESS, 99),
        ("crashed", TaskStatus.QUEUED, settled_s),
    )
    events = [
        Event(id="t", seq=seq, event=event, status=status, at_ms=round(at_s * 1000), data={"attempt": 1})
        for seq, (event, status, at_s) in enumerate(steps, 1)
    ]
    effects = [Effect("t", 1, 1, "start", "a", 7, 99_001)]
    evidence = Evidence(
        plan=plan, ledger=Ledger(), events={"t": events}, effects={"t": effects}, faults=faults, records={},
        growth={}, rolled_back=0, heal_s=0,
    )  # fmt: skip
    return [finding.kind for finding in check_recoveries(evidence)]


@pytest.mark.parametrize(
    ("kind", "late_s", "in_time_s"),
    [("kill_child", 106, 101), ("kill_fork_server", 106, 101), ("kill_supervisor", 110, 104)],
)
def test_what_comes_back_late_is_found(kind: str, late_s: float, in_time_s: float) -> None:
    kill = fault(kind, {"a"}, 100, 101, 7)
    elsewhere = fault("freeze_pool", {"b"}, 100, 105)

    assert findings(kill, elsewhere, settled_s=late_s) == ["late"]
    assert findings(kill, elsewhere, settled_s=in_time_s) == []


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("kill_child", fault("outage", ALL, 99.5, 105)),
        ("kill_child", fault("freeze_pool", {"a"}, 100, 105)),
        ("kill_child", fault("black_hole", {"a"}, 90, 92)),
        ("kill_supervisor", fault("restart_redis", ALL, 95, 96)),
    ],
)
def test_a_recovery_that_no_process_could_have_made_in_time_is_not_late(kind: str, other: Fault) -> None:
    assert findings(fault(kind, {"a"}, 100, 101, 7), other, settled_s=112) == []
