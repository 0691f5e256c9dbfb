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

from api import whole
from api.headers import told_to_browsers
from api.resource import Resource

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
            if not self._is_shared and whole.write(answer, scope):
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
