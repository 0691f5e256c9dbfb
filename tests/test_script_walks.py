"""All scripts together: whatever order they come in, no status moves off the whitelist and no index goes wrong.

Random walks over a handful of tasks; after each step the whole of Redis is compared with what it must hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from taskpool.redis import scripts
from taskpool.types import DEFAULT_LIMITS, RETRYABLE, TRANSITIONS, RunningTask, TaskStatus
from tests.states import ENDED, FAILURE, WAITS, World

S = TaskStatus
REVIVED = {S.QUEUED, S.SCHEDULED, S.WAITING}
BORN = {*REVIVED, S.CANCELED}
ONS = ("success", "success", "failure", "any")
PLACE_OF = {
    S.QUEUED: "rq:queue:default",
    S.SCHEDULED: "rq:scheduled:default",
    S.WAITING: "rq:deferred:default",
    S.IN_PROGRESS: "rq:wip:default",
    S.STOPPING: "rq:wip:default",
    S.DONE: "rq:finished:default",
    S.FAILED: "rq:failed:default",
    S.STOPPED: "rq:failed:default",
    S.CANCELED: "rq:canceled:default",
}
STEPS = 150
MOST = 12
"""So many tasks at a time."""


class Walk:
    """The moves, drawn by chance, and what must hold after each."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.chance = Random(seed)
        self.number = 0
        self.statuses: dict[str, TaskStatus] = {}
        self.revived: set[str] = set()
        self.attempts: list[RunningTask] = []

    def run(self, call: Any) -> Any:
        return self.world.run(call)

    def step(self) -> str:
        """One move; its name."""
        weights: dict[Callable[[], None], int] = {
            **({self.add: 6} if len(self.statuses) < MOST else {}),
            **({self.finish: 4, self.retry: 2, self.give_back: 1, self.crash: 2} if self.attempts else {}),
            **({self.stop: 1, self.report: 1} if self.attempts else {}),
            self.claim: 8,
            self.promote: 2,
            self.release: 4,
            self.purge: 6,
            self.cancel: 1,
            self.expire: 1,
            self.revive: 2,
        }
        (move,) = self.chance.choices(list(weights), list(weights.values()))
        move()
        return move.__name__

    def task(self, *likely: TaskStatus) -> str:
        """One of the tasks there are, most often in a status where the move applies; or one that isn't there."""
        fitting = [id for id, status in self.statuses.items() if status in likely]
        some = fitting if fitting and self.chance.random() < 0.7 else [*self.statuses, "ghost"]
        return self.chance.choice(some)

    def attempt(self) -> RunningTask:
        """One of the attempts there were; one that runs more often than one of long ago."""
        running = [each for each in self.attempts if self.statuses.get(each.id) in (S.IN_PROGRESS, S.STOPPING)]
        return self.chance.choice(running if running and self.chance.random() < 0.8 else self.attempts)

    # --- moves ----------------------------------------------------------------------------------------------

    def add(self) -> None:
        self.number += 1
        parents = [self.task() for _ in range(self.chance.choice([0, 0, 0, 0, 0, 0, 1, 1, 2]))]
        added = self.world.add(
            f"t{self.number}",
            depends_on=[{"id": parent, "on": self.chance.choice(ONS)} for parent in parents],
            tags=["x"],
            delay_s=self.chance.choice([None, None, 500]),
            expires_in_s=self.chance.choice([None, 300]),
            max_attempts=self.chance.choice([1, 2]),
            front=self.chance.choice([True, False]),
        )
        assert added.unknown_dependency == ("ghost" if "ghost" in parents else None)

    def claim(self) -> None:
        self.number += 1
        running = self.world.try_claim(attempt_id=str(self.number))
        if running is not None:
            self.attempts.append(running)

    def finish(self) -> None:
        self.world.finish(self.attempt(), self.chance.choice([S.DONE, S.DONE, S.FAILED, S.STOPPED]))

    def retry(self) -> None:
        delay_ms = self.chance.choice([0, 500_000])
        self.run(scripts.retry(self.attempt(), delay_ms=delay_ms, error="no luck", failure=FAILURE))

    def give_back(self) -> None:
        self.run(scripts.give_back(self.attempt()))

    def crash(self) -> None:
        attempt = self.attempt()
        if self.chance.random() < 0.5:
            self.world.redis.zadd("rq:wip:default", {f"{attempt.id}:{attempt.attempt_id}": 1}, xx=True)
        self.run(
            scripts.crash(
                attempt.id,
                attempt.attempt_id,
                attempt.queue,
                error="died",
                failure=FAILURE,
                max_crashes=self.chance.choice([1, 2]),
                only_expired=self.chance.choice([True, False]),
            )
        )

    def report(self) -> None:
        attempt = self.attempt()
        self.run(scripts.progress(attempt, {"done": 1}))
        self.run(scripts.log(attempt.id, attempt.attempt_id, [b'{"text": "line"}'], DEFAULT_LIMITS))
        self.run(scripts.heartbeat([(attempt.id, attempt.attempt_id, attempt.queue)], 100_000))

    def stop(self) -> None:
        self.run(scripts.stop(self.attempt().id, grace_s=5, force=self.chance.choice([True, False])))

    def cancel(self) -> None:
        self.world.cancel(self.task(*WAITS))

    def expire(self) -> None:
        id = self.task(*WAITS)
        if self.world.redis.hexists(f"rq:job:{id}", "expires_ms"):
            self.world.redis.hset(f"rq:job:{id}", "expires_ms", 1)
            self.run(scripts.cancel(id, reason="expired", error="late"))

    def revive(self) -> None:
        id = self.task(*sorted(RETRYABLE))
        if self.run(scripts.revive(id)) in ("ok", "children"):
            assert self.statuses[id] in RETRYABLE
            self.revived.add(id)

    def promote(self) -> None:
        for id in self.members("rq:scheduled:default"):
            self.world.redis.zadd("rq:scheduled:default", {id: 1})
            assert self.run(scripts.promote(id, "default")) == "ok"

    def release(self) -> None:
        waiting = [each.decode() for each in self.world.redis.smembers("taskpool:outbox")]
        self.run(scripts.release(self.chance.choice([self.task(*ENDED), *waiting]), self.chance.choice([1, 3])))

    def purge(self) -> None:
        id = self.task(*ENDED)
        if self.run(scripts.purge(id)) == "ok":
            assert self.statuses.pop(id).is_terminal
            left = [name for name in self.world.snapshot() if id in name.replace(":", " ").split()]
            assert [name for name in left if not name.startswith("taskpool:events ")] == []

    # --- what must hold -------------------------------------------------------------------------------------

    def check(self) -> None:
        """All that must hold."""
        self.every_status_moves_as_the_whitelist_says()
        self.events_are_numbered_without_gaps_and_end_with_the_status()
        self.each_task_stands_in_one_place()
        self.leases_are_those_of_what_runs()
        self.only_what_waits_may_expire()
        self.whoever_waits_will_be_told()

    def every_status_moves_as_the_whitelist_says(self) -> None:
        for id in self.ids():
            record = self.world.get(id)
            before = self.statuses.get(id)
            if before is not record.status:
                moves = BORN if before is None else TRANSITIONS[before]
                if before is S.CANCELED or id in self.revived:  # the only way out of an end: a retry by hand
                    moves = REVIVED
                assert record.status in moves, (id, before, record.status)
            self.statuses[id] = record.status
        self.revived.clear()

    def events_are_numbered_without_gaps_and_end_with_the_status(self) -> None:
        for id, status in self.statuses.items():
            events = self.world.events(id)
            assert [seq for seq, _, _ in events] == list(range(1, self.world.get(id).seq + 1))
            assert events[-1][2] == status
            for (_, _, old), (_, event, new) in pairwise(events):
                is_retried_by_hand = old in RETRYABLE and event == new and new in REVIVED
                assert old == new or is_retried_by_hand or TaskStatus(new) in TRANSITIONS[TaskStatus(old)]

    def each_task_stands_in_one_place(self) -> None:
        places = {place: self.members(place) for place in PLACE_OF.values()}
        for id, status in self.statuses.items():
            found = Counter({place: members.count(id) for place, members in places.items() if id in members})
            assert found == {PLACE_OF[status]: 1}, (id, status)
            is_held = self.world.redis.zscore("taskpool:held", id) is not None
            assert self.world.redis.ttl(f"rq:job:{id}") == -1 or (status.is_terminal and not is_held)
        assert {id for members in places.values() for id in members} == self.statuses.keys()
        assert set(self.members("taskpool:type:work")) == self.statuses.keys()
        assert set(self.members("taskpool:tag:x")) == self.statuses.keys()

    def leases_are_those_of_what_runs(self) -> None:
        redis = self.world.redis
        running = [id for id, status in self.statuses.items() if status in (S.IN_PROGRESS, S.STOPPING)]
        members = {f"{id}:{redis.hget(f'rq:job:{id}', 'attempt_id').decode()}".encode() for id in running}
        assert set(redis.zrange("rq:wip:default", 0, -1)) == members
        assert redis.smembers("taskpool:attempts:w") == members
        assert set(redis.keys("rq:execution:*")) <= {b"rq:execution:" + member for member in members}

    def only_what_waits_may_expire(self) -> None:
        for id in self.members("taskpool:expiring"):
            assert self.statuses[id] in (S.QUEUED, S.SCHEDULED, S.WAITING)

    def whoever_waits_will_be_told(self) -> None:
        redis = self.world.redis
        waited_for: Counter[str] = Counter()
        for key in (*redis.keys("taskpool:dependents:*"), *redis.keys("taskpool:followers:*")):
            parent = key.decode().rpartition(":")[2]
            assert parent in self.statuses
            assert not self.statuses[parent].is_terminal or redis.sismember("taskpool:outbox", parent)
            waited_for.update(member.decode().rpartition(":")[2] for member in redis.smembers(key))
        for id in (id for id, status in self.statuses.items() if status is S.CANCELED):
            cause = redis.hget(f"rq:job:{id}", "canceled_by")
            is_alive = cause and self.statuses.get(cause.decode(), S.DONE) is not S.DONE
            assert not is_alive or redis.sismember(f"taskpool:revivable:{cause.decode()}", id)
        for id, status in self.statuses.items():
            if status is S.WAITING:
                assert waited_for[id] == int(redis.hget(f"rq:job:{id}", "pending")) > 0

    def come_to_an_end(self) -> None:
        """What workers and housekeeping do, until nothing is left to do."""
        while True:
            moves = 0
            for raw in self.world.redis.smembers("taskpool:outbox"):
                moves += 1
                self.run(scripts.release(raw.decode()))
            for member in self.world.redis.zrange("rq:wip:default", 0, -1):
                moves += 1
                id, _, attempt_id = member.decode().partition(":")
                self.run(scripts.crash(id, attempt_id, "default", error="died", failure=FAILURE, max_crashes=2))
            self.promote()
            self.number += 1
            running = self.world.try_claim(attempt_id=str(self.number))
            if running is not None:
                moves += 1
                assert self.world.finish(running) in ("ok", "children")
            if not moves:
                return

    def ids(self) -> list[str]:
        return [key.decode().removeprefix("rq:job:") for key in self.world.redis.keys("rq:job:*")]

    def members(self, key: str) -> list[str]:
        redis = self.world.redis
        found = redis.lrange(key, 0, -1) if key.startswith("rq:queue:") else redis.zrange(key, 0, -1)
        return [member.decode().partition(":")[0] for member in found]


@pytest.mark.parametrize("seed", range(3))
def test_no_order_of_moves_leads_off_the_whitelist_or_breaks_an_index(world: World, seed: int) -> None:
    walk = Walk(world, seed)
    moves = []

    for _ in range(STEPS):
        moves.append(walk.step())
        try:
            walk.check()
        except AssertionError as error:
            raise AssertionError(f"after {moves[-8:]}") from error

    walk.come_to_an_end()
    assert all(world.get(id).status.is_terminal for id in walk.ids())
