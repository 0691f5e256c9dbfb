"""What a connection may cost: how many there are, how many bytes each may hold, and how long each of its states lasts.

uvicorn bounds little of this. A request pays for a few comparisons: once a second a sweep looks at all connections and
cuts those that have been in one state for too long. docs/api.md lists every bound ("Limits of a connection").

An answer may be given before the request has arrived: 401, 413, 429 and so on. If the connection were closed then, the
kernel would answer what the client still sends with a reset, and the client would lose the answer. So the rest is read
and dropped, within the same bounds in bytes and time as any body.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import resource
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Literal

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from taskpool.errors import ConfigurationError

from .auth.rate_limit import network
from .http.body import BODY_TIMEOUT_S
from .http.problems import Problem, retry_after
from .routing import BROWSER_HEADERS, CYCLE, header_lines

logger = logging.getLogger("api")

MOST_HEAD_BYTES: Final = 64 * 1024
"""Of a request line and its headers together; the trailers of a chunked body have the same bound for themselves. A
little more may arrive in one piece with the last of them."""
MOST_HEADERS: Final = 128
"""The WebSocket library takes no more either."""
MOST_PIPELINED: Final = 100
"""Requests of one connection that wait for the answers to those before them."""
DROPPED_BYTES: Final = 16 * 1024 * 1024
"""How much more than the largest allowed body is read, so that a client that sends too much sees the answer."""
MOST_UNREAD_BYTES: Final = 128 * 1024 * 1024
"""Of all answers together that clients don't read."""
MOST_REFUSED: Final = 32
"""Connections beyond the limit that get an answer (503) at the same time; further ones are only closed."""
NO_LINGER: Final = struct.pack("ii", 1, 0)
LOG_AGAIN_S: Final = 60.0
FILES_ASIDE: Final = 64
"""File descriptors that connections leave to the rest of the process."""
HALF_CLOSED_S: Final = 2.0
"""How long a client that has closed its own side waits for its answer at most. One that has left looks the same."""
END_BODY_S: Final = 2.0
"""How long bodies may still take to arrive when the server ends."""
_AUTHORITY: Final = re.compile(rb"[^:/?#]*://([^/?#]*)")
_LENIENT: Final = {"lenient_data_after_close": True}  # as uvicorn has it


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be, of one address too; the seconds that a head gets (and what comes after an
    answer), an answer that isn't read, and an idle connection; and the bytes of a body, with those that are dropped."""

    most: int = 10_000
    most_per_address: int = 5_000
    head_s: float = 10.0
    write_s: float = 30.0
    idle_s: float = 75.0
    body_bytes: int = 256 * 1024 + DROPPED_BYTES


class Connections:
    """The open connections of this process."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._most = min(limits.most, _files() - FILES_ASIDE)
        self._open: dict[LimitedProtocol, str] = {}
        self._refused: set[LimitedProtocol] = set()
        self._by_address: Counter[str] = Counter()
        self._logged_mono: float | None = None

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: LimitedProtocol) -> str | None:
        """Count a new connection; or why there is no room for it."""
        address = network(connection.client[0]) if connection.client else ""
        if len(self._open) >= self._most:
            self._log_full()
            return f"this server has {self._most:,} connections open, and takes no more"
        if self._by_address[address] >= self.limits.most_per_address:
            return f"your address has {self.limits.most_per_address:,} connections open, and gets no more"
        self._open[connection] = address
        self._by_address[address] += 1
        return None

    def keeps_refused(self, connection: LimitedProtocol) -> bool:
        """Whether a connection that isn't admitted may stay until its client has read why."""
        if len(self._refused) >= MOST_REFUSED:
            return False
        self._refused.add(connection)
        return True

    def _log_full(self) -> None:
        now_mono = time.monotonic()
        if self._logged_mono is None or now_mono - self._logged_mono >= LOG_AGAIN_S:
            self._logged_mono = now_mono
            what = (
                "TASKPOOL_MAX_CONNECTIONS" if self._most == self.limits.most else "the limit of open files (ulimit -n)"
            )
            logger.warning("all %d connections are in use; new ones are refused. Raise %s", self._most, what)

    def forget(self, connection: LimitedProtocol) -> None:
        """It has ended."""
        self._refused.discard(connection)
        address = self._open.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def sweep(self) -> None:
        """Cut every connection that is overdue, and the greediest of those that don't read their answers. Called about
        once a second."""
        now_mono = time.monotonic()
        unread = []
        for connection in [*self._open, *self._refused]:
            connection.look(now_mono)
            if size := connection.unread_bytes():
                unread.append((size, connection))
        excess = sum(size for size, _ in unread) - MOST_UNREAD_BYTES
        for size, connection in sorted(unread, key=itemgetter(0), reverse=True):
            if excess <= 0:
                break
            connection.cut()
            excess -= size


class Transport:
    """A connection's transport. If the client may still be sending when it is closed, only our side is closed at
    first, and what comes is dropped until the client has closed its own or a bound is reached."""

    def __init__(self, inner: asyncio.Transport, owner: LimitedProtocol) -> None:
        self._inner = inner
        self._owner: LimitedProtocol | None = owner
        self.write = inner.write  # asked for by each request
        self.get_write_buffer_size = inner.get_write_buffer_size
        self.is_lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def is_closing(self) -> bool:
        """Whether nothing more is written."""
        return self.is_lingering or self._inner.is_closing()

    def close(self) -> None:
        """Close it once everything has been written, and the client has had the time to read it."""
        owner = self._owner
        if owner is None or self.is_closing():
            return
        if not owner.is_receiving():
            self._inner.close()
            return
        self.is_lingering = True
        owner.flow.resume_reading()
        try:
            self._inner.write_eof()
        except OSError:  # the client has left
            self._inner.abort()

    def close_now(self) -> None:
        """Close it, whatever the client still sends."""
        self._inner.close()

    def lost(self) -> None:
        """The connection has ended, perhaps as a WebSocket. Nothing that refers to it in a circle outlives it."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.forget()


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's connection, which is also counted, watched, bounded and cut."""

    cycle: RequestResponseCycle | None  # type: ignore[assignment]
    transport: Transport  # type: ignore[assignment]

    def __init__(self, *arguments: Any, among: Connections, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._among, self._limits = among, among.limits
        self._receives: Literal["", "head", "body"] = ""
        self._upgrades = self._is_socket = False
        self._hosts = self._trailer_bytes = self._body_bytes = 0
        # Bytes that neither completed a head nor belonged to a body, and those that came with the last that did.
        self._unfinished_bytes = self._before_bytes = 0
        self._progresses = False
        self._is_deaf = self._ends = self._has_client_ended = False
        self._answered: RequestResponseCycle | None = None
        self._pauses = 0
        self._seen_in = ""
        self._seen_cycle: RequestResponseCycle | None = None
        self._seen_out: tuple[Any, ...] = ()
        self._seen_in_mono = self._seen_out_mono = 0.0

    # What comes in

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or answer 503 if there is no room."""
        wrapped: Any = Transport(transport, self)
        super().connection_made(wrapped)
        if full := self._among.admit(self):
            self._receives = "head"  # it will: it is dropped
            self._write(Problem("too-many-connections", full, headers=[retry_after(1)]))
            if not self._among.keeps_refused(self):
                self.transport.close_now()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it. The request that is being answered may be an older one than `cycle`, and others wait behind it."""
        self.transport.lost()
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
            self._answered = None
        self.pipeline.clear()
        super().connection_lost(exc)

    def forget(self) -> None:
        """It no longer counts, and is no longer needed."""
        self._among.forget(self)
        self.parser = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Parse it. What neither completes a head nor belongs to a body is counted."""
        if self._is_deaf or self.transport.is_closing():
            self._drop(len(data))
            return
        self._progresses = False
        self._unfinished_bytes += len(data)
        rest: bytes = data
        while rest and not self._is_deaf:
            try:
                self.parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as upgrade:
                rest = self._upgrade(rest[upgrade.args[0] :])
            except httptools.HttpParserError:
                self._refuse(Problem("invalid-http", "this isn't a request of HTTP/1.1"))
                return
        if self._progresses:
            self._unfinished_bytes, self._before_bytes = 0, len(data)
        if self._unfinished_bytes > MOST_HEAD_BYTES or self._trailer_bytes > MOST_HEAD_BYTES:
            self._refuse_unfinished()
        elif self._receives == "body":
            self._drop(len(data))

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. If it has asked for something, it may still wait for the answer."""
        if self._receives or self._is_socket or self.transport.is_closing() or not self._is_answering():
            return False
        self._has_client_ended = True
        self._end_after_answers()
        self.loop.call_later(HALF_CLOSED_S, self.transport.close_now)
        return True

    def is_receiving(self) -> bool:
        """Whether the client may be in the middle of something, and there is time to let it come to its end."""
        return bool(self._receives or self._is_deaf) and not (self._ends or self._has_client_ended)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._receives = "head"
        self._upgrades = False
        self._hosts = self._trailer_bytes = self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. What comes behind the body is none: trailers are counted and dropped."""
        if self._receives == "body":
            self._trailer_bytes += len(name) + len(value) + 4
            if self._trailer_bytes > MOST_HEAD_BYTES:
                self._is_deaf = True
            return
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin to serve the request, or put it behind those that aren't answered yet."""
        self._progresses = True
        if self._is_deaf:
            return
        fault = self._find_fault()
        if fault is not None:
            self._refuse(fault)
        elif self.parser.should_upgrade():
            self.scope["method"] = self.parser.get_method().decode("ascii")
            self._upgrades = True
        elif len(self.pipeline) >= MOST_PIPELINED:
            self._end_after_answers()
        else:
            super().on_headers_complete()
            self._receives = "body"
            if self.expect_100_continue and self.cycle is not None:
                # Answered without being asked for, the body may come or not: what comes next can't be told from it.
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body for the handler; without one it is dropped."""
        self._progresses = True
        cycle = self.cycle
        if cycle is not None and not (self._is_deaf or self._upgrades or cycle.response_complete):
            # As uvicorn does it, without what it asks the parser.
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """All of the request is here."""
        if self._is_deaf:  # of its trailers, perhaps
            return
        self._receives, self._progresses = "", True
        cycle = self.cycle
        if cycle is not None and not (self._upgrades or cycle.response_complete):
            # As uvicorn does it, without what it asks the parser.
            cycle.more_body = False
            cycle.message_event.set()

    def _find_fault(self) -> Problem | None:
        if self._unfinished_bytes + self._before_bytes > MOST_HEAD_BYTES:  # so that its size must be looked at
            size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
            if size > MOST_HEAD_BYTES:
                return _head_too_large()
        if len(self.headers) > MOST_HEADERS:
            return Problem("headers-too-large", f"a request may have {MOST_HEADERS} headers")
        if self._hosts != 1 and (self._hosts or self.parser.get_http_version() != "1.0"):
            detail = f"a request must have one Host header; this one has {self._hosts}"
            return Problem("invalid-header", detail)
        if self.url[:1] != b"/" and self.parser.get_method() != b"CONNECT" and not self._is_target_of_host():
            return Problem("invalid-header", "Host must be the authority of the request's target")
        return None

    def _is_target_of_host(self) -> bool:
        """Whether a target that isn't a path agrees with Host. Where it doesn't, readers disagree who is asked."""
        authority = _AUTHORITY.match(self.url)
        host = dict(self.headers).get(b"host")
        return host is None or authority is None or authority[1].lower() == host.lower()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        scope: Any = cycle.scope
        scope[CYCLE] = cycle
        super()._start_asgi_task(cycle, app)

    # Upgrades

    def _upgrade(self, rest: bytes) -> bytes:
        """Become a WebSocket. Any other upgrade is ignored, as RFC 9110 allows, also one to a WebSocket by a request
        that can't be its handshake: what is to be parsed then, since the parser hasn't looked at the body."""
        if self._is_deaf:
            return b""
        if not self._upgrades:  # its trailers spoke of one
            return rest
        if self.scope["method"] == "CONNECT":
            self._refuse(Problem("invalid-http", "CONNECT isn't possible: this is no proxy"))
        elif not self._is_handshake():
            return self._without_upgrade() + rest
        elif self._is_answering():
            self._end_after_answers()
        else:
            self.handle_websocket_upgrade()
            protocol: Any = self.transport.get_protocol()
            self._is_socket = protocol.handshake_initiated
            if not self._is_socket:
                self.transport.set_protocol(self)
                self.connections.discard(protocol)
                self.connections.add(self)
                detail = "this can't be the handshake of a WebSocket; no line of it may have more than 8,192 bytes"
                self._refuse(Problem("invalid-http", detail))
        return b""

    def _is_handshake(self) -> bool:
        headers = dict(self.headers)
        return (
            self.scope["method"] == "GET"
            and self.parser.get_http_version() == "1.1"
            and headers[b"upgrade"].lower() == b"websocket"
            and headers.get(b"content-length", b"0") == b"0"
            and b"transfer-encoding" not in headers
        )

    def _without_upgrade(self) -> bytes:
        """The head once more, and a parser that takes it for a usual request."""
        line = b"%b %b HTTP/%b" % (self.scope["method"].encode(), self.url, self.parser.get_http_version().encode())
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(**_LENIENT)
        headers = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([line, *headers, b"", b""])

    # What goes out

    def on_response_complete(self) -> None:
        """Go on with the next request, if it is here; read on only if it isn't."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            if self.cycle is not None and self.cycle.body:
                self.cycle.body = bytearray()  # of a request whose handler did not read it
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """The client doesn't read as fast as it is answered."""
        self._pauses += 1
        super().pause_writing()

    def shutdown(self) -> None:
        """The server ends: so does this connection, once what is under way has been answered."""
        self._ends = True
        if self.transport.is_lingering or not self._is_answering():
            self.transport.close_now()
        elif self.cycle is not None:
            self.cycle.keep_alive = False
            self.loop.call_later(END_BODY_S, self._end_body)

    def _end_body(self) -> None:
        if self._receives == "body" and not self.transport.is_closing():
            self._refuse(Problem("body-timeout", f"the server stops: the body must arrive within {END_BODY_S:g} s"))

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, problem: Problem) -> None:
        """Answer and close. If other answers are to come before, only close behind them."""
        cycle = self.cycle
        if self._receives == "body" and cycle is not None:
            if cycle.response_started or self.pipeline:
                self.cut()
                return
            cycle.disconnected = True  # for its handler, which waits for the body, the client has left
            cycle.message_event.set()
        elif self._is_answering():
            self._end_after_answers()
            return
        self._is_deaf = True
        self._write(problem)

    def _end_after_answers(self) -> None:
        self._is_deaf = True
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _write(self, problem: Problem) -> None:
        answer = problem.response()
        headers = [*self.server_state.default_headers, *answer.raw_headers, *BROWSER_HEADERS, (b"connection", b"close")]
        self.transport.write(STATUS_LINE[answer.status_code] + header_lines(headers) + b"\r\n" + bytes(answer.body))
        self.transport.close()

    # Bounds

    def look(self, now_mono: float) -> None:
        """Cut it if it has been in one state for too long."""
        state, allowed_s = self._coming_in()
        if state != self._seen_in or self.cycle is not self._seen_cycle:
            self._seen_in, self._seen_cycle, self._seen_in_mono = state, self.cycle, now_mono
        elif allowed_s is not None and now_mono - self._seen_in_mono >= allowed_s:
            self._end_state(state)
            return
        seen_out = self._going_out()
        if seen_out != self._seen_out:
            self._seen_out, self._seen_out_mono = seen_out, now_mono
        elif seen_out and now_mono - self._seen_out_mono >= self._limits.write_s:
            self.cut()

    def _coming_in(self) -> tuple[str, float | None]:
        """The state of what the client sends, and how long that may take; None: other bounds end it.

        ``lingering``: it has been answered, and what comes is dropped. ``waiting``: for an answer; a handler doesn't
        take longer than Redis and its own limits let it, and the pings of a WebSocket must be answered.
        """
        limits = self._limits
        if self.transport.is_lingering:
            return "lingering", limits.head_s
        if self._is_socket or self.pipeline or self._is_deaf:
            return "waiting", None
        if self._receives == "body":
            if not self._is_answering():
                return "unwanted body", limits.head_s
            return "body", 2 * BODY_TIMEOUT_S  # a handler that reads it has half of that, and answers
        if self._receives == "head" or self.cycle is None:
            return "head", limits.head_s
        if not self.cycle.response_complete:
            return "waiting", None
        return "idle", limits.idle_s

    def _end_state(self, state: str) -> None:
        if state == "head" and self._receives:
            self._refuse(Problem("headers-timeout", f"the headers must arrive within {self._limits.head_s:g} s"))
        elif state in ("head", "idle"):
            self.transport.close_now()
        else:
            self.cut()

    def unread_bytes(self) -> int:
        """How much of its answers is kept because the client doesn't read."""
        return self.transport.get_write_buffer_size() if self._going_out() else 0

    def _going_out(self) -> tuple[Any, ...]:
        """What the client doesn't read; empty when it reads."""
        if self._is_socket or self.transport.is_closing():
            size = self.transport.get_write_buffer_size()
            return (size,) if size else ()
        return ("paused", self._pauses) if self.flow.write_paused else ()

    def _refuse_unfinished(self) -> None:
        """More has come than a head, or what stands between and behind the chunks of a body, may have."""
        if self._receives == "body":
            detail = f"the trailers of a body, or the extensions of a chunk, may have {MOST_HEAD_BYTES:,} bytes"
            self._refuse(Problem("headers-too-large", detail))
        elif self._is_answering():
            self.cut()
        else:
            self._refuse(_head_too_large())

    def _drop(self, count: int) -> None:
        """Count received bytes that belong to a body, or that are no longer parsed."""
        self._body_bytes += count
        if self._body_bytes > self._limits.body_bytes:
            self.cut()

    def cut(self) -> None:
        """End it at once. What wasn't read is dropped: the kernel would go on offering it."""
        self._is_deaf = True
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.transport.abort()


def _head_too_large() -> Problem:
    detail = f"the request line and the headers may have {MOST_HEAD_BYTES:,} bytes together"
    return Problem("headers-too-large", detail)


def check_files() -> None:
    """Return if this process may open enough files to serve anyone.

    Raises:
        ConfigurationError
    """
    if (files := _files()) <= FILES_ASIDE:
        raise ConfigurationError(
            f"this process may have {files} files open, and the API needs more than {FILES_ASIDE}: raise the limit with"
            " ulimit -n"
        )


def _files() -> int:
    """How many files this process may have open, raised as far as it may raise that itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems cap it below what they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
