"""Events of real tasks on their way through real processes: each client gets
every event once and in order, over cuts and restarts of Redis and of the API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from taskpool.redis.embedded import RedisServer
from tests.api_client import api_process
from tests.event_clients import EventClient, SocketClient, StreamClient
from tests.support import until
from tests.worker_pool import WorkerPool

EACH = 20
CUTS = 5


@pytest.fixture
def server(tmp_path: Path, redis_binary: str | None) -> Iterator[RedisServer]:
    """A Redis of the test's own, that keeps everything it said yes to."""
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(directory, binary=redis_binary, config={"appendonly": "yes", "appendfsync": "always"})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def workers(server: RedisServer, tmp_path: Path) -> Iterator[WorkerPool]:
    with WorkerPool(server.url, tmp_path / "log", workers=1, lease_s=30) as workers:
        yield workers


async def more_heard(clients: list[EventClient], id: str) -> None:
    """Each client has received something that happened from now on."""
    heard = [len(client.of(id)) for client in clients]
    await until(lambda: all(len(client.of(id)) > n for client, n in zip(clients, heard, strict=True)))


async def test_followers_get_every_event_once_over_cuts_and_a_crash_of_redis(
    server: RedisServer, workers: WorkerPool, tmp_path: Path
) -> None:
    with api_process(server.url, tmp_path / "api.log") as (_, url):
        task = workers.submit("report_on", until=tmp_path / "go")
        path = f"/tasks/{task.id}/events"
        clients: list[EventClient] = [await StreamClient.follow(url, path) for _ in range(EACH)]
        clients += [await SocketClient.follow(url, task=task.id) for _ in range(EACH)]
        clients += [await StreamClient.follow(url, "/events?type=act"), await SocketClient.follow(url, filter={})]
        await more_heard(clients, task.id)

        with Redis.from_url(server.url) as redis:
            for _ in range(CUTS):
                subscribed = [each["id"] for each in redis.client_list() if each["name"] == "taskpool-wait"]
                assert len(subscribed) == 1
                redis.client_kill_filter(_id=subscribed[0])
                await more_heard(clients, task.id)
        server.kill()
        server.start()
        await more_heard(clients, task.id)
        (tmp_path / "go").touch()
        record = await asyncio.to_thread(workers.pool.wait, task.id, timeout_s=60)
        await until(lambda: all(client.of(task.id)[-1] == record.seq for client in clients))
        for client in clients:
            await client.end()

    for client in clients:
        received = client.of(task.id)
        first = client.shown.get(task.id, received[0] - 1) + 1
        assert received == list(range(first, record.seq + 1))
        assert "resync" not in client.notices
    assert all(task.id in client.shown for client in clients[: 2 * EACH])
    assert record.progress == {"done": record.result, "note": f"step {record.result}"}
    assert record.seq < record.result  # it reported more often than events were sent
    assert "Traceback" not in (tmp_path / "api.log").read_text()


async def test_a_client_that_reconnects_to_a_restarted_api_gets_what_it_missed(
    server: RedisServer, workers: WorkerPool, tmp_path: Path
) -> None:
    with api_process(server.url, tmp_path / "api.log") as (first, url):
        task = workers.submit("report_on", until=tmp_path / "go")
        stream = await StreamClient.follow(url, f"/tasks/{task.id}/events")
        sock = await SocketClient.follow(url, task=task.id)
        await more_heard([stream, sock], task.id)
        first.terminate()
        await until(lambda: all(each.reading is not None and each.reading.done() for each in (stream, sock)))
    before = workers.pool.get(task.id).seq
    await until(lambda: workers.pool.get(task.id).seq > before + 1)
    with api_process(server.url, tmp_path / "api2.log") as (_, url):
        again = await StreamClient.follow(url, f"/tasks/{task.id}/events", after=stream.last)
        sock_again = await SocketClient.follow(url, task=task.id, after=sock.last)
        await more_heard([again, sock_again], task.id)
        (tmp_path / "go").touch()
        record = await asyncio.to_thread(workers.pool.wait, task.id, timeout_s=60)
        await until(lambda: all(each.of(task.id)[-1] == record.seq for each in (again, sock_again)))
        await sock_again.end()
        await again.end()

    assert sock.closed_with == 1012
    for one, other in ((stream, again), (sock, sock_again)):
        received = one.of(task.id) + other.of(task.id)
        assert received == list(range(received[0], record.seq + 1))
        assert "snapshot" not in other.notices
