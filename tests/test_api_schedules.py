"""Schedules over HTTP and through both clients: made, replaced, read, refused; keys, scopes and projects."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from redis import Redis

from taskpool import At, Client, Cron, Every, InvalidTask, TaskSpec
from taskpool.access.api_key import Scope
from taskpool.errors import InvalidSchedule, ScheduleConflict, ScheduleNotFound
from taskpool.operations.flow import schedules
from taskpool.operations.flow.schedule_values import ScheduleStatus
from tests.api_client import api, api_process, publish_types
from tests.client_kinds import KINDS, client_of
from tests.keys import bearer, make_key

ECHO: dict[str, Any] = {"type": "echo", "payload": {"message": "hi"}}
NIGHTLY: dict[str, Any] = {"cron": "0 2 * * *", "tz": "Europe/Berlin", "task": ECHO}
PROBLEM = "urn:taskpool:problem:"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


async def put(client: httpx.AsyncClient, name: str = "nightly", **fields: Any) -> httpx.Response:
    return await client.put(f"/schedules/{name}", json={**NIGHTLY, **fields})


async def test_a_schedule_is_made_read_and_replaced(client: httpx.AsyncClient) -> None:
    made = await put(client)
    replaced = await put(client, overlap="skip")
    read = await client.get("/schedules/nightly")

    assert (made.status_code, made.headers["location"]) == (201, "/schedules/nightly")
    assert replaced.status_code == 200
    document = read.json()
    assert document == replaced.json()
    assert document["words"] == "At 02:00 every day (Europe/Berlin)"
    assert document["task"] == ECHO
    assert (document["cron"], document["tz"], document["catch_up"], document["overlap"]) == (
        "0 2 * * *",
        "Europe/Berlin",
        "last",
        "skip",
    )
    assert document["status"] == "active"
    assert document["next_runs"][0] == document["next_at"]
    assert len(document["next_runs"]) == 10
    assert len(document["clock_changes"]) == 2
    assert "history" not in document


async def test_whole_numbers_may_have_a_point_and_no_payload_is_an_empty_one(client: httpx.AsyncClient) -> None:
    task = {**ECHO, "max_attempts": 3.0, "result_ttl_s": 60.0}

    made = await put(client, catch_up_limit=5.0, task=task)

    assert made.status_code == 201, made.text
    assert made.json()["task"] == {**ECHO, "max_attempts": 3, "result_ttl_s": 60}
    refused = await put(client, task={"type": "echo", "payload": None})
    assert refused.json()["errors"] == [{"pointer": "/task/payload/message", "detail": "this field is required"}]


async def test_schedules_are_listed_in_pages(client: httpx.AsyncClient) -> None:
    for name in ("b", "a", "c"):
        await put(client, name)

    first = (await client.get("/schedules", params={"limit": 2})).json()
    second = (await client.get("/schedules", params={"limit": 2, "cursor": first["next_cursor"]})).json()

    assert [each["name"] for each in first["schedules"] + second["schedules"]] == ["a", "b", "c"]
    assert "next_cursor" not in second
    assert "next_runs" not in first["schedules"][0]
    wrong = await client.get("/schedules", params={"cursor": "x"})
    assert (wrong.status_code, wrong.json()["type"]) == (400, PROBLEM + "invalid-query")


async def test_a_schedule_is_paused_resumed_run_and_removed(client: httpx.AsyncClient) -> None:
    await put(client)

    paused = (await client.post("/schedules/nightly/pause")).json()
    again = (await client.post("/schedules/nightly/pause")).json()
    ran = await client.post("/schedules/nightly/run")
    resumed = (await client.post("/schedules/nightly/resume")).json()

    assert (paused["status"], "next_at" in paused) == ("paused", False)
    assert again["paused_at"] == paused["paused_at"]
    assert (ran.status_code, ran.json()["status"]) == (202, "queued")
    assert ran.headers["location"] == f"/tasks/{ran.json()['id']}"
    assert (resumed["status"], resumed["last_task"]) == ("active", ran.json()["id"])
    assert [each["outcome"] for each in resumed["history"]] == ["submitted"]
    assert (await client.delete("/schedules/nightly")).status_code == 204
    for response in (
        await client.delete("/schedules/nightly"),
        await client.get("/schedules/nightly"),
        await client.post("/schedules/nightly/pause"),
        await client.post("/schedules/nightly/resume"),
        await client.post("/schedules/nightly/run"),
        await client.get("/schedules/not%20a%20name"),
    ):
        assert (response.status_code, response.json()["type"]) == (404, PROBLEM + "schedule-not-found")


@pytest.mark.parametrize(
    ("fields", "kind", "pointers"),
    [
        ({"cron": "0 25 * * *"}, "invalid-schedule", ["/cron"]),
        ({"cron": "* * * * * *"}, "invalid-schedule", ["/cron"]),
        ({"cron": None, "tz": None}, "invalid-schedule", [""]),
        ({"every": "1h"}, "invalid-schedule", ["/every"]),
        ({"tz": "Mars/Olympus"}, "invalid-schedule", ["/tz"]),
        ({"tz": 5, "overlap": "maybe"}, "invalid-schedule", ["/tz", "/overlap"]),
        ({"catch_up_limit": 5000}, "invalid-schedule", ["/catch_up_limit"]),
        ({"when": "now"}, "invalid-schedule", ["/when"]),
        ({"task": None}, "invalid-schedule", ["/task"]),
        ({"task": {**ECHO, "delay_s": 5}}, "invalid-schedule", ["/task/delay_s"]),
        ({"task": {**ECHO, "depends_on": ["a"]}}, "invalid-schedule", ["/task/depends_on"]),
        ({"task": {**ECHO, "tags": ["no space"]}}, "invalid-task", ["/task/tags/0"]),
        ({"task": {**ECHO, "quue": "x"}}, "invalid-schedule", ["/task/quue"]),
        (
            {"task": {"payload": {}, "quue": "x", "max_attempts": "many"}},
            "invalid-schedule",
            ["/task/type", "/task/quue", "/task/max_attempts"],
        ),
        ({"task": []}, "invalid-schedule", ["/task"]),
        ({"task": {"type": "echo", "payload": {"massage": "hi"}}}, "invalid-payload", ["/task/payload/massage"]),
        ({"task": {"type": "ecko"}}, "unknown-type", ["/task/type"]),
        ({"cron": None, "tz": None, "at": "2020-01-01T00:00:00Z"}, "invalid-schedule", ["/at"]),
    ],
)
async def test_what_is_refused_with_its_place(
    client: httpx.AsyncClient, fields: dict[str, Any], kind: str, pointers: list[str]
) -> None:
    body = {name: value for name, value in {**NIGHTLY, **fields}.items() if value is not None}

    response = await client.put("/schedules/nightly", json=body)

    problem = response.json()
    assert (response.status_code, problem["type"]) == (422, PROBLEM + kind)
    found = [each["pointer"] for each in problem["errors"]]
    assert set(pointers) <= set(found)
    assert (await client.get("/schedules")).json() == {"schedules": []}


async def test_a_declared_schedule_can_only_be_paused_resumed_and_run(
    client: httpx.AsyncClient, redis_url: str
) -> None:
    await put(client)
    with Redis.from_url(redis_url) as redis:
        redis.hset("taskpool:schedule:nightly", mapping={"module": "jobs", "digest": "1", "place": "jobs.py:7"})

    refused = await put(client, cron="0 3 * * *")
    paused = await client.post("/schedules/nightly/pause")
    removed = await client.delete("/schedules/nightly")  # no live pool declares it any more

    assert (refused.status_code, refused.json()["type"]) == (409, PROBLEM + "schedule-conflict")
    assert "declared at jobs.py:7" in refused.json()["detail"]
    assert paused.json()["declared_at"] == "jobs.py:7"
    assert removed.status_code == 204


async def test_a_run_may_be_refused_like_any_submission(client: httpx.AsyncClient) -> None:
    await put(client, task={**ECHO, "unique_key": "k", "queue": "q"})

    assert (await client.post("/schedules/nightly/run")).status_code == 202
    refused = await client.post("/schedules/nightly/run")

    assert (refused.status_code, refused.json()["type"]) == (409, PROBLEM + "unique-conflict")


@pytest.mark.parametrize(
    ("task", "kind", "status"),
    [
        ({"type": "gone"}, "unknown-type", 422),
        ({"type": "echo", "payload": {}}, "invalid-payload", 422),
        ({**ECHO, "tags": ["no space"]}, "invalid-task", 422),
        ({**ECHO, "tags": ["second"]}, "cap-reached", 403),
        ({**ECHO, "queue": "full"}, "queue-full", 429),
    ],
)
async def test_a_run_of_what_no_longer_fits_is_refused(
    redis_url: str, task: dict[str, Any], kind: str, status: int
) -> None:
    publish_types(redis_url)
    async with api(redis_url, max_tags=1, max_queue_depth=1) as client:
        for number in range(10):  # callers without a project have ten times as many
            await client.post("/tasks", json={**ECHO, "tags": [f"t{number}"], "queue": f"q{number}"})
        await client.post("/tasks", json={**ECHO, "queue": "full"})
        await put(client)
        with Redis.from_url(redis_url) as redis:
            redis.hset("taskpool:schedule:nightly", "task", json.dumps(task))

        refused = await client.post("/schedules/nightly/run")

    assert (refused.status_code, refused.json()["type"]) == (status, PROBLEM + kind)


async def test_there_are_so_many_schedules_and_no_more(redis_url: str) -> None:
    publish_types(redis_url)
    async with api(redis_url, max_schedules=1) as client:
        answers = [await put(client, f"s{number}") for number in range(11)]

    assert [answer.status_code for answer in answers] == [201] * 10 + [403]
    assert answers[-1].json()["setting"] == "TASKPOOL_MAX_SCHEDULES"


async def test_a_schedule_that_others_change_all_the_time_is_a_conflict(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(client)
    monkeypatch.setattr(schedules, "RETRIES", 0)

    for answer in (
        await put(client),
        await client.delete("/schedules/nightly"),
        await client.post("/schedules/nightly/pause"),
        await client.post("/schedules/nightly/resume"),
    ):
        assert (answer.status_code, answer.json()["type"]) == (409, PROBLEM + "schedule-conflict")


async def test_keys_need_scopes_and_see_their_project_alone(redis_url: str) -> None:
    publish_types(redis_url)
    admin = bearer(make_key(redis_url, "k", Scope.ADMIN))
    shop = bearer(make_key(redis_url, "k", Scope.READ, Scope.WRITE, project="shop"))
    reader = bearer(make_key(redis_url, "k", Scope.READ, project="shop"))
    writer = bearer(make_key(redis_url, "k", Scope.WRITE, project="shop"))
    other = bearer(make_key(redis_url, "k", Scope.READ, Scope.WRITE, project="other"))
    async with api(redis_url) as client:
        made = await client.put("/schedules/s", json=NIGHTLY, headers=shop)
        assert made.json()["project"] == "shop"
        assert (await client.put("/schedules/s", json=NIGHTLY, headers=reader)).status_code == 403
        assert (await client.get("/schedules/s", headers=reader)).status_code == 200
        assert (await client.get("/schedules/s", headers=writer)).status_code == 403
        written = await client.put("/schedules/s", json=NIGHTLY, headers=writer)
        assert written.json() == {"name": "s", "status": "active"}
        assert (await client.get("/schedules/s", headers=other)).status_code == 404
        assert (await client.get("/schedules", headers=other)).json() == {"schedules": []}
        assert (await client.get("/schedules/shop:s", headers=admin)).json()["name"] == "s"
        assert (await client.get("/schedules/s", headers=admin)).status_code == 404
        assert (await client.put("/schedules/shop:new", json=NIGHTLY, headers=admin)).status_code == 404
        audit = (await client.get("/audit", headers=admin)).json()["entries"]

    assert [(each["what"], each["about"]) for each in audit if each["what"].startswith("schedule")] == [
        ("schedule.changed", "shop:s"),
        ("schedule.created", "shop:s"),
    ]


async def test_a_replaced_run_needs_the_right_to_stop(redis_url: str) -> None:
    publish_types(redis_url)
    key = bearer(make_key(redis_url, "k", Scope.READ, Scope.WRITE))
    async with api(redis_url) as client:
        refused = await client.put("/schedules/s", json={**NIGHTLY, "overlap": "replace"}, headers=key)

    assert refused.status_code == 403
    assert refused.json()["errors"][0]["pointer"] == "/overlap"


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory, redis_server: Any) -> Iterator[str]:
    publish_types(redis_server.url)
    with api_process(redis_server.url, tmp_path_factory.mktemp("api") / "log") as (_, url):
        yield url


@pytest.mark.parametrize("kind", KINDS)
def test_both_clients_do_the_same_as_a_pool(kind: str, service_url: str, redis_url: str) -> None:
    publish_types(redis_url)
    task = TaskSpec(type="echo", payload={"message": "hi"}, queue="q")
    name = f"of-{kind}"
    with client_of(kind, service_url) as client:
        made = client.set_schedule(name, Cron("0 2 * * *", tz="Europe/Berlin", jitter=timedelta(seconds=5)), task)
        assert (made.cron, made.tz, made.jitter, made.status) == (
            "0 2 * * *",
            "Europe/Berlin",
            5.0,
            ScheduleStatus.ACTIVE,
        )
        assert made.next_at == made.next_runs[0]
        changed = client.set_schedule(name, Every("90s", overlap="skip"), task)
        assert (changed.cron, changed.every, changed.words) == (None, "90s", "Every 90 seconds")
        assert client.pause_schedule(name).status is ScheduleStatus.PAUSED
        assert client.resume_schedule(name).status is ScheduleStatus.ACTIVE
        receipt = client.run_schedule(name)
        record = client.get(receipt.id)
        assert (record.schedule, record.queue) == (name, "q")
        (run,) = client.get_schedule(name).history
        assert (run.outcome, run.task, run.occurrence) == ("submitted", receipt.id, record.occurrence)
        assert name in [each.name for each in client.list_schedules(limit=500).items]
        client.remove_schedule(name)
        refuse_what_is_wrong(client, name, task)


def refuse_what_is_wrong(client: Client, name: str, task: TaskSpec) -> None:
    for gone in (client.get_schedule, client.pause_schedule, client.run_schedule, client.remove_schedule):
        with pytest.raises(ScheduleNotFound):
            gone(name)
    with pytest.raises(ScheduleNotFound):
        client.get_schedule("../keys")
    with pytest.raises(InvalidSchedule) as invalid:
        client.set_schedule(name, Cron("0 25 * * *"), task)
    assert [fault.pointer for fault in invalid.value.errors] == ["/cron"]
    with pytest.raises(InvalidSchedule, match="a time to come"):
        client.set_schedule(name, At(datetime(2020, 1, 1, tzinfo=UTC)), task)
    with pytest.raises(InvalidTask):
        client.set_schedule(name, Every("1h"), TaskSpec(type="echo", payload={"message": object()}))


def test_conflicts_have_their_exception(service_url: str, redis_url: str) -> None:
    publish_types(redis_url)
    with Client(service_url) as client, Redis.from_url(redis_url) as redis:
        client.set_schedule("declared", Every("1h"), TaskSpec(type="echo", payload={"message": "hi"}))
        redis.hset("taskpool:schedule:declared", mapping={"module": "jobs", "digest": "1", "place": "jobs.py:7"})

        with pytest.raises(ScheduleConflict, match=r"jobs\.py:7"):
            client.set_schedule("declared", Every("2h"), TaskSpec(type="echo", payload={"message": "hi"}))


async def test_a_fault_of_the_whole_schedule_has_no_place(redis_url: str) -> None:
    publish_types(redis_url)
    async with api(redis_url) as client:
        refused = await client.put("/schedules/nightly", json={"task": ECHO})

    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "")
    assert refused.json()["detail"] == "give one of cron, every and at: it says when the schedule runs"
