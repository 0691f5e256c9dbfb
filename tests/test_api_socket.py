"""The WebSocket: subscriptions, snapshots, resuming, limits; every message as /asyncapi.json describes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.app import create_app
from api.auth.caller import anonymous
from api.events import streams
from api.events.client_queue import ClientQueue
from api.events.subscriptions import Subscription, Wanted
from taskpool.errors import TaskNotFound
from taskpool.operations.status import START
from taskpool.redis import keys, scripts
from taskpool.settings import Settings
from tests.api_client import api_process, publish_types
from tests.listeners import hub_on
from tests.states import World
from tests.support import PATIENCE_S


@pytest.fixture
def url(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """An API process that serves two sockets."""
    publish_types(redis_url)
    with api_process(redis_url, tmp_path / "log", TASKPOOL_MAX_STREAMS="2") as (_, url):
        yield url
    assert "Traceback" not in (tmp_path / "log").read_text()


class Client:
    """A socket whose every message is checked against the document."""

    def __init__(self, connection: ClientConnection, document: dict[str, Any]) -> None:
        self.connection = connection
        self._asked = validator(document, "ask")
        self._received = validator(document, "tell")

    async def say(self, **message: Any) -> None:
        """Send what the document allows."""
        self._asked.validate(message)
        await self.connection.send(json.dumps(message))

    async def hear(self, *, check: bool = True) -> dict[str, Any]:
        """The next message."""
        async with asyncio.timeout(PATIENCE_S):
            message: dict[str, Any] = json.loads(await self.connection.recv())
        if check:  # which takes longer than to read it
            self._received.validate(message)
        return message

    async def hear_until(self, op: str) -> list[dict[str, Any]]:
        """The messages up to the first of this kind."""
        messages = [await self.hear()]
        while messages[-1]["op"] != op:
            messages.append(await self.hear(check=len(messages) < 200))
        return messages


def validator(document: dict[str, Any], operation: str) -> Draft202012Validator:
    """A validator of the messages of one operation: each must be exactly one of them."""
    channel, components = document["channels"]["events"]["messages"], document["components"]
    names = [each["$ref"].rpartition("/")[2] for each in document["operations"][operation]["messages"]]
    assert all(channel[name]["$ref"] == f"#/components/messages/{name}" for name in names)
    schema = {"oneOf": [components["messages"][name]["payload"] for name in names], "components": components}
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@asynccontextmanager
async def client_of(url: str, **options: Any) -> AsyncIterator[Client]:
    """A client of the socket."""
    document = httpx.get(url + "/asyncapi.json").json()
    where = url.replace("http", "ws") + document["channels"]["events"]["address"]
    async with connect(where, proxy=None, close_timeout=0.5, **options) as connection:
        yield Client(connection, document)


async def test_tasks_and_filters_are_followed_and_left(url: str, world: World) -> None:
    world.add("a", tags=["x"])
    world.end("b", queue="q")
    async with client_of(url) as client:
        await client.say(op="subscribe", sub="task", task="a")
        (task, _) = await client.hear_until("live")
        await client.say(op="subscribe", sub="all", filter={"queue": "q", "status": "failed"})
        (empty, _) = await client.hear_until("live")
        await client.say(op="subscribe", sub="done", filter={"queue": "q"})
        (done, _) = await client.hear_until("live")

        running = world.claim()
        started = await client.hear()
        await client.say(op="unsubscribe", sub="task")
        left = await client.hear()
        world.finish(running)
        world.add("c", queue="q")
        queued = await client.hear()
        await client.say(op="ping", nonce="7")
        pong = await client.hear()
        await client.say(op="ping")
        bare = await client.hear()

    assert [(each["id"], each["status"]) for each in task["tasks"]] == [("a", "queued")]
    assert (empty["tasks"], [each["id"] for each in done["tasks"]]) == ([], ["b"])
    assert (started["sub"], started["event"]["event"], started["event"]["data"]) == ("task", "started", {"attempt": 1})
    assert left == {"op": "unsubscribed", "sub": "task"}
    assert (queued["sub"], queued["event"]["id"], queued["event"]["seq"]) == ("done", "c", 1)
    assert (pong, bare) == ({"op": "pong", "nonce": "7"}, {"op": "pong"})


async def test_a_subscription_resumes_after_the_event_it_names(url: str, world: World) -> None:
    world.end("a")
    ids = [id.decode() for id, _ in world.redis.xrange(keys.EVENTS)]
    async with client_of(url) as client:
        await client.say(op="subscribe", sub="s", task="a", after=ids[0])
        messages = await client.hear_until("live")
        world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)
        await client.say(op="subscribe", sub="late", filter={}, after=ids[0])
        late = await client.hear_until("live")

    assert [each["event"]["stream"] for each in messages[:-1]] == ids[1:]
    assert [each["op"] for each in late] == ["resync", "snapshot", "live"]
    assert (late[0]["reason"], late[0]["after"]) == ("trimmed", ids[-1])


BAD: list[tuple[str | bytes, str]] = [
    ("{", "invalid-json"),
    ("", "invalid-json"),
    (b"{}", "invalid-json"),
    ("[]", "invalid-message"),
    ("{}", "invalid-message"),
    ('{"op":"subscrbe"}', "invalid-message"),
    ('{"op":"subscribe","sub":"s"}', "invalid-message"),
    ('{"op":"subscribe","sub":"s","task":"a","filter":{}}', "invalid-message"),
    ('{"op":"subscribe","sub":"","task":"a"}', "invalid-message"),
    ('{"op":"subscribe","sub":"s","task":"*"}', "invalid-message"),
    ('{"op":"subscribe","sub":"s","task":"a","after":"1"}', "invalid-message"),
    ('{"op":"subscribe","sub":"s","task":"a","more":1}', "invalid-message"),
    ('{"op":"subscribe","sub":"s","filter":{"status":"x"}}', "invalid-message"),
    ('{"op":"subscribe","sub":"s","task":"missing"}', "task-not-found"),
    ('{"op":"unsubscribe","sub":"s"}', "no-such-subscription"),
    ('{"op":"subscribe","sub":"taken","filter":{}}', "subscription-exists"),
]


async def test_a_wrong_message_is_answered_and_the_socket_goes_on(url: str, world: World) -> None:
    world.add("a")
    async with client_of(url) as client:
        await client.say(op="subscribe", sub="taken", task="a")
        await client.hear_until("live")
        answers = []
        for text, _ in BAD:
            await client.connection.send(text)
            answers.append(await client.hear())
        world.finish(world.claim())
        event = await client.hear()

    assert [(each["op"], each["kind"]) for each in answers] == [("error", kind) for _, kind in BAD]
    assert all(each["detail"] for each in answers)
    assert event["event"]["event"] == "started"


async def test_a_wrong_subscription_is_answered_with_its_name_and_the_field(url: str) -> None:
    answers = []
    async with client_of(url) as client:
        for said in (
            {"sub": "a", "op": "subscribe", "filter": {"status": "runing"}},
            {"sub": "b", "op": "subscribe", "filter": {}, "after": "x"},
            {"sub": "c", "op": "subscribe", "filter": {"que": "x"}},
            {"sub": "", "op": "subscribe", "filter": {}},
            {"sub": "d", "op": "subscrbe"},
            {"sub": "e", "op": ["subscribe"]},
            [5],
        ):
            await client.connection.send(json.dumps(said))
            answers.append(await client.hear())

    assert [(each.get("sub"), each["pointer"]) for each in answers] == [
        ("a", "/filter/status"), ("b", "/after"), ("c", "/filter/que"), (None, "/sub"), ("d", "/op"), ("e", "/op"),
        (None, ""),
    ]  # fmt: skip
    assert answers[0]["detail"].startswith("/filter/status: must be one of 'queued', 'scheduled', ")
    assert answers[4]["detail"] == "/op: must be one of 'subscribe', 'unsubscribe', 'ping'"


async def test_what_is_nested_too_deeply_is_answered(url: str) -> None:
    deep = "[" * 8_000 + "]" * 8_000
    async with client_of(url) as client:
        await client.connection.send('{"x":' + deep + ',"op":"ping"}')
        first = await client.hear()
        await client.connection.send('{"op":"subscribe","sub":"s","filter":5,"x":' + deep + "}")
        second = await client.hear()

    assert [first["kind"], second["kind"]] == ["invalid-json", "invalid-message"]


async def test_too_many_bad_messages_and_too_large_ones_end_it(url: str) -> None:
    async with client_of(url) as client:
        for _ in range(30):
            await client.connection.send("{")
        with pytest.raises(ConnectionClosed) as closed:
            await client.hear_until("live")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008

    async with client_of(url) as client:
        await client.connection.send(json.dumps({"op": "ping", "nonce": "x" * 20_000}))
        with pytest.raises(ConnectionClosed) as closed:
            await client.hear()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_a_socket_has_so_many_subscriptions_and_a_process_so_many_sockets(url: str, world: World) -> None:
    world.add("a")
    async with client_of(url) as client, client_of(url) as second:
        for n in range(101):
            await client.say(op="subscribe", sub=str(n), task="a", after="0-0")
        messages = [message for message in await client.hear_until("error") if message["op"] == "error"]
        with pytest.raises(InvalidStatus) as refused:
            async with client_of(url):
                pass
        await second.say(op="ping")
        assert await second.hear() == {"op": "pong"}

    assert (messages[0]["kind"], messages[0]["sub"]) == ("too-many-subscriptions", "100")
    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["retry-after"] == "5"
    assert json.loads(refused.value.response.body)["type"] == "urn:taskpool:problem:too-many-streams"


async def test_others_have_their_turn_between_the_messages_of_a_socket(redis_url: str) -> None:
    said = iter(['{"op":"ping"}'] * 500)
    turns = 0

    async def receive() -> dict[str, Any]:
        text = next(said, None)
        return {"type": "websocket.disconnect"} if text is None else {"type": "websocket.receive", "text": text}

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def send(message: Any) -> None:
        pass

    app = create_app(Settings(redis_url=redis_url, auth="off"))
    scope = {"type": "websocket", "path": "/ws", "headers": [], "query_string": b"", "client": ("192.0.2.1", 1)}
    async with app.router.lifespan_context(app):
        meanwhile = asyncio.create_task(others())
        await asyncio.wait_for(app({**scope, "extensions": {}}, receive, send), 60)
        meanwhile.cancel()

    assert turns >= 500


async def test_few_subscriptions_begin_at_the_same_time(redis_url: str) -> None:
    under_way: list[str] = []
    most = 0

    class Opening:
        """A hub that takes its time."""

        close = drop = go_on = end = staticmethod(lambda *_: None)

        async def open(self, wanted: Wanted, queue: ClientQueue, *, name: str, after: Any) -> Subscription:
            nonlocal most
            under_way.append(name)
            most = max(most, len(under_way))
            for _ in range(10):
                await asyncio.sleep(0)
            under_way.remove(name)
            return Subscription(wanted, queue, name)

    hub, gate = cast(Any, Opening()), cast(Any, None)
    places = streams.Streams(hub, gate, Settings())
    outlets = [places.admit(anonymous(f"192.0.2.{number}")) for number in range(20)]
    opened = await asyncio.gather(
        *[places.subscribe(Wanted(None), each, name=str(at), after=None) for at, each in enumerate(outlets)]
    )
    places.close()

    assert most == streams.OPENED_AT_ONCE
    assert [each.name for each in opened] == [str(number) for number in range(20)]


async def test_an_address_has_so_many_subscriptions_over_all_its_sockets_and_left_ones_count_no_more(
    redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MOST_SUBSCRIPTIONS_OF", 3)
    world.add("a")
    async with hub_on(redis_url) as hub:
        gate: Any = None
        places = streams.Streams(hub, gate, Settings())
        caller = anonymous("192.0.2.1")
        first, second = places.admit(caller), places.admit(caller)
        opened = [await places.subscribe(Wanted(None, task="a"), each, name="s", after=START) for each in (first,) * 2]
        await places.subscribe(Wanted(None), second, name="s", after=START)
        with pytest.raises(streams.TooManySubscriptions):
            await places.subscribe(Wanted(None), second, name="t", after=START)
        with pytest.raises(TaskNotFound):
            await places.subscribe(Wanted(None, task="x"), places.admit(anonymous("192.0.2.2")), name="s", after=START)

        places.unsubscribe(opened[0])
        await places.subscribe(Wanted(None), second, name="t", after=START)
        places.release(second)
        for name in "uv":
            await places.subscribe(Wanted(None), first, name=name, after=START)
        places.release(first)

        assert not places._subscribed_of
        places.close()


async def test_a_client_that_does_not_read_can_resume_without_a_gap_and_delays_no_other(url: str, world: World) -> None:
    events, note = 2500, "x" * 8000
    running = world.start("a")
    async with client_of(url, max_queue=1) as slow, client_of(url) as quick:
        for client in (slow, quick):
            await client.say(op="subscribe", sub="s", task="a")
            await client.hear_until("live")

        received: list[int] = []
        for start in range(0, events, 50):  # as fast as the quick one reads
            documents = [{"done": start + n, "note": note} for n in range(50)]
            calls = [scripts.progress(running, document) for document in documents]
            await asyncio.to_thread(world.store.run_many, calls)
            received += [(await quick.hear(check=False))["event"]["seq"] for _ in documents]
        *before, resync = await slow.hear_until("resync")
        await slow.say(op="subscribe", sub="s", task="a", after=resync["after"])
        after = await slow.hear_until("live")

    assert received == list(range(3, events + 3))
    assert (resync["sub"], resync["reason"]) == ("s", "slow")
    assert [each["event"]["seq"] for each in [*before, *after[:-1]]] == received


async def test_the_document_is_of_this_server_and_describes_the_socket(url: str) -> None:
    document = httpx.get(url + "/asyncapi.json").json()

    assert document["asyncapi"] == "3.0.0"
    assert document["servers"]["this"]["host"] == urlsplit(url).netloc
    assert {each["action"] for each in document["operations"].values()} == {"send", "receive"}
    text = json.dumps(document)
    for ref in {part.split('"')[0] for part in text.split('"$ref": "')[1:]}:
        found: Any = document
        for name in ref.removeprefix("#/").split("/"):
            found = found[name]
