"""A connection to one address, whatever the host of the URL is called: the name is for TLS and the server alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from httpcore import SOCKET_OPTION, AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream

from taskpool.webhooks.target import Address

_network: Final = AnyIOBackend()


class Line(AsyncNetworkBackend):
    """Connects to this address alone. `aclose` closes what was connected, also what a handshake that was cut short
    left open: the library doesn't, and whoever never answers one would keep a socket of ours."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._stream: AsyncNetworkStream | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        """Connect; `host` is not looked up again."""
        self._stream = await _network.connect_tcp(str(self._address), port, timeout, local_address, socket_options)
        return self._stream

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        if self._stream is not None:
            await self._stream.aclose()
