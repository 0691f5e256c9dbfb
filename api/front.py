"""The way of most requests: the resource of a path is looked up instead of tried for, route by route.

What isn't found here goes on to Starlette's router, which decides alone what a path means; and what fails goes
through Starlette's own handling of errors, so that nothing is answered in two ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.resource import Resource

FAILURE: Final = "taskpool.failure"
_LAST_NAMED: Final = re.compile(r"(/[^{}]*)/{(\w+)}")


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that raises what failed in `Front`."""
    failure: Exception = scope[FAILURE]
    raise failure


class Front:
    """ASGI: `app` answers whatever isn't an HTTP request for one of `routes`, `failed` (around `fail`) what fails."""

    def __init__(self, app: ASGIApp, failed: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app, self._failed = app, failed
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
        resource = self._resource(scope) if scope["type"] == "http" and not scope.get("root_path") else None
        if resource is None:
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await resource(scope, receive, noting)
        except Exception as failure:
            if has_begun:  # there is nothing left to answer: the server ends the connection
                raise
            scope[FAILURE] = failure
            await self._failed(scope, receive, send)

    def _resource(self, scope: Scope) -> Resource | None:
        path: str = scope["path"]
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
