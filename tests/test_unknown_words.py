"""Words, fields and events that a newer release has written: every reader goes on, and shows them as they are."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner

from api.events.websocket import read_request
from taskpool import AsyncTaskPool, TaskConflict, TaskPool, TaskStatus, UniqueConflict, WaitTimeout
from taskpool.access import keyring
from taskpool.access.api_key import KeySpec, Scope
from taskpool.access.audit import Actor, read_audit
from taskpool.cli.__main__ import main
from taskpool.cli.output import exit_of
from taskpool.client import values
from taskpool.client.request import Answer
from taskpool.client.values import Message
from taskpool.errors import InvalidKey, InvalidTask
from taskpool.operations.catalog import PoolInfo, pools
from taskpool.operations.catalog import types as all_types
from taskpool.operations.documents import TaskDocument
from taskpool.operations.listing import list_tasks
from taskpool.operations.records import record_at_end
from taskpool.operations.status import read_event
from taskpool.redis import keys, scripts
from taskpool.redis.add_script import accepted_status
from taskpool.types import TERMINAL, Exit
from taskpool.types.control import Filter
from taskpool.webhooks import delivery
from taskpool.webhooks.endpoint import DeliveryStatus, message_body, read_entry
from tests.api_client import api, publish_types
from tests.listeners import Listener, hub_on
from tests.states import World, new_task
from tests.support import PATIENCE_S

S = TaskStatus
FUTURE = "paused_by_budget"
RQ_WORDS = {
    "queued": S.QUEUED,
    "created": S.QUEUED,
    "ready_to_enqueue": S.QUEUED,
    "scheduled": S.SCHEDULED,
    "deferred": S.WAITING,
    "rate_limited": S.THROTTLED,
    "started": S.IN_PROGRESS,
    "finished": S.DONE,
    "failed": S.FAILED,
    "stopped": S.STOPPED,
    "canceled": S.CANCELED,
}


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    with TaskPool(redis_url) as pool:
        yield pool


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


def put(world: World, id: str, **options: Any) -> None:
    """A task in a status, and with fields, of a later release; the event says so too."""
    world.add(id, **options)
    world.redis.lrem("rq:queue:default", 0, id)
    world.redis.hset(f"rq:job:{id}", mapping={"status": FUTURE, "seq": 2, "budget": "7", "reason": "budget_spent"})
    tell(world, id, 2, "paused", FUTURE, budget={"left": 7})


def tell(world: World, id: str, seq: int, event: str, status: str, **data: Any) -> None:
    """Write an event as scripts do."""
    document = {"id": id, "seq": seq, "event": event, "status": status, "at_ms": 1_795_435_200_000, **data}
    entry = world.redis.xadd(keys.EVENTS, {"e": json.dumps(document)}).decode()
    world.redis.publish(keys.CHANNEL + id, json.dumps({**document, "stream": entry}))


# --- the value ----------------------------------------------------------------------------------------------------


def test_an_unknown_status_is_the_word_that_it_is_and_no_end() -> None:
    status = TaskStatus(FUTURE)

    assert (status, status.value, str(status), f"{status}") == (FUTURE,) * 4
    assert isinstance(status, TaskStatus)
    assert (status.is_known, status.is_terminal) == (False, False)
    assert (S.DONE.is_known, S.DONE.is_terminal) == (True, True)
    assert status == TaskStatus(FUTURE)
    assert {status: 1}[TaskStatus(FUTURE)] == 1
    for twin in (copy.deepcopy(status), pickle.loads(pickle.dumps(status))):
        assert (twin, twin.is_known) == (status, False)
    assert msgspec.json.decode(msgspec.json.encode(status), type=TaskStatus) == FUTURE
    assert FUTURE not in list(TaskStatus)
    assert status not in TERMINAL


@pytest.mark.parametrize("value", ["", "Two Words", "x" * 65, "\x00", 3, None, b"done", "naïve"])
def test_what_is_no_word_is_no_status(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a valid TaskStatus"):
        TaskStatus(value)


@pytest.mark.parametrize(("word", "status"), RQ_WORDS.items())
def test_each_word_of_rq_has_its_status(world: World, pool: TaskPool, word: str, status: TaskStatus) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", "status", word)

    assert pool.get("a").status is status


# --- readers of records -------------------------------------------------------------------------------------------


def test_a_pool_reads_lists_and_waits_for_a_task_in_an_unknown_status(world: World, pool: TaskPool) -> None:
    put(world, "a", tags=["x"])

    record = pool.get("a")

    assert (record.status, record.reason, record.ended_at, record.error) == (FUTURE, "budget_spent", None, None)
    assert [each.id for each in pool.list_tasks(tag="x").items] == ["a"]
    assert pool.list_tasks(status=S.FAILED).items == ()
    with pytest.raises(WaitTimeout) as timeout:
        pool.wait("a", timeout_s=0.05)
    assert timeout.value.record.status == FUTURE
    assert pool.logs("a").next_cursor is not None  # it hasn't ended


async def test_an_async_pool_waits_and_hears_of_its_end(world: World, redis_url: str) -> None:
    put(world, "a")

    async with AsyncTaskPool(redis_url) as pool:
        with pytest.raises(WaitTimeout):
            await pool.wait("a", timeout_s=0.05)
        waiting = asyncio.create_task(pool.wait("a", timeout_s=PATIENCE_S))
        await asyncio.sleep(0)
        world.redis.hset("rq:job:a", mapping={"status": "finished", "result": "42"})
        tell(world, "a", 3, "done", "done")

        assert (await waiting).result == 42


def test_an_impossible_change_is_refused_with_its_status(world: World, pool: TaskPool) -> None:
    put(world, "a", unique_key="k")

    assert pool.kill_task("a").status == FUTURE
    for move in (pool.remove_task, pool.retry_task):
        with pytest.raises(TaskConflict) as conflict:
            move("a")
        assert conflict.value.status == FUTURE
        assert FUTURE in str(conflict.value)


def test_another_task_conflicts_with_one_that_holds_its_key(world: World, pool: TaskPool, redis_url: str) -> None:
    publish_types(redis_url)
    put(world, "a", unique_key="k")

    with pytest.raises(UniqueConflict) as conflict:
        pool.add_task("echo", {"message": 1}, unique_key="k")

    assert conflict.value.status == FUTURE
    assert pool.add_task("echo", {"message": 1}, unique_key="k", on_conflict="return").status == FUTURE


def test_a_call_sent_again_after_its_task_is_gone_is_answered_as_at_first(world: World) -> None:
    tasks = [new_task("a"), new_task("b")]
    world.run(scripts.add(tasks))
    world.finish(world.claim())
    world.run(scripts.purge("a"))

    again = world.run(scripts.add(tasks))

    assert [accepted_status(word) for word in again.statuses] == [S.QUEUED, S.QUEUED]


def test_scripts_leave_it_alone_where_it_stands(world: World) -> None:
    put(world, "a")
    for registry in ("finished", "failed", "canceled", "deferred", "scheduled"):
        world.redis.zadd(f"rq:{registry}:default", {"a": 1})
    world.add("child", depends_on=["a"])
    before = world.snapshot()

    for registry in ("finished", "failed", "canceled"):
        assert world.run(scripts.purge("a", f"rq:{registry}:default")) == FUTURE
    assert world.run(scripts.sweep_waiting("default", 1000)) == "end"
    assert world.run(scripts.release("a")) == []

    assert world.since(before) == {}
    assert world.get("child").status is S.WAITING


def test_no_listing_is_asked_for_an_unknown_status(world: World) -> None:
    with pytest.raises(InvalidTask, match="must be one of queued"):
        world.store.carry_out(list_tasks(Filter(status=TaskStatus(FUTURE))))


def test_an_end_whose_message_says_less_than_today_is_read_from_the_record(world: World, pool: TaskPool) -> None:
    running = world.start("a")
    world.finish(running)

    record = pool.wait("a", timeout_s=PATIENCE_S)

    assert record.result == 42
    for message in (b'{"status":"done","result":1}', b"[1]", b"7"):
        assert record_at_end(record, message) is None


# --- the API ------------------------------------------------------------------------------------------------------


@pytest.mark.undocumented
async def test_the_api_shows_it_in_every_list_and_waits_for_it(client: httpx.AsyncClient, world: World) -> None:
    put(world, "a", tags=["x"])
    world.add("b", tags=["x"])

    shown = (await client.get("/tasks/a?wait=0.05")).json()
    assert (shown["status"], shown["reason"]) == (FUTURE, "budget_spent")
    for path in ("/tasks", "/tasks?tag=x", "/tasks?type=work"):
        listed = (await client.get(path)).json()["tasks"]
        assert {each["id"]: each["status"] for each in listed} == {"a": FUTURE, "b": "queued"}
    for path in ("/queues", "/queues/default", "/metrics", "/tasks/a/logs", "/tasks/a/deliveries", "/workers"):
        assert (await client.get(path)).status_code == 200
    answer = await client.delete("/tasks/a")
    assert (answer.status_code, answer.json()["task_status"]) == (409, FUTURE)


async def test_the_api_accepts_no_unknown_status_in_a_filter(client: httpx.AsyncClient) -> None:
    for path in (f"/tasks?status={FUTURE}", f"/events?status={FUTURE}", f"/webhooks/dead?status={FUTURE}"):
        answer = await client.get(path)
        assert answer.status_code in (400, 404, 422)
    assert "no such status" in (await client.get(f"/tasks?status={FUTURE}")).json()["errors"][0]["detail"]


def test_the_socket_accepts_no_unknown_status_in_a_filter() -> None:
    refused: Any = read_request('{"op":"subscribe","sub":"s","filter":{"status":"paused_by_budget"}}')

    assert (refused.kind, refused.pointer, refused.sub) == ("invalid-message", "/filter/status", "s")


# --- events -------------------------------------------------------------------------------------------------------


async def test_an_unknown_event_is_sent_as_it_is(redis_url: str, world: World) -> None:
    world.add("a")
    async with hub_on(redis_url) as hub:
        listener, behind = Listener(hub), Listener(hub)
        await listener.open(task="a")
        await listener.until(lambda each: "live" in each.received)

        tell(world, "a", 2, "paused", FUTURE, budget={"left": 7})
        world.redis.hset("rq:job:a", "seq", 2)
        await listener.until(lambda each: len(each.steps()) == 1)
        await behind.open(task="a")
        await behind.until(lambda each: "live" in each.received)
        listener.stop()
        behind.stop()

    assert listener.received[-1] == ("event", "a", 2, "paused")
    assert behind.received[0] == ("snapshot", {"a": 2})


@pytest.mark.undocumented
async def test_a_stream_goes_on_over_it_and_carries_its_words_and_data(client: httpx.AsyncClient, world: World) -> None:
    world.add("a")
    first = world.redis.xrevrange(keys.EVENTS, count=1)[0][0].decode()
    put_status = {"status": "finished", "result": "42", "seq": 3}
    tell(world, "a", 2, "paused", FUTURE, budget={"left": 7})
    tell(world, "a", 3, "done", "done")
    world.redis.hset("rq:job:a", mapping=put_status)

    text = (await client.get("/tasks/a/events", headers={"last-event-id": first})).text

    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [(each["seq"], each["event"], each["status"]) for each in events] == [
        (2, "paused", FUTURE),
        (3, "done", "done"),
    ]
    assert events[0]["data"] == {"budget": {"left": 7}}


def test_members_that_a_newer_release_puts_between_ours_are_data() -> None:
    event = read_event(b'{"v":2,"id":"a","seq":3,"flow":"f","event":"x","status":"queued","at_ms":1,"n":1}', "1-0")

    assert (event.id, event.seq, event.event, event.status, event.at_ms) == ("a", 3, "x", "queued", 1)
    assert (event.data, event.stream) == ({"v": 2, "flow": "f", "n": 1}, "1-0")


async def test_a_message_that_is_no_task_s_event_cuts_no_live_subscription(redis_url: str, world: World) -> None:
    running = world.start("a")
    async with hub_on(redis_url) as hub:
        listener = Listener(hub)
        await listener.open(task="a")
        await listener.until(lambda each: "live" in each.received)
        world.redis.publish(f"{keys.CHANNEL}a", '{"flow":"f","event":"flow_started","stream":"1-0"}')
        world.finish(running)

        await listener.until(lambda each: each.steps() == [3])
        assert hub._losses == 0
        listener.stop()


def test_an_event_without_a_word_for_a_status_is_none() -> None:
    head = {"id": "a", "seq": 1, "event": "x", "at_ms": 1}

    statuses: tuple[Any, ...] = ("", None, 7, "Two Words", {})
    for status in statuses:
        with pytest.raises((ValueError, TypeError)):
            read_event(json.dumps({**head, "status": status}).encode())


# --- clients and the command line ---------------------------------------------------------------------------------


def test_the_client_reads_documents_with_unknown_words_and_fields(world: World, pool: TaskPool) -> None:
    put(world, "a")
    document = {
        **msgspec.to_builtins(TaskDocument.of(pool.get("a"))),
        "budget": {"left": 7},
        "position": 1,
        "wait_s": 1,
    }
    body = json.dumps(document).encode()
    event = {"id": "a", "seq": 2, "event": "paused", "status": FUTURE, "at": "2026-11-23T12:00:00Z", "data": {}, "x": 1}

    readers: dict[str, Callable[[], Any]] = {
        "record": lambda: values.record(Answer(200, {}, body)).status,
        "receipt": lambda: values.receipt(Answer(202, {}, body)).status,
        "receipts": lambda: values.receipts(Answer(202, {}, b'{"tasks":[%b]}' % body))[0].status,
        "records": lambda: values.records(Answer(200, {}, b'{"tasks":[%b]}' % body)).items[0].status,
        "queued": lambda: values.queued(Answer(200, {}, b'{"tasks":[%b]}' % body)).items[0].record.status,
        "event": lambda: values.told_event(Message("message", json.dumps(event), "1-0")).status,
        "snapshot": lambda: values.told_snapshot(Message("snapshot", body.decode(), "1-0")).status,
    }

    for name, read in readers.items():
        assert (name, read()) == (name, FUTURE)


@pytest.mark.parametrize("arguments", [("get",), ("get", "--json"), ("stop",)])
def test_the_command_line_shows_it(world: World, way: list[str], arguments: tuple[str, ...]) -> None:
    put(world, "a")

    shown = CliRunner().invoke(main, [*arguments, "a", *way])

    assert (shown.exit_code, FUTURE in shown.output) == (0, True), shown.output


def test_the_exit_status_is_that_of_a_task_that_has_not_ended() -> None:
    assert exit_of(TaskStatus(FUTURE)) is Exit.DONE


# --- what else is read --------------------------------------------------------------------------------------------


def test_a_webhooks_message_is_made_of_it() -> None:
    event = {"id": "a", "seq": 2, "event": "paused", "status": FUTURE, "at_ms": 1, "more": 1}
    names = ("type", "queue", "tags", "attempt", "max_attempts", "created_at", "started_at", "ended_at", "project")
    flat = [b"event", json.dumps(event).encode(), *(part for name in names for part in (name.encode(), b""))]

    entry = read_entry("1-0", [*flat, b"callback_url", b"", b"later", b"x"])

    assert entry is not None
    body = json.loads(message_body(entry, None))
    assert (body["type"], body["data"]["status"]) == ("taskpool.task.paused", FUTURE)


def test_a_delivery_with_an_unknown_status_is_listed(world: World) -> None:
    fields = {"lane": "l", "webhook": "wh_1", "task": "a", "event": "e", "url": "u", "created_ms": 1, "body": "{}"}
    world.redis.hset(f"{keys.DELIVERY}d1", mapping={**fields, "status": "held_back", "later": "x"})
    world.redis.zadd(f"{keys.DELIVERIES}wh_1", {"d1": 0})

    (found,) = world.store.carry_out(delivery.list_deliveries(webhook="wh_1")).items

    assert (found.status, found.status.is_known) == ("held_back", False)
    assert isinstance(found.status, DeliveryStatus)


def test_a_key_with_an_unknown_scope_is_read_and_allows_nothing_by_it(world: World) -> None:
    by = Actor(None, "me", None, "here")
    key, _ = world.store.carry_out(keyring.create(KeySpec(name="k"), by))
    document = json.loads(world.redis.hget(keys.API_KEYS, key.id))
    world.redis.hset(keys.API_KEYS, key.id, json.dumps({**document, "scopes": ["tasks:read", "flows:run"], "x": 1}))

    (listed,) = world.store.carry_out(keyring.listed())

    assert listed.key.scopes == (Scope.READ, "flows:run")
    with pytest.raises(InvalidKey, match="scopes/1"):
        world.store.carry_out(keyring.create(KeySpec(name="k", scopes=(Scope.READ, Scope("flows:run"))), by))


def test_pools_types_counters_and_the_audit_are_read_with_fields_of_a_newer_release(
    world: World, redis_url: str
) -> None:
    publish_types(redis_url)
    for key, field in ((keys.TYPES, "echo"), (keys.POOL + "pool-1", None)):
        raw = world.redis.hget(key, field) if field else world.redis.get(key)
        later = json.dumps({**json.loads(raw), "later": {"x": 1}})
        world.redis.hset(key, field, later) if field else world.redis.set(key, later)
    world.redis.hset(keys.COUNTERS, mapping={"later|a|b|c": "1.5", "tasks|parked|echo|default": "3"})
    world.redis.xadd(keys.AUDIT, {"e": '{"what":"flow.started","about":"f","later":1}'})

    assert [each.id for each in world.store.carry_out(pools())] == ["pool-1"]
    assert isinstance(world.store.carry_out(pools())[0], PoolInfo)
    assert "echo" in [each.name for each in world.store.carry_out(all_types())]
    with TaskPool(redis_url) as pool:
        assert pool.counters()["tasks|parked|echo|default"] == 3
    assert [each.entry.what for each in world.store.carry_out(read_audit()).items] == ["flow.started"]
