"""What housekeeping does for workflows, in bounded steps: it goes on with what a caller has left when it died."""

from __future__ import annotations

from typing import Final

from taskpool.operations.status import release_dependents
from taskpool.redis import add_script, keys, scripts, workflow_scripts
from taskpool.redis.calls import Call, Plan, one, redis_ms, texts, tolerant

AT_ONCE: Final = 20
CHUNKS: Final = 4
"""How many workflows, and how many chunks of each, one round stores."""
LOOKED_AT: Final = 500
"""Members that one step of a stop, a sweep or a removal looks at."""
SWEPT: Final = (keys.WORKFLOWS_OPEN, keys.WORKFLOWS)
REVIVED: Final = 100
"""Members and edges that one step of a retry reads."""
STEPS: Final = 4
WORKFLOW_STOPPED: Final = "canceled: its workflow was stopped"


def look_after_workflows(by_ms: int | None = None, *, sweeps: bool = True) -> Plan[bool]:
    """One round for all workflows; whether there may be more to do. `by_ms`: see housekeeping. `sweeps`: compare the
    counts of some members with their records, too."""
    now_ms = by_ms if by_ms is not None else (yield from one(redis_ms()))
    left, stopping, reviving, due, *_ = yield (
        workflow_scripts.expanding(AT_ONCE, idle_ms=keys.EXPANDED_AFTER_MS, now_ms=now_ms),
        Call(("ZRANGE", keys.WORKFLOWS_STOPPING, 0, AT_ONCE - 1), texts, again=True),
        Call(("SRANDMEMBER", keys.WORKFLOWS_REVIVING, AT_ONCE), texts, again=True),
        scripts.due(keys.WORKFLOWS_ENDED, limit=AT_ONCE, by_ms=now_ms),
        *[tolerant(workflow_scripts.sweep(index, LOOKED_AT), "") for index in (SWEPT if sweeps else ())],
    )
    words = yield [
        *[tolerant(workflow_scripts.revive(id, REVIVED), "") for id in reviving],
        *[tolerant(workflow_scripts.purge(id, LOOKED_AT), "") for id in due.members],
    ]
    for id in stopping:
        yield from stop_members(id, STEPS)
    for _ in range(CHUNKS if left else 0):  # last: a Redis whose memory is full refuses only these
        yield [tolerant(add_script.add_chunk(workflow), False) for workflow in left]
    return bool(left) or "more" in words


def purge_workflow(id: str) -> Plan[None]:
    """Remove an ended workflow whose time is over, with its tasks."""
    while (word := (yield from one(workflow_scripts.purge(id, LOOKED_AT)))) in ("more", "children"):
        if word == "children":
            yield from release_dependents(f"{id}:")


def stop_members(id: str, most: int | None = None) -> Plan[None]:
    """Cancel the members of a stopping workflow that wait, and ask those that run to stop: `most` steps."""
    (at,) = yield (Call(("ZSCORE", keys.WORKFLOWS_STOPPING, id), lambda score: int(float(score or 1)), again=True),)
    before, steps = at, 0
    while steps != most:
        found = yield from one(workflow_scripts.find_open(id, at, LOOKED_AT))
        yield [
            tolerant(scripts.cancel(each, reason="workflow_stopped", error=WORKFLOW_STOPPED), "")
            for each in found.waiting
        ]
        yield [tolerant(scripts.stop(each, grace_s=found.grace_s, force=found.force), "") for each in found.running]
        at, steps = found.next_number, steps + 1
        if not at:
            break
    if (at or 1) != before:  # a Redis whose memory is full refuses it
        yield (Call(("ZADD", keys.WORKFLOWS_STOPPING, "XX", at or 1, id), int, again=True),)
