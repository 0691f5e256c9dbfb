"""Starlette's table of handlers: how an exception that a route raises becomes a response.

A response shows the text of an exception only if the exception is one of this project's. It never shows a traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from taskpool.errors import PROBLEMS, RedisFull, RedisUnavailable, TaskpoolError, UniqueConflict
from taskpool.redis.replies import ReplyFault

from .auth.caller import caller_of
from .http.prefix import prefix_of
from .http.problems import Problem, problem_of, retry_after, unique_conflict

logger = logging.getLogger("api")

WRONG_KIND: Final = (
    "a key in Redis holds another kind of value than it should, so this can't be done: another program wrote there. "
    "The server's log says more"
)
WRONG_KIND_S: Final = 60


async def render_problem(request: Request, exception: Exception) -> Response:
    """The handler of Problem."""
    assert isinstance(exception, Problem)
    return exception.response()


async def render_error(request: Request, exception: Exception) -> Response:
    """The handler of every error of the library that declares a problem."""
    assert isinstance(exception, TaskpoolError)
    if isinstance(exception, UniqueConflict):
        may_read = caller_of(request.scope).may_read
        return unique_conflict(exception, "", prefix_of(request.scope), may_read=may_read).response()
    problem = problem_of(exception)
    if isinstance(exception, RedisUnavailable):
        logger.warning("answered 503: %s", exception)
        changes = request.scope.get("method", "GET") not in ("GET", "HEAD")  # a handshake has no method
        is_unknown = changes and not isinstance(exception, RedisFull)
        problem.detail = exception.public_text + ("; whether the change was made is unknown" if is_unknown else "")
    return problem.response()


async def render_fault(request: Request, exception: Exception) -> Response:
    """The handler of ReplyFault. The connection stays open, because the fault is in a record, not in this process."""
    method = request.scope.get("method", "WS")
    if "WRONGTYPE" in str(exception):
        logger.error("answered 503: %s %s: %s", method, request.url.path, exception)
        return Problem("redis-unavailable", WRONG_KIND, headers=[retry_after(WRONG_KIND_S)]).response()
    logger.error("answered 500: %s %s: %s", method, request.url.path, exception)
    detail = "a record in Redis is damaged, so the request can't be served; the server's log says more"
    return Problem("internal-error", detail).response()


async def render_http_exception(request: Request, exception: Exception) -> Response:
    """The handler of Starlette's own exceptions: a path that no route matches."""
    assert isinstance(exception, HTTPException)
    if exception.status_code != 404:
        raise exception
    return Problem("not-found", "no route matches this path; docs/api.md lists them").response()


async def render_disconnect(request: Request, exception: Exception) -> Response:
    """The handler of ClientDisconnect. The client doesn't read the response."""
    return Response(status_code=400)


async def render_bug(request: Request, exception: Exception) -> Response:
    """The handler of everything else. The server logs the traceback; the client sees none of it."""
    return Problem("internal-error", "the server's log says more").response()


HANDLERS: Final[Mapping[type[Exception], Any]] = {
    Problem: render_problem,
    **{kind.error: render_error for kind in PROBLEMS.values() if kind.error is not None},
    ReplyFault: render_fault,
    HTTPException: render_http_exception,
    ClientDisconnect: render_disconnect,
    Exception: render_bug,
}
"""Starlette's table: exception to handler; the nearest base class of an exception counts."""
