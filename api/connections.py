"""What a connection may cost: how many there are, how long a request's head may take, how slowly an answer may be read.

uvicorn bounds none of this. A request pays for nothing but a comparison: once a second a sweep looks at all connections
and cuts those on which nothing good has happened for too long. Bodies have a time limit of their own (see `body`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api import whole
from api.access.addresses import network
from api.problems import Problem, retry_after
from taskpool.errors import ConfigurationError

logger = logging.getLogger(__name__)

MOST_HEAD_BYTES: Final = 64 * 1024
"""Of a request line and its headers together. A little more may arrive in one piece with the last of them."""
NO_LINGER: Final = struct.pack("ii", 1, 0)
LOG_AGAIN_S: Final = 60.0
FILES_ASIDE: Final = 64
"""File descriptors that connections leave to the rest of the process."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be, of one address too, and the seconds that a head and a stalled answer get."""

    most: int = 10_000
    most_per_address: int = 5_000
    head_s: float = 10.0
    write_s: float = 30.0


class Connections:
    """The open connections of this process."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._most = min(limits.most, _files() - FILES_ASIDE)
        self._open: dict[LimitedProtocol, str] = {}
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
        address = self._open.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def sweep(self) -> None:
        """Cut every connection that is overdue. Called about once a second."""
        now_mono = time.monotonic()
        for connection in list(self._open):
            if connection.has_ended_elsewhere():
                self.forget(connection)
            else:
                connection.look(now_mono, self.limits)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's connection, which is also counted, watched and cut."""

    cycle: RequestResponseCycle | None  # type: ignore[assignment]

    def __init__(self, *arguments: Any, among: Connections, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._among = among
        self._unfinished_bytes = 0
        self._pauses = 0
        self._seen: tuple[Any, ...] = ()
        self._seen_mono = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or answer 503 if there is no room."""
        super().connection_made(transport)
        if full := self._among.admit(self):
            self._refuse(Problem("too-many-connections", full, headers=[retry_after(1)]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._among.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it. What neither completes a head nor belongs to a body that is read is counted."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        wants_body = cycle is not None and cycle.more_body and not cycle.response_complete
        super().data_received(data)
        if wants_body or self.cycle is not cycle:
            self._unfinished_bytes = 0
            return
        self._unfinished_bytes += len(data)
        if self._unfinished_bytes > MOST_HEAD_BYTES and not self._is_upgraded() and not self.transport.is_closing():
            self._refuse_head()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        whole.offer(cycle)
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        """The client doesn't read as fast as it is answered."""
        self._pauses += 1
        super().pause_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what isn't HTTP, in the form of every other error."""
        self._refuse(Problem("invalid-http", msg))

    def has_ended_elsewhere(self) -> bool:
        """Whether it became a WebSocket, whose own protocol has seen its end, and all that was written has left."""
        return self.transport.is_closing() and self._is_upgraded() and not self.transport.get_write_buffer_size()

    def look(self, now_mono: float, limits: Limits) -> None:
        """Cut it if it has been in one stage for too long."""
        stage = self._stage()
        seen = (stage, self.cycle, self.transport.get_write_buffer_size() if stage == "socket" else self._pauses)
        if seen != self._seen:
            self._seen, self._seen_mono = seen, now_mono
            return
        waited_s = now_mono - self._seen_mono
        if stage in ("answer", "socket") and waited_s >= limits.write_s:
            self._reset()
        elif stage == "head" and waited_s >= limits.head_s:
            if self._unfinished_bytes and self._awaits_head():
                detail = f"the request's headers must arrive within {limits.head_s:g} s"
                self._refuse(Problem("headers-timeout", detail))
            else:
                self.transport.close()

    def _refuse_head(self) -> None:
        if self._awaits_head():
            detail = f"the request line and the headers may have {MOST_HEAD_BYTES:,} bytes together"
            self._refuse(Problem("headers-too-large", detail))
        else:
            self._reset()

    def _awaits_head(self) -> bool:
        """Not: the answer before it isn't complete, or it goes on with a body that nobody wanted."""
        return self.cycle is None or (self.cycle.response_complete and not self.cycle.more_body)

    def _reset(self) -> None:
        """End it at once. What wasn't read is dropped: the kernel would go on offering it."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.transport.abort()

    def _stage(self) -> str:
        """What it waits for: ``app``, ``next`` (uvicorn's own time-out runs), ``head``, ``answer``, or ``socket``: that
        the client takes what a WebSocket, open or closed, has for it."""
        if self._is_upgraded():
            return "socket" if self.transport.get_write_buffer_size() else "app"
        if self.transport.is_closing():
            return "answer"
        if self.flow.write_paused:
            return "answer"
        if self.cycle is not None and not self.cycle.response_complete:
            return "app"
        return "head" if self.timeout_keep_alive_task is None else "next"

    def _is_upgraded(self) -> bool:
        return self.transport.get_protocol() is not self

    def _refuse(self, problem: Problem) -> None:
        """Answer and close."""
        answer = problem.response()
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        head = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
        self.transport.write(STATUS_LINE[answer.status_code] + head + b"\r\n" + bytes(answer.body))
        self.transport.close()


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
