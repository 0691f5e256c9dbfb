"""Addresses the API is to listen on: is one free, which one is, and how a client on this machine reaches it."""

from __future__ import annotations

import errno
import http.client
import socket
from urllib.parse import urlsplit

from taskpool.errors import ConfigurationError


def claim_port(host: str, port: int) -> int:
    """The port itself when it can be listened on, a free one for 0.

    Raises:
        ConfigurationError: it's in use, not allowed, or the host isn't an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server does: connections that linger from the last run are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigurationError(_obstacle(host, port, error)) from None


def local_url(host: str, port: int) -> str:
    """The URL by which this machine reaches a server that listens there."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def answers_ready(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a Taskpool at this URL says that it's ready. Blocks for `timeout_s` seconds at most."""
    return _status(url + "/readyz", timeout_s) == http.HTTPStatus.OK


def wants_key(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a Taskpool at this URL asks for an API key. Blocks as long."""
    return _status(url + "/types", timeout_s) == http.HTTPStatus.UNAUTHORIZED


def _status(url: str, timeout_s: float) -> int | None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _obstacle(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop what listens there, or choose another: --port {port + 1}"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than you have; choose one above 1023: --port 8080"
    return f"can't listen on {host}, port {port}: {error.strerror or error}"
