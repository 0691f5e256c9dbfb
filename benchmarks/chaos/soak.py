"""One soak from its start to its verdict: processes up, load and faults, healing, shutdown, checks."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from redis import Redis

from benchmarks.chaos.cluster import Cluster, Service, await_true, workers
from benchmarks.chaos.effects import check_effects
from benchmarks.chaos.evidence import Evidence, Finding
from benchmarks.chaos.histories import check_histories
from benchmarks.chaos.keyspace import check_keys, read_keys
from benchmarks.chaos.load import Client, HttpClient, Ledger, PythonClient
from benchmarks.chaos.nemesis import Nemesis
from benchmarks.chaos.plan import Plan
from benchmarks.chaos.recovery import check_recoveries
from benchmarks.chaos.witness import EventTail, Gauge, read_effects
from taskpool import TaskPool, keys
from taskpool.errors import TaskNotFound
from taskpool.types import TERMINAL, TaskRecord

QUIET_S: Final = 2.0
"""How long nothing may be left to do before all is held to have ended."""
FDS_MORE: Final = 8
RSS_FACTOR: Final = 1.3
RSS_MORE_MIB: Final = 12.0
FAULT_OF_OURS: Final = re.compile(r"^Traceback .*?(?=^\S*\d{4}-|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Result:
    """What a soak found: nothing, when all is well."""

    evidence: Evidence
    findings: list[Finding]


def run(plan: Plan, directory: Path) -> Result:
    """Carries out a plan; logs and effects stay in `directory`."""
    with contextlib.ExitStack() as stack:
        cluster = Cluster(plan, directory)
        stack.callback(cluster.close)
        for service in cluster.services:
            service.start()
        _await_ready(cluster)
        tail = EventTail(cluster.redis.url)
        gauge = Gauge(cluster.services)
        ledger, nemesis = Ledger(), Nemesis(cluster)
        clients = _clients(plan, cluster, ledger)
        for client in clients:
            client.start()
        nemesis.rage(time.monotonic() + plan.seconds)
        for client in clients:
            client.ending.set()
        for client in clients:
            client.join()
            if client.fault is not None:
                raise client.fault
        heal_s = _heal(plan, cluster, ledger, tail)
        _await_ready(cluster)
        gauge.close()
        exits = {service.name: service.end() for service in reversed(cluster.services)}
        tail.close()
        with Redis.from_url(cluster.redis.url) as redis, TaskPool(cluster.redis.url) as pool:
            evidence = Evidence(
                plan=plan,
                ledger=ledger,
                events=tail.events,
                effects=read_effects(cluster.effects),
                faults=nemesis.faults,
                records=_records(redis, pool),
                growth=gauge.growth(),
                rolled_back=tail.rolled_back,
                heal_s=heal_s,
            )
            killed = {pid for service in cluster.pools for pid in service.killed}
            findings = [
                *check_histories(evidence),
                *check_effects(evidence),
                *check_recoveries(evidence),
                *check_keys(redis, evidence.records, killed),
                *_check_processes(evidence, cluster, exits),
            ]
    return Result(evidence, findings)


def _clients(plan: Plan, cluster: Cluster, ledger: Ledger) -> list[Client]:
    return [
        HttpClient(ledger, plan.seed, plan.rate * 0.75, cluster.api_url),
        PythonClient(ledger, plan.seed, plan.rate * 0.25, cluster.client_link.url),
    ]


def _await_ready(cluster: Cluster) -> None:
    """Waits until the API answers and every pool has its processes and has announced itself."""

    def answers() -> bool:
        cluster.keep()
        try:
            return httpx.get(f"{cluster.api_url}/readyz", timeout=2, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def works(pool: Service, count: int) -> bool:
        cluster.keep()
        return len(workers(pool)) == count

    await_true("the API", answers)
    for pool, plan in zip(cluster.pools, cluster.plan.pools, strict=True):
        await_true(f"pool {pool.name}", partial(works, pool, plan.workers))
    with TaskPool(cluster.redis.url) as client:
        await_true("the pools' announcement", lambda: len(_served_by(client)) >= len(cluster.pools))


def _served_by(pool: TaskPool) -> set[str]:
    return {name for info in pool.types() for name in info.served_by}


def _heal(plan: Plan, cluster: Cluster, ledger: Ledger, tail: EventTail) -> float:
    """Waits until nothing is left to do, `heal_s` after the last event at most; how long it took."""
    began = quiet_since = moved = time.monotonic()
    seen = tail.seen
    with Redis.from_url(cluster.redis.url) as redis:
        while (now := time.monotonic()) - moved < plan.heal_s and now - quiet_since < QUIET_S:
            cluster.keep()
            if not _is_quiet(ledger, tail, redis):
                quiet_since = time.monotonic()
            if tail.seen != seen:
                seen, moved = tail.seen, time.monotonic()
            time.sleep(0.1)
    return quiet_since - began


def _is_quiet(ledger: Ledger, tail: EventTail, redis: Redis) -> bool:
    known = {id: events[-1].status for id, events in tuple(tail.events.items())}
    ended = all(status in TERMINAL for status in known.values()) and known.keys() >= ledger.accepted().keys()
    return ended and not redis.exists(keys.OUTBOX, keys.UNIQUE)


def _records(redis: Redis, pool: TaskPool) -> dict[str, TaskRecord]:
    records = {}
    for name in read_keys(redis).kinds:
        if name.startswith(keys.JOB):
            id = name.removeprefix(keys.JOB)
            with contextlib.suppress(TaskNotFound):  # it expired this moment
                records[id] = pool.get(id)
    return records


def _check_processes(evidence: Evidence, cluster: Cluster, exits: dict[str, int]) -> Iterator[Finding]:
    """Findings: exit, survivors, trace, descriptors, memory, redis."""
    for name, status in exits.items():
        if status != 0:
            yield Finding("exit", f"{name} ended with {status} after SIGTERM")
    for service in cluster.services:
        for status in service.exits:
            if status != 0:
                yield Finding("exit", f"{service.name} ended with {status} after a SIGTERM")
        for found in FAULT_OF_OURS.finditer(service.log.read_text(errors="replace")):
            yield Finding("trace", f"the log of {service.name} has\n{found[0][-2000:]}")
    for fault in evidence.faults:
        if fault.survivors:
            yield Finding("survivors", f"{fault} left {fault.survivors} alive")
    for (name, pid), (first, last) in evidence.growth.items():
        if last.fds > first.fds + FDS_MORE:
            yield Finding("descriptors", f"{name} ({pid}) had {first.fds} file descriptors, and {last.fds} in the end")
        if last.rss_mib > first.rss_mib * RSS_FACTOR + RSS_MORE_MIB:
            yield Finding("memory", f"{name} ({pid}) had {first.rss_mib:.0f} MiB, and {last.rss_mib:.0f} in the end")
    if evidence.rolled_back:
        yield Finding("redis", f"Redis came back {evidence.rolled_back} times without what it had shown")
