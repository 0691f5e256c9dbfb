"""GET /live: the figures of the web page, of one sampler for all clients, and none while nobody listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from redis import Redis
from starlette.datastructures import Headers

from taskpool import TaskPool
from taskpool.access.api_key import Scope
from taskpool.redis.embedded import RedisServer
from tests.api_client import api, api_process
from tests.api_contract import ANSWERS, Answer
from tests.keys import bearer, make_key
from tests.states import World
from tests.support import PATIENCE_S, eventually

MOST_COMMANDS = 40
"""Of one sample with a few queues, pools and watched tasks, in Redis's own count: those within scripts count, too."""


@asynccontextmanager
async def following(url: str, path: str = "/live", **headers: str) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """The events of a stream: name and data."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client,
        client.stream("GET", path, headers=headers) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        body = ""

        async def events() -> AsyncIterator[tuple[str, Any]]:
            nonlocal body
            name = ""
            async for line in answer.aiter_lines():
                body += line + "\n"
                key, _, value = line.partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    yield name, json.loads(value)

        yield events()
        headers_seen = answer.headers
    body = body.rstrip("\n") + "\n\n"
    ANSWERS.append(Answer("GET", "/live", 200, Headers(dict(headers_seen)), body.encode()))


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with api_process(redis_server.url, tmp_path_factory.mktemp("live") / "log") as (_, url):
        yield url


async def test_the_figures_say_what_waits_and_runs_and_what_has_changed(
    server: str, world: World, redis_url: str
) -> None:
    id = "watched"
    world.add(id)
    world.add("delayed", delay_s=100)
    async with following(server, f"/live?ids={id},none") as events:
        _, first = await anext(events)
        with TaskPool(redis_url) as pool:
            running = pool.run_task(["default"], worker="w", attempt_id="a1")
            assert running is not None
        changed = [data async for _, data in _until(events, lambda data: data["tasks"])]

    assert (first["totals"]["queued"], first["totals"]["scheduled"]) == (1, 1)
    assert [(queue["name"], queue["queued"]) for queue in first["queues"]] == [("default", 1)]
    assert first["tasks"] == {id: {"status": "queued", "attempt": 0}}
    assert changed[-1]["tasks"][id]["status"] == "in_progress"
    assert changed[-1]["totals"]["in_progress"] == 1
    assert changed[-1]["newest"] != first["newest"]


async def _until(events: AsyncIterator[tuple[str, Any]], is_it: Any) -> AsyncIterator[tuple[str, Any]]:
    async for name, data in events:
        yield name, data
        if is_it(data):
            return


async def test_any_number_of_clients_cost_as_much_as_one_and_none_costs_nothing(server: str, redis: Redis) -> None:
    def commands() -> int:
        return int(redis.info("stats")["total_commands_processed"])

    async def samples(most: int) -> list[int]:
        async with following(server) as events:
            return [data["at_ms"] for _, data in [await anext(events) for _ in range(most)]]

    await samples(1)
    before = commands()
    found = await asyncio.gather(*(samples(4) for _ in range(5)))
    of_five = (commands() - before) / 4

    assert of_five < MOST_COMMANDS
    assert len({at for each in found for at in each}) <= 6  # of 20, if each client had its own
    eventually(lambda: _is_quiet(redis))


def _is_quiet(redis: Redis) -> bool:
    """Whether nothing but this question reaches Redis for more than the time between two samples."""
    first = redis.info("commandstats")
    for _ in range(15):
        redis.blpop(["nothing"], timeout=0.1)
    second = redis.info("commandstats")
    return first.get("cmdstat_xrevrange") == second.get("cmdstat_xrevrange")


async def test_a_stream_says_why_there_are_no_figures_and_goes_on(server: str, redis: Redis) -> None:
    async with following(server) as events:
        await anext(events)
        redis.acl_setuser("default", commands=["-xrevrange"], enabled=True)
        try:
            faults = [name async for name, _ in _until(events, lambda data: "detail" in data)]
        finally:
            redis.acl_setuser("default", categories=["+@all"], enabled=True)
        again = [name async for name, _ in _until(events, lambda data: "totals" in data)]

    assert faults[-1] == "fault"
    assert again[-1] == "figures"


@pytest.mark.parametrize("ids", ["a/b", ",".join(f"t{n}" for n in range(201)), "x" * 20_001])
async def test_wrong_ids_are_refused(redis_url: str, ids: str) -> None:
    async with api(redis_url) as client:
        answer = await client.get("/live", params={"ids": ids})

        assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (400, "ids")


async def test_the_process_serves_only_so_many(redis_url: str) -> None:
    async with api(redis_url, max_streams=0) as client:
        assert (await client.get("/live")).json()["type"].endswith("too-many-streams")


async def test_a_key_of_a_project_sees_the_states_of_its_tasks_alone(server: str, world: World, redis_url: str) -> None:
    """Last: from its first key on, the process asks for keys."""
    mine, other = "mine", "other"
    world.add(mine, project="shop")
    world.add(other)
    key = make_key(redis_url, "k", Scope.READ, project="shop")

    async with following(server, f"/live?ids={mine},{other}", **bearer(key)) as events:
        figures = [data async for _, data in _until(events, lambda data: data.get("tasks"))][-1]

    assert figures == {"at_ms": figures["at_ms"], "tasks": {mine: {"status": "queued", "attempt": 0}}}
