"""The one subscribed connection of an event loop: who listens to which channel, and who is told when it is lost.

It speaks RESP 3, where messages and replies share a connection in the order in which Redis made them: what was asked
behind a subscription is answered after every message that came before. A lost connection isn't restored by itself.

Waits for a task's events: a subscription that says when to look again. What is true is always read from the record.

Pub/sub alone loses messages, so nobody waits longer than `LOOK_AGAIN_S` without looking.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import hiredis

from taskpool.errors import RedisUnavailable, TaskNotFound, WaitTimeout
from taskpool.operations.records import check_id, restore_hash, restore_told
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

SUBSCRIBE_TIMEOUT_S: Final = 5.0


class Subscriptions:
    """Opened when first used. Raises, from every method that awaits: RedisUnavailable."""

    def __init__(self, redis_url: str) -> None:
        self._wire = AsyncWire(
            Address.parse(redis_url), name="taskpool-wait", on_push=self._pushed, on_lost=self._lost, protocol=3
        )
        self._heard: dict[bytes, set[Heard]] = {}
        self._when_lost: list[Callable[[], None]] = []

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever the connection was lost or closed: from then on nothing is heard."""
        self._when_lost.append(tell)

    async def listen(self, heard: Heard, channels: Collection[str]) -> None:
        """Give `heard` every message of these channels (`keys.FIREHOSE`: of all tasks); it is heard once this returns.

        Whoever listens is registered even if this raises; `ignore` ends that.
        """
        names = [channel.encode() for channel in channels]
        for name in names:
            self._heard.setdefault(name, set()).add(heard)
        # Also what others listen to already: after a lost connection theirs is gone, and once more is harmless.
        commands = [("PSUBSCRIBE" if name == _FIREHOSE else "SUBSCRIBE", name) for name in names]
        self._refuse(await self._wire.exchange(commands, SUBSCRIBE_TIMEOUT_S))

    async def ignore(self, heard: Heard, channels: Collection[str]) -> None:
        """No longer give `heard` the messages of these channels; the last who listens to one ends its subscription."""
        names = [channel.encode() for channel in channels]
        for name in names:
            self.forget(heard, name)
        unheard = [name for name in names if name not in self._heard]
        commands = [("PUNSUBSCRIBE" if name == _FIREHOSE else "UNSUBSCRIBE", name) for name in unheard]
        if commands:
            await self._wire.exchange(commands, SUBSCRIBE_TIMEOUT_S)

    def forget(self, heard: Heard, name: bytes) -> None:
        """As `ignore`, when the connection is gone anyway."""
        listeners = self._heard.get(name, set())
        listeners.discard(heard)
        if not listeners:
            self._heard.pop(name, None)

    async def read_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The values of calls, in one round trip. By then every message that Redis sent before it was heard."""
        replies = await self._wire.exchange([call.command for call in calls], SUBSCRIBE_TIMEOUT_S)
        try:
            return values(calls, replies)
        except WrongServer:
            self._wire.close()
            raise

    def close(self) -> None:
        """Close the connection, and tell everyone; the next call opens a new one."""
        self._wire.close()
        self._lost()  # also those who wait without a connection

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


_FIREHOSE: Final = keys.FIREHOSE.encode()
_SUBSCRIBED: Final[Call[Any]] = Call((), lambda reply: reply)


T = TypeVar("T")

LOOK_AGAIN_S: Final = 1.0
FOLLOW_S: Final = 0.2
"""How often those look who show how a task fares; its end is told at once."""
AWAY_RETRY_S: Final = 0.5
"""Between two tries of a wait whose Redis went away."""
REPLY_TIMEOUT_S: Final = 10.0


class Listener:
    """One blocking connection that hears of a task's end and reads its record, kept from one wait to the next. It
    serves one wait at a time.

    It speaks RESP 3, where messages and replies share a connection: subscribing and looking cost one round trip.
    Raises, from every method: RedisUnavailable.
    """

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address, name="taskpool-wait", protocol=3)
        self._heard: str | None = None

    def follow(
        self, id: str, timeout_s: float | None, every_s: float, known: TaskRecord | None = None
    ) -> Iterator[TaskRecord]:
        """The task's record: as it is now (or as `known`, of one that `hear` listens to already), again after `every_s`
        seconds at most, and last when the task has ended.

        What has begun outlives an outage of Redis, if that ends in time.

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
        """The record once its end is told, or after `look_s()` seconds."""
        message = self._wait_for_end((keys.CHANNEL + record.id).encode(), look_s)
        ended = None if message is None else restore_told(record, message)
        return ended or self._run(record_of(record.id))

    def _come_back(self, id: str, end_mono: float, lost: RedisUnavailable) -> TaskRecord:
        """The record once Redis is there again, with a new subscription; raises what was wrong last at `end_mono`."""
        while (left_s := end_mono - time.monotonic()) > 0:
            time.sleep(min(AWAY_RETRY_S, left_s))
            try:
                return self.hear(id, record_of(id))
            except RedisUnavailable as error:
                lost = error
        raise lost

    def hear(self, id: str, call: Call[T]) -> T:
        """Listen to a task from now on, no longer to the one before; run `call` behind it, in the same round trip."""
        channel = keys.CHANNEL + id
        # The one before is left last: at its end it cost a system call, and in front it would hold up `call`.
        leave = [] if self._heard is None or self._wire.closed else [("UNSUBSCRIBE", self._heard)]
        self._heard = channel
        try:
            return self._run(call, [("SUBSCRIBE", channel)], leave)
        except RedisUnavailable:
            if not call.again:
                raise
            return self._run(call, [("SUBSCRIBE", channel)])  # kept since the last wait, it may have died long ago

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
            self.close()  # interrupted, with a reply unread that the next would take for its own
            raise
        try:
            (value,) = values([call], [reply])
        except (RedisUnavailable, ReplyFault):
            self.close()  # an error may have come in the place of a subscription: the call's own reply is still to come
            raise
        return value  # type: ignore[no-any-return]

    def _reply(self) -> Any:
        """The reply to the call; messages that were pushed before it are of a time that it tells of as well."""
        end_mono = time.monotonic() + REPLY_TIMEOUT_S
        while time.monotonic() < end_mono:
            reply = self._wire.next_reply(LOOK_AGAIN_S)
            if reply is not None and not isinstance(reply, hiredis.PushNotification):
                return reply
        self.close()
        raise RedisUnavailable("Redis doesn't answer")

    def _wait_for_end(self, channel: bytes, look_s: Callable[[], float]) -> bytes | None:
        """The message that tells of the task's end; None when there was none for `look_s()`, or others for long."""
        end_mono = time.monotonic() + LOOK_AGAIN_S
        # What is waited for stays the same until the end is near: another timeout costs a system call.
        while (push := self._wire.next_reply(max(look_s(), 0.001))) is not None:
            if push[0] == b"message" and push[1] == channel and tells_end(push[2]):
                message: bytes = push[2]
                return message
            if time.monotonic() >= end_mono:  # a task may report without a pause
                break
        return None


def record_of(id: str) -> Call[TaskRecord]:
    """Read a task over RESP 3, where a hash comes as one.

    Raises, when run:
        TaskNotFound
    """

    def read(reply: dict[bytes, bytes]) -> TaskRecord:
        if b"data" not in reply:
            raise TaskNotFound(id)
        return restore_hash(id, reply)

    check_id(id)
    return Call(("HGETALL", keys.JOB + id), read, again=True)


class AsyncListener:
    """Hears of tasks' ends for all waiters of an event loop, over its one subscribed connection."""

    def __init__(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions
        self._waiters: dict[asyncio.Event, Heard] = {}
        subscriptions.when_lost(self._wake_all)

    async def subscribe(self, id: str, *, every: bool = False) -> asyncio.Event:
        """An event that is set when the task's end is told, or `every` step of it. Give it back with `unsubscribe`.

        Raises:
            TaskNotFound: no task can have this id.
            RedisUnavailable
        """
        check_id(id)
        told = asyncio.Event()

        def heard(message: bytes) -> None:
            if every or tells_end(message):
                told.set()

        self._waiters[told] = heard
        try:
            await self._subscriptions.listen(heard, (keys.CHANNEL + id,))
        except RedisUnavailable:
            self._subscriptions.forget(self._waiters.pop(told), (keys.CHANNEL + id).encode())
            raise
        except asyncio.CancelledError:  # whoever waits left before it was subscribed
            with suppress(RedisUnavailable):
                await self.unsubscribe(id, told)
            raise
        return told

    async def follow(
        self, id: str, read: Callable[[], Awaitable[TaskRecord]], timeout_s: float | None, every_s: float
    ) -> AsyncGenerator[TaskRecord, None]:
        """What `read` finds: now, again after `every_s` seconds at most, and last when the task has ended.

        What has begun outlives an outage of Redis, if that ends in time.

        Raises:
            WaitTimeout: it hasn't ended in `timeout_s`; `record` is how it stands.
            InvalidTask: `timeout_s` can't be.
        """
        deadline_mono = time.monotonic() + patience_s("timeout_s", timeout_s)
        told = await self.subscribe(id)
        try:
            while True:
                told.clear()  # before the look, so that no end is missed; a lost connection sets it too
                left_s = deadline_mono - time.monotonic()
                try:
                    record = await read()
                except RedisUnavailable:
                    if left_s <= 0:  # it has begun: it was subscribed
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
                        await told.wait()
        finally:
            with suppress(RedisUnavailable):  # then the subscription has ended with its connection
                await self.unsubscribe(id, told)

    async def unsubscribe(self, id: str, told: asyncio.Event) -> None:
        """Stop listening; the last waiter of a task ends its subscription."""
        await self._subscriptions.ignore(self._waiters.pop(told), (keys.CHANNEL + id,))

    def _wake_all(self) -> None:
        for told in self._waiters:
            told.set()
