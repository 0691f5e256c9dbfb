"""What one soak does: how long, with which seed, which processes it starts, which faults they meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FAULTS: Final = (
    *("kill_child",) * 4,
    "kill_fork_server",
    *("kill_supervisor",) * 2,
    "drain_pool",
    "freeze_child",
    "freeze_pool",
    "kill_api",
    "kill_redis",
    "restart_redis",
    "outage",
    "forget_scripts",
    "cut",
    "cut_before",
    "cut_after",
    "delay",
    "stall",
    "black_hole",
)
"""Every kind of fault the nemesis knows, as often as it comes in one round."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool: its processes, how many tasks each runs at once, and its two queues, the urgent one first."""

    name: str
    workers: int
    slots: int
    queues: tuple[str, str]


POOLS: Final = (
    PoolPlan("a", 2, 1, ("fast", "slow")),
    PoolPlan("b", 2, 1, ("slow", "bulk")),
    PoolPlan("c", 1, 4, ("bulk", "fast")),
)
"""Each queue is served by two pools: one of them can be away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run. `seconds` is how long load and faults last; `heal_s` how long nothing may
    happen after that before what hasn't ended is given up. Longer than a client takes to notice a dead connection.

    `calm_s` is the pause between two faults, at most; `rate` is submissions a second, about.
    """

    seed: int
    seconds: float
    faults: tuple[str, ...] = FAULTS
    pools: tuple[PoolPlan, ...] = POOLS
    lease_s: float = 3.0
    grace_s: float = 1.0
    max_crashes: int = 5
    rate: float = 10.0
    calm_s: float = 1.5
    heal_s: float = 30.0
    redis_binary: str | None = None
    source: str | None = None
    """The directory whose packages are run; None: the ones this is imported from."""
