"""A receiver of webhooks that refuses the first attempt of many messages, and notes what it is sent."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

REFUSES: Final = 0.5
"""How many messages are refused at first. A second refusal would be tried again only after minutes."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request: its id, what it said, and how it was answered (0: the connection was closed without an answer)."""

    webhook_id: str
    timestamp: str
    signature: str
    body: bytes
    status: int

    def is_signed(self, secret: str) -> bool:
        """Whether the signature is that of the secret, by the rules of Standard Webhooks."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        digest = hmac.digest(key, f"{self.webhook_id}.{self.timestamp}.".encode() + self.body, hashlib.sha256)
        return f"v1,{base64.b64encode(digest).decode()}" in self.signature.split()

    @property
    def id(self) -> str:
        """Of the event that it tells of: the task and the number."""
        return str(json.loads(self.body)["id"])

    @property
    def data(self) -> dict[str, Any]:
        """What it says about its task."""
        found: dict[str, Any] = json.loads(self.body)["data"]
        return found


class Receiver:
    """Listens on a port of this machine until it is closed."""

    def __init__(self, seed: int) -> None:
        self.messages: list[Message] = []
        self._seen: set[str] = set()
        self._random = random.Random(f"{seed} receiver")
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                body = self.rfile.read(size)
                if len(body) < size:  # its sender was killed
                    return
                status = receiver._take(self.headers, body)
                if status:
                    self.send_response(status)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/in"
        self._thread = threading.Thread(target=self._server.serve_forever, name="chaos-receiver", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def received(self) -> set[str]:
        """The ids of the messages that were answered with a 2xx."""
        with self._lock:
            return {message.id for message in self.messages if message.status == 204}

    def _take(self, headers: Any, body: bytes) -> int:
        id = headers["webhook-id"]
        with self._lock:
            refuses = id not in self._seen and self._random.random() < REFUSES
            self._seen.add(id)
            status = self._random.choice((0, 500, 503, 429)) if refuses else 204
            self.messages.append(Message(id, headers["webhook-timestamp"], headers["webhook-signature"], body, status))
        return status
