"""Whatever other programs write into Redis: readers skip what they can't read, and say so; nothing answers 500."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
import msgspec
import pytest
from click.testing import CliRunner

from api.app import create_app
from api.routing import Resource
from taskpool import Every, Registry, TaskPool, TaskSpec, TaskStatus
from taskpool.access import keyring
from taskpool.access.api_key import KeySpec
from taskpool.cli.__main__ import main
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.operations.insight.redrive import start_redrive
from taskpool.redis import calls, keys, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.settings import Settings
from taskpool.tasks.log_lines import LogLine, encode_line
from taskpool.types import DEFAULT_LIMITS
from taskpool.url_guard import Allowed
from taskpool.webhooks import store as webhook_store
from taskpool.webhooks.delivery import NewDelivery, deliver
from taskpool.webhooks.endpoint import NewWebhook
from tests.api_client import api
from tests.keys import ME, bearer, id_of, make_key
from tests.states import SEED, World, new_task
from workers.duties import Outage
from workers.housekeeping import Housekeeping, RqMaintenance

S = TaskStatus
GARBAGE: Final = b'{"\xff'
KINDS: Final = ("string", "list", "its own")
FAMILIES: Final = sorted(
    {
        value
        for name, value in vars(keys).items()
        if name.isupper() and isinstance(value, str) and value.startswith(("rq:", "taskpool:")) and "*" not in value
    }
)


def populate(world: World, redis_url: str) -> dict[str, str]:
    """Something under every kind of key; what the paths of the API name."""
    for status, seed in SEED.items():
        seed(world, f"t-{status}")
    world.run(scripts.add([new_task("tagged", project="p", tags=["x"], unique_key="u", delay_s=50, expires_in_s=500)]))
    world.start("logs")
    lines = [encode_line(LogLine(at_ms=1, text=f"line {n}")) for n in range(3)]
    world.run(scripts.log("logs", "1", lines, DEFAULT_LIMITS))
    registry = Registry(builtins=True)
    info = PoolInfo(id="p", host="h", pid=1, queues=("default",), types=tuple(registry.names()), workers=("w",))
    world.run(publish(info, [each.info() for each in registry], ttl_s=3600))
    hook = world.store.carry_out(
        webhook_store.create_webhook(NewWebhook(url="https://a.example/"), Allowed(()), ME, most=9)
    )
    delivery = NewDelivery("msg_1", hook.id, hook.id, "logs", "task.done", hook.url, b"{}")
    world.run(deliver("", [delivery]))
    key, _ = world.store.carry_out(keyring.create(KeySpec(name="k"), ME))
    world.run(keyring.note_use(key.id))
    birth = "2026-01-31T12:00:00.000000Z"
    world.redis.hset("rq:worker:w", mapping={"birth": birth, "pid": 7, "queues": "default", "state": "idle"})
    world.redis.sadd("rq:workers", "rq:worker:w")
    world.redis.sadd("rq:workers:default", "rq:worker:w")
    world.redis.rpush("rq:queue:default:intermediate", "t-queued")
    world.run(scripts.count({"tasks|done|work|default|b": 2}))
    fingerprint = world.get(f"t-{S.FAILED}").fingerprint or ""
    world.store.carry_out(start_redrive(fingerprint))
    with TaskPool(redis_url, registry=registry) as pool:
        echo = TaskSpec(type="echo", payload={"message": "m"})
        with pool.workflow("w") as workflow:
            workflow.add("after", echo, after=workflow.map("rows", [echo, echo]).any())
        pool.set_schedule("s", Every(60), echo)
        pool.run_schedule("s")
        pool.add_task("echo", {"message": "m"}, confirm=True)
    return {
        "id": "logs", "name": "default", "queue": "default", "webhook": hook.id, "delivery": "msg_1", "key": key.id,
        "file": "docs.css", "workflow": workflow.id, "schedule": "s", "fingerprint": fingerprint,
        "operation": "nothing",
    }  # fmt: skip


def spoil(redis: Any, key: bytes, kind: str) -> None:
    """Store something else under a key: of another kind, or of its own kind with another content."""
    own, fields = redis.type(key), redis.hkeys(key) if redis.type(key) == b"hash" else []
    redis.delete(key)
    if kind == "string" or (kind == "its own" and own == b"string"):
        redis.set(key, GARBAGE)
    elif kind == "list" or own == b"list":
        redis.rpush(key, GARBAGE, "a")
    elif own == b"hash":
        redis.hset(key, mapping=dict.fromkeys([*fields, b"\xff"], GARBAGE))
    elif own == b"zset":
        redis.zadd(key, {GARBAGE: 1.5, "a:b": "-inf", "a": "+inf"})
    elif own == b"set":
        redis.sadd(key, GARBAGE, "a")
    else:
        redis.xadd(key, {GARBAGE: GARBAGE})
        redis.xadd(key, {"e": GARBAGE})


def paths(app: Any, named: dict[str, str]) -> Iterator[str]:
    """Every path that can be read, but for the streams that don't end."""
    for route in app.routes:
        is_read = isinstance(getattr(route, "endpoint", None), Resource) and "GET" in route.endpoint.guarded
        if is_read and not route.path.endswith(("/events", "/live", "{file:path}")):
            yield route.path.format(**named)
    yield from ("/tasks?tag=x", "/tasks?type=work", "/tasks?queue=default", "/audit?what=key.created")
    for status in (S.QUEUED, S.WAITING, S.IN_PROGRESS, S.FAILED):
        yield from (f"/tasks/t-{status}", f"/tasks?status={status}")


def is_told_in(path: str, family: str) -> bool:
    """Whether a page can depend on what stands under such keys: the large ones take long to make."""
    large = ("/openapi.json", "/asyncapi.json", "/docs/docs.css")
    return path not in large or family.startswith(("taskpool:t", "taskpool:p"))


async def ask(client: httpx.AsyncClient, path: str) -> None:
    """Read a path; it may be refused, in words."""
    answer = await client.get(path)
    if answer.status_code >= 400:
        problem = answer.json()
        is_said = answer.status_code == 503 and "another kind of value" in problem["detail"]
        assert answer.status_code < 500 or is_said, (path, problem)
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_that_redis_holds_fails_a_reader(
    redis_url: str, world: World, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls.reported.clear()
    named = populate(world, redis_url)
    app = create_app(Settings(redis_url=redis_url, auth="off"))
    store = AsyncStore(redis_url)
    housekeeping, beside = Housekeeping(store, Outage(), Settings()), RqMaintenance(store, Settings(), world.redis)
    await housekeeping.step()
    stored = everything(world.redis)
    spoilt = set()
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for family in FAMILIES:
                mine = {key for key in stored if key.startswith(family.encode())}
                for key in mine:
                    spoil(world.redis, key, kind)
                for path in paths(app, named) if mine else ():
                    if is_told_in(path, family):
                        await ask(client, path)
                if mine:
                    await housekeeping.step()
                    await beside.step()
                spoilt |= mine
                restore(world.redis, stored)
    await store.close()
    assert spoilt == set(stored)
    assert "can't be read, so it is skipped" in caplog.text


def everything(redis: Any) -> dict[bytes, tuple[bytes, int]]:
    """All that Redis holds."""
    return {key: (redis.dump(key), max(redis.pttl(key), 0)) for key in redis.scan_iter()}


def restore(redis: Any, stored: Mapping[bytes, tuple[bytes, int]]) -> None:
    """Have Redis hold what it held."""
    redis.flushdb()
    pipeline = redis.pipeline()
    for key, (value, ttl_ms) in stored.items():
        pipeline.restore(key, ttl_ms, value)
    pipeline.execute()


BAD: Final = {
    "garbage": GARBAGE,
    "empty": b"",
    "list": b"[]",
    "object": b"{}",
    "deep": b"[" * 5000,
    "wrong": b'{"id":1,"name":["x"],"queue":5,"schema":[],"url":0,"secret":null}',
}
"""Documents that are none of ours."""

SCHEMAS: Final = {
    "kind": {"type": "nonsense"},
    "reference": {"$ref": "#/nowhere"},
    "remote": {"$ref": "https://a.example/schema"},
    "properties": {"properties": []},
    "definitions": {"$defs": 5, "properties": {"a": {"$ref": "#/$defs/a"}}},
    "pattern": {"properties": {"a": {"pattern": "("}}},
}
"""Schemas that are none."""


async def test_one_unreadable_record_is_left_out_of_a_list_and_logged(
    redis_url: str, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    calls.reported.clear()
    named = populate(world, redis_url)
    for key in (keys.TYPES, keys.API_KEYS, keys.WEBHOOKS):
        world.redis.hset(key, mapping=BAD)
    schemas = {
        f"schema.{name}": msgspec.json.encode({"name": f"schema.{name}", "queue": "q", "schema": schema})
        for name, schema in SCHEMAS.items()
    }
    world.redis.hset(keys.TYPES, mapping=schemas)
    world.redis.zadd(keys.TYPES_SEEN, dict.fromkeys([*BAD, *schemas], world.redis.time()[0] * 1000))

    async with api(redis_url, auth="off") as client:
        types = (await client.get("/types")).json()["types"]
        document = await client.get("/openapi.json")
        key_ids = [key["id"] for key in (await client.get("/keys")).json()["keys"]]
        webhooks = [webhook["id"] for webhook in (await client.get("/webhooks")).json()["webhooks"]]
        submitted = [await client.post("/tasks", json={"type": type}) for type in (*BAD, *schemas)]
        echo = await client.post("/tasks", json={"type": "echo", "payload": {"message": 1}})
        removed = await client.delete("/keys/000000000000")
        world.redis.hset(keys.API_KEYS, "000000000000", GARBAGE)
        unreadable = await client.delete("/keys/000000000000")
        made = await client.post("/webhooks", json={"url": "https://b.example/"})

    assert "echo" in [type["name"] for type in types]
    assert not BAD.keys() & {type["name"] for type in types}
    assert document.status_code == 200
    assert "echo.task" in document.json()["components"]["schemas"]
    assert key_ids == [named["key"]]
    assert webhooks == [named["webhook"]]
    assert {answer.status_code for answer in submitted} <= {202, 422}
    assert {answer.status_code for answer in submitted[: len(BAD)]} == {422}
    assert (echo.status_code, made.status_code) == (202, 201)
    assert (removed.status_code, unreadable.status_code) == (404, 204)
    assert world.redis.hexists(keys.API_KEYS, "000000000000") == 0
    for what in ("task type 'garbage'", "API key b'garbage'", "webhook b'garbage'"):
        assert f"{what} in Redis can't be read, so it is skipped" in caplog.text


async def test_reading_an_unreadable_task_is_an_error_that_names_it(redis_url: str, world: World) -> None:
    world.redis.set("rq:job:a", "no record")
    world.add("b")

    async with api(redis_url) as client:
        asked = [
            await client.get(path) for path in ("/tasks/a", "/tasks/a?wait=1", "/tasks/a/logs", "/tasks/a/deliveries")
        ]
        events = await client.get("/tasks/a/events")
        changed = [await client.post(f"/tasks/a/{verb}") for verb in ("stop", "retry")]
        changed.append(await client.delete("/tasks/a"))

    for answer in asked:
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:taskpool:problem:task-not-found")
        assert "holds something else than a task's record" in answer.json()["detail"]
    assert events.status_code == 404
    assert {answer.status_code for answer in changed} <= {404, 503}


async def test_a_key_whose_record_is_unreadable_opens_nothing(redis_url: str, world: World) -> None:
    text = make_key(redis_url)

    async def is_refused() -> None:
        async with api(redis_url) as client:
            for headers in (bearer(text), {}):
                answer = await client.get("/tasks", headers=headers)
                assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")

    world.redis.hset(keys.API_KEYS, id_of(text), GARBAGE)
    await is_refused()
    spoil(world.redis, keys.API_KEYS.encode(), "list")
    await is_refused()


@pytest.mark.parametrize("kind", KINDS)
def test_programs_and_commands_read_what_they_can(redis_url: str, world: World, kind: str) -> None:
    named = populate(world, redis_url)
    stored = everything(world.redis)
    commands = "queue", "queue default", "types", "workers", "get t-done", "logs t-done", "keys list", "audit"
    families = (
        *("rq:job:", "rq:queue", "rq:w", "rq:failed:", "rq:s", "rq:deferred:", "taskpool:t", "taskpool:p"),
        *("taskpool:keys", "taskpool:audit", "taskpool:log:", "taskpool:counters", "taskpool:stats:"),
    )
    with TaskPool(redis_url) as pool:
        for family in families:
            for key in stored:
                if key.startswith(family.encode()):
                    spoil(world.redis, key, kind)
            for command in commands:
                ran = CliRunner().invoke(main, command.split(), env={"TASKPOOL_REDIS_URL": redis_url})
                assert ran.exit_code in (0, 1, 3), (family, command, ran.output)
                assert ran.exception is None or isinstance(ran.exception, SystemExit), (family, command, ran.exception)
            for status in SEED:
                pool.list_tasks(status=status)
            pool.list_tasks()
            pool.get_queue(named["name"])
            for read in (
                pool.queues,
                pool.types,
                pool.workers,
                pool.worker_warnings,
                pool.counters,
                pool.stats,
            ):
                read()
            restore(world.redis, stored)
