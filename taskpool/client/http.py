"""The connections of a client to the HTTP API, through httpx: for threads and for event loops.

httpx's own client can be shared by threads, but not by processes, event loops or signal handlers, and closing it cuts
the calls of all threads. So each call of a blocking client has an httpx client for itself, and each event loop has one.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

import httpcore  # noqa: F401 - httpx would import it in the first call, with a lock that a forked child may inherit
import httpx

from taskpool.client.request import Lost, Request
from taskpool.errors import ConfigurationError
from taskpool.lifecycle import ConnectionPool, PerLoop, descriptor_of, inherited, inode_of, let_go
from taskpool.settings import redact_url
from taskpool.validation import names_this_machine

FAILURES: Final = (httpx.TransportError, httpx.DecodingError)
NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
KEPT: Final = 100  # connections that are kept while no call uses them


class Server:
    """The API's address, the API key, and how long an answer may take. Raises: ConfigurationError."""

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
            # A proxy named by the environment isn't meant for a server on this machine.
            "mounts": {"http://": None, "https://": None} if is_here else None,
            # One context for all connections: making one takes longer than a request. It is made now, because OpenSSL
            # holds locks while it does: a child forked by another thread at that moment would wait for them for ever.
            # Without TLS, an empty one: httpx would load all certificates.
            "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if is_here and parsed.scheme == "http"
            else httpx.create_ssl_context(),
        }
        """The arguments of httpx's clients."""

    def request(self, client: httpx.Client | httpx.AsyncClient, request: Request[Any]) -> httpx.Request:
        return client.build_request(
            request.method,
            self.url + request.path,
            params=request.query or None,
            headers=dict(request.headers),
            content=request.body,
            timeout=httpx.Timeout(self.timeout_s, read=self.timeout_s + request.waits_s),
        )

    def lost(self, error: Exception) -> Lost:
        """An exception of httpx as a reply."""
        why = str(error) or "the connection was cut"
        if isinstance(error, httpx.TimeoutException):
            why = "it took too long"
        was_sent = not isinstance(error, NEVER_SENT)
        what = "gave no answer" if was_sent else "can't be reached"
        return Lost(f"the API at {self.url} {what}: {why}", was_sent)


class _Sockets:
    """The sockets below an httpx client, so that they can be closed without it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._inodes: WeakKeyDictionary[Any, int | None] = WeakKeyDictionary()

    def note(self, response: httpx.Response) -> None:
        """Remember the response's socket."""
        stream = response.extensions.get("network_stream")
        if stream is not None and stream not in self._inodes:
            self._inodes[stream] = inode_of(descriptor_of(stream))

    def abandon(self) -> None:
        """Close our descriptors of the sockets. Nothing is sent, not even TLS's goodbye."""
        for stream, inode in list(self._inodes.items()):
            let_go(descriptor_of(stream), inode)


class Link(_Sockets):
    """The httpx client of one call at a time."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.client = httpx.Client(**server.options)

    def close(self) -> None:
        self.client.close()


class Connections(ConnectionPool[Link]):
    """The connections of this process to the API, shared by threads. A forked process starts without any."""

    def __init__(self, server: Server) -> None:
        super().__init__(partial(Link, server), most=KEPT, is_limit=False)
        self.server = server

    def _abandon(self, connection: Link) -> None:
        connection.abandon()
        inherited.append(connection)  # its locks may be held by threads that don't exist here, so nothing may close it


class AsyncLink(_Sockets):
    """The httpx client of an event loop, shared by all its calls."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.client = httpx.AsyncClient(**server.options)

    async def close(self) -> None:
        await self.client.aclose()
        await asyncio.sleep(0)  # a closed transport lets go of its socket in the next turn of the loop


class AsyncConnections(PerLoop[AsyncLink]):
    """The connections to the API, separate for each event loop. It has the methods of `Connections`."""

    take = PerLoop.here

    def __init__(self, server: Server) -> None:
        super().__init__(partial(AsyncLink, server), owner="AsyncClient", blocking="Client")
        self.server = server

    def give_back(self, link: AsyncLink) -> None:
        """Nothing to do: the loop keeps its link."""

    drop = give_back
