"""Failover through Sentinel: the master dies, and workers, API and those who wait find the new one by themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Sentinel

from benchmarks.ports import free_port
from taskpool import AsyncTaskPool, TaskPool, TaskRecord, TaskStatus
from taskpool.errors import ConfigurationError, RedisUnavailable
from taskpool.operations.records import fetch, fetch_if_there
from taskpool.redis import scripts
from taskpool.redis.address import Address, connect
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.embedded import check_redis
from taskpool.redis.store import Store
from taskpool.settings import SentinelUrl, Settings, redact_url
from tests.api_client import api_process
from tests.sentinels import SERVICE, Sentinels
from tests.states import new_task
from tests.support import PATIENCE_S, eventually
from tests.test_store import ping
from tests.tls import certificate
from tests.worker_pool import WorkerPool, started

ECHO = {"type": "echo", "payload": {"message": "hi"}}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+sentinel://h/s", ((("h", 26379),), "s", 0, None, None, None, None)),
        ("redis+sentinel://a:1,b,[::1]:3/s/4", ((("a", 1), ("b", 26379), ("::1", 3)), "s", 4, None, None, None, None)),
        ("redis+sentinel://u:p%40%2C@a:1/s%20t", ((("a", 1),), "s t", 0, "u", "p@,", None, None)),
        ("redis+sentinel://:p@a,b/s?sentinel_password=q", ((("a", 26379), ("b", 26379)), "s", 0, None, "p", None, "q")),
        ("rediss+sentinel://:p@h/s?ssl_cert_reqs=none", ((("h", 26379),), "s", 0, None, "p", None, None)),
    ],
)
def test_a_sentinel_url_names_the_sentinels_and_the_service(url: str, expected: tuple[object, ...]) -> None:
    found = SentinelUrl.parse(url)

    assert (
        found.sentinels, found.service, found.db, found.username, found.password, found.sentinel_username,
        found.sentinel_password,
    ) == expected  # fmt: skip
    assert Settings.load({"TASKPOOL_REDIS_URL": url}).redis_url == url


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis+sentinel://h:1", "names no service"),
        ("redis+sentinel:///s", "names no host"),
        ("redis+sentinel://h:1,/s", "names no host"),
        ("redis+sentinel://h:port/s", "Port could not be cast"),
        ("redis+sentinel://h:1/s/x", "the database 'x' is not a number"),
        ("redis+sentinel://h:1/s?sentinel_pass=q", "has no option 'sentinel_pass'"),
        ("redis+sentinel://h:1/s?ssl_ca_certs=f", "has no option 'ssl_ca_certs'"),
        ("rediss+sentinel://h:1/s?ssl_ca=f", "has no option 'ssl_ca'"),
    ],
)
def test_what_is_no_sentinel_url_is_refused_before_anything_starts(url: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        Settings.load({"TASKPOOL_REDIS_URL": url})
    with pytest.raises(ConfigurationError, match=fault):
        Address.parse(url)


def test_no_password_of_a_sentinel_url_is_shown() -> None:
    url = "redis+sentinel://u:secret@a:1,b:2/s/0?sentinel_username=w&sentinel_password=secret"

    assert redact_url(url) == "redis+sentinel://u:***@a:1,b:2/s/0?sentinel_username=w&sentinel_password=***"
    assert "secret" not in repr(SentinelUrl.parse(url)) + repr(Address.parse(url)) + str(Address.parse(url))


def test_without_a_sentinel_to_ask_the_failure_is_clear() -> None:
    url = f"redis+sentinel://:secret@127.0.0.1:{free_port()}/{SERVICE}"

    with pytest.raises(RedisUnavailable, match=f"can't reach Redis at {SERVICE} .sentinels 127.0.0.1:") as failed:
        Store(url).run(ping("a"))
    with pytest.raises(ConfigurationError, match=r"can't reach the Redis at redis\+sentinel://:\*\*\*@") as refused:
        check_redis(url)

    assert "secret" not in f"{failed.value}{refused.value}"


@pytest.fixture
def sentinels(tmp_path: Path, redis_binary: str | None) -> Iterator[Sentinels]:
    sentinels = Sentinels(tmp_path, redis_binary)
    yield sentinels
    sentinels.stop()


@pytest.mark.long(about_s=10)
def test_a_failover_is_survived_by_workers_the_api_and_waits(sentinels: Sentinels, tmp_path: Path) -> None:
    check_redis(sentinels.url)
    waited: dict[str, TaskRecord] = {}
    with (
        WorkerPool(sentinels.url, tmp_path / "log", workers=2, lease_s=20) as workers,
        api_process(sentinels.url, tmp_path / "api") as (_, url),
        httpx.Client(base_url=url, timeout=PATIENCE_S) as client,
    ):
        task = workers.submit("hang", note=tmp_path / "note", until=tmp_path / "go")
        before = client.post("/tasks", json={"type": "act", "payload": {"do": "ok"}}).json()["id"]
        started(tmp_path / "note")
        waits = [
            threading.Thread(target=lambda: waited.update(sync=wait(sentinels.url, task.id))),
            threading.Thread(target=lambda: waited.update(awaited=asyncio.run(wait_async(sentinels.url, task.id)))),
            threading.Thread(target=lambda: waited.update(http=client.get(f"/tasks/{task.id}?wait=50").json())),
        ]
        for wait_ in waits:
            wait_.start()
        workers.pool.wait(before, timeout_s=PATIENCE_S)
        eventually(lambda: sentinels.master.admin.pubsub_numsub(f"taskpool:task:{task.id}")[0][1] == len(waits))
        eventually(lambda: len(stores_that_read(sentinels)) == 2)  # both waits that subscribe first have looked, too
        sentinels.master.admin.wait(1, 5000)  # replication is asynchronous: what it hasn't got yet would be lost

        sentinels.master.kill()
        eventually(lambda: sentinels.replica.role() == "master")
        (tmp_path / "go").touch()
        for wait_ in waits:
            wait_.join(PATIENCE_S)
        eventually(lambda: client.post("/tasks", json=ECHO).status_code == 202)

        assert (waited["sync"].result, waited["sync"].attempt, waited["sync"].crashes) == ("slept", 1, 0)
        assert waited["awaited"].result == "slept"
        assert waited["http"]["result"] == "slept"  # type: ignore[index]
        eventually(lambda: status(workers.pool, before) is TaskStatus.DONE)
        assert workers.result("ok").status is TaskStatus.DONE
        eventually(lambda: len(workers.pids()) == 2)  # RQ's own connection has moved, too
        assert "Traceback" not in workers.log.read_text()


def status(pool: TaskPool, id: str) -> TaskStatus | None:
    """None: the sentinels don't agree on a master yet."""
    try:
        return pool.get(id).status
    except RedisUnavailable:
        return None


def wait(redis_url: str, id: str) -> TaskRecord:
    with TaskPool(redis_url) as pool:
        return pool.wait(id, timeout_s=PATIENCE_S)


def stores_that_read(sentinels: Sentinels) -> list[Any]:
    """The connections of stores, not of listeners, of which the last command read a task."""
    return [
        client
        for client in sentinels.master.admin.client_list()
        if (client["name"], client["cmd"]) == ("taskpool", "hgetall")
    ]


async def wait_async(redis_url: str, id: str) -> TaskRecord:
    async with AsyncTaskPool(redis_url) as pool:
        return await pool.wait(id, timeout_s=PATIENCE_S)


@pytest.mark.long(about_s=13)
def test_a_master_that_is_made_a_replica_is_left_for_the_new_one(sentinels: Sentinels) -> None:
    store = Store(sentinels.url)
    assert store.run(scripts.add([new_task("a")])).statuses == ("queued",)
    with connect(sentinels.url) as client:
        client.set("k", "v")

        sentinels.sentinels[0].admin.execute_command("SENTINEL FAILOVER", SERVICE)
        eventually(lambda: sentinels.replica.role() == "master" and sentinels.master.role() == "slave")

        eventually(lambda: Address.parse(sentinels.url).located().port == sentinels.replica.port)
        assert store.run(scripts.add([new_task("b")])).statuses == ("queued",)
        assert client.set("k", "w")
    store.close()


async def test_a_replica_that_a_sentinel_takes_for_the_master_is_not_read(
    sentinels: Sentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after a failover a sentinel may name the old master, which is an empty replica when it comes back."""
    named = [sentinels.replica.port]
    monkeypatch.setattr(Sentinel, "discover_master", lambda self, service: ("127.0.0.1", named[0]))
    store, async_store = Store(sentinels.url), AsyncStore(sentinels.url)

    with pytest.raises(RedisUnavailable, match="is a replica, though a sentinel named it"):
        store.run(fetch_if_there("a"))
    with pytest.raises(RedisUnavailable, match="is a replica, though a sentinel named it"):
        await async_store.run(fetch_if_there("a"))
    named[0] = sentinels.master.port

    assert (store.run(fetch_if_there("a")), await async_store.run(fetch_if_there("a"))) == (None, None)
    store.close()
    await async_store.close()


@pytest.mark.long(about_s=13)
async def test_with_tls_sentinels_and_master_are_asked_in_it(tmp_path: Path, redis_binary: str | None) -> None:
    trusted = certificate(tmp_path, "IP:127.0.0.1")
    sentinels = Sentinels(tmp_path, redis_binary, certificate=trusted)
    try:
        url = f"{sentinels.url}?ssl_ca_certs={trusted}"
        check_redis(url)
        store, async_store = Store(url), AsyncStore(url)
        assert store.run(scripts.add([new_task("a")])).statuses == ("queued",)
        assert (await async_store.run(fetch("a"))).id == "a"
        assert sentinels.fronts[sentinels.master.port].secured >= 3
        assert all(sentinels.fronts[sentinel.port].secured for sentinel in sentinels.sentinels[:1])

        with pytest.raises(ConfigurationError, match="certificate verify failed"):
            check_redis(sentinels.url)  # no certificate authority that it knows has signed theirs

        sentinels.sentinels[0].admin.execute_command("SENTINEL FAILOVER", SERVICE)
        eventually(lambda: Address.parse(url).located().port == sentinels.announced(sentinels.replica.port))
        eventually(lambda: sentinels.replica.role() == "master" and sentinels.master.role() == "slave")

        eventually(lambda: store.run(scripts.add([new_task("b")])).statuses == ("queued",))
        assert (await async_store.run(fetch("b"))).id == "b"
        assert sentinels.fronts[sentinels.replica.port].secured >= 2
        store.close()
        await async_store.close()
    finally:
        sentinels.stop()
