"""The way in for who needs no more of a task than its id and status: the API. Nothing is read back.

A submission may carry an idempotency key (`Once`): it is stored, or answered as the one before, in one script, so
there is no moment in which such a key is taken and its tasks aren't there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from taskpool.access.audit import Actor, entry
from taskpool.calls import Plan, one
from taskpool.catalogue import Catalogue
from taskpool.errors import FieldError, InvalidTask, NotAllowed
from taskpool.queue import refuse
from taskpool.receipt import Receipt
from taskpool.registry import Registry
from taskpool.submission import addition
from taskpool.submission.addition import Added, Once, status_told
from taskpool.submission.checking import Checked, check_task, check_tasks
from taskpool.submission.prepare import Defaults
from taskpool.types import TaskSpec

UNREPLACEABLE: Final = (
    "the task that holds this unique key can't be replaced: your API key may not use its type, or not its queue"
)


class Submitted(NamedTuple):
    """What became of tasks that were submitted together, in order. `is_replayed`: by an earlier call."""

    receipts: tuple[Receipt, ...]
    is_replayed: bool = False


def submit(
    spec: TaskSpec,
    catalogue: Catalogue,
    registry: Registry | None,
    defaults: Defaults,
    once: Once | None = None,
    *,
    by: Actor | None = None,
) -> Plan[Submitted]:
    """Add one task. `by`: who submits it, whose project it gets, and whom the audit names.

    Raises:
        InvalidTask: as `add_task`.
        NotAllowed: `by` may not use its type, its queue or one of its options.
        UniqueConflict: as `add_task`.
        KeyReused: `once` stands for another submission.
    """
    try:
        checked = yield from check_task(spec, catalogue, registry, defaults, by=by)
    except InvalidTask as error:
        return (yield from _before(once, error))
    audited = audit_of(checked, by)
    return submitted((checked,), (yield from one(addition.add((checked.task,), once, audited))))


def audit_of(checked: Checked, by: Actor | None) -> bytes:
    """The audit's entry of one submission."""
    return entry(by, "task.submitted", checked.task.id)


def submit_many(
    specs: Sequence[TaskSpec],
    catalogue: Catalogue,
    registry: Registry | None,
    defaults: Defaults,
    once: Once | None = None,
    *,
    by: Actor | None = None,
    start: str = "",
) -> Plan[Submitted]:
    """Add tasks, a thousand at most, all or none; as `submit` otherwise. The faults' pointers begin with `start` and
    the index."""
    try:
        checked = yield from check_tasks(specs, catalogue, registry, defaults, by=by, start=start)
    except InvalidTask as error:
        return (yield from _before(once, error))
    if not checked:
        return Submitted(())
    tasks = [each.task for each in checked]
    audited = entry(by, "task.submitted", tasks[0].id, count=len(tasks), last=tasks[-1].id)
    return submitted(checked, (yield from one(addition.add(tasks, once, audited))), start)


def _before(once: Once | None, refusal: InvalidTask) -> Plan[Submitted]:
    """What was accepted under a key is answered alike, even if nobody serves its type any more."""
    added = None if once is None else (yield from one(addition.added_before(once)))
    if added is None:
        raise refusal
    return submitted((), added)


def submitted(checked: Sequence[Checked], added: Added, start: str | None = None) -> Submitted:
    """What became of submissions that one `addition.add` was sent for; with `start` they were a batch.

    Raises:
        InvalidTask, NotAllowed, UniqueConflict, KeyReused, QueueFull: as `submit`; none of them was stored.
    """
    if len(checked) == 1 and len(added.statuses) == 1 and not (added.existing or added.replayed):  # as most are
        return Submitted((Receipt(checked[0].task.id, status_told(added.statuses[0])),))
    if added.unreplaceable is not None:
        at = "" if start is None else f"{start}/{added.unreplaceable}"
        raise NotAllowed([FieldError(f"{at}/on_conflict", UNREPLACEABLE)])
    refuse(checked, added)
    own = tuple([each.task.id for each in checked])
    ids = added.replayed or own
    receipts = [
        Receipt(added.existing.get(index, id), status_told(status), index in added.existing)
        for index, (id, status) in enumerate(zip(ids, added.statuses, strict=True))
    ]
    # Sent again because the answer was lost, the call meets what it stored itself.
    return Submitted(tuple(receipts), is_replayed=bool(added.replayed) and added.replayed != own)
