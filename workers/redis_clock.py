"""Watches Redis's clock, which leases, delays and expiries follow, against this host's clock, which never steps.

Each round of housekeeping reads Redis's time. When it has gone on by much more or much less than this host's clock, it
was stepped: by an administrator, by NTP, or by a failover to a server with another clock. Then every attempt gets a new
lease, no lease is taken back before every pool has had time to renew its own, and due times that came from a duration
are corrected. See docs/reliability.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from taskpool.operations.listing import all_queues
from taskpool.redis import keys, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, redis_ms, tolerant
from taskpool.redis.scripts import Tick

from .duties import Outage, log
from .process_group import boottime

DRIFT: Final = 0.001
"""How much faster or slower a clock may run that isn't stepped: a slewing NTP changes half of that."""
LEAST_STEP_S: Final = 2.0
STEP_SHARE: Final = 0.25
"""A difference counts as a step from two seconds on, or from this share of a lease if that is less."""
SURE_SHARE: Final = 1 / 8
"""How much of the least step a reading may leave open."""
READINGS: Final = 3
"""How often a step is measured again while Redis answers slowly."""
GAP_SHARE: Final = 1 / 3
REBASE_AT_ONCE: Final = 500
REBASE_PAGES: Final = 20
QUEUES_AT_ONCE: Final = 50
END: Final = "end"


class StepDetector:
    """Finds steps of Redis's clock. It keeps the range in which the difference between the two clocks must lie."""

    def __init__(self, least_step_ms: float) -> None:
        self._least_ms = least_step_ms
        self._low = self._high = 0.0
        self._before_step = 0.0  # the difference of the clocks before the last step
        self._read_at: float | None = None
        self.is_quick = False
        """Whether the last reading was quick, so that it is exact."""
        self.is_sure = False
        """Whether the last reading was quick and found no step, nor a part of one."""

    @property
    def is_new(self) -> bool:
        """Whether it has seen no time of Redis yet."""
        return self._read_at is None

    def expected_ms(self, now_s: float) -> int | None:
        """Redis's time at a time of this host's clock, unless it was stepped; None: unknown yet."""
        return None if self._read_at is None else round(now_s * 1000 + (self._low + self._high) / 2)

    def step_ms(self, redis_ms: float, sent_s: float, received_s: float) -> int:
        """By how many ms the clock was stepped since the last reading, or 0. Redis's time was read between `sent_s` and
        `received_s` of this host's clock."""
        low, high = self._range(redis_ms, sent_s, received_s)
        before, self._read_at = self._read_at, received_s
        if before is None:
            self._low, self._high, self.is_sure = low, high, False
            return 0
        drift_ms = max(received_s - before, 0.0) * 1000 * DRIFT
        self._low, self._high = self._low - drift_ms, self._high + drift_ms
        apart_ms = max(low - self._high, 0.0) or min(high - self._low, 0.0)
        self.is_sure = self.is_quick and abs(apart_ms) < self._least_ms * SURE_SHARE
        if abs(apart_ms) >= self._least_ms:
            self._before_step = (self._low + self._high) / 2
            self._low, self._high = low, high
            return round((low + high) / 2 - self._before_step)
        if not apart_ms:
            self._low, self._high = max(low, self._low), min(high, self._high)
        return 0

    def again_ms(self, redis_ms: float, sent_s: float, received_s: float) -> int:
        """The step that was just found, measured again."""
        self._low, self._high = self._range(redis_ms, sent_s, received_s)
        self._read_at = received_s
        return round((self._low + self._high) / 2 - self._before_step)

    def _range(self, redis_ms: float, sent_s: float, received_s: float) -> tuple[float, float]:
        low, high = redis_ms - received_s * 1000, redis_ms - sent_s * 1000
        self.is_quick = high - low < self._least_ms * SURE_SHARE
        return low, high


class RedisClock:
    """What housekeeping knows of Redis's clock. `on_step` is called when it was stepped."""

    def __init__(
        self,
        store: AsyncStore,
        outage: Outage,
        *,
        lease_s: float,
        clock: Callable[[], float] = boottime,
        on_step: Callable[[], None] = lambda: None,
        turn: tuple[str, str] = ("", ""),
    ) -> None:
        self._store, self._outage, self._clock, self._on_step = store, outage, clock, on_step
        self._turn = turn
        self._lease_ms = round(lease_s * 1000)
        self._least_ms = round(min(LEAST_STEP_S, lease_s * STEP_SHARE) * 1000)
        self._detector = StepDetector(self._least_ms)
        self._base_ms = self._steady_ms = 0
        self._unnoted_ms = 0  # a step that is measured, and not noted in Redis yet
        self._steady_since: float | None = None
        self._corrected_ms: int | None = None
        self._cursors: dict[str, str] = {}
        self.now_ms = 0
        """Redis's time at the last look, or earlier while a step of the clock may be unnoticed: only what was due by
        then is due in this round."""
        self.is_housekeeper = False
        """Whether this pool had the housekeeping at the last look."""

    async def look(self) -> None:
        """Reads Redis's time, and notes a step of its clock. Raises: RedisUnavailable, also when Redis takes no
        writes."""
        sent = self._clock()
        tick = await self._store.run(self._tick(sent))
        received = self._clock()
        is_first = self._detector.is_new
        step_ms = self._detector.step_ms(tick.now_ms, sent, received)
        if is_first:
            self._base_ms = tick.stepped_ms
            # A pool that starts has nothing to compare with, but time doesn't go back by itself.
            step_ms = -tick.behind_ms if tick.behind_ms >= self._least_ms else 0
        self._unnoted_ms += step_ms
        if step_ms and not is_first:
            await self._measure_again(step_ms)
        if self._steady_since is None:
            self._steady_since = received
        self.now_ms, self._steady_ms, self.is_housekeeper = tick.due_by_ms, tick.steady_ms, tick.is_housekeeper
        if self._unnoted_ms:
            await self._note_step(self._unnoted_ms, received)
            self._unnoted_ms = 0
        else:
            if self._detector.is_sure:  # then the steps that others noted happened before this pool began to measure
                self._base_ms = tick.stepped_ms
            if not tick.is_corrected:
                await self._correct(tick)

    def may_reap(self) -> bool:
        """Whether every pool had a lease's time to renew its leases: writes worked, and the clock ran steadily."""
        return self._steady_ms >= self._lease_ms and self._outage.over_for_s() > self._lease_ms / 1000

    def _tick(self, now: float) -> Call[Tick]:
        steady_s = 0.0 if self._steady_since is None else min(now - self._steady_since, self._outage.over_for_s())
        corrected_ms, self._corrected_ms = self._corrected_ms, None
        return scripts.tick(
            steady_ms=max(0, round(steady_s * 1000)),
            gap_ms=round(self._lease_ms * GAP_SHARE),
            lease_ms=self._lease_ms,
            expected_ms=self._detector.expected_ms(now),
            least_ms=self._least_ms,
            base_ms=self._base_ms,
            corrected_ms=corrected_ms,
            turn=self._turn,
        )

    async def _measure_again(self, step_ms: int) -> None:
        """While Redis hangs, its reply says little about the time: delays would be wrong by half of that wait."""
        for _ in range(READINGS):
            if self._detector.is_quick:
                break
            sent = self._clock()
            now_ms = await self._store.run(redis_ms())
            better_ms = self._detector.again_ms(now_ms, sent, self._clock())
            self._unnoted_ms += better_ms - step_ms
            step_ms = better_ms

    async def _note_step(self, step_ms: int, now: float) -> None:
        is_new, self._base_ms = await self._store.run(
            scripts.step(step_ms, base_ms=self._base_ms, least_ms=self._least_ms, lease_ms=self._lease_ms)
        )
        self._steady_since, self._steady_ms, self._cursors = now, 0, {}
        log.warning(
            "Redis's clock was set %s by %.1f s: every attempt gets a new lease%s",
            "forward" if step_ms > 0 else "back", abs(step_ms) / 1000, "" if is_new else ", as another pool noted",
        )  # fmt: skip
        self._on_step()

    async def _correct(self, tick: Tick) -> None:
        """Some bounded steps through all due times; the next round goes on."""
        queues = await self._store.run(all_queues())
        for _ in range(REBASE_PAGES):
            places = [queue for queue in ("", keys.OF_PEOPLE, *queues) if self._cursors.get(queue) != END][
                :QUEUES_AT_ONCE
            ]
            if not places:
                self._corrected_ms = tick.stepped_ms
                self._cursors = {}
                return
            rebases = [scripts.rebase(queue, self._cursors.get(queue, "0"), REBASE_AT_ONCE) for queue in places]
            reached = await self._store.run_many([tolerant(rebase, "0") for rebase in rebases])
            for queue, cursor in zip(places, reached, strict=True):
                self._cursors[queue] = END if cursor == "0" else cursor
