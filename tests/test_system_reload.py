"""`--reload`: changed task files are loaded again; after an error the old workers stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskpool import TaskStatus
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool


@pytest.fixture
def module(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write(folder / "changing.py", "'old'")
    return folder / "changing.py"


@pytest.fixture
def workers(redis_url: str, tmp_path: Path, module: Path) -> Iterator[WorkerPool]:
    with WorkerPool(redis_url, tmp_path / "log", "--reload", tasks=module, workers=2) as workers:
        yield workers


def write(module: Path, result: str) -> None:
    module.write_text(f"from taskpool import task\n@task('changing')\ndef changing() -> str:\n    return {result}\n")


def result_is(workers: WorkerPool, expected: str) -> Callable[[], bool]:
    def look() -> bool:
        task = workers.pool.add_task("changing")
        return bool(workers.pool.wait(task.id, timeout_s=PATIENCE_S).result == expected)

    return look


def test_a_changed_file_is_loaded_anew(workers: WorkerPool, module: Path) -> None:
    assert result_is(workers, "old")()

    write(module, "'new'")

    eventually(result_is(workers, "new"))
    eventually(lambda: len(workers.pids()) == 2)


def test_a_module_that_a_task_file_imports_is_watched_too(redis_url: str, tmp_path: Path, module: Path) -> None:
    part = module.parent / "parts" / "part.py"
    part.parent.mkdir()
    (part.parent / "__init__.py").touch()
    part.write_text("WORD = 'old'\n")
    module.write_text(
        "from taskpool import task\nfrom parts.part import WORD\n"
        "@task('changing')\ndef changing() -> str:\n    return WORD\n"
    )
    with WorkerPool(redis_url, tmp_path / "log", "--reload", tasks=module) as workers:
        assert result_is(workers, "old")()

        part.write_text("WORD = 'new'\n")

        eventually(result_is(workers, "new"))


def test_a_broken_file_is_reported_and_the_old_workers_stay(workers: WorkerPool, module: Path) -> None:
    before = workers.pids()

    module.write_text("def (\n")
    eventually(lambda: "not reloaded" in workers.log.read_text())
    assert workers.pids() == before
    assert result_is(workers, "old")()

    write(module, "'mended'")
    eventually(result_is(workers, "mended"))


def test_what_runs_may_end_in_the_old_code(workers: WorkerPool, module: Path, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    waiting = f"[time.sleep(0.01) for _ in iter(lambda: os.path.exists({str(flag)!r}), True)] and 'old'"
    module.write_text(module.read_text().replace("'old'", waiting).replace("from", "import os, time\nfrom", 1))
    eventually(lambda: "reloaded" in workers.log.read_text())
    task = workers.pool.add_task("changing")
    eventually(lambda: workers.pool.get(task.id).status is TaskStatus.IN_PROGRESS)

    write(module, "'new'")
    eventually(lambda: workers.log.read_text().count("reloaded") == 2)
    assert result_is(workers, "new")()
    flag.touch()

    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)
    assert (record.result, record.attempt) == ("old", 1)
