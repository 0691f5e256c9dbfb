"""The watch over the event loop: it names the request that takes too long in one go, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.app import Application
from tests.loop_watch import LIMIT_S, USUAL_S, Watch, fixed_work_s, watching

ALLOWED = round(LIMIT_S / USUAL_S)
"""So many pieces of the fixed work may be done in one go, on any machine."""


def work(pieces: int) -> None:
    for _ in range(pieces):
        fixed_work_s()


async def at_once(request: Request) -> Response:
    work(ALLOWED * 6)
    return Response()


async def in_a_task(request: Request) -> Response:
    await asyncio.create_task(_later())
    return Response()


async def in_a_callback(request: Request) -> Response:
    asyncio.get_running_loop().call_soon(work, ALLOWED * 6)
    await asyncio.sleep(0)
    return Response()


async def in_slices(request: Request) -> Response:
    for _ in range(12):
        work(ALLOWED // 5)
        await asyncio.sleep(0)
    return Response()


async def _later() -> None:
    work(ALLOWED * 6)


async def ask(handler: Callable[[Request], Awaitable[Response]]) -> list[str]:
    watch = Watch(of_requests_alone=True)
    app = Application(routes=[Route("/things", handler)])
    with watching(watch):
        work(ALLOWED * 6)  # the test's own
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            assert (await client.get("/things?a=1")).status_code == 200
    return watch.found


@pytest.mark.parametrize("handler", [at_once, in_a_task, in_a_callback])
async def test_a_request_that_takes_too_long_in_one_go_is_named_with_its_stack(
    handler: Callable[[Request], Awaitable[Response]],
) -> None:
    (found,) = await ask(handler)

    assert found.startswith("GET /things?a=1 kept the event loop for ")
    assert "in work" in found


async def test_a_request_that_lets_others_have_their_turn_is_not() -> None:
    assert await ask(in_slices) == []
