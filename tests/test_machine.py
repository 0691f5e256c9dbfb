"""Random sequences of every operation, stale and repeated ones among them, on a real Redis against tests/model.py.

After each step all of Redis is compared with what the model says, and every new event is checked. Time passes by
rewriting the scores that stand for it. MACHINE_EXAMPLES=5000 runs more sequences, other ones each time.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec.structs import replace
from rq.exceptions import InvalidJobOperation
from rq.job import Job
from rq.serializers import JSONSerializer

from taskpool.operations import listing, overview
from taskpool.operations.queue import get_queue
from taskpool.redis import scripts
from taskpool.redis.calls import Call
from taskpool.types import DEFAULT_LIMITS, TERMINAL, RunningTask, TaskStatus
from tests.machine import INDEXES, LATER_S, LEASE_MS, QUEUES, WORKERS, Bench, lease_of
from tests.model_state import REGISTRY, Lease, Task
from tests.states import FAILURE, World, new_task

S = TaskStatus
T = TypeVar("T")
MOVES = {
    "add": 4,
    "claim": 7,
    "finish": 4,
    "requeue": 3,
    "crash": 3,
    "heartbeat": 1,
    "report": 1,
    "by_hand": 4,
    "press_a_button_of_rqs_dashboard": 1,
    "keep_house_for_a_task": 3,
    "release": 2,
    "sweep": 1,
    "repeat_a_call_of_just_now": 3,
    "repeat_an_old_call": 2,
    "look_at_the_whole": 1,
}
"""What may come next, and how often."""

CROWD = 5
"""With so many tasks there no more are added: the few shall go through much."""

which = st.integers(0, 999)


class Choice:
    """Choices that follow from one number."""

    def __init__(self, number: int) -> None:
        self._random = random.Random(number)

    def below(self, n: int) -> int:
        return self._random.randrange(n)

    def of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]


class Machine(RuleBasedStateMachine, Bench):
    """One rule, so that the weights hold: numbers choose the move and what it is made with, from what there is."""

    world: World

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        Bench.__init__(self, self.world)

    @rule(move=st.sampled_from([name for name, weight in MOVES.items() for _ in range(weight)]), a=which, b=which)
    def step(self, move: str, a: int, b: int) -> None:
        if move == "add" and len(self.model.tasks) >= CROWD:
            move = "claim"
        if self.ids or move == "add":
            getattr(self, move)(Choice(1000 * a + b))

    # --- submission -----------------------------------------------------------------------------------------------

    def add(self, choice: Choice) -> None:
        tasks: list[Task] = []
        for _ in range(1 + choice.below(2)):
            there = [*self.ids, *(task.id for task in tasks)]
            task = Task(
                f"t{next(self.numbers)}",
                queue=choice.of(QUEUES),
                front=choice.of((False, True)),
                later=choice.of((False, False, False, True)),
                expires=choice.of(("", "", "later")),
                tags=choice.of(((), ("red",), ("red", "blue"))),
                parents=tuple(dict.fromkeys(choice.of(there) for _ in range(choice.of((0, 0, 0, 1, 2))) if there)),
            )
            tasks.append(task)
        if choice.below(20) == 7:
            tasks[-1].parents += ("nobody",)
        calls = [
            new_task(
                task.id,
                queue=task.queue,
                front=task.front,
                delay_s=LATER_S if task.later else None,
                expires_in_s=LATER_S if task.expires else None,
                tags=task.tags,
                depends_on=task.parents,
            )
            for task in tasks
        ]
        call = scripts.add(calls)
        answered: Call[Any] = replace(call, read=lambda reply: _added(call.read(reply)))
        self.send(answered, lambda model, _: model.add(deepcopy(tasks)))

    # --- attempts -------------------------------------------------------------------------------------------------

    def claim(self, choice: Choice) -> None:
        queues = choice.of((QUEUES, QUEUES[::-1], QUEUES[:1], QUEUES[1:]))
        self.claim_from(queues, choice.of(WORKERS), again=choice.of((False, True)))

    def attempt(self, choice: Choice) -> tuple[RunningTask, Lease, str]:
        """One that runs, mostly; else any: one that ended, or lost its lease."""
        running = [each for each in self.attempts if lease_of(each) in self.model.leases]
        found = choice.of(running if running and choice.below(3) else self.attempts[-8:])
        return found, lease_of(found), found.worker

    def finish(self, choice: Choice) -> None:
        if self.attempts:
            self.finish_one(self.attempt(choice)[0], choice.of((S.DONE, S.DONE, S.FAILED, S.STOPPED)))

    def requeue(self, choice: Choice) -> None:
        if not self.attempts:
            return
        running, lease, worker = self.attempt(choice)
        how, later = choice.of((("given_back", False), *itertools.product(("retry", "snooze"), (False, True))))
        delay_ms = 1000 * LATER_S if later else 0
        match how:
            case "given_back":
                call = scripts.give_back(running)
            case "snooze":
                call = scripts.snooze(running, delay_ms=delay_ms, message="later")
            case _:
                call = scripts.retry(running, delay_ms=delay_ms, error="no", failure=FAILURE)
        self.send(call, lambda model, _: model.requeue(lease, worker, how, later=later))

    def crash(self, choice: Choice) -> None:
        if self.attempts:
            running, lease, _ = self.attempt(choice)
            if choice.below(2):
                self.expire_lease(lease)
            self.settle(running, reaped=choice.of((False, True)))

    def heartbeat(self, choice: Choice) -> None:
        if self.attempts:
            leases = list(dict.fromkeys(self.attempt(choice)[1] for _ in range(3)))
            call = scripts.heartbeat([(id, attempt_id, queue) for queue, id, attempt_id in leases], LEASE_MS)
            self.send(call, lambda model, _: model.heartbeat(leases), touches=True)

    def report(self, choice: Choice) -> None:
        if not self.attempts:
            return
        running, lease, _ = self.attempt(choice)
        logs = choice.of((False, True))
        if logs:
            call = scripts.log(running.id, running.attempt_id, [b'{"at_ms":1,"text":"line"}'], DEFAULT_LIMITS)
        else:
            call = scripts.progress(running, {"done": 1})
        self.send(call, lambda model, _: model.report(lease, logs=logs))

    def one(self, choice: Choice) -> str:
        """A task that is there, mostly; else one that has gone."""
        there = list(self.model.tasks)
        return choice.of(there if there and choice.below(5) else self.ids)

    # --- by hand --------------------------------------------------------------------------------------------------

    def by_hand(self, choice: Choice) -> None:
        id, what = self.one(choice), choice.of(("stop", "force", "cancel", "revive", "revive", "purge"))
        match what:
            case "stop" | "force":
                force = what == "force"
                self.send(scripts.stop(id, grace_s=5, force=force), lambda model, _: model.stop(id, force=force))
            case "cancel":
                call = scripts.cancel(id, reason="canceled", error="by hand")
                self.send(call, lambda model, _: model.cancel(id, str(call.command[-2]), expired=False))
            case "revive":
                again = scripts.revive(id)
                self.send(again, lambda model, _: model.revive(id, str(again.command[-2])))
            case _:
                self.purge(id)

    def press_a_button_of_rqs_dashboard(self, choice: Choice) -> None:
        id, requeues = self.one(choice), choice.of((False, True))
        if id not in self.model.tasks:
            return
        task, job = self.model.tasks[id], Job.fetch(id, connection=self.world.redis, serializer=JSONSerializer)
        if not requeues:
            job.delete()
            self.model.delete(id)
        elif task.status in (S.FAILED, S.STOPPED):
            job.requeue()
            self.model.requeue_by_rq(id)
        else:
            try:
                job.requeue()
            except InvalidJobOperation:
                pass
        self.watch.note_move_by_rq(id)
        self.watch.compare(self.model, may_change=True)

    # --- housekeeping ---------------------------------------------------------------------------------------------

    def keep_house_for_a_task(self, choice: Choice) -> None:
        id = self.one(choice)
        task = self.model.tasks.get(id)
        if choice.below(2) and task is not None:
            self.let_time_pass(task)
        if task is None:
            self.purge(id)
        elif task.status is S.SCHEDULED:
            self.promote(id, task.queue)
        elif task.status in TERMINAL:
            call = scripts.purge(id, REGISTRY[task.status] + task.queue)
            is_held = task.status is S.DONE and bool(self.model.needed[id])  # then the time of its entry is put off
            self.send(call, lambda model, _: model.purge(id, when_due=True), touches=is_held)
        else:
            self.expire(id)

    def release(self, choice: Choice) -> None:
        self.release_one(self.one(choice))

    def sweep(self, choice: Choice) -> None:
        what = choice.of((*QUEUES, *INDEXES))
        self.sweep_waiting(what) if what in QUEUES else self.sweep_index(what)

    # --- again ----------------------------------------------------------------------------------------------------

    def repeat_a_call_of_just_now(self, choice: Choice) -> None:
        self.note(self.make(choice.of(self.sent[-4:])))

    def repeat_an_old_call(self, choice: Choice) -> None:
        self.note(self.make(choice.of(self.sent)))

    # --- looking --------------------------------------------------------------------------------------------------

    def look_at_the_whole(self, _: Choice) -> None:
        """What is told of queues and statuses is what the model has."""
        carry_out = self.world.store.carry_out
        by_status: dict[TaskStatus, set[str]] = {status: set() for status in S}
        for task in self.model.tasks.values():
            by_status[task.status].add(task.id)
        for status, ids in by_status.items():
            records = carry_out(listing.list_tasks(listing.Filter(status, None, None, None), limit=500)).items
            assert {record.id for record in records} == ids
        counts = [0] * 6
        for info in carry_out(overview.queues()):
            queued = carry_out(get_queue(info.name)).items
            assert [item.record.id for item in queued] == self.model.queues[info.name]
            of_queue = (info.queued, info.scheduled, info.waiting, info.done, info.failed, info.canceled)
            counts = [total + count for total, count in zip(counts, of_queue, strict=True)]
        kinds = ((S.QUEUED,), (S.SCHEDULED,), (S.WAITING,), (S.DONE,), (S.FAILED, S.STOPPED), (S.CANCELED,))
        assert counts == [sum(len(by_status[status]) for status in kind) for kind in kinds]

    # --- the end --------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if self.is_sound:
            self.end_all()


def _added(added: scripts.Added) -> tuple[str, ...] | str:
    return added.unknown_dependency or added.statuses


def test_every_sequence_of_calls_does_what_the_model_says(world: World) -> None:
    Machine.world = world
    examples = os.environ.get("MACHINE_EXAMPLES")
    profile = settings(
        max_examples=int(examples or 100),
        stateful_step_count=80,
        derandomize=examples is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([Phase.shrink] if examples else [])],
    )
    run_state_machine_as_test(Machine, settings=profile)
