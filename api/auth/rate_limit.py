"""Rate limits: a token bucket in Redis for each caller, shared by all API processes.

A request costs a token, and so does each further task of a batch and each message over a WebSocket. A process takes the
tokens for a tenth of a second at once and fetches the next ones in time, so that requests of a busy caller wait for no
round trip. Tokens that aren't spent within a second are dropped, never spent twice.

Failed authentication is counted for each address in this process alone, so that it costs Redis nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from contextlib import suppress
from typing import Final

from starlette.types import Scope as AsgiScope

from taskpool.errors import RedisUnavailable
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.scripts import take
from taskpool.settings import Settings

from ..http.problems import Problem, retry_after
from .caller import Caller


def network(host: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 network of 2^64 addresses."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.IPv6Address(int(address) >> 64 << 64))


RATE_KEY: Final = "taskpool.rate"
"""Where the headers for the answer are in the ASGI scope."""
AHEAD_S: Final = 0.1
KEPT_S: Final = 1.0
SHARE: Final = 10
"""A process takes at most this part of a bucket (one tenth) at once, so that others find tokens too."""
MOST_CALLERS: Final = 10_000
FAILED_AT_ONCE: Final = 100
FAILED_A_SECOND: Final = 1.0
"""How often authentication may fail for one address: this many times at once, then this often a second."""


class RateLimits:
    """The rate limits of all callers: requests a minute, with bursts of `rate_burst_s` seconds' worth."""

    def __init__(self, store: AsyncStore, settings: Settings) -> None:
        self._store = store
        self._per_minute, self._burst_s = settings.rate_limit, settings.rate_burst_s
        self._buckets: dict[tuple[str, int], _Bucket] = {}

    async def take(self, caller: Caller, scope: AsgiScope) -> None:
        """Count one request or message of the caller, and put the answer's headers into the scope.
        Raises: Problem 429; RedisUnavailable."""
        bucket = self._bucket(caller)
        if bucket is None:
            return
        wait_s = await bucket.spend()
        scope[RATE_KEY] = bucket.headers(wait_s)
        if wait_s:
            detail = f"the rate limit is {bucket.per_minute:,} requests a minute; try again in {math.ceil(wait_s)} s"
            raise Problem("rate-limited", detail, headers=[retry_after(wait_s)])

    async def take_all(self, caller: Caller, scope: AsgiScope, tasks: int) -> None:
        """Count the tasks of a batch. Its request was counted as the first of them.
        Raises: Problem 429; none of the tasks was counted; RedisUnavailable."""
        bucket = self._bucket(caller)
        if bucket is None or tasks < 2:
            return
        wait_s = await bucket.spend_all(tasks - 1)
        scope[RATE_KEY] = bucket.headers()
        if wait_s:
            if tasks > bucket.most:
                detail = f"a batch may have at most {bucket.most:,} tasks here, the burst of the rate limit; send fewer"
            else:
                detail = (
                    f"the rate limit is {bucket.per_minute:,} requests a minute, and each task of a batch counts; "
                    f"try these {tasks:,} again in {math.ceil(wait_s)} s"
                )
            raise Problem("rate-limited", detail, headers=[retry_after(wait_s)])

    def _bucket(self, caller: Caller) -> _Bucket | None:
        per_minute = self._per_minute if caller.rate_limit is None else caller.rate_limit
        if not per_minute:
            return None
        name = f"key:{caller.key}" if caller.key else f"address:{network(caller.address)}"
        bucket = self._buckets.get((name, per_minute))
        if bucket is None:
            if len(self._buckets) >= MOST_CALLERS:
                self._buckets.clear()
            bucket = self._buckets[name, per_minute] = _Bucket(self._store, name, per_minute, self._burst_s)
        return bucket


class FailedAttempts:
    """How often authentication failed, by name (of an address)."""

    def __init__(self) -> None:
        self._paid_mono: dict[str, float] = {}
        """By name, the time at which its failures are used up at FAILED_A_SECOND; in the order of the last failure."""

    def wait_s(self, name: str) -> float:
        """The seconds until the next attempt may fail; 0: it may fail now."""
        paid_mono = self._paid_mono.get(name, 0.0)
        return max(0.0, paid_mono - time.monotonic() - (FAILED_AT_ONCE - 1) / FAILED_A_SECOND)

    def note(self, name: str) -> None:
        """Count a failure."""
        paid_mono = max(self._paid_mono.pop(name, 0.0), time.monotonic())
        if len(self._paid_mono) >= MOST_CALLERS:
            del self._paid_mono[next(iter(self._paid_mono))]
        self._paid_mono[name] = paid_mono + 1 / FAILED_A_SECOND

    def forgive(self, name: str) -> None:
        """Take back a counted failure."""
        if name in self._paid_mono:
            self._paid_mono[name] -= 1 / FAILED_A_SECOND


class _Bucket:
    """One caller's bucket: the tokens that this process holds, and what it knows of the rest."""

    def __init__(self, store: AsyncStore, name: str, per_minute: int, burst_s: float) -> None:
        self._store, self._name, self.per_minute = store, name, per_minute
        self._rate = per_minute / 60
        self.most = max(1, round(self._rate * burst_s))
        self._block = max(1, min(round(self._rate * AHEAD_S), self.most // SHARE))
        self._policy = b'"requests";q=%d;w=%d' % (self.most, math.ceil(self.most / self._rate))
        self._held = self._left = 0
        self._taken_mono = self._refused_until_mono = 0.0
        self._waiting = self._granted = 0
        """Requests that wait for tokens; fetched tokens that are reserved for them until they wake up."""
        self._taking: asyncio.Task[None] | None = None

    async def spend(self) -> float:
        """Spend a token: 0, or the seconds to wait."""
        while True:
            now_mono = time.monotonic()
            if self._held and now_mono - self._taken_mono < KEPT_S:
                self._held -= 1
                if self._held * 2 < self._block and self._block > 1 and now_mono >= self._refused_until_mono:
                    self._take()
                return 0.0
            if now_mono < self._refused_until_mono:
                return self._refused_until_mono - now_mono
            self._held = 0
            self._waiting += 1
            taking = self._take()
            try:
                await asyncio.shield(taking)
            except asyncio.CancelledError:
                if taking.done() and self._granted:
                    self._granted -= 1
                raise
            finally:
                self._waiting -= 1
            if self._granted:
                self._granted -= 1
                return 0.0

    async def spend_all(self, count: int) -> float:
        """Spend this many tokens or none: 0, or the seconds until there may be enough (or the bucket is full)."""
        held = min(self._held, count) if time.monotonic() - self._taken_mono < KEPT_S else 0
        self._held -= held
        wanted = count - held
        taken = await self._store.run(take(self._name, rate=self._rate, most=self.most, wanted=wanted, needed=wanted))
        self._left = taken.left
        if taken.tokens == wanted:
            return 0.0
        self._held += held
        return min(taken.next_in_s, self.most / self._rate)

    def headers(self, wait_s: float = 0.0) -> list[tuple[bytes, bytes]]:
        """The RateLimit headers: the tokens left, and the seconds until the bucket is full (or until there is one
        token, because the draft allows no earlier `Retry-After`)."""
        left = 0 if wait_s else self._left + self._held + self._granted
        until_s = wait_s or max(self.most - left, 0) / self._rate
        item = b'"requests";r=%d;t=%d' % (left, math.ceil(until_s))
        return [(b"ratelimit-policy", self._policy), (b"ratelimit", item)]

    def _take(self) -> asyncio.Task[None]:
        """Fetch tokens for all waiting requests."""
        if self._taking is None or self._taking.done():
            self._taking = asyncio.create_task(self._fetch())
            self._taking.add_done_callback(_ignore_failure)
        return self._taking

    async def _fetch(self) -> None:
        await asyncio.sleep(0)  # also for the other requests of this turn of the event loop
        wanted = max(self._block, self._waiting)
        taken = await self._store.run(take(self._name, rate=self._rate, most=self.most, wanted=wanted))
        now_mono = time.monotonic()
        reserved = min(taken.tokens, self._waiting)
        self._granted += reserved
        self._held += taken.tokens - reserved
        self._left = taken.left
        if taken.tokens:
            self._taken_mono = now_mono
        else:
            self._refused_until_mono = now_mono + taken.next_in_s


def _ignore_failure(task: asyncio.Task[None]) -> None:
    """Waiting requests raise the failure. If none waits, the next request finds out itself."""
    with suppress(asyncio.CancelledError, RedisUnavailable):
        task.result()
