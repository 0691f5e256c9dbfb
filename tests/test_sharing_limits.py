"""What could stop a shared pool or client at a bad moment: a lock, an import, a `close`, a way to another process."""

from __future__ import annotations

import asyncio
import copy
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from taskpool import AsyncClient, AsyncTaskPool, Client, RedisUnavailable, Registry, TaskNotFound, TaskPool, WaitTimeout
from taskpool.redis import async_connection
from tests.support import run_program

LATER_S = 60
NOT_FOUND = b'{"type": "urn:taskpool:problem:task-not-found", "title": "No such task", "status": 404, "detail": "gone"}'


class _Api(ThreadingHTTPServer):
    """Answers every request with "no such task", as soon as it may."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.came, self.may_answer = threading.Semaphore(0), threading.Event()
        self.may_answer.set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Api

    def do_GET(self) -> None:
        self.server.came.release()
        assert self.server.may_answer.wait(LATER_S)
        self.send_response(404)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(NOT_FOUND)))
        self.end_headers()
        self.wfile.write(NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def api() -> Iterator[_Api]:
    with _Api() as api:
        serving = threading.Thread(target=api.serve_forever, args=[0.01])
        serving.start()
        yield api
        api.shutdown()
        serving.join()


def test_closing_a_client_cuts_no_call_of_another_thread(api: _Api) -> None:
    """A socket that is closed under a call doesn't wake it: the call would wait until its time is over."""
    api.may_answer.clear()
    with Client(api.url, retries=0, timeout_s=LATER_S) as client, ThreadPoolExecutor(4) as executor:
        calls = [executor.submit(client.get, "a" * 20) for _ in range(4)]
        for _ in calls:
            assert api.came.acquire(timeout=LATER_S)

        client.close()
        api.may_answer.set()

        assert {type(call.exception(LATER_S)) for call in calls} == {TaskNotFound}
        assert not api.came.acquire(blocking=False)  # none was sent twice


def test_a_signal_handler_may_use_the_client_that_it_interrupts(api: _Api) -> None:
    heard: list[str] = []

    def ask(*_: object) -> None:
        with pytest.raises(TaskNotFound) as raised:
            client.get("a" * 20)
        heard.append(raised.value.id)

    before = signal.signal(signal.SIGALRM, ask)
    try:
        with Client(api.url, retries=0) as client:
            for _ in range(30):
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                ask()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert len(heard) > 30
    assert set(heard) == {"a" * 20}


@pytest.mark.parametrize("new", ['Client("https://127.0.0.1:1", retries=0)', 'TaskPool("redis://127.0.0.1:1")'])
def test_a_child_of_a_fork_while_another_thread_makes_its_first_request_does_not_wait_for_it(new: str) -> None:
    """Another thread may be importing something then, or be loading certificates: their locks are never free again."""
    source = f"""
        import os, signal, threading, time
        from taskpool import ApiUnavailable, Client, RedisUnavailable, TaskPool

        def ask(client):
            try:
                client.get("a" * 20)
            except (ApiUnavailable, RedisUnavailable):
                return

        for turn in range(12):
            client = {new}
            other = threading.Thread(target=ask, args=[client])
            other.start()
            time.sleep(turn / 1000)
            child = os.fork()
            if not child:
                signal.alarm(20)
                ask(client)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, turn
            other.join()
        print("right")
    """

    assert run_program(source) == "right\n"


@pytest.mark.parametrize("hand_over", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", [TaskPool, AsyncTaskPool, Client, AsyncClient])
def test_what_holds_connections_is_not_handed_to_another_process(
    kind: Callable[[str], object], hand_over: Callable[[object], object]
) -> None:
    held = kind("redis://127.0.0.1:1" if "Pool" in kind.__name__ else "http://127.0.0.1:1")

    with pytest.raises(TypeError, match=rf"a {kind.__name__} can't be pickled or copied.*in each process"):
        hand_over(held)


def test_a_pool_given_to_a_spawned_process_is_refused_with_the_way_out() -> None:
    source = """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from taskpool import TaskPool

        pool = TaskPool("redis://127.0.0.1:1")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
            print(executor.submit(print, pool).exception())
    """

    assert run_program(source).startswith("a TaskPool can't be pickled or copied, because it holds connections")


# --- coroutines that need the same connection ------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_while_it_connects_disturbs_no_other(redis_url: str) -> None:
    async with AsyncTaskPool(redis_url, registry=Registry(builtins=True)) as pool:
        task = await pool.add_task("echo", {"message": 1}, delay_s=3600)
        for turns in range(12):
            pool.subscriptions.close()
            first = asyncio.create_task(pool.wait(task.id))
            for _ in range(turns):
                await asyncio.sleep(0)
            others = [asyncio.create_task(pool.wait(task.id, timeout_s=0.01)) for _ in range(3)]
            await asyncio.sleep(0)

            first.cancel()

            ended = await asyncio.gather(first, *others, return_exceptions=True)
            assert [type(each) for each in ended] == [asyncio.CancelledError, *[WaitTimeout] * 3]


@pytest.mark.anyio
async def test_calls_that_need_a_connection_share_one_attempt_to_open_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """If each made its own, one after the other, the last of many would hear of a silent Redis after minutes."""
    monkeypatch.setattr(async_connection, "CONNECT_TIMEOUT_S", 0.2)
    came = 0

    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        await reader.read()
        writer.close()

    async with await asyncio.start_server(stay_silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with AsyncTaskPool(f"redis://127.0.0.1:{port}") as pool:
            calls = [pool.get("a" * 20) for _ in range(20)]
            ended = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(each) for each in ended} == {RedisUnavailable}
    assert came == 2  # a read is tried twice
