"""One process of an instance: its output, its end, and what happens when its starter dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taskpool.cli import instance
from taskpool.cli.instance import LONGEST_LINE, Instance, Part
from taskpool.redis.embedded import Watcher
from taskpool.settings import Settings
from tests.support import eventually, is_running


def start(code: str, lines: list[tuple[str, str]]) -> Part:
    return Part("part", [sys.executable, "-c", code], os.environ, lambda name, line: lines.append((name, line)))


def end_of(part: Part) -> int:
    eventually(lambda: part.ended() is not None)
    return part.ended() or 0


@pytest.fixture
def lines() -> list[tuple[str, str]]:
    """What the part prints, with its name."""
    return []


def test_its_output_comes_line_by_line_with_its_name(lines: list[tuple[str, str]]) -> None:
    part = start("import sys; print('one'); sys.stderr.write('two\\n'); print('no newline', end='')", lines)

    assert end_of(part) == 0
    assert sorted(lines) == [("part", "no newline"), ("part", "one"), ("part", "two")]


def test_a_line_without_end_is_cut_and_bytes_that_are_no_text_are_shown(lines: list[tuple[str, str]]) -> None:
    part = start(f"import sys; sys.stdout.buffer.write(b'x' * {3 * LONGEST_LINE} + b'\\xff')", lines)
    end_of(part)

    assert "".join(line for _, line in lines) == "x" * 3 * LONGEST_LINE + "�"


def test_its_end_is_noticed_though_a_grandchild_holds_its_output(lines: list[tuple[str, str]]) -> None:
    part = start("import subprocess; print(subprocess.Popen(['sleep', '60']).pid)", lines)
    try:
        assert end_of(part) == 0
    finally:
        os.kill(int(lines[0][1]), signal.SIGKILL)


def stop(part: Part, limit_s: float) -> None:
    """Stop it as an instance does, which gives workers 10 s more than its settings say."""
    instance = Instance(Settings(grace_s=limit_s - 10), part._tell)
    part.name = "workers"
    instance._parts.append(part)
    instance.stop()


def test_stopping_asks_first(lines: list[tuple[str, str]]) -> None:
    code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('up')\nsignal.pause()"
    part = start(code, lines)
    eventually(lambda: lines)

    stop(part, 30)

    assert part.ended() == 7


def test_stopping_kills_the_whole_group_of_one_that_does_not_listen(lines: list[tuple[str, str]]) -> None:
    code = (
        "import signal, subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(subprocess.Popen(['sleep', '60']).pid)\nsignal.pause()"
    )
    part = start(code, lines)
    eventually(lambda: lines)

    stop(part, 0.05)

    assert part.ended() == -signal.SIGKILL
    assert lines[-1] == ("workers", "killed: it didn't end in time")
    eventually(lambda: not is_running(int(lines[0][1])))


def test_signals_to_one_that_ended_do_nothing(lines: list[tuple[str, str]]) -> None:
    part = start("pass", lines)
    end_of(part)

    part.kill()
    stop(part, 10)

    assert lines == []


def test_the_watched_end_with_the_watcher(tmp_path: Path) -> None:
    code = (
        "import subprocess, time\nfrom taskpool.redis.embedded import Watcher\n"
        "watcher = Watcher()\nchild = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "watcher.add(child.pid)\nprint(child.pid, flush=True)\ntime.sleep(60)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    child = int(launcher.stdout.readline())

    launcher.kill()
    launcher.wait()
    launcher.stdout.close()

    eventually(lambda: not is_running(child))


def test_a_closed_watcher_leaves_its_processes_alone() -> None:
    child = subprocess.Popen(["sleep", "60"])
    watcher = Watcher()
    watcher.add(child.pid)

    watcher.close()

    assert child.poll() is None
    child.kill()
    child.wait()


def test_an_error_at_its_start_is_left_for_the_starting_process(lines: list[tuple[str, str]]) -> None:
    part = start("print('one'); print('taskpool: wrong'); print('more of it'); raise SystemExit(2)", lines)

    assert end_of(part) == 2
    assert lines == [("part", "one")]
    assert part.fault == ["wrong", "more of it"]


def test_what_only_looks_like_it_is_passed_on(lines: list[tuple[str, str]]) -> None:
    part = start("print('part: one'); print('two')", lines)
    end_of(part)

    assert lines == [("part", "part: one"), ("part", "two")]
    assert part.fault == []


def test_nothing_is_held_for_long(lines: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskpool.cli.instance.HOLD_S", 0.05)

    part = start("import time; print('taskpool: one', flush=True); time.sleep(600)", lines)
    eventually(lambda: lines)

    assert lines == [("part", "taskpool: one")]
    part.kill()


def test_many_such_lines_hold_the_output_up_only_for_a_moment(
    lines: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "HOLD_S", 0.1)
    part = start("print('part: one\\n' * 100 + 'two', flush=True); import time; time.sleep(60)", lines)
    try:
        eventually(lambda: ("part", "two") in lines, 5)  # 10 s if each waited as long as the first
    finally:
        part.kill()

    assert lines == [("part", "part: one")] * 100 + [("part", "two")]
