"""What every answer tells browsers: to run nothing in it, frame it nowhere, and share it with listed origins alone."""

from __future__ import annotations

from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access.rate import RATE_KEY

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
