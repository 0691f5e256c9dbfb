"""Bare Starlette: it parses the body and answers with the JSON that taskpool's API would, and there is no Redis."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

TASK = {
    "id": "d217r8m2n3aolstf2ch5",
    "type": "increment",
    "status": "queued",
    "queue": "default",
    "payload": {"n": 1},
    "attempt": 0,
    "max_attempts": 1,
    "created_at": "2026-11-23T12:00:00.000Z",
    "enqueued_at": "2026-11-23T12:00:00.000Z",
    "timeout_s": 600,
    "result_ttl_s": 86400,
    "failure_ttl_s": 604800,
    "seq": 1,
}


async def submit(request: Request) -> JSONResponse:
    """POST /tasks."""
    document = await request.json()
    assert document["type"] == "increment"
    headers = {"location": f"/tasks/{TASK['id']}"}
    return JSONResponse({"id": TASK["id"], "status": "queued"}, status_code=202, headers=headers)


async def get(request: Request) -> JSONResponse:
    """GET /tasks/{id}."""
    return JSONResponse({**TASK, "id": request.path_params["id"]})


app = Starlette(routes=[Route("/tasks", submit, methods=["POST"]), Route("/tasks/{id}", get)])
