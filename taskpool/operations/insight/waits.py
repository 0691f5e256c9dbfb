"""Who waits longest for a worker, by queue, type, API key or project.

It looks at the first tasks of the queues that wait longest. What that costs depends on the number of queues, and not on
how many tasks they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest
from typing import Final, NamedTuple, get_args

from taskpool.operations.overview import queues
from taskpool.operations.specs import check_word
from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, redis_ms, texts, tolerant
from taskpool.redis.rq_job import text_of, time_of
from taskpool.types import RQ_STATUS, QueueInfo, TaskStatus
from taskpool.types.insight import WaitingGroup, Waits, WaitsBy

MOST_QUEUES: Final = 20
MOST_OF_QUEUE: Final = 200
MOST_LOOKED_AT: Final = 1000
MOST_GROUPS: Final = 100
AT_ONCE: Final = 250
QUEUED: Final = RQ_STATUS[TaskStatus.QUEUED].encode()


class Waiting(NamedTuple):
    """A queued task. The names of its fields are those of `WaitsBy`."""

    queue: str
    type: str
    key: str | None
    project: str | None
    waits_s: float


class Sample(NamedTuple):
    """The tasks that were looked at, how many each of their queues holds, and all queues together."""

    tasks: Sequence[Waiting]
    lengths: Mapping[str, int]
    queued: int


def waits(by: WaitsBy = "queue") -> Plan[Waits]:
    """Who waits longest, by queue, type, API key or project. Raises: InvalidTask (`by` is something else)."""
    check_word("by", by, get_args(WaitsBy))
    return grouped((yield from sample()), by)


def sample() -> Plan[Sample]:
    """Look at the first tasks of the queues that wait longest."""
    infos = yield from queues()
    waiting = [info for info in infos if info.queued]
    chosen = nlargest(MOST_QUEUES, waiting, key=lambda info: info.oldest_s or 0)
    now_ms, *parts = yield [redis_ms(), *map(_first, chosen, _shares([info.queued for info in chosen]))]
    places = [(info.name, id) for info, ids in zip(chosen, parts, strict=True) for id in ids]
    found: list[Waiting | None] = []
    for at in range(0, len(places), AT_ONCE):
        found += yield [_waiting(queue, id, now_ms) for queue, id in places[at : at + AT_ONCE]]
    return Sample(
        tasks=[task for task in found if task is not None],
        lengths={info.name: info.queued for info in chosen},
        queued=sum(info.queued for info in infos),
    )


def _shares(lengths: Sequence[int]) -> list[int]:
    """How many tasks of each queue are looked at. What a short queue leaves goes to the longer ones."""
    shares = [0] * len(lengths)
    left = MOST_LOOKED_AT
    for place, at in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        shares[at] = min(lengths[at], MOST_OF_QUEUE, left // (len(lengths) - place))
        left -= shares[at]
    return shares


def _first(queue: QueueInfo, count: int) -> Call[list[str]]:
    return tolerant(Call(("LRANGE", keys.QUEUE + queue.name, 0, count - 1), texts, again=True), [])


def _waiting(queue: str, id: str, now_ms: int) -> Call[Waiting | None]:
    """A task in a queue; None if it is gone, or was claimed meanwhile."""

    def read(reply: Sequence[bytes | None]) -> Waiting | None:
        status, enqueued_at, created_at, type, key, project = reply
        since = time_of(enqueued_at) or time_of(created_at)
        if status != QUEUED or since is None:
            return None
        waits_s = max(now_ms / 1000 - since.timestamp(), 0.0)
        return Waiting(queue, text_of(type) or keys.UNKNOWN_TYPE, text_of(key), text_of(project), waits_s)

    fields = ("status", "enqueued_at", "created_at", "type", "submitted_by", "project")
    return tolerant(Call(("HMGET", keys.JOB + id, *fields), read, again=True), None)


def grouped(sample: Sample, by: WaitsBy) -> Waits:
    """The groups of a sample, the longest wait first."""
    members: dict[str | None, list[Waiting]] = {}
    for task in sample.tasks:
        members.setdefault(getattr(task, by), []).append(task)
    groups = [
        WaitingGroup(
            name=name,
            count=len(tasks),
            queued=sample.lengths[tasks[0].queue] if by == "queue" else None,
            oldest_s=round(max(task.waits_s for task in tasks), 3),
            queues=tuple(_by_wait(tasks)),
        )
        for name, tasks in members.items()
    ]
    top = nlargest(MOST_GROUPS, groups, key=lambda group: group.oldest_s)
    return Waits(by=by, groups=tuple(top), looked_at=len(sample.tasks), queued=sample.queued)


def _by_wait(tasks: Iterable[Waiting]) -> list[str]:
    """The queues of these tasks, the one with the longest wait first."""
    longest: dict[str, float] = {}
    for task in tasks:
        longest[task.queue] = max(task.waits_s, longest.get(task.queue, 0.0))
    return sorted(longest, key=lambda queue: -longest[queue])
