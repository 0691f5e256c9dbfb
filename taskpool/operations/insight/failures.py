"""Groups of failures by fingerprint, which `failures.lua` writes: reading them. Bounded: there are 1,000 at most."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from msgspec.structs import replace

from taskpool.errors import FailureNotFound
from taskpool.operations.control.criteria import checked
from taskpool.operations.insight.failure_values import check_fingerprint
from taskpool.operations.records import fetch_if_there
from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, hash_of, names, page_length, redis_ms, tolerant
from taskpool.redis.rq_job import json_of, number_of, object_of, text_of
from taskpool.types import utc
from taskpool.types.control import Filter, Past
from taskpool.types.insight import FailureGroup, Redrive, RedriveStatus

LONGEST_LIST: Final = keys.FAILURES_MOST
HOURS: Final = 24
HOUR_MS: Final = 3_600_000
_HOUR: Final = re.compile(r"(\d{1,9}):(\d{1,15})")


def list_failures(*, type: str | None = None, since: Past | None = None, limit: int = 100) -> Plan[list[FailureGroup]]:
    """The groups that failed last, of a task type or of all. `since`: only those that failed since this time, or within
    a duration before now such as ``1h``. Raises: InvalidTask (`since` or `limit` is invalid)."""
    limit = page_length(limit, LONGEST_LIST)
    (now_ms,) = yield (redis_ms(),)
    wanted = checked(Filter(since=since), utc(now_ms)).since
    least = f"{wanted.timestamp() * 1000:.0f}" if isinstance(wanted, datetime) else "-inf"
    listed = ("ZREVRANGEBYSCORE", keys.FAILURES, "+inf", least, "LIMIT", 0, keys.FAILURES_MOST)
    (found,) = yield (tolerant(Call(listed, names, again=True), []),)
    groups: list[FailureGroup] = []
    for at in range(0, len(found), limit):
        part = yield [_group(fingerprint, now_ms) for fingerprint in found[at : at + limit]]
        groups += [each for each in part if each is not None and (type is None or type in each.types)]
        if len(groups) >= limit:
            break
    return groups[:limit]


def get_failure(fingerprint: str) -> Plan[FailureGroup]:
    """A group with the traceback of its last task and its last redrive. Raises: FailureNotFound."""
    check_fingerprint(fingerprint)
    (now_ms,) = yield (redis_ms(),)
    group: FailureGroup | None
    group, redrive = yield (_group(fingerprint, now_ms), redrive_of(fingerprint))
    if group is None:
        raise FailureNotFound(fingerprint)
    (record,) = yield (fetch_if_there(group.sample),)
    failure = record.failure if record is not None and record.fingerprint == fingerprint else None
    traceback = (failure or {}).get("traceback")
    return replace(group, redrive=redrive, traceback=traceback if isinstance(traceback, str) else None)


def redrive_of(fingerprint: str) -> Call[Redrive | None]:
    """The last redrive of a group; None if there is none."""

    def read(reply: Sequence[bytes] | dict[bytes, bytes]) -> Redrive | None:
        h = hash_of(reply)
        return None if b"id" not in h else restore_redrive(fingerprint, h)

    return tolerant(Call(("HGETALL", keys.REDRIVE + fingerprint), read, again=True), None)


def restore_redrive(fingerprint: str, h: Mapping[bytes, bytes]) -> Redrive:
    """The redrive in a hash."""
    ended_ms = number_of(h.get(b"ended_ms"))
    return Redrive(
        id=h[b"id"].decode(),
        fingerprint=fingerprint,
        status=RedriveStatus(text_of(h.get(b"status")) or ""),
        steps=tuple(json_of(h.get(b"steps")) or ()),
        step=number_of(h.get(b"step"), 1),
        retried=number_of(h.get(b"retried"), 0),
        succeeded=number_of(h.get(b"succeeded"), 0),
        failed_again=number_of(h.get(b"failed_again"), 0),
        left_out=number_of(h.get(b"left_out"), 0),
        include_nonretryable=h.get(b"include") == b"1",
        why=text_of(h.get(b"why")) or None,
        by=(object_of(h.get(b"by")) or {}).get("name"),
        created_at=utc(number_of(h.get(b"created_ms"), 0)),
        ended_at=None if ended_ms is None else utc(ended_ms),
    )


def _group(fingerprint: str, now_ms: int) -> Call[FailureGroup | None]:
    call = Call(("HGETALL", keys.FAILURE + fingerprint), partial(_restore, fingerprint, now_ms), again=True)
    return tolerant(call, None)


def _restore(fingerprint: str, now_ms: int, reply: Sequence[bytes] | dict[bytes, bytes]) -> FailureGroup | None:
    h = hash_of(reply)
    if b"kind" not in h:
        return None
    last_ms = number_of(h.get(b"last_ms"), 0)
    return FailureGroup(
        fingerprint=fingerprint,
        error_type=text_of(h[b"kind"]) or "",
        message=text_of(h.get(b"message")) or "",
        place=text_of(h.get(b"place")) or "",
        count=number_of(h.get(b"count"), 0),
        tasks=number_of(h.get(b"tasks"), 0),
        first_seen=utc(number_of(h.get(b"first_ms"), last_ms)),
        last_seen=utc(last_ms),
        types=_counts(h, b"t:"),
        builds=_counts(h, b"b:"),
        queues=_counts(h, b"q:"),
        workers=_counts(h, b"w:"),
        spark=_spark(h, now_ms),
        retryable=h.get(b"retryable") == b"1",
        sample=text_of(h.get(b"sample")) or "",
    )


def _counts(h: Mapping[bytes, bytes], prefix: bytes) -> dict[str, int]:
    """The counts under names, the largest first."""
    found = {
        name[len(prefix) :].decode("utf-8", "replace"): number_of(raw, 0)
        for name, raw in h.items()
        if name.startswith(prefix)
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _spark(h: Mapping[bytes, bytes], now_ms: int) -> tuple[int, ...]:
    """Failed attempts in each of the last 24 hours."""
    this_hour = now_ms // HOUR_MS
    counted = {}
    for slot in range(HOURS):
        match = _HOUR.fullmatch((h.get(b"h:%d" % slot) or b"").decode("latin-1"))
        if match:
            counted[int(match[1])] = int(match[2])
    return tuple([counted.get(hour, 0) for hour in range(this_hour - HOURS + 1, this_hour + 1)])
