"""Waits for a task's events: a subscription that says when to look again. What is true is always read from the record.

Pub/sub alone loses messages, so nobody waits longer than `LOOK_AGAIN_S` without looking.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import hiredis

from taskpool import keys
from taskpool.calls import Call, Part
from taskpool.connection.address import Address
from taskpool.connection.wire import Wire
from taskpool.errors import RedisUnavailable, TaskNotFound, WaitTimeout
from taskpool.record import check_id, restore_hash, restore_told
from taskpool.seconds import patience_s
from taskpool.store import ReplyFault, values, with_text
from taskpool.subscriptions import Heard, Subscriptions
from taskpool.types import TaskRecord

T = TypeVar("T")

LOOK_AGAIN_S: Final = 1.0
FOLLOW_S: Final = 0.2
"""How often those look who show how a task fares; its end is told at once."""
AWAY_RETRY_S: Final = 0.5
"""Between two tries of a wait whose Redis went away."""
REPLY_TIMEOUT_S: Final = 10.0
_tells_end: Final = re.compile(rb'"status":"(?:done|failed|stopped|canceled)"').search


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
            if push[0] == b"message" and push[1] == channel and _tells_end(push[2]):
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
            if every or _tells_end(message):
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
