"""What other programs with RQ leave undone on our queues: any pool looks after it, every few seconds, without a lock.

Tasks that a plain RQ worker took and never started are queued again. When RQ's tools delete a task's record, its
secrets are deleted as well.

What keeps time and cleans up for everybody: any pool does it, about each second, without a leader or a lock.

Every step is a script that checks for itself whether it still applies, so that several pools at it do no harm.
All loops are bounded: what is left over comes with the next round.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError

from taskpool.errors import RedisUnavailable
from taskpool.operations import overview, records
from taskpool.operations.catalog import pools
from taskpool.operations.listing import some_queues
from taskpool.redis import keys, rq_job, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, Plan, one, tolerant
from taskpool.redis.keys import TASKS, field_name
from taskpool.redis.replies import ReplyFault
from taskpool.redis.scripts import QueueDue
from taskpool.settings import Settings
from taskpool.types import LEFT_ALONE, ForeignJobs

from .duties import Outage
from .recovery import give_back
from .redis_clock import Timekeeper

log = logging.getLogger("workers")

LOOK_S: Final = 5.0
WARN_S: Final = 30.0
STUCK_S: Final = 30.0
"""How long a task may have been taken by an RQ worker and not started. RQ's own maintenance fails it after 60 s at the
earliest: by then it is queued again."""
BATCH: Final = 200
QUEUES_A_LOOK: Final = 500
"""About how many queues are looked at each time, on the way round all of them, besides those that RQ workers serve."""
SECRETS_BATCH: Final = 2000
SECRETS_STEPS: Final = 5
MISREAD_BATCH: Final = 50
RECHECK_BATCH: Final = 1000
TOLD: Final = 100


class BesideRq:
    """One duty: a look every LOOK_S."""

    def __init__(
        self,
        store: AsyncStore,
        settings: Settings,
        connection: Redis,
        *,
        stuck_s: float = STUCK_S,
        warn_after_s: float = LOOK_S,
    ) -> None:
        self._store, self._foreign, self._stuck_s = store, settings.foreign, stuck_s
        self._connection = connection
        self._told: deque[str] = deque(maxlen=TOLD)
        self._cursor = "0"
        self._shared: set[str] = set()
        """The queues that RQ workers serve."""
        self._offsets: dict[str, int] = {}
        self._states: dict[str, tuple[str, int]] = {}
        self._walks = False
        """Whether older failures are looked at as well: an RQ worker serves our queues."""
        self._rechecked: dict[str, int] = {}
        self._swept_to = ""
        self._warn_mono = time.monotonic() + warn_after_s

    async def step(self) -> float:
        """One look; the seconds until the next.

        Raises:
            RedisUnavailable: Redis is away.
        """
        part = tolerant(some_queues(self._cursor, QUEUES_A_LOOK), ("0", []))
        self._cursor, names = await self._store.run(part)
        queues = list(dict.fromkeys([*self._shared, *names]))
        looks = (
            partial(self._adopt, queues),
            partial(self._take_back, queues),
            self._release_dependents,
            self._sweep_secrets,
            self._recheck,
            self._warn,
        )
        for look in looks:
            try:
                await look()
            except ReplyFault as fault:  # a damaged record must not keep the other looks back
                log.error("beside RQ: %s", fault)
        return LOOK_S

    async def _adopt(self, queues: Sequence[str]) -> None:
        """Queues the tasks again that an RQ worker took and never started."""
        if not queues:
            return
        offsets = {queue: self._offsets.get(queue, 0) for queue in queues}
        adopted = await self._store.carry_out(
            one(scripts.adopt(offsets, BATCH, after_s=self._stuck_s, foreign=self._foreign))
        )
        self._offsets |= adopted.offsets
        self._offsets = {queue: offset for queue, offset in self._offsets.items() if offset}
        if adopted.count:
            log.warning("%d tasks that an RQ worker took and never started are queued again", adopted.count)

    async def _take_back(self, queues: Sequence[str]) -> None:
        """Schedules the tasks again that an RQ worker failed because it couldn't read them."""
        states = {queue: self._states.get(queue, ("", 0)) for queue in queues}
        if not states:
            return
        failed = await self._store.run(scripts.misread(states, limit=BATCH, most=MISREAD_BATCH, walks=self._walks))
        # Having found some, it looks again: the same ones may be failed again, which changes no state.
        self._states |= {queue: ("" if failed.found else state, at) for queue, (state, at) in failed.states.items()}
        self._states = {queue: each for queue, each in self._states.items() if not each[0].startswith("0 ")}
        for id, entry, traceback in failed.found:
            word = await self._store.run(scripts.judge(id, entry, is_unread=rq_job.is_unread(traceback)))
            if word == "scheduled":
                self._tell("an RQ worker failed tasks that it could not read; they are scheduled again")

    async def _recheck(self) -> None:
        """Looks for tasks among the jobs that claims pass over."""
        queues = await self._store.run(overview.foreign_queues())
        for queue in queues:
            offset = self._rechecked.get(queue, 0)
            self._rechecked[queue] = await self._store.run(
                scripts.recheck(queue, offset, RECHECK_BATCH, foreign=self._foreign)
            )

    async def _warn(self) -> None:
        """Logs what is wrong with the RQ programs beside the pools, each thing once."""
        if self._warn_mono > time.monotonic():
            return
        self._warn_mono = time.monotonic() + WARN_S
        shared = (await self._store.carry_out(overview.plain_workers())).values()
        self._shared = set().union(*shared)
        self._walks = bool(self._shared)
        for text in await self._store.carry_out(overview.worker_warnings()):
            self._tell(text)

    async def _release_dependents(self) -> None:
        """Queues the RQ jobs that waited for a job of an RQ function which ended here. RQ's own code does it."""
        ids = await self._store.run(Call(("SRANDMEMBER", keys.RQ_OUTBOX, BATCH), _names, again=True))
        for id in ids:
            try:
                await asyncio.to_thread(rq_job.release_dependents, self._connection, id)
            except (ConnectionError, TimeoutError) as error:
                raise RedisUnavailable(f"Redis: {error}") from error
            except Exception as error:  # RQ raises what it likes at a record that it can't read
                self._tell(f"the RQ jobs that wait for {id} can't be queued: {type(error).__name__}: {error}")
                continue
            await self._store.run(Call(("SREM", keys.RQ_OUTBOX, id), int, again=True))

    def _tell(self, text: str) -> None:
        """Logs a warning, once."""
        if text not in self._told:
            self._told.append(text)
            log.warning("%s", text)

    async def _sweep_secrets(self) -> None:
        for _ in range(SECRETS_STEPS):
            self._swept_to = await self._store.run(scripts.sweep_secrets(self._swept_to, SECRETS_BATCH))
            if not self._swept_to:
                return


def _names(reply: list[bytes]) -> list[str]:
    return [name.decode(errors="replace") for name in reply]


T = TypeVar("T")
QUEUES_A_ROUND: Final = 100
"""About how many queues each round looks at, whether or not there is something to do, on its way round all of them."""
SERVED_S: Final = 5.0
"""How often a round reads which queues the pools serve."""
INDEXES: Final = 8
INDEX_BATCH: Final = 500
"""How many indexes are swept in one round, and how many ids of each are looked at."""
RELEASE_STEPS: Final = 20
MOST_SWEPT: Final = 1000
"""Waiting tasks and parents that one step of the sweep reads."""
IDLE_S: Final = 1.0
LEAST_S: Final = 0.05
FAULTS_TOLD: Final = 100

SETTLED: Final = ("queued", "failed", "stopped")
"""What `scripts.crash` answers when it changed the task."""
NOT_STARTED: Final = "canceled: it was not started before it expired"
LEASE_LOST: Final = "lease lost: its worker can't be reached and may still be running"


class Rounds:
    """Which queues a round looks at: those that workers serve, those in which something is due, and a part of all.

    So a round costs as much with many idle queues as with few. What other programs, and pools of another release, bring
    to a queue that nobody serves is found on the way round all queues.
    """

    def __init__(self) -> None:
        self._cursor = "0"
        self._with_workers: set[str] = set()
        self._of_pools: set[str] = set()
        self._read_pools_mono = -SERVED_S
        self._due_mono: dict[str, float] = {}

    def some(self) -> Call[tuple[str, list[str]]]:
        """Reads the next part of all queues."""
        return tolerant(some_queues(self._cursor, QUEUES_A_ROUND), ("0", []))

    def served(self) -> Plan[None]:
        """Reads now and then which queues the pools serve."""
        if time.monotonic() - self._read_pools_mono >= SERVED_S:
            self._read_pools_mono = time.monotonic()
            self._of_pools = {queue for pool in (yield from pools()) for queue in pool.queues}

    def choose(self, part: tuple[str, list[str]]) -> list[str]:
        """The queues to look at in this round; `part` is what `some` read."""
        self._cursor, names = part
        now_mono = time.monotonic()
        due = [queue for queue, at_mono in self._due_mono.items() if at_mono <= now_mono]
        return list(dict.fromkeys([*self._of_pools, *self._with_workers, *due, *names]))

    def note(self, queue: str, found: QueueDue) -> None:
        """Notes when to look at a queue again."""
        (self._with_workers.add if "v" in found.marks else self._with_workers.discard)(queue)
        if found.next_in_s is None:
            self._due_mono.pop(queue, None)
        else:
            self._due_mono[queue] = time.monotonic() + found.next_in_s


class Housekeeping:
    """One duty: every second, or earlier when a scheduled task is due. `wake` cuts its waits short."""

    def __init__(
        self, store: AsyncStore, outage: Outage, settings: Settings, *, on_step: Callable[[], None] = lambda: None
    ) -> None:
        self._store, self._settings = store, settings
        self.timekeeper = Timekeeper(store, outage, lease_s=settings.lease_s, on_step=on_step)
        self._rounds = Rounds()
        self._unswept: list[str] = []
        self._swept_to: dict[str, str] = {}
        self._unique_cursor = "0"
        self._told: deque[str] = deque(maxlen=FAULTS_TOLD)
        self._alarm: asyncio.TimerHandle | None = None
        self.wake = asyncio.Event()

    def look_in(self, seconds: float) -> None:
        """Has the next round come that soon."""
        loop = asyncio.get_running_loop()
        at = loop.time() + max(seconds, LEAST_S)
        if self._alarm is None or at < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = loop.call_at(at, self._look)

    def _look(self) -> None:
        self._alarm = None
        self.wake.set()

    async def step(self) -> float:
        """One round; the seconds until the next.

        Raises:
            RedisUnavailable: Redis is away.
        """
        part = await self.timekeeper.look(self._rounds.some())
        await self._carry_out(self._rounds.served())
        by_ms = self.timekeeper.now_ms  # a step of the clock from here on makes nothing due
        found = await self._look_at(self._rounds.choose(part), by_ms)
        leases, scheduled, ended, waiting = ([name for name in found if mark in found[name].marks] for mark in "lsew")
        waits_s: list[float | None] = [each.scheduled_in_s for each in found.values() if "s" not in each.marks]
        if self.timekeeper.may_reap():
            await self._all([reap(queue, max_crashes=self._settings.max_crashes, by_ms=by_ms) for queue in leases])
        foreign = self._settings.foreign
        waits_s += await self._all([promote(queue, foreign, by_ms=by_ms) for queue in scheduled])
        await self._carry_out(expire_queued(by_ms=by_ms))
        waits_s += await self._all([purge_ended(queue, by_ms=by_ms) for queue in ended])
        await self._all([one(scripts.sweep_waiting(queue, MOST_SWEPT)) for queue in waiting])
        waits_s.append(await self._carry_out(release_outbox()))
        await self._sweep_indexes()
        self._unique_cursor = await self._carry_out(one(scripts.sweep_unique(self._unique_cursor, BATCH))) or "0"
        return max(LEAST_S, min([IDLE_S, *(wait_s for wait_s in waits_s if wait_s is not None)]))

    async def _look_at(self, queues: Sequence[str], by_ms: int) -> dict[str, QueueDue]:
        """What there is to do in each queue."""
        parts = [queues[at : at + BATCH] for at in range(0, len(queues), BATCH)]
        found: dict[str, QueueDue] = {}
        for part in await self._all([one(scripts.queues_due(part, by_ms=by_ms)) for part in parts]):
            found |= part or {}
        for queue, due in found.items():
            self._rounds.note(queue, due)
        return found

    async def _all(self, plans: Sequence[Plan[T]]) -> list[T | None]:
        """Carries out one plan a queue, side by side: they share their round trips, however many queues there are."""
        return await asyncio.gather(*(self._carry_out(plan) for plan in plans))

    async def _sweep_indexes(self) -> None:
        """One step through some of the indexes, in turn: what is gone without `purge` leaves its id behind."""
        if not self._unswept:
            self._unswept = await self._carry_out(indexes()) or []
        some, rest = self._unswept[:INDEXES], self._unswept[INDEXES:]
        reached = await self._all([self._sweep_index(index) for index in some])
        self._swept_to = {index: id for index, id in zip(some, reached, strict=True) if id}
        self._unswept = [*self._swept_to, *rest]

    def _sweep_index(self, index: str) -> Plan[str]:
        return one(scripts.sweep_index(index, self._swept_to.get(index, ""), INDEX_BATCH))

    async def _carry_out(self, plan: Plan[T]) -> T | None:
        """Carries out one step. A damaged record may fail a script: it must not keep the other steps back."""
        try:
            return await self._store.carry_out(plan)
        except ReplyFault as fault:
            if str(fault) not in self._told:  # it comes again with every round
                self._told.append(str(fault))
                log.error("housekeeping: %s", fault)
            return None


def reap(queue: str, *, max_crashes: int, by_ms: int | None = None) -> Plan[None]:
    """Takes back attempts whose lease has ended. Ours are entered WIP_GRACE_S late, a plain RQ worker's are not.

    So a plain one that lives looks due ahead of its time. Those stand before ours: the newest are looked at first.
    With `by_ms`, leases must have ended by that time of Redis's clock.
    """
    ours, plain = yield (
        scripts.due(keys.WIP + queue, limit=BATCH, ahead_s=keys.WIP_GRACE_S, newest_first=True, by_ms=by_ms),
        scripts.due(keys.WIP + queue, limit=BATCH, by_ms=by_ms),
    )
    failure = {"reason": "lease_lost", "message": LEASE_LOST, "may_still_run": True}
    members = dict.fromkeys((*ours.members, *plain.members))
    if members:
        words = yield [
            tolerant(
                scripts.crash(
                    *_split(member), queue, error=LEASE_LOST, failure=failure, max_crashes=max_crashes,
                    only_expired=True, by_ms=by_ms,
                ),
                "",
            )
            for member in members
        ]  # fmt: skip
        unseen = [_split(member) for member, word in zip(members, words, strict=True) if word == "unseen"]
        if unseen:
            yield from give_back(unseen)
        settled = {_split(member)[0]: word for member, word in zip(members, words, strict=True) if word in SETTLED}
        if settled:
            yield from _tell_of_lost(settled)


def _tell_of_lost(settled: Mapping[str, str]) -> Plan[None]:
    """Logs and counts attempts whose leases have ended; `settled` has the new status of each task."""
    records = yield [records.fetch_if_there(id) for id in settled]
    counts: Counter[str] = Counter()
    for (id, word), found in zip(settled.items(), records, strict=True):
        worker = found.history[-1].worker if found and found.history else "unknown"
        what = "queued again" if word == "queued" else word
        log.warning(
            "task %s: the lease of worker %s has ended. The worker can't be reached and may still be running the task."
            " The task is %s (reason lease_lost)", id, worker, what,
        )  # fmt: skip
        type, queue = (found.type, found.queue) if found else ("unknown", "default")
        counts[field_name(TASKS, "lease_lost", type, queue)] += 1
    yield (scripts.count(counts),)


def promote(queue: str, foreign: ForeignJobs = LEFT_ALONE, *, by_ms: int | None = None) -> Plan[float]:
    """Queues scheduled tasks whose time has come, in the order of their times; the seconds until the next one.

    Jobs that are left to RQ's scheduler stay. So many of them that they fill a batch must not keep tasks back: then the
    newest due ones are looked at as well.
    """
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
    if due.members:
        yield [tolerant(scripts.cancel(id, reason="expired", error=NOT_STARTED), "") for id in due.members]


def purge_ended(queue: str, *, by_ms: int | None = None) -> Plan[float]:
    """Removes the records of ended tasks whose time is over; the seconds until there may be more."""
    registries = [part + queue for part in (keys.FINISHED, keys.FAILED, keys.CANCELED)]
    found = yield [scripts.due(registry, limit=BATCH, by_ms=by_ms) for registry in registries]
    ended = [(id, registry) for registry, due in zip(registries, found, strict=True) for id in due.members]
    if ended:
        words = yield [tolerant(scripts.purge(id, registry), "") for id, registry in ended]
        held = [id for (id, _), word in zip(ended, words, strict=True) if word == "children"]
        if held:  # purged in a later round, when nobody waits for them any more
            yield [tolerant(scripts.release(id), []) for id in held]  # what is left is in the outbox
    return LEAST_S if any(len(due.members) == BATCH for due in found) else IDLE_S


def indexes() -> Plan[list[str]]:
    """The keys of all indexes by type, tag and project."""
    types, tags, projects = yield (
        tolerant(Call(("SMEMBERS", keys.TYPES_USED), _names, again=True), []),
        tolerant(Call(("SMEMBERS", keys.TAGS), _names, again=True), []),
        tolerant(Call(("SMEMBERS", keys.PROJECTS), _names, again=True), []),
    )
    by_type = [keys.BY_TYPE + type for type in types]
    return [*by_type, *(keys.BY_TAG + tag for tag in tags), *(keys.BY_PROJECT + project for project in projects)]


def release_outbox() -> Plan[float]:
    """Releases the tasks that wait for ended ones, and cancels down the line. The worker or the caller that ended those
    has begun with it, and may have died. The seconds until there may be more."""
    (ids,) = yield (Call(("SRANDMEMBER", keys.OUTBOX, BATCH), _names, again=True),)
    if not ids:
        return IDLE_S
    for _ in range(RELEASE_STEPS):
        left = yield [tolerant(scripts.release(id), []) for id in ids]
        ids = list(dict.fromkeys(id for found in left for id in found))[:BATCH]
        if not ids:
            break
    (count,) = yield (Call(("SCARD", keys.OUTBOX), int, again=True),)
    return LEAST_S if count else IDLE_S


def _split(member: str) -> tuple[str, str]:
    id, _, attempt_id = member.partition(":")
    return id, attempt_id
