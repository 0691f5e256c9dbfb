"""A canary: tasks that give their secrets away in every way, run by real processes, and then looked for everywhere.

Beside each secret stands a word that may be seen. Where the word is found and the secret isn't, it was masked.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from redis import Redis
from websockets.sync.client import connect

from taskpool import TaskStatus
from taskpool.access.api_key import Scope
from taskpool.cli.__main__ import main
from taskpool.redis.embedded import RedisServer
from tests.api_client import api_process
from tests.keys import bearer, make_key
from tests.receiver import Receiver, receiver
from tests.rq_processes import Dashboard, dashboard
from tests.support import PATIENCE_S, eventually
from tests.tasks_for_secrets import SEEN
from tests.worker_pool import WorkerPool

pytestmark = pytest.mark.long(about_s=20)

TASKS = str(Path(__file__).with_name("tasks_for_secrets.py"))
ALLOW = "127.0.0.0/8"
SECRETS_KEY = b"taskpool:secrets:"

TOKEN = "canaryone/7+f\"é'canarytwo"
PASSWORD = "canarythree\ncanaryfour%canaryfive"
PIN = 4815162342
GIVEN = {"token": TOKEN, "account": {"user": "ann", "password": PASSWORD}, "pin": PIN}
TRACES = [
    b"canary",  # in all their parts, and in whatever is left of one that was cut
    str(PIN).encode(),
    *[base64.b64encode(text.encode())[:12] for text in (TOKEN, PASSWORD, str(PIN))],
]

FAILING = ("fail", "group", "exit", "compile", "retry", "nonsense", "die")
QUIET = ("nonsense", "die")
"""Those with no traceback."""
DONE = ("snooze", "return")


@dataclass
class Scene:
    """All that runs, and what it has sent."""

    redis: Any
    redis_url: str
    api: httpx.Client
    key: str
    key_id: str
    directory: Path
    pages: Dashboard
    messages: Any
    receiver: Receiver
    webhook: str = ""
    ids: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[bytes]] = field(default_factory=dict)
    """By place, what was found there while the tasks ran."""

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask the API; what it answers is kept."""
        response = self.api.request(method, path, **options)
        answer = repr(response.headers).encode() + response.content
        self.kept.setdefault("answers to what was asked meanwhile", []).append(answer)
        return response

    def submit(self, how: str, type: str = "leak", **options: Any) -> str:
        """Submit a task that tells."""
        payload = GIVEN | {"how": how, "path": str(self.directory / how)} if type == "leak" else options.pop("payload")
        body = {"type": type, "payload": payload, "callback_url": self.receiver.url(), **options}
        response = self.call("POST", "/tasks", json=body)
        assert response.status_code == 202, response.text
        id = self.ids[how] = str(response.json()["id"])
        return id

    def ended(self, how: str) -> dict[str, Any]:
        """The task, once it has ended."""

        def look() -> Any:
            task = self.call("GET", f"/tasks/{self.ids[how]}?wait=10").json()
            return task if task["status"] in ("done", "failed", "stopped") else None

        found: dict[str, Any] = eventually(look)
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Scene]:
    """Processes that run, tasks that have ended, and every place still there to be looked at."""
    directory = tmp_path_factory.mktemp("secrets")
    (directory / "redis").mkdir()
    with ExitStack() as stack:
        server = RedisServer(directory / "redis", binary=redis_binary)
        server.start()
        stack.callback(server.stop)
        redis = stack.enter_context(Redis.from_url(server.url))
        messages = redis.pubsub()
        messages.psubscribe("*")
        key = make_key(server.url, "k", *Scope)
        hooks = stack.enter_context(receiver())
        settings: dict[str, Any] = {"tasks": TASKS, "webhook_allow": ALLOW, "queues": "default"}
        pool = WorkerPool(server.url, directory / "workers.log", workers=3, **settings)
        slots = WorkerPool(server.url, directory / "slots.log", slots=4, **settings | {"queues": "slots"})
        api = api_process(server.url, directory / "api.log", TASKPOOL_WEBHOOK_ALLOW=ALLOW, TASKPOOL_LOG_LEVEL="debug")
        _, url = stack.enter_context(api)
        stack.enter_context(pool)
        stack.enter_context(slots)
        pages = stack.enter_context(dashboard(server.url, directory))
        client = stack.enter_context(httpx.Client(base_url=url, headers=bearer(key), timeout=PATIENCE_S))
        scene = Scene(redis, server.url, client, key, key.split("_")[1], directory, pages, messages, hooks)
        _play(scene)
        yield scene


def _play(scene: Scene) -> None:
    """Submit them, hear how they end, and have one retried by hand."""
    scene.webhook = scene.call("POST", "/webhooks", json={"url": scene.receiver.url("/all")}).json()["id"]
    for how in (*FAILING, *DONE, "hang"):
        scene.submit(how)
    scene.submit("async", "leak_async", payload={"token": TOKEN}, queue="slots")
    scene.submit("refuse", "refuse", payload={"picky": {"token": TOKEN}})
    scene.submit("later", "leak_async", payload={"token": TOKEN}, delay_s=1000)
    for payload in (
        GIVEN | {"how": 1, "token": [TOKEN]},
        GIVEN | {"how": "fail", "pin": str(PIN)},
        GIVEN | {"how": "fail", "account": PASSWORD},
        GIVEN | {"how": "fail", "account": {"password": PASSWORD}},
        GIVEN | {"how": "fail", "account": {"user": 1, "password": {TOKEN: TOKEN}}},
    ):
        assert scene.call("POST", "/tasks", json={"type": "leak", "payload": payload}).status_code == 422
    eventually((scene.directory / "hang").exists)
    scene.call("POST", f"/tasks/{scene.ids['hang']}/stop", json={"grace_s": 0.3})

    statuses = {how: scene.ended(how)["status"] for how in scene.ids if how != "later"}
    wanted: dict[str, TaskStatus] = dict.fromkeys((*FAILING, "async", "refuse"), TaskStatus.FAILED)
    wanted |= dict.fromkeys(DONE, TaskStatus.DONE) | {"hang": TaskStatus.STOPPED}
    assert statuses == {how: status.value for how, status in wanted.items()}
    assert scene.call("POST", f"/tasks/{scene.ids['fail']}/retry").status_code == 202
    assert scene.ended("fail")["attempt"] > 2
    scene.submit("late")
    assert scene.ended("late")["status"] == "done"
    (scene.directory / "late").touch()
    eventually(lambda: (scene.directory / "workers.log").read_text().count("late " + SEEN) >= 3)
    eventually(lambda: len(scene.receiver.at("/in")) >= len(statuses) + 2)


def traces(text: bytes) -> list[bytes]:
    """The secrets in it, each with what stands around it."""
    found = []
    for trace in TRACES:
        at = text.find(trace)
        if at >= 0:
            found.append(text[max(at - 60, 0) : at + 40])
    return found


def unpacked(value: Any) -> bytes:
    """All bytes of a reply of Redis, what is compressed also as what it was."""
    if isinstance(value, dict):
        return b"\n".join(unpacked(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set):
        return b"\n".join(unpacked(part) for part in value)
    raw = value if isinstance(value, bytes) else str(value).encode()
    found = [raw]
    for decode in (zlib.decompress, lambda each: zlib.decompress(base64.b64decode(each, validate=True))):
        try:
            found.append(decode(raw))
        except (zlib.error, binascii.Error, ValueError):
            continue
    return b"\n".join(found)


def in_redis(redis: Any, *, secret: bool) -> dict[str, bytes]:
    """What each key holds: those of secrets, or all others."""
    readers: dict[bytes, Callable[[bytes], Any]] = {
        b"string": redis.get,
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        b"hash": redis.hgetall,
        b"stream": redis.xrange,
        b"none": lambda _: b"",  # it has just expired
    }
    keys = [key for key in redis.scan_iter(count=1000) if key.startswith(SECRETS_KEY) == secret]
    return {key.decode(): key + b"\n" + unpacked(readers[redis.type(key)](key)) for key in keys}


def leaks(places: dict[str, bytes]) -> dict[str, list[bytes]]:
    """The places in which there is a secret."""
    return {place: found for place, text in places.items() if (found := traces(text))}


def test_the_secrets_are_where_they_belong_as_long_as_they_may_be_needed(scene: Scene) -> None:
    kept = {key.removeprefix(SECRETS_KEY.decode()) for key in leaks(in_redis(scene.redis, secret=True))}

    assert kept == {scene.ids[how] for how in (*FAILING, "async", "refuse", "later", "hang")}


def test_no_other_key_of_redis_has_one(scene: Scene) -> None:
    places = in_redis(scene.redis, secret=False)

    assert leaks(places) == {}
    seen = {key for key, text in places.items() if SEEN.encode() in text}
    for kind in ("rq:job:", "rq:results:", "taskpool:log:"):
        assert {f"{kind}{scene.ids[how]}" for how in FAILING if how not in QUIET or kind != "rq:results:"} <= seen
    assert {f"rq:job:{scene.ids[how]}" for how in (*DONE, "hang", "async", "refuse")} <= seen
    assert "taskpool:events" in seen


def test_no_subscriber_of_redis_received_a_secret(scene: Scene) -> None:
    received = []
    while message := scene.messages.get_message(timeout=0.2):
        received.append(unpacked([message["channel"], message["data"]]))

    assert any(SEEN.encode() in each for each in received)
    assert [traces(each) for each in received if traces(each)] == []


ENDLESS = ("/events", "/live")


def test_no_answer_of_the_api_shows_one(scene: Scene) -> None:
    document = scene.call("GET", "/openapi.json").json()
    deliveries = scene.call("GET", f"/webhooks/{scene.webhook}/deliveries").json()["deliveries"]
    task = {"type": "leak_async", "payload": {"token": TOKEN}}
    nodes = [{"name": "one", "task": {**task, "delay": "1h"}}, {"name": "map", "map": [task], "after": ["one"]}]
    workflow = scene.call("POST", "/workflows", json={"name": "w", "nodes": nodes}).json()["id"]
    assert scene.call("PUT", "/schedules/nightly", json={"cron": "0 2 * * *", "task": task}).status_code < 300
    known = {
        "id": [*scene.ids.values()], "name": ["default", "slots"], "key": [scene.key_id], "file": [],
        "webhook": [scene.webhook, "callback"], "delivery": [each["id"] for each in deliveries],
        "workflow": [workflow], "schedule": ["nightly"], "queue": ["default"],
        "operation": [], "version": [], "pool": [],
        "fingerprint": [each["fingerprint"] for each in scene.call("GET", "/failures").json()["groups"]],
    }  # fmt: skip
    places = {}
    for path in [path for path, methods in document["paths"].items() if "get" in methods and path not in ENDLESS]:
        name = path.partition("{")[2].partition("}")[0]
        for value in known[name] if name else [""]:
            if path.endswith("/events") and value in {scene.ids["later"], workflow}:  # they have no end
                continue
            filled = path.replace(f"{{{name}}}", value)
            for headers in ({}, {"accept": "text/plain"}, {"last-event-id": "0-0"}):
                response = scene.api.get(filled, headers=headers)
                places[f"{filled} {headers}"] = repr(response.headers).encode() + response.content
    places |= {place: b"\n".join(texts) for place, texts in scene.kept.items()}

    assert leaks(places) == {}
    for how in FAILING:
        for path in (f"/tasks/{scene.ids[how]}", f"/tasks/{scene.ids[how]}/logs", f"/tasks/{scene.ids[how]}/events"):
            assert SEEN.encode() in b"".join(text for place, text in places.items() if place.startswith(path + " "))
    assert SEEN.encode() in places["/tasks {}"]
    assert any(SEEN.encode() in text for place, text in places.items() if place.startswith("/webhooks/deliveries/"))
    assert b"nightly" in places["/schedules/nightly {}"]
    assert b"leak_async" in scene.api.get(f"/tasks?workflow={workflow}").content
    scene.call("DELETE", "/schedules/nightly")
    scene.call("POST", f"/workflows/{workflow}/stop")


def test_no_stream_and_no_socket_sends_a_secret(scene: Scene) -> None:
    last = scene.submit("quiet", "quiet", payload={"number": 1})
    heard = b""
    with scene.api.stream("GET", "/events", headers={"last-event-id": "0-0"}) as response:
        for line in response.iter_lines():
            heard += line.encode() + b"\n"
            if last in line and '"status":"done"' in line:
                break
    with connect(
        str(scene.api.base_url.join("/ws")).replace("http", "ws"), additional_headers=bearer(scene.key), proxy=None
    ) as ws:
        for subscription in ({"sub": "a", "filter": {}}, {"sub": "b", "filter": {}, "after": "0-0"}):
            ws.send(json.dumps({"op": "subscribe", **subscription}))
        while b'"op":"live","sub":"b"' not in heard.replace(b" ", b""):
            heard += str(ws.recv(timeout=PATIENCE_S)).encode() + b"\n"

    assert SEEN.encode() in heard
    assert traces(heard) == []


def test_no_webhook_has_one(scene: Scene) -> None:
    sent = [repr(each.headers).encode() + each.body for each in scene.receiver.requests]

    assert any(SEEN.encode() in each for each in sent)
    assert [traces(each) for each in sent if traces(each)] == []


def test_no_process_writes_one_out(scene: Scene) -> None:
    places = {name: (scene.directory / name).read_bytes() for name in ("api.log", "workers.log", "slots.log")}

    assert leaks(places) == {}
    assert all(SEEN.encode() in places[name] for name in ("workers.log", "slots.log"))


def test_no_page_of_rq_dashboard_shows_one(scene: Scene) -> None:
    registries = ("queued", "scheduled", "deferred", "started", "finished", "failed", "canceled")
    paths = ["/", "/0/view/workers", "/0/data/workers.json", "/0/data/queues.json"]
    paths += [f"/0/view/jobs/default/{registry}/50/asc/1" for registry in registries]
    paths += [f"/0/data/jobs/default/{registry}/50/asc/1.json" for registry in registries]
    paths += [path for id in scene.ids.values() for path in (f"/0/view/job/{id}", f"/0/data/job/{id}.json")]

    answers = {path: scene.pages.client.get(path) for path in paths}

    assert {answer.status_code for answer in answers.values()} == {200}
    assert leaks({path: answer.content for path, answer in answers.items()}) == {}
    for how in ("fail", "group"):
        assert SEEN in answers[f"/0/data/job/{scene.ids[how]}.json"].text


def test_no_command_prints_one(scene: Scene) -> None:
    commands = [
        ["list", "--json"],
        ["audit", "--json"],
        ["types", "--json"],
        ["workers", "--json"],
        ["queue", "default"],
    ]
    commands += [[command, id] for id in scene.ids.values() for command in ("get", "logs")]
    printed = {
        " ".join(command): CliRunner().invoke(main, [*command, "--redis-url", scene.redis_url]).output.encode()
        for command in commands
    }

    assert leaks(printed) == {}
    assert SEEN.encode() in printed[f"logs {scene.ids['fail']}"]
    assert SEEN.encode() in printed[f"get {scene.ids['fail']}"]


def test_a_task_that_is_removed_leaves_nothing_of_it(scene: Scene) -> None:
    id = scene.ids["group"]

    assert scene.call("DELETE", f"/tasks/{id}").status_code == 204

    assert not scene.redis.exists(SECRETS_KEY + id.encode())
