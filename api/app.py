"""The Starlette application: which path leads to which handler, and what every handler shares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.routing import Route

from api.longpoll import LongPolls
from api.problems import HANDLERS
from api.resource import Resource
from api.routes_fleet import FleetRoutes
from api.routes_health import HealthRoutes
from api.routes_submit import SubmitRoutes
from api.routes_tasks import TaskRoutes
from taskpool.async_pool import AsyncTaskPool
from taskpool.settings import Settings, resolve_redis_url


def create_app(settings: Settings) -> Starlette:
    """The application. It connects when first asked something, and closes its connections with its lifespan.

    `app.state.long_polls.end()` lets a server that stops answer all waiting requests.

    Raises:
        ConfigurationError: the settings name no Redis.
    """
    pool = AsyncTaskPool(resolve_redis_url(settings), settings=settings)
    long_polls = LongPolls(pool)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await pool.close()

    app = Starlette(routes=_routes(pool, long_polls, settings), exception_handlers=HANDLERS, lifespan=lifespan)
    app.router.redirect_slashes = False  # "/tasks/" is a path that doesn't exist, not a detour to "/tasks"
    app.state.long_polls = long_polls
    return app


def _routes(pool: AsyncTaskPool, long_polls: LongPolls, settings: Settings) -> list[Route]:
    submit = SubmitRoutes(pool, settings.max_body_bytes)
    tasks = TaskRoutes(pool, long_polls, settings.max_body_bytes)
    fleet = FleetRoutes(pool)
    health = HealthRoutes(pool)
    return [
        Route("/", Resource(GET=health.door)),
        Route("/tasks", Resource(GET=tasks.list, POST=submit.add)),
        Route("/tasks/batch", Resource(POST=submit.add_batch)),
        Route("/tasks/{id}", Resource(GET=tasks.get, DELETE=tasks.remove)),
        Route("/tasks/{id}/stop", Resource(POST=tasks.stop)),
        Route("/tasks/{id}/retry", Resource(POST=tasks.retry)),
        Route("/queues", Resource(GET=fleet.queues)),
        Route("/queues/{name}", Resource(GET=fleet.queue)),
        Route("/types", Resource(GET=fleet.types)),
        Route("/workers", Resource(GET=fleet.workers)),
        Route("/livez", Resource(GET=health.live)),
        Route("/readyz", Resource(GET=health.ready)),
        Route("/metrics", Resource(GET=health.metrics)),
    ]
