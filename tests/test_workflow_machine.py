"""Random sequences of what can happen to the tasks of workflows, on a real Redis: after each step the counts are those
that the tasks' own counted statuses add up to, and at the end every workflow ends.

MACHINE_EXAMPLES=5000 runs more sequences, other ones each time.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from rq.exceptions import InvalidJobOperation
from rq.job import Job
from rq.serializers import JSONSerializer

from taskpool import Registry
from taskpool.errors import WorkflowConflict
from taskpool.operations.catalog import Catalogue
from taskpool.operations.flow.expansion import member_id
from taskpool.operations.flow.upkeep import look_after_workflows
from taskpool.operations.flow.values import NodeSpec, WorkflowRecord, WorkflowSpec
from taskpool.operations.flow.workflows import (
    fetch_workflow,
    remove_workflow,
    retry_workflow,
    stop_workflow,
    submit_workflow,
)
from taskpool.operations.queue import Rules
from taskpool.operations.submit import Defaults
from taskpool.redis import scripts
from taskpool.redis.calls import Call, Plan
from taskpool.tasks.node import After
from taskpool.types import RunningTask, TaskSpec, TaskStatus
from tests.states import FAILURE, World

S = TaskStatus
T = TypeVar("T")
MOVES = {
    "submit": 1,
    "claim": 8,
    "finish": 8,
    "requeue": 2,
    "crash": 2,
    "by_hand": 3,
    "press_a_button_of_rqs_dashboard": 2,
    "run_in_a_plain_rq_worker": 1,
    "stop_or_retry": 2,
    "keep_house": 4,
    "repeat_a_call": 3,
}
ENDED = {"finished": "done", "failed": "failed", "stopped": "stopped", "canceled": "canceled"}
LETTER = {"d": "done", "f": "failed", "s": "stopped", "r": "removed", **dict.fromkeys("cnw", "canceled")}
MOST = 3
RULES = Rules(Catalogue(type_grace_s=60), Registry(builtins=True), Defaults())

which = st.integers(0, 999_999)


class Machine(RuleBasedStateMachine):
    """One rule, so that the weights hold: a number chooses the move and what it is made with, from what there is."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.redis.flushall()
        self.ids: list[str] = []
        self.attempts: list[RunningTask] = []
        self.sent: list[Call[Any]] = []
        self.number = 0
        self.is_sound = True

    @rule(move=st.sampled_from([name for name, weight in MOVES.items() for _ in range(weight)]), number=which)
    def step(self, move: str, number: int) -> None:
        self.is_sound = False
        self.random = random.Random(number)
        if move == "submit" and len(self.ids) >= MOST:
            move = "claim"
        if self.ids or move == "submit":
            getattr(self, move)()
            self.check()
        self.is_sound = True

    # --- moves ----------------------------------------------------------------------------------------------------

    def run(self, call: Call[T]) -> T:
        if call.again:
            self.sent.append(call)
        return self.world.run(call)

    def carry_out(self, plan: Plan[T]) -> T:
        return self.world.store.carry_out(plan)

    def submit(self) -> None:
        nodes: list[NodeSpec] = []
        for at in range(1 + self.random.randrange(4)):
            after = [After(each.name, self.random.choice(ONS)) for each in nodes if self.random.random() < 0.4]
            spec = TaskSpec(type="echo", payload={"message": at}, max_attempts=2)
            if self.random.random() < 0.3:
                nodes.append(NodeSpec(name=f"n{at}", map=(spec,) * (1 + self.random.randrange(3)), after=after))
            else:
                nodes.append(NodeSpec(name=f"n{at}", task=spec, after=after))
        self.ids.append(self.carry_out(submit_workflow(WorkflowSpec(name="w", nodes=nodes), RULES)).id)

    def claim(self) -> None:
        self.number += 1
        call = scripts.claim(("default",), worker="w", attempt_id=f"a{self.number}", lease_ms=100_000)
        running = self.world.run(call)
        if running is not None:
            self.attempts.append(running)

    def attempt(self) -> RunningTask | None:
        return self.random.choice(self.attempts[-6:]) if self.attempts else None

    def finish(self) -> None:
        if running := self.attempt():
            self.end(running, self.random.choice((S.DONE, S.DONE, S.FAILED, S.STOPPED)))

    def end(self, running: RunningTask, status: TaskStatus) -> None:
        if status is S.DONE:
            self.run(scripts.finish(running, status, result=b"1"))
        else:
            self.run(scripts.finish(running, status, error="no", failure={"reason": status.value}, traceback="T"))

    def requeue(self) -> None:
        if running := self.attempt():
            self.run(scripts.retry(running, delay_ms=0, error="no", failure=FAILURE))

    def crash(self) -> None:
        if running := self.attempt():
            self.run(
                scripts.crash(running.id, running.attempt_id, "default", error="x", failure=FAILURE, max_crashes=1)
            )

    def member(self) -> str:
        id = self.random.choice(self.ids)
        total = int(self.world.redis.hget(f"taskpool:workflow:{id}", "total") or 1)
        return member_id(id, 1 + self.random.randrange(total))

    def by_hand(self) -> None:
        id = self.member()
        calls: list[Callable[[], Call[Any]]] = [
            lambda: scripts.cancel(id, reason="canceled", error="by hand"),
            lambda: scripts.stop(id, grace_s=5, force=False),
            lambda: scripts.revive(id),
            lambda: scripts.purge(id),
        ]
        self.run(self.random.choice(calls)())

    def press_a_button_of_rqs_dashboard(self) -> None:
        id = self.member()
        if not self.world.redis.exists(f"rq:job:{id}"):
            return
        job = Job.fetch(id, connection=self.world.redis, serializer=JSONSerializer)
        if self.random.random() < 0.5:
            job.delete()
            return
        with suppress(InvalidJobOperation):
            job.requeue()

    def run_in_a_plain_rq_worker(self) -> None:
        id = self.world.redis.lpop("rq:queue:default")
        if id is not None:
            self.world.redis.hset(f"rq:job:{id.decode()}", "status", self.random.choice(("finished", "stopped")))

    def stop_or_retry(self) -> None:
        id = self.random.choice(self.ids)
        plan = stop_workflow(id) if self.random.random() < 0.3 else retry_workflow(id)
        with suppress(WorkflowConflict):
            self.carry_out(plan)

    def keep_house(self) -> None:
        self.carry_out(look_after_workflows())
        for queue in ("default",):
            self.world.run(scripts.sweep_waiting(queue, 1000))
        self.world.run(scripts.sweep_index("taskpool:type:echo", "", 100))
        refs: Sequence[str] = [ref.decode() for ref in self.world.redis.smembers("taskpool:outbox")]
        for ref in refs:
            self.run(scripts.release(ref))

    def repeat_a_call(self) -> None:
        if self.sent:
            self.world.run(self.random.choice(self.sent[-5:]))

    # --- what must hold -------------------------------------------------------------------------------------------

    def check(self) -> None:
        for id in self.ids:
            self.check_one(id)

    def check_one(self, id: str) -> None:
        redis = self.world.redis
        h = {name.decode(): value.decode() for name, value in redis.hgetall(f"taskpool:workflow:{id}").items()}
        if "status" not in h:
            return
        counted = (redis.get(f"taskpool:workflow:{id}:counted") or b"").decode()
        words = [LETTER.get(letter) for letter in counted]
        counts = Counter(word for word in words if word is not None)
        assert {name[2:]: int(value) for name, value in h.items() if name.startswith("n:") and value != "0"} == counts
        assert int(h["ended"]) == counts.total()
        record = self.carry_out(fetch_workflow(id))
        at = 0
        for node in record.nodes:
            size = 1 if node.size is None else node.size
            if node.size is not None:
                assert (node.counts or {}) == Counter(word for word in words[at : at + size] if word is not None)
            at += size
        has_ended = counts.total() == record.total
        assert (h["status"] in ("done", "failed", "stopped")) == has_ended
        assert redis.zscore("taskpool:workflows:open", id) == (None if has_ended else 0)
        assert (redis.zscore("taskpool:workflows:ended", id) is not None) == has_ended
        if has_ended and h["status"] == "done":
            assert int(h.get("unhandled", 0)) == 0
        assert int(h.get("unhandled", 0)) >= 0

    # --- the end --------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not self.is_sound:
            return
        for _ in range(60):
            for running in self.attempts:
                self.end(running, S.DONE)
            self.attempts.clear()
            self.keep_house()
            self.claim()
            if not self.attempts and all(self.has_ended(id) for id in self.ids):
                break
        self.check()
        records = [self.carry_out(fetch_workflow(id)) for id in self.ids]
        open_ones = [record for record in records if not record.status.is_terminal]
        assert not open_ones, (open_ones, [self.world.redis.hgetall(key) for key in self.world.redis.keys("rq:job:*")])
        self.compare_with_tasks(records)
        for id in self.ids:
            self.carry_out(remove_workflow(id))
        left = [key.decode() for key in self.world.redis.scan_iter("taskpool:workflow*")]
        assert [key for key in left if not key.endswith(":swept")] == []

    def has_ended(self, id: str) -> bool:
        return self.carry_out(fetch_workflow(id, with_nodes=False)).status.is_terminal

    def compare_with_tasks(self, records: Sequence[WorkflowRecord]) -> None:
        """After a sweep, what is counted is what the records say, where there are records."""
        for record in records:
            counted = self.world.redis.get(f"taskpool:workflow:{record.id}:counted").decode()
            for at, letter in enumerate(counted):
                status = self.world.redis.hget(f"rq:job:{member_id(record.id, at + 1)}", "status")
                assert status is None or ENDED[status.decode()] == LETTER[letter]


ONS: tuple[Literal["success", "failure", "any"], ...] = ("success", "success", "failure", "any")


def test_counts_are_what_the_tasks_add_up_to_whatever_happens(world: World) -> None:
    Machine.world = world
    examples = os.environ.get("MACHINE_EXAMPLES")
    profile = settings(
        max_examples=int(examples or 40),
        stateful_step_count=60,
        derandomize=examples is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([Phase.shrink] if examples else [])],
    )
    run_state_machine_as_test(Machine, settings=profile)
