"""The state that tests/model.py moves: tasks, and what refers to them; and Redis as it must be then.

Where a task stands in Redis follows from its status alone (`structure`), so no id can be in two places.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from taskpool.types import RQ_STATUS, TERMINAL, TaskStatus

S = TaskStatus
BELL_CAP: Final = 64
HISTORY: Final = 20
RUNS: Final = frozenset({S.IN_PROGRESS, S.STOPPING})
REGISTRY: Final = {
    S.SCHEDULED: "rq:scheduled:",
    S.WAITING: "rq:deferred:",
    S.DONE: "rq:finished:",
    S.FAILED: "rq:failed:",
    S.STOPPED: "rq:failed:",
    S.CANCELED: "rq:canceled:",
}
Lease = tuple[str, str, str]
"""Queue, task, attempt id."""


@dataclass
class Task:
    """A task as the model knows it. `later`: its time to run hasn't come; `expires`: '', 'later' or 'due'."""

    id: str
    queue: str
    type: str = "work"
    tags: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    front: bool = False
    later: bool = False
    expires: str = ""
    status: TaskStatus = S.QUEUED
    seq: int = 1
    attempt: int = 0
    attempt_id: str = ""
    max_attempts: int = 1
    attempts_a_life: int = 0
    crashes: int = 0
    pending: int = 0
    stop: str = ""
    reason: str = ""
    by_call: str = ""
    put_back: str = ""
    snoozes: int = 0
    history: list[str] = field(default_factory=list)
    was_started: bool = False
    was_released: bool = False
    """It has waited for all its parents, and they are done."""
    is_due: bool = False
    """The time of its registry has come: to be promoted, or to be purged."""

    @property
    def rq(self) -> str:
        return RQ_STATUS[self.status]


class State:
    """All tasks, and what refers to them."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.queues: dict[str, list[str]] = defaultdict(list)
        self.bells: dict[str, int] = defaultdict(int)
        self.known: set[str] = set()
        self.leases: dict[Lease, bool] = {}
        """True: it has expired."""
        self.held: dict[str, set[str]] = defaultdict(set)
        self.dependents: dict[str, set[str]] = defaultdict(set)
        self.needed: dict[str, set[str]] = defaultdict(set)
        """Tasks that no longer wait for that one, but may read its result."""
        self.outbox: set[str] = set()
        self.expiring: set[str] = set()
        self.index: dict[str, set[str]] = defaultdict(set)
        self.results: set[str] = set()
        self.logs: set[str] = set()

    # --- parts of what scripts do ---------------------------------------------------------------------------------

    def move(self, task: Task, status: TaskStatus, *, front: bool = False) -> None:
        """One step of a task: where it stands now, and what is told of it."""
        task.status, task.is_due = status, False
        task.seq += 1
        if status is S.QUEUED:
            self.enqueue(task, front=front)
        if status in TERMINAL and self.dependents[task.id]:
            self.outbox.add(task.id)

    def enqueue(self, task: Task, *, front: bool) -> None:
        queue = self.queues[task.queue]
        queue.insert(0 if front else len(queue), task.id)
        self.ring(task.queue)

    def ring(self, queue: str) -> None:
        self.bells[queue] = max(self.bells[queue], min(BELL_CAP, len(self.queues[queue])))

    def drop(self, lease: Lease, worker: str) -> None:
        self.leases.pop(lease, None)
        self.held[worker].discard(f"{lease[1]}:{lease[2]}")

    def holds(self, id: str, attempt_id: str) -> Task | None:
        task = self.tasks.get(id)
        return task if task and task.status in RUNS and task.attempt_id == attempt_id else None

    # --- Redis as it must be --------------------------------------------------------------------------------------

    def structure(self) -> dict[str, Any]:
        """Every key and what it must hold; of a task's hash, the fields that the model knows."""
        keys: dict[str, Any] = defaultdict(set)
        keys["rq:queues"] = {f"rq:queue:{queue}" for queue in self.known}
        keys["taskpool:outbox"], keys["taskpool:expiring"] = set(self.outbox), set(self.expiring)
        keys |= {f"rq:queue:{queue}": list(ids) for queue, ids in self.queues.items()}
        keys |= {f"taskpool:doorbell:{queue}": ["1"] * count for queue, count in self.bells.items()}
        keys |= {f"taskpool:{name}": set(ids) for name, ids in self.index.items()}
        keys["taskpool:tags"] = {name[4:] for name, ids in self.index.items() if name.startswith("tag:") and ids}
        keys["taskpool:types:used"] = {name[5:] for name, ids in self.index.items() if name.startswith("type:") and ids}
        keys |= {f"taskpool:dependents:{id}": set(ids) for id, ids in self.dependents.items()}
        keys |= {f"taskpool:needed:{id}": set(ids) for id, ids in self.needed.items()}
        keys |= {f"rq:worker:{worker}:executions": set(members) for worker, members in self.held.items()}
        keys |= {f"rq:results:{id}": "stream" for id in self.results}
        keys |= {f"taskpool:log:{id}": "stream" for id in self.logs}
        for queue, id, attempt_id in self.leases:
            keys[f"rq:wip:{queue}"].add(f"{id}:{attempt_id}")
            keys[f"rq:execution:{id}:{attempt_id}"] = {"job_id": id}
        for id, task in self.tasks.items():
            keys[f"rq:job:{id}"] = {
                "status": task.rq,
                "seq": str(task.seq),
                "attempt": str(task.attempt),
                "attempt_id": task.attempt_id,
                "crashes": str(task.crashes),
                "stop": task.stop,
                "snoozes": str(task.snoozes),
                "history": task.history[-HISTORY:],
            }
            if task.status in REGISTRY:
                keys[REGISTRY[task.status] + task.queue].add(id)
        return {key: value for key, value in keys.items() if value}
