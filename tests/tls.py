"""TLS for tests: certificates, made when they run, and a front in TLS for a server that has none.

`openssl` makes the certificates: wherever Python finds certificates at all, it is there too (Debian's `ca-certificates`
needs it).
"""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from benchmarks.ports import free_port

CLIENT_HELLO: Final = b"\x16"


def certificate(directory: Path, name: str) -> Path:
    """A file with a certificate for `name` ("DNS:host" or "IP:address"), signed by itself, and its key."""
    file = directory / "certificate.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=for tests", "-addext", f"subjectAltName={name}", "-keyout", "-", "-out", "-"],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_bytes(made.stdout)
    return file


class TlsFront:
    """A port of this machine that stands for another one. `secured` counts the connections in TLS."""

    def __init__(self, target: int, certificate: Path) -> None:
        self.port, self._target, self.secured = free_port(), target, 0
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(certificate)
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Takes no more connections; those that are end with their servers."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            if client.recv(1, socket.MSG_PEEK) == CLIENT_HELLO:
                client = self._tls.wrap_socket(client, server_side=True)
                self.secured += 1
            with client, socket.create_connection(("127.0.0.1", self._target)) as server:
                _relay(client, server)


def _relay(client: socket.socket, server: socket.socket) -> None:
    """Passes on what comes from either until one of them ends. (A TLS socket isn't for two threads.)"""
    while True:
        is_read_already = isinstance(client, ssl.SSLSocket) and client.pending()
        ready, _, _ = ([client], [], []) if is_read_already else select.select([client, server], [], [])
        for source in ready:
            chunk = source.recv(65536)
            if not chunk:
                return
            (server if source is client else client).sendall(chunk)
