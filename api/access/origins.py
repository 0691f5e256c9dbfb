"""Where a request comes from: web pages of other origins, and names that were made to point at this machine.

A browser sends what any page wants to any address, this machine's own included. So where nobody is asked for a key,
the `Host` must be a name of this machine (DNS rebinding), and a page of another origin may change nothing. Sockets,
which browsers let any page open, are always held to the exact list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from taskpool.errors import ConfigurationError
from taskpool.names import names_this_machine

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
