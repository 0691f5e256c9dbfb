"""The faults: what each does to the cluster, from its beginning to its end, when it has undone what can be undone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import psutil

from benchmarks.chaos.cluster import Api, Cluster, Service, fork_servers, kill_all, workers
from benchmarks.chaos.network import Link, Weather
from benchmarks.chaos.refusals import Refusals
from benchmarks.chaos.waiting import await_true
from taskpool.redis.embedded import RedisServer

PROCESS_END_S: Final = 5.0
HTTP: Final = frozenset({"http_cut_before", "http_cut_after"})
REFUSED: Final = frozenset({"refuse_writes", "refuse_all", "refuse_clients"})
NETWORK: Final = frozenset({"cut", "cut_api", "cut_before", "cut_after", "delay", "stall", "black_hole"}) | REFUSED
AWAY: Final = frozenset({"kill_redis", "restart_redis", "outage", "failover", "switchover"})
REDIS: Final = AWAY | {"forget_scripts", "clock_step"}
"""All others are faults of processes. Two of one class never come at once: they would undo each other's work."""
FREEZES: Final = frozenset({"freeze_pool", "freeze_supervisor"})
"""What keeps a supervisor from its work while it lasts."""

REFUSES_WRITES: Final = (
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "NOPERM this user has no permissions to run the 'evalsha' command",
    "READONLY You can't write against a read only replica.",
)
REFUSES_ALL: Final = (
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "NOAUTH Authentication required.",
    "ERR something that no release of Redis says",
    "ODDWORD something that no release of Redis says",
)
REFUSES_CLIENTS: Final = "ERR max number of clients reached"
STEPS_S: Final = (20, 120, -20, -120, -600)


@dataclass(slots=True)
class Fault:
    """One fault: `scope` names the services it could hit (pools and the API); times are wall clock."""

    kind: str
    scope: frozenset[str]
    began_ms: float
    ended_ms: float = 0.0
    pids: tuple[int, ...] = ()
    """The worker processes that died of it."""
    survivors: list[str] = field(default_factory=list)
    """What should have died with its victim, and didn't."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} of {'+'.join(sorted(self.scope))} {self.pids or ''} {self.detail}"


class Harm:
    """One fault in the making. What it does and to whom is drawn from a seed of its own."""

    def __init__(self, cluster: Cluster, fault: Fault, seed: float) -> None:
        self._cluster, self._fault = cluster, fault
        self._random = random.Random(seed)
        self._all = frozenset(service.name for service in cluster.services)

    def do(self) -> None:
        """Does it, and notes when it was over."""
        harm: Callable[[Fault], None] = getattr(self, f"_{self._fault.kind}")
        try:
            harm(self._fault)
        except psutil.NoSuchProcess:  # the victim died by itself this moment: a task may have killed it
            pass
        self._fault.ended_ms = time.time() * 1000

    # --- processes --------------------------------------------------------------------------------------------------

    def _kill_child(self, fault: Fault) -> None:
        pool = self._victim(fault)
        for worker in self._some(workers(pool)):
            fault.pids = (worker.pid,)
            worker.kill()

    def _kill_fork_server(self, fault: Fault) -> None:
        pool = self._victim(fault)
        for server in self._some(fork_servers(pool)):
            below = server.children(recursive=True)
            fault.pids = tuple(process.pid for process in below)
            server.kill()
            self._await_ends(fault, below)

    def _kill_supervisor(self, fault: Fault) -> None:
        pool = self._victim(fault)
        below = pool.tree()[1:]
        fault.pids = tuple(process.pid for process in workers(pool))
        fault.began_ms = time.time() * 1000
        pool.kill()
        self._await_ends(fault, below)
        self._pause(0.2, 1.5)
        pool.start()

    def _drain_pool(self, fault: Fault) -> None:
        pool = self._victim(fault)
        below = pool.tree()[1:]
        pool.end()
        self._await_ends(fault, below)
        pool.start()

    def _freeze_child(self, fault: Fault) -> None:
        pool = self._victim(fault)
        self._freeze(self._some(workers(pool)))

    def _freeze_pool(self, fault: Fault) -> None:
        pool = self._victim(fault)
        self._freeze(pool.tree())

    def _freeze_supervisor(self, fault: Fault) -> None:
        """The supervisor alone: what is below it goes on."""
        pool = self._victim(fault)
        self._freeze([pool.root()])

    def _freeze_fork_server(self, fault: Fault) -> None:
        """A fork server alone: its workers and the supervisor go on."""
        pool = self._victim(fault)
        self._freeze(self._some(fork_servers(pool)))

    def _kill_api(self, fault: Fault) -> None:
        api = self._api(fault)
        api.kill()
        self._pause(0.1, 1)
        api.start()

    def _freeze_api(self, fault: Fault) -> None:
        self._freeze([self._api(fault).root()])

    # --- Redis ------------------------------------------------------------------------------------------------------

    def _kill_redis(self, fault: Fault) -> None:
        fault.scope = self._all
        self._redis.kill()
        self._pause(0.1, 1.5 * self._cluster.plan.lease_s)
        self._redis.start()

    def _restart_redis(self, fault: Fault) -> None:
        fault.scope = self._all
        self._redis.stop()
        self._pause(0.1, 1)
        self._redis.start()

    def _outage(self, fault: Fault) -> None:
        """Longer than two leases."""
        fault.scope = self._all
        self._redis.kill()
        self._pause(2.2 * self._cluster.plan.lease_s, 3.3 * self._cluster.plan.lease_s)
        self._redis.start()

    def _forget_scripts(self, fault: Fault) -> None:
        fault.scope = self._all
        with self._cluster.redis.connected() as redis:
            redis.script_flush()

    def _failover(self, fault: Fault) -> None:
        """The master dies when its replica has all, and the replica takes its place."""
        fault.scope = self._all
        assert self._cluster.sentinel is not None
        self._cluster.sentinel.fail_over()

    def _switchover(self, fault: Fault) -> None:
        """The sentinels make the replica the master, and the master its replica."""
        fault.scope = self._all
        assert self._cluster.sentinel is not None
        self._cluster.sentinel.switch_over()

    def _clock_step(self, fault: Fault) -> None:
        """Redis's wall clock alone, forward or back."""
        fault.scope = self._all
        assert self._cluster.sentinel is not None
        clock = self._cluster.sentinel.clock
        step_s = self._random.choice(STEPS_S)
        fault.detail = f"{step_s:+d} s"
        self._cluster.note_step(clock.offset_s + step_s)
        clock.step(step_s)

    # --- network ----------------------------------------------------------------------------------------------------

    def _cut(self, fault: Fault) -> None:
        for link in self._links(fault):
            link.cut()

    def _cut_api(self, fault: Fault) -> None:
        """The connections of an API alone, the one over which it hears of events among them."""
        for link in _links([self._api(fault).link]):
            link.cut()

    def _cut_before(self, fault: Fault) -> None:
        self._storm(fault, Weather.CUT_BEFORE, 1, 3, chance=0.2)

    def _cut_after(self, fault: Fault) -> None:
        self._storm(fault, Weather.CUT_AFTER, 1, 3, chance=0.2)

    def _delay(self, fault: Fault) -> None:
        self._storm(fault, Weather.DELAY, 1, 3, delay_s=0.3)

    def _stall(self, fault: Fault) -> None:
        lease_s = self._cluster.plan.lease_s
        self._storm(fault, Weather.STALL, 0.5 * lease_s, 2 * lease_s)

    def _black_hole(self, fault: Fault) -> None:
        self._storm(fault, Weather.BLACK_HOLE, 1, self._cluster.plan.lease_s)

    def _refuse_writes(self, fault: Fault) -> None:
        self._refuse(fault, Refusals(self._random.choice(REFUSES_WRITES), writes_only=True))

    def _refuse_all(self, fault: Fault) -> None:
        self._refuse(fault, Refusals(self._random.choice(REFUSES_ALL)))

    def _refuse_clients(self, fault: Fault) -> None:
        """Connections end, and new ones are refused."""
        self._refuse(fault, Refusals(REFUSES_CLIENTS, connections=True))

    def _http_cut_before(self, fault: Fault) -> None:
        self._storm_http(fault, Weather.CUT_BEFORE)

    def _http_cut_after(self, fault: Fault) -> None:
        self._storm_http(fault, Weather.CUT_AFTER)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _victim(self, fault: Fault) -> Service:
        pool = self._random.choice(self._cluster.pools)
        fault.scope = frozenset({pool.name})
        return pool

    def _some(self, processes: list[psutil.Process]) -> list[psutil.Process]:
        """One of them, if there is one. (The number drawn doesn't depend on how many there are.)"""
        draw = self._random.random()
        return [processes[int(draw * len(processes))]] if processes else []

    def _api(self, fault: Fault) -> Api:
        api = self._random.choice(self._cluster.apis)
        fault.scope = frozenset({api.name})
        return api

    @property
    def _redis(self) -> RedisServer:
        assert self._cluster.single is not None
        return self._cluster.single.server

    def _links(self, fault: Fault) -> list[Link]:
        """One pool's link, an API's and the client's, or all."""
        draw = self._random.random()
        if draw < 0.15:
            fault.scope = self._all
            return _links([*(service.link for service in self._cluster.services), self._cluster.client_redis])
        if draw < 0.35:
            return _links([self._api(fault).link, self._cluster.client_redis])
        return _links([self._victim(fault).link])

    def _refuse(self, fault: Fault, refusals: Refusals) -> None:
        links = self._links(fault)
        fault.detail = refusals.error.split()[0]
        for link in links:
            link.refuse(refusals)
        self._pause(0.3, 1.5 * self._cluster.plan.lease_s)
        for link in links:
            link.refuse(None)

    def _storm_http(self, fault: Fault, weather: Weather) -> None:
        fault.scope = frozenset({"http"})
        for api in self._cluster.apis:
            api.front.set(weather, chance=0.4)
        self._pause(2, 4)
        for api in self._cluster.apis:
            api.front.set(Weather.CLEAR)

    def _storm(
        self, fault: Fault, weather: Weather, least_s: float, most_s: float, *, delay_s: float = 0, chance: float = 1
    ) -> None:
        links = self._links(fault)
        for link in links:
            link.set(weather, delay_s=delay_s, chance=chance)
        self._pause(least_s, most_s)
        for link in links:
            link.set(Weather.CLEAR)

    def _freeze(self, processes: list[psutil.Process]) -> None:
        """Longer than a lease."""
        try:
            for process in processes:
                process.suspend()
            self._pause(1.2 * self._cluster.plan.lease_s, 1.6 * self._cluster.plan.lease_s)
        finally:
            for process in processes:
                try:
                    process.resume()
                except psutil.NoSuchProcess:
                    pass

    def _pause(self, least_s: float, most_s: float) -> None:
        time.sleep(self._random.uniform(least_s, most_s))

    def _await_ends(self, fault: Fault, processes: list[psutil.Process]) -> None:
        """What hung on a process that is gone must go by itself; else it is noted, and killed."""
        try:
            await_true("", lambda: not any(map(_lives, processes)), PROCESS_END_S)
        except TimeoutError:
            left = [process for process in processes if _lives(process)]
            fault.survivors += [f"{process.pid}" for process in left]
            kill_all(left)


def _links(redis: list[Link | str | None]) -> list[Link]:
    """Those that are proxies."""
    return [link for link in redis if isinstance(link, Link)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
