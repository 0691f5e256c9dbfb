"""Running calls: what both stores have in common, whatever Redis or the connection does."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from redis import Redis

from taskpool.errors import ConfigurationError, RedisUnavailable
from taskpool.redis import async_connection, keys, replies, scripts
from taskpool.redis.address import Address
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, Plan, one
from taskpool.redis.connection import Wire
from taskpool.redis.embedded import RedisServer
from taskpool.redis.replies import ReplyFault
from taskpool.redis.store import Store
from tests.states import World, counted, new_task

T = TypeVar("T")


class Awaited:
    """An AsyncStore that blocks, so that one test can ask both kinds of stores the same."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.store = AsyncStore(url)

    def run(self, call: Call[T]) -> T:
        return self.runner.run(self.store.run(call))

    def run_many(self, calls: list[Call[Any]]) -> list[Any]:
        return self.runner.run(self.store.run_many(calls))

    def carry_out(self, plan: Plan[T]) -> T:
        return self.runner.run(self.store.carry_out(plan))

    def close(self) -> None:
        self.runner.run(self.store.close())


Either = Store | Awaited
Open = Callable[[str], Either]


@pytest.fixture(params=["blocking", "awaiting"])
def opened(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens a store of either kind; it is closed after the test."""
    found: list[Either] = []

    def open(url: str) -> Either:
        found.append(Store(url) if request.param == "blocking" else Awaited(url))
        return found[-1]

    yield open
    for each in found:
        each.close()
        if isinstance(each, Awaited):
            each.runner.close()


@pytest.fixture
def either(opened: Open, redis_url: str) -> Either:
    """A store of either kind on an empty Redis."""
    return opened(redis_url)


def ping(text: str = "", *, again: bool = False) -> Call[str]:
    return Call(("ECHO", text), lambda reply: reply.decode(), again=again)


def increment(*, again: bool = False) -> Call[int]:
    return Call(("INCR", "n"), int, again=again)


# --- what is asked and answered ------------------------------------------------------------------------------


def test_calls_sent_together_are_carried_out_and_answered_in_order(either: Either) -> None:
    assert either.run_many([increment(), ping("a"), increment(), ping("")]) == [1, "a", 2, ""]


def test_no_calls_have_no_values(either: Either) -> None:
    assert either.run_many([]) == []


def test_large_values_travel_whole(either: Either) -> None:
    large = "x" * 3_000_000

    assert either.run(ping(large)) == large


def test_parts_may_be_text_bytes_and_numbers(either: Either) -> None:
    either.run(Call(("RPUSH", "list", "é", b"\x00\xff", 5, 1.5), int))

    found = either.run(Call(("LRANGE", b"list", 0, -1), list))

    assert found == ["é".encode(), b"\x00\xff", b"5", b"1.5"]


def test_a_plan_gets_the_values_of_each_step(either: Either) -> None:
    def plan() -> Plan[list[Any]]:
        first = yield [increment(), increment()]
        nothing = yield []
        last = yield from one(ping("end"))
        return [first, nothing, last]

    assert either.carry_out(plan()) == [[1, 2], [], "end"]


def test_a_plan_can_handle_the_error_of_a_step(either: Either) -> None:
    def plan() -> Plan[list[Any]]:
        yield [Call(("SET", "k", "v"), str)]
        try:
            yield [Call(("LPUSH", "k", "v"), int)]
        except ReplyFault as fault:
            return [str(fault)[:27], *(yield [ping("still here")])]
        raise AssertionError

    assert either.carry_out(plan()) == ["Redis answered: WRONGTYPE O", "still here"]


def test_an_unexpected_error_is_an_internal_one(either: Either) -> None:
    with pytest.raises(ReplyFault, match="WRONGTYPE"):
        either.run_many([Call(("SET", "k", "v"), str), Call(("LPUSH", "k", "v"), int)])

    assert either.run(ping("still here")) == "still here"


def test_a_closed_store_opens_again_when_used(either: Either) -> None:
    either.run(increment())
    either.close()
    either.close()

    assert either.run(increment()) == 2


# --- scripts that Redis doesn't know (any more) --------------------------------------------------------------


def test_a_script_is_known_after_the_first_call(either: Either, redis: Redis) -> None:
    call = scripts.count({"n": 1})
    either.run(call)

    assert redis.script_exists(str(call.command[1])) == [True]


def test_a_flush_of_the_scripts_between_calls_goes_unnoticed(either: Either, redis: Redis) -> None:
    for _ in range(3):
        either.run(scripts.count({"n": 1}))
        redis.script_flush()

    assert counted(redis) == {"n": 3}


def test_each_call_counts_once_when_only_some_scripts_are_known(either: Either, redis: Redis) -> None:
    either.run(scripts.count({"n": 1}))

    values = either.run_many(
        [scripts.count({"n": 1}), scripts.due("z", limit=1), increment(), scripts.count({"n": 1}), ping("a")]
    )

    assert (values[0], values[2:]) == ("ok", [1, "ok", "a"])
    assert counted(redis) == {"n": 3}


def test_a_pipeline_of_unknown_scripts_runs_in_order(either: Either, world: World) -> None:
    world.redis.script_flush()

    added, running = either.run_many(
        [
            scripts.add([new_task("a")]),
            scripts.claim(["default"], worker="w", attempt_id="1", lease_ms=100_000, was_idle=False),
        ]
    )

    assert added.statuses == ("queued",)
    assert running.id == "a"


def test_a_script_is_named_by_its_text(world: World) -> None:
    call = scripts.count({"n": 1})

    assert call.script is not None
    assert world.redis.script_load(call.script) == call.command[1]


# --- connections that fail -----------------------------------------------------------------------------------


def kill_connections(redis: Redis) -> None:
    redis.client_kill_filter(_type="normal", skipme=True)


def test_what_may_be_repeated_is_repeated_on_a_new_connection(either: Either, redis: Redis) -> None:
    either.run(ping("a"))
    kill_connections(redis)

    assert either.run_many([ping("b", again=True), increment(again=True)]) == ["b", 1]


def test_a_call_that_may_not_be_repeated_raises_when_its_connection_is_lost(either: Either, redis: Redis) -> None:
    either.run(ping("a"))
    kill_connections(redis)

    with pytest.raises(RedisUnavailable):
        either.run_many([ping("b", again=True), increment()])

    assert either.run(increment()) == 1


def test_a_blocking_call_may_take_longer_than_a_reply(
    either: Either, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "REPLY_TIMEOUT_S", 2.0)
    monkeypatch.setattr(async_connection, "WATCH_INTERVAL_S", 0.02)
    redis.rpush(keys.DOORBELL + "default", "1")

    assert either.run(scripts.ring_wait(["default"], 2.2)) is True
    assert either.run(scripts.ring_wait(["default"], 2.2)) is False


class Stub:
    """A server on a unix socket that answers each connection as the test says, then keeps it or closes it."""

    def __init__(self, path: Path, *answers: bytes, keep: bool = False) -> None:
        self.url = f"unix://{path}"
        self.received: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._answers = answers
        self._keep = keep
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        kept = []
        for answer in self._answers:
            connection, _ = self._socket.accept()
            self.received.append(connection.recv(65536))
            connection.sendall(b"+OK\r\n")  # to CLIENT SETNAME
            self.received.append(connection.recv(65536))
            connection.sendall(answer)
            if self._keep:
                kept.append(connection)
            else:
                connection.close()
        threading.Event().wait(5 if self._keep else 0)
        for connection in kept:
            connection.close()
        self._socket.close()


@pytest.mark.parametrize("half", [b"", b"$5\r\n", b"$5\r\nhel", b"*2\r\n:1\r\n"])
def test_a_reply_that_breaks_off_makes_redis_unavailable(opened: Open, tmp_path: Path, half: bytes) -> None:
    stub = Stub(tmp_path / "s", half)

    with pytest.raises(RedisUnavailable, match=str(tmp_path / "s")):
        opened(stub.url).run(ping("hello"))


def test_a_reply_that_is_no_reply_makes_redis_unavailable(opened: Open, tmp_path: Path) -> None:
    stub = Stub(tmp_path / "s", b"HTTP/1.1 400 Bad Request\r\n", b"HTTP/1.1 400 Bad Request\r\n")

    with pytest.raises(RedisUnavailable, match=f"{tmp_path / 's'}: what answers there isn't Redis"):
        opened(stub.url).run(ping("hello"))


def test_a_message_that_is_none_makes_redis_unavailable(tmp_path: Path) -> None:
    wire = Wire(Address.parse(Stub(tmp_path / "s", b"HTTP/1.1 400 Bad Request\r\n").url), name="test")
    wire.send([("PING",)])

    with pytest.raises(RedisUnavailable, match="what answers there isn't Redis"):
        wire.next_reply(5)

    assert wire.closed


def test_a_call_is_repeated_once_and_not_for_ever(opened: Open, tmp_path: Path) -> None:
    stub = Stub(tmp_path / "s", b"", b"", b"")

    with pytest.raises(RedisUnavailable):
        opened(stub.url).run(ping("hello", again=True))

    assert len(stub.received) == 4


def test_a_server_that_does_not_answer_is_given_up(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "REPLY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(async_connection, "WATCH_INTERVAL_S", 0.02)
    stub = Stub(tmp_path / "s", b"", keep=True)

    with pytest.raises(RedisUnavailable, match="no answer in time"):
        opened(stub.url).run(ping("hello"))


def test_a_missing_server_is_reported_with_its_address(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(RedisUnavailable, match="nowhere") as failed:
        opened(f"unix://{tmp_path}/nowhere").run(ping("hello", again=True))

    assert failed.value.retry_after_s > 0


class LossyProxy:
    """Passes bytes to Redis and back, and on demand loses what Redis answers to the next command."""

    def __init__(self, path: Path, redis_path: str) -> None:
        self.url = f"unix://{path}"
        self.loses_answers = False
        self.requests: list[bytes] = []
        self._redis_path = redis_path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._redis_path)
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            while request := client.recv(1 << 20):
                self.requests.append(request)
                server.sendall(request)
                answer = server.recv(1 << 20)
                if self.loses_answers:
                    self.loses_answers = False
                    return
                client.sendall(answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def proxy(tmp_path: Path, redis_url: str) -> Iterator[LossyProxy]:
    path = Address.parse(redis_url).path
    assert path is not None
    proxy = LossyProxy(tmp_path / "proxy", path)
    yield proxy
    proxy.close()


def test_a_submission_whose_answer_was_lost_is_stored_once(opened: Open, proxy: LossyProxy, world: World) -> None:
    either = opened(proxy.url)
    either.run(scripts.add([new_task("warm-up")]))
    proxy.loses_answers = True

    added = either.run(scripts.add([new_task("a"), new_task("b")]))

    assert added.statuses == ("queued", "queued")
    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"warm-up", b"a", b"b"]
    assert world.events("a") == [(1, "queued", "queued")]


# --- a Redis that can't serve --------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, redis_binary: str | None) -> Iterator[RedisServer]:
    """A Redis of the test's own, to make unable to serve."""
    server = RedisServer(tmp_path, binary=redis_binary)
    server.start()
    yield server
    server.stop()


def writes() -> list[Call[Any]]:
    """A script that writes and a plain command that does."""
    return [scripts.add([new_task("a")]), increment()]


def test_a_redis_without_memory_left_is_unavailable(opened: Open, server: RedisServer) -> None:
    either = opened(server.url)
    with Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory", 1)

        for call in writes():
            with pytest.raises(RedisUnavailable, match="OOM"):
                either.run(call)

        admin.config_set("maxmemory", 0)
        assert either.run(scripts.add([new_task("a")])).statuses == ("queued",)


def test_a_replica_is_unavailable_for_writing(opened: Open, server: RedisServer) -> None:
    either = opened(server.url)
    with Redis.from_url(server.url) as admin:
        admin.execute_command("REPLICAOF", "127.0.0.1", "1")

    for call in writes():
        with pytest.raises(RedisUnavailable, match="READONLY"):
            either.run(call)


def test_a_redis_that_cannot_save_and_refuses_to_write_is_unavailable(
    opened: Open, tmp_path: Path, server: RedisServer
) -> None:
    either = opened(server.url)
    with Redis.from_url(server.url) as admin:
        admin.config_set("save", "1 1")
        (tmp_path / "dump.rdb").mkdir()  # can't be replaced by a file
        admin.set("k", "v")
        admin.bgsave()
        while admin.info("persistence")["rdb_bgsave_in_progress"]:
            pass

        for call in writes():
            with pytest.raises(RedisUnavailable, match="MISCONF"):
                either.run(call)

        admin.config_set("save", "")  # it would not end without saving


def test_a_wrong_password_is_reported_without_the_password(opened: Open, server: RedisServer) -> None:
    with Redis.from_url(server.url) as admin:
        admin.config_set("requirepass", "right")

    with pytest.raises(RedisUnavailable, match="refused us") as failed:
        opened(server.url.replace("unix://", "unix://:wrong-secret@")).run(ping("a"))
    with pytest.raises(RedisUnavailable, match="NOAUTH"):
        opened(server.url).run(ping("a"))

    assert "secret" not in str(failed.value)
    assert opened(server.url.replace("unix://", "unix://:right@")).run(ping("a")) == "a"


def test_a_database_other_than_the_first_can_be_named(opened: Open, redis_url: str, redis: Redis) -> None:
    opened(redis_url + "?db=3").run(increment())

    with Redis.from_url(redis_url, db=3) as third:
        assert third.get("n") == b"1"
        third.flushdb()
    assert redis.get("n") is None


def test_a_connection_carries_its_name(opened: Open, redis_url: str, redis: Redis) -> None:
    opened(redis_url).run(ping("a"))

    assert "taskpool" in {client["name"] for client in redis.client_list()}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", (None, "localhost", 6379, 0, None, None)),
        ("redis://h:7/2", (None, "h", 7, 2, None, None)),
        ("redis://u:p%40ss@h", (None, "h", 6379, 0, "u", "p@ss")),
        ("redis://:p@h", (None, "h", 6379, 0, None, "p")),
        ("unix:///a/b.sock?db=4", ("/a/b.sock", "localhost", 6379, 4, None, None)),
    ],
)
def test_an_address_is_read_from_a_url(url: str, expected: tuple[Any, ...]) -> None:
    address = Address.parse(url)

    assert (address.path, address.host, address.port, address.db, address.username, address.password) == expected
    assert address.tls is None


def test_a_secure_address_checks_certificates_unless_that_is_switched_off() -> None:
    strict, lax = Address.parse("rediss://h"), Address.parse("rediss://h?ssl_cert_reqs=none")

    assert strict.tls is not None
    assert lax.tls is not None
    assert (strict.tls.check_hostname, lax.tls.check_hostname) == (True, False)


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://h", "redis://h:port"])
def test_what_is_no_redis_url_is_a_fault_of_the_configuration(opened: Open, url: str) -> None:
    with pytest.raises(ConfigurationError):
        opened(url)


# --- one of them at a time -----------------------------------------------------------------------------------


def test_an_interrupted_exchange_leaves_no_reply_for_the_next(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupt(BaseException):
        pass

    store = Store(redis_url)
    store.run(ping("a"))
    wire: Any = store._transport

    def interrupted(connection: socket.socket, timeout_s: float) -> Any:
        raise Interrupt

    monkeypatch.setattr(wire, "_read", interrupted)
    with pytest.raises(Interrupt):
        store.run(ping("of the interrupted"))
    monkeypatch.undo()

    assert store.run(ping("of the next")) == "of the next"
    store.close()


async def test_what_is_sent_in_one_turn_of_the_loop_leaves_in_one_write(proxy: LossyProxy) -> None:
    store = AsyncStore(proxy.url)
    await store.run(ping("warm-up"))
    before = len(proxy.requests)

    values = await asyncio.gather(*[store.run(ping(str(n))) for n in range(50)])

    assert values == [str(n) for n in range(50)]
    assert [request.count(b"ECHO") for request in proxy.requests[before:]] == [50]
    await store.close()


async def test_a_cancelled_caller_does_not_shift_the_replies_of_others(redis_url: str) -> None:
    store = AsyncStore(redis_url)
    await store.run(ping("a"))
    first = asyncio.create_task(store.run(ping("first")))
    second = asyncio.create_task(store.run(ping("second")))
    await asyncio.sleep(0)

    first.cancel()

    assert await second == "second"
    assert await store.run(ping("third")) == "third"
    assert first.cancelled()
    await store.close()


async def test_all_waiting_calls_fail_when_the_connection_is_lost(redis_url: str, redis: Redis) -> None:
    store = AsyncStore(redis_url)
    await store.run(ping("a"))
    waiting = [asyncio.create_task(store.run(scripts.ring_wait(["default"], 5))) for _ in range(3)]
    await asyncio.sleep(0)
    while not any(client["cmd"] == "blpop" for client in redis.client_list()):
        await asyncio.sleep(0)

    kill_connections(redis)

    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [RedisUnavailable] * 3
    assert await store.run(ping("back")) == "back"
    await store.close()


async def test_closing_ends_all_waiting_calls(redis_url: str) -> None:
    store = AsyncStore(redis_url)
    await store.run(ping("a"))
    waiting = asyncio.create_task(store.run(scripts.ring_wait(["default"], 5)))
    await asyncio.sleep(0)

    await store.close()

    with pytest.raises(RedisUnavailable):
        await waiting


async def test_many_first_callers_share_one_connection(redis_url: str, redis: Redis) -> None:
    store = AsyncStore(redis_url, name="counted")

    await asyncio.gather(*[store.run(ping(str(n))) for n in range(20)])

    assert [client["name"] for client in redis.client_list()].count("counted") == 1
    await store.close()
