"""One soak from its start to its verdict: processes up, load and faults, healing, shutdown, checks."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
from redis import Redis

from benchmarks.chaos import schedules
from benchmarks.chaos.answers import check_added, check_results, check_submissions, check_unique_keys
from benchmarks.chaos.cluster import Cluster, Service, workers
from benchmarks.chaos.deliveries import check_followers, check_webhooks, expected_messages
from benchmarks.chaos.effects import check_effects
from benchmarks.chaos.evidence import Evidence, Finding
from benchmarks.chaos.followers import Follower, SocketFollower, StreamFollower, TaskFollower, await_last
from benchmarks.chaos.histories import check_histories
from benchmarks.chaos.keyspace import WORKER_TTL_S, Gone, check_keys, read_keys
from benchmarks.chaos.load import Client, Doors, HttpClient, Ledger, PythonClient
from benchmarks.chaos.nemesis import Nemesis
from benchmarks.chaos.network import Link
from benchmarks.chaos.plan import Plan
from benchmarks.chaos.receiver import Receiver
from benchmarks.chaos.recovery import check_recoveries
from benchmarks.chaos.waiting import await_true
from benchmarks.chaos.witness import EventTail, Gauge, read_effects
from benchmarks.chaos.workflows import WorkflowClient, check_workflows
from taskpool import TaskPool
from taskpool.errors import TaskNotFound
from taskpool.operations.documents import time_text
from taskpool.redis import keys
from taskpool.types import TERMINAL, TaskRecord, utc

QUIET_S: Final = 2.0
"""How long nothing may be left to do before all is held to have ended."""
HEARD_S: Final = 15.0
"""How long followers may take to hear what has happened, once nothing more does."""
FDS_MORE: Final = 8
RSS_FACTOR: Final = 1.3
RSS_MORE_MIB: Final = 12.0
RQ_ENDS: Final = frozenset(word.encode() for word in keys.RQ_SET["terminal"])
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
        receiver = Receiver(plan.seed)
        stack.callback(receiver.close)
        for service in cluster.services:
            service.start()
        _await_ready(cluster)
        tail = EventTail(cluster)
        gauge = Gauge(cluster.services)
        ledger, nemesis = Ledger(), Nemesis(cluster)
        clients = _clients(plan, cluster, ledger, receiver)
        followers = _followers(plan, cluster, ledger)
        for thread in (*followers, *clients):
            thread.start()
            if isinstance(thread, Follower):
                thread.ready.wait(10)
        schedules.begin(cluster)
        nemesis.rage(time.monotonic() + plan.seconds)
        ran = schedules.end(cluster)
        _end(clients)
        heal_s = _heal(plan, cluster, ledger, tail)
        _await_ready(cluster)
        gauge.close()
        await_last(followers, {id: events[-1].seq for id, events in tuple(tail.events.items())}, HEARD_S)
        _end(followers)
        evidence = Evidence(
            plan=plan,
            ledger=ledger,
            events=tail.events,
            effects=read_effects(cluster.effects),
            faults=nemesis.faults,
            records=_records(cluster),
            growth=gauge.growth(),
            rolled_back=tail.rolled_back,
            heal_s=heal_s,
            order=tail.order,
            messages=receiver.messages,
            secret=_secret(cluster),
            told={follower.name.removeprefix("chaos-"): follower.told for follower in followers},
            has_older=cluster.older_root is not None,
        )
        gone = schedules.remove(cluster, ran)
        _await_delivered(evidence, cluster, receiver)
        exits = {service.name: service.end() for service in reversed(cluster.services)}
        tail.close()
        killed = {pid for service in cluster.pools for pid in service.killed}
        with cluster.redis.connected() as redis:
            records = _records(cluster)
            # An expiry is a time: a clock that went back puts it off.
            most_s = WORKER_TTL_S + round(max(cluster.offsets_s) - cluster.offsets_s[-1])
            findings = [
                *check_histories(evidence),
                *check_effects(evidence),
                *check_submissions(evidence),
                *check_added(evidence),
                *schedules.check_schedules(ran, gone, records),
                *check_unique_keys(evidence),
                *check_results(evidence),
                *check_webhooks(evidence),
                *check_followers(evidence),
                *check_recoveries(evidence),
                *_check_workflows(cluster, ledger),
                *check_keys(redis, records, Gone(killed, most_s, cluster.older_root is not None)),
                *_check_processes(evidence, cluster, exits),
            ]
    return Result(evidence, findings)


def _clients(plan: Plan, cluster: Cluster, ledger: Ledger, receiver: Receiver) -> list[Client]:
    urls = tuple(f"http://127.0.0.1:{api.front.port}" for api in cluster.apis)
    doors = Doors(urls, receiver.url if plan.profile.webhooks else None)
    redis = cluster.client_redis
    redis_url = redis.url if isinstance(redis, Link) else redis
    return [
        *(HttpClient(plan, ledger, name, plan.rate * share, doors) for name, share in (("http", 0.5), ("http2", 0.25))),
        PythonClient(plan, ledger, plan.rate * 0.25, redis_url),
        *([WorkflowClient(plan, ledger, plan.rate * 0.05, redis_url)] if plan.profile.workflows else []),
    ]


def _check_workflows(cluster: Cluster, ledger: Ledger) -> list[Finding]:
    with cluster.redis.connected() as redis, TaskPool(cluster.redis.url) as pool:
        return list(check_workflows(redis, pool, ledger))


def _followers(plan: Plan, cluster: Cluster, ledger: Ledger) -> list[Follower]:
    if not plan.profile.followers:
        return []
    first, last = cluster.apis[0].url, cluster.apis[-1].url
    return [StreamFollower("stream", first), SocketFollower("socket", last), TaskFollower("task", last, ledger)]


def _end(threads: Sequence[Client] | Sequence[Follower]) -> None:
    for thread in threads:
        thread.ending.set()
    for thread in threads:
        thread.join()
        if thread.fault is not None:
            raise thread.fault


def _secret(cluster: Cluster) -> str:
    """With which callbacks are signed."""
    if not cluster.plan.profile.webhooks:
        return ""
    answer = httpx.get(f"{cluster.apis[0].url}/webhooks/callback/secret", timeout=10, trust_env=False)
    return str(answer.raise_for_status().json()["secret"])


def _await_delivered(evidence: Evidence, cluster: Cluster, receiver: Receiver) -> None:
    """Waits until each webhook has arrived, for a while at most. A delivery with two failed attempts waits for minutes,
    as documented: what is still pending then, and not due yet, is sent at once."""
    expected = expected_messages(evidence) if evidence.plan.profile.webhooks else {}
    with contextlib.suppress(TimeoutError):
        await_true("webhooks", lambda: expected.keys() <= receiver.received(), evidence.plan.delivered_s)
    missing = {task for id, task in expected.items() if id not in receiver.received()}
    with cluster.redis.connected() as redis:
        now = time_text(utc(redis.time()[0] * 1000 + 1000))
    with httpx.Client(base_url=cluster.apis[0].url, timeout=10, trust_env=False) as http:
        waiting = [
            delivery["id"]
            for task in missing
            for delivery in http.get(f"/tasks/{task}/deliveries").json().get("deliveries", ())
            if delivery["status"] == "pending" and delivery.get("next_at", "") > now  # one that is overdue isn't helped
        ]
        for id in waiting:
            http.post(f"/webhooks/deliveries/{id}/replay")
    if waiting:
        with contextlib.suppress(TimeoutError):
            await_true("webhooks", lambda: expected.keys() <= receiver.received(), HEARD_S)


def _await_ready(cluster: Cluster) -> None:
    """Waits until the API answers and every pool has its processes and has announced itself."""

    def are_ready() -> bool:
        cluster.keep()
        try:
            answers = [httpx.get(f"{api.url}/readyz", timeout=2, trust_env=False) for api in cluster.apis]
            return all(answer.status_code == 200 for answer in answers)
        except httpx.TransportError:
            return False

    def works(pool: Service, count: int) -> bool:
        cluster.keep()
        return len(workers(pool)) == count

    await_true("the APIs", are_ready)
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
    with cluster.redis.connected() as redis:
        while (now := time.monotonic()) - moved < plan.heal_s and now - quiet_since < QUIET_S:
            cluster.keep()
            if not _is_quiet(cluster, ledger, tail, redis):
                quiet_since = time.monotonic()
            if tail.seen != seen:
                seen, moved = tail.seen, time.monotonic()
            time.sleep(0.1)
    return quiet_since - began


def _is_quiet(cluster: Cluster, ledger: Ledger, tail: EventTail, redis: Redis) -> bool:
    known = {id: events[-1].status for id, events in tuple(tail.events.items())}
    going = [id for id, status in known.items() if status not in TERMINAL]
    if going and cluster.rq_worker is not None:  # no event tells of the end of what a plain RQ worker runs
        statuses: Any = [redis.hget(keys.JOB + id, "status") for id in going]
        going = [id for id, status in zip(going, statuses, strict=True) if status not in RQ_ENDS]
    return (
        not going
        and known.keys() >= ledger.accepted().keys()
        and not redis.exists(keys.OUTBOX, keys.UNIQUE, keys.EXPANDING, keys.WORKFLOWS_OPEN)
    )


def _records(cluster: Cluster) -> dict[str, TaskRecord]:
    records = {}
    with cluster.redis.connected() as redis, TaskPool(cluster.redis.url) as pool:
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
