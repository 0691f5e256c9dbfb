"""What counts as one client address."""

from __future__ import annotations

import ipaddress


def network(host: str) -> str:
    """The address itself; of IPv6, where a client has 2^64 of them, its network."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.IPv6Address(int(address) >> 64 << 64))
