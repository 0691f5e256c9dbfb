"""The supervisor's duties: coroutines that are repeated for ever, whatever Redis does.

While Redis is away, a duty that needs it waits and goes on by itself. The log says once that Redis is away and once
that it is back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from taskpool.errors import RedisFull, RedisUnavailable
from taskpool.operations.waiting import Subscriptions
from taskpool.redis import keys
from taskpool.redis.replies import ReplyFault

log = logging.getLogger("workers")

Step = Callable[[], Awaitable[float]]
"""One round of a duty; returns the seconds to wait until the next."""

AWAY_RETRY_S = 0.5
FAULT_RETRY_S = 5.0
FAULT_TRIES = 5
FULL_LOG_S: Final = 60.0
MOST_REASONS: Final = 5
"""An outage logs this many reasons at most: a lost connection first, then why there is no new one."""
MOST_TEXTS: Final = 100
SUBSCRIBE_S: Final = 2.0
SUBSCRIBE_AGAIN_S: Final = 10.0


class BackgroundTasks:
    """asyncio tasks that are kept until they end."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return task

    def cancel(self) -> None:
        for task in tuple(self.running):
            task.cancel()


class LogOnce:
    """Logs each text once, as long as it remembers the text."""

    def __init__(self) -> None:
        self._texts: deque[str] = deque(maxlen=MOST_TEXTS)

    def __call__(self, level: int, text: str) -> None:
        if text not in self._texts:
            self._texts.append(text)
            log.log(level, "%s", text)


class Outage:
    """Whether Redis is away, as the supervisor's duties see it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._back_mono: float | None = None
        self._failing: set[object] = set()
        self._full_logged_mono = -math.inf
        self._reasons: set[str] = set()

    def over_for_s(self) -> float:
        """For how many seconds Redis has been there: 0 while it is away, infinite if it never was away."""
        if self._since is not None:
            return 0.0
        return math.inf if self._back_mono is None else time.monotonic() - self._back_mono

    def note_failure(self, error: RedisUnavailable, who: object = None) -> None:
        """Logs the first failed round trip, and each further reason once. A full Redis isn't away; it is logged once a
        minute."""
        now = time.monotonic()
        if isinstance(error, RedisFull):
            self.note_success(who)
            if now - self._full_logged_mono >= FULL_LOG_S:
                self._full_logged_mono = now
                log.warning("%s; what runs goes on", error)
            return
        self._failing.add(who)
        if self._since is None:
            self._since, self._reasons = now, {str(error)}
            log.warning("Redis is away: %s; waiting for it to come back", error)
        elif str(error) not in self._reasons and len(self._reasons) < MOST_REASONS:
            self._reasons.add(str(error))
            log.warning("Redis is still away: %s", error)

    def note_success(self, who: object = None) -> None:
        """Notes a round trip that worked. Redis is back when no duty fails any more: some may succeed all the time,
        because a replica answers reads."""
        self._failing.discard(who)
        if self._since is not None and not self._failing:
            self._back_mono = time.monotonic()
            log.warning("Redis is back after %.1f s", self._back_mono - self._since)
            self._since = None


async def repeat(name: str, step: Step, *, outage: Outage | None = None, wake: asyncio.Event | None = None) -> None:
    """Calls `step` for ever; `wake` cuts the waits in between short. A step that uses Redis gets an `outage`, and must
    return as soon as Redis has answered."""
    wake, outage = wake or asyncio.Event(), outage or Outage()
    while True:
        wake.clear()
        try:
            wait_s = await step()
            outage.note_success(name)
        except RedisUnavailable as error:
            outage.note_failure(error, name)
            await asyncio.sleep(AWAY_RETRY_S)
        except Exception:
            log.exception("%s failed; it is tried again in %g s", name, FAULT_RETRY_S)
            await asyncio.sleep(FAULT_RETRY_S)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await wake.wait()


async def insist(step: Callable[[], Awaitable[object]], outage: Outage) -> None:
    """Calls `step` until it gets through to Redis. A step that fails although Redis serves is tried `FAULT_TRIES` times
    and then given up, with a log line."""
    faults = 0
    while True:
        try:
            await step()
            outage.note_success(step)
            return
        except RedisUnavailable as error:
            outage.note_failure(error, step)
            await asyncio.sleep(AWAY_RETRY_S)
        except ReplyFault as fault:
            outage.note_success(step)
            faults += 1
            if faults == FAULT_TRIES:
                log.error("given up after %d tries: %s", faults, fault)
                return
            log.error("%s; it is tried again in %g s", fault, FAULT_RETRY_S)
            await asyncio.sleep(FAULT_RETRY_S)


class CommandChannel:
    """Receives, on one connection, the commands for all worker processes (RQ's and our own stops), and when a task will
    be due soon. `on_command` gets the worker's name and the command, `on_soon` the seconds until a task is due.

    A lost message costs only speed: heartbeats see the same stops on the records, and housekeeping finds what is due.
    """

    def __init__(
        self, redis_url: str, on_command: Callable[[str, Mapping[str, Any]], None], on_soon: Callable[[float], None]
    ) -> None:
        self._on_command, self._on_soon = on_command, on_soon
        self._heard: dict[str, Callable[[bytes], None]] = {keys.SOON: self._hear_soon}  # by channel
        self._subscriptions, self.lost = Subscriptions(redis_url, name="taskpool-commands"), asyncio.Event()
        self._subscriptions.when_lost.append(self.lost.set)

    async def step(self) -> float:
        """One round: subscribes to all channels, again if the connection was lost, and finds out whether it is half
        open. Raises: RedisUnavailable."""
        channels = self._heard.items()
        await asyncio.gather(*(self._subscriptions.listen(heard, [channel]) for channel, heard in channels))
        return SUBSCRIBE_AGAIN_S

    async def add(self, worker: str) -> None:
        """Returns when the commands for a worker are received, or after `SUBSCRIBE_S`: the next round tries again."""
        channel = keys.COMMANDS + worker
        heard = self._heard[channel] = partial(self._hear, worker)
        with suppress(TimeoutError, RedisUnavailable):
            async with asyncio.timeout(SUBSCRIBE_S):
                await self._subscriptions.listen(heard, [channel])

    async def remove(self, worker: str) -> None:
        """Ends the subscription to the commands for a worker."""
        channel = keys.COMMANDS + worker
        with suppress(RedisUnavailable):
            await self._subscriptions.ignore(self._heard.pop(channel), [channel])

    def close(self) -> None:
        """Closes the connection."""
        self._subscriptions.close()

    def _hear_soon(self, data: bytes) -> None:
        if data.isdigit():
            self._on_soon(min(int(data), keys.SOON_MS) / 1000)

    def _hear(self, worker: str, data: bytes) -> None:
        try:
            command = msgspec.json.decode(data, type=dict[str, Any])
        except (ValueError, RecursionError):  # any program may publish there
            return
        self._on_command(worker, command)
