"""Checks of the installation, which `taskpool doctor` makes besides the findings: the version of Redis and its known
vulnerabilities, persistence, memory, clock, latency, rights, connections, and data that is stuck or orphaned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from taskpool.errors import RedisRefused
from taskpool.operations.insight.rules import RUNBOOKS, Facts, age
from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, as_it_is, redis_ms, texts, tolerant
from taskpool.redis.embedded import ADVISORIES_AS_OF, ServerVersion, version_parts
from taskpool.redis.rq_job import number_of
from taskpool.types.insight import Finding, Severity

OLDEST: Final = (6, 2)
PINGS: Final = 5
SLOW_S: Final = 0.01
CLOCK_S: Final = 1.0
MOST_CLIENTS: Final = 0.9
MOST_QUEUES: Final = 50
SAMPLE: Final = 20


class Examined(NamedTuple):
    """What the checks look at, besides the facts."""

    facts: Facts
    info: Mapping[str, str]  # the fields of Redis's INFO
    pings_s: Sequence[float]
    ahead_s: float  # by how much this host's clock is ahead of Redis's
    orphans: Mapping[str, int]  # by queue: ids without a record among the first ones


def refusal() -> Plan[Finding | None]:
    """Why Redis refuses what Taskpool needs: its user lacks rights, or it takes no writes. None: it doesn't."""
    try:
        yield (Call(("EVAL", MAY_WE, 0), as_it_is),)
    except RedisRefused as error:
        return _finding(
            "installation:rights",
            Severity.CRITICAL,
            str(error),
            "Its user needs ~rq:* ~taskpool:* &rq:* &taskpool:* +@all -@dangerous +info +client. "
            "Nothing else was checked.",
        )
    return None


def installation_findings(facts: Facts) -> Plan[tuple[list[Finding], int]]:
    """What is wrong with the installation, and how many checks were made."""
    examined = yield from examine(facts)
    return [finding for each in CHECKS for finding in each(examined)], len(CHECKS)


def examine(facts: Facts) -> Plan[Examined]:
    """Read what the checks look at."""
    pings = []
    ahead_s = 0.0
    for _ in range(PINGS):
        began_mono = time.monotonic()
        (now_ms,) = yield (redis_ms(),)
        pings.append(time.monotonic() - began_mono)
        ahead_s = time.time() - now_ms / 1000 - pings[-1] / 2
    (info,) = yield (Call(("INFO",), _info, again=True),)
    queues = [queue.name for queue in facts.queues][:MOST_QUEUES]
    heads = yield [
        tolerant(Call(("LRANGE", keys.QUEUE + name, 0, SAMPLE - 1), texts, again=True), []) for name in queues
    ]
    ids = [id for part in heads for id in part]
    there = dict(zip(ids, (yield [Call(("EXISTS", keys.JOB + id), bool, again=True) for id in ids]), strict=True))
    return Examined(
        facts,
        info,
        pings,
        ahead_s,
        {name: count for name, part in zip(queues, heads, strict=True) if (count := sum(not there[id] for id in part))},
    )


MAY_WE: Final = f"""
redis.call('DEL', '{keys.NOTHING}', 'rq:nothing')
redis.call('PUBLISH', '{keys.CHANNEL}', '')
redis.call('PUBLISH', '{keys.COMMANDS}', '')
return 'ok'
"""
"""Changes nothing. It fails when the user lacks a right to keys, channels or scripts."""


def _info(reply: bytes) -> Mapping[str, str]:
    lines = reply.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _finding(id: str, severity: Severity, title: str, text: str, *, count: int = 0, **more: Any) -> Finding:
    runbook = more.pop("runbook", "the-installation")
    return Finding(id=id, severity=severity, title=title, text=text, count=count, runbook=RUNBOOKS + runbook, **more)


# --- the checks -------------------------------------------------------------------------------------------------------


def vulnerable(seen: Examined) -> Iterator[Finding]:
    """A version of Redis with known vulnerabilities."""
    server = seen.facts.server
    for advisory in ServerVersion(server.name, server.version).advisories[:1]:
        yield _finding(
            "installation:vulnerable",
            Severity.WARNING,
            f"{server.name} {server.version} has known vulnerabilities: {advisory.what} ({advisory.ids})",
            f"Fixed on {advisory.on} in {', '.join(advisory.fixed[server.name])}: {advisory.source}. Upgrade it, "
            f"unless it is a package of a distribution that has these fixes. (This list is as of {ADVISORIES_AS_OF}.)",
        )


def outdated(seen: Examined) -> Iterator[Finding]:
    """A version of Redis that Taskpool doesn't support."""
    server = seen.facts.server
    if (own := version_parts(server.version)) and own < OLDEST:
        yield _finding(
            "installation:outdated",
            Severity.CRITICAL,
            f"{server.name} {server.version} is too old",
            "Taskpool needs 6.2 or newer.",
        )


def role(seen: Examined) -> Iterator[Finding]:
    """A replica instead of the master."""
    if seen.facts.server.role not in ("master", "?"):
        yield _finding(
            "installation:role",
            Severity.CRITICAL,
            "This Redis is a read-only replica",
            "Name its master, or the sentinels, in TASKPOOL_REDIS_URL.",
        )


def persistence(seen: Examined) -> Iterator[Finding]:
    """Snapshots that can't be written."""
    if seen.info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield _finding(
            "installation:snapshot",
            Severity.CRITICAL,
            "Redis could not write its last snapshot",
            "It may refuse writes because of that (stop-writes-on-bgsave-error). Look at its disk and its log.",
        )


def memory(seen: Examined) -> Iterator[Finding]:
    """No limit of memory."""
    if not seen.facts.server.maxmemory_bytes:
        yield _finding(
            "installation:memory",
            Severity.INFO,
            "Redis has no memory limit (maxmemory 0)",
            "When the host's memory is full, the kernel kills Redis. With a limit, Redis refuses new tasks instead: "
            "set maxmemory, and maxmemory-policy to noeviction.",
        )


def clock(seen: Examined) -> Iterator[Finding]:
    """A clock of this host that differs from Redis's."""
    if abs(seen.ahead_s) >= CLOCK_S:
        word = "ahead of" if seen.ahead_s > 0 else "behind"
        yield _finding(
            "installation:clock",
            Severity.WARNING,
            f"This host's clock is {age(abs(seen.ahead_s) * 1000)} {word} that of Redis",
            "Taskpool decides by Redis's clock, but times in logs and certificates go by this host's. Run an NTP "
            "client on both.",
        )


def latency(seen: Examined) -> Iterator[Finding]:
    """A Redis that is far away, or slow."""
    median_s = sorted(seen.pings_s)[len(seen.pings_s) // 2]
    if median_s >= SLOW_S:
        yield _finding(
            "installation:latency",
            Severity.WARNING,
            f"A round trip to Redis takes {median_s * 1000:.0f} ms",
            "Each task costs a worker one round trip, and a submission another. Put Redis near them.",
            runbook="redis-is-slow",
        )


def clients(seen: Examined) -> Iterator[Finding]:
    """Connections that are nearly used up."""
    used, most = (number_of(seen.info.get(name, "").encode(), 0) for name in ("connected_clients", "maxclients"))
    if most and used >= MOST_CLIENTS * most:
        yield _finding(
            "installation:clients",
            Severity.WARNING,
            f"Redis has {used:,} of {most:,} connections",
            "Above that, it refuses new ones: API and worker processes can't start. Raise maxclients.",
            count=used,
        )


def orphans(seen: Examined) -> Iterator[Finding]:
    """Queued ids whose records are gone."""
    for queue, count in seen.orphans.items():
        yield _finding(
            f"installation:orphans:{queue}",
            Severity.INFO,
            f"{count:,} of the next {SAMPLE} entries of the queue {queue} have no task",
            "Their records were deleted by another program, or Redis evicted them. Claims skip them.",
            count=count,
            link=f"#/queues/{queue}",
            runbook="stuck-or-orphaned-data",
        )


def versions(seen: Examined) -> Iterator[Finding]:
    """Pools of different releases."""
    found = sorted({pool.version for pool in seen.facts.pools if pool.version})
    if len(found) > 1:
        yield _finding(
            "installation:versions",
            Severity.INFO,
            f"The worker pools run different releases of Taskpool: {', '.join(found)}",
            "That is supported during a deployment, for two releases that follow each other.",
            link="#/workers",
        )


Check = Callable[[Examined], Iterator[Finding]]

CHECKS: Final[tuple[Check, ...]] = (
    vulnerable,
    outdated,
    role,
    persistence,
    memory,
    clock,
    latency,
    clients,
    orphans,
    versions,
)
