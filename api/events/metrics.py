"""What this process counts while it hands events to its clients. `/metrics` shows it.

The lag of an event is the time from the event, by Redis's clock, to the moment when it is in its clients' queues. The
clocks of Redis and of this host may differ by any amount, so each pass over the stream and each mark of the hub also
reads Redis's time.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from taskpool.redis.keys import BUCKETS_S

StreamKind = Literal["events", "log", "live", "websocket"]
"""What a client follows: events, a log or the figures of the web page over HTTP; or a WebSocket."""
STREAM_KINDS: Final[Sequence[StreamKind]] = ("events", "log", "live", "websocket")
Reason = Literal["trimmed", "slow"]
"""Why a subscription lost events; see `Resync`."""
REASONS: Final[Sequence[Reason]] = ("trimmed", "slow")
DRIFT: Final = 0.001
"""How much faster or slower than this host's clock Redis's may run: a slewing NTP changes half of that."""
MOST_MS: Final = 86_400_000
"""An event with a time before that was not published by our scripts."""


class Followers(NamedTuple):
    """What `/metrics` shows: the open streams by kind, the lags of events (a count for each bucket, without those below
    it, and their sum), and what was lost."""

    streams: Mapping[str, int]
    lags: Sequence[int]
    lags_sum_s: float
    dropped: int
    resyncs: Mapping[str, int]


class ClockOffset:
    """By how much Redis's clock is ahead of this host's monotonic one, in ms.

    Redis read its time between the sending of a command and the arrival of the reply, so each reading gives a range.
    Later readings narrow it. If one contradicts it, Redis's clock was set, or another server has taken over: then only
    the last one counts."""

    def __init__(self) -> None:
        self._low, self._high = -math.inf, math.inf
        self._noted_mono = 0.0
        self.ms: float | None = None
        """None: unknown yet."""

    def note(self, redis_ms: int, sent_mono: float, received_mono: float) -> None:
        """Redis's time was `redis_ms`, without the part of a ms, between these times of the monotonic clock."""
        low, high = redis_ms - received_mono * 1000, redis_ms + 1 - sent_mono * 1000
        drift_ms = (received_mono - self._noted_mono) * 1000 * DRIFT
        known_low, known_high = self._low - drift_ms, self._high + drift_ms
        if low <= known_high and known_low <= high:
            low, high = max(low, known_low), min(high, known_high)
        self._low, self._high, self._noted_mono = low, high, received_mono
        self.ms = (low + high) / 2


class EventMetrics:
    """The counts of this process since it started."""

    def __init__(self) -> None:
        self.clock = ClockOffset()
        self._lags = [0] * (len(BUCKETS_S) + 1)
        self._lags_sum_s = 0.0
        self._dropped = 0
        self._resyncs: Counter[str] = Counter(dict.fromkeys(REASONS, 0))

    def delivered(self, at_ms: int) -> None:
        """An event of this time is in the queues of its clients now."""
        offset_ms = self.clock.ms
        if offset_ms is None:
            return
        lag_s = min(max(int(time.monotonic() * 1000 + offset_ms) - at_ms, 0), MOST_MS) / 1000
        self._lags[bisect_left(BUCKETS_S, lag_s)] += 1
        self._lags_sum_s += lag_s

    def lost(self, reason: Reason, dropped: int = 0) -> None:
        """A subscription lost events: `dropped` of them were in the queue of a client that was too slow."""
        self._resyncs[reason] += 1
        self._dropped += dropped

    def now(self, streams: Iterable[StreamKind] = ()) -> Followers:
        """All counts, as they are now. `streams` are those that are open."""
        open_: Counter[str] = Counter(dict.fromkeys(STREAM_KINDS, 0))
        open_.update(streams)
        return Followers(dict(open_), tuple(self._lags), self._lags_sum_s, self._dropped, dict(self._resyncs))
