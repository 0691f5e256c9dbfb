"""Housekeeping: what one pool does for all of them.

Pools with the same settings share it: one of them has the turn for `keys.TURN_MS`, and takes it anew with each round.
When that pool ends, or can't reach Redis, another one takes it with its next look at Redis's clock. So many idle pools
cost hardly more than one.

`Housekeeping` runs about each second: it takes back attempts whose leases have ended, queues scheduled tasks that are
due, cancels expired ones, closes questions that nobody has answered in time, releases tasks that wait for ended ones,
goes on with operations on many tasks whose callers have died, and removes old records and what they leave behind.
`RqMaintenance` runs every few seconds and repairs what other RQ programs leave undone on our queues.

Each step is a script that checks for itself whether it still applies, so it does no harm when two pools do it at once:
one that was frozen may still believe that it has the turn. All loops are bounded: the next round does the rest. The
plans below take `by_ms`, a time of Redis's clock: what was due by then is due (None: now).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError

from taskpool.errors import RedisFull, RedisUnavailable
from taskpool.operations import overview, records
from taskpool.operations.catalog import pools
from taskpool.operations.control.drive import look_after_operations, new_driver
from taskpool.operations.flow.confirmations import close_unanswered
from taskpool.operations.flow.upkeep import look_after_workflows
from taskpool.operations.insight import history
from taskpool.operations.insight.redrive import drive_redrives
from taskpool.operations.listing import some_queues
from taskpool.operations.submit import Defaults
from taskpool.redis import keys, rq_job, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, Plan, one, texts, tolerant
from taskpool.redis.replies import ReplyFault
from taskpool.redis.scripts import QueueDue
from taskpool.settings import Settings
from taskpool.text import own_version
from taskpool.types import LEFT_ALONE, ForeignJobs

from .duties import LogOnce, Outage, log
from .recovery import give_back, split_attempt
from .redis_clock import RedisClock

T = TypeVar("T")

BATCH: Final = 200
IDLE_S: Final = 1.0
LEAST_S: Final = 0.05
QUEUES_A_ROUND: Final = 100
"""About how many of all queues each round looks at in turn, whether or not there is something to do."""
SERVED_S: Final = 5.0
"""How often a round reads which queues the pools serve."""
INDEXES: Final = 8
INDEX_BATCH: Final = 500
"""How many indexes are swept in one round, and how many ids of each are looked at."""
OPERATIONS_S: Final = 0.1
"""For how long one round goes on with operations on many tasks."""
RELEASE_STEPS: Final = 20
MOST_SWEPT: Final = 1000
"""Waiting tasks and parents that one step of the sweep reads."""
SAMPLED_QUEUES: Final = 50
"""How many queues have their depth in the history, those with the most tasks; all others are one."""
SETTLED: Final = ("queued", "given_back", "failed", "stopped")
"""The replies of `scripts.crash` when it changed the task."""
LEASE_LOST: Final = "lease lost: its worker can't be reached and may still be running"


class Housekeeping:
    """One duty: every second, or earlier when a scheduled task is due. `wake` cuts its waits short, `on_clock_step` is
    called when Redis's clock was set. Without a `pool_id` it is shared with no other pool.

    A round looks at the queues that workers serve, at those in which something is due, and at a part of all the others.
    So it costs as much with many idle queues as with few.
    """

    def __init__(
        self,
        store: AsyncStore,
        outage: Outage,
        settings: Settings,
        *,
        pool_id: str = "",
        on_clock_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._settings = store, settings
        self._turn = _turn_of(settings) if pool_id else ""
        self._clock = RedisClock(
            store, outage, lease_s=settings.lease_s, on_step=on_clock_step, turn=(self._turn, pool_id)
        )
        self._queue_cursor = self._unique_cursor = "0"
        self._queues_of_pools, self._queues_with_workers = set[str](), set[str]()
        self._read_pools_mono = -SERVED_S
        self._swept_workflows_mono = -IDLE_S
        self._minute = 0  # since 1970: the last one that was seen to begin
        self._due_mono: dict[str, float] = {}  # by queue: when something is due there
        self._unswept: list[str] = []  # the indexes that are still to be swept
        self._swept_to: dict[str, str] = {}
        self._driver = new_driver()
        self._log_once = LogOnce()
        self._alarm: asyncio.TimerHandle | None = None
        self.wake = asyncio.Event()

    def is_mine(self) -> bool:
        """Whether this pool has the housekeeping."""
        return not self._turn or self._clock.is_housekeeper

    async def leave(self) -> None:
        """Lets another pool take the turn, because this one ends. Raises: RedisUnavailable."""
        if self._turn and self.is_mine():
            await self._store.run(Call(("DEL", self._turn), int, again=True))

    def wake_in(self, seconds: float) -> None:
        """Has the next round come that soon, if this pool has the housekeeping."""
        if not self.is_mine():
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + max(seconds, LEAST_S)
        if self._alarm is not None:
            if at >= self._alarm.when():
                return
            self._alarm.cancel()
        self._alarm = loop.call_at(at, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self.wake.set()

    async def step(self) -> float:
        """One round; the seconds until the next. Raises: RedisUnavailable."""
        await self._clock.look()
        if not self.is_mine():
            return IDLE_S
        part = tolerant(some_queues(self._queue_cursor, QUEUES_A_ROUND), ("0", []))
        self._queue_cursor, some = await self._store.run(part)
        if time.monotonic() - self._read_pools_mono >= SERVED_S:
            self._read_pools_mono = time.monotonic()
            if (served := await self._carry_out(pools())) is not None:
                self._queues_of_pools = {queue for pool in served for queue in pool.queues}
        by_ms = self._clock.now_ms  # a step of the clock from here on makes nothing due
        now_mono = time.monotonic()
        due = [queue for queue, at_mono in self._due_mono.items() if at_mono <= now_mono]
        chosen = dict.fromkeys([*self._queues_of_pools, *self._queues_with_workers, *due, *some])
        found = await self._look_at(list(chosen), by_ms)
        leases, scheduled, ended, waiting = ([name for name in found if mark in found[name].marks] for mark in "lsew")
        waits_s: list[float | None] = [each.scheduled_in_s for each in found.values() if "s" not in each.marks]
        if self._clock.may_reap():
            await self._all([reap(queue, max_crashes=self._settings.max_crashes, by_ms=by_ms) for queue in leases])
        waits_s += await self._all([promote(queue, self._settings.foreign, by_ms=by_ms) for queue in scheduled])
        await self._carry_out(expire_queued(by_ms=by_ms))
        await self._carry_out(close_unanswered(by_ms=by_ms))
        waits_s += await self._all([purge_ended(queue, by_ms=by_ms) for queue in ended])
        waits_s.append(await self._carry_out(purge_held(by_ms=by_ms)))
        await self._all([one(scripts.sweep_waiting(queue, MOST_SWEPT)) for queue in waiting])
        waits_s.append(await self._carry_out(release_outbox()))
        waits_s.append(await self._carry_out(drive_redrives(self._driver)))
        sweeps = time.monotonic() - self._swept_workflows_mono >= IDLE_S
        if sweeps:
            self._swept_workflows_mono = time.monotonic()
        waits_s.append(LEAST_S if await self._carry_out(look_after_workflows(by_ms, sweeps=sweeps)) else IDLE_S)
        waits_s.append(LEAST_S if await self._carry_out(look_after_operations(self._driver, OPERATIONS_S)) else IDLE_S)
        await self._sweep_indexes()
        await self._keep_history()
        self._unique_cursor = await self._carry_out(one(scripts.sweep_unique(self._unique_cursor, BATCH))) or "0"
        return max(LEAST_S, min([IDLE_S, *(wait_s for wait_s in waits_s if wait_s is not None)]))

    async def _look_at(self, queues: Sequence[str], by_ms: int) -> dict[str, QueueDue]:
        """Finds what there is to do in each queue, and notes when to look at it again."""
        found: dict[str, QueueDue] = {}
        parts = [queues[at : at + BATCH] for at in range(0, len(queues), BATCH)]
        for part in await self._all([one(scripts.queues_due(part, by_ms=by_ms)) for part in parts]):
            found |= part or {}
        for queue, due in found.items():
            (self._queues_with_workers.add if "v" in due.marks else self._queues_with_workers.discard)(queue)
            self._due_mono.pop(queue, None)
            if due.next_in_s is not None:
                self._due_mono[queue] = time.monotonic() + due.next_in_s
        return found

    async def _sweep_indexes(self) -> None:
        """One step through some of the indexes, in turn: records that went without `purge` leave their ids behind."""
        if not self._unswept:
            self._unswept = await self._carry_out(indexes()) or []
        some, rest = self._unswept[:INDEXES], self._unswept[INDEXES:]
        sweeps = [scripts.sweep_index(index, self._swept_to.get(index, ""), INDEX_BATCH) for index in some]
        reached = await self._all([one(sweep) for sweep in sweeps])
        self._swept_to = {index: id for index, id in zip(some, reached, strict=True) if id}
        self._unswept = [*self._swept_to, *rest]

    async def _keep_history(self) -> None:
        """Once a minute, in one of the pools: closes the minutes that are over, with a sample of the queues' depth."""
        minute = self._clock.now_ms // 60_000
        if minute == self._minute:
            return
        self._minute = minute
        with suppress(RedisFull):  # the next minute closes this one as well
            if await self._carry_out(one(history.take_turn(minute))):
                queues = await self._carry_out(overview.busiest_queues(SAMPLED_QUEUES)) or []
                depth = {queue.name: queue.queued for queue in queues}
                await self._carry_out(history.close_minutes(minute * 60_000, depth))

    async def _all(self, plans: Sequence[Plan[T]]) -> list[T | None]:
        """Carries out plans side by side: they share their round trips, however many there are."""
        return await asyncio.gather(*(self._carry_out(plan) for plan in plans))

    async def _carry_out(self, plan: Plan[T]) -> T | None:
        """Carries out one plan. A damaged record may fail a script: it must not keep the other plans back."""
        try:
            return await self._store.carry_out(plan)
        except ReplyFault as fault:
            self._log_once(logging.ERROR, f"housekeeping: {fault}")
            return None


def _turn_of(settings: Settings) -> str:
    """The key of the turn of all pools that would do the same: of one release, with the same settings."""
    said = repr(
        (own_version(), settings.max_crashes, settings.foreign.argument, settings.type_grace_s, Defaults.of(settings))
    )
    return keys.HOUSEKEEPER + hashlib.blake2b(said.encode(), digest_size=6).hexdigest()


def reap(queue: str, *, max_crashes: int, by_ms: int | None = None) -> Plan[None]:
    """Takes back attempts whose lease has ended. Ours are entered WIP_GRACE_S late, those of a plain RQ worker aren't.
    So a plain one that lives looks due ahead of its time. Those come before ours: the newest are looked at first."""
    ours, plain = yield (
        scripts.due(keys.WIP + queue, limit=BATCH, ahead_s=keys.WIP_GRACE_S, newest_first=True, by_ms=by_ms),
        scripts.due(keys.WIP + queue, limit=BATCH, by_ms=by_ms),
    )
    attempts = [split_attempt(member) for member in dict.fromkeys((*ours.members, *plain.members))]
    if not attempts:
        return
    failure = {"reason": "lease_lost", "message": LEASE_LOST, "may_still_run": True}
    words = yield [
        tolerant(
            scripts.crash(
                id, attempt_id, queue, error=LEASE_LOST, failure=failure, max_crashes=max_crashes,
                only_expired=True, by_ms=by_ms,
            ),
            "",
        )
        for id, attempt_id in attempts
    ]  # fmt: skip
    yield from give_back([attempt for attempt, word in zip(attempts, words, strict=True) if word == "unseen"])
    settled = {id: word for (id, _), word in zip(attempts, words, strict=True) if word in SETTLED}
    found = yield [records.fetch_if_there(id) for id in settled]
    for (id, word), record in zip(settled.items(), found, strict=True):
        worker = record.history[-1].worker if record and record.history else "unknown"
        what = "queued again" if word in ("queued", "given_back") else word
        log.warning(
            "task %s: the lease of worker %s has ended. The worker can't be reached and may still be running the task."
            " The task is %s (reason lease_lost)", id, worker, what,
        )  # fmt: skip


def promote(queue: str, foreign: ForeignJobs = LEFT_ALONE, *, by_ms: int | None = None) -> Plan[float]:
    """Queues scheduled tasks whose time has come, the oldest first; the seconds until the next one. Jobs that are left
    to RQ's scheduler stay. When they fill a batch, the newest due tasks are looked at as well."""
    (due,) = yield (scripts.due(keys.SCHEDULED + queue, limit=BATCH, by_ms=by_ms),)
    if due.members:
        words = yield [tolerant(scripts.promote(id, queue, foreign=foreign), "") for id in due.members]
        if len(due.members) == BATCH and "foreign" in words:
            (newest,) = yield (scripts.due(keys.SCHEDULED + queue, limit=BATCH, newest_first=True, by_ms=by_ms),)
            yield [tolerant(scripts.promote(id, queue, foreign=foreign), "") for id in reversed(newest.members)]
            return IDLE_S if words.count("foreign") == BATCH else LEAST_S
        if "foreign" in words:
            return IDLE_S
    if len(due.members) == BATCH:
        return LEAST_S
    return IDLE_S if due.next_in_ms is None else due.next_in_ms / 1000


def expire_queued(*, by_ms: int | None = None) -> Plan[None]:
    """Cancels tasks that weren't started in time."""
    (due,) = yield (scripts.due(keys.EXPIRING, limit=BATCH, by_ms=by_ms),)
    yield [tolerant(scripts.cancel(id, reason="expired", error=keys.EXPIRED), "") for id in due.members]


def purge_ended(queue: str, *, by_ms: int | None = None) -> Plan[float]:
    """Removes the records of ended tasks whose time is over; the seconds until there may be more."""
    registries = [part + queue for part in (keys.FINISHED, keys.FAILED, keys.CANCELED)]
    found = yield [scripts.due(registry, limit=BATCH, by_ms=by_ms) for registry in registries]
    ended = [(id, registry) for registry, due in zip(registries, found, strict=True) for id in due.members]
    words = yield [tolerant(scripts.purge(id, registry), "") for id, registry in ended]
    # Tasks that others wait for are purged in a later round. Those that aren't released here are in the outbox.
    parents = [id for (id, _), word in zip(ended, words, strict=True) if word == "children"]
    yield [tolerant(scripts.release(id), []) for id in parents]
    return LEAST_S if any(len(due.members) == BATCH for due in found) else IDLE_S


def purge_held(*, by_ms: int | None = None) -> Plan[float]:
    """Looks whether records that were held for tasks that depend on them are still needed; the seconds until there may
    be more."""
    (due,) = yield (scripts.due(keys.HELD, limit=BATCH, by_ms=by_ms),)
    yield [tolerant(scripts.purge(id, keys.HELD), "") for id in due.members]
    return LEAST_S if len(due.members) == BATCH else IDLE_S


def indexes() -> Plan[list[str]]:
    """The keys of all indexes by type, tag and project."""
    prefixes = {keys.TYPES_USED: keys.BY_TYPE, keys.TAGS: keys.BY_TAG, keys.PROJECTS: keys.BY_PROJECT}
    found = yield [tolerant(Call(("SMEMBERS", key), texts, again=True), []) for key in prefixes]
    return [prefix + name for prefix, names in zip(prefixes.values(), found, strict=True) for name in names]


def release_outbox() -> Plan[float]:
    """Releases the tasks that wait for ended ones, and cancels further down; the seconds until there may be more. The
    worker or the caller that ended those has started with it, and may have died."""
    (ids,) = yield (Call(("SRANDMEMBER", keys.OUTBOX, BATCH), texts, again=True),)
    if not ids:
        return IDLE_S
    for _ in range(RELEASE_STEPS):
        left = yield [tolerant(scripts.release(id), []) for id in ids]
        ids = list(dict.fromkeys(id for found in left for id in found))[:BATCH]
        if not ids:
            break
    (count,) = yield (Call(("SCARD", keys.OUTBOX), int, again=True),)
    return LEAST_S if count else IDLE_S


# --- other RQ programs on our queues ----------------------------------------------------------------------------------

LOOK_S: Final = 5.0
WARN_S: Final = 30.0
STUCK_S: Final = 30.0
"""How long a task may have been taken by an RQ worker and not started. RQ's own maintenance fails it after 60 s at the
earliest: by then it is queued again."""
QUEUES_A_LOOK: Final = 500
"""About how many of all queues each look covers in turn, besides those that RQ workers serve."""
SECRETS_BATCH: Final = 2000
SECRETS_STEPS: Final = 5
MISREAD_BATCH: Final = 50
RECHECK_BATCH: Final = 1000


class RqMaintenance:
    """One duty, every LOOK_S, of the pool that has the housekeeping: queues tasks again that a plain RQ worker took and
    never started, or couldn't read; releases RQ jobs that wait for ours; and deletes the secrets of records that RQ's
    tools have deleted."""

    def __init__(
        self,
        store: AsyncStore,
        settings: Settings,
        connection: Redis,
        *,
        is_mine: Callable[[], bool] = lambda: True,
        warn_after_s: float = LOOK_S,
    ) -> None:
        self._is_mine = is_mine
        self._store, self._foreign, self._connection = store, settings.foreign, connection
        self._cursor = "0"
        self._queues: list[str] = []  # the queues of this look
        self._queues_of_rq: set[str] = set()  # the queues that RQ workers serve
        self._adopt_offsets: dict[str, int] = {}
        self._failed_states: dict[str, tuple[str, int]] = {}
        self._recheck_offsets: dict[str, int] = {}
        self._secrets_swept_to = ""
        self._warn_mono = time.monotonic() + warn_after_s
        self._log_once = LogOnce()

    async def step(self) -> float:
        """One look; the seconds until the next. Raises: RedisUnavailable."""
        if not self._is_mine():
            return IDLE_S
        part = tolerant(some_queues(self._cursor, QUEUES_A_LOOK), ("0", []))
        self._cursor, names = await self._store.run(part)
        self._queues = list(dict.fromkeys([*self._queues_of_rq, *names]))
        looks = (self._adopt, self._take_back, self._release_dependents, self._sweep_secrets, self._recheck, self._warn)
        for look in looks:
            try:
                await look()
            except ReplyFault as fault:  # a damaged record must not keep the other looks back
                log.error("beside RQ: %s", fault)
        return LOOK_S

    async def _adopt(self) -> None:
        """Queues the tasks again that an RQ worker took and never started."""
        offsets = {queue: self._adopt_offsets.get(queue, 0) for queue in self._queues}
        adopt = scripts.adopt(offsets, BATCH, after_s=STUCK_S, foreign=self._foreign)
        adopted = await self._store.carry_out(one(adopt))
        offsets = self._adopt_offsets | dict(adopted.offsets)
        self._adopt_offsets = {queue: offset for queue, offset in offsets.items() if offset}
        if adopted.count:
            log.warning("%d tasks that an RQ worker took and never started are queued again", adopted.count)

    async def _take_back(self) -> None:
        """Schedules the tasks again that an RQ worker failed because it couldn't read them."""
        states = {queue: self._failed_states.get(queue, ("", 0)) for queue in self._queues}
        # Older failures are only looked at while an RQ worker serves our queues.
        misread = scripts.misread(states, limit=BATCH, most=MISREAD_BATCH, walks=bool(self._queues_of_rq))
        failed = await self._store.run(misread)
        # Having found some, it looks again: the same ones may be failed again, which changes no state.
        states = self._failed_states | {
            queue: ("" if failed.found else state, at) for queue, (state, at) in failed.states.items()
        }
        self._failed_states = {queue: each for queue, each in states.items() if not each[0].startswith("0 ")}
        for id, entry, traceback in failed.found:
            word = await self._store.run(scripts.judge(id, entry, is_unread=rq_job.is_unread(traceback)))
            if word == "scheduled":
                self._warn_once("an RQ worker failed tasks that it could not read; they are scheduled again")

    async def _release_dependents(self) -> None:
        """Queues the RQ jobs that waited for a job of an RQ function which ended here. RQ's own code does it."""
        for id in await self._store.run(Call(("SRANDMEMBER", keys.RQ_OUTBOX, BATCH), texts, again=True)):
            try:
                await asyncio.to_thread(rq_job.release_dependents, self._connection, id)
            except (ConnectionError, TimeoutError) as error:
                raise RedisUnavailable(f"Redis: {error}") from error
            except Exception as error:  # RQ may raise anything at a record that it can't read
                self._warn_once(f"the RQ jobs that wait for {id} can't be queued: {type(error).__name__}: {error}")
                continue
            await self._store.run(Call(("SREM", keys.RQ_OUTBOX, id), int, again=True))

    async def _sweep_secrets(self) -> None:
        for _ in range(SECRETS_STEPS):
            sweep = scripts.sweep_secrets(self._secrets_swept_to, SECRETS_BATCH)
            self._secrets_swept_to = await self._store.run(sweep)
            if not self._secrets_swept_to:
                return

    async def _recheck(self) -> None:
        """Looks for tasks among the jobs that claims skip."""
        for queue in await self._store.run(overview.foreign_queues()):
            offset = self._recheck_offsets.get(queue, 0)
            recheck = scripts.recheck(queue, offset, RECHECK_BATCH, foreign=self._foreign)
            self._recheck_offsets[queue] = await self._store.run(recheck)

    async def _warn(self) -> None:
        """Logs what is wrong with the RQ programs beside the pools, each thing once."""
        if self._warn_mono > time.monotonic():
            return
        self._warn_mono = time.monotonic() + WARN_S
        _, plain_workers = await self._store.carry_out(overview.neighbours())
        self._queues_of_rq = set().union(*plain_workers.values())
        for text in await self._store.carry_out(overview.worker_warnings()):
            self._warn_once(text)

    def _warn_once(self, text: str) -> None:
        self._log_once(logging.WARNING, text)
