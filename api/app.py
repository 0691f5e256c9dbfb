"""The Starlette application: the layers that a request passes, and the table of routes.

Each method of each path names what it requires of its caller: READ, START, ADMIN ... Only PUBLIC ones need no key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp

from taskpool.async_pool import AsyncTaskPool
from taskpool.redis.async_store import AsyncStore
from taskpool.settings import Settings, resolve_redis_url
from taskpool.url_guard import Allowed

from .auth.caller import ADMIN, ANYONE, PUBLIC, READ, READ_ALL, START, STOP, STREAM, Guarded
from .auth.gate import Gate, read_origins
from .events.hub import Hub
from .events.streams import Streams
from .events.websocket import SocketRoute
from .exception_handlers import HANDLERS
from .http.prefix import Prefixes, read_root_path
from .routes.docs import DocsRoutes
from .routes.events import EventRoutes
from .routes.fleet import FleetRoutes
from .routes.health import HealthRoutes
from .routes.keys import KeyRoutes
from .routes.tasks import LongPolls, TaskRoutes
from .routes.webhooks import WebhookRoutes
from .routing import Dispatcher, Resource, Sender, Socket, with_browser_headers


class Application(Starlette):
    """Starlette's application behind our dispatcher."""

    origins: frozenset[str] = frozenset()
    root_path = ""
    trusted_proxies: Sequence[str] = ()

    def build_middleware_stack(self) -> ASGIApp:
        """The layers of the application, the innermost first. Every answer gets the headers, also that to a bug."""
        handlers = dict(self.exception_handlers)
        bug: Any = handlers.pop(Exception)
        app: ASGIApp = ExceptionMiddleware(Sender(self.router), handlers=handlers)
        app = with_browser_headers(ServerErrorMiddleware(app, handler=bug), self.origins)
        app = Dispatcher(app, self.routes, writes=not self.origins)
        if self.root_path or self.trusted_proxies:
            app = Prefixes(app, self.root_path, self.trusted_proxies, self.routes)
        return app


def create_app(settings: Settings) -> Starlette:
    """The application. It connects to Redis with the first request, and closes its connections with its lifespan.

    A server that stops calls `app.state.long_polls.end()`, which answers waiting requests, and
    `app.state.streams.end()`.

    Raises:
        ConfigurationError: the settings have no Redis, an invalid origin or an invalid root path.
    """
    redis_url = resolve_redis_url(settings)
    pool = AsyncTaskPool(redis_url, settings=settings, store=AsyncStore(redis_url))
    long_polls = LongPolls(pool)
    origins = read_origins(settings.cors_origins)
    root_path = read_root_path(settings.root_path)
    gate = Gate(pool.store, settings, origins)
    streams = Streams(Hub(pool), gate, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        streams.close()
        await pool.close()

    routes = _routes(pool, gate, long_polls, streams, settings)
    app = Application(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)
    app.origins = origins
    app.root_path, app.trusted_proxies = root_path, settings.trusted_proxies
    app.router.redirect_slashes = False  # "/tasks/" doesn't exist
    app.state.long_polls, app.state.streams = long_polls, streams
    return app


def _routes(
    pool: AsyncTaskPool, gate: Gate, long_polls: LongPolls, streams: Streams, settings: Settings
) -> list[BaseRoute]:
    tasks = TaskRoutes(pool, gate, long_polls, settings.max_body_bytes)
    events = EventRoutes(pool, streams)
    fleet = FleetRoutes(pool)
    keys = KeyRoutes(pool.store, settings.max_body_bytes)
    webhooks = WebhookRoutes(
        pool.store, Allowed(settings.webhook_allow), settings.max_body_bytes, most=settings.max_webhooks
    )
    health = HealthRoutes(pool, gate)
    docs = DocsRoutes(pool, gate, settings.type_grace_s)

    def at(path: str, **handlers: Guarded) -> Route:
        return Route(path, Resource(gate, **handlers))

    return [
        at("/", GET=PUBLIC(health.index)),
        at("/tasks", GET=READ(tasks.list), POST=START(tasks.add)),
        at("/tasks/batch", POST=START(tasks.add_batch)),
        at("/tasks/{id}", GET=READ(tasks.get), DELETE=STOP(tasks.remove)),
        at("/tasks/{id}/stop", POST=STOP(tasks.stop)),
        at("/tasks/{id}/retry", POST=START(tasks.retry)),
        at("/tasks/{id}/deliveries", GET=READ(tasks.deliveries)),
        at("/tasks/{id}/events", GET=STREAM(events.task)),
        at("/tasks/{id}/logs", GET=STREAM(events.logs)),
        at("/events", GET=STREAM(events.all)),
        WebSocketRoute("/ws", Socket(gate, STREAM(SocketRoute(streams).serve))),
        at("/queues", GET=READ(fleet.queues)),
        at("/queues/{name}", GET=READ(fleet.queue)),
        at("/types", GET=READ(fleet.types)),
        at("/workers", GET=READ_ALL(fleet.workers)),
        at("/openapi.json", GET=READ(docs.openapi)),
        at("/asyncapi.json", GET=READ(docs.asyncapi)),
        at("/docs", GET=PUBLIC(docs.docs)),
        at("/docs/{file}", GET=PUBLIC(docs.docs_file)),
        at("/keys", GET=ADMIN(keys.list), POST=ADMIN(keys.create)),
        at("/keys/{key}", DELETE=ADMIN(keys.revoke)),
        at("/keys/{key}/rotate", POST=ADMIN(keys.rotate)),
        at("/tickets", POST=ANYONE(keys.ticket)),
        at("/audit", GET=ADMIN(keys.audit)),
        at("/webhooks", GET=ADMIN(webhooks.list), POST=ADMIN(webhooks.create)),
        at("/webhooks/dead", GET=ADMIN(webhooks.dead)),
        at("/webhooks/deliveries/{delivery}", GET=ADMIN(webhooks.delivery)),
        at("/webhooks/deliveries/{delivery}/replay", POST=ADMIN(webhooks.replay)),
        at(
            "/webhooks/{webhook}",
            GET=ADMIN(webhooks.get),
            PATCH=ADMIN(webhooks.update),
            DELETE=ADMIN(webhooks.remove),
        ),
        at("/webhooks/{webhook}/secret", GET=ADMIN(webhooks.secret), POST=ADMIN(webhooks.rotate)),
        at("/webhooks/{webhook}/test", POST=ADMIN(webhooks.test)),
        at("/webhooks/{webhook}/deliveries", GET=ADMIN(webhooks.deliveries)),
        at("/livez", GET=PUBLIC(health.live)),
        at("/readyz", GET=PUBLIC(health.ready)),
        at("/metrics", GET=READ_ALL(health.metrics)),
    ]
