"""Every operation and option with an effect on a task, asked for with every kind of key.

The effect comes about only if the key has the scope for it and may use the task's project, type and queue. A key that
may not read the task doesn't learn that there is one.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest

from taskpool.access import keyring
from taskpool.access.api_key import OPTIONS, RIGHTS, Effect, KeySpec, Scope
from taskpool.redis import people_scripts, scripts
from taskpool.tasks.log_lines import LogLine, encode_line
from taskpool.types import DEFAULT_LIMITS, TaskStatus
from tests.api_client import api, publish_types
from tests.keys import ME, bearer, make_key
from tests.states import World

READS, STARTS, STOPS, CONFIRMS = Effect.READ, Effect.START, Effect.STOP, Effect.CONFIRM
R, W, S, C = Scope.READ, Scope.WRITE, Scope.STOP, Scope.CONFIRM
MARK: Final = "shown-to-readers-alone"
VICTIM: Final[dict[str, Any]] = {"type": "echo", "payload": {"message": MARK}, "queue": "a"}
PAYLOADS: Final = {"echo": {"message": "hi"}, "word_count": {"text": "hi"}, "word_merge": {}}


@dataclass(frozen=True)
class Key:
    """A key of the victim's project, unless it says otherwise."""

    scopes: tuple[Scope, ...] = (R, W, S)
    project: str | None = "shop"
    types: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None

    def submission(self, **options: Any) -> dict[str, Any]:
        """A task that it may start."""
        type, queue = (self.types or ("echo",))[0], (self.queues or ("b",))[0]
        return {"type": type, "payload": PAYLOADS[type], "queue": queue, **options}

    def may(self, effect: Effect, *, of_victim: bool = True) -> bool:
        """Whether the rules in docs/security.md let it do this to the victim, or else to a task that it may start."""
        if {READS: R, STARTS: W, STOPS: S, CONFIRMS: C}[effect] not in self.scopes:
            return False
        bound = effect is READS or (self.types in (None, ("echo",)) and self.queues in (None, ("a",)))
        return not of_victim or (self.project in (None, "shop") and bound)


BOUNDS: Final[tuple[dict[str, Any], ...]] = (
    {"types": ("echo",), "queues": ("a",)}, {"types": ("word_count",)}, {"types": ("word_merge",)}, {"queues": ("b",)},
    {"project": "bank"}, {"project": None},
)  # fmt: skip
KEYS: Final = [
    *(Key(scopes) for count in (1, 2, 3, 4) for scopes in itertools.combinations((R, W, S, C), count)),
    *(Key(scopes, **bounds) for bounds in BOUNDS for scopes in ((R, W, S, C), (W, S, C))),
]

Answer = Awaitable[httpx.Response]


@dataclass
class Place:
    """The API, and a task of the project shop that a key is tried on."""

    client: httpx.AsyncClient
    app: Any
    world: World
    owner: dict[str, str]
    victim: str = ""

    async def seed(self, state: str) -> None:
        """Make a new victim."""
        self.world.redis.delete("rq:queue:a", "taskpool:unique")
        body = {**VICTIM, "unique_key": "u", **({"confirm": True} if state == "unconfirmed" else {})}
        self.victim = (await self.client.post("/tasks", json=body, headers=self.owner)).json()["id"]
        if state in ("queued", "unconfirmed"):
            return
        running = self.world.claim("a", attempt_id=self.victim)
        lines = [encode_line(LogLine(at_ms=0, text=MARK, attempt=1, stream="stdout"))]
        assert self.world.run(scripts.log(running.id, running.attempt_id, lines, DEFAULT_LIMITS)) == "ok"
        if state == "asking":
            question = b'{"name":"n","text":"Go?","timeout":60}'
            assert self.world.run(people_scripts.ask(running, question)) == "ok"
        elif state != "running":
            status = TaskStatus(state)
            ended = {"result": f'"{MARK}"'.encode()} if state == "done" else {"error": MARK, "failure": {}}
            assert self.world.run(scripts.finish(running, status, **ended)) == "ok"

    def status(self) -> str | None:
        """The victim's, as RQ names it; None: its record is gone."""
        found = self.world.redis.hget(f"rq:job:{self.victim}", "status")
        return None if found is None else found.decode()

    def state(self) -> tuple[Any, ...]:
        """What differs once anything was done with any task: the last event, the keys in Redis, the victim's record."""
        redis = self.world.redis
        events = redis.xinfo_stream("taskpool:events")["last-generated-id"]
        return events, redis.dbsize(), redis.hgetall(f"rq:job:{self.victim}")

    def headers(self, key: Key) -> dict[str, str]:
        """Those of a caller that has such a key."""
        spec = KeySpec(
            name="k", scopes=key.scopes, project=key.project, types=key.types, queues=key.queues, rate_limit=0
        )
        return bearer(self.world.store.carry_out(keyring.create(spec, ME))[1])


Act = Callable[[Place, Key, dict[str, str], str], Answer]
Seen = Callable[[Place, httpx.Response], bool]


@dataclass(frozen=True)
class Operation:
    """Something that has effects on the victim, and perhaps on a task that the caller submits (`own`).

    `act` does it to the task with the id that it is given; `took_place` tells whether the effects came about.
    """

    victim: str
    effects: tuple[Effect, ...]
    act: Act
    took_place: Seen
    own: tuple[Effect, ...] = ()
    names_id: bool = True


def ask(method: str, path: str, **body: Any) -> Act:
    def act(place: Place, key: Key, headers: dict[str, str], id: str) -> Answer:
        return place.client.request(method, path.replace("ID", id), headers=headers, json=body or None)

    return act


def submit(in_batch: bool = False, **options: Any) -> Act:
    """Submits a task that the key may start; ID in an option stands for the victim's id."""

    def act(place: Place, key: Key, headers: dict[str, str], id: str) -> Answer:
        given = {name: [id] if value == ["ID"] else value for name, value in options.items()}
        body = key.submission(**given)
        path, body = ("/tasks/batch", {"tasks": [body]}) if in_batch else ("/tasks", body)
        return place.client.post(path, json=body, headers=headers)

    return act


def start_like_the_victim(in_batch: bool) -> Act:
    def act(place: Place, key: Key, headers: dict[str, str], id: str) -> Answer:
        path, body = ("/tasks/batch", {"tasks": [VICTIM]}) if in_batch else ("/tasks", VICTIM)
        return place.client.post(path, json=body, headers=headers)

    return act


async def wait_for_own(place: Place, key: Key, headers: dict[str, str], id: str) -> httpx.Response:
    """Submits a task, ends it, and sends the same again with a preference to wait."""
    body, headers = key.submission(queue=(key.queues or ("c",))[0]), {**headers, "idempotency-key": id}
    first = await place.client.post("/tasks", json=body, headers=headers)
    if first.status_code == 202:
        place.world.redis.delete(f"rq:queue:{body['queue']}")
        place.world.redis.rpush(f"rq:queue:{body['queue']}", first.json()["id"])
        running = place.world.claim(body["queue"], attempt_id=first.json()["id"])
        assert place.world.run(scripts.finish(running, TaskStatus.DONE, result=b'"own"')) == "ok"
    return await place.client.post("/tasks", json=body, headers={**headers, "prefer": "wait=1"})


def operate(action: str) -> Act:
    """Starts an operation on the task, and waits for its end."""

    async def act(place: Place, key: Key, headers: dict[str, str], id: str) -> httpx.Response:
        body = {"action": action, "filter": {"text": id}}
        started = await place.client.post("/operations", json=body, headers=headers)
        while started.status_code == 202:
            now = await place.client.get(started.headers["location"], headers=headers)
            if now.json()["status"] != "running":
                break
        return started

    return act


def shows(place: Place, answer: httpx.Response) -> bool:
    return MARK in answer.text


def names(place: Place, answer: httpx.Response) -> bool:
    return place.victim in answer.text


def is_taken(place: Place, answer: httpx.Response) -> bool:
    return answer.status_code in (200, 202)


def becomes(*statuses: str | None) -> Seen:
    return lambda place, answer: place.status() in statuses


def is_asked_to_stop(place: Place, answer: httpx.Response) -> bool:
    return bool(place.world.redis.hexists(f"rq:job:{place.victim}", "stop_ms"))


canceled = becomes("canceled")
OPERATIONS: Final = {
    "GET /tasks/{id}": Operation("done", (READS,), ask("GET", "/tasks/ID"), shows),
    "GET /tasks/{id}?wait": Operation("done", (READS,), ask("GET", "/tasks/ID?wait=1"), shows),
    "GET /tasks/{id}/logs": Operation("done", (READS,), ask("GET", "/tasks/ID/logs"), shows),
    "GET /tasks/{id}/logs?follow": Operation("done", (READS,), ask("GET", "/tasks/ID/logs?follow=1"), shows),
    "GET /tasks/{id}/events": Operation("done", (READS,), ask("GET", "/tasks/ID/events"), shows),
    "GET /tasks/{id}/deliveries": Operation("done", (READS,), ask("GET", "/tasks/ID/deliveries"), is_taken),
    "POST /tasks/{id}/stack": Operation(
        "queued", (READS,), ask("POST", "/tasks/ID/stack"), lambda _, answer: answer.status_code == 409
    ),
    "GET /tasks/{id}/why": Operation("queued", (READS,), ask("GET", "/tasks/ID/why"), is_taken),
    "GET /tasks": Operation("done", (READS,), ask("GET", "/tasks"), shows, names_id=False),
    "GET /tasks with filters": Operation(
        "done", (READS,), ask("GET", "/tasks?type=echo&queue=a&status=done"), shows, names_id=False
    ),
    "GET /queues/{name}": Operation("queued", (READS,), ask("GET", "/queues/a"), shows, names_id=False),
    "depends_on": Operation("done", (READS,), submit(depends_on=["ID"]), is_taken, (STARTS,)),
    "depends_on in a batch": Operation("done", (READS,), submit(True, depends_on=["ID"]), is_taken, (STARTS,)),
    "on_conflict return": Operation(
        "queued", (READS,), submit(unique_key="u", on_conflict="return"), names, (STARTS,), names_id=False
    ),
    "on_conflict return in a batch": Operation(
        "queued", (READS,), submit(True, unique_key="u", on_conflict="return"), names, (STARTS,), names_id=False
    ),
    "on_conflict replace": Operation(
        "queued", (STOPS,), submit(unique_key="u", on_conflict="replace"), canceled, (STARTS,), names_id=False
    ),
    "on_conflict replace in a batch": Operation(
        "queued", (STOPS,), submit(True, unique_key="u", on_conflict="replace"), canceled, (STARTS,), names_id=False
    ),
    "callback_url": Operation(
        "queued", (), submit(callback_url="https://hooks.example/in"), is_taken, (STARTS, READS), names_id=False
    ),
    "Prefer: wait": Operation(
        "queued", (), wait_for_own, lambda _, answer: '"own"' in answer.text, (STARTS, READS), names_id=False
    ),
    "POST /tasks": Operation("queued", (STARTS,), start_like_the_victim(False), is_taken, names_id=False),
    "POST /tasks/batch": Operation("queued", (STARTS,), start_like_the_victim(True), is_taken, names_id=False),
    "POST /tasks/{id}/retry": Operation("failed", (STARTS,), ask("POST", "/tasks/ID/retry"), becomes("queued")),
    "POST /tasks/{id}/confirm": Operation(
        "unconfirmed", (CONFIRMS,), ask("POST", "/tasks/ID/confirm"), becomes("queued")
    ),
    "POST /tasks/{id}/reject": Operation("unconfirmed", (CONFIRMS,), ask("POST", "/tasks/ID/reject"), canceled),
    "POST /tasks/{id}/answer": Operation(
        "asking", (CONFIRMS,), ask("POST", "/tasks/ID/answer", answer=True), becomes("queued")
    ),
    "DELETE /tasks/{id} that waits": Operation("queued", (STOPS,), ask("DELETE", "/tasks/ID"), canceled),
    "DELETE /tasks/{id} that has ended": Operation("failed", (STOPS,), ask("DELETE", "/tasks/ID"), becomes(None)),
    "POST /operations with cancel": Operation("queued", (READS, STOPS), operate("cancel"), canceled, names_id=False),
    "POST /operations with stop": Operation(
        "running", (READS, STOPS), operate("stop"), is_asked_to_stop, names_id=False
    ),
    "POST /operations with remove": Operation("done", (READS, STOPS), operate("remove"), becomes(None), names_id=False),
    "POST /operations with retry": Operation(
        "failed", (READS, STARTS), operate("retry"), becomes("queued"), names_id=False
    ),
    "POST /tasks/{id}/stop that waits": Operation("queued", (STOPS,), ask("POST", "/tasks/ID/stop"), canceled),
    "POST /tasks/{id}/stop that runs": Operation("running", (STOPS,), ask("POST", "/tasks/ID/stop"), is_asked_to_stop),
}
CREATES: Final = {"POST /tasks", "POST /tasks/batch"}
"""A new task gets the caller's project, so another project is nothing that it affects."""
BY_UNIQUE_KEY: Final = {name for name in OPERATIONS if name.startswith("on_conflict")}
"""Each project, and what belongs to none, has unique keys of its own: nothing is found by those of another."""


def is_allowed(name: str, key: Key) -> bool:
    operation = OPERATIONS[name]
    if name in BY_UNIQUE_KEY and key.project != "shop":
        return False
    on_victim = [key.may(effect) for effect in operation.effects]
    if name in CREATES:
        on_victim = [Key(key.scopes, "shop", key.types, key.queues).may(effect) for effect in operation.effects]
    return all(on_victim) and all(key.may(effect, of_victim=False) for effect in operation.own)


@pytest.fixture
async def place(redis_url: str, world: World) -> Any:
    publish_types(redis_url)
    owner = bearer(make_key(redis_url, "owner", project="shop", rate_limit=0))
    async with api(redis_url) as client:
        yield Place(client, client._transport.app, world, owner)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_effect_comes_about_with_the_rights_for_it_and_only_then(place: Place, name: str) -> None:
    operation = OPERATIONS[name]
    for key in KEYS:
        headers = place.headers(key)
        await place.seed(operation.victim)
        before = place.state()

        answer = await operation.act(place, key, headers, place.victim)

        allowed = is_allowed(name, key)
        assert operation.took_place(place, answer) == allowed, (key, answer.status_code, answer.text)
        if not key.may(READS):
            assert MARK not in answer.text, key
        if not allowed and answer.status_code >= 400:
            assert answer.status_code in (401, 403, 404, 422), (key, answer.text)
            assert place.state() == before, key
        if not allowed and operation.names_id and not key.may(READS):
            nobodys = await operation.act(place, key, headers, "nobody")
            assert (answer.status_code, answer.text.replace(place.victim, "nobody")) == (
                nobodys.status_code,
                nobodys.text,
            ), key
    made = 1 + len(KEYS)
    assert place.world.redis.xlen("taskpool:audit") == made, "only admins add to the audit of keys and webhooks"


def test_every_option_that_affects_other_tasks_is_tried() -> None:
    tried = {name.removesuffix(" in a batch") for name in OPERATIONS}

    assert {option if value is None else f"{option} {value}" for option, value, _ in OPTIONS} <= tried
    assert {effect: right.scope for effect, right in RIGHTS.items()} == {
        READS: R,
        STARTS: W,
        STOPS: S,
        CONFIRMS: C,
    }


async def test_a_write_only_key_reads_no_result_through_a_task_that_merges_others(place: Place) -> None:
    await place.seed("done")
    writer = place.headers(Key((W,), types=("word_merge",)))
    body = {"type": "word_merge", "payload": {}, "depends_on": [place.victim]}

    answers = [
        await place.client.post("/tasks", json={**body, "depends_on": [id]}, headers={**writer, "prefer": "wait=1"})
        for id in (place.victim, "nobody")
    ]

    assert {answer.status_code for answer in answers} == {403}
    assert answers[0].text == answers[1].text
    assert "tasks:read" in answers[0].json()["detail"]
    assert answers[0].json()["errors"][0]["pointer"] == "/depends_on"


@pytest.mark.parametrize("in_batch", [False, True])
async def test_a_caller_who_may_not_read_learns_that_a_unique_key_is_held_but_not_by_which_task(
    place: Place, in_batch: bool
) -> None:
    await place.seed("queued")
    received = {}
    for scopes in ((W,), (R, W)):
        key = Key(scopes)
        answer = await submit(in_batch, unique_key="u")(place, key, place.headers(key), "")
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:taskpool:problem:unique-conflict")
        received[scopes] = place.victim in answer.text + str(answer.headers)

    assert received == {(W,): False, (R, W): True}


async def test_a_retry_that_another_task_prevents_does_not_name_that_task_to_a_caller_who_may_not_read(
    place: Place,
) -> None:
    await place.seed("failed")
    rival = (await place.client.post("/tasks", json={**VICTIM, "unique_key": "u"}, headers=place.owner)).json()["id"]
    received = {}
    for scopes in ((W,), (R, W)):
        headers = place.headers(Key(scopes))
        answer = await place.client.post(f"/tasks/{place.victim}/retry", headers=headers)
        assert answer.status_code == 409
        received[scopes] = rival in answer.text

    assert received == {(W,): False, (R, W): True}


async def opens_socket(place: Place, headers: dict[str, str], ticket: str = "") -> bool:
    """Whether a socket is accepted, by key or by ticket."""
    scope = {
        "type": "websocket",
        "path": "/ws",
        "root_path": "",
        "scheme": "ws",
        "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "query_string": f"ticket={ticket}".encode() if ticket else b"",
        "extensions": {"websocket.http.response": {}},
        "subprotocols": [],
    }
    to_come: list[dict[str, Any]] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return to_come.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    await place.app(scope, receive, send)
    return sent[0] == "websocket.accept"


async def test_streams_and_sockets_need_the_right_to_read_and_a_ticket_gives_no_more_than_its_key(place: Place) -> None:
    for key in KEYS[:7]:
        headers = place.headers(key)
        tickets = [(await place.client.post("/tickets", headers=headers)).json()["ticket"] for _ in range(2)]

        opened = [
            (await place.client.head("/events", headers=headers)).status_code == 200,
            (await place.client.head(f"/events?ticket={tickets[0]}")).status_code == 200,
            await opens_socket(place, headers),
            await opens_socket(place, {}, tickets[1]),
        ]

        assert opened == [key.may(READS)] * 4, key


async def test_an_idempotency_key_gives_no_right_that_the_second_caller_lacks(place: Place) -> None:
    await place.seed("queued")
    options: tuple[dict[str, Any], ...] = (
        {"depends_on": [place.victim]},
        {"unique_key": "u", "on_conflict": "replace"},
    )
    for number, option in enumerate(options):
        body, key = {**VICTIM, **option}, {"idempotency-key": str(number)}
        first = await place.client.post("/tasks", json=body, headers={**place.owner, **key})
        others = [Key((W,)), Key((R, W, S), types=("word_count",)), Key((R, W, S), queues=("b",))]
        replies = [
            await place.client.post("/tasks", json=body, headers={**place.headers(each), **key}) for each in others
        ]

        assert first.status_code == 202
        assert [reply.status_code for reply in replies] == [403, 403, 403]
        assert first.json()["id"] not in "".join(reply.text for reply in replies)


async def test_of_a_type_that_a_key_may_not_use_it_learns_nothing(place: Place) -> None:
    headers = place.headers(Key(types=("echo",)))
    texts = []
    for type in ("word_count", "nonesuch"):
        answer = await place.client.post("/tasks", json={"type": type, "payload": {"no": 1}}, headers=headers)
        assert answer.status_code == 403
        texts.append(answer.text.replace(type, "it"))

    assert texts[0] == texts[1]


async def test_a_caller_who_may_change_a_task_but_not_read_it_gets_its_id_and_status(place: Place) -> None:
    for state, method, path, status in (
        ("queued", "DELETE", "/tasks/ID", "canceled"),
        ("running", "POST", "/tasks/ID/stop", "stopping"),
        ("failed", "POST", "/tasks/ID/retry", "queued"),
    ):
        await place.seed(state)
        headers = place.headers(Key((W, S)))

        answer = await place.client.request(method, path.replace("ID", place.victim), headers=headers)

        assert answer.json() == {"id": place.victim, "status": status}
