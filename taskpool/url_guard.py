"""Requests to URLs that other people chose: which URLs and addresses are allowed, and how a request is sent.

The URL comes from the caller who submits a task, and our workers stand inside a private network. So one strict grammar
is used to check a URL and to send to it. Every address of its host must be public, or named by the operator
(TASKPOOL_WEBHOOK_ALLOW); the host is resolved once, and the request goes to one of the checked addresses. There are no
redirects, no proxies and no reused connections.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # settings need this module, and httpcore takes longer to import than all of theirs
    import httpcore
    from httpcore import AsyncNetworkStream

Address = IPv4Address | IPv6Address

LONGEST_URL: Final = 2048
LEAST_FREE_PORT: Final = 1024
USUAL_PORTS: Final = {"http": 80, "https": 443}
URL: Final = re.compile(
    r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://"
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9_.-]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[!-\x22$-\[\]-~]*)?(?:\?[!-\x22$-\[\]-~]*)?)"
)
"""Printable ASCII without `#` and the backslash, which readers of URLs disagree about."""
_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)")
"""A host whose last part is a number: resolvers take it as an IPv4 address in some notation."""

_NAT64: Final = IPv6Network("64:ff9b::/96")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
_UNICAST: Final = IPv6Network("2000::/3")  # all that is handed out for the public IPv6 network
_NOT_PUBLIC: Final = (
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv4Network("168.63.129.16/32"),  # the host's own service in one large cloud
    IPv6Network("2001::/23"),  # Teredo is in it
    IPv6Network("2001:db8::/32"),
    IPv6Network("3fff::/20"),
)
"""What `is_global` of some Python versions lets pass."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart."""

    scheme: str
    host: str  # in lower case, without brackets and a dot at its end
    port: int
    path: str

    @property
    def address(self) -> Address | None:
        """The host, when it is an address."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == USUAL_PORTS[self.scheme] else f"{host}:{self.port}"


class Allowed:
    """What the operator lets them reach besides the public network: host names, addresses and CIDR networks."""

    def __init__(self, entries: Sequence[str] = ()) -> None:
        self._networks = [network for entry in entries if (network := _network(entry)) is not None]
        self._names = {entry.lower().rstrip(".") for entry in entries if _network(entry) is None}

    def name(self, host: str) -> bool:
        """Whether this host name is on the list."""
        return host in self._names

    def address(self, address: Address) -> bool:
        """Whether this address is on the list, itself or the IPv4 address that it only spells (::ffff:10.0.0.1)."""
        spelled = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return any(each in network for each in (address, spelled or address) for network in self._networks)


def parse_target(url: object, allowed: Allowed, *, longest: int = LONGEST_URL) -> Target:
    """The parts of a URL that may be sent to, as far as that is known without resolving its host.
    Raises: ValueError (it may not; the text says why)."""
    if not isinstance(url, str) or len(url) > longest:
        raise ValueError(f"must be a URL of at most {longest:,} characters")
    found = URL.fullmatch(url)
    if found is None:
        raise ValueError(_why_not(url))
    scheme = found["scheme"].lower()
    host = (found["six"] or found["host"]).lower().removesuffix(".")
    port = int(found["port"] or USUAL_PORTS[scheme])
    target = Target(scheme, host, port, found["path"] if found["path"].startswith("/") else "/" + found["path"])
    if not 1 <= port <= 65535:
        raise ValueError(f"the port {port} doesn't exist")
    if found["six"] or _NUMERIC.fullmatch(host):
        if target.address is None:
            raise ValueError(f"{host[:80]!r} isn't an address in its usual form")
        is_allowed = allowed.address(target.address)
        if not is_allowed and not is_public(target.address):
            raise ValueError("the address isn't public; TASKPOOL_WEBHOOK_ALLOW names exceptions")
    elif not re.fullmatch(r"(?!.*\.\.)[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?", host):
        raise ValueError(f"{host[:80]!r} isn't the name of a host")
    else:
        is_allowed = allowed.name(host)
        if not is_allowed and (host == "localhost" or host.endswith(".localhost")):
            raise ValueError("must not lead to this machine; TASKPOOL_WEBHOOK_ALLOW names exceptions")
    if not is_allowed and port not in USUAL_PORTS.values() and port < LEAST_FREE_PORT:
        raise ValueError(f"the port must be 80, 443 or from {LEAST_FREE_PORT} up, not {port}")
    return target


def check_addresses(target: Target, addresses: Iterable[Address], allowed: Allowed) -> None:
    """Whether a request may be sent to any of the addresses that its host resolved to.
    Raises: ValueError (it may not), which doesn't name the address, because the caller who gave the URL may read it."""
    if allowed.name(target.host):
        return
    for address in addresses:
        if not (is_public(address) or allowed.address(address)):
            raise ValueError("its host resolves to an address that isn't public")


def is_public(address: Address) -> bool:
    """Whether an address is one of the public network, and so is the IPv4 address to which an IPv6 one leads (through
    6to4, NAT64 or ISATAP), if there is one."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and (address in _NAT64 or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP):
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    if any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def entry_fault(entry: str) -> str | None:
    """What is wrong with an entry of the list of allowed targets; None when it is fine."""
    if _network(entry) is not None or (re.fullmatch(r"[A-Za-z0-9_.-]{1,253}", entry) and not _NUMERIC.fullmatch(entry)):
        return None
    return f"{entry!r} is neither the name of a host nor an address nor a network like 10.0.0.0/8"


def _network(entry: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(entry, strict=False)
    except ValueError:
        return None


def _why_not(url: str) -> str:
    if not re.match(r"[Hh][Tt][Tt][Pp][Ss]?://", url):
        return "must be an http or https URL"
    authority = re.split(r"[/?#]", url.split("://", 1)[1], maxsplit=1)[0]
    if "@" in authority:
        return "must not hold a user name or a password"
    if "#" in url:
        return "must not have a fragment"
    if not url.isascii():
        return "must be ASCII: write a host in its xn-- form, and anything else percent-encoded"
    return "isn't a URL that can be sent to"


MOST_LOOKUPS: Final = 256  # more than requests at once: a lookup may go on after its request has ended
SHOWN_CHARS: Final = 200

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


class NotSent(Exception):
    """Raised when there was no answer; the text is for those who may read what became of the request."""


class Resolver:
    """The system's resolver, in threads of its own: a name server that hangs keeps nothing else from the threads of the
    loop, nor a supervisor from its end."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(MOST_LOOKUPS)

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """The addresses of a host, in the order the system prefers.
        Raises: OSError (there are none, or too many lookups hang)."""
        if not self._free.acquire(blocking=False):
            raise OSError("too many lookups are waiting for name servers")
        found: Future[Sequence[Address]] = Future()
        found.set_running_or_notify_cancel()

        def look_up() -> None:
            try:
                rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found.set_result(list(dict.fromkeys(ip_address(row[4][0]) for row in rows)))
            except OSError as error:
                found.set_exception(error)
            except ValueError:
                found.set_exception(OSError("not the name of a host"))
            finally:
                self._free.release()

        try:
            threading.Thread(target=look_up, name="resolver", daemon=True).start()
        except RuntimeError as error:  # this host has no more threads
            self._free.release()
            raise OSError(str(error)) from None
        return await asyncio.wrap_future(found)


def shown(what: str, error: Exception) -> str:
    """An error of the network for readers, without addresses."""
    return f"{what}: {_why(error)}"[:SHOWN_CHARS]


def system_tls() -> ssl.SSLContext:
    """Trusts the certificates that the system's programs trust. Takes longer than most requests."""
    import httpcore  # noqa: F401  # with the rest of what takes long
    import httpx

    return httpx.create_ssl_context()


def _why(error: Exception) -> str:
    import httpcore

    behind: list[BaseException] = [error]  # and all that led to it
    while (cause := behind[-1].__cause__ or behind[-1].__context__) and cause not in behind:
        behind.append(cause)
    tls = [each for each in behind if isinstance(each, ssl.SSLError)]
    for each in behind:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"the certificate isn't valid: {each.verify_message}"
        if isinstance(each, OSError) and each not in tls and each.errno:
            return os.strerror(each.errno).lower()  # "connection refused", "no route to host"
    if tls:
        return f"TLS error: {tls[0].reason.replace('_', ' ').lower()}" if tls[0].reason else "TLS error"
    if isinstance(error, httpcore.TimeoutException):
        return "timed out"
    if isinstance(error, httpcore.LocalProtocolError):
        return "it isn't sent, because a header isn't allowed in HTTP"
    if isinstance(error, httpcore.RemoteProtocolError):
        return "what it sent isn't HTTP" if len(behind) > 1 else "the connection was closed"
    return type(error).__name__


MOST_ADDRESSES: Final = 3


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
    Raises: NotSent (an address isn't allowed, or there was no answer)."""
    import httpcore

    network = GuardedNetwork(target, allowed, resolve)
    opened.push_async_callback(network.aclose)
    # In the name of the host: it is the host's certificate that must be valid.
    url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
    extensions = {"timeout": {"connect": connect_s}}
    request = httpcore.Request(method, url, headers=headers, content=body, extensions=extensions)
    pool = httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=network)  # type: ignore[arg-type]
    try:
        return await pool.handle_async_request(request)
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        raise NotSent(shown("can't connect", error)) from None
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        raise NotSent(shown("no answer", error)) from None


class GuardedNetwork:
    """A network backend of httpcore that connects only to `target`, and only if its addresses are public or allowed.

    `aclose` closes the connection, also after an interrupted handshake: httpcore doesn't do that, and a server that
    never answers would keep the socket."""

    def __init__(self, target: Target, allowed: Allowed, resolve: Resolve) -> None:
        self._target, self._allowed, self._resolve = target, allowed, resolve
        self._stream: AsyncNetworkStream | None = None

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **options: Any
    ) -> AsyncNetworkStream:
        """Connect to the first of the target's addresses that takes the connection within `timeout` seconds.
        Raises: NotSent (the host has no address, an address isn't allowed, or none takes the connection)."""
        import httpcore

        host = self._target.host
        try:
            literal = self._target.address
            addresses = [literal] if literal else await self._resolve(host, self._target.port)
            check_addresses(self._target, addresses, self._allowed)
        except OSError as error:
            raise NotSent(f"the host {host} can't be resolved: {error.strerror or error}") from None
        except ValueError as fault:
            raise NotSent(f"not allowed: {fault}") from None
        refusal = f"the host {host} has no address"
        for address in addresses[:MOST_ADDRESSES]:
            try:
                backend = httpcore.AnyIOBackend()
                self._stream = await backend.connect_tcp(str(address), self._target.port, timeout, **options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                refusal = shown("can't connect", error)
            else:
                return self._stream
        raise NotSent(refusal)

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        if self._stream is not None:
            await self._stream.aclose()
