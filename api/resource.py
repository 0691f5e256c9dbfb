"""One path and its methods: who may come in, dispatch by method, HEAD like GET, a 405 that names all methods.

Starlette's own routes name only the methods of the first one that matches the path. A stream or a socket ends when
its caller would no longer be let in: neither has to know of keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from api.access import Guarded
from api.caller import caller_of
from api.gate import Gate
from api.problems import Problem
from taskpool.errors import RedisUnavailable

RECHECK_S: Final = 15.0
"""How often it is asked whether those at the other end of streams and sockets may still be there."""
KEY_GONE: Final = 4401
"""The code with which a socket is closed whose key was revoked or has expired."""


class Resource:
    """An ASGI application for one path; each keyword is a method and its guarded handler: ``GET=READ(tasks.get)``.

    `guarded`: method to handler, all it takes.
    """

    def __init__(self, gate: Gate, **handlers: Guarded) -> None:
        self._gate = gate
        if "GET" in handlers:
            handlers["HEAD"] = handlers["GET"]
        self.guarded = dict(sorted(handlers.items()))
        self.methods = list(self.guarded)
        self._allow = ", ".join(self.methods)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises Problem: 401, 403, 405."""
        guarded = self.guarded.get(scope["method"])
        if guarded is None:
            detail = f"{scope['method']} isn't possible here; allowed: {self._allow}"
            raise Problem("method-not-allowed", detail, headers=[(b"allow", self._allow.encode())])
        if not guarded.access.public:
            await self._gate.admit(scope, guarded.access)
        response = await guarded.handler(Request(scope, receive, send))
        if not guarded.access.ticket:
            await response(scope, receive, send)
        elif not await _while_admitted(self._gate, scope, response(scope, receive, send)):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class Socket:
    """An ASGI application for one WebSocket path; `guarded.handler` takes ``(scope, receive, send)``.

    Who isn't let in gets the answer as HTTP, before any handshake.
    """

    def __init__(self, gate: Gate, guarded: Guarded) -> None:
        self._gate = gate
        self.guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket."""
        try:
            await self._gate.admit(scope, self.guarded.access)
        except Problem as problem:
            await receive()  # websocket.connect
            await refuse(problem, scope, send)
            return
        if not await _while_admitted(self._gate, scope, self.guarded.handler(scope, receive, send)):
            await send({"type": "websocket.close", "code": KEY_GONE, "reason": "the key was revoked or has expired"})


async def _while_admitted(gate: Gate, scope: Scope, serving: Awaitable[Any]) -> bool:
    """Serve until that ends by itself (True), or the caller would be let in no longer (False)."""
    work = asyncio.ensure_future(serving)
    try:
        while True:
            await asyncio.wait((work,), timeout=RECHECK_S)
            if work.done():
                await work
                return True
            with suppress(RedisUnavailable):  # nothing is told meanwhile: look again later
                if not await gate.still_admits(caller_of(scope)):
                    return False
    finally:
        work.cancel()
        await asyncio.wait((work,))


async def refuse(problem: Problem, scope: Scope, send: Send) -> None:
    """Answer a socket's handshake with a problem, once `websocket.connect` was received."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": problem.detail[:120]})
        return
    answer = problem.response()
    headers = answer.raw_headers
    await send({"type": "websocket.http.response.start", "status": answer.status_code, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.body})
