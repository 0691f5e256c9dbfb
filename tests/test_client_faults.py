"""The clients when things break: an API that dies and comes back, answers that are lost, Redis away, silence."""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from taskpool import ApiUnavailable, Client, RedisUnavailable, TaskPool, TaskSpec
from taskpool.redis.embedded import RedisServer
from taskpool.tasks.attempt import Outcome
from taskpool.types import RunningTask, TaskStatus
from tests.api_client import publish_types
from tests.client_kinds import KINDS, Api, client_of
from tests.support import eventually

CHUNK = 65536


class HttpProxy:
    """A proxy on 127.0.0.1 that sends a request on to the API and ends the connection instead of passing on its answer.

    It reads only the first line of each piece that a client sends. `seen` are these lines.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._cuts: list[str] = []
        self._threads: list[threading.Thread] = []
        self.seen: list[str] = []
        self.connections = 0
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self, method: str, times: int = 1) -> None:
        """Let the answers to the next requests with this method be lost."""
        self._cuts += [method] * times

    def close(self) -> None:
        """End it; all clients have left by now."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._accepting, *self._threads):
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._pass_on, args=(client,)))
            self._threads[-1].start()

    def _pass_on(self, client: socket.socket) -> None:
        is_cut = False
        with client, socket.socket() as upstream, selectors.DefaultSelector() as selector:
            try:
                upstream.connect(self._upstream)
                for side in (client, upstream):
                    selector.register(side, selectors.EVENT_READ)
                while True:
                    for key, _ in selector.select():
                        received = key.fileobj.recv(CHUNK)  # type: ignore[union-attr]
                        if not received or (key.fileobj is upstream and is_cut):
                            return
                        if key.fileobj is client:
                            is_cut = self._note(received) or is_cut
                            upstream.sendall(received)
                        else:
                            client.sendall(received)
            except OSError:  # one side is gone: so is the other
                return

    def _note(self, request: bytes) -> bool:
        """Note a request; whether its answer is to be lost."""
        line = request.partition(b"\r\n")[0].decode("latin-1")
        if not line.endswith("HTTP/1.1"):  # a body that came by itself
            return False
        self.seen.append(line.removesuffix(" HTTP/1.1"))
        method = line.partition(" ")[0]
        if method not in self._cuts:
            return False
        self._cuts.remove(method)
        return True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary=redis_binary)
    server.start()
    publish_types(server.url)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def started_api(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    api = Api(server.url, tmp_path_factory.mktemp("api") / "log")
    api.start()
    yield api
    api.end()


@pytest.fixture
def api(started_api: Api) -> Api:
    """An API that is there when the test begins, whatever the one before did to it."""
    if not started_api.is_there:
        started_api.start()
    return started_api


@pytest.fixture
def pool(server: RedisServer) -> Iterator[TaskPool]:
    with TaskPool(server.url) as pool:
        yield pool


@pytest.fixture
def proxy(api: Api) -> Iterator[HttpProxy]:
    proxy = HttpProxy(api.url)
    yield proxy
    proxy.close()


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, api: Api) -> Iterator[Client]:
    with client_of(request.param, api.url) as client:
        yield client


@pytest.fixture
def both(proxy: HttpProxy) -> Iterator[list[Client]]:
    """A client of either kind behind the proxy: what takes a restart is tried with both at once. They are patient,
    because on a busy machine an API takes its time to start."""
    with ExitStack() as clients:
        yield [clients.enter_context(client_of(kind, proxy.url, retries=20)) for kind in KINDS]


@pytest.fixture(params=KINDS)
def behind(request: pytest.FixtureRequest, proxy: HttpProxy) -> Iterator[Client]:
    """A client behind the proxy."""
    with client_of(request.param, proxy.url) as client:
        yield client


def running_task(pool: TaskPool) -> RunningTask:
    """A task that runs until we say otherwise."""
    queue = secrets.token_hex(8)
    pool.add_task("echo", {"message": 1}, queue=queue)
    running = pool.run_task([queue], worker="w", attempt_id=secrets.token_hex(8), lease_s=600)
    assert running is not None
    return running


def end(pool: TaskPool, running: RunningTask) -> None:
    assert pool.update_status(running, Outcome(TaskStatus.DONE, result=b"1")) == "ok"


def in_a_thread(work: Callable[[], Any]) -> Future[Any]:
    executor = ThreadPoolExecutor(1)
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return future


def collect(pieces: Iterator[Any]) -> tuple[list[Any], Future[Any]]:
    """What came so far, and the end of it."""
    collected: list[Any] = []
    return collected, in_a_thread(lambda: collected.extend(pieces))


@pytest.mark.parametrize("leaves", [Api.kill, Api.end])
def test_waits_and_streams_survive_an_api_that_dies_and_one_that_stops(
    leaves: Callable[[Api], None], api: Api, pool: TaskPool, proxy: HttpProxy, both: list[Client]
) -> None:
    running = running_task(pool)
    assert pool.log_task(running, [(1, "one")]) == "ok"
    waits = [in_a_thread(partial(client.wait, running.id, timeout_s=120)) for client in both]
    events = [collect(client.events(running.id)) for client in both]
    logs = [collect(client.follow_log(running.id)) for client in both]
    eventually(lambda: all(pieces for pieces, _ in [*events, *logs]))
    eventually(lambda: sum("?wait=30" in line for line in proxy.seen) == len(both))  # after a first, shorter look
    assert pool.log_task(running, [(2, "two")]) == "ok"
    eventually(lambda: all(len(pieces) == 2 for pieces, _ in [*events, *logs]))

    leaves(api)
    tried = proxy.connections
    assert pool.log_task(running, [(3, "three")]) == "ok"
    eventually(lambda: proxy.connections >= tried + 6)  # they do try meanwhile
    api.start()
    assert pool.log_task(running, [(4, "four")]) == "ok"
    end(pool, running)

    assert [wait.result(120).status for wait in waits] == ["done", "done"]
    for pieces, ended in events:
        ended.result(120)
        assert [event.event for event in pieces] == ["snapshot", "log", "log", "log", "done"]
        assert [event.seq for event in pieces] == list(range(pieces[0].seq, pool.get(running.id).seq + 1))
    for pieces, ended in logs:
        ended.result(120)
        assert [line.text for line in pieces] == ["one", "two", "three", "four"]


def test_a_client_that_calls_while_the_api_starts_is_served(api: Api, both: list[Client]) -> None:
    api.kill()
    starting = in_a_thread(api.start)

    adding = [in_a_thread(partial(client.add_task, "echo", {"message": 1}, delay_s=60)) for client in both]

    assert [task.result(120).status for task in adding] == ["scheduled", "scheduled"]
    starting.result(60)


@pytest.mark.parametrize("times", [1, 3])
def test_a_submission_whose_answer_is_lost_is_stored_once(
    times: int, pool: TaskPool, proxy: HttpProxy, behind: Client
) -> None:
    tag = secrets.token_hex(8)
    proxy.cut("POST", times)

    task = behind.add_task("echo", {"message": 1}, tags=[tag], delay_s=3600)

    assert [record.id for record in pool.list_tasks(tag=tag).items] == [task.id]
    assert proxy.seen == ["POST /tasks"] * (times + 1)


def test_a_batch_whose_answer_is_lost_is_stored_once(pool: TaskPool, proxy: HttpProxy, behind: Client) -> None:
    tag = secrets.token_hex(8)
    proxy.cut("POST")

    tasks = behind.add_tasks([TaskSpec(type="echo", payload={"message": n}, tags=[tag], delay_s=60) for n in range(3)])

    assert {record.id for record in pool.list_tasks(tag=tag).items} == {task.id for task in tasks}
    assert len({task.id for task in tasks}) == 3
    assert proxy.seen == ["POST /tasks/batch"] * 2


def test_two_equal_submissions_are_two_tasks(client: Client) -> None:
    ids = {client.add_task("echo", {"message": 1}, delay_s=3600).id for _ in range(2)}

    assert len(ids) == 2


def test_a_removal_whose_answer_is_lost_is_not_repeated(pool: TaskPool, proxy: HttpProxy, behind: Client) -> None:
    id = pool.add_task("echo", {"message": 1}, delay_s=3600).id
    proxy.cut("DELETE")

    with pytest.raises(ApiUnavailable, match="gave no answer") as raised:
        behind.remove_task(id)

    assert raised.value.was_sent
    assert pool.get(id).status is TaskStatus.CANCELED
    assert len(proxy.seen) == 1


def test_a_retry_by_hand_whose_answer_is_lost_is_not_repeated(pool: TaskPool, proxy: HttpProxy, behind: Client) -> None:
    id = pool.add_task("echo", {"message": 1}, delay_s=3600).id
    pool.remove_task(id)
    proxy.cut("POST")

    with pytest.raises(ApiUnavailable):
        behind.retry_task(id)

    assert len(proxy.seen) == 1


def test_a_stop_whose_answer_is_lost_is_repeated(pool: TaskPool, proxy: HttpProxy, behind: Client) -> None:
    running, waiting = running_task(pool), pool.add_task("echo", {"message": 1}, delay_s=3600)
    proxy.cut("POST")

    stopping = behind.kill_task(running.id, grace_s=60)
    proxy.cut("POST")
    canceled = behind.kill_task(waiting.id)

    assert (stopping.status, canceled.status) == ("stopping", "canceled")


def test_reading_is_repeated(pool: TaskPool, proxy: HttpProxy, behind: Client) -> None:
    id = pool.add_task("echo", {"message": 1}, delay_s=3600).id
    proxy.cut("GET", 2)

    assert behind.get(id) == pool.get(id)


@pytest.mark.parametrize("kind", KINDS)
def test_an_api_that_is_not_there_is_reported_with_its_address(kind: str) -> None:
    with (
        client_of(kind, "http://127.0.0.1:1", retries=1) as client,
        pytest.raises(ApiUnavailable, match=r"http://127\.0\.0\.1:1 can't be reached") as raised,
    ):
        client.add_task("echo")

    assert not raised.value.was_sent


@pytest.mark.parametrize("kind", KINDS)
def test_silence_is_no_answer(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with client_of(kind, url, timeout_s=1, retries=1) as client, pytest.raises(ApiUnavailable) as raised:
            client.get("t1")

    assert raised.value.was_sent


def test_redis_away_raises_redis_unavailable(tmp_path: Path, redis_binary: str | None) -> None:
    redis = RedisServer(tmp_path, binary=redis_binary)
    redis.start()
    api = Api(redis.url, tmp_path / "api.log")
    try:
        api.start()
        redis.stop()

        with Client(api.url, retries=0) as client, pytest.raises(RedisUnavailable) as raised:
            client.get("t1")

        assert raised.value.retry_after_s >= 1
    finally:
        api.end()
        redis.stop()


def test_threads_share_a_client(api: Api) -> None:
    ids: list[str] = []
    with Client(api.url) as client:
        threads = [
            threading.Thread(target=lambda: ids.append(client.add_task("echo", {"message": 1}, delay_s=60).id))
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(set(ids)) == 16
