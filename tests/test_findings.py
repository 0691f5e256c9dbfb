"""Findings: each of the incidents that an operator must learn of is found, and nothing else is."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from taskpool import Every, Registry, TaskPool, TaskSpec, TaskStatus
from taskpool.access.audit import AuditEntry
from taskpool.operations.catalog import PoolInfo, publish, retire
from taskpool.operations.control.pauses import pause_queue
from taskpool.operations.insight import doctor, history, rules
from taskpool.operations.insight.findings import find, gather
from taskpool.operations.insight.fresh import FRESH_S, Fresh
from taskpool.redis import keys, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.embedded import ServerVersion
from taskpool.redis.store import Store
from taskpool.types.insight import Finding, Severity
from tests.states import World, new_task
from tests.test_failures import fault

S = TaskStatus
MINUTE_MS = 60_000
REDIS_OF_TESTS = ("redis_settings", "redis_latency", "redis_memory")
"""What may be found of any Redis that tests use."""


def now_ms() -> int:
    return round(time.time() * 1000)


def serve(world: World, *queues: str, types: tuple[str, ...] = ("work",), **more: Any) -> None:
    info = PoolInfo(id="eu-1", host="h", pid=1, queues=queues or ("default",), types=types, workers=("w",), **more)
    world.run(publish(info, [], ttl_s=3600))
    world.redis.hset(keys.CLOCK, "seen_ms", now_ms())  # its housekeeping


def findings(world: World) -> dict[str, Finding]:
    found = world.store.carry_out(find()).findings
    return {each.id: each for each in found if not each.id.startswith(REDIS_OF_TESTS)}


@pytest.fixture(autouse=True)
def served(world: World) -> Iterator[None]:
    serve(world)
    yield
    assert all(callable(rule) for rule in rules.RULES)


def only(world: World, start: str) -> Finding:
    """The only finding there is."""
    found = findings(world)
    assert [id.partition(":")[0] for id in found] == [start], list(found)
    return next(iter(found.values()))


def old(world: World, queue: str, *, s: int = 1000) -> None:
    """Has the head of a queue wait since long."""
    head = world.redis.lindex(f"rq:queue:{queue}", 0).decode()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - s))
    world.redis.hset(f"rq:job:{head}", "enqueued_at", stamp)


def test_nothing_is_found_where_nothing_is_wrong(world: World) -> None:
    world.start("a")
    world.add("b", delay_s=500)

    assert findings(world) == {}


def test_a_bad_deployment_is_found_by_its_build(world: World) -> None:
    world.redis.zadd(keys.BUILDS, {"b1": now_ms() - 9 * MINUTE_MS, "b2": now_ms()})
    for number in range(rules.LEAST_FAILURES):
        failure = fault("a" * 12, build="b2")
        world.run(scripts.finish(world.start(f"a{number}"), S.FAILED, error="KeyError: 'width'", failure=failure))
    count(world, 0, {"failed": 5, "done": 1})

    found = only(world, "failing")

    assert found.severity is Severity.CRITICAL
    assert found.title == (
        "work fails since build b2: KeyError at images.py:41 in resize, 5 of 6 attempts failed in 15 min"
    )
    assert found.link == f"#/failures/{'a' * 12}"
    assert "KeyError: 'width'" in found.text


def test_a_few_failures_of_many_attempts_are_only_mentioned(world: World) -> None:
    for number in range(rules.LEAST_FAILURES):
        world.run(scripts.finish(world.start(f"a{number}"), S.FAILED, error="e", failure=fault("a" * 12, build="b")))
    count(world, 0, {"failed": 5, "done": 995})

    assert only(world, "failing").severity is Severity.INFO


def test_failures_that_are_over_are_no_finding(world: World) -> None:
    for number in range(rules.LEAST_FAILURES):
        world.run(scripts.finish(world.start(f"a{number}"), S.FAILED, error="e", failure=fault("a" * 12)))
    world.redis.hset(f"{keys.FAILURE}{'a' * 12}", "last_ms", now_ms() - rules.RECENT_MS - 1000)

    assert findings(world) == {}


def test_a_queue_that_no_pool_serves_is_found(world: World) -> None:
    world.add("a", queue="reports")
    world.add("b", queue="reports")
    assert findings(world) == {}  # a pool may come in a moment
    old(world, "reports")

    found = only(world, "unserved_queue")

    assert (found.severity, found.count, found.link) == (Severity.CRITICAL, 2, "#/queues/reports")
    assert found.title.startswith("No worker serves the queue reports: 2 tasks wait, the oldest for 17 min")
    assert found.action == "taskpool worker --queues reports"


def test_a_type_that_no_pool_knows_is_found(world: World) -> None:
    world.add("a", type="gone")

    found = only(world, "unserved_type")

    assert (found.id, found.count, found.link) == ("unserved_type:gone", 1, "#/tasks?status=queued&type=gone")


def test_a_pause_is_found_with_who_and_why(world: World) -> None:
    world.add("a")
    world.store.carry_out(pause_queue("default", why="migration"))

    found = only(world, "paused")

    assert found.title == "The queue default is paused for 0 s: migration"
    assert (found.count, found.action, found.link) == (1, "taskpool resume default", "#/queues/default")


def test_that_rq_is_suspended_is_found(world: World) -> None:
    world.redis.set(keys.SUSPENDED, "1")

    assert only(world, "suspended").action == "rq resume"


def test_a_pool_that_went_away_is_found(world: World) -> None:
    world.redis.delete(keys.POOL + "eu-1")
    world.redis.zrem(keys.POOLS, "eu-1")

    found = only(world, "gone_pool")

    assert found.severity is Severity.CRITICAL
    assert found.title == "The pool eu-1 has been gone for 0 s, and was not drained"


def test_a_pool_that_ended_in_order_is_no_finding(world: World) -> None:
    world.store.carry_out(retire("eu-1"))

    assert findings(world) == {}


def test_without_any_pool_nothing_runs(world: World) -> None:
    world.store.carry_out(retire("eu-1"))
    world.add("a", delay_s=500)

    assert only(world, "no_pool").title == "No worker pool lives: 1 task waits"


def test_pools_without_housekeeping_are_found(world: World) -> None:
    world.redis.hset(keys.CLOCK, "seen_ms", now_ms() - 60_000)

    assert only(world, "no_pool").title == "The pools don't do their housekeeping"


def test_a_task_that_kills_its_worker_is_found(world: World) -> None:
    failure = {"reason": "crashed", "signal": "SIGSEGV", "message": "crashed"}
    for number in range(rules.POISON_LEAST):
        running = world.start("thumb") if number == 0 else world.claim(attempt_id="2")
        world.run(scripts.crash("thumb", running.attempt_id, "default", error="e", failure=failure, max_crashes=9))

    found = only(world, "poison")

    assert found.title == "work kills its worker process: SIGSEGV, 2 times within two hours"
    assert found.action == "taskpool get thumb"


def count(world: World, minutes_ago: int, row: Mapping[str, int]) -> None:
    """What was counted of the type `work` in a minute: a bucket of the history."""
    minute = now_ms() // MINUTE_MS - minutes_ago
    document = history.bucket_of({history.Key("work", "default", "b"): dict(row)}, {})
    world.redis.hset(keys.STATS_MINUTES, minute, document)


def test_a_slow_dependency_is_found(world: World) -> None:
    for ago in range(30, 33):
        count(world, ago, {"done": 20, "r0.5": 20})
    count(world, 1, {"done": 10, "r10": 10})

    found = only(world, "slow")

    assert found.title == "work takes 7.5 s, usually 375 ms"
    assert found.link == "#/types/work"


def test_a_flood_by_one_project_is_found(world: World) -> None:
    world.run(scripts.add([*new_tasks("x", 60, project="acme"), *new_tasks("y", 2)]))
    ids = world.redis.lrange("rq:queue:default", 0, 59)
    for _ in range(20):
        world.redis.rpush("rq:queue:default", *ids)

    found = only(world, "flood")

    assert found.title.startswith("The project acme has about ")
    assert found.link == "#/tasks?status=queued&queue=default&project=acme"


def test_a_flood_by_one_key_is_found(world: World) -> None:
    world.run(scripts.add(new_tasks("x", 50)))
    ids = world.redis.lrange("rq:queue:default", 0, -1)
    for _ in range(20):
        world.redis.rpush("rq:queue:default", *ids)
    for name, count in (("acme", 920), ("others", 80)):
        entry = AuditEntry("task.submitted", "x", name=name, count=count)
        world.redis.xadd(keys.AUDIT_SUBMITTED, {"e": msgspec.json.encode(entry)})

    assert only(world, "flood").title == "The key acme submitted 92% of the last 1,000 tasks; 1,050 are in default"


def test_data_that_is_stuck_is_found(world: World) -> None:
    world.start("a")
    world.redis.zadd("rq:wip:default", {"a:1": time.time() + keys.WIP_GRACE_S - 2 * rules.STUCK_S})
    facts = world.store.carry_out(gather())

    found = list(rules.stuck(facts._replace(outbox=rules.OUTBOX_MOST, webhooks_outbox=rules.OUTBOX_MOST)))

    assert [(each.id, each.count) for each in found] == [
        ("stuck:default", 1), ("stuck:releases", rules.OUTBOX_MOST), ("stuck:events", rules.OUTBOX_MOST),
    ]  # fmt: skip


def test_deliveries_that_were_given_up_are_mentioned(world: World) -> None:
    world.redis.zadd(keys.DELIVERIES_ALL_DEAD, {"m1": 0, "m2": 0})

    assert only(world, "webhook").severity is Severity.INFO


def new_tasks(start: str, count: int, **options: Any) -> list[Any]:
    return [new_task(f"{start}{number}", **options) for number in range(count)]


def schedule(world: World, outcome: str = "", **fields: Any) -> None:
    registry = Registry(builtins=True)
    with TaskPool(world.url, registry=registry) as pool:
        pool.set_schedule("nightly", Every(3600), TaskSpec(type="echo", payload={"message": "m"}))
    if outcome:
        for _ in range(3):
            run = {"occurrence_ms": now_ms(), "at_ms": now_ms(), "outcome": outcome, "reason": "unknown-type"}
            world.redis.lpush(keys.OCCURRENCES + "nightly", msgspec.json.encode(run))
    if fields:
        world.redis.hset(keys.SCHEDULE + "nightly", mapping=fields)


def late(world: World) -> None:
    schedule(world)
    world.redis.zadd(keys.SCHEDULES_DUE, {"nightly": time.time() - 600})


@pytest.mark.parametrize(
    ("seed", "title"),
    [
        (lambda world: schedule(world, "refused"), "The schedule nightly missed its last 3 runs"),
        (lambda world: schedule(world, "missed"), "The schedule nightly missed its last 3 runs"),
        (lambda world: schedule(world, module="m", digest="d", place="m.py:1"),
         "The schedule nightly is no longer declared: it doesn't run"),
        (late, "The schedule nightly is late by 10 min"),
    ],
)  # fmt: skip
def test_a_schedule_that_stopped_is_found(world: World, seed: Callable[[World], None], title: str) -> None:
    seed(world)

    found = only(world, "schedule")

    assert found.title == title
    assert found.link == "#/schedules/nightly"


def test_a_schedule_that_runs_is_no_finding(world: World) -> None:
    schedule(world, "submitted")

    assert findings(world) == {}


def test_old_questions_are_found(world: World) -> None:
    world.add("a", confirm=True)
    world.redis.hset("rq:job:a", "asked_ms", now_ms() - 2 * rules.ASKED_MS)

    assert only(world, "unconfirmed").action == "taskpool get a"


def test_a_webhook_target_that_is_down_is_found(world: World) -> None:
    world.redis.zadd(keys.WEBHOOKS_LANES, {"billing": now_ms(), "fine": now_ms()})
    world.redis.zadd(keys.WEBHOOKS_WAITING + "billing", {f"m{number}": 1 for number in range(214)})
    world.redis.set(keys.WEBHOOKS_FAILING + "billing", "1")

    found = only(world, "webhook")

    assert found.title == "The webhook target billing fails: 214 deliveries wait"
    assert found.link == "#/webhooks/billing"


@pytest.mark.parametrize(("share", "severity"), [(0.7, None), (0.85, Severity.WARNING), (0.99, Severity.CRITICAL)])
def test_a_redis_that_is_nearly_full_is_found(world: World, share: float, severity: Severity | None) -> None:
    facts = world.store.carry_out(gather())
    server = facts.server.__class__(
        version="7", role="master", aof=True, rdb_saved_at=facts.server.rdb_saved_at, maxmemory_policy="noeviction",
        aof_writes=True, used_memory_bytes=round(share * 1e9), maxmemory_bytes=10**9,
    )  # fmt: skip

    found = list(rules.redis_memory(facts._replace(server=server)))

    assert [each.severity for each in found] == ([severity] if severity else [])


async def test_an_api_process_reads_them_once_for_all_who_ask(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AsyncStore(world.url)
    cache = Fresh(store, find)
    first = await cache.get()
    world.redis.set(keys.SUSPENDED, "1")

    assert await cache.get() is first
    later = time.monotonic() + FRESH_S + 1
    monkeypatch.setattr("taskpool.operations.insight.fresh.time", SimpleNamespace(monotonic=lambda: later))
    assert "suspended" in [each.id for each in (await cache.get()).findings]
    await store.close()


def test_the_most_urgent_come_first(world: World) -> None:
    world.redis.set(keys.SUSPENDED, "1")
    world.add("a", queue="reports")
    old(world, "reports")
    world.add("b", confirm=True)
    world.redis.hset("rq:job:b", "asked_ms", 1)

    assert [id.partition(":")[0] for id in findings(world)] == ["unserved_queue", "suspended", "unconfirmed"]


# --- taskpool doctor --------------------------------------------------------------------------------------------------


def examined(world: World, **changes: Any) -> dict[str, Finding]:
    """What the checks of the installation find, by id without its prefix."""
    seen = world.store.carry_out(doctor.examine(world.store.carry_out(gather())))
    seen = seen._replace(**changes) if changes else seen
    found = [finding for each in doctor.CHECKS for finding in each(seen)]
    return {each.id.removeprefix("installation:"): each for each in found}


def server_of(world: World, **changes: Any) -> Any:
    facts = world.store.carry_out(gather())
    return facts._replace(server=dataclasses.replace(facts.server, **changes))


OF_TESTS = {"vulnerable", "memory", "latency"}
"""What may be found of any Redis that tests use."""


def test_a_sound_installation_passes(world: World) -> None:
    world.start("a")

    assert examined(world).keys() <= OF_TESTS


@pytest.mark.parametrize(
    ("name", "version", "ids"),
    [
        ("Redis", "7.2.10", ["2026-08-18", "2026-07-24", "CVE-2025-49844"]),
        ("Redis", "7.2.15", ["2026-08-18"]),
        ("Redis", "7.2.16", []),
        ("Redis", "7.0.15", ["2026-08-18", "2026-07-24", "CVE-2025-49844"]),  # it never gets the fixes
        ("Redis", "8.10.1", []),
        ("Redis", "9.0.0", []),
        ("Valkey", "9.1.0", ["CVE-2026-56684"]),
        ("Valkey", "9.1.2", []),
        ("Valkey", "8.1.3", ["CVE-2026-56684", "CVE-2026-23479", "CVE-2025-49844"]),
        ("Valkey", "?", []),
    ],
)
def test_known_vulnerabilities_of_a_version_are_told_with_their_source(name: str, version: str, ids: list[str]) -> None:
    found = ServerVersion(name, version).advisories

    assert [next(id for id in ids if id in each.ids) for each in found] == ids
    assert all(each.source.startswith("https://github.com/") for each in found)


def test_each_fault_of_the_installation_is_found(world: World) -> None:
    world.redis.sadd("rq:queues", "rq:queue:default")
    world.redis.rpush("rq:queue:default", "nobody")
    for number in range(2):
        info = PoolInfo(id=f"p{number}", host="h", pid=1, queues=("default",), types=("work",), workers=(),
                        version=f"0.{number}")  # fmt: skip
        world.run(publish(info, [], ttl_s=60))

    found = examined(
        world,
        info={"rdb_last_bgsave_status": "err", "connected_clients": "99", "maxclients": "100"},
        pings_s=[0.02] * 5,
        ahead_s=-7.0,
    )

    assert found.keys() - OF_TESTS == {
        "snapshot", "clients", "clock", "orphans:default", "versions",
    }  # fmt: skip
    assert found["latency"].title == "A round trip to Redis takes 20 ms"
    assert found["clock"].title == "This host's clock is 7 s behind that of Redis"
    assert found["orphans:default"].count == 1


def test_a_redis_that_is_too_old_or_a_replica_is_found(world: World) -> None:
    found = examined(world, facts=server_of(world, name="Redis", version="6.0.1", role="slave"))

    assert {"outdated", "role", "vulnerable"} <= found.keys()


def test_a_user_without_the_rights_is_found(world: World) -> None:
    world.redis.acl_setuser("poor", enabled=True, nopass=True, keys=["rq:*"], categories=["+@all"], channels=["*"])
    address = world.url.replace("unix://", "unix://poor:x@")
    store = Store(address)
    try:
        (found,) = store.carry_out(find(installation=True)).findings
        assert (found.id, found.severity) == ("installation:rights", Severity.CRITICAL)
        assert "No permissions" in found.title
    finally:
        store.close()
        world.redis.acl_deluser("poor")


def test_every_finding_has_a_runbook_that_exists(world: World) -> None:
    text = Path("docs/monitoring.md").read_text("utf-8")
    anchors = {line[4:].strip().lower().replace(" ", "-") for line in text.splitlines() if line.startswith("### ")}
    sources = [Path(module.__file__ or "").read_text("utf-8") for module in (rules, doctor)]
    named = {name for source in sources for name in re.findall(r'(?:RUNBOOKS \+ |runbook(?:=|", ))"([a-z-]+)"', source)}

    assert len(named) > 10
    assert named <= anchors
