"""Waits for tasks: subscriptions to their events, and records read when an event or the time says so.

Redis's pub/sub may lose messages. So a record decides what is true, and it is read at least every `LOOK_AGAIN_S`.
Subscribed connections speak RESP 3, where messages and replies come over one connection, in the order of Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import hiredis
import msgspec

from taskpool.errors import RedisUnavailable, WaitTimeout
from taskpool.operations.records import check_id, fetch, record_at_end
from taskpool.operations.specs import patience_s
from taskpool.operations.status import tells_end
from taskpool.redis import keys
from taskpool.redis.address import Address
from taskpool.redis.async_connection import AsyncWire
from taskpool.redis.calls import Call, Part
from taskpool.redis.connection import Wire
from taskpool.redis.replies import ReplyFault, WrongServer, values, with_text
from taskpool.types import TaskRecord

Heard = Callable[[bytes], None]

T = TypeVar("T")

SUBSCRIBE_TIMEOUT_S: Final = 5.0
REPLY_TIMEOUT_S: Final = 10.0
LOOK_AGAIN_S: Final = 1.0
FOLLOW_S: Final = 0.2
"""How often a caller that shows a task's progress looks. The end of the task shows at once."""
AWAY_RETRY_S: Final = 0.5
"""The time between two attempts to reach Redis again."""

_FIREHOSE: Final = keys.FIREHOSE.encode()
_SUBSCRIBED: Final[Call[Any]] = Call((), lambda reply: reply)


class Subscriptions:
    """The one subscribed connection of an event loop, opened when first used. When it is lost, the callbacks of
    `when_lost` run; it isn't restored by itself.

    Raises, from every method that awaits: RedisUnavailable.
    """

    def __init__(self, redis_url: str) -> None:
        self._wire = AsyncWire(
            Address.parse(redis_url), name="taskpool-wait", on_push=self._pushed, on_lost=self._lost, protocol=3
        )
        self._heard: dict[bytes, set[Heard]] = {}
        self._when_lost: list[Callable[[], None]] = []

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever the connection was lost or closed: no more messages come from then on."""
        self._when_lost.append(tell)

    async def listen(self, heard: Heard, channels: Collection[str]) -> None:
        """Give `heard` every message of these channels (`keys.FIREHOSE`: of all tasks) from the time this returns.

        `heard` is registered even if this raises; `ignore` ends that.
        """
        names = [channel.encode() for channel in channels]
        for name in names:
            self._heard.setdefault(name, set()).add(heard)
        # Also channels that are subscribed already: they may be lost with a connection, and a second time does no harm.
        commands = [("PSUBSCRIBE" if name == _FIREHOSE else "SUBSCRIBE", name) for name in names]
        self._refuse(await self._wire.exchange(commands, SUBSCRIBE_TIMEOUT_S))

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
        listeners = self._heard.get(name, set())
        listeners.discard(heard)
        if not listeners:
            self._heard.pop(name, None)

    async def read_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The values of calls, in one round trip. All messages that Redis sent before have been delivered then."""
        replies = await self._wire.exchange([call.command for call in calls], SUBSCRIBE_TIMEOUT_S)
        try:
            return values(calls, replies)
        except WrongServer:
            self._wire.close()
            raise

    def close(self) -> None:
        """Close the connection, and run the callbacks of `when_lost`; the next call opens a new one."""
        self._wire.close()
        self._lost()  # also for waiters without a connection

    def end(self) -> None:
        """As `close`, for good."""
        self._wire.end()
        self._lost()

    def abandon(self) -> None:
        """Let go of the socket when its loop is closed or belongs to the parent process. Nothing is sent."""
        self._wire.abandon()

    def _refuse(self, replies: list[Any]) -> None:
        """Raise for an error in the place of a subscription: Redis can't serve, or doesn't let us."""
        try:
            values([_SUBSCRIBED] * len(replies), replies)
        except RedisUnavailable:
            self._wire.close()
            raise
        except ReplyFault as fault:
            self._wire.close()
            raise RedisUnavailable(str(fault)) from fault

    def _pushed(self, message: list[Any]) -> None:
        # ["message", channel, text] or ["pmessage", pattern, channel, text]
        for heard in tuple(self._heard.get(message[1], ())):
            heard(message[-1])

    def _lost(self) -> None:
        for tell in self._when_lost:
            tell()


class Listener:
    """A blocking connection that subscribes to a task and reads its record in one round trip. It serves one wait at a
    time, and is kept for the next wait.

    Raises, from every method: RedisUnavailable.
    """

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address, name="taskpool-wait", protocol=3)
        self._heard: str | None = None

    def follow(
        self, id: str, timeout_s: float | None, every_s: float, known: TaskRecord | None = None
    ) -> Iterator[TaskRecord]:
        """The task's record: as it is now (or `known`, when `hear` has subscribed to it already), again at least every
        `every_s` seconds, and last when the task has ended.

        A wait that has begun outlives an outage of Redis, if that ends in time.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`; `record` is how it stands.
            InvalidTask: `timeout_s` can't be.
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
                record = self._look_again(record, look_s)
            except RedisUnavailable as lost:
                record = self._come_back(id, end_mono, lost)

    def _look_again(self, record: TaskRecord, look_s: Callable[[], float]) -> TaskRecord:
        """The record once an event shows its end, or after `look_s()` seconds."""
        event = self._wait_for_end((keys.CHANNEL + record.id).encode(), look_s)
        ended = None if event is None else record_at_end(record, event)
        return ended or self._run(record_of(record.id))

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
        subscriptions.when_lost(self._wake_all)

    async def subscribe(self, id: str, *, every: bool = False) -> asyncio.Event:
        """An event that is set when the task ends, or with `every` at each of its steps. `unsubscribe` gives it back.

        Raises:
            TaskNotFound: no task can have this id.
            RedisUnavailable
        """
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
        """What `read` returns: now, again at least every `every_s` seconds, and last when the task has ended.

        A wait that has begun outlives an outage of Redis, if that ends in time.

        Raises:
            WaitTimeout: it hasn't ended in `timeout_s`; `record` is how it stands.
            InvalidTask: `timeout_s` can't be.
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
