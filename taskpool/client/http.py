"""Carries out a client's steps with httpx: one runner that blocks, one that awaits. The only file that knows httpx.

httpx's own client may be shared by threads, but not by processes, event loops or signal handlers, and closing it cuts
the calls of all. `Connections` has one for each call at the same moment, `AsyncConnections` one for each event loop.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import httpcore  # noqa: F401 - httpx would import it in the first call, with a lock that a forked child may inherit
import httpx

from taskpool import lifecycle
from taskpool.client.request import Answer, Lost, Plan, Read, Request, Send, Sleep, Tell
from taskpool.errors import ConfigurationError
from taskpool.lifecycle import PerLoop, inode_of, let_go
from taskpool.settings import redact_url
from taskpool.validation import names_this_machine

T = TypeVar("T")

FAILURES: Final = (httpx.TransportError, httpx.DecodingError)
NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
OK: Final = 200
KEPT: Final = 100
"""Connections that are kept while nothing uses them."""


class Server:
    """Where the API is and who asks; and how long an answer may take. Raises: ConfigurationError."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"the server {redact_url(url)!r} is not a URL: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
            raise ConfigurationError(f"the server {redact_url(url)!r} is not a URL like http://localhost:8080")
        if parsed.userinfo:
            raise ConfigurationError("the server's URL takes no user and password: there are API keys")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ConfigurationError("the API key must be one word of ASCII, like tp_<id>_<secret>")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        is_here = names_this_machine(parsed.host)
        self.options: Final[dict[str, Any]] = {
            "headers": {} if api_key is None else {"authorization": f"Bearer {api_key}"},
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=KEPT),
            # A proxy of the surroundings has nothing to do with a server on this machine.
            "mounts": {"http://": None, "https://": None} if is_here else None,
            # One context for all connections: to make one takes longer than a request. It is made now, because OpenSSL
            # holds locks meanwhile: a child forked at that moment by another thread would wait for them for ever.
            "verify": _no_tls() if is_here and parsed.scheme == "http" else httpx.create_ssl_context(),
        }
        """How httpx's clients are made."""

    def request(self, client: httpx.Client | httpx.AsyncClient, request: Request[Any]) -> httpx.Request:
        """The request as httpx sends it."""
        return client.build_request(
            request.method,
            self.url + request.path,
            params=request.query or None,
            headers=dict(request.headers),
            content=request.body,
            timeout=httpx.Timeout(self.timeout_s, read=self.timeout_s + request.waits_s),
        )

    def lost(self, error: Exception) -> Lost:
        """What an exception of httpx means."""
        why = str(error) or "the connection was cut"
        if isinstance(error, httpx.TimeoutException):
            why = "it took too long"
        was_sent = not isinstance(error, NEVER_SENT)
        return Lost(f"the API at {self.url} {'gave no answer' if was_sent else 'cannot be reached'}: {why}", was_sent)


class _Sockets:
    """The sockets below httpx's connections, so that a forked process can let go of them."""

    def __init__(self) -> None:
        self._inodes: WeakKeyDictionary[Any, int | None] = WeakKeyDictionary()

    def note(self, response: httpx.Response) -> None:
        """Remember the connection of a response."""
        stream = response.extensions.get("network_stream")
        if stream is not None and stream not in self._inodes:
            self._inodes[stream] = inode_of(_descriptor_of(stream))

    def let_go(self) -> None:
        """Close our descriptors of those that are open. Nothing is sent, not even TLS's goodbye."""
        for stream, inode in list(self._inodes.items()):
            let_go(_descriptor_of(stream), inode)


def _descriptor_of(stream: Any) -> int:
    found = stream.get_extra_info("socket")
    return -1 if found is None else int(found.fileno())


class Connections:
    """The connections of this process to the API; threads share them. A forked process begins with none.

    Each call takes a client of httpx for itself and gives it back, so a call shares no lock with another thread, with
    a signal handler or with the parent of a fork, and `close` cuts no call that is under way.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._pid = os.getpid()
        self._idle: deque[httpx.Client] = deque()
        self._clients: set[httpx.Client] = set()
        self._sockets = _Sockets()
        self._inherited: list[object] = []
        lifecycle.watch(self)

    def take(self) -> httpx.Client:
        """A client for this caller alone, until it calls `give_back` or `drop`."""
        if os.getpid() != self._pid:  # a fork that didn't run Python's hooks
            self.forked()
        try:
            return self._idle.pop()
        except IndexError:
            client = httpx.Client(**self.server.options)
            self._clients.add(client)
            return client

    def give_back(self, client: httpx.Client) -> None:
        """Return a client whose answer was read to its end."""
        idle = self._idle
        if client not in self._clients or len(idle) >= KEPT:  # taken before `close`; or there are enough
            self.drop(client)
            return
        idle.append(client)
        if idle is not self._idle:  # `close` was called since a moment ago
            self._close_all(idle)

    def drop(self, client: httpx.Client) -> None:
        """Close a client that is of no more use."""
        self._clients.discard(client)
        client.close()

    def note(self, response: httpx.Response) -> None:
        """Remember the connection of a response."""
        self._sockets.note(response)

    def close(self) -> None:
        """Close the connections; those in use close when they are given back. The next request opens a new one."""
        if os.getpid() != self._pid:
            self.forked()
        idle, self._idle, self._clients = self._idle, deque(), set()
        self._close_all(idle)

    def forked(self) -> None:
        """In a child process: let go of the parent's connections."""
        self._sockets.let_go()
        # Kept: the locks in there may be held by threads that don't exist here, so nothing may close it.
        self._inherited += (self._clients, self._sockets)
        self._idle, self._clients, self._sockets = deque(), set(), _Sockets()
        self._pid = os.getpid()

    def at_exit(self) -> None:
        """As `close`."""
        self.close()

    def __del__(self) -> None:
        if "_inherited" in self.__dict__:
            self.close()

    def _close_all(self, idle: deque[httpx.Client]) -> None:
        while True:
            try:
                client = idle.pop()
            except IndexError:
                return
            client.close()


class LoopConnections:
    """The connections of one event loop to the API."""

    def __init__(self, server: Server) -> None:
        self.client = httpx.AsyncClient(**server.options)
        self._sockets = _Sockets()

    def note(self, response: httpx.Response) -> None:
        """Remember the connection of a response."""
        self._sockets.note(response)

    async def close(self) -> None:
        """Close them."""
        await self.client.aclose()
        await asyncio.sleep(0)  # a closed transport lets go of its socket in the next turn of the loop

    def abandon(self) -> None:
        """Let go of them without the loop."""
        self._sockets.let_go()


class AsyncConnections:
    """The connections to the API, for each event loop its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._loops = PerLoop(lambda: LoopConnections(server), owner="AsyncClient", blocking="Client")

    def here(self) -> LoopConnections:
        """Those of the running loop. Raises: NoEventLoop."""
        return self._loops.here()

    async def close(self) -> None:
        """Close those of the running loop; the next request opens new ones."""
        await self._loops.close()


class Runner:
    """Carries out one plan, blocking."""

    def __init__(self, connections: Connections) -> None:
        self._connections, self._server = connections, connections.server
        self._stream: httpx.Response | None = None
        self._client: httpx.Client | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._pid = os.getpid()

    def result(self, plan: Plan[T]) -> T:
        """What the plan returns."""
        reply: Any = None
        try:
            while True:
                step = plan.send(reply)
                reply = None if isinstance(step, Tell) else self._do(step)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            self._close()

    def told(self, plan: Plan[object]) -> Iterator[Any]:
        """What the plan tells."""
        reply: Any = None
        try:
            while True:
                step = plan.send(reply)
                reply = None
                if isinstance(step, Tell):
                    yield step.value
                else:
                    reply = self._do(step)
        except StopIteration:
            return
        finally:
            self._close()

    def _do(self, step: Send | Read | Sleep) -> Any:
        if isinstance(step, Sleep):
            return time.sleep(step.seconds)
        return self._read() if isinstance(step, Read) else self._send(step.request)

    def _send(self, request: Request[Any]) -> Answer | Lost:
        self._close()
        connections = self._connections
        client = connections.take()
        is_whole = False
        try:
            response = client.send(self._server.request(client, request), stream=True)
            connections.note(response)
            if request.streams and response.status_code == OK:
                self._stream, self._client, self._pieces = response, client, response.iter_bytes()
                is_whole = True
                return Answer(OK, response.headers)
            try:
                answer = Answer(response.status_code, response.headers, response.read())
            finally:
                response.close()
            is_whole = True
            connections.give_back(client)
            return answer
        except FAILURES as error:
            return self._server.lost(error)
        finally:
            if not is_whole:
                connections.drop(client)

    def _read(self) -> bytes | None:
        try:
            return next(self._pieces, None)
        except FAILURES:
            return None

    def _close(self) -> None:
        stream, client = self._stream, self._client
        self._stream = self._client = None
        if stream is not None and client is not None and self._pid == os.getpid():  # else it is the parent's
            stream.close()
            self._connections.give_back(client)
        self._pid = os.getpid()


class AsyncRunner:
    """Carries out one plan, awaiting."""

    def __init__(self, connections: AsyncConnections) -> None:
        self._connections, self._server = connections, connections.server
        self._stream: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def result(self, plan: Plan[T]) -> T:
        """What the plan returns."""
        reply: Any = None
        try:
            while True:
                step = plan.send(reply)
                reply = None if isinstance(step, Tell) else await self._do(step)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            await self._close()

    async def told(self, plan: Plan[object]) -> AsyncGenerator[Any]:
        """What the plan tells."""
        reply: Any = None
        try:
            while True:
                step = plan.send(reply)
                reply = None
                if isinstance(step, Tell):
                    yield step.value
                else:
                    reply = await self._do(step)
        except StopIteration:
            return
        finally:
            await self._close()

    async def _do(self, step: Send | Read | Sleep) -> Any:
        if isinstance(step, Sleep):
            return await asyncio.sleep(step.seconds)
        return await (self._read() if isinstance(step, Read) else self._send(step.request))

    async def _send(self, request: Request[Any]) -> Answer | Lost:
        await self._close()
        here = self._connections.here()
        try:
            response = await here.client.send(self._server.request(here.client, request), stream=True)
            here.note(response)
            if request.streams and response.status_code == OK:
                self._stream, self._pieces = response, response.aiter_bytes()
                return Answer(OK, response.headers)
            try:
                return Answer(response.status_code, response.headers, await response.aread())
            finally:
                await response.aclose()
        except FAILURES as error:
            return self._server.lost(error)

    async def _read(self) -> bytes | None:
        try:
            return None if self._pieces is None else await anext(self._pieces, None)
        except FAILURES:
            return None

    async def _close(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None


def _no_tls() -> ssl.SSLContext:
    """A context that no connection uses: httpx would load all certificates otherwise."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
