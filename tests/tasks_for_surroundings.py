"""Task types that change what all tasks of a process share, and types that look at it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import io
import logging
import logging.config
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from taskpool import task

user: ContextVar[str] = ContextVar("user", default="nobody")


def _raise(*arguments: Any, **named: Any) -> Any:
    raise RuntimeError("left behind")


def _close_output() -> None:
    for fd in (1, 2):
        os.close(fd)


def _replace_descriptors() -> None:
    with tempfile.TemporaryFile() as file:
        for fd in (1, 2):
            os.dup2(file.fileno(), fd)


def _take_descriptors(way: str) -> None:
    """Does away with every descriptor but the standard ones, as code that makes a daemon does."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in [int(name) for name in os.listdir("/dev/fd") if int(name) > 2 and int(name) != null]:
        with suppress(OSError):
            os.close(fd) if way == "close" else os.dup2(null, fd)


def _remove_directory() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)


def _replace_streams() -> None:
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()


def _let_alarm_ring() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(0.1)


def _replace_methods() -> None:
    sys.stdout.write = sys.stderr.write = _raise  # type: ignore[method-assign]


def _delete_streams() -> None:
    del sys.stdout, sys.stderr


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        raise RuntimeError("no format")


def _break_handlers() -> None:
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Formatter())
        handler.addFilter(_raise)


def _silence_handlers() -> None:
    for handler in logging.getLogger().handlers:
        handler.setLevel(100)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        raise RuntimeError("no loop")


HARM: dict[str, Any] = {
    "none": lambda: None,
    "streams": _replace_streams,
    "closed streams": lambda: (sys.stdout.close(), sys.stderr.close(), sys.stdout.buffer.close()),
    "deleted streams": _delete_streams,
    "methods of streams": _replace_methods,
    "encoding": lambda: sys.stdout.reconfigure(encoding="ascii", errors="strict"),  # type: ignore[union-attr]
    "closed descriptors": _close_output,
    "other descriptors": _replace_descriptors,
    "basicConfig": lambda: logging.basicConfig(force=True, level="ERROR"),
    "dictConfig": lambda: logging.config.dictConfig({"version": 1, "root": {"level": "ERROR"}}),
    "logging disabled": lambda: logging.disable(logging.CRITICAL),
    "handlers": _break_handlers,
    "handlers' level": _silence_handlers,
    "level": lambda: logging.getLogger().setLevel("CRITICAL"),
    "directory": lambda: os.chdir("/"),
    "removed directory": _remove_directory,
    "umask": lambda: os.umask(0o777),
    "socket timeout": lambda: socket.setdefaulttimeout(1e-9),
    "recursion limit": lambda: sys.setrecursionlimit(120),
    "collector": gc.disable,
    "warnings": lambda: warnings.simplefilter("error"),
    "alarm that rings": _let_alarm_ring,
    "signals": lambda: [signal.signal(number, _raise) for number in (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM)],
    "signal mask": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)),
    "alarm": lambda: signal.alarm(100),
    "policy": lambda: asyncio.set_event_loop_policy(None),
    "broken policy": lambda: asyncio.set_event_loop_policy(_Policy()),
    "context": lambda: user.set("alice"),
}


@task("harm")
def harm(what: str) -> str:
    HARM[what]()
    return what


@task("take_descriptors")
def take_descriptors(way: str) -> None:
    _take_descriptors(way)


@task("take_descriptors_async")
async def take_descriptors_async(way: str) -> None:
    _take_descriptors(way)


@task("harm_async")
async def harm_async(what: str) -> str:
    HARM[what]()
    return what


@task("look")
def look() -> dict[str, Any]:
    """How the process stands, and output in all ways."""
    print("printed")
    print("ä")
    logging.getLogger("app").warning("logged")
    os.write(1, b"written\n")
    warnings.warn("warned", RuntimeWarning, stacklevel=1)
    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "directory": os.getcwd(),
        "umask": umask,
        "socket timeout": socket.getdefaulttimeout(),
        "recursion limit": sys.getrecursionlimit(),
        "collects": gc.isenabled(),
        "level": logging.getLogger().level,
        "user": user.get(),
        "pid": os.getpid(),
    }


@task("look_async")
async def look_async() -> str:
    await asyncio.sleep(0)
    return await asyncio.to_thread(user.get)


@task("late", timeout_s=0.2)
def late() -> None:
    time.sleep(30)


@task("loop_harm")
async def loop_harm(what: str) -> str:
    loop = asyncio.get_running_loop()

    async def leave() -> None:
        sys.exit(3)

    match what:
        case "exit":
            left = asyncio.create_task(leave())
            await asyncio.sleep(0.02)
            return f"{left.done()}"
        case "stop":
            loop.call_soon(loop.stop)
        case "close":
            loop.call_soon(loop.close)
        case "cancel all":
            own = asyncio.current_task()
            for each in asyncio.all_tasks():
                if each is not own:
                    each.cancel()
        case "factory":
            loop.set_task_factory(_raise)
        case "raising callback":
            loop.call_soon(sys.exit, 5)
        case "methods":
            loop.create_task = loop.create_future = _raise  # type: ignore[method-assign]
            return what
        case "executor":
            executor = ThreadPoolExecutor(1)
            loop.set_default_executor(executor)
            executor.shutdown()
        case "default executor":
            await loop.shutdown_default_executor()
    await asyncio.sleep(0.02)
    return what


@task("wait")
async def wait(until: str) -> str:
    while not os.path.exists(until):
        await asyncio.sleep(0.01)
    return "waited"


@task("wait_for_another")
async def wait_for_another(until: str) -> str:
    return await asyncio.create_task(wait(until))


@task("awaits_exit")
async def awaits_exit(way: str) -> None:
    """A sub-task or a thread raises GeneratorExit, and this task awaits it."""

    def leave() -> None:
        raise GeneratorExit

    async def leave_async() -> None:
        leave()

    await (asyncio.create_task(leave_async()) if way == "sub-task" else asyncio.to_thread(leave))


@task("multiprocess")
async def multiprocess() -> list[int | None]:
    """The exit statuses of processes that a thread of an executor starts."""

    def run() -> int | None:
        process = multiprocessing.get_context("fork").Process(target=time.monotonic)
        process.start()
        process.join()
        return process.exitcode

    with ThreadPoolExecutor(1) as executor:
        return [await asyncio.to_thread(run), executor.submit(run).result()]


@task("segfault")
def segfault() -> None:
    ctypes.string_at(0)
