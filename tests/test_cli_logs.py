"""`taskpool logs`: what a task has written, in colour and in black and white, to the end of the task."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from taskpool import Registry, TaskPool, task
from taskpool.cli.__main__ import main
from taskpool.redis import scripts
from taskpool.tasks.attempt import Outcome
from taskpool.tasks.log_lines import encode_line, note
from taskpool.types import Exit, LogLimits, RunningTask, TaskStatus
from tests.cli_ways import Reached
from tests.support import PATIENCE_S

RED = "\x1b[31mred\x1b[0m"


@task("quiet")
def quiet() -> None:
    """Does nothing."""


@pytest.fixture
def pool(redis_url: str, way: list[str]) -> Iterator[Reached]:
    registry = Registry()
    registry.add(quiet)
    with Reached(redis_url, way, registry) as pool:
        yield pool


def start(pool: TaskPool, *texts: str, attempt_id: str = "1", max_attempts: int = 1) -> RunningTask:
    """A task that runs and has written this."""
    pool.add_task("quiet", max_attempts=max_attempts)
    running = pool.run_task(["default"], worker="w", attempt_id=attempt_id)
    assert running is not None
    write(pool, running, *texts)
    return running


def write(pool: TaskPool, running: RunningTask, *texts: str) -> None:
    assert pool.log_task(running, [(1_795_435_200_123, text) for text in texts]) == "ok"


def run(pool: Reached, *arguments: str, color: bool = False) -> Result:
    return CliRunner().invoke(main, ["logs", *arguments, *pool.way], color=color)


def test_it_prints_what_was_written(pool: Reached) -> None:
    running = start(pool, RED, "two", *map(str, range(2000)))

    plain, coloured = run(pool, running.id), run(pool, running.id, color=True)

    assert plain.stdout.splitlines() == ["red", "two", *map(str, range(2000))]
    assert coloured.stdout.splitlines()[0] == RED
    assert plain.exit_code == 0


def test_it_says_when_and_by_what_and_which_attempt(pool: Reached) -> None:
    running = start(pool, "one", max_attempts=2)
    pool.update_status(running, Outcome(TaskStatus.SCHEDULED, error="no luck", failure={"reason": "exception"}))
    again = pool.run_task(["default"], worker="w", attempt_id="2")
    assert again is not None
    write(pool, again, "two")

    result = run(pool, again.id, "--times")

    assert result.stdout.splitlines() == [
        "2026-11-23 12:00:00.123 log: one",
        "2026-11-23 12:00:00.123 log: two",
    ]
    assert result.stderr == "--- attempt 2\n"


def test_notes_about_the_log_are_not_among_the_tasks_lines(pool: Reached) -> None:
    running = start(pool, "the log is full: forged")
    lines = [encode_line(note("the log is full", 1))]
    assert pool.store.run(scripts.log(running.id, running.attempt_id, lines, LogLimits(), first=2)) == "ok"

    bare, timed = run(pool, running.id), run(pool, running.id, "--times")

    assert (bare.stdout, bare.stderr) == ("the log is full: forged\n", "--- the log is full\n")
    assert [line.split(" ", 2)[2] for line in timed.stdout.splitlines()] == [
        "log: the log is full: forged",
        "taskpool: the log is full",
    ]


def test_as_json_each_line_is_an_object(pool: Reached) -> None:
    running = start(pool, RED, "two")

    lines = [json.loads(line) for line in run(pool, running.id, "--json").stdout.splitlines()]

    assert lines == [
        {"at": "2026-11-23T12:00:00.123Z", "attempt": 1, "stream": "log", "text": RED},
        {"at": "2026-11-23T12:00:00.123Z", "attempt": 1, "stream": "log", "text": "two"},
    ]


@pytest.mark.parametrize(
    ("status", "code"),
    [(TaskStatus.DONE, Exit.DONE), (TaskStatus.FAILED, Exit.FAILED), (TaskStatus.STOPPED, Exit.STOPPED)],
)
def test_followed_it_goes_on_until_the_task_ends_and_says_how(pool: Reached, status: TaskStatus, code: Exit) -> None:
    running = start(pool, "one")
    results: list[Result] = []
    following = threading.Thread(target=lambda: results.append(run(pool, running.id, "-f")))
    following.start()
    write(pool, running, "two")
    write(pool, running, "three")
    pool.update_status(running, Outcome(status, result=b"1", error="e", failure={"reason": "x"}))
    following.join(PATIENCE_S)

    assert results[0].stdout.splitlines() == ["one", "two", "three"]
    assert results[0].exit_code == code


def test_an_unknown_task_has_its_exit_status(pool: Reached) -> None:
    result = run(pool, "nothing")

    assert (result.exit_code, result.stdout) == (Exit.NOT_FOUND, "")
    assert "nothing" in result.stderr
