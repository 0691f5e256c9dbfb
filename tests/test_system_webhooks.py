"""Webhooks with real processes: from the API over a worker pool to receivers, also when the pool dies in the middle."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from standardwebhooks import Webhook as Verifier

from benchmarks.ports import free_port
from taskpool.access.api_key import Scope
from taskpool.redis import keys
from tests.api_client import api_process
from tests.keys import bearer, make_key
from tests.receiver import Receiver, receiver
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool

NETWORK = "127.0.0.0/8"
ALLOW: Any = {"webhook_allow": NETWORK}
GUIDE = Path(__file__).parent.parent / "docs" / "webhooks.md"
ACT: Any = {"type": "act", "payload": {"do": "ok"}}


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as state:
        yield state


@contextmanager
def api(redis_url: str, log: Path) -> Iterator[httpx.Client]:
    """A client of an API process that lets webhooks go to this machine."""
    with (
        api_process(redis_url, log, TASKPOOL_WEBHOOK_ALLOW=NETWORK) as (_, url),
        httpx.Client(base_url=url, timeout=PATIENCE_S) as client,
    ):
        yield client


@contextmanager
def guides_receiver(path: Path, secret: str) -> Iterator[tuple[str, Path]]:
    """The guide's receiver as a process: its URL, and the file into which it writes."""
    name, code = re.findall(r"```python\n# (\S+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)[0]
    (path / name).write_text(code)
    port = free_port()
    written = path / "written"
    with written.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, path / name],
            stdout=output,
            env={**os.environ, "WEBHOOK_SECRET": secret, "PORT": str(port)},
        )
    try:
        eventually(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}/", written
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end_leases(redis: Any) -> None:
    """Let the lease of every delivery end."""
    for key in redis.keys(keys.WEBHOOKS_SENDING + "*"):
        redis.zadd(key, dict.fromkeys(redis.zrange(key, 0, -1), 1))
        redis.zadd(keys.WEBHOOKS_LANES, {key.decode().removeprefix(keys.WEBHOOKS_SENDING): 1})


def delivered(client: httpx.Client, task: str, count: int, headers: Any = None) -> Any:
    """The deliveries about a task, once so many have arrived."""

    def look() -> Any:
        found = client.get(f"/tasks/{task}/deliveries", headers=headers).json()["deliveries"]
        return found if [each["status"] for each in found] == ["delivered"] * count else None

    return eventually(look)


def test_endpoints_hear_of_their_projects_tasks_and_the_guides_receiver_takes_a_callback(
    redis_url: str, tmp_path: Path, server: Receiver
) -> None:
    admin = bearer(make_key(redis_url, "admin", Scope.ADMIN))
    ours = bearer(make_key(redis_url, "ours", Scope.READ, Scope.WRITE, project="ours"))
    with WorkerPool(redis_url, tmp_path / "workers", **ALLOW), api(redis_url, tmp_path / "api") as client:
        secrets = {}
        for path, project in (("/all", {}), ("/ours", {"project": "ours"}), ("/theirs", {"project": "theirs"})):
            fields = {"url": server.url(path), "types": ["act"], **project}
            secrets[path] = client.post("/webhooks", json=fields, headers=admin).json()["secret"]
        callback = client.get("/webhooks/callback.ours/secret", headers=admin).json()["secret"]

        with guides_receiver(tmp_path, callback) as (url, written):
            id = client.post("/tasks", json={**ACT, "callback_url": url}, headers=ours).json()["id"]
            listed = delivered(client, id, 3, ours)
            other = client.post("/tasks", json=ACT, headers=admin).json()["id"]
            delivered(client, other, 1, admin)
            forged = httpx.post(url, content=b"{}", headers={**server.requests[0].headers, "content-length": "2"})

        metrics = client.get("/metrics", headers=admin).text

    assert written.read_text() == f"taskpool.task.done {id} done\n"
    assert forged.status_code == 401
    assert [each.message["subject"] for each in server.at("/all")] == [id, other]
    assert [each.message["subject"] for each in server.at("/ours")] == [id]
    assert server.at("/theirs") == []
    for sent in server.requests:
        assert Verifier(secrets[sent.path]).verify(sent.body, sent.headers)["data"]["status"] == "done"
    assert sorted(each.get("url", "") for each in listed) == ["", "", url]
    assert 'taskpool_webhooks_total{outcome="delivered"} 4.0' in metrics


def test_a_pool_that_is_killed_while_it_sends_has_it_sent_again_by_the_next(
    redis: Redis, redis_url: str, tmp_path: Path, server: Receiver
) -> None:
    with api(redis_url, tmp_path / "api") as client:
        with WorkerPool(redis_url, tmp_path / "first", **ALLOW) as workers:
            task = {**ACT, "callback_url": server.url("/hang-once")}
            id = client.post("/tasks", json=task).json()["id"]
            eventually(lambda: server.hanging)
            workers.send(signal.SIGKILL)
            workers.end()
        (waits,) = client.get(f"/tasks/{id}/deliveries").json()["deliveries"]
        busy = client.post(f"/webhooks/deliveries/{waits['id']}/replay")
        end_leases(redis)

        with WorkerPool(redis_url, tmp_path / "second", **ALLOW):
            (arrived,) = delivered(client, id, 1)
        secret = client.get("/webhooks/callback/secret").json()["secret"]

    first, second = server.requests
    assert (waits["status"], waits["attempts"], busy.status_code) == ("pending", [], 409)
    assert (first.id, first.body) == (second.id, second.body)
    assert Verifier(secret).verify(second.body, second.headers)["subject"] == id
    assert [each["status_code"] for each in arrived["attempts"]] == [200]


def test_each_of_many_tasks_whose_pool_is_killed_gets_its_webhook_and_nothing_stays_for_ever(
    redis: Redis, redis_url: str, tmp_path: Path, server: Receiver
) -> None:
    with api(redis_url, tmp_path / "api") as client:
        client.post("/webhooks", json={"url": server.url("/standing"), "types": ["act"]})
        tasks = [{**ACT, "callback_url": server.url(f"/{number}")} for number in range(100)]
        with WorkerPool(redis_url, tmp_path / "first", lease_s=5, **ALLOW) as workers:
            ids = [each["id"] for each in client.post("/tasks/batch", json={"tasks": tasks}).json()["tasks"]]
            eventually(lambda: len(server.requests) >= 10)
            workers.send(signal.SIGKILL)
            workers.end()
        end_leases(redis)
        with WorkerPool(redis_url, tmp_path / "second", lease_s=5, **ALLOW) as workers:
            eventually(lambda: all(each.status.is_terminal for each in map(workers.pool.get, ids)))
            eventually(lambda: _is_idle(redis))

    by_path = {path: {each.message["subject"] for each in server.at(path)} for path in ("/standing", "/7", "/99")}
    assert by_path == {"/standing": set(ids), "/7": {ids[7]}, "/99": {ids[99]}}
    assert len({each.id for each in server.requests}) == 200
    left = redis.keys(keys.DELIVERY + "*") + redis.keys(keys.DELIVERIES + "*")
    assert [key for key in left if redis.ttl(key) < 0] == []


def _is_idle(redis: Any) -> bool:
    """Whether no webhook is still to be made or to be sent."""
    return not redis.xlen(keys.WEBHOOKS_OUTBOX) and not redis.exists(keys.WEBHOOKS_LANES)


def test_a_pool_that_drains_loses_no_delivery(redis_url: str, tmp_path: Path, server: Receiver) -> None:
    with api(redis_url, tmp_path / "api") as client:
        with WorkerPool(redis_url, tmp_path / "first", grace_s=20, **ALLOW) as workers:
            client.post("/tasks", json={**ACT, "callback_url": server.url("/trickle-body")})
            eventually(lambda: server.requests)
            workers.send(signal.SIGTERM)
            assert workers.end() == 0

        with WorkerPool(redis_url, tmp_path / "second", **ALLOW):
            id = client.post("/tasks", json={**ACT, "callback_url": server.url("/last")}).json()["id"]
            delivered(client, id, 1)

    assert len(server.at("/trickle-body")) == 1
