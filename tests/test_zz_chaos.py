"""The chaos soak, three fixed seeds; and the gate: with a safeguard switched off its checker finds that out.

The last file, because it takes longest. `python -m benchmarks.chaos` runs it for as long as you like.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.chaos.mutants import mutate
from benchmarks.chaos.plan import Plan, PoolPlan
from benchmarks.chaos.report import render
from benchmarks.chaos.soak import Result, run

pytestmark = pytest.mark.long(about_s=130)
SEEDS = (1, 2, 3)
SECONDS = 60
SMALL = (
    PoolPlan("a", 2, 1, ("fast", "slow")),
    PoolPlan("b", 1, 4, ("slow", "bulk")),
    PoolPlan("c", 1, 1, ("bulk", "fast")),
)


@pytest.fixture(scope="module")
def soaks(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> dict[int, Future[Result]]:
    """A soak for each seed. They run side by side: each waits most of its time, and is all the more disturbed."""
    with ThreadPoolExecutor(len(SEEDS)) as threads:
        return {
            seed: threads.submit(
                run,
                Plan(seed=seed, seconds=SECONDS, redis_binary=redis_binary),
                tmp_path_factory.mktemp(f"seed{seed}"),
            )
            for seed in SEEDS
        }


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_dies_nothing_is_lost_stuck_or_done_twice_without_cause(
    seed: int, soaks: dict[int, Future[Result]]
) -> None:
    result = soaks[seed].result()

    assert result.findings == [], render(result)


@dataclass(frozen=True)
class Gate:
    """A safeguard to switch off, the faults that need it, and what the checker must find then."""

    mutation: str
    faults: tuple[str, ...]
    signs: frozenset[str]


GATES = (
    Gate("fence", ("freeze_pool",), frozenset({"transition"})),
    Gate("claim", ("kill_child", "kill_supervisor"), frozenset({"unfinished", "place"})),
    Gate("reaper", ("kill_supervisor",), frozenset({"unfinished", "lease"})),
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
    """What the checker finds with the first seed that shows the signs: what a fault hits is chance, a seed may miss."""
    source = str(mutate(gate.mutation, directory / "source"))
    kinds: set[str] = set()
    for seed in SEEDS:
        logs = directory / str(seed)
        logs.mkdir()
        plan = Plan(
            seed=seed, seconds=5, faults=gate.faults, pools=SMALL, lease_s=1.5, rate=10, calm_s=0.5, heal_s=5,
            redis_binary=redis_binary, source=source,
        )  # fmt: skip
        kinds = {finding.kind for finding in run(plan, logs).findings}
        if gate.signs <= kinds:
            break
    return kinds


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.mutation)
def test_with_a_safeguard_off_the_checker_finds_out(gate: Gate, found: dict[str, set[str]]) -> None:
    assert gate.signs <= found[gate.mutation]
