"""A Redis that answers with errors for a while: outcomes are kept, nothing runs twice, the API answers 503."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from taskpool import AsyncTaskPool, RedisUnavailable, TaskPool, TaskStatus
from taskpool.redis import scripts
from taskpool.redis.embedded import RedisServer
from taskpool.redis.replies import Meaning
from tests.api_client import api, api_process, publish_types
from tests.keys import bearer, make_key
from tests.proxy import Proxy, Refuse
from tests.support import PATIENCE_S, eventually
from tests.test_replies import INSIDE, NEW, OLD, PLAIN
from tests.worker_pool import WorkerPool, lines, started

ECHO = {"type": "echo", "payload": {"message": "hi"}}
REFUSALS = [text for text, meaning in {**PLAIN, **INSIDE}.items() if meaning not in (Meaning.FAULT, Meaning.NO_SCRIPT)]
SCRIPTS = {getattr(scripts, f"_{name}").sha: name for name in ("turn", "finish", "requeue", "heartbeat", "log")}
OPENING = (b"CLIENT", b"HELLO", b"AUTH", b"SELECT", b"PING")


def script_of(words: list[bytes]) -> str:
    """The name of the script that a command runs, if it is one of `SCRIPTS`."""
    if words[0] not in (b"EVALSHA", b"EVAL"):
        return ""
    sha = words[1].decode() if words[0] == b"EVALSHA" else hashlib.sha1(words[1]).hexdigest()
    return SCRIPTS.get(sha, "")


def all_with(error: str) -> Refuse:
    """Refuses whatever isn't part of opening a connection."""
    return lambda name, words: None if words[0] in OPENING else error


def script_with(script: str, error: str) -> Refuse:
    """Refuses one script."""
    return lambda name, words: error if script_of(words) == script else None


@pytest.fixture
def proxy(tmp_path: Path, redis_server: RedisServer, redis_url: str) -> Iterator[Proxy]:
    """A proxy before an empty Redis."""
    proxy = Proxy(tmp_path, redis_server.socket_path)
    yield proxy
    proxy.close()


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[httpx.AsyncClient]:
    """The application, in this process, with its Redis behind the proxy."""
    publish_types(proxy.url)
    async with api(proxy.url) as client:
        yield client


REQUESTS = (
    ("POST", "/tasks", ECHO), ("POST", "/tasks/batch", {"tasks": [ECHO, ECHO]}), ("GET", "/tasks", None),
    ("GET", "/tasks/{id}", None), ("GET", "/tasks/{id}?wait=1", None), ("POST", "/tasks/{id}/stop", None),
    ("DELETE", "/tasks/{id}", None), ("GET", "/tasks/{id}/logs", None), ("GET", "/queues", None),
    ("GET", "/types", None), ("GET", "/storage", None), ("GET", "/waits", None),
    ("GET", "/workers", None), ("GET", "/metrics", None), ("GET", "/readyz", None),
    ("GET", "/webhooks", None), ("POST", "/webhooks", {"url": "https://example.com/hook"}),
    ("GET", "/keys", None), ("GET", "/audit", None), ("GET", "/events", None),
)  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize("error", REFUSALS)
async def test_the_api_answers_503_for_every_error_reply(client: httpx.AsyncClient, proxy: Proxy, error: str) -> None:
    id = (await client.post("/tasks", json=ECHO)).json()["id"]
    held = len((await client.get("/tasks")).json()["tasks"])

    proxy.refuse = all_with(error)
    answers = [await client.request(method, path.format(id=id), json=body) for method, path, body in REQUESTS]
    proxy.refuse = None

    assert {f"{answer.request.method} {answer.request.url.path}": answer.status_code for answer in answers} == {
        f"{method} {path.partition('?')[0].format(id=id)}": 503 for method, path, _ in REQUESTS
    }
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
    assert (await client.post("/tasks", json=ECHO)).status_code == 202
    assert len((await client.get("/tasks")).json()["tasks"]) == held + 1


@pytest.mark.anyio
async def test_an_api_whose_scripts_are_refused_is_not_ready(client: httpx.AsyncClient, proxy: Proxy) -> None:
    proxy.refuse = lambda name, words: "NOPERM no permissions" if words[0] in (b"EVALSHA", b"EVAL") else None
    answers = [await client.get("/readyz"), await client.post("/tasks", json=ECHO)]
    proxy.refuse = None

    assert [answer.status_code for answer in answers] == [503, 503]
    assert (answers[0].json()["reads"], answers[0].json()["writes"]) == (True, False)
    assert (await client.get("/readyz")).status_code == 200


@pytest.mark.anyio
async def test_a_key_that_cannot_be_looked_up_is_not_called_wrong(
    client: httpx.AsyncClient, proxy: Proxy, redis_url: str
) -> None:
    headers = bearer(make_key(redis_url))

    proxy.refuse = all_with("NOPERM this user has no permissions to access one of the keys used as arguments")
    answers = [
        await client.get("/queues", headers=headers),
        await client.post("/tickets", headers=headers),
        await client.get("/tasks", headers={"authorization": "Bearer tpk_unknown"}),
    ]
    proxy.refuse = None

    assert [answer.status_code for answer in answers[:2]] == [503, 503]
    assert answers[2].status_code in (401, 503)
    assert (await client.get("/queues", headers=headers)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("error", REFUSALS)
async def test_both_pools_say_that_redis_is_unavailable(proxy: Proxy, error: str) -> None:
    publish_types(proxy.url)
    async with AsyncTaskPool(proxy.url) as awaiting:
        with TaskPool(proxy.url) as pool:
            id = pool.add_task("echo", {"message": "hi"}).id

            proxy.refuse = all_with(error)
            for call in (
                lambda: pool.add_task("echo", {"message": "hi"}), lambda: pool.get(id), pool.list_tasks,
                lambda: pool.wait(id, timeout_s=0.1), lambda: pool.kill_task(id), lambda: pool.logs(id), pool.workers,
            ):  # fmt: skip
                with pytest.raises(RedisUnavailable):
                    call()
            with pytest.raises(RedisUnavailable):
                await awaiting.add_task("echo", {"message": "hi"})
            with pytest.raises(RedisUnavailable):
                await awaiting.wait(id, timeout_s=0.1)
            proxy.refuse = None

            assert pool.get(id).id == (await awaiting.get(id)).id == id


@contextmanager
def refused(proxy: Proxy, refuse: Refuse, *who: str) -> Iterator[None]:
    """Refuses, until all who are named were refused something."""
    proxy.refused.clear()
    proxy.refuse = refuse
    yield
    eventually(lambda: {name for name in who if any(name in each for each in tuple(proxy.refused))} == set(who))
    proxy.refuse = None


FULL_HOUSE = "ERR max number of clients reached"
ROUGH = [
    f"{OLD}@user_script: 161: -NOREPLICAS Not enough good replicas to write.",
    f"MISCONF Errors writing to the AOF file: No space left on device{NEW}",
    "LOADING Redis is loading the dataset in memory",
    "NOPERM User someone has no permissions to run the 'evalsha' command",
    FULL_HOUSE,
    "ERR a sentence of the next release",
    "NEWCODE a code of the next release",
]


@pytest.mark.parametrize("slots", [1, 4])
def test_no_error_reply_costs_an_outcome(proxy: Proxy, redis: Any, redis_url: str, tmp_path: Path, slots: int) -> None:
    with (
        WorkerPool(proxy.url, tmp_path / "log", lease_s=1, slots=slots) as workers,
        api_process(proxy.url, tmp_path / "api") as (_, url),
        httpx.Client(base_url=url, timeout=PATIENCE_S) as client,
        TaskPool(redis_url) as direct,
        ThreadPoolExecutor() as waiters,
    ):
        (worker,) = [each.name for each in direct.workers() if each.pool]
        for number, error in enumerate(ROUGH):
            note, go = tmp_path / f"note{number}", tmp_path / f"go{number}"
            task = workers.submit("report_until", note=note, until=go)
            started(note)
            waiting = waiters.submit(client_wait, url, task.id)
            eventually(lambda channel=f"taskpool:task:{task.id}": redis.pubsub_numsub(channel)[0][1])  # type: ignore[misc]

            with refused(proxy, all_with(error), f"{worker} EVAL", f"{worker.rpartition('.')[0]} EVAL"):
                go.touch()
                answers = [client.post("/tasks", json=ECHO), client.get(f"/tasks/{task.id}")]
            record = direct.wait(task.id, timeout_s=PATIENCE_S)

            assert [answer.status_code for answer in answers] == [503, 503]
            assert (record.status, record.attempt, record.crashes) == (TaskStatus.DONE, 1, 0)
            assert (record.result, len(lines(note))) == ("reported", 1)
            assert waiting.result() == "done"
        said = workers.log.read_text()
        assert "unknown error reply of Redis" in said
        assert "Traceback" not in said + (tmp_path / "api").read_text()


def client_wait(url: str, id: str) -> str:
    return str(httpx.get(f"{url}/tasks/{id}?wait=30", timeout=PATIENCE_S).json()["status"])


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("script", ["turn", "heartbeat", "log"])
def test_one_refused_call_of_many_costs_nothing(
    proxy: Proxy, redis_url: str, tmp_path: Path, slots: int, script: str
) -> None:
    error = f"NOREPLICAS Not enough good replicas to write.{NEW}"
    with WorkerPool(proxy.url, tmp_path / "log", lease_s=1, slots=slots) as workers, TaskPool(redis_url) as direct:
        note, go = tmp_path / "note", tmp_path / "go"
        task = workers.submit("report_until", note=note, until=go)
        started(note)

        with refused(proxy, script_with(script, error), "EVALSHA"):
            if script != "heartbeat":  # there are none once the task has ended
                go.touch()
        go.touch()
        records = [direct.wait(id, timeout_s=PATIENCE_S) for id in (task.id, workers.submit().id)]

        assert [(record.status, record.attempt, record.crashes) for record in records] == [(TaskStatus.DONE, 1, 0)] * 2
        assert len(lines(note)) == 1


@pytest.mark.parametrize("slots", [1, 4])
def test_an_outcome_that_only_its_own_record_refuses_is_kept_while_others_go_on(
    proxy: Proxy, redis_url: str, tmp_path: Path, slots: int
) -> None:
    def refuse(name: str, words: list[bytes]) -> str | None:
        damaged = script_of(words) in ("turn", "finish") and task.id.encode() in words
        return "WRONGTYPE Operation against a key holding the wrong kind of value" if damaged else None

    with WorkerPool(proxy.url, tmp_path / "log", lease_s=2, slots=slots) as workers, TaskPool(redis_url) as direct:
        note, go = tmp_path / "note", tmp_path / "go"
        task = workers.submit("hang", note=note, until=go)
        started(note)

        with refused(proxy, refuse, "EVALSHA"):
            go.touch()
            others = [direct.wait(workers.submit().id, timeout_s=PATIENCE_S) for _ in range(3)]
            eventually(lambda: len(proxy.refused) >= 3)
            waits = direct.get(task.id)
        record = direct.wait(task.id, timeout_s=PATIENCE_S)

        assert {other.status for other in others} == {TaskStatus.DONE}
        assert (waits.status, waits.attempt) == (TaskStatus.IN_PROGRESS, 1)
        assert (record.status, record.result, record.attempt, record.crashes) == (TaskStatus.DONE, "slept", 1, 0)
        assert len(lines(note)) == 1
        assert f"the outcome of task {task.id} (done) can't be written" in workers.log.read_text()


def test_a_record_that_is_damaged_for_good_is_named_and_the_worker_goes_on(
    redis_url: str, redis: Any, tmp_path: Path
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1) as workers:
        note, go = tmp_path / "note", tmp_path / "go"
        task = workers.submit("hang", note=note, until=go)
        started(note)

        redis.rename(f"rq:job:{task.id}", "moved")
        redis.set(f"rq:job:{task.id}", "damaged")
        go.touch()
        eventually(lambda: f"the outcome of task {task.id} (done) can't be written" in workers.log.read_text())
        other = workers.result()
        redis.rename("moved", f"rq:job:{task.id}")
        record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

        assert other.status is TaskStatus.DONE
        assert (record.status, record.result, record.attempt) == (TaskStatus.DONE, "slept", 1)
        assert "Traceback" not in workers.log.read_text()


@pytest.mark.parametrize("verb", [b"CLIENT", b"SELECT", b"HELLO", b"SUBSCRIBE"])
def test_errors_while_a_connection_opens_are_waited_for(
    proxy: Proxy, redis_url: str, tmp_path: Path, verb: bytes
) -> None:
    with (
        WorkerPool(f"{proxy.url}?db=1", tmp_path / "log", lease_s=1) as workers,
        api_process(f"{proxy.url}?db=1", tmp_path / "api") as (_, url),
        httpx.Client(base_url=url, timeout=PATIENCE_S) as client,
        Redis.from_url(redis_url) as admin,
        TaskPool(f"{redis_url}?db=1") as direct,
    ):
        note, go = tmp_path / "note", tmp_path / "go"
        task = workers.submit("hang", note=note, until=go)
        started(note)

        with refused(
            proxy, lambda name, words: "ERR max number of clients reached" if words[0] == verb else None, verb.decode()
        ):
            for kind in ("normal", "pubsub"):
                admin.execute_command("CLIENT", "KILL", "TYPE", kind)
            go.touch()
            answers = [client.post("/tasks", json=ECHO), client.get(f"/tasks/{task.id}?wait=1")]
        record = direct.wait(task.id, timeout_s=PATIENCE_S)

        assert {answer.status_code for answer in answers} <= {200, 202, 503}
        assert (record.status, record.attempt, record.crashes) == (TaskStatus.DONE, 1, 0)
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert workers.result().status is TaskStatus.DONE
