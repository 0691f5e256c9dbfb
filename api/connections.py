"""Limits of connections: how many there are, how many bytes each may buffer, and how long each of its states may last.

uvicorn has few of these limits. A request pays for a few comparisons only: once a second, a sweep looks at all
connections and aborts those that have been in one state for too long. docs/api.md lists every limit.

The answer to a request may be sent before its body has arrived (401, 413, 429 ...). If the server closed the connection
then, the kernel would reset it when more of the body arrives, and the client could lose the answer. So the rest is read
and discarded, within the same limits in bytes and time as any body.

This file overrides uvicorn's protocol for httptools, which isn't a public interface: pyproject.toml therefore bounds
uvicorn's version, and tests/test_api_uvicorn.py names the member that has changed.
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
from operator import itemgetter
from typing import Any, Final, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from taskpool.errors import ConfigurationError
from taskpool.settings import Settings

from .auth.rate_limit import network
from .http.body import BODY_TIMEOUT_S, CYCLE
from .http.problems import Problem, retry_after
from .routing import BROWSER_HEADERS, header_lines

logger = logging.getLogger("api")

MOST_HEAD_BYTES: Final = 64 * 1024
"""The request line and the headers together. The trailers of a chunked body have the same limit of their own."""
MOST_HEADERS: Final = 128
"""The WebSocket library has the same limit."""
MOST_PIPELINED: Final = 100
"""Requests of one connection that wait for the answers to earlier ones."""
DROPPED_BYTES: Final = 16 * 1024 * 1024
"""How much more than the largest allowed body is read and discarded, so that the client can read the answer."""
MOST_UNREAD_BYTES: Final = 128 * 1024 * 1024
"""Buffered answers that clients don't read, of all connections together."""
MOST_REFUSED: Final = 32
"""Connections over the limit that get a 503 at the same time. Further ones are closed without an answer."""
NO_LINGER: Final = struct.pack("ii", 1, 0)
LOG_AGAIN_S: Final = 60.0
"""How often the log says that all connections are in use."""
RESERVED_FILES: Final = 64
"""File descriptors that are reserved for the rest of the process."""
HALF_CLOSED_S: Final = 2.0
"""How long a client may wait for its answer after it has closed its side. A client that has left looks the same."""
END_BODY_S: Final = 2.0
"""How long bodies may still take to arrive when the server stops."""
_AUTHORITY: Final = re.compile(rb"[^:/?#]*://([^/?#]*)")


class Connections:
    """The open connections of this process. Raises: ConfigurationError, if it may open too few files for any."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        files = _files()
        if files <= RESERVED_FILES:
            raise ConfigurationError(
                f"this process may have {files} files open, and the API needs more than {RESERVED_FILES}: "
                "raise the limit with ulimit -n"
            )
        self._most = min(settings.max_connections, files - RESERVED_FILES)
        self._open: dict[LimitedProtocol, str] = {}
        self.refused: set[LimitedProtocol] = set()
        """Connections that aren't admitted, and stay open until their clients have read why."""
        self._by_address: Counter[str] = Counter()
        self._logged_mono: float | None = None

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: LimitedProtocol) -> str | None:
        """Count a new connection. Otherwise: why there is no room for it."""
        address = network(connection.client[0]) if connection.client else ""
        if len(self._open) >= self._most:
            self._log_full()
            return f"this server has {self._most:,} connections open, and takes no more"
        if self._by_address[address] >= (most := self.settings.max_connections_per_address):
            return f"your address has {most:,} connections open, and gets no more"
        self._open[connection] = address
        self._by_address[address] += 1
        return None

    def _log_full(self) -> None:
        now_mono = time.monotonic()
        if self._logged_mono is None or now_mono - self._logged_mono >= LOG_AGAIN_S:
            self._logged_mono = now_mono
            is_set = self._most == self.settings.max_connections
            what = "TASKPOOL_MAX_CONNECTIONS" if is_set else "the limit of open files (ulimit -n)"
            logger.warning("all %d connections are in use; new ones are refused. Raise %s", self._most, what)

    def forget(self, connection: LimitedProtocol) -> None:
        """The connection has ended."""
        self.refused.discard(connection)
        address = self._open.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def sweep(self) -> None:
        """Abort the connections that are overdue; if answers that clients don't read take too much memory, also those
        with the largest ones. Called about once a second."""
        now_mono = time.monotonic()
        unread = []
        for connection in [*self._open, *self.refused]:
            if size := connection.check(now_mono):
                unread.append((size, connection))
        excess = sum(size for size, _ in unread) - MOST_UNREAD_BYTES
        for size, connection in sorted(unread, key=itemgetter(0), reverse=True):
            if excess <= 0:
                break
            connection.abort()
            excess -= size


class Stopwatch:
    """How long a value has been the same."""

    def __init__(self) -> None:
        self._value: object = None
        self._since_mono = 0.0

    def same_s(self, value: object, now_mono: float) -> float:
        """Take the present value: for how many seconds it hasn't changed."""
        if value != self._value:
            self._value, self._since_mono = value, now_mono
        return now_mono - self._since_mono


class Transport:
    """A connection's transport. If the client may still be sending when it is closed, it closes only our side at first
    and discards what arrives, until the client closes its side or reaches a limit."""

    def __init__(self, inner: asyncio.Transport, owner: LimitedProtocol) -> None:
        self.inner = inner
        self.write = inner.write  # every answer asks for it
        self._owner: LimitedProtocol | None = owner
        self.is_lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self.is_lingering or self.inner.is_closing()

    def close(self) -> None:
        """Close it after everything has been written and the client has had time to read it."""
        owner = self._owner
        if owner is None or self.is_closing():
            return
        if not owner.is_receiving():
            self.inner.close()
            return
        self.is_lingering = True
        owner.flow.resume_reading()
        try:
            self.inner.write_eof()
        except OSError:  # the client has left
            self.inner.abort()

    def lost(self) -> None:
        """The connection, or the WebSocket it became, has ended. Break the reference cycle, so that it is freed now."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.registry.forget(owner)
            owner.parser = None  # type: ignore[assignment]


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP connection with limits.

    What runs for every request names its base class, because a call of `super()` is slow in Python 3.11."""

    cycle: RequestResponseCycle | None  # type: ignore[assignment]
    transport: Transport  # type: ignore[assignment]

    def __init__(self, *arguments: Any, registry: Connections, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.registry, self._settings = registry, registry.settings
        self._receiving: Literal["", "head", "body"] = ""
        self._upgrades = self._is_socket = False
        self._trailer_bytes = self._body_bytes = 0
        # Bytes that neither completed a head nor belonged to a body, and whether the present piece did either; bytes of
        # the last piece that did.
        self._unfinished_bytes, self._has_progressed, self._last_piece_bytes = 0, False, 0
        self._ignores_input, self._may_linger = False, True
        self._answered: RequestResponseCycle | None = None
        self._pauses = 0
        self._input, self._output = Stopwatch(), Stopwatch()

    # --- input ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the connection, or answer 503."""
        wrapped: Any = Transport(transport, self)
        super().connection_made(wrapped)
        if full := self.registry.admit(self):
            self._receiving = "head"  # the client is about to send one, which is discarded
            self._write(Problem("too-many-connections", full, headers=[retry_after(1)]))
            if len(self.registry.refused) >= MOST_REFUSED:
                self.transport.inner.close()
            else:
                self.registry.refused.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handler and release everything. `cycle` may be a later, pipelined request than the one in work."""
        self.transport.lost()
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
            self._answered = None
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, and count what neither completes a head nor belongs to a body."""
        if self._ignores_input or self.transport.is_closing():
            self._count_body(len(data))
            return
        self._has_progressed = False
        self._unfinished_bytes += len(data)
        rest: bytes = data
        while rest and not self._ignores_input:
            try:
                self.parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as upgrade:
                rest = self._upgrade(rest[upgrade.args[0] :])
            except httptools.HttpParserError:
                self._refuse(Problem("invalid-http", "this isn't a request of HTTP/1.1"))
                return
        if self._has_progressed:
            self._unfinished_bytes, self._last_piece_bytes = 0, len(data)
        if self._unfinished_bytes > MOST_HEAD_BYTES or self._trailer_bytes > MOST_HEAD_BYTES:
            self._refuse_unfinished()
        elif self._receiving == "body":
            self._count_body(len(data))

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client has closed its side. If its request isn't answered yet, it may still wait for the answer."""
        if self._receiving or self._is_socket or self.transport.is_closing() or not self._is_answering():
            return False
        self._may_linger = False
        self._end_after_answers()
        self.loop.call_later(HALF_CLOSED_S, self.transport.inner.close)
        return True

    def is_receiving(self) -> bool:
        """Whether the client may still be sending a request, and has time to finish."""
        return self._may_linger and bool(self._receiving or self._ignores_input)

    def on_message_begin(self) -> None:
        HttpToolsProtocol.on_message_begin(self)
        self._receiving = "head"
        self._upgrades = False
        self._trailer_bytes = self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. Trailers are counted and discarded: they must not pass as headers."""
        if self._receiving != "body":
            HttpToolsProtocol.on_header(self, name, value)
            return
        self._trailer_bytes += len(name) + len(value) + 4
        if self._trailer_bytes > MOST_HEAD_BYTES:
            self._ignores_input = True

    def on_headers_complete(self) -> None:
        """Start the request, or queue it behind those that aren't answered yet."""
        self._has_progressed = True
        if self._ignores_input:
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
            HttpToolsProtocol.on_headers_complete(self)
            self._receiving = "body"
            if self.expect_100_continue and self.cycle is not None:
                # If the answer comes first, the client may send the body or not, so what follows can't be parsed.
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body for the handler, unless the request was refused."""
        self._has_progressed = True
        if not (self._ignores_input or self._upgrades):
            HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        if not self._ignores_input:
            self._receiving, self._has_progressed = "", True
            if not self._upgrades:
                HttpToolsProtocol.on_message_complete(self)

    def _find_fault(self) -> Problem | None:
        if self._unfinished_bytes + self._last_piece_bytes > MOST_HEAD_BYTES:  # so that its size must be looked at
            size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
            if size > MOST_HEAD_BYTES:
                return _head_too_large()
        if len(self.headers) > MOST_HEADERS:
            return Problem("headers-too-large", f"a request may have {MOST_HEADERS} headers")
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 and (hosts or self.parser.get_http_version() != "1.0"):
            detail = f"a request must have one Host header; this one has {len(hosts)}"
            return Problem("invalid-header", detail)
        if hosts and self.url[:1] != b"/" and self.parser.get_method() != b"CONNECT":
            authority = _AUTHORITY.match(self.url)
            if authority is None or authority[1].lower() == hosts[0].lower():
                return None
            # Servers disagree on which of the two counts.
            return Problem("invalid-header", "Host must be the authority of the request's target")
        return None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        scope: Any = cycle.scope
        scope[CYCLE] = cycle
        HttpToolsProtocol._start_asgi_task(self, cycle, app)

    # --- upgrades ---

    def _upgrade(self, rest: bytes) -> bytes:
        """Become a WebSocket. Other upgrades are ignored, as RFC 9110 allows, and so are requests that can't be a
        handshake. Returns what must be parsed then, because the parser has stopped at the end of the head."""
        if self._ignores_input:
            return b""
        if not self._upgrades:  # an Upgrade in the trailers
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
        """The head without `upgrade`, for a new parser."""
        line = b"%b %b HTTP/%b" % (self.scope["method"].encode(), self.url, self.parser.get_http_version().encode())
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        headers = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([line, *headers, b"", b""])

    # --- output ---

    def on_response_complete(self) -> None:
        """Start the next request if one has arrived; read more only if none has. The sweep ends idle connections, so
        that no request pays for a timer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            if self.cycle is not None and self.cycle.body:
                self.cycle.body = bytearray()  # a body that the handler did not read
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        self._pauses += 1
        super().pause_writing()

    def shutdown(self) -> None:
        """The server stops: end the connection after the requests in work have been answered."""
        self._may_linger = False
        if self.transport.is_lingering or not self._is_answering():
            self.transport.inner.close()
        elif self.cycle is not None:
            self.cycle.keep_alive = False
            self.loop.call_later(END_BODY_S, self._end_body)

    def _end_body(self) -> None:
        if self._receiving == "body" and not self.transport.is_closing():
            self._refuse(Problem("body-timeout", f"the server stops: the body must arrive within {END_BODY_S:g} s"))

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, problem: Problem) -> None:
        """Answer and close. If earlier requests aren't answered yet, only close after their answers."""
        cycle = self.cycle
        if self._receiving == "body" and cycle is not None:
            if cycle.response_started or self.pipeline:
                self.abort()
                return
            cycle.disconnected = True  # the handler waits for the body: end that
            cycle.message_event.set()
        elif self._is_answering():
            self._end_after_answers()
            return
        self._ignores_input = True
        self._write(problem)

    def _end_after_answers(self) -> None:
        self._ignores_input = True
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _write(self, problem: Problem) -> None:
        answer = problem.response()
        headers = [*self.server_state.default_headers, *answer.raw_headers, *BROWSER_HEADERS, (b"connection", b"close")]
        self.transport.write(STATUS_LINE[answer.status_code] + header_lines(headers) + b"\r\n" + bytes(answer.body))
        self.transport.close()

    # --- limits ---

    def check(self, now_mono: float) -> int:
        """End the connection if it has been in one state for too long. Returns the bytes of answers that are buffered
        because the client doesn't read."""
        state, allowed_s = self._input_state()
        same_s = self._input.same_s((state, self.cycle), now_mono)
        out = self._output_state()
        unread_s = self._output.same_s(out, now_mono)
        if allowed_s is not None and same_s >= allowed_s:
            if state == "head" and self._receiving:
                self._refuse(Problem("headers-timeout", f"the headers must arrive within {allowed_s:g} s"))
            elif state in ("head", "idle"):
                self.transport.inner.close()
            else:
                self.abort()
        elif out and unread_s >= self._settings.write_timeout_s:
            self.abort()
        return self.transport.get_write_buffer_size() if out else 0

    def _input_state(self) -> tuple[str, float | None]:
        """What the client is sending, and the seconds that it may take; None: other limits apply.

        ``lingering``: it has its answer, and the rest is discarded. ``waiting``: it waits for its answer. Handlers have
        time limits of their own, and a WebSocket's client must answer pings."""
        settings = self._settings
        if self.transport.is_lingering:
            return "lingering", settings.header_timeout_s
        if self._is_socket or self.pipeline or self._ignores_input:
            return "waiting", None
        if self._receiving == "body":
            if not self._is_answering():
                return "unwanted body", settings.header_timeout_s
            return "body", 2 * BODY_TIMEOUT_S  # after half of that, the handler answers 408
        if self._receiving == "head" or self.cycle is None:
            return "head", settings.header_timeout_s
        if not self.cycle.response_complete:
            return "waiting", None
        return "idle", settings.idle_timeout_s

    def _output_state(self) -> tuple[Any, ...]:
        """A value that changes when the client reads; empty if nothing waits for that."""
        if self._is_socket or self.transport.is_closing():
            size = self.transport.get_write_buffer_size()
            return (size,) if size else ()
        return ("paused", self._pauses) if self.flow.write_paused else ()

    def _refuse_unfinished(self) -> None:
        """A head, or the trailers and chunk extensions of a body, have more bytes than allowed."""
        if self._receiving == "body":
            detail = f"the trailers of a body, or the extensions of a chunk, may have {MOST_HEAD_BYTES:,} bytes"
            self._refuse(Problem("headers-too-large", detail))
        elif self._is_answering():
            self.abort()
        else:
            self._refuse(_head_too_large())

    def _count_body(self, count: int) -> None:
        """Count bytes that belong to a body or are discarded."""
        self._body_bytes += count
        if self._body_bytes > self._settings.max_body_bytes + DROPPED_BYTES:
            self.abort()

    def abort(self) -> None:
        """End it with a reset. After a normal close, the kernel would continue to send what the client hasn't read."""
        self._ignores_input = True
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.transport.abort()


def _head_too_large() -> Problem:
    detail = f"the request line and the headers may have {MOST_HEAD_BYTES:,} bytes together"
    return Problem("headers-too-large", detail)


def _files() -> int:
    """How many files this process may have open, after raising the soft limit to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they report
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
