"""What becomes of an exception that nobody caught: Starlette's table of handlers.

A response never shows an exception's text or traceback unless the exception is one of ours, made to be read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from taskpool.errors import (
    CapReached,
    DeliveryBusy,
    DeliveryNotFound,
    InvalidKey,
    InvalidTask,
    InvalidWebhook,
    KeyNotFound,
    KeyReused,
    NotAllowed,
    QueueFull,
    RedisFull,
    RedisRefused,
    RedisUnavailable,
    TaskConflict,
    TaskNotFound,
    UniqueConflict,
    WebhookConflict,
    WebhookNotFound,
)
from taskpool.redis.replies import ReplyFault

from .auth.caller import caller_of
from .http.prefix import prefix_of
from .http.problems import Problem, conflict, invalid_task, not_allowed, retry_after, unique_conflict

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


async def render_invalid_task(request: Request, exception: Exception) -> Response:
    """The handler of InvalidTask."""
    assert isinstance(exception, InvalidTask)
    return invalid_task(exception).response()


async def render_not_allowed(request: Request, exception: Exception) -> Response:
    """The handler of NotAllowed."""
    assert isinstance(exception, NotAllowed)
    return not_allowed(exception).response()


async def render_not_found(request: Request, exception: Exception) -> Response:
    """The handler of TaskNotFound."""
    return Problem("task-not-found", str(exception)).response()


async def render_invalid_key(request: Request, exception: Exception) -> Response:
    """The handler of InvalidKey."""
    assert isinstance(exception, InvalidKey)
    errors = [{"pointer": fault.pointer, "detail": fault.detail} for fault in exception.errors]
    return Problem("invalid-key", str(exception), errors=errors).response()


async def render_key_not_found(request: Request, exception: Exception) -> Response:
    """The handler of KeyNotFound."""
    return Problem("key-not-found", str(exception)).response()


async def render_webhook_error(request: Request, exception: Exception) -> Response:
    """The handler of what can go wrong with webhooks and deliveries."""
    errors = exception.errors if isinstance(exception, InvalidWebhook) else ()
    entries = [{"pointer": fault.pointer, "detail": fault.detail} for fault in errors]
    return Problem(_OF_WEBHOOKS[type(exception)], str(exception), errors=entries).response()


async def render_conflict(request: Request, exception: Exception) -> Response:
    """The handler of TaskConflict."""
    assert isinstance(exception, TaskConflict)
    return conflict(exception).response()


async def render_unique_conflict(request: Request, exception: Exception) -> Response:
    """The handler of UniqueConflict: it links to the task that holds the key."""
    assert isinstance(exception, UniqueConflict)
    may_read = caller_of(request.scope).may_read
    return unique_conflict(exception, "", prefix_of(request.scope), may_read=may_read).response()


async def render_key_reused(request: Request, exception: Exception) -> Response:
    """The handler of KeyReused."""
    assert isinstance(exception, KeyReused)
    return Problem("idempotency-key-reused", str(exception)).response()


async def render_queue_full(request: Request, exception: Exception) -> Response:
    """The handler of QueueFull."""
    assert isinstance(exception, QueueFull)
    headers = [retry_after(exception.retry_after_s)]
    detail, held = f"{exception}; nothing was stored", exception.held
    return Problem("queue-full", detail, headers=headers, queue=exception.queue, held=held).response()


async def render_cap_reached(request: Request, exception: Exception) -> Response:
    """The handler of CapReached."""
    assert isinstance(exception, CapReached)
    detail = f"{exception}; nothing was stored"
    return Problem("cap-reached", detail, cap=exception.most, setting=exception.setting).response()


async def render_unavailable(request: Request, exception: Exception) -> Response:
    """The handler of RedisUnavailable. Its text may name hosts, so it goes to the log alone."""
    assert isinstance(exception, RedisUnavailable)
    logger.warning("answered 503: %s", exception)
    reading = request.scope.get("method", "GET") in ("GET", "HEAD")  # a handshake has none
    if isinstance(exception, RedisFull):
        detail = "Redis has no memory left; nothing was changed"
    else:
        what = "can't serve this at the moment" if isinstance(exception, RedisRefused) else "doesn't answer"
        detail = f"Redis {what}" + ("" if reading else "; whether the change was made is unknown")
    return Problem("redis-unavailable", detail, headers=[retry_after(exception.retry_after_s)]).response()


async def render_fault(request: Request, exception: Exception) -> Response:
    """The handler of ReplyFault. The connection stays open: the fault is in a record, not in this process."""
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
    """The handler of ClientDisconnect: nobody is there to read this."""
    return Response(status_code=400)


async def render_bug(request: Request, exception: Exception) -> Response:
    """The handler of everything else. The server logs the traceback; the client sees none of it."""
    return Problem("internal-error", "the server's log says more").response()


_OF_WEBHOOKS: Final[Mapping[type[Exception], str]] = {
    InvalidWebhook: "invalid-webhook",
    WebhookNotFound: "webhook-not-found",
    WebhookConflict: "webhook-conflict",
    DeliveryNotFound: "delivery-not-found",
    DeliveryBusy: "delivery-busy",
}

HANDLERS: Final = {
    Problem: render_problem,
    InvalidTask: render_invalid_task,
    NotAllowed: render_not_allowed,
    TaskNotFound: render_not_found,
    TaskConflict: render_conflict,
    QueueFull: render_queue_full,
    CapReached: render_cap_reached,
    InvalidKey: render_invalid_key,
    KeyNotFound: render_key_not_found,
    UniqueConflict: render_unique_conflict,
    KeyReused: render_key_reused,
    **dict.fromkeys(_OF_WEBHOOKS, render_webhook_error),
    RedisUnavailable: render_unavailable,
    ReplyFault: render_fault,
    HTTPException: render_http_exception,
    ClientDisconnect: render_disconnect,
    Exception: render_bug,
}
"""Starlette's table: exception to handler; the nearest base class of an exception counts."""
