"""Every test compares the API's answers with the OpenAPI document; here are differences that this finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from tests.api_contract import EVENTS, PROBLEM, Answer, Contract, Promise, contract

ROOT = Path(__file__).parent.parent
NO_TASK = {"type": "urn:taskpool:problem:task-not-found", "title": "Task not found", "status": 404, "detail": "none"}


def answer(request: str, status: int, body: Any, media_type: str = "application/json", **headers: str) -> Answer:
    method, path = request.split()
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    return Answer(method, path, status, Headers({"content-type": media_type, **headers}), content)


def test_what_fits_is_kept() -> None:
    document: Any = {
        "paths": {
            "/a/{id}": {
                "get": {
                    "operationId": "get_a",
                    "responses": {"200": {"content": {"application/json": {"schema": {"type": "integer"}}}}},
                }
            }
        },
        "components": {"schemas": {}},
    }
    small = Contract(document)

    small.check(answer("GET /a/b", 200, 1))

    assert small.kept == small.promises() == {Promise("get_a", "200", "application/json")}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (answer("GET /livez", 201, {"status": "ok"}), "no such status"),
        (answer("GET /livez", 200, {"status": "ok"}, "text/plain"), "doesn't have text/plain"),
        (answer("GET /livez", 200, {"status": "ok"}, etag="1"), "doesn't have the headers {'etag'}"),
        (answer("GET /livez", 200, {"status": 1}), 'is not of type "string"'),
        (answer("GET /livez", 200, {"status": "ok", "more": 1}), "Additional properties are not allowed"),
        (answer("GET /docs", 200, "a page", "text/html"), "there is no ETag"),
        (answer("GET /tasks/a", 404, NO_TASK | {"type": "urn:taskpool:problem:other"}, PROBLEM), "is not one of"),
        (answer("GET /tasks/a", 404, NO_TASK | {"more": 1}, PROBLEM), "Unevaluated properties are not allowed"),
        (answer("GET /events", 200, "retry: 1\nid: 1-0\nevent: news\ndata: {}\n\n", EVENTS), "no event 'news'"),
        (answer("GET /events", 200, "retry: 1\nid: 1-0\ndata: {}\n\n", EVENTS), "is a required property"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_a_failure(wrong: Answer, says: str) -> None:
    with pytest.raises(AssertionError, match="isn't as the OpenAPI document says") as failure:
        contract().check(wrong)

    assert says in str(failure.value)


SUITE = """
import asyncio
from tests.api_client import api

async def read():
    async with api("redis://nowhere") as client:
        return (await client.get("/livez")).status_code

def test_it_lives():
    assert asyncio.run(read()) == 200
"""


def test_a_whole_run_fails_if_a_promise_was_never_seen(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\ntestpaths = .\npythonpath = {ROOT}\nmarkers = undocumented\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.api_contract", "-p", "no:schemathesis"]

    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run.returncode == 1, run.stdout + run.stderr
    missing = run.stdout.partition("promises what no test has seen")[2].splitlines()
    assert "get_task 404 urn:taskpool:problem:task-not-found" in missing
    assert "is_alive 500 urn:taskpool:problem:internal-error" in missing
    assert "is_alive 200 application/json" not in missing
