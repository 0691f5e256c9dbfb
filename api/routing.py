"""What every answer tells browsers: to run nothing in it, frame it nowhere, and share it with listed origins alone.

An answer that is all there, in one write. Told in two messages, as ASGI has it, uvicorn writes it in two pieces, for
which the client is woken twice, and looks at each header by itself: a third of what it does for a small request.

What can't be done in one goes the usual way: a stream, a client that doesn't read.

One path and its methods: who may come in, dispatch by method, HEAD like GET, a 405 that names all methods.

Starlette's own routes name only the methods of the first one that matches the path.

The way of most requests: the resource of a path is looked up instead of tried for, route by route.

What isn't found here goes on to Starlette's router, which decides alone what a path means; and what fails goes
through Starlette's own handling of errors, so that nothing is answered in two ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from .auth.caller import Guarded
from .auth.gate import Gate
from .auth.rate_limit import RATE_KEY
from .http.problems import Problem
from .http.responses import Whole

Header = tuple[bytes, bytes]

SECURITY: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
CSP: Final = b"content-security-policy"
NOTHING: Final = (CSP, b"default-src 'none'; frame-ancestors 'none'")
"""For JSON. A page brings a policy of its own."""
ALWAYS: Final[tuple[Header, ...]] = (*SECURITY, NOTHING)

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
ASKED: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "traceparent",
    "tracestate",
)
TOLD: Final = (
    "ETag",
    "Idempotency-Replayed",
    "Link",
    "Location",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
)


def told_to_browsers(app: ASGIApp, origins: frozenset[str]) -> ASGIApp:
    """The application with these headers on every answer; CORS is closed unless there are `origins`."""
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=sorted(origins),
            allow_methods=METHODS,
            allow_headers=ASKED,
            expose_headers=TOLD,
            max_age=600,
        )
    return SecurityHeaders(app)


class SecurityHeaders:
    """ASGI middleware: the headers above, on every answer there is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                given = message.get("headers", ())
                message["headers"] = headers = [*given, *SECURITY, *scope.get(RATE_KEY, ())]
                if CSP not in [name for name, _ in given]:
                    headers.append(NOTHING)
            await send(message)

        await self._app(scope, receive, send_with_headers)


CYCLE: Final = "taskpool.cycle"
"""Where the connection puts its request's cycle in the ASGI scope."""


def offer(cycle: RequestResponseCycle) -> None:
    """Let this request be answered in one write."""
    scope: Any = cycle.scope
    scope[CYCLE] = cycle


def write(answer: Any, scope: Scope) -> bool:
    """Write an answer whole if that can be done; it has the headers that every answer has.

    Raises:
        ValueError: a header holds a line break; nothing was written.
    """
    cycle: RequestResponseCycle | None = scope.get(CYCLE)
    if cycle is None or cycle.flow.write_paused or not isinstance(answer, Whole):
        return False
    head = lines([*cycle.default_headers, *answer.raw_headers, *scope.get(RATE_KEY, ())])
    end = b"\r\n" if cycle.keep_alive or answer.unread_body else b"connection: close\r\n\r\n"
    body = b"" if scope["method"] == "HEAD" else answer.body
    if not cycle.disconnected:
        # From here on as uvicorn does it.
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join((STATUS_LINE[answer.status_code], head, ALWAYS_LINES, end, body)))
        cycle.message_event.set()
        if not cycle.keep_alive or answer.unread_body:
            cycle.transport.close()
        cycle.on_response()
    return True


def lines(headers: list[Header]) -> bytes:
    """Headers as they go over the wire.

    Raises:
        ValueError: one would be more than one.
    """
    text = b"".join([b"%b: %b\r\n" % header for header in headers])
    if text.count(b"\n") != len(headers) or text.count(b"\r") != len(headers):
        raise ValueError("a header holds a line break")
    return text


ALWAYS_LINES: Final = lines([*ALWAYS])


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


ANSWER: Final = "taskpool.answer"
_LAST_NAMED: Final = re.compile(r"(/[^{}]*)/{(\w+)}")


async def go_on(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that sends the answer `Front` was given, or raises what it was given instead."""
    answer: ASGIApp | Exception = scope[ANSWER]
    if isinstance(answer, Exception):
        raise answer
    await answer(scope, receive, send)


class Front:
    """ASGI: `app` answers whatever isn't an HTTP request for one of `routes`, `failed` (around `go_on`) what fails.

    `origins`: see `told_to_browsers`, which all answers go through that aren't written whole.
    """

    def __init__(
        self, app: ASGIApp, failed: ASGIApp, routes: Iterable[BaseRoute], *, origins: frozenset[str] = frozenset()
    ) -> None:
        self._app, self._failed, self._sent = [told_to_browsers(each, origins) for each in (app, failed, go_on)]
        self._is_shared = bool(origins)
        resources = {
            route.path: route.endpoint
            for route in routes
            if isinstance(route, Route) and isinstance(route.endpoint, Resource)
        }
        self._exact = {path: resource for path, resource in resources.items() if "{" not in path}
        named = [(_LAST_NAMED.fullmatch(path), resource) for path, resource in resources.items()]
        self._below = {match[1]: (match[2], resource) for match, resource in named if match}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or hand it on."""
        resource = self._resource(scope) if scope["type"] == "http" else None
        if resource is None:
            await self._app(scope, receive, send)
            return
        try:
            answer = await resource.respond(scope, receive, send)
            if not self._is_shared and write(answer, scope):
                return
        except Exception as failure:
            scope[ANSWER] = failure
            await self._failed(scope, receive, send)
        else:
            await self._send(answer, scope, receive, send)

    async def _send(self, answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Send an answer the usual way."""
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            scope[ANSWER] = answer
            await self._sent(scope, receive, noting)
        except Exception as failure:
            if has_begun:  # there is nothing left to answer: the server ends the connection
                raise
            scope[ANSWER] = failure
            await self._failed(scope, receive, send)

    def _resource(self, scope: Scope) -> Resource | None:
        path: str = scope["path"]
        if scope.get("root_path") or (self._is_shared and scope["method"] == "OPTIONS"):  # which CORS may be for
            return None
        resource = self._exact.get(path)
        if resource is not None:
            scope["path_params"] = {}
            return resource
        parent, _, last = path.rpartition("/")
        below = self._below.get(parent)
        if below is None or not last:
            return None
        name, resource = below
        scope["path_params"] = {name: last}
        return resource
