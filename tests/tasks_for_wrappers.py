"""Tasks that are wrapped, made or called in other ways than a plain function is."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

from taskpool import Task, task


async def add(a: int, b: int = 0) -> int:
    await asyncio.sleep(0)
    return a + b


def blocking(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """A decorator that makes an `async def` a plain function, by a loop of its own."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))  # type: ignore[arg-type]

    return run


def handing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return run


class Later:
    """An awaitable that isn't a coroutine."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, int]:
        yield from asyncio.sleep(0).__await__()
        return self.value


class Adder:
    async def __call__(self, a: int, b: int = 0) -> int:
        return await add(a, b)


@task("blocking")
@blocking
async def blocking_one(a: int) -> int:
    return await add(a)


@task("handing_on")
@handing_on
async def handed_on(a: int) -> int:
    return await add(a)


@task("plain")
def plain(a: int) -> Any:
    return add(a)


@task("later")
def later(a: int) -> Any:
    return Later(a)


@task("future")
async def future(a: int) -> Any:
    """Returns an asyncio task, of which the result is meant."""
    return asyncio.create_task(add(a))


@task("loopless")
def loopless(a: int) -> Any:
    """Needs a running event loop, which a plain function has not."""
    return asyncio.create_task(add(a))


@task("nested")
def nested(a: int) -> Any:
    async def outer() -> Any:
        return Later(await add(a))

    return outer()


@task("generator")
def generator(a: int) -> Any:
    async def numbers() -> AsyncIterator[int]:
        yield a

    return numbers()


@task("raising")
@handing_on
async def raising(a: int) -> int:
    await add(a)
    raise ValueError(f"no {a}")


@task("hanging")
@handing_on
async def hanging(note: str) -> None:
    Path(note).write_text("1 begun\n")
    await asyncio.sleep(600)


@task("threaded")
@handing_on
async def threaded() -> bool:
    return threading.current_thread() is threading.main_thread()


PARTIAL = task("partial")(functools.partial(add, b=2))
CALLABLE = task("callable")(Adder())
task("lambda")(lambda a: add(a, 0))


class Wrapped(Task):
    type = "class"

    class Payload:
        a: int

    @blocking
    async def run(self) -> int:
        return await add(self.payload.a)
