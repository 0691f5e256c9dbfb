"""The path prefix at which clients reach this API, if a proxy serves it below a path such as ``/jobs``.

Routes know no prefix: it is removed from the paths of requests here, and `public_path` adds it to paths in answers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from taskpool.errors import ConfigurationError
from taskpool.validation import path_prefix

logger = logging.getLogger("api")

PREFIX_KEY: Final = "taskpool.prefix"
"""Where the prefix of a request is in the ASGI scope, if there is one."""
FORWARDED_PREFIX: Final = b"x-forwarded-prefix"


def read_root_path(text: str) -> str:
    """The prefix that TASKPOOL_ROOT_PATH sets. Raises ConfigurationError: it isn't a path prefix."""
    try:
        return path_prefix(text)
    except ValueError as fault:
        raise ConfigurationError(f"TASKPOOL_ROOT_PATH: {fault}") from None


def prefix_of(scope: Scope) -> str:
    """The path prefix for the client of this request: empty, or like ``/jobs``.

    An application that mounts this one adds its own part with ASGI's `root_path`.
    """
    prefix: str = scope.get(PREFIX_KEY, "") + scope.get("root_path", "")
    return prefix


def public_path(scope: Scope, path: str) -> str:
    """A path of this API as the client of this request must write it: for `Location`, `Link` and so on."""
    return prefix_of(scope) + path


class Prefixes(ProxyHeadersMiddleware):
    """ASGI: `app` behind proxies. Headers of `trusted` proxies name the client (`X-Forwarded-For`), its protocol
    (`X-Forwarded-Proto`) and the prefix (`X-Forwarded-Prefix`; if it is missing, `root_path` is the prefix).

    These headers are ignored from other peers. So is an `X-Forwarded-Prefix` that isn't exactly one prefix.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: Sequence[str], routes: Iterable[BaseRoute]) -> None:
        inner: Any = app  # uvicorn has its own types for ASGI
        super().__init__(inner, list(trusted))
        self._root_path = root_path
        self._has_proxies = bool(trusted)
        self._own = {route.path.split("/")[1] for route in routes if isinstance(route, Route | WebSocketRoute)}
        self._has_warned = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, one socket or the application's life."""
        if scope["type"] != "lifespan":
            prefix = self._forwarded(scope) if self._has_proxies else None
            prefix = self._root_path if prefix is None else prefix
            if prefix:
                scope[PREFIX_KEY] = prefix
                self._strip(scope, prefix)
        await super().__call__(scope, receive, send)

    def _forwarded(self, scope: Scope) -> str | None:
        """The prefix that a trusted proxy names; None if none does."""
        client = scope.get("client")
        if not client or client[0] not in self.trusted_hosts:
            return None
        given = [value for name, value in scope["headers"] if name == FORWARDED_PREFIX]
        if not given:
            return None
        try:
            if len(given) > 1:
                raise ValueError("it came more than once")
            return path_prefix(given[0].decode("latin-1").strip(" \t"))
        except ValueError as fault:
            if not self._has_warned:  # once: every request may have it
                self._has_warned = True
                logger.warning("ignored X-Forwarded-Prefix of the proxy %s: %s", client[0], fault)
            return None

    def _strip(self, scope: Scope, prefix: str) -> None:
        """Remove the prefix from the path, if the proxy has not. The proxy must do it for a prefix that starts like a
        path of this API, because the two can't be distinguished."""
        path: str = scope["path"]
        rest = path.removeprefix(prefix)
        if len(rest) == len(path) or (rest and rest[0] != "/") or scope.get("root_path"):
            return
        if prefix.split("/")[1] not in self._own:
            scope["path"] = rest or "/"
