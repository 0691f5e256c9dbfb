"""Waits for tasks and follows their logs: both are read when an event or the time says so.

Redis's pub/sub may lose messages. So a record decides what is true, and it is read at least every `LOOK_AGAIN_S`.
Subscribed connections speak RESP 3, where messages and replies come over one connection, in the order of Redis.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import hiredis
import msgspec

from taskpool.errors import RedisUnavailable, TaskNotFound, UnreadableTask, WaitTimeout
from taskpool.operations.records import check_id, fetch, record_at_end
from taskpool.operations.specs import patience_s
from taskpool.operations.status import tells_end
from taskpool.redis import calls, keys
from taskpool.redis.address import Address
from taskpool.redis.async_connection import AsyncWire
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, Part, Plan, as_it_is, tolerant
from taskpool.redis.connection import Wire
from taskpool.redis.replies import ReplyFault, values, with_text
from taskpool.redis.rq_job import status_of
from taskpool.redis.store import Store
from taskpool.tasks.log_lines import LogLine, decode_line
from taskpool.types import Page, TaskRecord, TaskStatus

Heard = Callable[[bytes], None]

T = TypeVar("T")

SUBSCRIBE_TIMEOUT_S: Final = 5.0
REPLY_TIMEOUT_S: Final = 10.0
LOOK_AGAIN_S: Final = 1.0
FOLLOW_S: Final = 0.2  # how often a caller that shows a task's progress looks. The end of the task shows at once
AWAY_RETRY_S: Final = 0.5  # the time between two attempts to reach Redis again

_FIREHOSE: Final = keys.FIREHOSE.encode()


class Subscriptions:
    """The one subscribed connection of an event loop, opened when first used. When it is lost, the callbacks of
    `when_lost` run; it isn't restored by itself. Every method that awaits may raise RedisUnavailable."""

    def __init__(self, redis_url: str, *, name: str = "taskpool-wait") -> None:
        address = Address.parse(redis_url)
        self._wire = AsyncWire(address, name=name, on_push=self._pushed, on_lost=self._lost, protocol=3)
        self._heard: dict[bytes, set[Heard]] = {}
        self.when_lost: list[Callable[[], None]] = []  # called when the connection is lost or closed: no more messages

    async def listen(self, heard: Heard, channels: Collection[str]) -> None:
        """Give `heard` every message of these channels (`keys.FIREHOSE`: of all tasks) from the time this returns. It
        is registered even if this raises; `ignore` ends that."""
        names = [channel.encode() for channel in channels]
        for name in names:
            self._heard.setdefault(name, set()).add(heard)
        # Also channels that are subscribed already: they may be lost with a connection, and a second time does no harm.
        commands = [("PSUBSCRIBE" if name == _FIREHOSE else "SUBSCRIBE", name) for name in names]
        try:
            await self.read_many([Call(command, as_it_is) for command in commands])
        except ReplyFault as fault:  # it doesn't let us subscribe
            self._wire.close()
            raise RedisUnavailable(str(fault)) from fault

    async def ignore(self, heard: Heard, channels: Collection[str]) -> None:
        """No longer give `heard` the messages of these channels. A channel without listeners is unsubscribed."""
        names = [channel.encode() for channel in channels]
        for name in names:
            self.forget(heard, name)
        unheard = [name for name in names if name not in self._heard]
        commands = [("PUNSUBSCRIBE" if name == _FIREHOSE else "UNSUBSCRIBE", name) for name in unheard]
        if commands:
            await self._wire.exchange(commands, SUBSCRIBE_TIMEOUT_S)

    def forget(self, heard: Heard, name: bytes) -> None:
        """As `ignore`, when the connection is lost anyway."""
        if name in self._heard:
            self._heard[name].discard(heard)
            if not self._heard[name]:
                del self._heard[name]

    async def read_many(self, reads: Sequence[Call[Any]]) -> list[Any]:
        """The values of calls, in one round trip. All messages that Redis sent before have been delivered then."""
        replies = await self._wire.exchange([call.command for call in reads], SUBSCRIBE_TIMEOUT_S)
        try:
            return values(reads, replies)
        except RedisUnavailable:
            self._wire.close()
            raise

    def close(self) -> None:
        """Close the connection, and run the callbacks of `when_lost`; the next call opens a new one."""
        self._wire.close()
        self._lost()  # also for waiters without a connection

    def end(self) -> None:
        """Close the connection for good."""
        self._wire.end()
        self._lost()

    def abandon(self) -> None:
        """Let go of the socket when its loop is closed or belongs to the parent process. Nothing is sent."""
        self._wire.abandon()

    def _pushed(self, message: list[Any]) -> None:
        # ["message", channel, text] or ["pmessage", pattern, channel, text]
        for heard in tuple(self._heard.get(message[1], ())):
            heard(message[-1])

    def _lost(self) -> None:
        for tell in self.when_lost:
            tell()


class Listener:
    """A blocking connection that subscribes to a task and reads its record in one round trip. It serves one wait at a
    time, and is kept for the next wait. Every method may raise RedisUnavailable."""

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address, name="taskpool-wait", protocol=3)
        self._heard: str | None = None

    def follow(
        self, id: str, timeout_s: float | None, every_s: float, known: TaskRecord | None = None
    ) -> Iterator[TaskRecord]:
        """The task's record: as it is now (or `known`, when `hear` has subscribed to it already), again at least every
        `every_s` seconds, and last when the task has ended. A wait that has begun outlives an outage of Redis, if that
        ends in time.

        Raises: TaskNotFound, WaitTimeout (it hasn't ended in `timeout_s`), InvalidTask (`timeout_s` is invalid).
        """
        end_mono = time.monotonic() + patience_s("timeout_s", timeout_s)

        def look_s() -> float:
            return min(every_s, end_mono - time.monotonic())

        record = known or self.hear(id, record_of(id))
        while True:
            yield record
            if record.status.is_terminal:
                return
            if look_s() <= 0:
                raise WaitTimeout(record, max(timeout_s or 0, 0))
            try:
                event = self._wait_for_end((keys.CHANNEL + id).encode(), look_s)
                ended = None if event is None else record_at_end(record, event)
                record = ended or self._run(record_of(id))
            except RedisUnavailable as lost:
                record = self._come_back(id, end_mono, lost)

    def _come_back(self, id: str, end_mono: float, lost: RedisUnavailable) -> TaskRecord:
        """The record once Redis is back, with a new subscription. Raises the last error at `end_mono`."""
        while (left_s := end_mono - time.monotonic()) > 0:
            time.sleep(min(AWAY_RETRY_S, left_s))
            try:
                return self.hear(id, record_of(id))
            except RedisUnavailable as error:
                lost = error
        raise lost

    def hear(self, id: str, call: Call[T]) -> T:
        """Subscribe to a task, and no longer to the one before; run `call` after that, in the same round trip."""
        channel = keys.CHANNEL + id
        # The old channel is left with the new subscription, last: alone it costs a system call, first it delays `call`.
        leave = [] if self._heard is None or self._wire.closed else [("UNSUBSCRIBE", self._heard)]
        self._heard = channel
        try:
            return self._run(call, [("SUBSCRIBE", channel)], leave)
        except RedisUnavailable:
            if not call.again:
                raise
            return self._run(call, [("SUBSCRIBE", channel)])  # the kept connection may be long dead

    def close(self) -> None:
        """Close the connection; the next wait opens a new one."""
        self._wire.close()

    def _run(self, call: Call[T], before: Sequence[Sequence[Part]] = (), behind: Sequence[Sequence[Part]] = ()) -> T:
        try:
            self._wire.send([*before, call.command, *behind])
            reply = self._reply()
            if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
                self._wire.send([with_text(call)])
                reply = self._reply()
        except BaseException:
            self.close()  # interrupted: the next call would take the unread reply for its own
            raise
        try:
            (value,) = values([call], [reply])
        except (RedisUnavailable, ReplyFault):
            self.close()  # the error may be the subscription's: then the call's own reply is still to come
            raise
        return value  # type: ignore[no-any-return]

    def _reply(self) -> Any:
        """The reply to the call. Messages that came before it are dropped: the reply is newer."""
        end_mono = time.monotonic() + REPLY_TIMEOUT_S
        while time.monotonic() < end_mono:
            reply = self._wire.next_reply(LOOK_AGAIN_S)
            if reply is not None and not isinstance(reply, hiredis.PushNotification):
                return reply
        self.close()
        raise RedisUnavailable("Redis doesn't answer")

    def _wait_for_end(self, channel: bytes, look_s: Callable[[], float]) -> bytes | None:
        """The event of the task's end; None when none came in `look_s()` seconds, or other events came for long."""
        end_mono = time.monotonic() + LOOK_AGAIN_S
        # The timeout stays the same until the end is near: to set another one costs a system call.
        while (push := self._wire.next_reply(max(look_s(), 0.001))) is not None:
            if push[0] == b"message" and push[1] == channel and tells_end(push[2]):
                message: bytes = push[2]
                return message
            if time.monotonic() >= end_mono:  # a task may report without a pause
                break
        return None


def record_of(id: str) -> Call[TaskRecord]:
    """As `fetch`, but an error in the place of a subscription isn't taken for the record's."""
    return msgspec.structs.replace(fetch(id), reads_faults=False)


class AsyncListener:
    """Waits for the ends of tasks, for all waiters of an event loop, over its one subscribed connection."""

    def __init__(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions
        self._waiters: dict[asyncio.Event, Heard] = {}
        subscriptions.when_lost.append(self._wake_all)

    async def subscribe(self, id: str, *, every: bool = False) -> asyncio.Event:
        """An event that is set when the task ends, or with `every` at each of its steps. `unsubscribe` gives it back.
        Raises: TaskNotFound (no task can have this id), RedisUnavailable."""
        check_id(id)
        changed = asyncio.Event()

        def heard(message: bytes) -> None:
            if every or tells_end(message):
                changed.set()

        self._waiters[changed] = heard
        try:
            await self._subscriptions.listen(heard, (keys.CHANNEL + id,))
        except RedisUnavailable:
            self._subscriptions.forget(self._waiters.pop(changed), (keys.CHANNEL + id).encode())
            raise
        except asyncio.CancelledError:  # the waiter left before it was subscribed
            with suppress(RedisUnavailable):
                await self.unsubscribe(id, changed)
            raise
        return changed

    async def follow(
        self, id: str, read: Callable[[], Awaitable[TaskRecord]], timeout_s: float | None, every_s: float
    ) -> AsyncGenerator[TaskRecord, None]:
        """What `read` returns: now, again at least every `every_s` seconds, and last when the task has ended. A wait
        that has begun outlives an outage of Redis, if that ends in time.

        Raises: WaitTimeout (it hasn't ended in `timeout_s`), InvalidTask (`timeout_s` is invalid).
        """
        deadline_mono = time.monotonic() + patience_s("timeout_s", timeout_s)
        changed = await self.subscribe(id)
        try:
            while True:
                changed.clear()  # before the read, so that no end is missed; a lost connection sets it too
                left_s = deadline_mono - time.monotonic()
                try:
                    record = await read()
                except RedisUnavailable:
                    if left_s <= 0:
                        raise
                    await asyncio.sleep(min(left_s, AWAY_RETRY_S))
                    continue
                yield record
                if record.status.is_terminal:
                    return
                if left_s <= 0:
                    raise WaitTimeout(record, max(timeout_s or 0, 0))
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left_s, every_s)):  # Python 3.11's wait_for may miss a cancellation
                        await changed.wait()
        finally:
            with suppress(RedisUnavailable):  # then the subscription has ended with its connection
                await self.unsubscribe(id, changed)

    async def unsubscribe(self, id: str, changed: asyncio.Event) -> None:
        """Stop waiting; a task without waiters is unsubscribed."""
        await self._subscriptions.ignore(self._waiters.pop(changed), (keys.CHANNEL + id,))

    def _wake_all(self) -> None:
        for changed in self._waiters:
            changed.set()


# --- logs -------------------------------------------------------------------------------------------------------------

MOST_LINES: Final = 1000
LOOK_S: Final = 0.25  # how often a program that blocks looks: workers send lines about as often
START: Final = "0-0"
NO_LINE: Final = "(this line can't be read: another program wrote it)"

_is_entry: Final = re.compile(r"[0-9]{1,15}-[0-9]{1,15}").fullmatch


@dataclass(frozen=True, slots=True)
class LogStep:
    """The lines behind an entry of a log, and the entry to go on `after`. `is_full`: there may be more already.
    `is_away`: Redis can't be reached, so there are no lines."""

    lines: tuple[LogLine, ...]
    after: str
    status: TaskStatus
    is_full: bool
    is_away: bool = False

    @property
    def is_over(self) -> bool:
        """The task has ended, and these are its last lines."""
        return self.status.is_terminal and not self.is_full


def logs(id: str, *, cursor: str | None = None, limit: int = 100) -> Plan[Page[LogLine]]:
    """A page of a task's log, oldest line first. While the task hasn't ended, there is always a next cursor. Raises:
    TaskNotFound, InvalidTask (the cursor isn't one of this listing)."""
    step = yield from log_step(id, place_of(cursor), limit)
    return Page(step.lines, None if step.is_over else calls.encode_cursor(step.after))


def log_step(id: str, after: str, limit: int = MOST_LINES) -> Plan[LogStep]:
    """The lines behind the entry `after` of a task's log. Raises: TaskNotFound."""
    limit = calls.page_length(limit, MOST_LINES)
    its_status = _status(id)  # raises TaskNotFound for what can be no id
    entries = Call(("XRANGE", keys.LOG + id, f"({after}", "+", "COUNT", limit), _lines, again=True)
    # In this order: lines are written before the end is, so the lines are complete when the status is terminal.
    status, lines = yield (its_status, tolerant(entries, ()))
    return LogStep(lines, lines[-1].id if lines else after, status, len(lines) == limit)


def last_lines(id: str, since_ms: float, *, most: int) -> Call[list[str]]:
    """The last lines of a task's log that were written after `since_ms`, by their writer's clock; the oldest first."""

    def read(reply: list[Any]) -> list[str]:
        return [line.text for line in reversed(_lines(reply)) if line.at_ms >= since_ms]

    return tolerant(Call(("XREVRANGE", keys.LOG + id, "+", "-", "COUNT", most), read, again=True), [])


def place_of(cursor: str | None) -> str:
    """The entry that a cursor stands for. Raises: InvalidTask (it isn't a cursor of a log)."""
    if cursor is None:
        return START
    (entry,) = calls.decode_cursor(cursor, (str,))
    if not _is_entry(entry):
        raise calls.wrong_cursor()
    return str(entry)


def _status(id: str) -> Call[TaskStatus]:
    def read(reply: Any) -> TaskStatus:
        if isinstance(reply, hiredis.ReplyError):
            raise UnreadableTask(id)
        status, stop_ms, data = reply
        if data is None:
            raise TaskNotFound(id)
        return status_of(status, stop_ms)

    check_id(id)
    return Call(("HMGET", keys.JOB + id, "status", "stop_ms", "data"), read, again=True, reads_faults=True)


def _lines(reply: list[Any]) -> tuple[LogLine, ...]:
    return tuple([_line(id, fields) for id, fields in reply])


def _line(id: bytes, fields: list[bytes]) -> LogLine:
    try:
        line = decode_line(fields[1])
    except calls.UNREADABLE:  # it keeps its place, at which a page may end
        line = LogLine(at_ms=int(id.partition(b"-")[0]), text=NO_LINE)
    return msgspec.structs.replace(line, id=id.decode())


def _next_step(id: str, cursor: str | None, last: LogStep | None) -> Plan[LogStep]:
    try:
        return (yield from log_step(id, place_of(cursor) if last is None else last.after))
    except RedisUnavailable:
        if last is None:
            raise
        return replace(last, lines=(), is_away=True)


def follow_log(store: Store, id: str, cursor: str | None = None) -> Iterator[LogStep]:
    """The steps of a task's log from the cursor on, the first at once, the last when the task has ended. Raises:
    TaskNotFound, InvalidTask (the cursor), RedisUnavailable (at the first look; later ones wait for Redis)."""
    step = store.carry_out(_next_step(id, cursor, None))
    yield step
    while not step.is_over:
        if step.is_away or not step.is_full:
            time.sleep(AWAY_RETRY_S if step.is_away else LOOK_S)
        step = store.carry_out(_next_step(id, cursor, step))
        yield step


async def follow_log_async(
    store: AsyncStore, listener: AsyncListener, id: str, cursor: str | None = None
) -> AsyncGenerator[LogStep]:
    """As `follow_log`. It reads when a message of the task arrives, and each second, because messages can be lost."""
    place_of(cursor)  # a wrong cursor is refused before anything is asked
    changed = await listener.subscribe(id, every=True)
    step: LogStep | None = None
    try:
        while step is None or not step.is_over:
            changed.clear()  # before the read, so that nothing is missed; a lost connection sets it too
            step = await store.carry_out(_next_step(id, cursor, step))
            yield step
            if step.is_away:
                await asyncio.sleep(AWAY_RETRY_S)
            elif not (step.is_full or step.is_over):
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):  # Python 3.11's wait_for may miss a cancellation
                        await changed.wait()
    finally:
        with suppress(RedisUnavailable):  # then the subscription has ended with its connection
            await listener.unsubscribe(id, changed)
