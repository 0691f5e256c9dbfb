"""One pool or client shared by threads, by a parent and its forked children, and by several event loops.

Everybody gets the answers to their own questions, nothing hangs, and no connection is left behind.
"""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from redis import Redis

from benchmarks.ports import free_port
from taskpool import (
    AsyncClient,
    AsyncTaskPool,
    Client,
    NoEventLoop,
    RedisUnavailable,
    Registry,
    TaskPool,
    TaskRecord,
    lifecycle,
)
from taskpool.lifecycle import ConnectionPool, ConnectionsInUse
from taskpool.redis.embedded import RedisServer
from tests.api_client import api_process, publish_types
from tests.client_kinds import Service, service
from tests.support import PATIENCE_S, eventually, run_program
from tests.tls import TlsFront, certificate

REGISTRY = Registry(builtins=True)
THREADS = 8
CALLS = 40


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service"), redis_binary) as there:
        yield there


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    with TaskPool(redis_url, registry=REGISTRY) as pool:
        yield pool


def connections(redis: Redis, *names: str) -> list[str]:
    """The ids of the connections with these names, in order."""
    return sorted(
        each["id"] for each in redis.client_list() if each["name"] in (names or ("taskpool", "taskpool-wait"))
    )


def at_once(work: Callable[[int], object], threads: int = THREADS) -> None:
    """Do the work in so many threads, which begin together."""
    begin = threading.Barrier(threads)

    def run(number: int) -> None:
        begin.wait(PATIENCE_S)
        work(number)

    with ThreadPoolExecutor(threads) as executor:
        for done in [executor.submit(run, number) for number in range(threads)]:
            done.result(120)


# --- threads -------------------------------------------------------------------------------------------------


def test_each_thread_gets_the_answers_to_its_own_calls(pool: TaskPool) -> None:
    def work(thread: int) -> None:
        for call in range(CALLS):
            mine = [thread, call]
            added = pool.add_task("echo", {"message": mine}, tags=[f"t{thread}"])
            assert pool.get(added.id).payload == added.payload == {"message": mine}
            assert {task.tags for task in pool.list_tasks(tag=f"t{thread}").items} == {(f"t{thread}",)}

    at_once(work)


def test_each_thread_waits_for_its_own_task(pool: TaskPool, redis: Redis) -> None:
    def work(thread: int) -> None:
        for call in range(10):
            added = pool.add_task("echo", {"message": [thread, call]}, queue=f"q{thread}")
            running = pool.run_task([f"q{thread}"], worker="w", attempt_id=f"{thread}-{call}")
            assert running is not None
            threading.Thread(target=pool.execute_task, args=[running]).start()
            assert pool.wait(added.id, timeout_s=PATIENCE_S).result == [thread, call]
            assert [each.result for each in pool.follow(added.id)] == [[thread, call]]

    at_once(work)

    assert len(connections(redis, "taskpool-wait")) <= THREADS


def test_each_thread_of_a_client_gets_its_own_answers(there: Service) -> None:
    with Client(there.url) as client:

        def work(thread: int) -> None:
            for call in range(10):
                task = client.add_task("echo", {"message": [thread, call]})
                assert client.wait(task.id, timeout_s=PATIENCE_S).result == [thread, call]
                assert client.get(task.id).payload == {"message": [thread, call]}
                assert [event.id for event in client.events(task.id)][-1:] == [task.id]

        at_once(work)


def test_short_lived_threads_leave_no_connections_behind(pool: TaskPool, redis: Redis) -> None:
    for _ in range(50):
        at_once(lambda number: pool.add_task("echo", {"message": number}), threads=4)

    assert len(connections(redis)) <= 4
    assert pool.list_tasks(limit=500).items.__len__() == 200


def test_more_threads_than_connections_take_turns(redis: Redis, redis_url: str) -> None:
    with TaskPool(redis_url, registry=REGISTRY, max_connections=2) as pool:

        def work(thread: int) -> None:
            for call in range(CALLS):
                added = pool.add_task("echo", {"message": [thread, call]})
                assert pool.get(added.id).payload == {"message": [thread, call]}

        at_once(work)

        assert len(connections(redis)) <= 2


def test_a_thread_that_gets_no_connection_in_time_gets_an_error_with_advice(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "WAIT_S", 0.05)
    with TaskPool(redis_url, registry=REGISTRY, max_connections=1) as pool:
        task = pool.add_task("echo", {"message": 1})
        following: Any = pool.follow(task.id)
        next(following)

        with pytest.raises(ConnectionsInUse, match=r"all 1 connections to Redis are in use.*max_connections"):
            pool.wait(task.id, timeout_s=1)
        following.close()

        assert next(pool.follow(task.id)).id == task.id


def test_a_closed_pool_opens_new_connections_and_closes_those_in_use_when_they_come_back(
    pool: TaskPool, redis: Redis
) -> None:
    task = pool.add_task("echo", {"message": 1})
    following: Any = pool.follow(task.id)
    next(following)

    pool.close()
    assert len(connections(redis, "taskpool")) == 0
    assert pool.get(task.id).id == task.id
    following.close()

    eventually(lambda: len(connections(redis, "taskpool-wait")) == 0)
    assert len(connections(redis, "taskpool")) == 1


def test_a_second_try_after_a_lost_connection_meets_no_other_lost_one(pool: TaskPool, redis: Redis) -> None:
    task = pool.add_task("echo", {"message": 1})
    at_once(lambda number: [pool.get(task.id) for _ in range(20)])

    for id in connections(redis):
        redis.client_kill_filter(_id=id)

    assert pool.get(task.id).id == task.id


# --- interruptions -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # sockets interrupted while they are made
def test_an_interrupt_in_the_middle_of_a_call_gives_no_other_call_its_answer(pool: TaskPool, redis: Redis) -> None:
    ids = [pool.add_task("echo", {"message": number}).id for number in range(20)]
    chance = random.Random(1)
    interrupts = 0

    def interrupt(*_: Any) -> None:
        nonlocal interrupts
        interrupts += 1
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for interrupted in range(1, 101):
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.003))
                while interrupts < interrupted:
                    id = chance.choice(ids)
                    assert pool.get(id).id == id
                    assert next(pool.follow(id)).id == id
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert [pool.get(id).id for id in ids] == ids
    assert len(connections(redis)) <= 10


def test_an_interrupt_while_a_command_with_numbers_is_encoded_ends_no_process() -> None:
    source = """
        import signal
        from taskpool.redis.connection import pack

        def interrupt(*_):
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, interrupt)
        command = ("ZADD", "key", *range(100_000))
        interrupts = 0
        while interrupts < 50:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                while True:
                    pack([command])
            except KeyboardInterrupt:
                interrupts += 1
        print("alive")
        """

    assert run_program(source) == "alive\n"


def test_a_signal_handler_may_use_the_pool_that_it_interrupts(pool: TaskPool) -> None:
    ids = [pool.add_task("echo", {"message": number}).id for number in range(20)]
    seen: list[str] = []

    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(pool.get(ids[0]).id))
    try:
        while len(seen) < 50:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            assert [pool.get(id).id for id in ids] == ids
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert set(seen) == {ids[0]}


@pytest.mark.anyio
async def test_a_cancelled_call_gives_no_other_call_its_answer(redis_url: str) -> None:
    chance = random.Random(1)
    async with AsyncTaskPool(redis_url, registry=REGISTRY) as pool:
        ids = [(await pool.add_task("echo", {"message": number})).id for number in range(20)]

        async def ask(id: str) -> None:
            while True:
                assert (await pool.get(id)).id == id
                assert [each async for each in first(pool.follow(id))] == [id]

        for _ in range(40):
            asking = [asyncio.create_task(ask(chance.choice(ids))) for _ in range(5)]
            for _ in range(chance.randrange(20)):
                await asyncio.sleep(0)
            for each in asking:
                each.cancel()
            ended = await asyncio.gather(*asking, return_exceptions=True)
            assert {type(each) for each in ended} == {asyncio.CancelledError}

        assert [(await pool.get(id)).id for id in ids] == ids


async def first(records: Any) -> Any:
    """The id of the first record."""
    try:
        async for record in records:
            yield record.id
            return
    finally:
        await records.aclose()


# --- forks ---------------------------------------------------------------------------------------------------

FORK = """
    import os, sys, threading, time
    from taskpool import {kind}, Registry

    def new():
        return {new}

    def check(pool, who):
        for call in range(8):
            task = pool.add_task("echo", {{"message": [who, call]}})
            assert pool.get(task.id).payload == {{"message": [who, call]}}, who
        held = pool.add_task("echo", {{"message": 1}}, delay_s=3600)
        assert next(pool.follow(held.id)).id == held.id

    pool = new()
    check(pool, "before")
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            check(pool, "beside")

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    children = []
    for number in range(5):
        child = os.fork()
        if not child:
            try:
                check(pool, number)
                inner = os.fork()
                if inner:
                    assert os.waitpid(inner, 0)[1] == 0
                else:
                    check(pool, "grandchild")
                pool.close()
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        children.append(child)
        check(pool, "parent")
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
    stop.set()
    for thread in threads:
        thread.join()
    check(pool, "after")
    print("right")
"""


def test_a_pool_made_before_a_fork_works_in_parent_and_children(redis_url: str) -> None:
    new = "TaskPool(sys.argv[1], registry=Registry(builtins=True))"

    assert run_program(FORK.format(kind="TaskPool", new=new), redis_url) == "right\n"


def test_a_client_made_before_a_fork_works_in_parent_and_children(there: Service) -> None:
    assert run_program(FORK.format(kind="Client", new="Client(sys.argv[1])"), there.url) == "right\n"


def test_a_child_leaves_the_connections_of_its_parent_alone(redis: Redis, redis_url: str) -> None:
    source = """
        import os, sys
        from taskpool import Registry, TaskPool
        from taskpool.redis.calls import Call

        pool = TaskPool(sys.argv[1], registry=Registry(builtins=True))
        task = pool.add_task("echo", {"message": 1})
        following = pool.follow(task.id)
        next(following)

        def sockets():
            names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            return {os.readlink(name) for name in names if os.path.islink(name)} - {os.readlink("/proc/self/fd/0")}

        def connection():
            return pool.store.run(Call(("CLIENT", "ID"), int))

        before = {each for each in sockets() if each.startswith("socket:")}
        assert len(before) == 2, before
        first = connection()
        child = os.fork()
        if not child:
            try:
                assert not sockets() & before
                assert connection() != first
                assert next(following).id == task.id  # this wait goes on, over a connection of the child's own
                pool.close()
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert connection() == first
        assert next(following).id == task.id
        following.close()
        print("right")
    """

    assert run_program(source, redis_url) == "right\n"


def test_a_fork_while_every_connection_is_in_use_and_a_thread_waits_for_one(redis_url: str) -> None:
    source = """
        import os, sys, threading, time
        from taskpool import Registry, TaskPool

        pool = TaskPool(sys.argv[1], registry=Registry(builtins=True), max_connections=1)
        task = pool.add_task("echo", {"message": 1})
        following = pool.follow(task.id)
        next(following)
        waiter = threading.Thread(target=lambda: next(pool.follow(task.id)))
        waiter.start()
        while not pool._listeners._waiting:
            time.sleep(0.001)
        child = os.fork()
        if not child:
            right = next(pool.follow(task.id)).id == pool.get(task.id).id == task.id
            os._exit(0 if right else 1)
        following.close()
        waiter.join()
        assert os.waitpid(child, 0)[1] == 0
        print("right")
    """

    assert run_program(source, redis_url) == "right\n"


def test_processes_of_multiprocessing_share_a_global_pool(redis_url: str) -> None:
    source = """
        import multiprocessing, sys
        from taskpool import Registry, TaskPool

        pool = TaskPool(sys.argv[1], registry=Registry(builtins=True))  # made when the module is imported, as in Celery

        def ask(number):
            task = pool.add_task("echo", {"message": number})
            return pool.get(task.id).payload["message"], task.id

        if __name__ == "__main__":
            ask(0)
            with multiprocessing.get_context("fork").Pool(4) as processes:
                answers = processes.map(ask, range(200))
            assert [number for number, _ in answers] == list(range(200))
            assert len({id for _, id in answers}) == 200
            assert ask(1)[0] == 1
            print("right")
    """

    assert run_program(source, redis_url) == "right\n"


def test_a_fork_in_a_program_with_event_loops_gives_each_process_its_own(there: Service) -> None:
    source = """
        import asyncio, os, sys
        from taskpool import AsyncClient, AsyncTaskPool

        pool, client = AsyncTaskPool(sys.argv[1]), AsyncClient(sys.argv[2])

        async def check(who):
            for each in (pool, client):
                for call in range(10):
                    task = await each.add_task("echo", {"message": [who, call]})
                    assert (await each.wait(task.id, timeout_s=30)).result == [who, call]

        async def main():
            await check("before")
            child = os.fork()
            if not child:
                status = 1
                try:
                    import threading
                    thread = threading.Thread(target=asyncio.run, args=[check("child")])
                    thread.start()
                    thread.join()
                    status = 0
                finally:
                    os._exit(status)
            await check("beside")
            assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
            await check("after")

        asyncio.run(main())
        child = os.fork()
        if not child:
            asyncio.run(check("child of a closed loop"))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print("right")
    """

    assert run_program(source, there.redis_url, there.url) == "right\n"


# --- event loops ---------------------------------------------------------------------------------------------

LOOPS = """
    import asyncio, sys, threading, time
    from taskpool import AsyncClient, AsyncTaskPool, TaskPool, WaitTimeout
    {import_loop}

    pool, client, look = AsyncTaskPool(sys.argv[1]), AsyncClient(sys.argv[2]), TaskPool(sys.argv[1])

    async def check(who):
        for each in (pool, client):
            task = await each.add_task("echo", {{"message": who}})
            assert (await each.wait(task.id, timeout_s=30)).result == who
            held = await each.add_task("echo", {{"message": who}}, delay_s=3600)
            try:
                await each.wait(held.id, timeout_s=0.05)
            except WaitTimeout as error:
                assert error.record.id == held.id
            records = each.follow(held.id)
            assert (await anext(records)).id == held.id
            await records.aclose()
        await asyncio.gather(*[pool.get(task.id) for _ in range(20)])

    {body}
    print("right")
"""

IN_TURN = """
    for number in range(5):
        asyncio.run(check(number))
"""

CLOSED = """
    async def closing(number):
        await check(number)
        await pool.close()
        await client.close()
        await check(number)

    for number in range(3):
        asyncio.run(closing(number))
"""

THREADED = """
    faults = []

    def run(number):
        try:
            for _ in range(3):
                asyncio.run(check(number))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=[number]) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults
"""

UVLOOP = """
    for number in range(3):
        uvloop.run(check(number))
        asyncio.run(check(number))
"""


@pytest.mark.parametrize(
    ("body", "import_loop"), [(IN_TURN, ""), (CLOSED, ""), (THREADED, ""), (UVLOOP, "import uvloop")],
    ids=["one after the other", "closed each time", "in several threads", "of uvloop"],
)  # fmt: skip
def test_one_pool_and_one_client_serve_several_event_loops(body: str, import_loop: str, there: Service) -> None:
    source = dedent(LOOPS).format(body=dedent(body), import_loop=import_loop)

    assert run_program(source, there.redis_url, there.url) == "right\n"


def test_a_loop_that_ends_takes_its_connections_with_it(redis: Redis, redis_url: str) -> None:
    pool = AsyncTaskPool(redis_url, registry=REGISTRY)

    async def use() -> int:
        task = await pool.add_task("echo", {"message": 1})
        await anext(pool.follow(task.id))
        return len(connections(redis))

    assert [asyncio.run(use()) for _ in range(5)] == [2] * 5
    eventually(lambda: connections(redis) == [])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's own, about its transports
def test_loops_that_are_closed_without_a_word_leave_no_connections_behind(
    redis: Redis, redis_url: str, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(gc.collect)  # here, where asyncio may complain, and not in another test
    pool = AsyncTaskPool(redis_url, registry=REGISTRY)

    def use() -> None:
        loop = asyncio.new_event_loop()
        task = loop.run_until_complete(pool.add_task("echo", {"message": 1}))
        assert loop.run_until_complete(pool.get(task.id)).id == task.id
        loop.close()

    for _ in range(5):
        use()

    assert len(connections(redis)) <= 1
    asyncio.run(pool.close())
    eventually(lambda: connections(redis) == [])


def test_a_loop_closes_its_own_connections_and_leaves_those_of_a_loop_that_runs(redis: Redis, redis_url: str) -> None:
    pool = AsyncTaskPool(redis_url, registry=REGISTRY)
    used, closed = threading.Event(), threading.Event()
    found: list[TaskRecord] = []

    async def other() -> None:
        task = await pool.add_task("echo", {"message": 1})
        used.set()
        await asyncio.to_thread(closed.wait, 30)
        found.append(await pool.get(task.id))

    async def mine() -> None:
        await pool.queues()
        await pool.close()

    thread = threading.Thread(target=asyncio.run, args=[other()])
    thread.start()
    assert used.wait(PATIENCE_S)
    before = connections(redis)
    asyncio.run(mine())

    eventually(lambda: connections(redis) == before)
    closed.set()
    thread.join(PATIENCE_S)
    assert len(found) == 1


def test_outside_of_a_loop_the_error_names_the_way_out(redis_url: str) -> None:
    for each, instead in ((AsyncTaskPool(redis_url), "TaskPool"), (AsyncClient("http://127.0.0.1:1"), "Client")):
        coroutine = each.get("a")
        with pytest.raises(NoEventLoop, match=f"{type(each).__name__} needs a running asyncio.*{instead}"):
            coroutine.send(None)


def test_under_trio_the_error_says_that_asyncio_is_needed(redis_url: str) -> None:
    import anyio
    import trio

    pool, client = AsyncTaskPool(redis_url), AsyncClient("http://127.0.0.1:1")

    def under_trio(ask: Any) -> None:
        trio.run(ask, "a")

    def under_anyio(ask: Any) -> None:
        anyio.run(ask, "a", backend="trio")

    for run in (under_trio, under_anyio):
        with pytest.raises(NoEventLoop, match="AsyncTaskPool needs asyncio, and trio runs here: use TaskPool"):
            run(pool.get)
        with pytest.raises(NoEventLoop, match="AsyncClient needs asyncio, and trio runs here: use Client"):
            run(client.get)


# --- the end of a program ------------------------------------------------------------------------------------


def test_a_program_that_closes_nothing_ends_without_a_warning(there: Service) -> None:
    source = """
        import asyncio, sys, threading
        from taskpool import AsyncClient, AsyncTaskPool, Client, TaskPool

        pools = [TaskPool(sys.argv[1]), Client(sys.argv[2])]
        for each in pools:
            task = each.add_task("echo", {"message": 1})
            each.wait(task.id, timeout_s=30)
            threading.Thread(target=each.get, args=[task.id]).start()

        async def main():
            for each in (AsyncTaskPool(sys.argv[1]), AsyncClient(sys.argv[2])):
                task = await each.add_task("echo", {"message": 1})
                await each.wait(task.id, timeout_s=30)

        asyncio.run(main())
        TaskPool(sys.argv[1]).get(pools[0].add_task("echo", {"message": 1}).id)  # collected before the program ends
        print("right")
    """

    assert run_program(source, there.redis_url, there.url) == "right\n"


def test_a_connection_that_was_not_given_back_is_replaced() -> None:
    class Opened:
        def close(self) -> None:
            pass

    opened = ConnectionPool(Opened, most=1)

    for _ in range(5):
        opened.take()  # lost with the last reference to it, as by an interrupt between two steps

    assert isinstance(opened.take(), Opened)


def test_a_connection_given_back_while_a_caller_begins_to_wait_is_handed_to_it() -> None:
    class Opened:
        def close(self) -> None:
            pass

    class GivenBackLate(ConnectionPool[Opened]):
        def _may_make(self) -> bool:
            if may_make := super()._may_make():
                return True
            self.give_back(held)  # by another thread, after the caller found no idle connection
            return may_make

    opened = GivenBackLate(Opened, most=1)
    held = opened.take()

    assert opened.take() is held


def test_redis_away_raises_in_every_thread(tmp_path: Any) -> None:
    pool = TaskPool(f"unix://{tmp_path}/nothing.sock", registry=REGISTRY)

    def work(thread: int) -> None:
        with pytest.raises(RedisUnavailable):
            pool.add_task("echo", {"message": thread})

    at_once(work)


# --- TLS -----------------------------------------------------------------------------------------------------


def test_a_child_says_no_goodbye_in_tls_on_its_parents_connections(tmp_path: Path, redis_binary: str | None) -> None:
    port, trusted = free_port(), certificate(tmp_path, "IP:127.0.0.1")
    server = RedisServer(tmp_path, binary=redis_binary, config={"port": str(port), "bind": "127.0.0.1"})
    source = """
        import asyncio, gc, os, psutil, sys, threading
        from taskpool import AsyncClient, AsyncTaskPool, Client, TaskPool

        kinds = [TaskPool(sys.argv[1]), Client(sys.argv[2])]
        async_kinds = [AsyncTaskPool(sys.argv[1]), AsyncClient(sys.argv[2])]
        loop = asyncio.new_event_loop()
        running = threading.Thread(target=loop.run_forever)
        running.start()

        async def ask():
            for each in async_kinds:
                task = await each.add_task("echo", {"message": "x"})
                assert (await each.get(task.id)).id == task.id

        def check():
            for each in kinds:
                task = each.add_task("echo", {"message": "x"})
                assert each.get(task.id).id == task.id

        def mine():
            return {each.laddr.port for each in psutil.Process().net_connections() if each.status == "ESTABLISHED"}

        check()
        asyncio.run_coroutine_threadsafe(ask(), loop).result(30)
        before = mine()
        assert len(before) == 4, before
        child = os.fork()
        if not child:
            status = 1
            try:
                gc.collect()
                assert not mine() & before
                check()
                asyncio.run(ask())
                for each in kinds:
                    each.close()
                gc.collect()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        check()
        asyncio.run_coroutine_threadsafe(ask(), loop).result(30)
        assert mine() == before

        async def close():
            for each in async_kinds:
                await each.close()

        asyncio.run_coroutine_threadsafe(close(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        running.join()
        loop.close()
        print("right")
    """

    server.start()
    fronts = [TlsFront(port, trusted)]
    try:
        publish_types(server.url)
        with api_process(server.url, tmp_path / "api.log") as (_, url):
            fronts.append(TlsFront(int(url.rpartition(":")[2]), trusted))
            redis_url = f"rediss://127.0.0.1:{fronts[0].port}?ssl_ca_certs={trusted}"
            api_url = f"https://127.0.0.1:{fronts[1].port}"
            assert run_program(source, redis_url, api_url, SSL_CERT_FILE=str(trusted)) == "right\n"
    finally:
        for front in fronts:
            front.close()
        server.stop()
