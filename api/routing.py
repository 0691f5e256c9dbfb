"""From a path to its handler, and from the handler's answer to the connection.

- `Resource` and `Socket`: one path. They check who may use it, call the handler of the method, and answer errors.
- `problem_for`: from an exception to a problem.
- `Paths`: finds the resource of a path.
- `write_at_once`: sends head and body of an answer in one write. Without it, reading a task costs the API process 25 to
  35 % more CPU time, submitting one 10 %.
- `with_browser_headers`: the headers for browsers on every answer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable
from typing import Any, Final

import msgspec
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from taskpool.errors import InvalidTask, RedisFull, RedisUnavailable, TaskpoolError, UniqueConflict
from taskpool.redis.replies import ReplyFault
from taskpool.settings import Settings

from .auth.caller import caller_of
from .auth.gate import Gate
from .auth.rate_limit import RATE_KEY
from .http.body import CYCLE, read_json, read_optional_json
from .http.declarations import Guarded
from .http.prefix import prefix_of
from .http.problems import Problem, problem_of, retry_after, unique_conflict
from .http.query import NoQuery, parameters_refused, read_query
from .http.responses import Json
from .http.submission import read_as

logger = logging.getLogger("api")

Header = tuple[bytes, bytes]

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Resource:
    """An ASGI application for one path; each keyword is a method and its guarded handler: ``GET=READ(tasks.get)``.

    Handlers get the query and the body that they declare. HEAD is answered like GET. `guarded` has all methods.
    (Starlette's routes name only the methods of the first route that matches the path in a 405.)"""

    def __init__(self, gate: Gate, settings: Settings, **handlers: Guarded) -> None:
        self._gate, self._max_body_bytes = gate, settings.max_body_bytes
        self._writes = not settings.cors_origins  # otherwise, middleware must see every answer
        if "GET" in handlers:
            handlers["HEAD"] = handlers["GET"]
        self.guarded = dict(sorted(handlers.items()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        query: msgspec.Struct | None = None
        try:
            guarded = self.guarded.get(scope["method"])
            if guarded is None:
                allowed = ", ".join(self.guarded)
                detail = f"{scope['method']} isn't possible here; allowed: {allowed}"
                raise Problem("method-not-allowed", detail, headers=[(b"allow", allowed.encode())])
            if not guarded.access.public:
                await self._gate.admit(scope, guarded.access)
            arguments: list[Any] = [Request(scope, receive, send)]
            operation = guarded.operation
            if operation is not None and operation.query is not None:
                query = read_query(scope["query_string"], operation.query)
                if operation.query is not NoQuery:
                    arguments.append(query)
            if operation is not None and operation.reads_body:
                read = read_optional_json if operation.body_optional else read_json
                body = await read(scope, receive, self._max_body_bytes)
                arguments.append(read_as(body, operation.body, operation.body_fault))
            response: ASGIApp = await guarded.handler(*arguments)
            if self._writes and write_at_once(response, scope):
                return
        except ClientDisconnect:
            return
        except Exception as error:
            if isinstance(error, InvalidTask) and not isinstance(query, NoQuery | None):
                error = parameters_refused(error)
            problem = problem_for(error, scope)
            await (problem or Problem("internal-error", "the server's log says more")).response()(scope, receive, send)
            if problem is None:
                raise  # the server logs it
        else:
            await response(scope, receive, send)


class Socket:
    """An ASGI application for one WebSocket path; `guarded.handler` takes ``(scope, receive, send)``.

    A refused client gets the problem as an HTTP answer to its handshake."""

    def __init__(self, gate: Gate, guarded: Guarded) -> None:
        self._gate = gate
        self.guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket."""
        await receive()  # websocket.connect
        try:
            await self._gate.admit(scope, self.guarded.access)
            await self.guarded.handler(scope, receive, send)
        except Exception as error:
            if (problem := problem_for(error, scope)) is None:
                raise
            await problem.refuse_socket(scope, receive, send)


class Paths:
    """ASGI: finds the resources of most paths in a dictionary; `router` gets all other requests. The router's search
    costs a read of a task 12 % more instructions, and a submission 10 %."""

    def __init__(self, router: Router) -> None:
        self._router = router
        resources = {route.path: route.endpoint for route in router.routes if isinstance(route, Route)}
        self._constant = {path: resource for path, resource in resources.items() if "{" not in path}
        matches = [(_LAST_PART_NAMED.fullmatch(path), resource) for path, resource in resources.items()]
        self._by_parent = {match[1]: (match[2], resource) for match, resource in matches if match}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request, one socket or the application's life."""
        app: ASGIApp = self._router
        if scope["type"] == "http" and not scope.get("root_path"):
            parent, _, last = scope["path"].rpartition("/")
            if (constant := self._constant.get(scope["path"])) is not None:
                app, scope["path_params"] = constant, {}
            elif last and parent in self._by_parent:
                name, app = self._by_parent[parent]
                scope["path_params"] = {name: last}
        return app(scope, receive, send)


_LAST_PART_NAMED: Final = re.compile(r"(/[^{}]*)/{(\w+)}")


async def no_such_path(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI: the answer to a path that no route matches."""
    answer: ASGIApp = WebSocketClose()
    if scope["type"] == "http":
        answer = Problem("not-found", "no route matches this path; docs/api.md lists them").response()
    await answer(scope, receive, send)


# --- errors -------------------------------------------------------------------------------------------------------

WRONG_KIND: Final = (
    "a key in Redis holds another kind of value than it should, so this can't be done: another program wrote there. "
    "The server's log says more"
)
WRONG_KIND_S: Final = 60


def problem_for(error: Exception, scope: Scope) -> Problem | None:
    """The problem that answers a request whose handler raised this; None if it is a bug. It shows the text of an
    exception only if the exception is one of this project's."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, UniqueConflict):
        return unique_conflict(error, "", prefix_of(scope), may_read=caller_of(scope).may_read)
    if isinstance(error, ReplyFault):
        return _problem_of_record(error, scope)
    if not isinstance(error, TaskpoolError) or error.problem is None:
        return None
    problem = problem_of(error)
    if isinstance(error, RedisUnavailable):
        logger.warning("answered 503: %s", error)
        changes = scope.get("method", "GET") not in ("GET", "HEAD")  # a handshake has no method
        is_unknown = changes and not isinstance(error, RedisFull)
        problem.detail = error.public_text + ("; whether the change was made is unknown" if is_unknown else "")
    return problem


def _problem_of_record(error: ReplyFault, scope: Scope) -> Problem:
    """The connection to Redis stays open, because the fault is in a record, not in this process."""
    is_wrong_kind = "WRONGTYPE" in str(error)
    status, method = 503 if is_wrong_kind else 500, scope.get("method", "WS")
    logger.error("answered %d: %s %s: %s", status, method, scope["path"], error)
    if is_wrong_kind:
        return Problem("redis-unavailable", WRONG_KIND, headers=[retry_after(WRONG_KIND_S)])
    return Problem(
        "internal-error", "a record in Redis is damaged, so the request can't be served; the server's log says more"
    )


# --- an answer in one write ---------------------------------------------------------------------------------------


def write_at_once(answer: Any, scope: Scope) -> bool:
    """Write head and body together, if that is possible: not a stream, and the client reads its answers. Raises:
    ValueError, if a header holds a line break; nothing was written.

    With ASGI's two messages, uvicorn writes two pieces, for which the client wakes up twice, and checks each header."""
    cycle: RequestResponseCycle | None = scope.get(CYCLE)
    if cycle is None or cycle.flow.write_paused or not isinstance(answer, Json):
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
    """Headers as they are sent. Raises: ValueError, if one holds a line break."""
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

    def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
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

        return app(scope, receive, send_with_headers)

    return serve
