"""Ports for servers that many processes start side by side on one machine, some of them again on the port they had."""

from __future__ import annotations

import secrets
import socket
from typing import Final

FIRST: Final = 20_000
COUNT: Final = 12_000
"""Below the ports that kernels pick: such a one is free only until somebody connects to anything and is given it."""


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens, and which no other caller on this machine gets while we live.

    It is reserved by a UDP socket of the same number, which is in no TCP server's way and ends with this process.
    """
    while True:
        port = FIRST + secrets.randbelow(COUNT)
        with socket.socket(type=socket.SOCK_DGRAM) as reservation, socket.socket() as probe:
            try:
                reservation.bind(("127.0.0.1", port))
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            reservation.detach()  # it stays open
            return port
