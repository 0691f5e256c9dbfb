"""Schedules that are declared in code: `@task("nightly", schedule=Cron("0 2 * * *"))`.

A declared schedule has the name of its task type and belongs to the module. Each worker pool announces, for each module
that it has loaded, a digest of the schedules declared there. While pools with different code live side by side, the
declaration counts that was seen first most recently: that of the newest deployment. A pool whose declaration counts
makes Redis agree with it, and removes what the module no longer declares. Pools that haven't loaded a module leave its
schedules alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import msgspec

from taskpool.operations.catalog import PoolInfo
from taskpool.operations.flow.schedules import Stored, due_of, fields_of, next_of, stored
from taskpool.redis import schedule_scripts
from taskpool.redis.calls import Part, Plan, one, redis_ms, tolerant
from taskpool.tasks.schedule import DeclaredSchedule
from taskpool.types import TaskSpec
from taskpool.validation import new_id

Declarations = Mapping[str, Sequence[DeclaredSchedule]]
"""By module. One without schedules is there, too: it may have declared some before."""


def digest_of(schedules: Sequence[DeclaredSchedule]) -> str:
    """What tells one declaration of a module from another: not the places, which move with every edit."""
    content = sorted((each.name, each.queue, msgspec.json.encode(each.timing)) for each in schedules)
    return hashlib.blake2b(msgspec.json.encode(content), digest_size=8).hexdigest()


def declares(modules: Declarations) -> dict[str, str]:
    """What a pool with these modules announces."""
    return {module: digest_of(schedules) for module, schedules in modules.items()}


def declare(modules: Declarations, live: Collection[PoolInfo]) -> Plan[list[str]]:
    """Make Redis agree with what this pool declares, where its declaration counts; what is in the way, in words."""
    digests = declares(modules)
    found = yield [
        schedule_scripts.declare(
            module,
            digest,
            {pool.declares[module] for pool in live if module in pool.declares} - {digest},
            has_any=bool(modules[module]),
        )
        for module, digest in digests.items()
    ]
    warnings: list[str] = []
    for (module, digest), (winner, ids) in zip(digests.items(), found, strict=True):
        if winner == digest:
            yield from _withdraw(module, set(ids) - {each.name for each in modules[module]})
            for each in modules[module]:
                warning = yield from _declare(module, digest, each, live)
                warnings += [warning] if warning else []
    return warnings


def _withdraw(module: str, ids: Collection[str]) -> Plan[None]:
    schedules = (yield [stored(id) for id in ids]) if ids else []
    for each in schedules:
        if each is not None and each.module == module:
            yield from one(schedule_scripts.remove(each.id, each.incarnation, each.revision))


def _declare(module: str, digest: str, declared: DeclaredSchedule, live: Collection[PoolInfo]) -> Plan[str | None]:
    """Make or change one schedule; why it can't be. If another pool is quicker, the next round sees what that did."""
    name, timing, queue, place = declared
    before: Stored | None
    before, now_ms = yield (stored(name), redis_ms())
    if before is not None:
        if before.module is None:
            return f"the schedule {name!r}, declared at {place}, was made by hand as well; remove that one"
        if before.module != module and before.is_declared(live):
            return f"the schedule {name!r} is declared twice: at {before.place} and at {place}"
        if (before.module, before.digest, before.place) == (module, digest, place):
            return None
    next_ms = next_of(timing, before, now_ms)
    paused = before is not None and before.paused_ms is not None
    fields: dict[str, Part] = {
        **fields_of(timing, TaskSpec(type=name), b"", queue),
        "next_ms": "" if paused or next_ms is None else next_ms,
        "module": module,
        "digest": digest,
        "place": place,
        "updated_ms": now_ms,
    }
    if before is None:
        fields["created_ms"] = now_ms
    save = schedule_scripts.save(
        name,
        fields,
        revision=None if before is None else before.revision,
        next_ms=None if before is None else before.next_ms,
        incarnation=new_id() if before is None else before.incarnation,
        due_ms=None if paused else due_of(name, timing, next_ms, now_ms),
    )
    yield (tolerant(save, ""),)
    return None
