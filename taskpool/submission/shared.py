"""What tasks of one type with the same options share: settled once, built once by RQ, and packed once for Redis.

Most submissions differ from the one before by id and payload alone: the rest of their command is bytes kept here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import hiredis
import msgspec

from taskpool import rqjob
from taskpool.calls import Part
from taskpool.types import OnLostLease

DEFAULT_ATTEMPTS: Final = 1

PLAIN_PARTS: Final = 13
"""The arguments that `add.lua` takes for a task before the fields of its hash."""


class Shared(msgspec.Struct, frozen=True, gc=False):
    """The options of a task, settled. Seconds; `fields` are those of its hash that don't differ, flat."""

    type: str
    queue: str
    timeout_s: float
    result_ttl_s: int
    failure_ttl_s: int
    max_attempts: int
    backoff_s: float | None
    backoff_max_s: float | None
    on_lost_lease: OnLostLease
    fields: tuple[Part, ...]
    packed: bytes
    """What stands between id and `data` in the command that adds a task without further options."""
    parts: int
    """How many arguments such a task takes there, with its id, `data` and description."""


@lru_cache(maxsize=4096, typed=True)
def share(  # noqa: PLR0917 - names would cost time, and this is asked for every submission
    type: str,
    queue: str,
    timeout_s: float,
    result_ttl_s: int,
    failure_ttl_s: int,
    max_attempts: int,
    backoff_s: float | None,
    backoff_max_s: float | None,
    on_lost_lease: OnLostLease,
) -> Shared:
    """What tasks with these options share."""
    fields: list[Part] = [*rqjob.template(queue, timeout_s, result_ttl_s, failure_ttl_s), "type", type]
    backoff_s, backoff_max_s = _milliseconds(backoff_s), _milliseconds(backoff_max_s)
    if max_attempts != DEFAULT_ATTEMPTS:
        fields += ("max_attempts", max_attempts)
    if backoff_s is not None or backoff_max_s is not None:
        fields += ("backoff", backoff_text(backoff_s, backoff_max_s))
    if on_lost_lease != "continue":
        fields += ("on_lost_lease", on_lost_lease)
    without_options = [""] * (PLAIN_PARTS - 4)  # id, queue and type stand in front, the count of the fields behind
    arguments: tuple[Part, ...] = (queue, type, *without_options, len(fields) + 4, *fields, "data")
    _, _, packed = hiredis.pack_command(arguments).partition(b"\r\n")  # type: ignore[arg-type]
    return Shared(
        type=type,
        queue=queue,
        timeout_s=timeout_s,
        result_ttl_s=result_ttl_s,
        failure_ttl_s=failure_ttl_s,
        max_attempts=max_attempts,
        backoff_s=backoff_s,
        backoff_max_s=backoff_max_s,
        on_lost_lease=on_lost_lease,
        fields=tuple(fields),
        packed=packed,
        parts=PLAIN_PARTS + len(fields) + 4,
    )


def backoff_text(first_s: float | None, longest_s: float | None) -> str:
    """A task's back-off as its hash holds it, in ms: ``first,longest``, each empty when it is None."""
    return ",".join(["" if each_s is None else str(round(each_s * 1000)) for each_s in (first_s, longest_s)])


def _milliseconds(seconds: float | None) -> float | None:
    """As exact as it is stored."""
    return None if seconds is None else round(seconds * 1000) / 1000
