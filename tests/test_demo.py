"""examples/demo.py with real processes: its counts are exact, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.instances import Up
from tests.support import PATIENCE_S, eventually

DEMO = str(Path(__file__).parent.parent / "examples" / "demo.py")


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, DEMO, *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def counts(output: str) -> dict[str, int]:
    """The table of the top words."""
    rows = [line.split() for line in output.partition("times")[2].partition(" words, ")[0].splitlines()[1:-1]]
    return {word: int(times.replace(",", "")) for word, times in rows}


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


def test_the_counts_of_a_known_tree_are_exact_and_nothing_is_left_behind(text: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    result = demo(
        str(text), TMPDIR=str(temporary), TASKPOOL_HOST="0.0.0.0", TASKPOOL_PUBLIC_ADDRESS="tasks.example.org"
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert counts(result.stdout) == {"apple": 4, "banana": 3, "cherry": 2, "it's": 2}
    assert "3 text files" in result.stdout
    assert "11 words, 4 different ones" in result.stdout
    assert "4 tasks in " in result.stdout
    assert list(temporary.iterdir()) == []


def test_it_uses_a_taskpool_that_runs_and_says_why_it_cannot(text: Path, tmp_path: Path) -> None:
    up = Up(tmp_path, "--files-root", str(text / "b"))
    try:
        up.await_ready()
        url = f"http://127.0.0.1:{up.port}"

        result, refused = demo(str(text / "b"), "--url", url), demo(str(text), "--url", url)

        assert (result.returncode, counts(result.stdout)["cherry"]) == (0, 2)
        _, merges = up.ask("GET", "/tasks?type=word_merge")
        assert sorted(task["status"] for task in merges["tasks"]) == ["canceled", "done"]
        assert refused.returncode == 1
        assert "a.txt" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        up.kill()


def test_more_files_than_one_batch_are_counted_exactly(tmp_path: Path) -> None:
    expected: Counter[str] = Counter()
    for number in range(1200):
        words = ["even" if number % 2 else "odd", "all"]
        write(tmp_path / "many" / f"{number}.txt", " ".join(words))
        expected.update(words)

    result = demo(str(tmp_path / "many"))

    assert counts(result.stdout) == expected
    assert "1,201 tasks in " in result.stdout


def test_a_directory_without_text_is_one_line(tmp_path: Path) -> None:
    result = demo(str(tmp_path))

    assert (result.returncode, result.stderr) == (2, f"Error: there is no text file below {tmp_path}\n")


def test_ctrl_c_is_quiet_and_ends_all_of_it(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / "many" / f"{number}.txt", "word " * 50_000)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, DEMO, str(tmp_path / "many")],
        env=os.environ | {"TMPDIR": str(temporary)}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(lambda: list(temporary.glob("*/redis.url")))

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, errors) == (130, "")
    assert list(temporary.iterdir()) == []
