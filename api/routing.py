"""From a request to its handler, and from the handler's answer to the connection.

- `Resource` and `Socket`: one path. They check who may use it and call the handler of the method.
- `Dispatcher`: finds the resource of a path in a dictionary. Starlette's router handles every other request.
- `write_at_once`: sends head and body of an answer in one write.
- `with_browser_headers`: the headers for browsers on every answer.

Two of these are fast paths. Reading a task costs the API process 25 to 35 % more CPU time without `write_at_once`
(submitting one: 10 %), and 12 % more without the look-up (submitting one: 9 %).
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

from .auth.caller import DECLARATION, Guarded
from .auth.gate import Gate
from .auth.rate_limit import RATE_KEY
from .http.body import CYCLE
from .http.problems import Problem
from .http.query import NoQuery, read_query
from .http.responses import BufferedResponse

Header = tuple[bytes, bytes]

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Resource:
    """An ASGI application for one path; each keyword is a method and its guarded handler: ``GET=READ(tasks.get)``.

    A handler that declares query parameters gets them as its second argument. HEAD is answered like GET. `guarded` has
    all methods. (Starlette's routes name only the methods of the first route that matches the path in a 405.)
    """

    def __init__(self, gate: Gate, **handlers: Guarded) -> None:
        self._gate = gate
        if "GET" in handlers:
            handlers["HEAD"] = handlers["GET"]
        self.guarded = dict(sorted(handlers.items()))
        self.methods = list(self.guarded)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises: as `respond`."""
        response = await self.respond(scope, receive, send)
        await response(scope, receive, send)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> ASGIApp:
        """The answer to one request, not sent yet. Raises Problem: 401, 403, 405, 429, or the handler's own."""
        guarded = self.guarded.get(scope["method"])
        if guarded is None:
            allowed = ", ".join(self.methods)
            detail = f"{scope['method']} isn't possible here; allowed: {allowed}"
            raise Problem("method-not-allowed", detail, headers=[(b"allow", allowed.encode())])
        if not guarded.access.public:
            await self._gate.admit(scope, guarded.access)
        request = Request(scope, receive, send)
        declared: Any = getattr(guarded.handler, DECLARATION, None)
        response: ASGIApp
        if declared is None or declared.query is None:
            response = await guarded.handler(request)
        else:
            query = read_query(scope["query_string"], declared.query)
            response = await (
                guarded.handler(request) if declared.query is NoQuery else guarded.handler(request, query)
            )
        return response


class Socket:
    """An ASGI application for one WebSocket path; `guarded.handler` takes ``(scope, receive, send)``.

    A refused client gets the problem as an HTTP answer to its handshake.
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
            await problem.refuse_socket(scope, receive, send)
            return
        await self.guarded.handler(scope, receive, send)


# --- finding the resource of a path -------------------------------------------------------------------------------

ANSWER: Final = "taskpool.answer"
"""Where the dispatcher puts an answer to send, or an exception to handle, in the ASGI scope."""
_LAST_PART_NAMED: Final = re.compile(r"(/[^{}]*)/{(\w+)}")


class Dispatcher:
    """ASGI: answers requests for paths that are constant or whose last part alone is a parameter.

    `app` gets all other requests, the answers that can't be written at once, and the exceptions to handle: it must
    contain a `Sender`. `writes` is false if middleware must see every answer.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute], *, writes: bool) -> None:
        self._app, self._writes = app, writes
        resources = {
            route.path: route.endpoint
            for route in routes
            if isinstance(route, Route) and isinstance(route.endpoint, Resource)
        }
        self._constant = {path: resource for path, resource in resources.items() if "{" not in path}
        matches = [(_LAST_PART_NAMED.fullmatch(path), resource) for path, resource in resources.items()]
        self._by_parent = {match[1]: (match[2], resource) for match, resource in matches if match}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, one socket or the application's life."""
        resource = self._resource(scope) if scope["type"] == "http" else None
        if resource is not None:
            try:
                answer = await resource.respond(scope, receive, send)
                if self._writes and write_at_once(answer, scope):
                    return
                scope[ANSWER] = answer
            except Exception as failure:
                scope[ANSWER] = failure
        await self._app(scope, receive, send)

    def _resource(self, scope: Scope) -> Resource | None:
        path: str = scope["path"]
        if scope.get("root_path") or (not self._writes and scope["method"] == "OPTIONS"):  # mounted; a CORS preflight
            return None
        resource = self._constant.get(path)
        if resource is not None:
            scope["path_params"] = {}
            return resource
        parent, _, last = path.rpartition("/")
        if not last or parent not in self._by_parent:
            return None
        name, resource = self._by_parent[parent]
        scope["path_params"] = {name: last}
        return resource


class Sender:
    """ASGI: sends the dispatcher's answer or raises its exception; `app` gets requests without either."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, one socket or the application's life."""
        answer = scope.get(ANSWER, self._app)
        if isinstance(answer, Exception):
            raise answer
        await answer(scope, receive, send)


# --- an answer in one write ---------------------------------------------------------------------------------------


def write_at_once(answer: Any, scope: Scope) -> bool:
    """Write head and body together, if that is possible: not a stream, and the client reads its answers.

    With ASGI's two messages, uvicorn writes two pieces, for which the client wakes up twice, and checks each header.

    Raises:
        ValueError: a header holds a line break; nothing was written.
    """
    cycle: RequestResponseCycle | None = scope.get(CYCLE)
    if cycle is None or cycle.flow.write_paused or not isinstance(answer, BufferedResponse):
        return False
    head = header_lines([*cycle.default_headers, *answer.raw_headers, *scope.get(RATE_KEY, ())])
    end = b"\r\n" if cycle.keep_alive or answer.unread_body else b"connection: close\r\n\r\n"
    body = b"" if scope["method"] == "HEAD" else answer.body
    if not cycle.disconnected:
        # The same steps as in RequestResponseCycle.send.
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join((STATUS_LINE[answer.status_code], head, _BROWSER_LINES, end, body)))
        cycle.message_event.set()
        if not cycle.keep_alive or answer.unread_body:
            cycle.transport.close()
        cycle.on_response()
    return True


def header_lines(headers: list[Header]) -> bytes:
    """Headers as they are sent.

    Raises:
        ValueError: one holds a line break.
    """
    text = b"".join([b"%b: %b\r\n" % header for header in headers])
    if text.count(b"\n") != len(headers) or text.count(b"\r") != len(headers):
        raise ValueError("a header holds a line break")
    return text


# --- headers for browsers -----------------------------------------------------------------------------------------

SECURITY: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
CSP: Final = b"content-security-policy"
BROWSER_HEADERS: Final[tuple[Header, ...]] = (*SECURITY, (CSP, b"default-src 'none'; frame-ancestors 'none'"))
"""Every answer has them: a browser must run nothing of it and frame it nowhere. A page brings its own policy."""
_BROWSER_LINES: Final = header_lines([*BROWSER_HEADERS])
REQUEST_HEADERS: Final = (
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
RESPONSE_HEADERS: Final = (
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


def with_browser_headers(app: ASGIApp, origins: frozenset[str]) -> ASGIApp:
    """ASGI middleware: the headers above on every answer. Pages of `origins` may read answers (CORS)."""
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=sorted(origins),
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
            max_age=600,
        )

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                given = message.get("headers", ())
                has_policy = any(name == CSP for name, _ in given)
                message["headers"] = [
                    *given,
                    *(SECURITY if has_policy else BROWSER_HEADERS),
                    *scope.get(RATE_KEY, ()),
                ]
            await send(message)

        await app(scope, receive, send_with_headers)

    return serve
