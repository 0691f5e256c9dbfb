"""The load of a queue: how many workers it needs, over HTTP, in Python and with `taskpool queue`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from redis import Redis

from taskpool import AsyncTaskPool, InvalidTask, Registry, TaskPool
from taskpool.access.api_key import Scope
from taskpool.cli.__main__ import main
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.operations.insight.history import Key, bucket_of
from taskpool.operations.insight.load import Recent, workers_needed
from taskpool.redis import keys
from taskpool.redis.store import Store
from tests.api_client import api, api_process, publish_types
from tests.client_kinds import KINDS, client_of
from tests.keys import bearer, make_key

REGISTRY = Registry(builtins=True)


@pytest.mark.parametrize(
    ("backlog", "in_progress", "recent", "slots", "needed"),
    [
        (0, 0, Recent(), 1, 0),
        (0, 0, Recent(5.0, 5.0, 1.0), 1, 0),  # nothing is there any more
        (1, 0, Recent(0.0, 0.0, 0.001), 1, 1),
        (600, 0, Recent(0.0, 1.0, 1.0), 1, 10),  # 600 s of work in 60 s
        (600, 0, Recent(0.0, 1.0, 1.0), 4, 3),
        (600, 0, Recent(10.0, 1.0, 1.0), 1, 20),  # and as much comes meanwhile
        (0, 10, Recent(10.0, 10.0, 1.0), 1, 10),
        (0, 7, Recent(0.0, 0.1, 1.0), 1, 7),  # what runs isn't taken away
        (3, 1, Recent(0.0, 0.01, 3600.0), 1, 4),  # no more than there are tasks
        (10_000, 0, Recent(), 1, 1),  # it isn't known how long they take
        (10_000, 3, Recent(), 1, 3),
        (0, 3, Recent(1.0, 1.0, None), 2, 2),
    ],
)
def test_the_workers_that_are_needed(backlog: int, in_progress: int, recent: Recent, slots: int, needed: int) -> None:
    assert workers_needed(backlog, in_progress, recent, target_s=60.0, slots=slots) == needed


def count_minutes(redis_url: str, minutes: int, **row: int) -> None:
    """Put so many minutes into the history, each with this row for the queue `mail`."""
    now = int(time.time()) // 60
    other = {Key("other", "default"): {"submitted": 100_000, "r1": 100_000, "rs": 100_000_000}}
    document = bucket_of({Key("echo", "mail"): row, Key("echo", "mail", "b2"): row} | other, {})
    Redis.from_url(redis_url).hset(keys.STATS_MINUTES, mapping={str(now - 1 - at): document for at in range(minutes)})


def serve(redis_url: str, **about: Any) -> None:
    """Announce a worker pool."""
    with closing(Store(redis_url)) as store:
        names = tuple(REGISTRY.names())
        info: dict[str, Any] = {
            "id": "p1",
            "host": "h",
            "pid": 1,
            "queues": ("mail",),
            "types": names,
            "workers": ("p1.1", "p1.2"),
        }
        store.run(publish(PoolInfo(**info | about), [each.info() for each in REGISTRY], ttl_s=60))


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


async def load_of(client: httpx.AsyncClient, queue: str = "mail", **query: str) -> dict[str, Any]:
    answer = await client.get(f"/queues/{queue}/load", params=query)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_a_queue_without_anything_needs_no_worker(client: httpx.AsyncClient) -> None:
    assert await load_of(client) == {
        "queue": "mail", "backlog": 0, "oldest_s": 0.0, "in_progress": 0, "target_s": 60, "workers": 0,
        "workers_needed": 0, "value": 0,
    }  # fmt: skip


async def test_the_load_follows_from_the_queue_the_history_and_the_pools(
    client: httpx.AsyncClient, redis_url: str
) -> None:
    serve(redis_url)
    serve(redis_url, id="p2", queues=("other",))
    serve(redis_url, id="p3", is_draining=True)
    count_minutes(redis_url, 15, **{"submitted": 30, "r2.5": 60, "rs": 30_000_000})
    async with AsyncTaskPool(redis_url, registry=REGISTRY) as pool:
        tasks = [{"message": 1}] * 100
        for payload in tasks:
            await pool.add_task("echo", payload, queue="mail")
        await pool.add_task("echo", {"message": 1}, queue="mail", delay="1h")

    found = await load_of(client)
    faster = await load_of(client, target="10")

    assert {name: found[name] for name in ("backlog", "in_progress", "workers", "target_s", "mean_run_s")} == {
        "backlog": 100, "in_progress": 0, "workers": 2, "target_s": 60, "mean_run_s": 0.5,
    }  # fmt: skip
    assert 0 <= found["oldest_s"] < 60
    assert 0.8 <= found["arrival_per_s"] <= 1.7  # 1 a second, and the 101 of this minute
    assert 1.6 <= found["service_per_s"] <= 2.0
    assert found["value"] == found["workers_needed"] in (2, 3)
    assert faster["value"] > found["value"]


async def test_tasks_that_are_due_count_while_no_pool_queues_them(client: httpx.AsyncClient, redis_url: str) -> None:
    Redis.from_url(redis_url).zadd(keys.SCHEDULED + "mail", {"late": time.time() - 5, "later": time.time() + 3600})

    found = await load_of(client)

    assert (found["backlog"], found["value"]) == (1, 1)


async def test_a_paused_queue_asks_for_no_more_workers(client: httpx.AsyncClient) -> None:
    await client.post("/tasks", json={"type": "echo", "payload": {"message": 1}, "queue": "mail"})
    before = await load_of(client)
    await client.post("/queues/mail/pause")
    after = await load_of(client)

    assert (before["value"], after["value"], after["backlog"]) == (1, 0, 1)


async def test_what_cannot_be_read_counts_as_nothing(client: httpx.AsyncClient, redis_url: str) -> None:
    redis = Redis.from_url(redis_url)
    redis.set(keys.SCHEDULED + "mail", "odd")
    count_minutes(redis_url, 15, submitted=30)
    redis.hset(keys.STATS_MINUTES, str(int(time.time()) // 60 - 1), b"\x93\x80\x80\xc1")

    assert (await load_of(client))["backlog"] == 0


async def test_wrong_names_and_targets_are_refused(client: httpx.AsyncClient) -> None:
    for path, pointer in (
        ("/queues/a%20b/load", "/queue"),
        *((f"/queues/mail/load?target={target}", "/target") for target in ("0", "soon", "2d", "", "-1", "1e9")),
    ):
        answer = await client.get(path)
        assert answer.status_code in (400, 422), path
        assert pointer.strip("/") in str(answer.json()["errors"][0]), answer.text


async def test_the_load_is_of_all_projects(client: httpx.AsyncClient, redis_url: str) -> None:
    reader = bearer(make_key(redis_url, "reader", Scope.READ))
    of_project = bearer(make_key(redis_url, "of a project", Scope.READ, project="shop", queues=["mail"]))

    assert (await client.get("/queues/mail/load", headers=reader)).status_code == 200
    assert (await client.get("/queues/mail/load", headers=of_project)).status_code == 403


@pytest.mark.parametrize("kind", KINDS)
def test_the_clients_and_the_command_show_it(redis_url: str, tmp_path: Any, kind: str) -> None:
    serve(redis_url)
    count_minutes(redis_url, 6, **{"submitted": 30, "r2.5": 60, "rs": 30_000_000})
    with (
        api_process(redis_url, tmp_path / "log") as (_, url),
        client_of(kind, url) as client,
        TaskPool(redis_url, registry=REGISTRY) as pool,
    ):
        pool.add_task("echo", {"message": 1}, queue="mail")
        found = [face.queue_load("mail", target="2m") for face in (client, pool)]
        for face in (client, pool):
            for wrong in ({"name": "a b"}, {"name": "mail", "target": 0}, {"name": "mail", "target": "soon"}):
                with pytest.raises(InvalidTask):
                    face.queue_load(**wrong)
        shown = [
            CliRunner().invoke(main, ["queue", "mail", *way]) for way in (["--server", url], ["--redis-url", redis_url])
        ]

        document = json.loads(CliRunner().invoke(main, ["queue", "mail", "--json", "--server", url]).stdout)

    assert (document["load"]["value"], len(document["tasks"])) == (1, 1)
    assert {(each.queue, each.backlog, each.workers, each.workers_needed, each.target_s) for each in found} == {
        ("mail", 1, 2, 1, 120.0)
    }
    assert found[0].arrival_per_s is not None
    for each in shown:
        assert each.exit_code == 0
        assert re.search(r"Load: [0-9.]+ per (second|minute) arrive", each.stderr)
        assert "Worker processes: 2; 1 needed to finish what waits within 60 s." in each.stderr
