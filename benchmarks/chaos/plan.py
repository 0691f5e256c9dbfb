"""What one soak does: how long, with which seed, which processes it starts, which faults they meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PROCESS_FAULTS: Final = (
    *("kill_child",) * 4,
    "kill_fork_server",
    *("kill_supervisor",) * 2,
    "drain_pool",
    "freeze_child",
    "freeze_pool",
    "kill_api",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of soak. `faults`: every kind of fault it has, as often as it comes in one round."""

    faults: tuple[str, ...]
    unique_keys: bool = False
    """Some tasks share a few unique keys, with all values of `on_conflict` and `unique_until`."""
    repeats: bool = False
    """Some idempotent POSTs that were answered are sent once more, and must be answered alike."""
    followers: bool = False
    """Clients follow all tasks, and single ones, over Server-Sent Events and a WebSocket."""
    webhooks: bool = False
    """Some tasks have a callback, to a receiver that refuses the first attempt of many messages."""
    second_api: bool = False
    older: bool = False
    """The last pool runs the release before, if the repository has it."""
    rq_worker: bool = False
    """A plain RQ worker serves one of the queues, too."""
    workflows: bool = False
    """A client submits workflows, whose tasks add to them."""
    snoozes: bool = False
    people: bool = False
    """Some tasks ask people, or have to be confirmed; some of that is decided, the rest has a default."""
    sentinel: bool = False
    """A master, its replica and three sentinels; else one append-only Redis behind a proxy."""


PROFILES: Final[Mapping[str, Profile]] = {
    "clients": Profile(
        faults=(
            *PROCESS_FAULTS,
            "kill_redis",
            "restart_redis",
            "outage",
            "forget_scripts",
            "cut",
            "cut_api",
            "cut_before",
            "cut_after",
            "delay",
            "stall",
            "black_hole",
            *("http_cut_before", "http_cut_after") * 2,
        ),
        unique_keys=True,
        people=True,
        repeats=True,
        followers=True,
        webhooks=True,
        workflows=True,
    ),
    "neighbours": Profile(
        faults=(
            *PROCESS_FAULTS,
            *("freeze_supervisor", "freeze_fork_server", "freeze_api"),
            *("refuse_writes",) * 3,
            *("refuse_all",) * 3,
            "refuse_clients",
            "forget_scripts",
            "cut",
        ),
        followers=True,
        second_api=True,
        older=True,
        rq_worker=True,
    ),
    "failover": Profile(
        faults=(
            *PROCESS_FAULTS,
            "freeze_supervisor",
            *("failover", "switchover") * 2,
            *("clock_step",) * 4,
            "forget_scripts",
        ),
        unique_keys=True,
        workflows=True,
        snoozes=True,
        people=True,
        sentinel=True,
    ),
}
SHARED_QUEUE: Final = "shared"
"""The queue that a plain RQ worker serves, too."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool: its processes, how many tasks each runs at once, and its queues, the urgent one first."""

    name: str
    workers: int
    slots: int
    queues: tuple[str, ...]


POOLS: Final = (
    PoolPlan("a", 2, 1, ("fast", "slow")),
    PoolPlan("b", 2, 1, ("slow", "bulk", SHARED_QUEUE)),
    PoolPlan("c", 1, 4, ("bulk", "fast")),
)
"""Each queue is served by two pools: one of them can be away. (An RQ worker is the second one of the shared queue.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run. `seconds` is how long load and faults last; `heal_s` how long nothing may
    happen after that before what hasn't ended is given up. Longer than a client takes to notice a dead connection.

    `calm_s` is the pause between two faults, at most; `rate` is submissions a second, about.
    """

    seed: int
    seconds: float
    profile: Profile = PROFILES["clients"]
    pools: tuple[PoolPlan, ...] = POOLS
    lease_s: float = 3.0
    grace_s: float = 1.0
    max_crashes: int = 5
    rate: float = 10.0
    calm_s: float = 1.5
    heal_s: float = 30.0
    delivered_s: float = 60.0
    """How long webhooks may take: the first further attempt comes after 5 s, what a dead supervisor sent after 30 s."""
    slow: float = 0.08
    """How many of the tasks outlive a lease."""
    steers: float = 0.15
    """How many submissions over HTTP are followed by a stop, a removal or a retry."""
    redis_binary: str | None = None
    source: str | None = None
    """The directory whose packages are run; None: the ones this is imported from."""

    @property
    def faults(self) -> tuple[str, ...]:
        """One round of faults."""
        return self.profile.faults
