"""What a task writes, in whatever way, is its log: whole, in order, of this task alone, and there when its end is."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from taskpool import TaskStatus
from taskpool.tasks.log_lines import LogLine
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, pool_with_redis

TASKS = str(Path(__file__).with_name("tasks_for_logs.py"))


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[WorkerPool]:
    directory = tmp_path_factory.mktemp("workers")
    note = directory / "note"
    with pool_with_redis(directory, redis_binary, tasks=TASKS, env={"TASKS_NOTE": str(note)}) as workers:
        yield workers


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[WorkerPool]:
    """A process of several slots."""
    directory = tmp_path_factory.mktemp("slots")
    note = directory / "note"
    with pool_with_redis(directory, redis_binary, tasks=TASKS, slots=4, env={"TASKS_NOTE": str(note)}) as workers:
        yield workers


def log_of(workers: WorkerPool, type: str, **payload: Any) -> list[LogLine]:
    """The log of a task that was done."""
    record = workers.pool.wait(workers.pool.add_task(type, payload).id, timeout_s=PATIENCE_S)
    assert record.status is TaskStatus.DONE, record.error
    return all_lines(workers, record.id)


def all_lines(workers: WorkerPool, id: str) -> list[LogLine]:
    return list(workers.pool.follow_log(id))


def shown(lines: Sequence[LogLine]) -> list[tuple[str, str]]:
    return [(line.stream, line.text) for line in lines]


EVERYWHERE = {
    "print": [("stdout", "one"), ("stdout", "two-three"), ("stdout", "no line feed")],
    "stderr": [("stderr", "to stderr"), ("stderr", "kept")],
    "bytes": [("stdout", "bytes é")],
    "binary": [("stdout", "\x00\x1b\ufffd\ufffd")],
    "colour": [("stdout", "\x1b[31mred\x1b[0m")],
    "bar": [("stderr", "100 %")],
    "nothing": [],
    "everything": [("log", "said"), ("stdout", "printed"), ("logging", "logged"), ("stdout", "printed again")],
}


@pytest.mark.parametrize("how", EVERYWHERE)
def test_what_a_task_writes_is_its_log(workers: WorkerPool, how: str) -> None:
    assert shown(log_of(workers, "speak", how=how)) == EVERYWHERE[how]


@pytest.mark.parametrize("how", EVERYWHERE)
def test_it_is_so_in_a_process_of_several_slots(slots: WorkerPool, how: str) -> None:
    assert shown(log_of(slots, "speak", how=how)) == EVERYWHERE[how]


BY_ONE_ALONE = {
    "subprocess": {("stdout", "from sh"), ("stdout", "reopened"), ("stderr", "to 2")},
    "descriptor": {("stdout", "raw é"), ("stderr", "raw 2")},
    "fork": {("stdout", "from the child"), ("stderr", "the child logs")},
    "thread": {("stdout", "from a thread")},
}


@pytest.mark.parametrize("how", BY_ONE_ALONE)
def test_a_task_that_has_its_process_to_itself_is_heard_outside_python_too(workers: WorkerPool, how: str) -> None:
    lines = log_of(workers, "speak", how=how)

    heard = {(stream, text.rpartition("WARNING ")[2]) for stream, text in shown(lines)}
    assert heard == BY_ONE_ALONE[how]


def test_a_line_says_when_and_of_which_logger_it_is(workers: WorkerPool) -> None:
    info, *error = log_of(workers, "speak", how="logging")

    assert (info.level, info.logger, info.text, info.attempt) == ("info", "app.work", "3 things", 1)
    assert {line.level for line in error} == {"error"}
    assert (error[0].text, error[-1].text) == ("it failed", "ValueError: bad")
    assert 0 <= error[0].at_ms - info.at_ms < 60_000


def test_a_line_of_a_megabyte_comes_in_pieces_that_make_it_up(workers: WorkerPool) -> None:
    lines = log_of(workers, "much", chars=1_000_000)

    assert "".join(line.text for line in lines) == "x" * 1_000_000
    assert {len(line.text) for line in lines[:-1]} == {8192}
    assert [line.continues for line in lines] == [True] * (len(lines) - 1) + [False]


def test_of_a_hundred_thousand_lines_the_first_and_the_last_are_kept(workers: WorkerPool) -> None:
    texts = [line.text for line in log_of(workers, "much", lines=100_000)]

    assert texts[:2] == ["line 0", "line 1"]
    assert texts[-2:] == ["line 99998", "line 99999"]
    assert len(texts) <= 10_001
    at = next(n for n, text in enumerate(texts) if text.startswith("the log is full"))
    assert texts[at + 1] == f"{int(texts[at + 2].split()[1]) - at} lines are missing here"


def test_what_programs_write_by_the_megabyte_neither_stops_them_nor_fills_redis(
    workers: WorkerPool,
) -> None:
    lines = log_of(workers, "raw_much", megabytes=20)

    assert sum(len(line.text) for line in lines) < 5_000_000
    assert any(line.stream == "taskpool" for line in lines)


def test_a_killed_process_has_written_to_the_log_up_to_its_last_word(workers: WorkerPool) -> None:
    lines = log_of(workers, "crash")

    words = [("stdout", "before the end"), ("logging", "logged"), ("stdout", "raw, and no line feed")]
    assert shown(lines) == words * 2
    assert [line.attempt for line in lines] == [1] * 3 + [2] * 3


def test_a_killed_process_of_several_slots_too(slots: WorkerPool) -> None:
    lines = log_of(slots, "crash")

    assert shown(lines) == [("stdout", "before the end"), ("logging", "logged")] * 2


def test_each_attempt_has_its_lines(workers: WorkerPool) -> None:
    task = workers.pool.add_task("fail", {}, max_attempts=3, backoff_s=0)

    workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert [(line.attempt, line.text) for line in all_lines(workers, task.id)] == [
        (1, "attempt 1"), (2, "attempt 2"), (3, "attempt 3"),
    ]  # fmt: skip


@pytest.mark.parametrize("end", ["stop", "timeout"])
def test_a_task_that_is_ended_keeps_its_log(workers: WorkerPool, end: str) -> None:
    task = workers.pool.add_task("hang", {}, timeout_s=0.5 if end == "timeout" else None)
    if end == "stop":
        eventually(lambda: workers.pool.logs(task.id).items)
        workers.pool.kill_task(task.id)

    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert record.status is (TaskStatus.STOPPED if end == "stop" else TaskStatus.FAILED)
    assert [line.text for line in all_lines(workers, task.id)] == ["it hangs"]


@pytest.mark.parametrize("type", ["chat", "chat_blocking"])
def test_tasks_side_by_side_do_not_mix(slots: WorkerPool, type: str) -> None:
    tasks = [slots.pool.add_task(type, {"name": name, "lines": 20}) for name in "abcd"]

    for task, name in zip(tasks, "abcd", strict=True):
        slots.pool.wait(task.id, timeout_s=PATIENCE_S)
        lines = all_lines(slots, task.id)
        assert {line.text[:2] for line in lines} == {f"{name} "}
        assert len(lines) == 20 * (4 if type == "chat" else 3)


def test_a_follower_sees_every_line_once(workers: WorkerPool, tmp_path: Path) -> None:
    until = tmp_path / "until"
    until.touch()
    task = workers.pool.add_task("slow", {"until": str(until), "steps": 4})

    seen = []
    for line in workers.pool.follow_log(task.id):
        seen.append(line.text)
        with until.open("a") as file:
            file.write(".")

    assert seen == [f"step {n}" for n in range(4)]
    assert workers.pool.get(task.id).status is TaskStatus.DONE


def test_no_secret_of_a_task_is_in_its_log_or_the_workers_own(workers: WorkerPool, redis: Redis) -> None:
    lines = log_of(workers, "tell", token="hunter2hunter2")

    assert [line.text for line in lines] == ["token=***", "token ***", "raw ***"]
    assert "hunter2" not in workers.log.read_text()


@pytest.mark.parametrize(("output", "slots"), [("both", 1), ("worker", 1), ("both", 4)])
def test_a_tasks_output_can_not_pass_for_the_workers_log_nor_control_a_terminal(
    redis_url: str, tmp_path: Path, output: str, slots: int
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", tasks=TASKS, task_output=output, slots=slots) as workers:
        id = workers.pool.wait(workers.pool.add_task("forge", {"token": "hunter2hunter2"}).id, timeout_s=PATIENCE_S).id
        workers.pool.wait(
            workers.pool.add_task("speak", {"how": "print"}).id, timeout_s=PATIENCE_S
        )  # a thread has its say
        drain(workers)
        text = workers.log.read_text()

    assert not re.search("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u2028-\u202e]|\x1b(?!\\[[0-9;]*m)", text)
    starts = [line for line in text.splitlines() if not line.startswith(("[", "    "))]
    assert starts
    assert not [line for line in starts if "forged" in line or not line.startswith("20")]
    assert text.count("forged") >= 12
    assert f"[{id}] 2026-11-29 12:00:00,000 INFO forged" in text
    assert "hunter2" not in text


def drain(workers: WorkerPool) -> None:
    """Ends a pool in order: one that is killed may still claim the next one's task."""
    workers.send(signal.SIGTERM)
    assert workers.end() == 0


def test_the_workers_own_output_has_it_too_unless_a_setting_says_no(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "both", tasks=TASKS) as workers:
        log_of(workers, "speak", how="everything")
        log_of(workers, "speak", how="subprocess")
        eventually(lambda: "to 2" in workers.log.read_text())
        text = workers.log.read_text()
        assert [word in text for word in ("printed again", "WARNING logged", "from sh")] == [True] * 3
        drain(workers)
    with WorkerPool(redis_url, tmp_path / "log", tasks=TASKS, task_output="log") as workers:
        assert len(log_of(workers, "speak", how="everything")) == 4
        assert len(log_of(workers, "speak", how="subprocess")) == 3
        text = workers.log.read_text()
        assert [word in text for word in ("printed again", "WARNING logged", "from sh")] == [False] * 3
        assert "1 worker, queues: " in text
        drain(workers)
    with WorkerPool(redis_url, tmp_path / "worker", tasks=TASKS, task_output="worker") as workers:
        assert shown(log_of(workers, "speak", how="everything")) == [("log", "said")]
        assert "printed again" in eventually(workers.log.read_text)
