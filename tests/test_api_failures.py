"""/failures and /findings over HTTP, by the clients and on the command line; every refusal."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskpool import TaskPool
from taskpool.access.api_key import Scope
from taskpool.cli.__main__ import main
from taskpool.errors import FailureNotFound, InvalidTask, RedriveConflict
from taskpool.redis import keys
from taskpool.types import Exit
from tests.api_client import api
from tests.client_kinds import KINDS, client_of
from tests.keys import bearer, make_key
from tests.states import World
from tests.test_failures import fail, fault

ONE, OTHER = "a" * 12, "b" * 12


@pytest.fixture
def failed(world: World) -> World:
    fail(world, "x", fault(ONE, build="b1", traceback="Trace\nhere"))
    fail(world, "y", fault(OTHER))
    return world


async def test_groups_are_listed_and_read(failed: World) -> None:
    async with api(failed.url) as client:
        listed = (await client.get("/failures")).json()["groups"]
        one = (await client.get(f"/failures/{ONE}")).json()

    assert [each["fingerprint"] for each in listed] == [OTHER, ONE]
    assert "traceback" not in listed[0]
    assert one["traceback"] == "Trace\nhere"
    assert one["spark"][-1] + one["spark"][-2] == 1
    assert {**one, "spark": 0, "first_seen": 0, "last_seen": 0} == {
        "fingerprint": ONE, "error_type": "KeyError", "message": "KeyError: 'width'", "place": "images.py:41 in resize",
        "count": 1, "tasks": 1, "first_seen": 0, "last_seen": 0, "types": {"work": 1}, "builds": {"b1": 1},
        "queues": {"default": 1}, "workers": {"w": 1}, "spark": 0, "retryable": True, "sample": "x",
        "traceback": "Trace\nhere",
    }  # fmt: skip


async def test_a_list_takes_filters(failed: World) -> None:
    failed.redis.zadd(keys.FAILURES, {ONE: 1000})
    async with api(failed.url) as client:
        found = {
            query: [each["fingerprint"] for each in (await client.get(f"/failures?{query}")).json()["groups"]]
            for query in ("since=1h", "since=1970-01-01T00:00:00Z", "type=other", "limit=1")
        }
        wrong = await client.get("/failures?since=soon")

    assert found == {
        "since=1h": [OTHER],
        "since=1970-01-01T00:00:00Z": [OTHER, ONE],
        "type=other": [],
        "limit=1": [OTHER],
    }
    assert wrong.status_code == 400
    assert wrong.json()["errors"][0]["parameter"] == "since"


async def test_a_redrive_is_started_followed_and_stopped(failed: World) -> None:
    path = f"/failures/{ONE}/redrive"
    async with api(failed.url) as client:
        started = await client.post(path, json={"steps": [2, "all"], "include_nonretryable": True})
        read = await client.get(path)
        again = await client.post(path)
        stopped = await client.post(f"{path}/stop")
        failed.redis.hset(f"{keys.REDRIVE}{ONE}", mapping={"status": "done", "why": ""})
        twice = await client.post(f"{path}/stop")
        group = await client.get(f"/failures/{ONE}")

    assert started.status_code == 202
    assert started.json() == read.json()
    document = read.json()
    assert {**document, "id": 0, "created_at": 0} == {
        "id": 0, "fingerprint": ONE, "status": "running", "steps": [2, "all"], "step": 1, "retried": 0, "succeeded": 0,
        "failed_again": 0, "include_nonretryable": True, "by": "anonymous", "created_at": 0,
    }  # fmt: skip
    assert again.status_code == twice.status_code == 409
    assert again.json()["type"] == "urn:taskpool:problem:redrive-conflict"
    assert (stopped.json()["status"], stopped.json()["why"]) == ("stopped", "stopped by anonymous")
    assert group.json()["redrive"]["id"] == document["id"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"steps": []}, "/steps"),
        ({"steps": [0]}, "/steps/0"),
        ({"steps": ["all", 1]}, "/steps/0"),
        ({"steps": [1, "some"]}, "/steps/1"),
        ({"steps": "all"}, "/steps"),
        ({"include_nonretryable": "yes"}, "/include_nonretryable"),
        ({"step": 1}, "/step"),
    ],
)
async def test_a_wrong_redrive_is_refused_with_the_place(failed: World, body: Any, pointer: str) -> None:
    async with api(failed.url) as client:
        response = await client.post(f"/failures/{ONE}/redrive", json=body)

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer
    assert not failed.redis.exists(keys.REDRIVES)


async def test_what_is_not_there_is_not_found(failed: World) -> None:
    async with api(failed.url) as client:
        answers = [
            await client.get(f"/failures/{'f' * 12}"),
            await client.get(f"/failures/{ONE}/redrive"),
            await client.post(f"/failures/{'f' * 12}/redrive"),
            await client.post(f"/failures/{ONE}/redrive/stop"),
        ]

    assert [answer.status_code for answer in answers] == [404] * 4
    assert {answer.json()["type"] for answer in answers} == {"urn:taskpool:problem:failure-not-found"}


async def test_keys_of_a_project_see_no_failures_of_others(failed: World) -> None:
    bound = make_key(failed.url, "k", Scope.READ, Scope.WRITE, project="shop")
    async with api(failed.url) as client:
        for method, path in (
            ("GET", "/failures"), ("GET", f"/failures/{ONE}"), ("GET", f"/failures/{ONE}/redrive"),
            ("POST", f"/failures/{ONE}/redrive"), ("POST", f"/failures/{ONE}/redrive/stop"), ("GET", "/findings"),
        ):  # fmt: skip
            response = await client.request(method, path, headers=bearer(bound))
            assert response.status_code == 403, path


async def test_a_bound_key_does_not_stop_the_redrive_of_another(failed: World) -> None:
    bound = make_key(failed.url, "k", Scope.READ, Scope.WRITE, queues=("elsewhere",))
    wide = make_key(failed.url, "w", Scope.READ, Scope.WRITE)
    async with api(failed.url) as client:
        path = f"/failures/{ONE}/redrive"
        assert (await client.post(path, headers=bearer(wide))).status_code == 202
        refused = await client.post(f"{path}/stop", headers=bearer(bound))
        stopped = await client.post(f"{path}/stop", headers=bearer(wide))

    assert (refused.status_code, stopped.status_code) == (403, 200)


async def test_findings_say_what_is_wrong(failed: World) -> None:
    failed.redis.set(keys.SUSPENDED, "1")
    async with api(failed.url) as client:
        document = (await client.get("/findings")).json()
        whole = (await client.get("/findings?installation=true")).json()

    found = {each["id"]: each for each in document["findings"]}
    assert found["suspended"]["runbook"] == "docs/monitoring.md#something-is-paused"
    assert found["suspended"]["severity"] == "warning"
    assert whole["checked"] > document["checked"] > 10
    assert {each["id"] for each in whole["findings"]} >= found.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_clients_do_the_same(kind: str, failed: World, api_url: str) -> None:
    with client_of(kind, api_url) as client, TaskPool(failed.url) as pool:
        assert client.failures(type="work") == pool.failures(type="work")
        assert client.failures(since="1h", limit=1) == pool.failures(limit=1)
        assert client.get_failure(ONE) == pool.get_failure(ONE)
        started = client.redrive(ONE, steps=[1])
        assert started == pool.get_redrive(ONE) == client.get_redrive(ONE)
        with pytest.raises(RedriveConflict):
            client.redrive(ONE)
        with pytest.raises(RedriveConflict):
            pool.redrive(ONE)
        assert client.stop_redrive(ONE).why == "stopped by anonymous"
        assert {each.id for each in client.findings()} ^ {each.id for each in pool.findings()} <= {"redis_latency"}
        for wrong in ("x", "f" * 12):
            with pytest.raises(FailureNotFound):
                client.get_failure(wrong)
        with pytest.raises(InvalidTask, match="/steps"):
            client.redrive(ONE, steps=[])
        with pytest.raises(InvalidTask, match="/since"):
            client.failures(since="soon")


def run(way: list[str], *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, *way])


def test_commands_show_groups(failed: World, way: list[str]) -> None:
    listed, one = run(way, "failures", "--since", "1h"), run(way, "failures", ONE)

    assert listed.exit_code == one.exit_code == Exit.DONE, listed.output + one.output
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["FINGERPRINT", OTHER, ONE]
    assert "KeyError at images.py:41 in resize" in listed.stdout
    assert "builds       b1 1" in one.stdout
    assert "traceback    Trace\n             here" in one.stdout
    groups = json.loads(run(way, "failures", "--json").stdout)["groups"]
    assert [each["fingerprint"] for each in groups] == [OTHER, ONE]


def test_commands_redrive(failed: World, way: list[str]) -> None:
    started = run(way, "redrive", ONE, "--step", "3", "--step", "all")
    shown = run(way, "redrive", ONE, "--show", "--json")
    stopped = run(way, "redrive", ONE, "--stop")

    assert started.exit_code == Exit.DONE, started.output
    assert started.stdout == "running, step 1 of 2 (3): 0 retried, 0 done, 0 failed again\n"
    assert json.loads(shown.stdout)["steps"] == [3, "all"]
    assert stopped.stdout.startswith("stopped (stopped by ")


@pytest.mark.parametrize(("status", "end"), [("done", Exit.DONE), ("stopped", Exit.FAILED)])
def test_a_command_can_wait_for_the_end_of_a_redrive(
    failed: World, way: list[str], status: str, end: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pass_time(seconds: float) -> None:
        failed.redis.hset(f"{keys.REDRIVE}{ONE}", "status", status)

    monkeypatch.setattr("taskpool.cli.operate.failures.time", SimpleNamespace(sleep=pass_time))

    result = run(way, "redrive", ONE, "--wait")

    assert result.exit_code == end, result.output
    assert [line.split(",")[0] for line in result.stdout.splitlines()] == ["running", status]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("failures", "nothing"), Exit.NOT_FOUND, "no group of failures has the fingerprint 'nothing'"),
        (("failures", "--since", "soon"), Exit.USAGE, "since"),
        (("redrive", "f" * 12), Exit.NOT_FOUND, "no group of failures"),
        (("redrive", ONE, "--show"), Exit.NOT_FOUND, "there is no redrive"),
        (("redrive", ONE, "--step", "0"), Exit.USAGE, "--step"),
        (("redrive", ONE, "--step", "all", "--step", "1"), Exit.USAGE, "--step"),
        (("redrive", ONE, "--show", "--stop"), Exit.USAGE, "no other option"),
    ],
)
def test_commands_refuse_what_is_wrong(
    failed: World, way: list[str], arguments: tuple[str, ...], status: Exit, text: str
) -> None:
    result = run(way, *arguments)

    assert (result.exit_code, text in result.stderr) == (status, True), result.output


def test_the_doctor_ends_with_a_status_for_scripts(failed: World, way: list[str]) -> None:
    failed.redis.set(keys.SUSPENDED, "1")
    assert run(way, "doctor").exit_code == Exit.DONE
    assert run(way, "doctor", "--strict").exit_code == Exit.FAILED

    failed.add("a", delay_s=500)  # and no pool lives
    urgent = run(way, "doctor")

    assert urgent.exit_code == Exit.FAILED
    assert urgent.stdout.startswith("critical No worker pool lives: 1 task waits\n  Nothing runs")
    assert "Try: taskpool worker" in urgent.stdout
    assert json.loads(run(way, "doctor", "--json").stdout)["findings"][0]["id"] == "no_pool"
