"""`taskpool demo` with real processes: the counts are exact, wherever it runs them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.ports import free_port
from taskpool.types import Exit
from tests.instances import COMMAND, Up, taskpool
from tests.support import eventually


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def counts(output: str) -> dict[str, int]:
    """The table of the top words."""
    lines = output.splitlines()
    rows = lines[next(at for at, line in enumerate(lines) if line.startswith("WORD")) + 1 :]
    return {row.split()[0]: int(row.split()[1].replace(",", "")) for row in rows[: rows.index("")]}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A tree of three files with known words, and others that don't count."""
    root = tmp_path / "text"
    write(root / "a.txt", "apple banana apple\n")
    write(root / "b" / "b.md", "Banana, APPLE: it's cherry\n" * 2)
    write(root / "b" / "c" / "empty.txt", "")
    write(root / ".git" / "HEAD", "apple " * 50)
    write(root / "binary", "apple\0")
    return root


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """An instance whose workers read below `tmp_path`."""
    instance = Up(tmp_path, "--files-root", ".")
    instance.await_ready()
    yield instance
    instance.kill()


def test_the_counts_of_a_known_tree_are_exact(text: Path, tmp_path: Path) -> None:
    result = taskpool(tmp_path, "demo", str(text), "--port", str(free_port()), "--workers", "2")

    assert result.returncode == Exit.DONE
    assert counts(result.stdout) == {"apple": 4, "banana": 3, "cherry": 2, "it's": 2}
    assert "3 text files, 11 words, 4 different ones." in result.stdout
    assert "1 others are no text" in result.stdout
    assert "4 tasks in " in result.stdout
    assert "tasks a second" in result.stdout
    assert result.stderr == ""


def test_its_own_instance_serves_this_machine_alone(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKPOOL_HOST", "0.0.0.0")
    monkeypatch.setenv("TASKPOOL_PUBLIC_ADDRESS", "tasks.example.org")

    result = taskpool(tmp_path, "demo", str(text), "--port", str(free_port()), "--workers", "1")

    assert (result.returncode, result.stderr) == (Exit.DONE, "")


def test_it_leaves_nothing_behind(text: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    taskpool(tmp_path, "demo", str(text), "--port", str(free_port()), "--workers", "2", TMPDIR=str(temporary))

    assert list(temporary.iterdir()) == []
    assert not (tmp_path / ".taskpool").exists()


def test_it_uses_the_instance_that_runs(text: Path, up: Up) -> None:
    result = taskpool(up.directory, "demo", str(text), "--port", str(up.port))

    assert result.returncode == Exit.DONE
    assert f"Using the Taskpool at http://127.0.0.1:{up.port}" in result.stdout
    assert counts(result.stdout)["apple"] == 4
    _, merges = up.ask("GET", "/tasks?type=word_merge")
    assert [task["status"] for task in merges["tasks"]] == ["done"]
    assert f"/tasks/{merges['tasks'][0]['id']}" in result.stdout


def test_it_starts_its_own_when_the_one_that_runs_reads_other_files(
    up: Up, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "one.txt", "one two two")

    result = taskpool(up.directory, "demo", str(elsewhere), "--port", str(up.port))

    assert result.returncode == Exit.DONE
    assert "can't read these files" in result.stdout
    assert counts(result.stdout) == {"two": 2, "one": 1}
    assert up.ask("GET", "/tasks")[1]["tasks"] == []


def test_more_files_than_one_batch_are_counted_exactly(tmp_path: Path) -> None:
    expected: Counter[str] = Counter()
    for number in range(1200):
        words = ["even" if number % 2 else "odd", "all"]
        write(tmp_path / "many" / f"{number}.txt", " ".join(words))
        expected.update(words)

    result = taskpool(tmp_path, "demo", str(tmp_path / "many"), "--port", str(free_port()), "--workers", "2")

    assert counts(result.stdout) == expected
    assert "1,201 tasks in " in result.stdout


def test_a_directory_without_text_is_one_line(tmp_path: Path) -> None:
    result = taskpool(tmp_path, "demo", str(tmp_path))

    assert (result.returncode, result.stderr) == (Exit.USAGE, f"Error: there is no text file below {tmp_path}\n")


def test_ctrl_c_is_quiet_and_ends_all_of_it(tmp_path: Path) -> None:
    for number in range(500):
        write(tmp_path / "many" / f"{number}.txt", "word " * 50_000)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "demo", str(tmp_path / "many"), "--port", str(free_port()), "--workers", "2"],
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(lambda: list(temporary.glob("*/redis.url")), 30)

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (Exit.INTERRUPTED, "")
    assert list(temporary.iterdir()) == []
