"""An attempt that lost its lease writes nothing more, whichever way it lost it and whatever it tries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from taskpool.redis import people_scripts, scripts
from taskpool.redis.add_script import attempt_guard
from taskpool.redis.calls import Call
from taskpool.types import DEFAULT_LIMITS, RunningTask, TaskStatus
from tests.states import FAILURE, World, new_task

S = TaskStatus
WRITE: dict[str, Callable[[RunningTask], Call[Any]]] = {
    "done": lambda old: scripts.finish(old, S.DONE, result=b'"stale"'),
    "failed": lambda old: scripts.finish(old, S.FAILED, error="stale", failure=FAILURE),
    "stopped": lambda old: scripts.finish(old, S.STOPPED, error="stale", failure=FAILURE),
    "retry": lambda old: scripts.retry(old, delay_ms=0, error="stale", failure=FAILURE),
    "retry later": lambda old: scripts.retry(old, delay_ms=500_000, error="stale", failure=FAILURE),
    "give back": scripts.give_back,
    "progress": lambda old: scripts.progress(old, {"done": 1}),
    "log": lambda old: scripts.log(old.id, old.attempt_id, [b'{"text":"stale"}'], DEFAULT_LIMITS),
    "add": lambda old: scripts.add([new_task("new")], guard=attempt_guard(old)),
    "ask": lambda old: people_scripts.ask(old, b'{"name":"n","text":"stale","timeout":60}'),
    "checkpoint": lambda old: people_scripts.checkpoint(old, b'"stale"'),
    "heartbeat": lambda old: scripts.heartbeat([(old.id, old.attempt_id, old.queue)], 500_000),
    "crash": lambda old: scripts.crash(
        old.id, old.attempt_id, old.queue, error="stale", failure=FAILURE, max_crashes=1
    ),
    "reap": lambda old: scripts.crash(
        old.id, old.attempt_id, old.queue, error="stale", failure=FAILURE, max_crashes=1, only_expired=True
    ),
}


def reap(world: World) -> None:
    world.expire_lease("a")
    assert world.run(WRITE["reap"](world.running["a"])) == "failed"


def die(world: World) -> None:
    assert world.run(crash(max_crashes=3)) == "queued"


def crash(max_crashes: int) -> Call[str]:
    return scripts.crash("a", "1", "default", error="died", failure={}, max_crashes=max_crashes)


def run_again(world: World) -> None:
    assert world.claim(worker="other", attempt_id="2").id == "a"


def finish_again(world: World) -> None:
    run_again(world)
    assert world.finish(world.running["a"]) == "ok"


def cancel(world: World) -> None:
    assert world.cancel("a") == "ok"


def revive(world: World) -> None:
    assert world.run(scripts.revive("a")) == "ok"


def purge(world: World) -> None:
    assert world.run(scripts.purge("a")) == "ok"


def give_back(world: World) -> None:
    assert world.run(scripts.give_back(world.running["a"])) == "ok"


def retry_later(world: World) -> None:
    assert world.run(WRITE["retry later"](world.running["a"])) == "ok"


WAYS: Sequence[Sequence[Callable[[World], None]]] = (
    [die],
    [die, run_again],
    [die, finish_again],
    [die, cancel],
    [reap],
    [reap, revive],
    [reap, revive, run_again],
    [reap, purge],
    [give_back],
    [give_back, run_again],
    [retry_later],
)
"""How an attempt loses its task, step by step."""

REPEATED: Mapping[Callable[[World], None], Sequence[str]] = {
    give_back: ["give back"],
    retry_later: ["retry", "retry later"],
}
"""What the attempt itself has done by its first step, and may repeat: it doesn't get `lost`."""


@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: ", ".join(step.__name__ for step in way))
def test_an_old_attempt_changes_nothing(world: World, way: Sequence[Callable[[World], None]], write: str) -> None:
    old = world.start("a", max_attempts=3)
    for step in way:
        step(world)
    before = world.snapshot()

    expected = "ok" if write in REPEATED.get(way[0], ()) else "lost"
    answer = world.run(WRITE[write](old))
    assert getattr(answer, "broken_guard", answer) in (expected, [expected])

    assert world.since(before) == {}
