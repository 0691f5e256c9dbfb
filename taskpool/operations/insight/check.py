"""`taskpool check`: which stored tasks would break with the task types of this build.

It decodes the payload of every task that hasn't started, and of every failed one, which may be retried. It changes
nothing, and reads Redis in pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Final

from taskpool.errors import InvalidPayload
from taskpool.operations.listing import LONGEST_PAGE, list_tasks
from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, as_it_is, tolerant
from taskpool.tasks.registry import Registry
from taskpool.text import Secrets, SecretsGone, hidden
from taskpool.types import TaskRecord, TaskStatus
from taskpool.types.control import Filter
from taskpool.types.insight import BrokenTask, CheckReport

CHECKED: Final = (
    TaskStatus.QUEUED,
    TaskStatus.SCHEDULED,
    TaskStatus.WAITING,
    TaskStatus.WAITING_CONFIRMATION,
    TaskStatus.FAILED,
)
STARTABLE: Final = CHECKED[:-1]
MOST_LISTED: Final = 100
LONGEST_DETAIL: Final = 300


def check_tasks(
    registry: Registry, *, queues: Sequence[str] | None = None, statuses: Sequence[TaskStatus] = CHECKED
) -> Plan[CheckReport]:
    """Decode the payloads of the tasks with these statuses, in these queues or all, with the types of a registry."""
    checked = 0
    by_type: Counter[str] = Counter()
    listed: list[BrokenTask] = []
    for status, queue in product(statuses, queues if queues is not None else (None,)):
        cursor: str | None = None
        while True:
            page = yield from list_tasks(Filter(status=status, queue=queue), cursor=cursor, limit=LONGEST_PAGE)
            secrets = yield [_secrets(record, registry) for record in page.items]
            for record, stored in zip(page.items, secrets, strict=True):
                if record.type == keys.UNKNOWN_TYPE:
                    continue  # another program's job
                checked += 1
                if (fault := _fault(record, stored, registry)) is not None:
                    by_type[record.type] += 1
                    if len(listed) < MOST_LISTED:
                        listed.append(fault)
            cursor = page.next_cursor
            if cursor is None:
                break
            yield ()
    return CheckReport(checked=checked, broken=by_type.total(), types=dict(by_type.most_common()), tasks=tuple(listed))


def _secrets(record: TaskRecord, registry: Registry) -> Call[bytes | None]:
    """What was taken out of a task's payload; nothing is read for a type without secret fields."""
    task_type = registry.get(record.type)
    if task_type is None or not task_type.secret_fields:
        return Call(("PING",), lambda reply: None, again=True)
    return tolerant(Call(("GET", keys.SECRETS + record.id), as_it_is, again=True), None)


def _fault(record: TaskRecord, stored: bytes | None, registry: Registry) -> BrokenTask | None:
    """What would go wrong with a task; None: nothing."""
    task_type = registry.get(record.type)
    if task_type is None:
        return _broken(record, "unknown_task", "this build has no such task type")
    secrets = Secrets.restore(stored) if stored else None
    try:
        task_type.decode(record.payload if secrets is None else secrets.put_into(record.payload))
    except SecretsGone:
        return None  # it fails in any build
    except InvalidPayload as error:
        return _broken(record, "invalid_payload", hidden(str(error), secrets))
    except Exception as error:  # a validator of the user's own may raise anything
        return _broken(record, "invalid_payload", hidden(f"{type(error).__name__}: {error}", secrets))
    return None


def _broken(record: TaskRecord, reason: str, detail: str) -> BrokenTask:
    return BrokenTask(
        id=record.id,
        type=record.type,
        status=record.status,
        queue=record.queue,
        reason=reason,
        detail=detail[:LONGEST_DETAIL],
    )


def refusal_of(report: CheckReport) -> str:
    """Why a pool doesn't start, in one sentence."""
    first = report.tasks[0]
    types = ", ".join(f"{name} ({count:,})" for name, count in report.types.items())
    return (
        f"{report.broken:,} tasks that wait would break with this build: {types}. The first one is {first.id}: "
        f"{first.detail}. See `taskpool check`; TASKPOOL_PAYLOAD_CHECK=leave leaves them to pools with other builds"
    )
