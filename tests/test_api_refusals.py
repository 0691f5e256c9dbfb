"""What the API refuses, with which status and about which field; and that nothing at all makes it fail."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import Redis

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import PROBLEM_PREFIX, PROBLEMS
from taskpool.types import TaskSpec
from tests.api_client import JSON, api, publish_types

LIMIT = 4096


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url, max_body_bytes=LIMIT) as client:
        yield client


def check(response: httpx.Response, kind: str, pointer: str | None = None) -> dict[str, Any]:
    """The problem in a response, which must be of this kind and about this field."""
    problem: dict[str, Any] = response.json()
    status, title = PROBLEMS[kind][1:3]
    assert (response.status_code, problem["type"]) == (status, PROBLEM_PREFIX + kind), response.text
    assert (problem["status"], problem["title"]) == (status, title)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert problem["detail"]
    assert "Traceback" not in response.text
    if pointer is not None:
        assert pointer in [error["pointer"] for error in problem["errors"]], response.text
    return problem


ECHO = '{"type":"echo","payload":{"message":%s}}'
DURATION = '{"type":"long_task","payload":{"duration_s":%s}}'


def deep(levels: int) -> str:
    return ECHO % ("[" * levels + "]" * levels)


GOOD = json.loads(ECHO % 1)
NO = {"type": "no"}

BODIES = {
    "nothing": ("", "invalid-json", None),
    "no JSON": ("type=echo", "invalid-json", None),
    "half of it": ('{"type":"echo"', "invalid-json", None),
    "NaN": (ECHO % 'NaN', "invalid-json", None),
    "more than a double": (ECHO % '1e999', "invalid-json", None),
    "more than 64 bits": (ECHO % '18446744073709551616', "invalid-json", None),
    "half a surrogate pair": (ECHO % '"\\ud800"', "invalid-json", None),
    "a name twice": ('{"type":"echo","type":"long_task"}', "invalid-json", "/type"),
    "a name twice in the payload": (ECHO % '{"a":1,"a":2}', "invalid-json", "/payload/message/a"),
    "68 levels": (deep(66), "invalid-json", None),
    "65 levels in the payload": (deep(64), "invalid-payload", "/payload/message" + 63 * "/0"),
    "a thousand levels": (deep(1000), "invalid-json", None),
    "a list": ("[]", "invalid-task", ""),
    "a number": ("5", "invalid-task", ""),
    "null": ("null", "invalid-task", ""),
    "no type": ("{}", "invalid-task", "/type"),
    "a type that is no text": ('{"type":["echo"]}', "invalid-task", "/type"),
    "an unknown field": ('{"type":"echo","payload":{"message":1},"dealy_s":1}', "invalid-task", "/dealy_s"),
    "an unknown type": ('{"type":"ecko"}', "unknown-type", "/type"),
    "an odd type": ('{"type":"\\u0000\\n"}', "unknown-type", "/type"),
    "a field of the payload missing": ('{"type":"echo"}', "invalid-payload", "/payload/message"),
    "an unknown field of the payload": ('{"type":"echo","payload":{"x":1}}', "invalid-payload", "/payload/x"),
    "a wrong field of the payload": (DURATION % '"1"', "invalid-payload", "/payload/duration_s"),
    "a payload that is a list": ('{"type":"echo","payload":[]}', "invalid-payload", "/payload"),
    "an unknown dependency": ((ECHO % 1)[:-1] + ',"depends_on":["x"]}', "unknown-dependency", "/depends_on"),
}  # fmt: skip

VALUES: dict[str, list[tuple[Any, str]]] = {
    "queue": [("", ""), ("a b", ""), ("a:b", ""), ("x" * 65, ""), ("é", ""), ("a\n", ""), (5, "")],
    "delay": [(-1, ""), (1e12, ""), ("soon", ""), ("", ""), ("5 m", ""), ("1m1h", ""), (True, ""), ("4000d", "")],
    "delay_s": [(-1, ""), (1e12, ""), ("1", ""), (True, "")],
    "run_at": [
        ("2026-11-23", ""),
        ("2026-11-23T10:00:00", ""),
        ("2026-02-30T10:00:00Z", ""),
        ("9999-12-31T23:59:59-23:00", ""),
        ("0001-01-01T00:00:00+23:00", ""),
        (1790000000, ""),
    ],
    "front": [(1, ""), ("yes", ""), (None, "")],
    "tags": [("a", ""), (["a"] * 17, ""), ([""], "/0"), (["a", "x" * 65], "/1"), (["a b"], "/0"), ([1], "/0")],
    "timeout_s": [(0, ""), (-1, ""), (1e12, "")],
    "result_ttl_s": [(0, ""), (-1, ""), (1.5, ""), (2**63, "")],
    "failure_ttl_s": [(0, ""), (-1, ""), (10**11, "")],
    "max_attempts": [(0, ""), (-1, ""), (1.5, ""), (2**63, ""), (1001, "")],
    "backoff_s": [(-1, ""), ("1", ""), (1e12, "")],
    "backoff_max_s": [(-1, ""), (True, ""), (1e12, "")],
    "on_lost_lease": [("stop", ""), ("", ""), (True, ""), (["kill"], "")],
    "expires_in_s": [(0, ""), (-1, "")],
    "depends_on": [("x", ""), ([""], "/0"), (["a,b"], "/0"), (["a:b"], "/0"), ([None], "/0")],
    "confirm": [
        (5, ""),
        (["Go?"], ""),
        ("", "/text"),
        (" Go?", "/text"),
        ("x" * 2001, "/text"),
        ({"txet": "Go?"}, "/txet"),
        ({"text": 5}, "/text"),
        ({"who": "Ann"}, "/who"),
        ({"who": ["Ann", ""]}, "/who/1"),
        ({"who": ["x" * 65]}, "/who/0"),
        ({"who": ["a"] * 101}, "/who"),
        ({"timeout": "soon"}, "/timeout"),
        ({"timeout": 0}, "/timeout"),
        ({"timeout": "4000d"}, "/timeout"),
        ({"default": "maybe"}, "/default"),
    ],
    "callback_url": [("", ""), ("ftp://a.example", ""), (5, "")],
    "callback_events": [("done", ""), (["done"], ""), ({}, "")],
    "unique_key": [("", ""), ("a b", ""), ("x" * 129, ""), ("é", ""), (5, "")],
    "on_conflict": [("wait", ""), (None, ""), ("return", "")],
    "unique_until": [("ended", ""), (5, ""), ("start", "")],
    "unique_for_s": [(0, ""), (-1, ""), (1e12, ""), ("1", ""), (60, "")],
    "traceparent": [(5, ""), (["00"], "")],
    "tracestate": [(5, "")],
}  # fmt: skip


def test_every_field_has_wrong_values_here() -> None:
    assert VALUES.keys() == set(TaskSpec.__struct_fields__) - {"type", "payload"}


@pytest.mark.parametrize("case", BODIES)
async def test_a_wrong_body_is_refused_and_nothing_stored(case: str, client: httpx.AsyncClient, redis: Redis) -> None:
    body, kind, pointer = BODIES[case]
    before = set(redis.keys())

    response = await client.post("/tasks", content=body, headers=JSON)

    check(response, kind, pointer)
    assert set(redis.keys()) == before


async def test_the_deepest_payload_that_is_allowed_is_accepted(client: httpx.AsyncClient) -> None:
    response = await client.post("/tasks", content=deep(63), headers=JSON)
    batch = await client.post("/tasks/batch", content=f'{{"tasks":[{deep(63)}]}}', headers=JSON)

    assert (response.status_code, batch.status_code) == (202, 202), (response.text, batch.text)


@pytest.mark.parametrize(
    ("field", "value", "below"), [(name, *case) for name, cases in VALUES.items() for case in cases]
)
async def test_a_wrong_value_is_refused_by_its_field(
    field: str, value: Any, below: str, client: httpx.AsyncClient, redis: Redis
) -> None:
    before = set(redis.keys())

    response = await client.post("/tasks", json={**GOOD, field: value})

    check(response, "invalid-task", f"/{field}{below}")
    assert set(redis.keys()) == before


async def test_a_delay_and_a_time_exclude_each_other(client: httpx.AsyncClient) -> None:
    both = {"delay_s": 1, "run_at": "2026-11-23T10:00:00Z"}

    check(await client.post("/tasks", json={**GOOD, **both}), "invalid-task", "/run_at")


async def test_an_unknown_type_names_those_that_are_near(client: httpx.AsyncClient) -> None:
    problem = check(await client.post("/tasks", json={"type": "word_cont"}), "unknown-type")

    assert problem["near"][0] == "word_count"


@pytest.mark.parametrize(
    ("tasks", "kind", "pointers"),
    [
        ([NO, GOOD, NO], "unknown-type", ["/tasks/0/type", "/tasks/2/type"]),
        ([GOOD, {**GOOD, "depends_on": ["x"]}], "unknown-dependency", ["/tasks/1/depends_on"]),
        ([GOOD, json.loads(DURATION % '"x"')], "invalid-payload", ["/tasks/1/payload/duration_s"]),
        ([GOOD, {**GOOD, "queue": "a b"}], "invalid-task", ["/tasks/1/queue"]),
        ([GOOD, {**GOOD, "callback_url": "http://127.0.0.1/"}], "invalid-task", ["/tasks/1/callback_url"]),
        ([{**GOOD, "unique_key": "k"}, GOOD, {**GOOD, "unique_key": "k"}], "invalid-task", ["/tasks/2/unique_key"]),
        ([GOOD, {**GOOD, "timeout_s": "x"}], "invalid-task", ["/tasks/1/timeout_s"]),
        ([5], "invalid-task", ["/tasks/0"]),
        ([], "invalid-task", ["/tasks"]),
        ([NO] * 1001, "body-too-large", []),
    ],
)
async def test_a_wrong_batch_is_refused_by_the_index(
    tasks: list[Any], kind: str, pointers: list[str], client: httpx.AsyncClient
) -> None:
    problem = check(await client.post("/tasks/batch", json={"tasks": tasks}), kind)

    assert [error["pointer"] for error in problem.get("errors", [])] == pointers
    named = re.findall(r"(/\S+): ", problem["detail"])  # a kind that is about one field alone names none
    assert named == (pointers if kind in ("invalid-task", "invalid-payload") else [])


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/json; charset=latin-1", "multipart/form-data"])
async def test_a_wrong_media_type_is_refused(media_type: str | None, client: httpx.AsyncClient) -> None:
    headers = {} if media_type is None else {"content-type": media_type}

    response = await client.post("/tasks", content=b'{"type":"echo"}', headers=headers)

    check(response, "unsupported-media-type")
    assert response.headers["accept"] == "application/json"


async def test_a_compressed_body_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/tasks", content=b"x", headers={**JSON, "content-encoding": "gzip"})

    check(response, "unsupported-media-type")
    assert response.headers["accept-encoding"] == "identity"


async def test_a_body_over_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/tasks", content=b" " * (LIMIT + 1), headers=JSON)

    assert check(response, "body-too-large")["max_bytes"] == LIMIT


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/tasks", "GET, HEAD, POST"),
        ("GET", "/tasks/batch/x/y", None),
        ("DELETE", "/tasks/batch", "POST"),
        ("POST", "/tasks/1", "DELETE, GET, HEAD"),
        ("GET", "/tasks/1/stop", "POST"),
        ("OPTIONS", "/tasks/1/retry", "POST"),
        ("POST", "/queues", "GET, HEAD"),
        ("POST", "/livez", "GET, HEAD"),
        ("BREW", "/metrics", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
        ("GET", "/tasks/", None),
        ("GET", "/tasks//", None),
        ("GET", "/Tasks", None),
        ("GET", "/tasks/1/", None),
        ("GET", "//tasks", None),
        ("GET", "/queues/a/b", None),
        ("GET", "/docs/swagger-ui.LICENSE.txt", None),
        ("GET", "/%00", None),
    ],
)
async def test_a_path_or_method_that_does_not_exist_is_refused(
    method: str, path: str, allow: str | None, client: httpx.AsyncClient
) -> None:
    response = await client.request(method, "http://localhost" + path)

    if method != "HEAD":
        check(response, "not-found" if allow is None else "method-not-allowed")
    assert response.headers.get("allow") == allow


@pytest.mark.parametrize(
    "id", ["x", "%00", "%0a", "a%0a", "..%5c", "a:dependents", "*", "%ff%fe", "%F0%9F%98%80", "x" * 5000, "..."]
)
@pytest.mark.parametrize(
    ("method", "suffix"), [("GET", ""), ("GET", "?wait=1"), ("DELETE", ""), ("POST", "/stop"), ("POST", "/retry")]
)
async def test_an_id_that_names_no_task_is_not_found(
    id: str, method: str, suffix: str, client: httpx.AsyncClient, redis: Redis
) -> None:
    redis.sadd("rq:job:a:dependents", "not a task")

    check(await client.request(method, f"http://localhost/tasks/{id}{suffix}"), "task-not-found")


@pytest.mark.parametrize(
    ("path", "parameter", "says"),
    [
        ("/tasks?state=done", "state", "did you mean 'status'?"),
        ("/tasks?status=finished", "status", "no such status"),
        ("/tasks?limit=-1", "limit", ">= 1"),
        ("/tasks?cursor=x", "cursor", "next_cursor"),
        ("/tasks/1?wait=316224001", "wait", "<= 316224000"),
        ("/tasks/1?wait=soon", "wait", "must be a number"),
        ("/queues?limit=0", "limit", ">= 1"),
        ("/queues?cursor=x", "cursor", "next_cursor"),
        ("/queues/default?cursor=x", "cursor", "next_cursor"),
        ("/types?x=1", "x", "none"),
        ("/workers?x=1", "x", "none"),
    ],
)
async def test_a_wrong_query_is_refused_with_the_right_names(
    path: str, parameter: str, says: str, client: httpx.AsyncClient
) -> None:
    problem = check(await client.get(path), "invalid-query")

    assert [error["parameter"] for error in problem["errors"]] == [parameter]
    assert says in problem["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("body", "pointer"), [({"grace_s": -1}, "/grace_s"), ({"grace_s": 1e9}, "/grace_s"), ({"x": 1}, "/x"), ([], "")]
)
async def test_a_wrong_stop_is_refused(body: Any, pointer: str, client: httpx.AsyncClient) -> None:
    check(await client.post("/tasks/1/stop", json=body), "invalid-body", pointer)


async def test_a_retry_takes_no_field(client: httpx.AsyncClient) -> None:
    check(await client.post("/tasks/1/retry", json={"x": 1}), "invalid-body", "/x")


async def test_a_bug_shows_nothing_of_itself(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise RuntimeError("WRONGTYPE secret")

    monkeypatch.setattr(AsyncTaskPool, "workers", bug)
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    transport.raise_app_exceptions = False

    response = await client.get("/workers")

    assert "WRONGTYPE" not in response.text
    check(response, "internal-error")


async def test_a_key_of_another_kind_is_no_bug_and_shows_nothing_of_itself(
    client: httpx.AsyncClient, redis: Redis
) -> None:
    redis.set("taskpool:events", "no stream")
    response = await client.post("/tasks", json={"type": "echo", "payload": {"message": 1}})

    assert "WRONGTYPE" not in response.text
    assert "another kind of value" in response.json()["detail"]
    check(response, "redis-unavailable")


ODD_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SUBMISSIONS = st.fixed_dictionaries(
    {"type": st.sampled_from(["echo", "long_task", "word_count"]) | ODD_JSON, "payload": ODD_JSON},
    optional={name: ODD_JSON | st.sampled_from([value for value, _ in cases]) for name, cases in VALUES.items()},
)
PATHS = st.sampled_from(["/tasks", "/tasks/batch", "/tasks/1/stop", "/tasks/1/retry"])
BYTES = (
    st.binary(max_size=200)
    | ODD_JSON.map(lambda value: json.dumps(value).encode())
    | SUBMISSIONS.map(lambda value: json.dumps(value).encode())
    | st.lists(SUBMISSIONS, max_size=3).map(lambda value: json.dumps({"tasks": value}).encode())
)


def test_no_body_whatever_makes_it_fail(redis_url: str) -> None:
    publish_types(redis_url)
    with asyncio.Runner() as runner:
        context = api(redis_url)
        client = runner.run(context.__aenter__())

        @given(PATHS, BYTES)
        @example("/tasks", b'{"type":"echo","payload":{"message":' + b"9" * 5000 + b"}}")
        @settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
        def fuzz(path: str, body: bytes) -> None:
            response = runner.run(client.post(path, content=body, headers=JSON))

            assert response.status_code == 202 or response.json()["status"] == response.status_code < 500

        fuzz()
        runner.run(context.__aexit__(None, None, None))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tasks", '{"%s": 1}'),
        ("/tasks", '{"%s": 1, "%s": 2}'),
        ("/tasks", '{"type": "%s"}'),
        ("/tasks", '{"type": "echo", "payload": {"%s": 1}}'),
        ("/tasks", '{"type": "echo", "queue": "%s"}'),
        ("/tasks", '{"type": "echo", "depends_on": ["%s"]}'),
        ("/tasks", '{"type": "echo", "callback_url": "%s"}'),
        ("/tasks/batch", '{"tasks": [{"%s": 1}]}'),
        ("/webhooks", '{"%s": 1}'),
        ("/keys", '{"name": "a", "scopes": ["%s"]}'),
        ("/tasks/x/stop", '{"%s": 1}'),
        ("/tasks?%s=1", "{}"),
        ("/tasks?status=%s", ""),
        ("/types?%s", ""),
    ],
)
async def test_a_long_name_is_not_echoed_in_full(redis_url: str, path: str, body: str) -> None:
    publish_types(redis_url)
    long = "x" * 100_000
    url, content = path.replace("%s", long), body.replace("%s", long)

    async with api(redis_url) as client:
        answer = await client.request("POST" if body else "GET", url[:60_000], content=content, headers=JSON)

    assert 400 <= answer.status_code < 500
    assert answer.status_code != 413
    assert len(answer.content) < 3000
