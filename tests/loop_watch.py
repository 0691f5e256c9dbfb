"""Watches the API's event loop in tests: whatever keeps it for too long in one go is named, with its request.

It measures CPU time of the loop's thread, because other processes make a test wait, but hardly make it compute longer.
A slow or crowded machine does: so whatever was too long is compared with a fixed piece of work, done right behind it.
Garbage collection isn't counted. It belongs to the process, and pytest's heap is large.

`python -m tests.loop_watch` is `python -m taskpool_api` under the watch; it logs what it finds. `watching` is for
applications within a test.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from statistics import median
from typing import Any, Final

LIMIT_S: Final = 0.05
"""On the machine that USUAL_S was measured on. On one that is half as fast it is twice as long."""
USUAL_S: Final = 0.001
SAMPLE_S: Final = 0.01
SHOWN: Final = 15
"""Frames of a stack, the innermost first."""
SHOWN_STACKS: Final = 3
HELD: Final = "kept the event loop for"
"""What a line of a log says that tells of a finding."""

_request: ContextVar[str] = ContextVar("request", default="no request")


class Watch:
    """What was found so far. One for each process: it watches the thread that made it."""

    def __init__(self, *, of_requests_alone: bool) -> None:
        self.found: list[str] = []
        self._of_requests_alone = of_requests_alone
        self._thread = threading.get_ident()
        self._elsewhere_s = self._collecting_since_s = 0.0
        """The CPU time that was spent on garbage, and in what was measured by itself."""
        self._going_on: object | None = None
        self._seen: tuple[object, Counter[tuple[str, ...]]] = (None, Counter())
        """What goes on, and how often it was seen in which functions."""
        gc.callbacks.append(self._collect)
        threading.Thread(target=self._sample, daemon=True).start()

    @contextmanager
    def measuring(self, what: Any) -> Iterator[None]:
        """Measure the block without the blocks within it, which are measured by themselves."""
        if threading.get_ident() != self._thread:
            yield
            return
        around, self._going_on = self._going_on, object()
        mark, began_s, elsewhere_s = self._going_on, time.thread_time(), self._elsewhere_s
        try:
            yield
        finally:
            took_s = time.thread_time() - began_s - (self._elsewhere_s - elsewhere_s)
            self._elsewhere_s += took_s
            self._going_on = around
            if took_s > LIMIT_S:
                self._judge(took_s, what, mark)

    def step(self, request: str, call: Callable[[], Any]) -> Any:
        """One step of a request."""
        token = _request.set(request)
        try:
            with self.measuring("its handler"):
                return call()
        finally:
            _request.reset(token)

    def callback(self, callback: Callable[..., Any], *arguments: Any) -> Any:
        """One callback of the loop."""
        if self._of_requests_alone and _request.get() == "no request":
            return callback(*arguments)
        with self.measuring(callback):
            return callback(*arguments)

    def _judge(self, took_s: float, what: Any, mark: object) -> None:
        slowness = max(1.0, median([fixed_work_s() for _ in range(5)]) / USUAL_S)
        if took_s <= LIMIT_S * slowness:
            return
        seen, stacks = self._seen
        where = _shown(Counter(stacks)) if seen is mark else "no stack: it was in C"
        self.found.append(
            f"{_request.get()} {HELD} {took_s * 1000:.0f} ms of CPU time in one go (allowed: "
            f"{LIMIT_S * slowness * 1000:.0f} ms here), in {what}:\n  {where}"
        )

    def _collect(self, phase: str, info: dict[str, int]) -> None:
        if threading.get_ident() == self._thread:
            if phase == "start":
                self._collecting_since_s = time.thread_time()
            else:
                self._elsewhere_s += time.thread_time() - self._collecting_since_s

    def _sample(self) -> None:
        """Keep the stacks of what goes on since the last sample."""
        before = None
        while True:
            time.sleep(SAMPLE_S)
            mark = self._going_on
            if mark is not None and mark is before:
                # All in one go: while a file is read for its lines, the frame goes on.
                if self._seen[0] is not mark:
                    self._seen = (mark, Counter())
                self._seen[1][_functions_of(self._thread)] += 1
            before = mark


class _Steps:
    """A coroutine, each step of which is measured."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], watch: Watch, request: str) -> None:
        self._coroutine, self._watch, self._request = coroutine, watch, request

    def __await__(self) -> Generator[Any, Any, Any]:
        advance: Callable[[], Any] = partial(self._coroutine.send, None)
        while True:
            try:
                awaited = self._watch.step(self._request, advance)
            except StopIteration as end:
                return end.value
            try:
                advance = partial(self._coroutine.send, (yield awaited))
            except BaseException as error:
                advance = partial(self._coroutine.throw, error)


class _WatchedCalls:
    """A part of an event loop: each callback is measured."""

    watch: Watch | None = None

    def call_soon(self, callback: Any, *arguments: Any, context: Any = None) -> Any:
        return super().call_soon(*self._watched(callback, arguments), context=context)  # type: ignore[misc]

    def call_at(self, when: float, callback: Any, *arguments: Any, context: Any = None) -> Any:
        return super().call_at(when, *self._watched(callback, arguments), context=context)  # type: ignore[misc]

    def call_later(self, delay: float, callback: Any, *arguments: Any, context: Any = None) -> Any:
        return super().call_later(delay, *self._watched(callback, arguments), context=context)  # type: ignore[misc]

    def _watched(self, callback: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.watch is not None and getattr(callback, "func", None) != self.watch.callback:
            callback = partial(self.watch.callback, callback)
        return (callback, *arguments)


class WatchedLoop(_WatchedCalls, asyncio.SelectorEventLoop):  # type: ignore[misc]
    """asyncio's loop, whose callbacks are measured while there is a watch."""


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Watch every application in this process, in any loop, and what it starts in a `WatchedLoop`."""
    from api.app import Application

    serve: Any = Application.__call__

    async def measured(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await _Steps(serve(self, scope, receive, send), watch, _name(scope))

    Application.__call__ = measured  # type: ignore[method-assign]
    _WatchedCalls.watch = watch
    try:
        yield
    finally:
        Application.__call__ = serve  # type: ignore[method-assign]
        _WatchedCalls.watch = None


def _functions_of(thread: int) -> tuple[str, ...]:
    """The functions that a thread is in, the innermost first, each with the line that it began at."""
    codes = [frame.f_code for frame, _ in traceback.walk_stack(sys._current_frames().get(thread))]
    return tuple(f"{code.co_filename}:{code.co_firstlineno} in {code.co_name}" for code in codes[:SHOWN])


def _shown(stacks: Counter[tuple[str, ...]]) -> str:
    """The stacks that were seen most often. One alone could come from just before or behind the long work."""
    return "\n  and in\n  ".join("\n  ".join(stack) for stack, _ in stacks.most_common(SHOWN_STACKS))


def _name(scope: Any) -> str:
    query = f"?{scope['query_string'].decode('latin-1')[:100]}" if scope.get("query_string") else ""
    return f"{scope.get('method', scope['type'])} {scope.get('path', '')[:100]}{query}"


def fixed_work_s() -> float:
    """The CPU time of a piece of work like a handler's: Python and C, memory made and let go, nothing collected."""
    was_collecting = gc.isenabled()
    gc.disable()
    began_s = time.thread_time()
    values: list[Any] = [{"id": str(number), "values": [number] * 3} for number in range(1000)]
    json.loads(json.dumps(values))
    took_s = time.thread_time() - began_s
    if was_collecting:
        gc.enable()
    return took_s


def _serve_watched() -> int:
    import uvloop

    from api.__main__ import main
    from api.connections import LimitedProtocol
    from api.server import LimitedSocket
    from taskpool.redis.async_connection import _Link

    watch = Watch(of_requests_alone=False)

    class Found(list[str]):
        def append(self, text: str) -> None:
            print(text, file=sys.stderr, flush=True)

    watch.found = Found()

    class Loop(_WatchedCalls, uvloop.Loop):  # type: ignore[misc]
        pass

    uvloop.Loop = Loop  # type: ignore[misc]
    for protocol in (LimitedProtocol, LimitedSocket, _Link):
        received: Any = protocol.data_received

        def measured(self: Any, data: bytes, received: Any = received) -> None:
            with watch.measuring(received):
                received(self, data)

        protocol.data_received = measured  # type: ignore[method-assign]
    with watching(watch):
        return main()


if __name__ == "__main__":
    raise SystemExit(_serve_watched())
