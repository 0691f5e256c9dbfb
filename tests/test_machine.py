"""Random sequences of every operation, stale and repeated ones among them, on a real Redis against tests/model.py.

After each step all of Redis is compared with what the model says, and every new event is checked. Time passes by
rewriting the scores that stand for it. MACHINE_EXAMPLES=5000 runs more sequences, other ones each time.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeVar, cast

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec.structs import replace
from rq.exceptions import InvalidJobOperation
from rq.job import Job
from rq.serializers import JSONSerializer

from taskpool.operations import listing, overview
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.operations.insight.why import why_not_running
from taskpool.operations.queue import get_queue
from taskpool.redis import bulk_scripts, pause_scripts, people_scripts, scripts
from taskpool.redis.add_script import attempt_guard
from taskpool.redis.calls import Call
from taskpool.redis.people_scripts import By
from taskpool.redis.scripts import Work
from taskpool.types import DEFAULT_LIMITS, TERMINAL, Confirm, RunningTask, TaskStatus
from taskpool.types.control import Filter
from tests.machine import INDEXES, LATER_S, LEASE_MS, QUEUES, WORKERS, Bench, lease_of
from tests.model import Model
from tests.model_state import REGISTRY, Lease, Task
from tests.states import FAILURE, World, new_task

S = TaskStatus
T = TypeVar("T")
MOVES = {
    "add": 4,
    "claim": 5,
    "claim_several": 3,
    "finish": 3,
    "finish_several": 2,
    "requeue": 3,
    "ask": 2,
    "decide": 3,
    "crash": 3,
    "heartbeat": 1,
    "report": 1,
    "by_hand": 4,
    "undo": 3,
    "press_a_button_of_rqs_dashboard": 1,
    "keep_house_for_a_task": 3,
    "release": 2,
    "sweep": 1,
    "repeat_a_call_of_just_now": 3,
    "repeat_an_old_call": 2,
    "look_at_the_whole": 1,
    "ask_why": 1,
}
"""What may come next, and how often."""

CROWD = 5
"""With so many tasks there no more are added: the few shall go through much."""

which = st.integers(0, 999)


def first_word(call: Call[bulk_scripts.Many]) -> Call[str]:
    """The same call for one task."""
    return Call(call.command, lambda reply: call.read(reply).words[0], call.script, again=call.again)


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
                confirm=choice.of(("", "", "", "confirm", "reject")),
                tags=choice.of(((), ("red",), ("red", "blue"))),
                project=choice.of(("", "", "shop")),
                edges=self.edges(choice, there),
            )
            if task.edges:
                task.project = ""  # a project sees only its own tasks
            tasks.append(task)
        if choice.below(20) == 7:
            tasks[-1].edges += (("nobody", "any"),)
        calls = [
            new_task(
                task.id,
                queue=task.queue,
                front=task.front,
                delay_s=LATER_S if task.later else None,
                expires_in_s=LATER_S if task.expires else None,
                tags=task.tags,
                project=task.project or None,
                confirm=Confirm(default=cast(Any, task.confirm)) if task.confirm else None,
                depends_on=[{"id": ref, "on": on} for ref, on in task.edges],
            )
            for task in tasks
        ]
        if not self.attempts or choice.below(3):
            self._send_addition(scripts.add(calls), lambda model: model.add(deepcopy(tasks)))
            return
        running, lease, _ = self.attempt(choice)
        before = sorted(self.model.added[running.id] - {task.id for task in tasks})
        if before and choice.below(2):  # another attempt adds the same again
            tasks[0].id = choice.of(before)
            calls[0] = replace(calls[0], id=tasks[0].id)
        call = scripts.add(calls, guard=attempt_guard(running))
        self._send_addition(call, lambda model: model.add_by(lease, deepcopy(tasks)))

    def _send_addition(self, call: Call[scripts.Added], effect: Callable[[Model], Any]) -> None:
        answered: Call[Any] = replace(call, read=lambda reply: _added(call.read(reply)))
        self.send(answered, lambda model, _: effect(model))

    def edges(self, choice: Choice, there: Sequence[str]) -> tuple[tuple[str, str], ...]:
        drawn = [
            (choice.of(there), choice.of(("success", "success", "failure", "any")))
            for _ in range(choice.of((0, 0, 0, 1, 2)))
            if there
        ]
        return tuple(sorted(dict.fromkeys(drawn), key=lambda edge: edge[1] != "success"))

    # --- attempts -------------------------------------------------------------------------------------------------

    def claim(self, choice: Choice) -> None:
        queues = choice.of((QUEUES, QUEUES[::-1], QUEUES[:1], QUEUES[1:]))
        self.claim_from(queues, choice.of(WORKERS), again=choice.of((False, True)))

    def claim_several(self, choice: Choice) -> None:
        queues = choice.of((QUEUES, QUEUES[::-1], QUEUES[:1], QUEUES[1:]))
        self.claim_together(queues, choice.of(WORKERS), most=choice.of((2, 3, 16)), share=choice.of((1, 2)))

    def finish_several(self, choice: Choice) -> None:
        if self.attempts:
            first = self.attempt(choice)[0]
            of_worker = [each for each in self.attempts[-8:] if each.worker == first.worker]
            self.finish_together(list({lease_of(each): each for each in (first, *of_worker)}.values())[:3])

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

    def ask(self, choice: Choice) -> None:
        """A running task asks, or keeps a checkpoint."""
        if not self.attempts:
            return
        running, lease, worker = self.attempt(choice)
        if choice.below(3):
            call = people_scripts.ask(running, b'{"name":"n","text":"Go?","timeout":500}')
            self.send(call, lambda model, _: model.ask_in_the_middle(lease, worker))
        else:
            state = b"%d" % choice.below(1000)
            call = people_scripts.checkpoint(running, state)
            self.send(call, lambda model, _: model.checkpoint(lease), touches=True)

    def decide(self, choice: Choice) -> None:
        """A person decides about what waits, mostly; or the time for that is over."""
        waiting = sorted(self.model.confirmations)
        id = choice.of(waiting) if waiting and choice.below(4) else self.one(choice)
        task = self.model.tasks.get(id)
        match choice.of(("confirmed", "confirmed", "rejected", "answer", "answer", "close")):
            case "answer":
                step = 1 if task is None else choice.of((task.seq, *(asked for asked, _ in task.answers[-1:])))
                call = people_scripts.answer(id, step, b"[1]", By())
                self.send(call, lambda model, _: model.answer(id, step))
            case "close":
                if task is not None and choice.below(2):
                    self.let_time_pass(task)
                self.close(id)
            case decision:
                call = people_scripts.confirm(id, decision, By())
                self.send(call, lambda model, _: model.confirm(id, decision))

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
        actions = ("stop", "force", "cancel", "cancel_many", "revive", "revive", "purge", "hide", "run_now", "move")
        id, what = self.one(choice), choice.of(actions)
        match what:
            case "stop" | "force":
                force = what == "force"
                self.send(scripts.stop(id, grace_s=5, force=force), lambda model, _: model.stop(id, force=force))
            case "cancel":
                call = scripts.cancel(id, reason="canceled", error="by hand")
                self.send(call, lambda model, _: model.cancel(id, str(call.command[-2]), expired=False))
            case "cancel_many":
                mark = f"many{choice.of(range(1000))}"
                many = first_word(bulk_scripts.cancel_many([id], Work(mark)))
                self.send(many, lambda model, _: model.cancel(id, mark, expired=False))
            case "run_now":
                mark = f"now{choice.of(range(1000))}"
                self.send(bulk_scripts.run_now(id, Work(mark)), lambda model, _: model.run_now(id, mark))
            case "move":
                mark, queue = f"move{choice.of(range(1000))}", choice.of(QUEUES)
                moved = first_word(bulk_scripts.move_many([id], queue, Work(mark)))
                self.send(moved, lambda model, _: model.change_queue(id, queue, mark))
            case "hide":
                mark = f"hide{choice.of(range(1000))}"
                call = scripts.purge(id, work=Work(mark))
                self.send(call, lambda model, _: model.purge(id, when_due=False, mark=mark))
            case "revive":
                again = scripts.revive(id)
                self.send(again, lambda model, _: model.revive(id, str(again.command[-2])))
            case _:
                self.purge(id)

    def undo(self, choice: Choice) -> None:
        """A cancelation or a removal that can be undone is, mostly; else another one."""
        mark = f"undo{choice.of(range(1000))}"
        hidden = sorted(self.model.hidden)
        canceled = [task.id for task in self.model.tasks.values() if task.by_call.startswith("many")]
        if hidden and (not canceled or choice.below(2)):
            id = choice.of(hidden) if choice.below(5) else self.one(choice)
            by = self.model.hidden[id].mark if id in self.model.hidden and choice.below(8) else "hide0"
            self.send(bulk_scripts.unpurge(id, by, Work(mark)), lambda model, _: model.unpurge(id, by, mark))
        else:
            id = choice.of(canceled) if canceled and choice.below(5) else self.one(choice)
            task = self.model.tasks.get(id)
            by = (task.by_call if task is not None and choice.below(8) else "") or "many0"
            self.send(bulk_scripts.uncancel(id, by, Work(mark)), lambda model, _: model.uncancel(id, by, mark))

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
            by_hold = id in self.model.kept and choice.of((False, True))
            if by_hold:
                self.elapse("taskpool:held", id)
                self.model.kept[id] = True
            registry = "taskpool:held" if by_hold else REGISTRY[task.status] + task.queue
            call = scripts.purge(id, registry)
            is_held = bool(self.model.needed[id])  # then the time of its entry is put off
            self.send(
                call, lambda model, _: model.purge(id, when_due=True, by_hold=by_hold), touches=is_held or by_hold
            )
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
        """The listings of queues and statuses are what the model has."""
        carry_out = self.world.store.carry_out
        by_status: dict[TaskStatus, set[str]] = {status: set() for status in S}
        for task in self.model.tasks.values():
            by_status[task.status].add(task.id)
        for status, ids in by_status.items():
            records = carry_out(listing.list_tasks(Filter(status), limit=500)).items
            assert {record.id for record in records} == ids
        counts = [0] * 6
        for info in carry_out(overview.queues()):
            queued = carry_out(get_queue(info.name)).items
            assert [item.record.id for item in queued] == self.model.queues[info.name]
            of_queue = (info.queued, info.scheduled, info.waiting, info.done, info.failed, info.canceled)
            counts = [total + count for total, count in zip(counts, of_queue, strict=True)]
        kinds = (
            (S.QUEUED,),
            (S.SCHEDULED,),
            (S.WAITING, S.WAITING_CONFIRMATION),
            (S.DONE,),
            (S.FAILED, S.STOPPED),
            (S.CANCELED,),
        )
        assert counts == [sum(len(by_status[status]) for status in kind) for kind in kinds]

    def ask_why(self, choice: Choice) -> None:
        """Each task has the reasons that the model sees, and one without reasons is what a free worker takes next."""
        redis, carry_out = self.world.redis, self.world.store.carry_out
        queues, types = choice.of((QUEUES, QUEUES, QUEUES[:1])), choice.of((("work",), ("work",), ("work",), ()))
        slots = choice.of((1, 2, 3))
        pool = PoolInfo(id="p", host="h", pid=1, queues=queues, types=types, workers=WORKERS, slots=slots)
        self.world.run(publish(pool, (), ttl_s=100))
        paused = choice.of(("", "", "queue:one", "all", "pool:p"))
        if paused:
            self.world.run(pause_scripts.pause(paused, None, None))

        for id, task in self.model.tasks.items():
            why = carry_out(why_not_running(id))
            assert [reason.kind for reason in why.reasons] == self.model.why(task, pool, paused), (id, why)
            assert why.can_run == (task.status is S.QUEUED and not why.reasons)
            if task.status is S.WAITING and (tasks := why.reasons[0].tasks):
                assert {each.id for each in tasks} == self.model.awaited(task)
        redis.delete("taskpool:switches", *redis.scan_iter("taskpool:pool*"))

    # --- the end --------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if self.is_sound:
            self.end_all()


def _added(added: scripts.Added) -> tuple[str, ...] | str:
    return added.broken_guard or added.unknown_dependency or added.statuses


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
