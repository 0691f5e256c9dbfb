"""The Starlette application: the layers that a request passes, and the table of routes.

Each method of each path names what it requires of its caller: READ, START, ADMIN ... Only PUBLIC ones need no key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route, WebSocketRoute

from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.insight.findings import find
from taskpool.operations.insight.fresh import Fresh
from taskpool.redis.async_store import AsyncStore
from taskpool.settings import Settings, resolve_redis_url
from taskpool.url_guard import Allowed

from .auth.gate import Gate, read_origins
from .events.hub import Hub
from .events.live import Live
from .events.streams import Streams
from .events.websocket import serve_socket
from .http.declarations import (
    ADMIN,
    ANYONE,
    CONFIRM,
    PUBLIC,
    READ,
    READ_ALL,
    START,
    START_ALL,
    STOP,
    STOP_ALL,
    STREAM,
    Guarded,
)
from .http.prefix import Prefixes, read_root_path
from .routes.confirmations import ConfirmationRoutes
from .routes.control import ControlRoutes
from .routes.dashboard import PageRoutes
from .routes.docs import DocsRoutes
from .routes.events import EventRoutes
from .routes.failures import FailureRoutes
from .routes.fleet import FleetRoutes
from .routes.health import HealthRoutes
from .routes.keys import KeyRoutes
from .routes.load import LoadRoutes
from .routes.metrics import MetricsRoutes
from .routes.operations import Drivers, OperationRoutes
from .routes.schedules import ScheduleRoutes
from .routes.stats import StatsRoutes
from .routes.tasks import LongPolls, TaskRoutes
from .routes.webhooks import WebhookRoutes
from .routes.workflows import WorkflowRoutes
from .routing import Paths, Resource, Socket, no_such_path, with_browser_headers


class Application(Starlette):
    """Starlette's application. Its layers are ours, because resources answer errors themselves."""


def create_app(settings: Settings) -> Starlette:
    """The application. It connects to Redis with the first request, and closes its connections with its lifespan.

    A server that stops calls `app.state.long_polls.end()`, which answers waiting requests, and
    `app.state.streams.end()`. Raises: ConfigurationError."""
    redis_url = resolve_redis_url(settings)
    pool = AsyncTaskPool(redis_url, settings=settings, store=AsyncStore(redis_url))
    long_polls = LongPolls(pool)
    origins = read_origins(settings.cors_origins)
    root_path = read_root_path(settings.root_path)
    gate = Gate(pool.store, settings, origins)
    streams = Streams(Hub(pool), gate, settings)
    drivers, live = Drivers(pool), Live(pool)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        streams.close()
        live.close()
        await drivers.close()
        await pool.close()

    routes = _routes(pool, gate, settings, long_polls=long_polls, streams=streams, drivers=drivers, live=live)
    app = Application(routes=routes, lifespan=lifespan)
    app.middleware_stack = with_browser_headers(Paths(app.router), origins)
    if root_path or settings.trusted_proxies:
        app.middleware_stack = Prefixes(app.middleware_stack, root_path, settings.trusted_proxies, app.routes)
    app.router.redirect_slashes, app.router.default = False, no_such_path  # "/tasks/" doesn't exist
    app.state.long_polls, app.state.streams = long_polls, streams
    return app


def _routes(
    pool: AsyncTaskPool,
    gate: Gate,
    settings: Settings,
    *,
    long_polls: LongPolls,
    streams: Streams,
    drivers: Drivers,
    live: Live,
) -> list[BaseRoute]:
    tasks = TaskRoutes(pool, gate, long_polls, settings.max_body_bytes)
    confirmations = ConfirmationRoutes(pool)
    workflows = WorkflowRoutes(pool, gate, settings.max_workflow_bytes)
    schedules = ScheduleRoutes(pool)
    bulk = OperationRoutes(pool, drivers)
    events = EventRoutes(pool, streams)
    fleet = FleetRoutes(pool)
    control = ControlRoutes(pool)
    stats = StatsRoutes(pool)
    findings = Fresh(pool.store, find)
    failures = FailureRoutes(pool, findings)
    load = LoadRoutes(pool)
    keys = KeyRoutes(pool.store)
    webhooks = WebhookRoutes(pool.store, Allowed(settings.webhook_allow), most=settings.max_webhooks)
    health = HealthRoutes(pool, gate)
    metrics = MetricsRoutes(pool, findings, streams)
    page = PageRoutes(health, gate, streams, live)
    docs = DocsRoutes(pool, gate, settings.type_grace_s)

    def at(path: str, **handlers: Guarded) -> Route:
        return Route(path, Resource(gate, settings, **handlers))

    return [  # the router tries them in this order
        at("/tasks", GET=READ(tasks.list), POST=START(tasks.add)),
        at("/tasks/batch", POST=START(tasks.add_batch)),
        at("/tasks/{id}", GET=READ(tasks.get), DELETE=STOP(tasks.remove)),
        at("/tasks/{id}/stop", POST=STOP(tasks.stop)),
        at("/tasks/{id}/retry", POST=START(tasks.retry)),
        at("/tasks/{id}/why", GET=READ(control.why)),
        at("/tasks/{id}/stack", POST=READ(control.stack)),
        at("/tasks/{id}/confirm", POST=CONFIRM(confirmations.confirm)),
        at("/tasks/{id}/reject", POST=CONFIRM(confirmations.reject)),
        at("/tasks/{id}/answer", POST=CONFIRM(confirmations.answer)),
        at("/workflows", GET=READ(workflows.list), POST=START(workflows.add)),
        at("/workflows/{workflow}", GET=READ(workflows.get), DELETE=STOP(workflows.remove)),
        at("/workflows/{workflow}/events", GET=STREAM(events.workflow)),
        at("/workflows/{workflow}/stop", POST=STOP(workflows.stop)),
        at("/workflows/{workflow}/retry", POST=START(workflows.retry)),
        at("/schedules", GET=READ(schedules.list)),
        at(
            "/schedules/{schedule}",
            GET=READ(schedules.get),
            PUT=START(schedules.set),
            DELETE=START(schedules.remove),
        ),
        at("/schedules/{schedule}/pause", POST=START(schedules.pause)),
        at("/schedules/{schedule}/resume", POST=START(schedules.resume)),
        at("/schedules/{schedule}/run", POST=START(schedules.run)),
        at("/operations", GET=READ(bulk.list), POST=READ(bulk.start)),
        at("/operations/{operation}", GET=READ(bulk.get)),
        at("/operations/{operation}/cancel", POST=READ(bulk.cancel)),
        at("/operations/{operation}/undo", POST=READ(bulk.undo)),
        at("/tasks/{id}/deliveries", GET=READ(tasks.deliveries)),
        at("/tasks/{id}/events", GET=STREAM(events.task)),
        at("/tasks/{id}/logs", GET=STREAM(events.logs)),
        at("/events", GET=STREAM(events.all)),
        WebSocketRoute("/ws", Socket(gate, STREAM(partial(serve_socket, streams)))),
        at("/queues", GET=READ(fleet.queues)),
        at("/queues/{name}", GET=READ(fleet.queue)),
        at("/queues/{queue}/load", GET=READ_ALL(load.load)),
        at("/queues/{queue}/pause", POST=STOP_ALL(control.pause_queue)),
        at("/queues/{queue}/resume", POST=STOP_ALL(control.resume_queue)),
        at("/pause", POST=STOP_ALL(control.pause_all)),
        at("/resume", POST=STOP_ALL(control.resume_all)),
        at("/types", GET=READ(fleet.types)),
        at("/types/{name}/durations", GET=READ_ALL(stats.durations)),
        at("/stats", GET=READ_ALL(stats.stats)),
        at("/waits", GET=READ_ALL(fleet.waits)),
        at("/storage", GET=READ_ALL(fleet.storage)),
        at("/workers", GET=READ_ALL(fleet.workers)),
        at("/pools", GET=READ_ALL(control.pools)),
        at("/pools/{pool}/pause", POST=STOP_ALL(control.pause_pool)),
        at("/pools/{pool}/resume", POST=STOP_ALL(control.resume_pool)),
        at("/pools/{pool}/drain", POST=STOP_ALL(control.drain_pool)),
        at("/failures", GET=READ_ALL(failures.list)),
        at("/failures/{fingerprint}", GET=READ_ALL(failures.get)),
        at("/failures/{fingerprint}/redrive", GET=READ_ALL(failures.redrive), POST=START_ALL(failures.start_redrive)),
        at("/failures/{fingerprint}/redrive/stop", POST=START_ALL(failures.stop_redrive)),
        at("/findings", GET=READ_ALL(failures.findings)),
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
        at("/", GET=PUBLIC(page.door)),
        at("/page/{version}/{file:path}", GET=PUBLIC(page.file)),
        at("/session", GET=PUBLIC(page.session), POST=PUBLIC(page.sign_in), DELETE=PUBLIC(page.sign_out)),
        at("/live", GET=STREAM(page.live)),
        at("/livez", GET=PUBLIC(health.live)),
        at("/readyz", GET=PUBLIC(health.ready)),
        at("/metrics", GET=READ_ALL(metrics.metrics)),
    ]
