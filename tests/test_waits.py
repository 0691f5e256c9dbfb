"""Who waits longest, by queue, type, API key and project: HTTP, the clients, Python and the command line."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskpool import InvalidTask, TaskPool
from taskpool.access.api_key import Scope
from taskpool.cli.__main__ import main
from taskpool.operations.insight import fresh, waits
from taskpool.redis import keys, scripts
from taskpool.types import Exit
from taskpool.types.insight import WaitingGroup, Waits, WaitsBy
from tests.api_client import api, publish_types
from tests.client_kinds import KINDS, client_of
from tests.keys import bearer, make_key
from tests.states import World, new_task
from tests.support import eventually

BYS: tuple[WaitsBy, ...] = ("queue", "type", "key", "project")


def since(world: World, id: str, s: int) -> None:
    """Has a task wait for so many seconds."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - s))
    world.redis.hset(keys.JOB + id, "enqueued_at", stamp)


@pytest.fixture
def waiting(world: World) -> World:
    """Tasks of two types, keys and projects in three queues."""
    for id, s, options in (
        ("a", 500, {"type": "resize", "queue": "images"}),
        ("b", 400, {"type": "mail", "queue": "default", "project": "shop"}),
        ("c", 300, {"type": "resize", "queue": "default"}),
        ("d", 200, {"type": "mail", "queue": "letters", "project": "shop"}),
    ):
        world.add(id, **options)
        since(world, id, s)
    world.redis.hset(keys.JOB + "b", "submitted_by", "a service")
    return world


def found(world: World, by: WaitsBy) -> Waits:
    return world.store.carry_out(waits.waits(by))


def shown(group: WaitingGroup) -> tuple[Any, ...]:
    return group.name, group.count, round(group.oldest_s, -2), group.queues


def test_groups_say_since_when_and_where_their_tasks_wait(waiting: World) -> None:
    groups = {by: [shown(group) for group in found(waiting, by).groups] for by in BYS}

    assert groups == {
        "queue": [
            ("images", 1, 500, ("images",)),
            ("default", 2, 400, ("default",)),
            ("letters", 1, 200, ("letters",)),
        ],
        "type": [("resize", 2, 500, ("images", "default")), ("mail", 2, 400, ("default", "letters"))],
        "key": [(None, 3, 500, ("images", "default", "letters")), ("a service", 1, 400, ("default",))],
        "project": [(None, 2, 500, ("images", "default")), ("shop", 2, 400, ("default", "letters"))],
    }
    assert [group.queued for group in found(waiting, "queue").groups] == [1, 2, 1]
    assert {(found(waiting, by).looked_at, found(waiting, by).queued) for by in BYS} == {(4, 4)}


def test_without_queued_tasks_there_are_no_groups(world: World) -> None:
    world.start("runs")
    world.add("later", delay_s=500)

    assert found(world, "type") == Waits(by="type", groups=(), looked_at=0, queued=0)


def test_only_tasks_that_wait_for_a_worker_count(waiting: World) -> None:
    waiting.redis.delete(keys.JOB + "a")  # gone
    waiting.redis.hset(keys.JOB + "b", "status", "started")  # claimed while it was looked at
    waiting.redis.hset(keys.JOB + "c", "enqueued_at", "no time")  # then it counts from its submission on
    waiting.redis.rpush(keys.QUEUE + "letters", "stranger")
    waiting.redis.hset(keys.JOB + "stranger", mapping={"status": "queued", "created_at": "2026-01-01T00:00:00Z"})

    by_type = found(waiting, "type")

    assert [(group.name, group.count) for group in by_type.groups] == [("unknown", 1), ("mail", 1), ("resize", 1)]
    assert (by_type.looked_at, by_type.queued) == (3, 5)


def test_a_key_of_another_kind_hides_no_other_queue(waiting: World) -> None:
    waiting.redis.sadd(keys.QUEUES, keys.QUEUE + "odd")
    waiting.redis.set(keys.QUEUE + "odd", "text")
    waiting.redis.delete(keys.JOB + "d")
    waiting.redis.set(keys.JOB + "d", "text")

    assert [group.name for group in found(waiting, "queue").groups] == ["images", "default"]


def test_the_first_of_the_queues_that_wait_longest_are_looked_at_whatever_their_length(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "MOST_QUEUES", 3)
    monkeypatch.setattr(waits, "MOST_OF_QUEUE", 10)
    monkeypatch.setattr(waits, "MOST_LOOKED_AT", 20)
    for queue, (length, s) in {"long": (50, 400), "short": (2, 300), "other": (50, 200), "new": (50, 100)}.items():
        world.run(scripts.add([new_task(f"{queue}{n:02}", queue=queue) for n in range(length)]))
        since(world, f"{queue}00", s)

    def commands() -> int:
        world.redis.config_resetstat()
        assert found(world, "queue").looked_at == 20
        stats = world.redis.info("commandstats")
        return sum(stats[f"cmdstat_{name}"]["calls"] for name in ("hmget", "lrange"))

    few = commands()
    groups = found(world, "queue")
    assert [(group.name, group.count, group.queued) for group in groups.groups] == [
        ("long", 9, 50), ("short", 2, 2), ("other", 9, 50),
    ]  # fmt: skip
    assert (groups.looked_at, groups.queued) == (20, 152)
    world.run(scripts.add([new_task(f"more{n}", queue="long") for n in range(500)]))

    assert commands() == few == 20 + 3


def test_what_short_queues_leave_goes_to_the_longer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "MOST_OF_QUEUE", 8)
    monkeypatch.setattr(waits, "MOST_LOOKED_AT", 20)

    assert waits._shares([100, 1, 7, 100]) == [6, 1, 6, 7]
    assert waits._shares([100, 1]) == [8, 1]
    assert waits._shares([]) == []


def test_at_most_a_hundred_groups_are_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "MOST_GROUPS", 2)
    for n in range(3):
        world.add(f"a{n}", type=f"t{n}")
        since(world, f"a{n}", 100 * n)

    assert [group.name for group in found(world, "type").groups] == ["t2", "t1"]


@pytest.mark.parametrize("by", ["worker", "", None, ["queue"]])
def test_it_is_grouped_by_nothing_else(redis_url: str, by: Any) -> None:
    with TaskPool(redis_url) as pool, pytest.raises(InvalidTask, match="/by: must be one of queue, type, key, project"):
        pool.waits(by)


# --- over HTTP ------------------------------------------------------------------------------------------------------


async def test_the_api_answers_for_each_view(waiting: World) -> None:
    async with api(waiting.url) as client:
        usual = (await client.get("/waits")).json()
        answers = {by: (await client.get(f"/waits?by={by}")).json() for by in BYS}

    assert usual == answers["queue"]
    assert [(by, answer["by"], answer["looked_at"], answer["queued"]) for by, answer in answers.items()] == [
        (by, by, 4, 4) for by in BYS
    ]
    first, second = answers["key"]["groups"]
    assert {**first, "oldest_s": 0} == {"count": 3, "oldest_s": 0, "queues": ["images", "default", "letters"]}
    assert {**second, "oldest_s": 0} == {"name": "a service", "count": 1, "oldest_s": 0, "queues": ["default"]}
    assert first["oldest_s"] >= 500


async def test_an_api_process_looks_once_for_all_views(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(fresh, "time", SimpleNamespace(monotonic=lambda: now[0]))
    async with api(waiting.url) as client:
        await client.get("/waits?by=type")
        waiting.redis.delete(*waiting.redis.keys("rq:queue:*"))
        soon = [(await client.get(f"/waits?by={by}")).json()["looked_at"] for by in BYS]
        now[0] += fresh.FRESH_S
        later = [(await client.get(f"/waits?by={by}")).json()["looked_at"] for by in BYS]

    assert (soon, later) == ([4] * 4, [0] * 4)


@pytest.mark.parametrize("query", ["by=worker", "by=", "by=queue&by=type", "queue=a"])
async def test_what_is_asked_for_must_exist(redis_url: str, query: str) -> None:
    async with api(redis_url) as client:
        answer = await client.get(f"/waits?{query}")

    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (400, "invalid-query")


async def test_it_needs_a_key_that_reads_the_tasks_of_all_projects(redis_url: str) -> None:
    reads, starts = make_key(redis_url, "r", Scope.READ), make_key(redis_url, "w", Scope.WRITE)
    bound = make_key(redis_url, "b", Scope.READ, project="shop")
    async with api(redis_url) as client:
        answers = [await client.get("/waits", headers=bearer(key)) for key in (reads, starts, bound, "nonsense")]

    assert [answer.status_code for answer in answers] == [200, 403, 403, 401]


# --- who has submitted a task ---------------------------------------------------------------------------------------


async def test_a_task_knows_the_key_that_it_was_submitted_with(redis_url: str, world: World) -> None:
    publish_types(redis_url)
    echo = {"type": "echo", "payload": {"message": 1}}
    async with api(redis_url) as client:
        free = (await client.post("/tasks", json=echo)).json()["id"]
        plain, shop = bearer(make_key(redis_url, "a service")), bearer(make_key(redis_url, "shop", project="shop"))
        ids = [
            (await client.post("/tasks", json=echo, headers=plain)).json()["id"],
            (await client.post("/tasks", json={**echo, "tags": ["x"]}, headers=plain)).json()["id"],
            (await client.post("/tasks/batch", json={"tasks": [echo]}, headers=plain)).json()["tasks"][0]["id"],
            (await client.post("/tasks", json=echo, headers=shop)).json()["id"],
        ]
        workflow = {"name": "w", "nodes": [{"name": "n", "task": echo}]}
        (await client.post("/workflows", json=workflow, headers=plain)).raise_for_status()
        documents = [(await client.get(f"/tasks/{id}", headers=plain)).json() for id in ids]
        listed = (await client.get("/tasks?submitted_by=a service", headers=plain)).json()["tasks"]
        of_nobody = (await client.get("/tasks?submitted_by=nobody", headers=plain)).json()["tasks"]
        others = (await client.get("/tasks?submitted_by=a service", headers=shop)).json()["tasks"]
        by_key = (await client.get("/waits?by=key", headers=plain)).json()

    assert [document["submitted_by"] for document in documents] == ["a service", "a service", "a service", "shop"]
    assert world.get(free).submitted_by is None
    assert not world.redis.hexists(keys.JOB + free, "submitted_by")
    assert {document["id"] for document in listed} > {*ids[:3]}
    assert [document.get("node") for document in listed if document["id"] not in ids] == ["n"]
    assert of_nobody == others == []
    assert {group.get("name"): group["count"] for group in by_key["groups"]} == {None: 1, "a service": 4, "shop": 1}


async def test_a_key_costs_no_further_command(redis_url: str, world: World) -> None:
    publish_types(redis_url)
    echo = {"type": "echo", "payload": {"message": 1}}

    async def commands(headers: dict[str, str]) -> dict[str, int]:
        """The commands of scripts for a submission, after one that fills all caches."""
        (await client.post("/tasks", json=echo, headers=headers)).raise_for_status()
        world.redis.config_resetstat()
        (await client.post("/tasks", json=echo, headers=headers)).raise_for_status()
        stats = world.redis.info("commandstats")
        writes = ("hset", "zadd", "rpush", "hincrby", "exists", "sadd", "hmget")
        return {name: stats[f"cmdstat_{name}"]["calls"] for name in writes if f"cmdstat_{name}" in stats}

    async with api(redis_url) as client:
        without = await commands({})
        first = await commands(bearer(make_key(redis_url, "first")))

    assert first == without


# --- in Python, by the clients and on the command line ------------------------------------------------------------


def in_tens(of: Waits) -> Any:
    """The same with times to ten seconds: they were read at different moments."""
    return of.by, of.looked_at, of.queued, [(*shown(group), group.queued) for group in of.groups]


@pytest.mark.parametrize("kind", KINDS)
def test_the_clients_do_the_same(kind: str, waiting: World, api_url: str) -> None:
    with client_of(kind, api_url) as client, TaskPool(waiting.url) as pool:
        eventually(lambda: client.waits().queued == 4)  # the API may have kept what it read in another test
        for by in BYS:
            assert in_tens(client.waits(by)) == in_tens(pool.waits(by))
        assert in_tens(client.waits()) == in_tens(pool.waits(by="queue"))
        with pytest.raises(InvalidTask, match="/by: must be one of queue, type, key, project"):
            client.waits("worker")  # type: ignore[arg-type]


def run(way: list[str], *arguments: str) -> Result:
    return CliRunner().invoke(main, ["waits", *arguments, *way])


def await_queued(way: list[str], queued: int) -> None:
    """Wait until the API doesn't keep what it read in another test."""
    eventually(lambda: json.loads(run(way, "--json").stdout)["queued"] == queued)


def test_the_command_shows_a_table(waiting: World, way: list[str]) -> None:
    await_queued(way, 4)

    by_queue, by_key = run(way), run(way, "--by", "key")

    assert by_queue.exit_code == by_key.exit_code == Exit.DONE, by_queue.output + by_key.output
    assert [line.split()[:2] for line in by_queue.stdout.splitlines()] == [
        ["QUEUE", "TASKS"], ["images", "1"], ["default", "2"], ["letters", "1"],
    ]  # fmt: skip
    head, none, service = by_key.stdout.splitlines()
    assert head.split() == ["KEY", "TASKS", "OLDEST", "QUEUES"]
    assert none.split()[:2] == ["(none)", "3"]
    assert none.endswith("images,default,letters")
    assert service.startswith("a service")
    assert by_key.stderr == ""


def test_the_command_says_how_many_tasks_it_has_looked_at(
    world: World, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "MOST_LOOKED_AT", 2)
    world.run(scripts.add([new_task(f"a{n}") for n in range(5)]))

    shown = run(["--redis-url", redis_url], "--by", "type")

    assert shown.stdout.splitlines()[1].split()[:2] == ["work", "2"]
    assert shown.stderr == "Of 5 queued tasks, 2 of those that wait longest were looked at.\n"


def test_programs_get_json(waiting: World, way: list[str]) -> None:
    await_queued(way, 4)

    document = json.loads(run(way, "--by", "project", "--json").stdout)

    assert (document["by"], document["looked_at"], document["queued"]) == ("project", 4, 4)
    assert [group.get("name") for group in document["groups"]] == [None, "shop"]


def test_the_command_refuses_what_is_wrong_and_says_if_nothing_waits(redis_url: str, way: list[str]) -> None:
    assert run(way, "--by", "worker").exit_code == Exit.USAGE
    await_queued(way, 0)
    nothing = run(way)
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (Exit.DONE, "", "no task waits for a worker\n")
