"""Where a request comes from: web pages of other origins, and names that were made to point at this machine.

A browser sends what any page wants to any address, this machine's own included. So where nobody is asked for a key,
the `Host` must be a name of this machine (DNS rebinding), and a page of another origin may change nothing. Sockets,
which browsers let any page open, are always held to the exact list.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from taskpool.errors import ConfigurationError

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


def read_origins(origins: Iterable[str]) -> frozenset[str]:
    """The origins of TASKPOOL_CORS_ORIGINS, as browsers write them.

    Raises:
        ConfigurationError: one isn't an exact origin.
    """
    found = frozenset(origin.lower() for origin in origins)
    for origin in sorted(found):
        if not _ORIGIN.fullmatch(origin):
            raise ConfigurationError(
                f"TASKPOOL_CORS_ORIGINS: {origin!r} is not an origin: give each exactly, like https://app.example.org"
            )
    return found


def is_own_origin(origin: bytes, host: bytes) -> bool:
    """Whether a page of this `Origin` was served by the `Host` it asks. (Which scheme it came by, a proxy may hide.)"""
    return bool(host) and origin.partition(b"://")[2].lower() == host.lower()


@lru_cache(maxsize=256)  # every request asks, mostly for the same
def name_this_machine(addresses: bytes) -> bool:
    """Whether each of these addresses, with commas between, as a header has them, is this machine's own."""
    return all(names_this_machine(each.strip()) for each in addresses.decode("latin-1").split(","))


def names_this_machine(address: str) -> bool:
    """Whether only this machine itself can reach an address: ``localhost``, ``127.0.0.1:8080``, ``[::1]:8080``."""
    host = address.lower()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
