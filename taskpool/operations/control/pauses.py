"""Pauses a queue, a worker pool or everything, and resumes it; has a pool drain.

What is paused is a hash that claims look at (`turn.lua`). So a pause holds from the next claim on, also for pools that
start later; what runs goes on. Plain RQ workers don't know it: `rq suspend` stops those too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from taskpool.access.audit import ANONYMOUS, Actor, entry
from taskpool.errors import FieldError, InvalidTask, NotAllowed, PoolConflict, PoolNotFound
from taskpool.operations.catalog import pools
from taskpool.redis import pause_scripts
from taskpool.redis.calls import Call, Plan, one
from taskpool.redis.pause_scripts import ALL, POOL, QUEUE
from taskpool.types.fleet import Pause
from taskpool.types.people import LONGEST_TEXT, TEXT, TEXT_TAKES
from taskpool.validation import QUEUE_NAME, QUEUE_TAKES, is_text

QUEUES_AT_ONCE: Final = 500


def pause_queue(name: str, *, why: str | None = None, by: Actor | None = None) -> Plan[Pause]:
    """Pause a queue; the pause that holds now. Of several pauses, the first one counts.
    Raises: InvalidTask (the name or the reason isn't right), NotAllowed."""
    _check_queue(name, by)
    return _held((yield from one(_pause(QUEUE + name, "queue.paused", name, why, by))), name)


def resume_queue(name: str, *, by: Actor | None = None) -> Plan[None]:
    """Resume a queue: its tasks go on at once. Raises: InvalidTask, NotAllowed."""
    _check_queue(name, by)
    yield from one(pause_scripts.resume(QUEUE + name, [name], entry(by, "queue.resumed", name)))


def pause_all(*, why: str | None = None, by: Actor | None = None) -> Plan[Pause]:
    """Pause everything: no pool claims a task. Raises: InvalidTask, NotAllowed."""
    _check_unbound(by)
    return _held((yield from one(_pause(ALL, "everything.paused", ALL, why, by))), ALL)


def resume_all(*, by: Actor | None = None) -> Plan[None]:
    """Resume everything; queues and pools that are paused themselves stay so. Raises: NotAllowed."""
    _check_unbound(by)
    served = {queue for pool in (yield from pools()) for queue in pool.queues}
    yield from _resume(ALL, sorted(served), entry(by, "everything.resumed", ALL))


def pause_pool(name: str, *, why: str | None = None, by: Actor | None = None) -> Plan[Pause]:
    """Have a worker pool claim no more tasks until it is resumed. Raises: PoolNotFound, InvalidTask, NotAllowed."""
    _check_pool(name, by)
    return _held((yield from one(_pause(POOL + name, "pool.paused", name, why, by))), name)


def resume_pool(name: str, *, by: Actor | None = None) -> Plan[None]:
    """Resume a worker pool. Raises: PoolNotFound, PoolConflict (it drains), NotAllowed."""
    _check_pool(name, by)
    queues = next((pool.queues for pool in (yield from pools()) if pool.id == name), None)
    if queues is None:
        raise PoolNotFound(name)
    word = yield from _resume(POOL + name, queues, entry(by, "pool.resumed", name))
    if word == "draining":
        raise PoolConflict(f"the worker pool {name!r} is draining: it finishes its tasks and ends")


def drain_pool(name: str, *, why: str | None = None, by: Actor | None = None) -> Plan[Pause]:
    """Have a worker pool claim no more tasks, finish those that it runs, and end, as after a SIGTERM. Raises:
    PoolNotFound, InvalidTask, NotAllowed."""
    _check_pool(name, by)
    return _held((yield from one(_pause(POOL + name, "pool.drained", name, why, by, drains=True))), name)


def paused() -> Plan[Mapping[str, Pause]]:
    """All that is paused: `all`, `queue:` and a queue's name, `pool:` and a pool's."""
    return (yield from one(pause_scripts.paused()))


def _pause(
    field: str, what: str, about: str, why: str | None, by: Actor | None, *, drains: bool = False
) -> Call[Pause | None]:
    if why is not None and not (is_text(why) and len(why) <= LONGEST_TEXT and TEXT.fullmatch(why)):
        _refuse("/why", f"must be {TEXT_TAKES}")
    name = None if by is None or by.name == ANONYMOUS else by.name
    return pause_scripts.pause(field, name, why, entry(by, what, about, comment=why), drains=drains)


def _held(pause: Pause | None, pool: str) -> Pause:
    if pause is None:
        raise PoolNotFound(pool)
    return pause


def _resume(field: str, queues: Sequence[str], audited: bytes) -> Plan[str]:
    word = "ok"
    for at in range(0, max(len(queues), 1), QUEUES_AT_ONCE):
        word = yield from one(pause_scripts.resume(field, queues[at : at + QUEUES_AT_ONCE], audited))
    return word


def check_queue(name: object) -> None:
    """Return if a queue may have this name. Raises: InvalidTask."""
    if not (isinstance(name, str) and QUEUE_NAME.fullmatch(name) and name.strip(".")):  # dots lead to another path
        _refuse("/queue", f"must be {QUEUE_TAKES}")


def _check_queue(name: str, by: Actor | None) -> None:
    check_queue(name)
    if by is not None and (by.types is not None or (by.queues is not None and name not in by.queues)):
        _check_unbound(by)


def _check_pool(name: object, by: Actor | None) -> None:
    _check_unbound(by)
    if not (isinstance(name, str) and is_text(name)):
        raise PoolNotFound(str(name))


def _check_unbound(by: Actor | None) -> None:
    if by is not None and by.is_bound:
        text = f"the key {by.name!r} may start and stop only some tasks, and this concerns others too"
        raise NotAllowed([FieldError("", text)])


def _refuse(pointer: str, detail: str) -> NoReturn:
    raise InvalidTask(f"{pointer}: {detail}", [FieldError(pointer, detail)])
