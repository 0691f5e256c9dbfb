"""Requests to where a URL may lead: the host is resolved once, each address is checked, and one of them connected to.

Webhooks and the built-in type http_request are sent through this alone. No redirects, no proxies, no variables of the
environment, no connection used twice: one that stayed open would be found by its host, whatever that is by then.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import httpcore
from httpcore import SOCKET_OPTION, AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream

from taskpool.webhooks.network import NotSent, Resolve, shown
from taskpool.webhooks.target import Address, Allowed, Target, check_addresses

MOST_ADDRESSES: Final = 3

_network: Final = AnyIOBackend()


async def send(
    method: str,
    target: Target,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    *,
    allowed: Allowed,
    resolve: Resolve,
    tls: ssl.SSLContext,
    connect_s: float,
    opened: AsyncExitStack,
) -> httpcore.Response:
    """The answer to a request; its body is read while `opened` is, which then closes the connection. One address may
    take `connect_s` seconds to connect.

    Raises:
        NotSent: an address isn't allowed, or there was no answer.
    """
    network = GuardedNetwork(target, allowed, resolve)
    opened.push_async_callback(network.aclose)
    # In the name of the host: it is the host's certificate that must be valid.
    url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
    extensions = {"timeout": {"connect": connect_s}}
    request = httpcore.Request(method, url, headers=headers, content=body, extensions=extensions)
    pool = httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=network)
    try:
        return await pool.handle_async_request(request)
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        raise NotSent(shown("can't connect", error)) from None
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        raise NotSent(shown("no answer", error)) from None


class GuardedNetwork(AsyncNetworkBackend):
    """Connects to `target`, and only to addresses that are public or allowed. `aclose` closes what was connected, also
    what a handshake that was cut short left open: the library doesn't, and whoever never answers one would keep a
    socket of ours."""

    def __init__(self, target: Target, allowed: Allowed, resolve: Resolve) -> None:
        self._target, self._allowed, self._resolve = target, allowed, resolve
        self._stream: AsyncNetworkStream | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        """Connect to the first of the target's addresses that takes the connection within `timeout` seconds.

        Raises:
            NotSent: the host has no address, an address isn't allowed, or none takes the connection.
        """
        addresses = await self._addresses()
        try:
            check_addresses(self._target, addresses, self._allowed)
        except ValueError as fault:
            raise NotSent(f"not allowed: {fault}") from None
        for number, address in enumerate(addresses[:MOST_ADDRESSES], start=1):
            try:
                self._stream = await _network.connect_tcp(
                    str(address), self._target.port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                if number == len(addresses[:MOST_ADDRESSES]):
                    raise NotSent(shown("can't connect", error)) from None
            else:
                return self._stream
        raise AssertionError("there is at least one address")

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        if self._stream is not None:
            await self._stream.aclose()

    async def _addresses(self) -> Sequence[Address]:
        if self._target.address is not None:
            return [self._target.address]
        host = self._target.host
        try:
            addresses = await self._resolve(host, self._target.port)
        except OSError as error:
            raise NotSent(f"the host {host} can't be resolved: {error.strerror or error}") from None
        if not addresses:
            raise NotSent(f"the host {host} has no address")
        return addresses
