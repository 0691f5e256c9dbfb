"""One path and its methods: dispatch by method, HEAD like GET, and a 405 that names all of them.

Starlette's own routes name only the methods of the first one that matches the path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.problems import Problem

Handler = Callable[[Request], Awaitable[Response]]


class Resource:
    """An ASGI application for one path; each keyword is a method and its handler. `methods`: all it takes."""

    def __init__(self, **handlers: Handler) -> None:
        self._handlers = handlers
        if "GET" in handlers:
            self._handlers["HEAD"] = handlers["GET"]
        self.methods = sorted(self._handlers)
        self._allow = ", ".join(self.methods)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises Problem 405."""
        handler = self._handlers.get(scope["method"])
        if handler is None:
            detail = f"{scope['method']} isn't possible here; allowed: {self._allow}"
            raise Problem("method-not-allowed", detail, headers=[(b"allow", self._allow.encode())])
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)
