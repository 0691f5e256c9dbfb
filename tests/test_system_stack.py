"""Where a running task is: asked over Redis, answered by its supervisor, while the task goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taskpool import TaskPool
from taskpool.errors import TaskConflict, TaskNotFound
from taskpool.operations.control import stacks
from taskpool.types.fleet import Stack
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import TASKS, WorkerPool, lines, started


def user_frames(stack: Stack) -> list[str]:
    assert stack.frames
    assert {frame.file for frame in stack.frames if frame.is_user} <= {TASKS}
    return [frame.function for frame in stack.frames if frame.is_user]


@pytest.mark.parametrize("slots", [1, 4])
def test_a_running_task_is_shown_where_it_is_and_goes_on(redis_url: str, tmp_path: Path, slots: int) -> None:
    note, go = tmp_path / "note", tmp_path / "go"
    with WorkerPool(redis_url, tmp_path / "log", slots=slots) as workers:
        task = workers.submit("hang", note=note, until=go)
        started(note)
        eventually(lambda: user_frames(workers.pool.stack(task.id))[-1] == "_wait")  # its line is written just before

        taken = [workers.pool.stack(task.id) for _ in range(2)]

        for stack in taken:
            assert stack.id == task.id
            assert user_frames(stack)[-2:] == ["hang", "_wait"], "the innermost frame is the last"
            assert stack.text.count("most recent call first") >= 1
        assert len(taken[1].text) < 2 * len(taken[0].text), "what was taken before isn't told again"
        go.touch()
        assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).result == "slept"
        with pytest.raises(TaskConflict, match="doesn't run: it is done"):
            workers.pool.stack(task.id)


def test_a_coroutine_is_shown_among_others_with_what_it_awaits(redis_url: str, tmp_path: Path) -> None:
    notes = [tmp_path / f"note{number}" for number in range(2)]
    with WorkerPool(redis_url, tmp_path / "log", slots=4) as workers:
        tasks = [workers.submit("hang", type="act_async", note=note, seconds=3600) for note in notes]
        eventually(lambda: all(lines(note) for note in notes))

        def frames(stack: Stack) -> tuple[list[str], str]:
            return user_frames(stack), stack.frames[-1].function

        for task in tasks:
            # Each of them has written its line just before it sleeps, and is awake for a moment again and again.
            eventually(lambda id=task.id: frames(workers.pool.stack(id)) == (["act_async"], "sleep"))  # type: ignore[misc]


def test_a_loop_that_is_blocked_is_shown_where_it_is_blocked(redis_url: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with WorkerPool(redis_url, tmp_path / "log", slots=4) as workers:
        task = workers.submit("hog", type="act_async", note=note)
        eventually(lambda: lines(note))

        eventually(lambda: user_frames(workers.pool.stack(task.id)) == ["act_async"])


def test_without_an_answer_it_is_a_conflict(redis_url: str, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "POLLS", 2)
    with TaskPool(redis_url) as pool:
        with pytest.raises(TaskNotFound):
            pool.stack("nobody")
        redis.hset("rq:job:a", mapping={"data": "[]", "status": "queued"})
        with pytest.raises(TaskConflict, match="it is queued"):
            pool.stack("a")
        redis.hset("rq:job:a", mapping={"status": "started", "worker_name": "w", "attempt_id": "1"})
        with pytest.raises(TaskConflict, match="doesn't tell where it is"):
            pool.stack("a")
        with redis.pubsub() as channel:
            channel.subscribe("rq:pubsub:w")
            assert channel.get_message(timeout=PATIENCE_S)
            with pytest.raises(TaskConflict, match="doesn't tell where it is"):
                pool.stack("a")
            message = channel.get_message(timeout=PATIENCE_S)
        assert message is not None
        asked = json.loads(message["data"])
        assert (asked["command"], asked["attempt_id"], len(asked["token"])) == ("taskpool-stack", "1", 32)
