"""Who does harm: one seeded fault after another, now and then two at once, each with its victims on record.

Which faults come, to whom and for how long, is the seed's; what they hit is chance.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.harm import HTTP, NETWORK, REDIS, Fault, Harm

AT_ONCE = 0.3
"""How often a fault comes on top of another one."""


class Nemesis:
    """Harms a cluster for a while."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._random = random.Random(cluster.plan.seed)
        self._kinds: list[str] = []
        self.faults: list[Fault] = []

    def rage(self, until_mono: float) -> None:
        """Faults and calm in turn; when it returns, every fault is over."""
        while time.monotonic() < until_mono:
            time.sleep(self._random.uniform(0.3, 1) * self._cluster.plan.calm_s)
            self._cluster.keep()
            kinds = [self._next()]
            if self._random.random() < AT_ONCE and _class(second := self._next()) != _class(kinds[0]):
                kinds.append(second)
            harms = [self._harm(kind) for kind in kinds]
            with ThreadPoolExecutor(len(harms)) as threads:
                for strike in [threads.submit(harm.do) for harm in harms]:
                    strike.result()

    def _next(self) -> str:
        """Each kind comes, as often as the plan has it, before any comes again."""
        if not self._kinds:
            self._kinds = list(self._cluster.plan.faults)
            self._random.shuffle(self._kinds)
        return self._kinds.pop()

    def _harm(self, kind: str) -> Harm:
        now_ms = time.time() * 1000
        fault = Fault(kind, frozenset(), now_ms, ended_ms=now_ms)
        self.faults.append(fault)
        return Harm(self._cluster, fault, self._random.random())


def _class(kind: str) -> str:
    return "network" if kind in NETWORK | HTTP else "redis" if kind in REDIS else "process"
