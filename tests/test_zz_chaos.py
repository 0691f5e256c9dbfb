"""The chaos soak, each profile with a seed; and the gate: with a safeguard switched off its checker finds that out.

The last file, because it takes longest. `python -m benchmarks.chaos` runs it for as long as you like.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks.chaos.mutants import mutate
from benchmarks.chaos.plan import PROFILES, Plan, PoolPlan
from benchmarks.chaos.report import render
from benchmarks.chaos.soak import Result, run

pytestmark = pytest.mark.long(about_s=160)
SEEDS = {"clients": 1, "neighbours": 2, "failover": 3}
SECONDS = 60
MORE_SEEDS = range(1, 8)
SMALL = (
    PoolPlan("a", 2, 1, ("fast", "slow")),
    PoolPlan("b", 1, 4, ("slow", "bulk")),
    PoolPlan("c", 1, 1, ("bulk", "fast")),
)


@pytest.fixture(scope="module")
def soaks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None
) -> dict[str, Future[Result]]:
    """A soak of each profile. They run side by side: each waits most of its time, and is all the more disturbed."""
    selected = {item.name.rpartition("[")[2] for item in request.session.items}
    with ThreadPoolExecutor(len(SEEDS)) as threads:
        return {
            name: threads.submit(
                run,
                Plan(seed=seed, seconds=SECONDS, profile=PROFILES[name], redis_binary=redis_binary),
                tmp_path_factory.mktemp(name),
            )
            for name, seed in SEEDS.items()
            if f"{name}]" in selected
        }


@pytest.mark.parametrize("profile", [pytest.param("clients", marks=pytest.mark.each_server), "neighbours", "failover"])
def test_whatever_dies_nothing_is_lost_stuck_or_done_twice_without_cause(
    profile: str, soaks: dict[str, Future[Result]]
) -> None:
    result = soaks[profile].result()

    assert result.findings == [], render(result)


@dataclass(frozen=True)
class Gate:
    """Safeguards to switch off, the faults that need them, and what the checker must find then. `slow`: how many tasks
    outlive a lease; `rate`: how many are submitted each second."""

    mutation: str
    faults: tuple[str, ...]
    signs: frozenset[str]
    profile: str = "clients"
    slow: float = 0.08
    rate: float = 10


GATES = (
    Gate("fence", ("freeze_pool",), frozenset({"transition"})),
    Gate("claim", ("kill_child", "kill_supervisor"), frozenset({"unfinished", "place"})),
    Gate("reaper", ("kill_supervisor",), frozenset({"unfinished", "lease"})),
    Gate("clients", ("cut_api", "http_cut_after"), frozenset({"unique", "repeated", "webhook"})),
    Gate("catch_up", ("cut_api",), frozenset({"gap"})),
    Gate("refused", ("refuse_all", "refuse_writes"), frozenset({"once"}), profile="neighbours", slow=0.1, rate=30),
    Gate("presumed", ("freeze_supervisor",), frozenset({"gone"}), slow=0.6),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> dict[str, set[str]]:
    """What the checker finds of each mutation. They run side by side: being slow makes none of them right."""
    with ThreadPoolExecutor(len(GATES)) as threads:
        searches = [
            threads.submit(search, gate, tmp_path_factory.mktemp(gate.mutation), redis_binary) for gate in GATES
        ]
        return {gate.mutation: each.result() for gate, each in zip(GATES, searches, strict=True)}


def search(gate: Gate, directory: Path, redis_binary: str | None) -> set[str]:
    """What the checker finds with the first seed that shows the signs: what a fault hits is chance, seeds may miss."""
    source = str(mutate(gate.mutation, directory / "source"))
    kinds: set[str] = set()
    profile = replace(PROFILES[gate.profile], faults=gate.faults, older=False, rq_worker=False)
    for seed in MORE_SEEDS:
        logs = directory / str(seed)
        logs.mkdir()
        plan = Plan(
            seed=seed, seconds=5, profile=profile, pools=SMALL, lease_s=1.5, rate=gate.rate, calm_s=0.5, heal_s=5,
            delivered_s=8, slow=gate.slow, redis_binary=redis_binary, source=source,
        )  # fmt: skip
        kinds = {finding.kind for finding in run(plan, logs).findings}
        if gate.signs <= kinds:
            break
    return kinds


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.mutation)
def test_with_a_safeguard_off_the_checker_finds_out(gate: Gate, found: dict[str, set[str]]) -> None:
    assert gate.signs <= found[gate.mutation]
