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
    S.WAITING_CONFIRMATION: "rq:deferred:",
    S.DONE: "rq:finished:",
    S.FAILED: "rq:failed:",
    S.STOPPED: "rq:failed:",
    S.CANCELED: "rq:canceled:",
}
Lease = tuple[str, str, str]
"""Queue, task, attempt id."""


@dataclass
class Task:
    """A task as the model knows it. `expires`: '', 'later' or 'due'."""

    id: str
    queue: str
    type: str = "work"
    tags: tuple[str, ...] = ()
    project: str = ""
    edges: tuple[tuple[str, str], ...] = ()
    """What it depends on, and how that must end; edges of success first."""
    front: bool = False
    later: bool = False
    """What its record has as its time to run hasn't come."""
    expires: str = ""
    confirm: str = ""
    """What counts if nobody confirms it: confirm or reject; '': nobody has to."""
    unconfirmed: bool = False
    asks: bool = False
    """A person is asked."""
    question: bool = False
    """It has asked in the middle of an attempt."""
    decision: str = ""
    answers: list[tuple[int, str]] = field(default_factory=list)
    """The step with which each question was asked, and the answer."""
    status: TaskStatus = S.QUEUED
    seq: int = 1
    attempt: int = 0
    attempt_id: str = ""
    worker: str = ""
    """That of the last attempt."""
    suspect: int = 0
    max_attempts: int = 1
    attempts_a_life: int = 0
    crashes: int = 0
    pending: int = 0
    stop: str = ""
    reason: str = ""
    by_call: str = ""
    put_back: str = ""
    canceled_by: str = ""
    snoozes: int = 0
    history: list[str] = field(default_factory=list)
    was_started: bool = False
    was_released: bool = False
    """It has waited for all its parents, and they are done."""
    is_held: bool = False
    is_due: bool = False
    """The time of its registry has come: to be promoted, or to be purged."""

    @property
    def rq(self) -> str:
        return RQ_STATUS[self.status]

    @property
    def shown(self) -> str:
        """As `add` answers."""
        return self.status.value if self.status is S.WAITING_CONFIRMATION else self.rq


def indexes_of(task: Task) -> list[str]:
    """The indexes that have a task."""
    project = [f"project:{task.project}"] if task.project else []
    return [f"type:{task.type}", *(f"tag:{tag}" for tag in task.tags), *project]


@dataclass
class Hidden:
    """A removed task that can be put back."""

    mark: str
    task: Task
    extras: list[str]
    """What it has besides its record: names in `State.extras`."""
    sets: tuple[set[str], set[str], set[str]]
    """Those that need it, those that it added, and those that were canceled because of it."""
    is_looked_at: bool | None
    """As in `State.kept`, if its record was held."""


class State:
    """All tasks, and what refers to them."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.queues: dict[str, list[str]] = defaultdict(list)
        self.bells: dict[str, int] = defaultdict(int)
        self.known: set[str] = set()
        self.leases: dict[Lease, bool] = {}
        """True: it has expired."""
        self.shown: dict[Lease, str] = {}
        """The workers of those that have had a heartbeat."""
        self.held: dict[str, set[str]] = defaultdict(set)
        self.dependents: dict[str, set[str]] = defaultdict(set)
        self.needed: dict[str, set[str]] = defaultdict(set)
        """Tasks that no longer wait for that one, but may read its outcome."""
        self.followers: dict[str, set[str]] = defaultdict(set)
        self.revivable: dict[str, set[str]] = defaultdict(set)
        """Tasks that were canceled because of that one."""
        self.kept: dict[str, bool] = {}
        """Tasks whose records were held for others when they ended. True: the time to look at one has come."""
        self.outbox: set[str] = set()
        self.expiring: set[str] = set()
        self.confirmations: set[str] = set()
        """Tasks that wait for a person."""
        self.checkpoints: set[str] = set()
        self.index: dict[str, set[str]] = defaultdict(set)
        self.results: set[str] = set()
        self.logs: set[str] = set()
        self.is_awaited = False
        """Others waited for the task that ended last."""
        self.added: dict[str, set[str]] = defaultdict(set)
        """By the task whose attempts added them."""
        self.hidden: dict[str, Hidden] = {}
        self.extras: dict[str, set[str]] = {
            "results": self.results,
            "logs": self.logs,
            "checkpoints": self.checkpoints,
        }

    # --- parts of what scripts do ---------------------------------------------------------------------------------

    def move(self, task: Task, status: TaskStatus, *, front: bool = False) -> None:
        """One step of a task: its status now, and its event."""
        task.status, task.is_due = status, False
        task.seq += 1
        if status is S.QUEUED:
            self.enqueue(task, front=front)
        if status in TERMINAL:
            self.retain(task)

    def ask(self, task: Task) -> None:
        """A person is asked; the caller makes the step."""
        task.asks, task.is_due = True, False
        self.confirmations.add(task.id)

    def ask_no_more(self, task: Task) -> None:
        """It waits for no person any more."""
        if task.id in self.confirmations:
            task.asks = task.question = False
            self.confirmations.discard(task.id)

    def retain(self, task: Task) -> None:
        """It has ended: what others need of it is held for them."""
        waiting = self.dependents[task.id] or self.followers[task.id]
        task.is_held = False
        if waiting or self.needed[task.id] or self.revivable[task.id]:
            self.hold(task.id)
        self.is_awaited = bool(waiting or (task.status is S.DONE and self.revivable[task.id]))
        if self.is_awaited:
            self.outbox.add(task.id)

    def hold(self, id: str) -> None:
        """Its record, if it has ended, doesn't expire any more."""
        task = self.tasks[id]
        if task.status in TERMINAL and not task.is_held:
            task.is_held, self.kept[id] = True, False

    def end_just_now(self) -> str:
        """The answer of the call that has ended a task: one that was revived is still in the outbox for that."""
        return "children" if self.is_awaited else "ok"

    def has_children(self, id: str) -> str:
        """The answer of a call that is sent again about a task that has ended."""
        return "children" if id in self.outbox else "ok"

    def enqueue(self, task: Task, *, front: bool) -> None:
        queue = self.queues[task.queue]
        queue.insert(0 if front else len(queue), task.id)
        self.ring(task.queue)

    def ring(self, queue: str) -> None:
        self.bells[queue] = max(self.bells[queue], min(BELL_CAP, len(self.queues[queue])))

    def drop(self, lease: Lease, worker: str) -> None:
        self.leases.pop(lease, None)
        self.shown.pop(lease, None)
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
        keys["taskpool:projects"] = {
            name[8:] for name, ids in self.index.items() if name.startswith("project:") and ids
        }
        keys["taskpool:types:used"] = {name[5:] for name, ids in self.index.items() if name.startswith("type:") and ids}
        keys |= {f"taskpool:dependents:{id}": set(ids) for id, ids in self.dependents.items()}
        keys |= {f"taskpool:followers:{id}": set(members) for id, members in self.followers.items()}
        keys |= {f"taskpool:needed:{id}": set(ids) for id, ids in self.needed.items()}
        keys |= {f"taskpool:revivable:{id}": set(ids) for id, ids in self.revivable.items()}
        keys["taskpool:held"] = set(self.kept)
        keys["taskpool:confirmations"] = set(self.confirmations)
        keys |= {f"taskpool:checkpoint:{id}": "string" for id in self.checkpoints}
        keys |= {f"taskpool:attempts:{worker}": set(members) for worker, members in self.held.items()}
        keys |= {f"rq:results:{id}": "stream" for id in self.results}
        keys |= {f"taskpool:log:{id}": "stream" for id in self.logs}
        keys |= {f"taskpool:added:{id}": set(ids) for id, ids in self.added.items()}
        for queue, id, attempt_id in self.leases:
            keys[f"rq:wip:{queue}"].add(f"{id}:{attempt_id}")
            if (queue, id, attempt_id) in self.shown:
                keys[f"rq:execution:{id}:{attempt_id}"] = {"job_id": id}
                keys[f"rq:worker:{self.shown[queue, id, attempt_id]}:executions"].add(f"{id}:{attempt_id}")
        for id, task in self.tasks.items():
            keys[f"rq:job:{id}"] = {
                "status": task.rq,
                "seq": str(task.seq),
                "attempt": str(task.attempt),
                "attempt_id": task.attempt_id,
                "crashes": str(task.crashes),
                "canceled_by": task.canceled_by,
                "stop": task.stop,
                "confirm": [task.unconfirmed, task.asks, task.question, task.decision],
                "answers": [answer for _, answer in task.answers],
                "snoozes": str(task.snoozes),
                "history": task.history[-HISTORY:],
            }
            if task.status in REGISTRY:
                keys[REGISTRY[task.status] + task.queue].add(id)
        return {key: value for key, value in keys.items() if value}
