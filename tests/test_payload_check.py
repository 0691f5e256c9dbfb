"""Published schemas: payloads are checked with them, and references to other documents are never fetched."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from taskpool.tasks.payload.json_schema import validator_of


def test_a_schema_says_what_fits() -> None:
    validator = validator_of({"type": "object", "properties": {"at": {"type": "string", "format": "date"}}})

    assert validator is not None
    assert validator.is_valid({"at": "2026-11-23"})
    assert not validator.is_valid({"at": "today"})


def test_a_schema_that_only_python_can_read_is_left_to_the_workers() -> None:
    assert validator_of({"type": "object", "properties": {"a": {"pattern": "(?P<x>a)(?P=x)"}}}) is None


def test_a_schema_that_is_nested_too_deeply_is_checked_by_the_worker_alone() -> None:
    schema: dict[str, Any] = {}
    for _ in range(400):
        schema = {"anyOf": [schema]}

    assert validator_of(schema) is None


def test_a_schema_of_another_host_is_not_fetched() -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        validator = validator_of({"$ref": f"http://127.0.0.1:{server.server_port}/schema"})
        server.shutdown()
        serving.join()

    assert validator is None
    assert asked == []
