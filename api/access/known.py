"""The keys that called lately, kept for a few seconds: so a key costs no round trip, and its revocation still bites.

Verifying is one SHA-256 and a comparison in constant time. What expires does so by Redis's clock.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

import msgspec

from taskpool.access import keyring
from taskpool.access.apikey import ApiKey, digest_of
from taskpool.errors import RedisUnavailable
from taskpool.store import AsyncStore

FRESH_S: Final = 5.0
"""How long a key that was looked up is taken as it was."""
USE_NOTED_S: Final = 60.0
MOST_KEPT: Final = 4096


class _Entry(msgspec.Struct, gc=False):
    key: ApiKey | None
    read_at: float  # mono
    noted_at: float  # mono


class KnownKeys:
    """Finds keys, in Redis or among those found lately."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._entries: dict[str, _Entry] = {}
        self._listed: frozenset[str] = frozenset()
        self._listed_at = -FRESH_S  # mono
        self._clock_offset_ms = 0.0  # Redis's time minus our monotonic one

    def at_hand(self, id: str, secret: str) -> ApiKey | None:
        """The key that this is the secret of, if that can be told at once, it lives, and its use needn't be noted."""
        entry, now_mono = self._entries.get(id), time.monotonic()
        if entry is None or entry.key is None or now_mono - entry.read_at >= FRESH_S:
            return None
        now_ms = now_mono * 1000 + self._clock_offset_ms
        is_good = entry.key.takes(digest_of(secret), now_ms) and entry.key.lives(now_ms)
        return entry.key if is_good and now_mono - entry.noted_at < USE_NOTED_S else None

    async def verified(self, id: str, secret: str, *, is_listed: bool = False) -> ApiKey | None:
        """The key that this is the secret of, if there is one; it may have expired. `is_listed`: it is looked up only
        if there was a key of this id when all ids were read, which is done every few seconds at most.

        Raises:
            RedisUnavailable: it isn't known here, and Redis can't be asked.
        """
        entry = self._entries.get(id)
        if entry is None and is_listed and not await self._is_listed(id):
            return None
        if entry is None or time.monotonic() - entry.read_at >= FRESH_S:
            entry = await self._look_up(id)
        if entry.key is None or not entry.key.takes(digest_of(secret), self._now_ms()):
            return None
        if time.monotonic() - entry.noted_at >= USE_NOTED_S:
            entry.noted_at = time.monotonic()  # at once: others needn't note it as well
            with suppress(RedisUnavailable):  # Redis is full, or went away just now: the next use is noted
                await self._store.run(keyring.note_use(id))
        return entry.key

    async def living(self, id: str) -> ApiKey | None:
        """The key of this id, unless it was revoked or has expired.

        Raises:
            RedisUnavailable
        """
        entry = self._entries.get(id)
        if entry is None or time.monotonic() - entry.read_at >= FRESH_S:
            entry = await self._look_up(id)
        return entry.key if entry.key is not None and self.lives(entry.key) else None

    def lives(self, key: ApiKey) -> bool:
        """Whether a key that was just found hasn't expired."""
        return key.lives(self._now_ms())

    async def _is_listed(self, id: str) -> bool:
        if time.monotonic() - self._listed_at >= FRESH_S:
            self._listed_at = time.monotonic()  # at once: others needn't read them as well
            self._listed = await self._store.run(keyring.ids())
        return id in self._listed

    async def _look_up(self, id: str) -> _Entry:
        key, now_ms = await self._store.run_many(keyring.find(id))
        self._clock_offset_ms = now_ms - time.monotonic() * 1000
        before = self._entries.pop(id, None)
        if key is None:  # not kept: anybody can make ids up
            return _Entry(None, 0, 0)
        if len(self._entries) >= MOST_KEPT:
            self._entries.pop(next(iter(self._entries)))
        entry = _Entry(key, time.monotonic(), before.noted_at if before else -USE_NOTED_S)
        self._entries[id] = entry
        return entry

    def _now_ms(self) -> float:
        return time.monotonic() * 1000 + self._clock_offset_ms
