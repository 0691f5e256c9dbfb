"""Reads a task's log: pages of it, and its lines as they come, until the task has ended.

The status is read before the lines. So when a step shows that the task has ended, its lines are complete.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import msgspec

from taskpool.errors import RedisUnavailable, TaskNotFound, UnreadableTask
from taskpool.operations.records import check_id
from taskpool.operations.waiting import AWAY_RETRY_S, LOOK_AGAIN_S, AsyncListener
from taskpool.redis import keys
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import (
    UNREADABLE,
    Call,
    Plan,
    decode_cursor,
    encode_cursor,
    page_length,
    tolerant,
    wrong_cursor,
)
from taskpool.redis.rq_job import status_of
from taskpool.redis.store import Store
from taskpool.tasks.log_lines import LogLine, decode_line
from taskpool.types import Page, TaskStatus

MOST_LINES: Final = 1000
START: Final = "0-0"
NO_LINE: Final = "(this line can't be read: another program wrote it)"

_is_entry: Final = re.compile(r"[0-9]{1,15}-[0-9]{1,15}").fullmatch


@dataclass(frozen=True, slots=True)
class LogStep:
    """What stands behind a line: the next lines, the place to go on from, and whether that was the last of the log."""

    lines: tuple[LogLine, ...]
    after: str
    status: TaskStatus
    is_over: bool
    """The task has ended, and these are its last lines."""
    is_full: bool
    """There may be more already."""


def logs(id: str, *, cursor: str | None = None, limit: int = 100) -> Plan[Page[LogLine]]:
    """A page of a task's log, oldest line first. While the task hasn't ended there is always a next cursor.

    Raises:
        TaskNotFound
        InvalidTask: the cursor isn't one of this listing.
    """
    step = yield from log_step(id, place_of(cursor), limit)
    return Page(step.lines, None if step.is_over else cursor_of(step.after))


def log_step(id: str, after: str, limit: int = MOST_LINES) -> Plan[LogStep]:
    """What stands behind the entry `after` of a task's log.

    Raises:
        TaskNotFound
    """
    limit = page_length(limit, MOST_LINES)
    # In this order: lines are written before the end is.
    status, lines = yield (_status(id), _lines(id, after, limit))
    is_full = len(lines) == limit
    return LogStep(
        lines=lines,
        after=lines[-1].id if lines else after,
        status=status,
        is_over=status.is_terminal and not is_full,
        is_full=is_full,
    )


def last_lines(id: str, since_ms: float, *, most: int) -> Call[list[str]]:
    """The last lines of a task's log that were written after `since_ms`, by their writer's clock; the oldest first."""

    def read(reply: list[Any]) -> list[str]:
        lines = [_line(entry) for entry in reversed(reply)]
        return [line.text for line in lines if line.at_ms >= since_ms]

    return tolerant(Call(("XREVRANGE", keys.LOG + id, "+", "-", "COUNT", most), read, again=True), [])


def place_of(cursor: str | None) -> str:
    """The entry that a cursor stands for.

    Raises:
        InvalidTask: it isn't a cursor of a log.
    """
    if cursor is None:
        return START
    (entry,) = decode_cursor(cursor, (str,))
    if not _is_entry(entry):
        raise wrong_cursor()
    return str(entry)


def cursor_of(entry: str) -> str:
    """The cursor of what comes after an entry: after the line with this `id`."""
    return encode_cursor(entry)


def _status(id: str) -> Call[TaskStatus]:
    def read(reply: Any) -> TaskStatus:
        if isinstance(reply, hiredis.ReplyError):
            raise UnreadableTask(id)
        status, stop_ms, data = reply
        if data is None:
            raise TaskNotFound(id)
        found = status_of(status)
        return TaskStatus.STOPPING if found is TaskStatus.IN_PROGRESS and stop_ms is not None else found

    check_id(id)
    return Call(("HMGET", keys.JOB + id, "status", "stop_ms", "data"), read, again=True, reads_faults=True)


def _lines(id: str, after: str, limit: int) -> Call[tuple[LogLine, ...]]:
    def read(reply: list[Any]) -> tuple[LogLine, ...]:
        return tuple([_line(entry) for entry in reply])

    return tolerant(Call(("XRANGE", keys.LOG + id, f"({after}", "+", "COUNT", limit), read, again=True), ())


def _line(entry: Any) -> LogLine:
    id, fields = entry
    try:
        line = decode_line(fields[1])
    except UNREADABLE:  # it keeps its place, at which a page may end
        line = LogLine(at_ms=int(id.partition(b"-")[0]), text=NO_LINE)
    return msgspec.structs.replace(line, id=id.decode())


LOOK_S: Final = 0.25
"""How often one who blocks looks: workers send lines about as often."""


def follow_log(store: Store, id: str, cursor: str | None = None) -> Iterator[LogStep]:
    """The steps of a task's log from the cursor on, the first at once, the last when the task has ended.

    Raises:
        TaskNotFound
        InvalidTask: the cursor isn't one of a log.
        RedisUnavailable: at the first look; later ones wait for Redis.
    """
    after, has_begun = place_of(cursor), False
    while True:
        try:
            step = store.carry_out(log_step(id, after))
        except RedisUnavailable:
            if not has_begun:
                raise
            time.sleep(AWAY_RETRY_S)
            continue
        has_begun, after = True, step.after
        yield step
        if step.is_over:
            return
        if not step.is_full:
            time.sleep(LOOK_S)


async def follow_log_async(
    store: AsyncStore, listener: AsyncListener, id: str, cursor: str | None = None
) -> AsyncGenerator[LogStep]:
    """As `follow_log`. It reads when a message of the task arrives, and now and then, because messages can be lost."""
    after, has_begun = place_of(cursor), False
    changed = await listener.subscribe(id, every=True)
    try:
        while True:
            changed.clear()  # before the read, so that nothing is missed; a lost connection sets it too
            try:
                step = await store.carry_out(log_step(id, after))
            except RedisUnavailable:
                if not has_begun:
                    raise
                await asyncio.sleep(AWAY_RETRY_S)
                continue
            has_begun, after = True, step.after
            yield step
            if step.is_over:
                return
            if not step.is_full:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):  # Python 3.11's wait_for may miss a cancellation
                        await changed.wait()
    finally:
        with suppress(RedisUnavailable):  # then the subscription has ended with its connection
            await listener.unsubscribe(id, changed)
