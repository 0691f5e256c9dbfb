"""What Redis says a worker holds: claims that were carried out although nobody saw the answer are found here."""

from __future__ import annotations

from collections.abc import Container, Sequence

from taskpool import keys, record, scripts
from taskpool.calls import Call, Plan
from taskpool.claimed import DEFAULT_FAILURE_TTL_S, DEFAULT_TTL_S
from taskpool.types import RunningTask, TaskRecord


def attempts_of(worker: str) -> Call[list[tuple[str, str]]]:
    """The task id and the attempt id of all that a worker holds."""

    def read(reply: list[bytes]) -> list[tuple[str, str]]:
        pairs = (member.decode().partition(":") for member in reply)
        return [(id, attempt_id) for id, _, attempt_id in pairs]

    return Call(("SMEMBERS", f"{keys.WORKER}{worker}:executions"), read, again=True)


def running_of(
    id: str, attempt_id: str, worker: str, found: TaskRecord | None, queue: str | None = None
) -> RunningTask:
    """The claimed task of an attempt, made anew from its record (None: it is gone) for a call that ends it."""
    return RunningTask(
        id=id,
        type=found.type if found else "unknown",
        payload=None,
        queue=queue or (found.queue if found else "default"),
        attempt=found.attempt if found else 1,
        attempt_id=attempt_id,
        worker=worker,
        max_attempts=found.max_attempts if found else 1,
        backoff_s=found.backoff_s if found else None,
        backoff_max_s=found.backoff_max_s if found else None,
        timeout_s=found.timeout_s if found else None,
        result_ttl_s=_or_default(found.result_ttl_s if found else None, DEFAULT_TTL_S),
        failure_ttl_s=_or_default(found.failure_ttl_s if found else None, DEFAULT_FAILURE_TTL_S),
        started_ms=0,
    )


def give_back_unseen(worker: str, known: Container[str]) -> Plan[None]:
    """Gives back what the worker holds without knowing it: every attempt but the `known` ones, by attempt id."""
    (held,) = yield (attempts_of(worker),)
    unseen = [(id, attempt_id) for id, attempt_id in held if attempt_id not in known]
    if unseen:
        yield from give_back(unseen, worker)


def give_back(attempts: Sequence[tuple[str, str]], worker: str | None = None) -> Plan[None]:
    """Gives back attempts (task id, attempt id) of a worker; None: the one that each record names."""
    records = yield [record.fetch_if_there(id) for id, _ in attempts]
    yield [
        scripts.give_back(running_of(id, attempt_id, worker or (found.worker if found else None) or "", found))
        for (id, attempt_id), found in zip(attempts, records, strict=True)
    ]


def _or_default(ttl_s: int | None, default: int) -> int:
    return default if ttl_s is None else ttl_s
