"""What tests/test_machine.py is built on: a call is sent to Redis and to the model, and both are compared.

Time passes by rewriting the scores that stand for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import note as tell

from taskpool.redis import people_scripts, scripts
from taskpool.redis.calls import Call
from taskpool.types import TERMINAL, RunningTask, TaskStatus
from tests.machine_watch import Watch
from tests.model import Model
from tests.model_state import REGISTRY, Lease, Task
from tests.states import World

S = TaskStatus
QUEUES = ("one", "two")
WORKERS = ("ann", "bob")
INDEXES = ("type:work", "tag:red", "tag:blue", "project:shop")
MAX_CRASHES = 2
LEASE_MS = 100_000
LATER_S = 500
DEATH = {"reason": "crashed", "message": "died"}


@dataclass(frozen=True)
class Move:
    """One call and what it must do: `effect` gets the model, and Redis as it is after it."""

    call: Call[Any]
    effect: Callable[[Model, Watch], Any]
    touches: bool = False
    """It may write what the model doesn't know (the time of a heartbeat)."""


def lease_of(running: RunningTask) -> Lease:
    """How the model knows an attempt."""
    return running.queue, running.id, running.attempt_id


class Bench:
    """One empty Redis, the model of it, and all that was sent so far."""

    def __init__(self, world: World) -> None:
        world.redis.flushall()
        self.world = world
        self.model = Model()
        self.watch = Watch(world.redis)
        self.sent: list[Move] = []
        self.attempts: list[RunningTask] = []
        self.ids: list[str] = []
        self.numbers = itertools.count(1)
        self.compares = True
        self.is_sound = True
        """False from a difference on: what comes then would hide it."""

    def send(self, call: Call[Any], effect: Callable[[Model, Watch], Any], *, touches: bool = False) -> Any:
        move = Move(call, effect, touches)
        self.sent.append(move)
        return self.make(move)

    def make(self, move: Move) -> Any:
        """Carry out a call, and compare its answer with the model's, and then all of Redis."""
        self.is_sound = False
        answer = self.world.run(move.call)
        tell(f"{' '.join(map(str, move.call.command[3:9]))} -> {getattr(answer, 'id', answer)}")
        expected = move.effect(self.model, self.watch)
        assert (answer.id if isinstance(answer, RunningTask) else answer) == expected, f"the model says {expected}"
        if self.compares:
            self.watch.compare(self.model, may_change=move.touches)
        self.is_sound = True
        self.ids += [id for id in self.model.tasks if id not in self.ids]
        return answer

    def note(self, answer: Any) -> None:
        if isinstance(answer, RunningTask):
            self.attempts.append(answer)

    # --- time -----------------------------------------------------------------------------------------------------

    def elapse(self, key: str, member: str) -> None:
        """The time of an entry of a registry comes."""
        self.world.redis.zadd(key, {member: 1})
        self.watch.take_as_it_is()

    def expire_lease(self, lease: Lease) -> None:
        """The end of a lease comes."""
        queue, id, attempt_id = lease
        if lease in self.model.leases:
            self.elapse(f"rq:wip:{queue}", f"{id}:{attempt_id}")
            self.model.leases[lease] = True

    def let_time_pass(self, task: Task) -> None:
        """All that a task waits for by the clock comes about."""
        if task.id in self.model.confirmations:
            self.world.redis.hset(f"rq:job:{task.id}", "answer_by_ms", 1)
            self.elapse("taskpool:confirmations", task.id)
            task.is_due = True
        elif task.status in REGISTRY and task.status is not S.WAITING:
            self.elapse(REGISTRY[task.status] + task.queue, task.id)
            task.is_due = True
        if task.later and task.status in (S.WAITING, S.WAITING_CONFIRMATION):
            self.world.redis.hset(f"rq:job:{task.id}", "run_ms", 1)
            task.later = False
        if task.expires and task.id in self.model.expiring:
            self.world.redis.hset(f"rq:job:{task.id}", "expires_ms", 1)
            self.elapse("taskpool:expiring", task.id)
            task.expires = "due"
        self.watch.take_as_it_is()

    # --- calls ----------------------------------------------------------------------------------------------------

    def claim_from(self, queues: Sequence[str], worker: str, *, again: bool = False) -> None:
        attempt_id = f"a{next(self.numbers)}"
        call = scripts.claim(queues, worker=worker, attempt_id=attempt_id, lease_ms=LEASE_MS, again=again)
        self.note(self.send(call, lambda model, _: model.claim(queues, worker, attempt_id, again=again)))

    def claim_together(self, queues: Sequence[str], worker: str, *, most: int, share: int) -> None:
        attempt_id = f"a{next(self.numbers)}"
        call = scripts.turn(queues, worker=worker, attempt_id=attempt_id, lease_ms=LEASE_MS, most=most, share=share)

        def read(reply: Any) -> list[tuple[str, str]]:
            claimed = call.read(reply).claimed
            self.attempts += claimed
            return [(running.id, running.attempt_id) for running in claimed]

        self.send(
            Call(call.command, read, call.script),
            lambda model, _: model.claim_together(queues, worker, attempt_id, most=most, share=share),
        )

    def finish_together(self, attempts: Sequence[RunningTask]) -> None:
        """Of one worker."""
        leases, worker = list(map(lease_of, attempts)), attempts[0].worker
        call = scripts.turn((), [scripts.Done(running, b"42") for running in attempts], worker=worker)
        words = Call(call.command, lambda reply: list(call.read(reply).words), call.script, again=True)
        self.send(words, lambda model, _: model.finish_together(leases, worker))

    def finish_one(self, running: RunningTask, status: TaskStatus) -> None:
        lease, worker = lease_of(running), running.worker
        if status is S.DONE:
            call = scripts.finish(running, status, result=b"42")
        else:
            call = scripts.finish(running, status, error="no", failure={"reason": status.value}, traceback="T")
        self.send(call, lambda model, _: model.finish(lease, worker, status))

    def settle(self, running: RunningTask, *, reaped: bool) -> None:
        lease, worker = lease_of(running), running.worker
        call = scripts.crash(
            running.id,
            running.attempt_id,
            running.queue,
            error="died",
            failure=DEATH,
            max_crashes=MAX_CRASHES,
            only_expired=reaped,
            worker="" if reaped else worker,
        )
        self.send(call, lambda model, _: model.crash(lease, worker, max_crashes=MAX_CRASHES, only_expired=reaped))

    def purge(self, id: str) -> None:
        self.send(scripts.purge(id), lambda model, _: model.purge(id, when_due=False))

    def promote(self, id: str, queue: str) -> None:
        self.send(scripts.promote(id, queue), lambda model, _: model.promote(id))

    def expire(self, id: str) -> None:
        call = scripts.cancel(id, reason="expired", error="late")
        self.send(call, lambda model, _: model.cancel(id, "", expired=True))

    def close(self, id: str) -> None:
        self.send(people_scripts.unanswered(id), lambda model, _: model.unanswered(id))

    def release_one(self, id: str) -> None:
        self.send(scripts.release(id), lambda model, watch: model.release(id, _ready(watch), _causes(watch)))

    def sweep_waiting(self, queue: str) -> None:
        self.send(scripts.sweep_waiting(queue, 1000), lambda model, _: model.sweep_waiting(queue))

    def sweep_index(self, name: str) -> None:
        self.send(scripts.sweep_index(f"taskpool:{name}", "", 100), lambda model, _: model.sweep_index(name))

    # --- the end --------------------------------------------------------------------------------------------------

    def end_all(self) -> None:
        """What is accepted ends, and what has ended can be removed without a trace."""
        self.compares = False  # each step by itself: they are many, and nothing new
        for _ in range(2 * len(self.ids) + 2):
            self.one_round_of_everything()
            self.watch.compare(self.model, may_change=True)
            if not self.model.outbox and all(task.status in TERMINAL for task in self.model.tasks.values()):
                break
        assert all(task.status in TERMINAL for task in self.model.tasks.values())
        for id in self.ids:
            self.purge(id)
        for name in INDEXES:
            self.sweep_index(name)
        self.release_all()
        self.watch.compare(self.model, may_change=True)
        left = {key for key in self.watch.held if not key.startswith("taskpool:doorbell:")}
        # A reaper can't tell whose an attempt was that had no heartbeat, and whose record is gone: that list expires.
        left -= {f"taskpool:attempts:{worker}" for worker, held in self.model.held.items() if held}
        assert left <= {"rq:queues", "taskpool:events", "taskpool:types:used"}

    def one_round_of_everything(self) -> None:
        for running in self.attempts:
            if lease_of(running) in self.model.leases:
                self.expire_lease(lease_of(running))
                self.settle(running, reaped=True)
        for queue in QUEUES:
            self.sweep_waiting(queue)
        for id, task in list(self.model.tasks.items()):
            if task.status is S.SCHEDULED:
                self.let_time_pass(task)
                self.promote(id, task.queue)
        for id in sorted(self.model.confirmations):
            if id in self.model.tasks:
                self.let_time_pass(self.model.tasks[id])
            self.close(id)
        for id in sorted(self.model.expiring - self.model.tasks.keys()):
            self.expire(id)
        self.release_all()
        while any(self.model.queues.values()):
            begun = len(self.attempts)
            self.claim_from(QUEUES, WORKERS[0])
            if len(self.attempts) > begun:
                self.finish_one(self.attempts[-1], S.DONE)

    def release_all(self) -> None:
        for id in sorted(self.model.outbox):
            self.release_one(id)


def _ready(watch: Watch) -> Sequence[str]:
    return [id for queue in QUEUES for id in watch.look().get(f"rq:queue:{queue}", ())]


def _causes(watch: Watch) -> dict[str, str]:
    jobs = {key: value for key, value in watch.held.items() if key.startswith("rq:job:")}
    return {key.removeprefix("rq:job:"): fields["canceled_by"] for key, fields in jobs.items()}
