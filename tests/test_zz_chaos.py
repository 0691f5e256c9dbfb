"""The chaos soak, three fixed seeds; and the gate: with a safeguard switched off its checker finds that out.

The last file, because it takes longest. `python -m benchmarks.chaos` runs it for as long as you like.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.mutants import mutate
from benchmarks.chaos.plan import Plan, PoolPlan
from benchmarks.chaos.report import render
from benchmarks.chaos.soak import run

SEEDS = (1, 2, 3)
SMALL = (
    PoolPlan("a", 2, 1, ("fast", "slow")),
    PoolPlan("b", 1, 4, ("slow", "bulk")),
    PoolPlan("c", 1, 1, ("bulk", "fast")),
)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_dies_nothing_is_lost_stuck_or_done_twice_without_cause(
    seed: int, tmp_path: Path, redis_binary: str | None
) -> None:
    plan = Plan(seed=seed, seconds=26, redis_binary=redis_binary)

    result = run(plan, tmp_path)

    assert result.findings == [], render(result)


@pytest.mark.parametrize(
    ("mutation", "faults", "signs"),
    [
        ("fence", ("freeze_pool",), {"transition"}),
        ("claim", ("kill_child", "kill_supervisor"), {"unfinished", "place"}),
        ("reaper", ("kill_supervisor",), {"unfinished", "lease"}),
    ],
)
def test_with_a_safeguard_off_the_checker_finds_out(
    mutation: str, faults: tuple[str, ...], signs: set[str], tmp_path: Path, redis_binary: str | None
) -> None:
    source = str(mutate(mutation, tmp_path / "source"))

    def found(seed: int) -> set[str]:
        directory = tmp_path / str(seed)
        directory.mkdir()
        plan = Plan(
            seed=seed, seconds=5, faults=faults, pools=SMALL, lease_s=1.5, rate=15, calm_s=0.5, heal_s=5,
            redis_binary=redis_binary, source=source,
        )  # fmt: skip
        return {finding.kind for finding in run(plan, directory).findings}

    # What a fault hits is chance: a seed may miss.
    assert any(signs <= found(seed) for seed in SEEDS)
