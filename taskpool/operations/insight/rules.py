"""The rules of findings: each looks at `Facts` and says what is wrong, why it matters, and what to do.

To add one: a function in RULES, a test, and its runbook in docs/monitoring.md.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import quote

from taskpool.operations.catalog import PoolInfo
from taskpool.operations.flow.schedule_values import ScheduleRecord, ScheduleStatus
from taskpool.operations.overview import OTHERS, ServerInfo
from taskpool.types import QueueInfo, utc
from taskpool.types.fleet import Pause, PoolRecord
from taskpool.types.insight import Build, FailureGroup, Finding, Severity

RUNBOOKS: Final = "docs/monitoring.md#"
RECENT_MS: Final = 15 * 60_000
LEAST_FAILURES: Final = 5
"""A group of failures is a finding from this many in this hour and the last on."""
POISON_LEAST: Final = 2
UNSERVED_MS: Final = 15_000
"""How long a queue or type may be without workers: pools are replaced in a deployment."""
LATE_MS: Final = 30_000
MISSED_LEAST: Final = 2
ASKED_MS: Final = 86_400_000
LEAST_SHARE: Final = 0.02
GREAT_SHARE: Final = 0.2
"""The shares of attempts that fail from which that is a warning, and critical."""
SLOW_LEAST: Final = 5
SLOW_FACTOR: Final = 3
SLOW_LEAST_MS: Final = 100
"""A type is slow if half of so many attempts took so much longer than usual."""
SLOW_S: Final = 0.05
FLOOD_SHARE: Final = 0.8
FLOOD_LEAST: Final = 1000
"""A queue of this length is flooded if one project, or one key, has this share of its tasks."""
STUCK_S: Final = 60
OUTBOX_MOST: Final = 10_000
FULL: Final = 0.8
ALMOST: Final = 0.95
STILL_MS: Final = 15_000


class Lane(NamedTuple):
    """Where webhooks are sent: an endpoint's id, or a callback's host."""

    name: str
    waiting: int
    about: str = ""
    """What the endpoint is for, or its host."""


class Ended(NamedTuple):
    """Attempts of a type in some time: how many ended, how many of them failed, and how long half of them ran at most
    (None: none has ended)."""

    attempts: int
    failed: int
    p50_ms: float | None


class Sampled(NamedTuple):
    """The projects of tasks that stand in a long queue (None: no project)."""

    queue: str
    length: int
    projects: Sequence[str | None]


class Facts(NamedTuple):
    """What the rules look at. Times in ms by Redis's clock."""

    now_ms: int
    round_trip_s: float
    pools: Sequence[PoolInfo]
    queues: Sequence[QueueInfo]
    groups: Sequence[FailureGroup]
    builds: Sequence[Build]
    recent: Mapping[str, Ended]
    """By type, in the last RECENT_MS."""
    usual: Mapping[str, Ended]
    """By type, in the day before that."""
    server: ServerInfo
    is_suspended: bool
    paused: Mapping[str, Pause]
    gone: Sequence[PoolRecord]
    unserved: Mapping[str, int]
    types_seen: Mapping[str, int]
    housekeeping_ms: int | None
    outbox: int
    webhooks_outbox: int
    overdue: Mapping[str, int]
    """By queue: attempts whose leases ended STUCK_S ago or earlier."""
    dead_deliveries: int
    submitters: Mapping[str, int]
    """By the name of the API key: how many of the last submitted tasks."""
    schedules: Sequence[ScheduleRecord]
    late_schedules: Sequence[tuple[str, int]]
    lanes: Sequence[Lane]
    asked: Sequence[tuple[str, int]]
    sampled: Sequence[Sampled]


def check(facts: Facts) -> Iterator[Finding]:
    """What all rules find."""
    for rule in RULES:
        yield from rule(facts)


def age(ms: float) -> str:
    """A duration for people."""
    seconds = max(ms, 0) / 1000
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def _wait(count: int) -> str:
    return "1 task waits" if count == 1 else f"{count:,} tasks wait"


# --- failures ---------------------------------------------------------------------------------------------------------


def failing(facts: Facts) -> Iterator[Finding]:
    """A group of failures that goes on now, most of all one that began with a build."""
    for group in facts.groups:
        count = sum(group.spark[-2:])
        is_crash = group.error_type.startswith("crashed")
        if is_crash or count < LEAST_FAILURES or facts.now_ms - group.last_seen.timestamp() * 1000 > RECENT_MS:
            continue
        type = next(iter(group.types), "?")
        build = _began_with(group, facts.builds)
        where = f" at {group.place}" if group.place else ""
        ended = facts.recent.get(type)
        if ended is not None and ended.failed:
            share = ended.failed / ended.attempts
            often = f"{ended.failed:,} of {ended.attempts:,} attempts failed in {age(RECENT_MS)}"
        else:
            share, often = 1.0, f"{count:,} times within two hours"
        severity = Severity.WARNING if share >= LEAST_SHARE else Severity.INFO
        yield Finding(
            id=f"failing:{group.fingerprint}",
            severity=Severity.CRITICAL if share >= GREAT_SHARE and (build or ended) else severity,
            title=f"{type} fails{f' since build {build}' if build else ''}: {group.error_type}{where}, {often}",
            text=f"Look at the traceback and the builds of the group. The last error is: {group.message.rstrip('.')}. "
            "When the cause is removed, redrive it: that retries 1 task, then 10, then all.",
            count=count,
            since=group.first_seen,
            link=f"#/failures/{group.fingerprint}",
            action=f"taskpool failures {group.fingerprint}",
            runbook=RUNBOOKS + "a-group-of-failures-goes-on",
        )


def _began_with(group: FailureGroup, builds: Sequence[Build]) -> str | None:
    """The build of the workers with which a group of failures began, if there were builds before it."""
    if len(group.builds) != 1 or len(builds) < 2:
        return None
    (build,) = group.builds
    return build if build in [each.build for each in builds[1:]] else None


def slow(facts: Facts) -> Iterator[Finding]:
    """A type whose attempts take much longer than usual."""
    for type, now in facts.recent.items():
        before = facts.usual.get(type)
        if before is None or before.p50_ms is None or now.p50_ms is None:
            continue
        is_known = now.attempts >= SLOW_LEAST and before.attempts >= SLOW_LEAST
        if not is_known or now.p50_ms < SLOW_FACTOR * before.p50_ms or now.p50_ms - before.p50_ms < SLOW_LEAST_MS:
            continue
        yield Finding(
            id=f"slow:{type}",
            severity=Severity.WARNING,
            title=f"{type} takes {_took(now.p50_ms)}, usually {_took(before.p50_ms)}",
            text=f"That is half of the {now.attempts:,} attempts in {age(RECENT_MS)}, compared with the day before. "
            "Often something that the task calls has become slow: look at the stack of one that runs.",
            count=now.attempts,
            link=f"#/types/{quote(type, safe='')}",
            action=f"taskpool list --type {shlex.quote(type)} --status in_progress",
            runbook=RUNBOOKS + "a-task-type-is-slow",
        )


def _took(ms: float) -> str:
    return f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.0f} ms"


def poison(facts: Facts) -> Iterator[Finding]:
    """Tasks that end their worker processes."""
    for group in facts.groups:
        recent = sum(group.spark[-2:])
        if not group.error_type.startswith("crashed") or recent < POISON_LEAST:
            continue
        type = next(iter(group.types), "?")
        how = group.error_type.removeprefix("crashed").strip() or "its process ended"
        yield Finding(
            id=f"poison:{group.fingerprint}",
            severity=Severity.WARNING,
            title=f"{type} kills its worker process: {how}, {recent:,} times within two hours",
            text="The crash report of the last one has the exit, the memory, the last log lines and, after a fatal "
            "signal, the stacks." + (" SIGKILL usually means that the memory ran out." if how == "SIGKILL" else ""),
            count=recent,
            since=group.first_seen,
            link=f"#/failures/{group.fingerprint}",
            action=f"taskpool get {group.sample}",
            runbook=RUNBOOKS + "a-task-kills-its-worker",
        )


# --- queues, types and pools ------------------------------------------------------------------------------------------


def unserved_queue(facts: Facts) -> Iterator[Finding]:
    """Queues with tasks and without a pool."""
    served = {queue for pool in facts.pools for queue in pool.queues}
    for queue in facts.queues:
        waits_s = queue.oldest_s or 0
        if queue.name in served or queue.name == OTHERS or not queue.queued or waits_s * 1000 < UNSERVED_MS:
            continue
        yield Finding(
            id=f"unserved_queue:{queue.name}",
            severity=Severity.CRITICAL,
            title=f"No worker serves the queue {queue.name}: {_wait(queue.queued)}, "
            f"the oldest for {age(waits_s * 1000)}",
            text="No live pool of Taskpool serves this queue, so its tasks don't run. Start a pool for it, or name it "
            "in TASKPOOL_QUEUES of one that runs. (Plain RQ workers don't count.)",
            count=queue.queued,
            since=utc(facts.now_ms - waits_s * 1000),
            link=f"#/queues/{quote(queue.name, safe='')}",
            action=f"taskpool worker --queues {shlex.quote(queue.name)}",
            runbook=RUNBOOKS + "no-worker-serves-a-queue",
        )


def unserved_type(facts: Facts) -> Iterator[Finding]:
    """Types with queued tasks that no pool knows."""
    for name, count in facts.unserved.items():
        seen_ms = facts.types_seen.get(name)
        if not facts.pools or (seen_ms is not None and facts.now_ms - seen_ms < UNSERVED_MS):
            continue
        yield Finding(
            id=f"unserved_type:{name}",
            severity=Severity.CRITICAL,
            title=f"No worker knows the task type {name}, and tasks of it are queued",
            text="The pools that run have not loaded a module that declares this type. Start one that has (see "
            "TASKPOOL_TASKS), or cancel the tasks.",
            count=count,
            since=None if seen_ms is None else utc(seen_ms),
            link=f"#/tasks?status=queued&type={quote(name, safe='')}",
            action="taskpool types",
            runbook=RUNBOOKS + "no-worker-knows-a-task-type",
        )


def paused(facts: Facts) -> Iterator[Finding]:
    """A queue, a pool or everything is paused."""
    queued = {queue.name: queue.queued for queue in facts.queues}
    for what, pause in sorted(facts.paused.items()):
        kind, _, name = what.partition(":")
        if pause.drains:
            continue
        who = f" by {pause.by}" if pause.by else ""
        why = f": {pause.why}" if pause.why else ""
        thing = {"all": "Everything", "queue": f"The queue {name}", "pool": f"The pool {name}"}.get(kind, what)
        count = sum(queued.values()) if kind == "all" else queued.get(name, 0) if kind == "queue" else 0
        flag = {"all": "--all", "pool": f"--pool {shlex.quote(name)}"}.get(kind, shlex.quote(name))
        yield Finding(
            id=f"paused:{what}",
            severity=Severity.WARNING,
            title=f"{thing} is paused{who} for {age(facts.now_ms - pause.at.timestamp() * 1000)}{why}",
            text=f"No task starts there until it is resumed. {_wait(count)}."
            if kind != "pool"
            else "It claims no tasks until it is resumed.",
            count=count,
            since=pause.at,
            link={"queue": f"#/queues/{quote(name, safe='')}", "pool": "#/workers"}.get(kind, "#/queues"),
            action=f"taskpool resume {flag}",
            runbook=RUNBOOKS + "something-is-paused",
        )


def gone_pool(facts: Facts) -> Iterator[Finding]:
    """A pool that went away without draining."""
    hosts = Counter(pool.host for pool in facts.pools)
    for pool in facts.gone:
        away_ms = facts.now_ms - pool.last_seen_ms
        is_replaced = hosts[pool.host] > 0
        yield Finding(
            id=f"gone_pool:{pool.name}",
            severity=Severity.INFO if is_replaced else Severity.CRITICAL,
            title=f"The pool {pool.name} has been gone for {age(away_ms)}, and was not drained",
            text=f"It served {', '.join(pool.queues)} with {pool.processes} processes on the host {pool.host}. It was "
            "killed, or can't reach Redis. What it ran is taken back when the leases end."
            + (" Another pool runs on this host." if is_replaced else ""),
            count=pool.processes,
            since=utc(pool.last_seen_ms),
            link="#/workers",
            action="taskpool pools",
            runbook=RUNBOOKS + "a-pool-is-gone",
        )


def suspended(facts: Facts) -> Iterator[Finding]:
    """`rq suspend` holds."""
    if facts.is_suspended:
        waiting = sum(queue.queued for queue in facts.queues)
        yield Finding(
            id="suspended",
            severity=Severity.WARNING,
            title=f"RQ is suspended: {_wait(waiting)}",
            text="`rq suspend` holds all workers, Taskpool's too. `rq resume` ends that.",
            count=waiting,
            link="#/queues",
            action="rq resume",
            runbook=RUNBOOKS + "something-is-paused",
        )


def no_pool(facts: Facts) -> Iterator[Finding]:
    """No pool lives, or none does its housekeeping."""
    waiting = sum(queue.queued + queue.scheduled + queue.waiting for queue in facts.queues)
    seen_ms = facts.housekeeping_ms
    if facts.pools and (seen_ms is None or facts.now_ms - seen_ms > STILL_MS):
        text = "Pools live, but none has done its housekeeping: due tasks and lost leases wait. Look at their logs."
        title = "The pools don't do their housekeeping"
    elif not facts.pools and waiting:
        text = "Nothing runs, and nothing that is due is queued. Start a pool."
        title = f"No worker pool lives: {_wait(waiting)}"
    else:
        return
    yield Finding(
        id="no_pool",
        severity=Severity.CRITICAL,
        title=title,
        text=text,
        count=waiting,
        since=None if seen_ms is None else utc(seen_ms),
        link="#/workers",
        action="taskpool worker",
        runbook=RUNBOOKS + "a-pool-is-gone",
    )


def flood(facts: Facts) -> Iterator[Finding]:
    """One project fills a long queue, or one key does."""
    for sample in facts.sampled:
        counts = Counter(project for project in sample.projects if project is not None)
        project, most = counts.most_common(1)[0] if counts else ("", 0)
        share = most / max(len(sample.projects), 1)
        if share < FLOOD_SHARE:
            yield from _flood_by_key(facts, sample)
            continue
        query = f"status=queued&queue={quote(sample.queue, safe='')}&project={quote(project, safe='')}"
        yield Finding(
            id=f"flood:{sample.queue}:{project}",
            severity=Severity.WARNING,
            title=f"The project {project} has about {share:.0%} of the {sample.length:,} tasks in {sample.queue}",
            text="Tasks of other projects wait behind them. Move them to another queue, or limit that project's rate. "
            f"(By a sample of {len(sample.projects)} tasks.)",
            count=round(share * sample.length),
            link=f"#/tasks?{query}",
            runbook=RUNBOOKS + "one-project-floods-a-queue",
        )


def _flood_by_key(facts: Facts, sample: Sampled) -> Iterator[Finding]:
    total = sum(facts.submitters.values())
    if len(facts.submitters) < 2 or total < FLOOD_LEAST // 10:
        return
    name, most = max(facts.submitters.items(), key=lambda item: item[1])
    if most >= FLOOD_SHARE * total:
        yield Finding(
            id=f"flood:{sample.queue}:key {name}",
            severity=Severity.WARNING,
            title=f"The key {name} submitted {most / total:.0%} of the last {total:,} tasks; "
            f"{sample.length:,} are in {sample.queue}",
            text="Tasks of others wait behind them. Move them to another queue, or give that key a lower rate_limit.",
            count=sample.length,
            link=f"#/tasks?status=queued&queue={quote(sample.queue, safe='')}",
            runbook=RUNBOOKS + "one-project-floods-a-queue",
        )


def stuck(facts: Facts) -> Iterator[Finding]:
    """Attempts whose leases ended long ago, and ends of tasks or events that are not processed."""
    for queue, count in facts.overdue.items():
        yield Finding(
            id=f"stuck:{queue}",
            severity=Severity.WARNING,
            title=f"{count:,} attempts in the queue {queue} are stuck: their leases ended more than {STUCK_S} s ago",
            text="Any worker pool takes them back. If one lives, look at its log: a damaged record may hinder it.",
            count=count,
            link="#/workers",
            runbook=RUNBOOKS + "stuck-or-orphaned-data",
        )
    waiting = {"releases of waiting tasks": facts.outbox, "events for webhooks": facts.webhooks_outbox}
    for name, count in waiting.items():
        if count >= OUTBOX_MOST:
            yield Finding(
                id=f"stuck:{name.partition(' ')[0]}",
                severity=Severity.WARNING,
                title=f"{count:,} {name} are to be handled",
                text="Worker pools handle them. Start more, or look at their logs.",
                count=count,
                runbook=RUNBOOKS + "stuck-or-orphaned-data",
            )


# --- schedules, people, webhooks --------------------------------------------------------------------------------------


def schedules(facts: Facts) -> Iterator[Finding]:
    """Schedules that are late, have missed runs, or that no pool declares any more."""
    late = {id: at_ms for id, at_ms in facts.late_schedules if facts.now_ms - at_ms > LATE_MS}
    for each in facts.schedules:
        name = each.name if each.project is None else f"{each.project}:{each.name}"
        bad = 0
        for run in each.history:
            if run.outcome == "submitted":
                break
            bad += 1
        if each.status is ScheduleStatus.UNDECLARED:
            title, severity = f"The schedule {name} is no longer declared: it doesn't run", Severity.WARNING
            text = f"No live pool has loaded the code at {each.declared_at} that declares it. Start one, or remove it."
        elif each.status is ScheduleStatus.ACTIVE and name in late:
            title = f"The schedule {name} is late by {age(facts.now_ms - late[name])}"
            text = "Pools fire schedules, and none has fired this one. Look at the pools and their logs."
            severity = Severity.CRITICAL
        elif each.status is ScheduleStatus.ACTIVE and bad >= MISSED_LEAST:
            last = each.history[0]
            title, severity = f"The schedule {name} missed its last {bad} runs", Severity.WARNING
            text = f"The last one was {last.outcome}{f': {last.reason}' if last.reason else ''}. See its history."
        else:
            continue
        yield Finding(
            id=f"schedule:{name}",
            severity=severity,
            title=title,
            text=text,
            count=max(bad, 1),
            since=each.next_at if name in late else each.last_at,
            link=f"#/schedules/{quote(name, safe='')}",
            action=f"taskpool schedule history {shlex.quote(name)}",
            runbook=RUNBOOKS + "a-schedule-has-stopped",
        )


def unconfirmed(facts: Facts) -> Iterator[Finding]:
    """Tasks that have waited for a person for long."""
    old = [(id, at_ms) for id, at_ms in facts.asked if facts.now_ms - at_ms > ASKED_MS]
    if old:
        oldest = min(at_ms for _, at_ms in old)
        yield Finding(
            id="unconfirmed",
            severity=Severity.INFO,
            title=f"{len(old):,} tasks have waited for a person for more than a day",
            text=f"The oldest waits for {age(facts.now_ms - oldest)}. After its time is over, the default answer "
            "counts. Confirm, reject or answer it.",
            count=len(old),
            since=utc(oldest),
            link="#/tasks?status=waiting_confirmation",
            action=f"taskpool get {old[0][0]}",
            runbook=RUNBOOKS + "tasks-wait-for-people",
        )


def webhooks(facts: Facts) -> Iterator[Finding]:
    """Targets of webhooks that don't take them."""
    for lane in facts.lanes:
        yield Finding(
            id=f"webhook:{lane.name}",
            severity=Severity.WARNING,
            title=f"The webhook target {lane.about or lane.name} fails: "
            + ("1 delivery waits" if lane.waiting == 1 else f"{lane.waiting:,} deliveries wait"),
            text="The last attempt to send there failed. Attempts go on for a day; then the deliveries are dead and "
            "can be replayed. See the target's last answer.",
            count=lane.waiting,
            link=f"#/webhooks/{quote(lane.name.partition(':')[0], safe='')}",
            runbook=RUNBOOKS + "a-webhook-target-fails",
        )
    if facts.dead_deliveries:
        yield Finding(
            id="webhook:dead",
            severity=Severity.INFO,
            title=f"{facts.dead_deliveries:,} webhook deliveries were given up in the last week",
            text="When their targets work again, replay them.",
            count=facts.dead_deliveries,
            link="#/webhooks",
            runbook=RUNBOOKS + "a-webhook-target-fails",
        )


# --- Redis ------------------------------------------------------------------------------------------------------------


def redis_memory(facts: Facts) -> Iterator[Finding]:
    """Redis is full, or nearly."""
    used, most = facts.server.used_memory_bytes, facts.server.maxmemory_bytes
    if not most or used < FULL * most:
        return
    share = used / most
    refused = ": writes are refused" if share >= 1 else ""
    yield Finding(
        id="redis_memory",
        severity=Severity.CRITICAL if share >= ALMOST else Severity.WARNING,
        title=f"Redis has used {share:.0%} of its memory{refused}",
        text="When it is full, it refuses new tasks. Raise maxmemory, keep results for a shorter time (result_ttl_s), "
        "or remove ended tasks.",
        link="#/types",
        action="taskpool storage",
        runbook=RUNBOOKS + "redis-is-full",
    )


def redis_settings(facts: Facts) -> Iterator[Finding]:
    """Redis may lose tasks."""
    for at, warning in enumerate(facts.server.warnings):
        yield Finding(
            id=f"redis_settings:{at}",
            severity=Severity.INFO,
            title=warning[0].upper() + warning[1:],
            text="See the settings of Redis in docs/operations.md.",
            link="#/",
            runbook=RUNBOOKS + "redis-may-lose-tasks",
        )


def redis_latency(facts: Facts) -> Iterator[Finding]:
    """Redis answers slowly."""
    if facts.round_trip_s >= SLOW_S:
        yield Finding(
            id="redis_latency",
            severity=Severity.WARNING,
            title=f"Redis took {facts.round_trip_s * 1000:.0f} ms to answer",
            text="Look for slow commands (SLOWLOG GET), a busy host, or a snapshot that is being written.",
            link="#/",
            runbook=RUNBOOKS + "redis-is-slow",
        )


Rule = Callable[[Facts], Iterator[Finding]]

RULES: Final[tuple[Rule, ...]] = (
    failing,
    poison,
    unserved_queue,
    unserved_type,
    paused,
    suspended,
    gone_pool,
    no_pool,
    slow,
    flood,
    stuck,
    schedules,
    unconfirmed,
    webhooks,
    redis_memory,
    redis_settings,
    redis_latency,
)
