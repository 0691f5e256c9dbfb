"""A connection to Redis for an event loop, shared by all its coroutines.

What they send in the same turn of the loop leaves in one write, and replies come back in order: concurrent submissions
share a round trip without waiting for each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis

from taskpool.errors import RedisUnavailable
from taskpool.lifecycle import descriptor_of, inode_of, let_go
from taskpool.redis.address import Address
from taskpool.redis.calls import Part
from taskpool.redis.connection import (
    CLOSED,
    CONNECT_TIMEOUT_S,
    not_redis,
    pack,
    refuse_bad_greeting,
    refuse_error,
    unasked_error,
    unreachable,
)

WATCH_INTERVAL_S: Final = 0.5
_PUSHED: Final = (b"message", b"pmessage")


class AsyncWire:
    """One connection, opened when first used. `close` ends it; the next exchange opens a new one.

    `on_push` is called with each message of a subscribed connection, `on_lost` when a connection was lost.
    """

    def __init__(
        self,
        address: Address,
        *,
        name: str,
        on_push: Callable[[list[Any]], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        protocol: int = 2,
    ) -> None:
        self.address = address
        self._name = name
        self._on_push = on_push
        self._on_lost = on_lost
        self._protocol = protocol
        self._link: _Link | None = None
        self._outgoing: list[bytes] = []
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._is_ready = False
        self._opening: asyncio.Task[None] | None = None
        self._wanted = 0
        self._watch: asyncio.TimerHandle | None = None
        self._has_ended = False
        self._unasked: Any = None
        """A reply to no command: why Redis is about to close the connection."""

    async def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]:
        """As `Wire.exchange`."""
        if not self._is_ready:
            await self._connect()
        try:
            replies = self._send(commands, timeout_s)
            return [await replies[0]] if len(replies) == 1 else [await reply for reply in replies]
        except OSError as error:
            raise unreachable(self.address, error) from error

    def close(self) -> None:
        """Close the connection; what waits for a reply gets `RedisUnavailable`."""
        self.drop(ConnectionResetError("closed"))

    def end(self) -> None:
        """Close the connection for good: later exchanges raise `RedisUnavailable`."""
        self._has_ended = True
        self.close()

    def abandon(self) -> None:
        """Close our descriptor of the socket, when its loop is closed or is the parent process's. Nothing is sent."""
        link, self._link = self._link, None
        self._is_ready = False
        if link is not None:
            link.abandon()

    def received(self, reply: Any) -> None:
        """Give a reply to the first call that waits, or a message to `on_push`."""
        if self._on_push is not None and isinstance(reply, list) and reply and reply[0] in _PUSHED:
            self._on_push(reply)
        elif self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)
        else:
            self._unasked = reply

    def drop(self, error: OSError, link: _Link | None = None) -> None:
        """Close the connection (with a `link`: only if it is still that one). Calls that wait fail with `error`."""
        if self._link is None or (link is not None and link is not self._link):
            return
        self._link.transport.abort()
        self._link = None
        self._is_ready = False
        self._outgoing = []
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # mark as seen: the callers may be gone
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._on_lost is not None:
            self._on_lost()

    def _send(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[asyncio.Future[Any]]:
        if self._link is None:
            raise ConnectionResetError(CLOSED)
        loop = asyncio.get_running_loop()
        if not self._outgoing:
            loop.call_soon(self._flush)
        if self._watch is None:
            self._watch = loop.call_later(WATCH_INTERVAL_S, self._look)
        self._outgoing.append(pack(commands))
        deadline = loop.time() + timeout_s
        replies = [loop.create_future() for _ in commands]
        self._waiting.extend([(reply, deadline) for reply in replies])
        return replies

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._link is not None and outgoing:
            self._link.transport.write(b"".join(outgoing))

    def _look(self) -> None:
        """One timer for all calls that wait: replies come in order, so the first call is the oldest."""
        self._watch = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        if self._waiting[0][1] < loop.time():
            self.drop(TimeoutError("no answer in time"))
        else:
            self._watch = loop.call_later(WATCH_INTERVAL_S, self._look)

    async def _connect(self) -> None:
        """Wait for the one attempt to connect that all callers share. It ends early only when all of them are
        cancelled."""
        opening = self._opening
        if opening is None:
            opening = self._opening = asyncio.create_task(self._open())
            opening.add_done_callback(self._opened)
        self._wanted += 1
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            if self._wanted == 1 and self._opening is opening:
                self._opening = None
                opening.cancel()
            raise
        finally:
            self._wanted -= 1

    def _opened(self, opening: asyncio.Task[None]) -> None:
        if self._opening is opening:
            self._opening = None
        if not opening.cancelled():
            opening.exception()  # mark as seen: the callers may be gone

    async def _open(self) -> None:
        if self._has_ended:
            raise RedisUnavailable("the pool was closed in this event loop")
        address = self.address
        loop = asyncio.get_running_loop()
        link = _Link(self)
        self._unasked, replies = None, []
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if address.sentinels:
                    address = await asyncio.to_thread(address.located)
                if address.path:
                    await loop.create_unix_connection(lambda: link, address.path)
                else:
                    await loop.create_connection(lambda: link, address.host, address.port, ssl=address.tls)
                if self._has_ended:
                    link.transport.abort()
                    raise ConnectionResetError("closed")
                self._link = link
                greeting = address.greeting(self._name, self._protocol)
                replies = self._send(greeting, CONNECT_TIMEOUT_S)
                greeted = [await reply for reply in replies]
            refuse_bad_greeting(address, greeted)
            if self._link is not link:  # lost right behind the replies
                raise ConnectionResetError(CLOSED)
        except OSError as error:  # TimeoutError is one
            self.drop(error, link)
            answered = [reply for reply in replies if reply.done() and not reply.cancelled() and not reply.exception()]
            refuse_error(address, [self._unasked, *[reply.result() for reply in answered]])
            # We wrote first: an error that Redis sent before it closed the connection may never have been read.
            is_broken = isinstance(error, BrokenPipeError | ConnectionResetError) and not self._has_ended
            if replies and is_broken and (text := await asyncio.to_thread(unasked_error, address)):
                raise RedisUnavailable(f"Redis at {address} refused us: {text}") from None
            raise unreachable(self.address, error) from error
        except BaseException:  # refused; or cancelled, when it is unknown whether the greeting was accepted
            self.drop(ConnectionResetError("closed"), link)
            raise
        self._is_ready = True


class _Link(asyncio.Protocol):
    """One TCP or unix connection of a wire: when an old one is lost late, that doesn't end the new one."""

    transport: asyncio.Transport

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire
        self._reader = hiredis.Reader()
        self._inode: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's derives from neither class
        self._inode = inode_of(descriptor_of(self.transport))

    def abandon(self) -> None:
        """As `AsyncWire.abandon`."""
        let_go(descriptor_of(self.transport), self._inode)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._wire.received(reply)
        except hiredis.ProtocolError:
            self._wire.drop(not_redis(self._wire.address), self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.drop(exc if isinstance(exc, OSError) else ConnectionResetError(CLOSED), self)
