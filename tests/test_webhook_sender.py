"""Sending a webhook: only to the address that was checked, and within its time whatever the receiver does."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from taskpool import url_guard
from taskpool.url_guard import Address, Allowed, NotSent, Resolver
from tests.receiver import Receiver, receiver
from tests.support import PATIENCE_S
from tests.tls import certificate
from workers import webhook_dispatcher
from workers.webhook_dispatcher import Answer, Sender

LOOPBACK = Allowed(["127.0.0.0/8"])


@pytest.fixture(scope="module")
def server() -> Iterator[Receiver]:
    with receiver() as state:
        yield state


@pytest.fixture(autouse=True)
def forget(server: Receiver) -> None:
    server.requests.clear()
    server.answers.clear()


class Names:
    """A name server whose answers differ from one question to the next."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        return [ip_address(address) for address in self._answers.pop(0)]


async def send(url: str, allowed: Allowed = LOOPBACK, names: Names | None = None, answer_s: float = 10) -> Answer:
    sender = Sender(allowed, resolve=names.resolve if names else None, answer_s=answer_s)
    return await sender.send(url, {"webhook-id": "msg_1"}, b"{}")


async def test_a_message_arrives_as_it_was_sent(server: Receiver) -> None:
    assert await send(server.url("/in?a=b%20c")) == Answer(200)

    (received,) = server.requests
    assert (received.path, received.body, received.id) == ("/in?a=b%20c", b"{}", "msg_1")
    assert received.headers["host"] == f"127.0.0.1:{server.port}"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["content-length"] == "2"


async def test_the_address_that_was_checked_is_the_one_it_goes_to(server: Receiver) -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])

    assert await send(server.url(host="hooks.example"), names=names) == Answer(200)

    assert names.asked == ["hooks.example"]
    assert server.requests[0].headers["host"] == f"hooks.example:{server.port}"


@pytest.mark.parametrize(
    "answers", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["64:ff9b::7f00:1"], ["169.254.169.254"]]
)
async def test_a_name_of_a_private_address_is_not_followed(server: Receiver, answers: list[str]) -> None:
    with pytest.raises(NotSent, match="not allowed: its host resolves to an address that isn't public"):
        await send(server.url(host="hooks.example"), Allowed(), Names(answers))

    assert server.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "localhost"])
async def test_nothing_is_sent_to_a_private_address(server: Receiver, host: str) -> None:
    with pytest.raises(NotSent, match="not allowed"):
        await send(server.url(host=host), Allowed())

    assert server.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_a_metadata_address_is_an_answer_and_no_more(server: Receiver, status: int) -> None:
    server.answers.append((status, {"location": f"http://127.0.0.1:{server.port}/latest/meta-data/"}))

    assert await send(server.url()) == Answer(status)

    assert [each.path for each in server.requests] == ["/in"]


async def test_no_proxy_is_taken_from_the_environment(server: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert await send(server.url()) == Answer(200)


@pytest.mark.parametrize("path", ["/hang", "/trickle-head"])
async def test_a_receiver_that_hangs_or_trickles_times_out(server: Receiver, path: str) -> None:
    with pytest.raises(NotSent, match=r"no answer within 0\.3 s"):
        await send(server.url(path), answer_s=0.3)


@pytest.mark.parametrize("path", ["/trickle-body", "/endless"])
async def test_only_the_status_decides_when_the_body_hangs_or_never_ends(server: Receiver, path: str) -> None:
    assert await send(server.url(path)) == Answer(200)


async def test_a_reply_that_is_not_http_is_no_answer(server: Receiver) -> None:
    with pytest.raises(NotSent, match="no answer: the connection was closed"):
        await send(server.url("/nonsense"))


async def test_the_next_address_has_its_chance_when_one_takes_no_connection(server: Receiver) -> None:
    names = Names(["127.9.9.9", "127.0.0.1"])

    assert await send(server.url(host="hooks.example"), names=names) == Answer(200)


async def test_a_network_error_shows_no_address() -> None:
    with pytest.raises(NotSent, match=r"^can't connect: connection refused$"):
        await send("http://hooks.example:1/", Allowed(["hooks.example"]), Names(["127.0.0.1"]))


@pytest.mark.parametrize(
    ("scheme", "answer", "says"),
    [
        ("http", b"", "no answer: the connection was closed"),
        ("http", b"SSH-2.0-x\r\n\r\n", "no answer: what it sent isn't HTTP"),
        ("http", None, "no answer: connection reset by peer"),
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "can't connect: TLS error: wrong version number"),
        ("https", None, "can't connect: connection reset by peer"),
    ],
)
async def test_the_error_says_what_went_wrong(scheme: str, answer: bytes | None, says: str) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            if answer is None:  # a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):  # the sender has left
                while connection.recv(65536):  # closed with anything unread, it would be a reset
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(NotSent) as failed:
            await send(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/")
        serving.join()

    assert str(failed.value) == says


async def test_a_connection_that_is_not_accepted_in_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_dispatcher, "CONNECT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        for _ in range(3):  # its queue is full: who comes next waits
            stack.enter_context(other := socket.socket()).setblocking(False)
            other.connect_ex(full.getsockname())

        with pytest.raises(NotSent, match=r"^can't connect: timed out$"):
            await send(f"http://127.0.0.1:{full.getsockname()[1]}/")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120.0), ("0", 0.0), ("99999999999999", 999999999.0), ("soon", None), ("-5", None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)  # fmt: skip
async def test_retry_after_is_read_as_seconds_or_a_date(server: Receiver, header: str, seconds: float | None) -> None:
    server.answers.append((503, {"retry-after": header}))

    assert await send(server.url()) == Answer(503, seconds)


async def test_a_certificate_is_checked_for_the_host_and_not_for_its_address(tmp_path: Path) -> None:
    its_own = certificate(tmp_path, "DNS:hooks.example")
    at_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    at_server.load_cert_chain(its_own)
    trusted = ssl.create_default_context(cafile=its_own)
    asked_for: list[str | None] = []
    at_server.sni_callback = lambda _, name, __: asked_for.append(name)

    with receiver(at_server) as server:
        names = Names(["127.0.0.1"], ["127.0.0.1"], ["127.0.0.1"])
        sender = Sender(LOOPBACK, resolve=names.resolve, tls=trusted)
        answer = await sender.send(f"https://hooks.example:{server.port}/in", {}, b"{}")
        with pytest.raises(NotSent, match=r"the certificate isn't valid: Hostname mismatch"):
            await sender.send(f"https://other.example:{server.port}/in", {}, b"{}")
        with pytest.raises(NotSent, match="the certificate isn't valid"):
            await Sender(LOOPBACK, resolve=names.resolve).send(f"https://hooks.example:{server.port}/in", {}, b"{}")

        assert answer == Answer(200)
        assert asked_for == ["hooks.example", "other.example", "hooks.example"]
        assert [each.headers["host"] for each in server.requests] == [f"hooks.example:{server.port}"]


async def test_a_receiver_that_accepts_connections_and_never_replies_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        with pytest.raises(NotSent, match=r"no answer within 0\.3 s"):
            await send(f"https://127.0.0.1:{mute.getsockname()[1]}/", answer_s=0.3)
        taken, _ = mute.accept()
        taken.settimeout(PATIENCE_S)

        with taken, taken.makefile("rb") as stream:  # a handshake was begun, and the connection is closed
            assert stream.read().startswith(b"\x16\x03")


async def test_names_are_resolved_by_the_system() -> None:
    assert ip_address("127.0.0.1") in await Resolver().resolve("localhost", 80)
    with pytest.raises(OSError, match=r"."):
        await Resolver().resolve("nothing.invalid", 80)
    with pytest.raises(NotSent, match=r"the host nothing\.invalid can't be resolved"):
        await send("http://nothing.invalid/")


async def test_a_lookup_without_a_thread_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(url_guard, "MOST_LOOKUPS", 1)
    resolver = Resolver()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(OSError, match="can't start new thread"):
            await resolver.resolve("localhost", 80)

    assert await resolver.resolve("localhost", 80)
