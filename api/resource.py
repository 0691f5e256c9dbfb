"""One path and its methods: who may come in, dispatch by method, HEAD like GET, a 405 that names all methods.

Starlette's own routes name only the methods of the first one that matches the path.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.access.access import Guarded
from api.access.gate import Gate
from api.problems import Problem


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
        """Answer one request. Raises: as `respond`."""
        response = await self.respond(scope, receive, send)
        await response(scope, receive, send)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> ASGIApp:
        """The answer to one request, which is still to be sent. Raises Problem: 401, 403, 405, 429."""
        guarded = self.guarded.get(scope["method"])
        if guarded is None:
            detail = f"{scope['method']} isn't possible here; allowed: {self._allow}"
            raise Problem("method-not-allowed", detail, headers=[(b"allow", self._allow.encode())])
        if not guarded.access.public:
            await self._gate.admit(scope, guarded.access)
        response: ASGIApp = await guarded.handler(Request(scope, receive, send))
        return response


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
            await refuse(problem, scope, receive, send)
            return
        await self.guarded.handler(scope, receive, send)


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a socket's handshake with a problem, once `websocket.connect` was received."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": problem.detail[:120]})
        return
    await problem.response()(scope, receive, send)
