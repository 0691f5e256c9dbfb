"""One process of an instance: its output, its end, and what happens when its starter dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taskpool.cli.instance import LONGEST_LINE, TAIL_LINES, Part
from taskpool.redis.embedded import Watcher
from tests.support import eventually, is_running


async def start(code: str, lines: list[tuple[str, str]] | None = None) -> Part:
    part = Part("part", lambda name, line: (lines if lines is not None else []).append((name, line)))
    await part.start([sys.executable, "-c", code], os.environ)
    return part


async def test_its_output_comes_line_by_line_with_its_name() -> None:
    lines: list[tuple[str, str]] = []

    part = await start("import sys; print('one'); sys.stderr.write('two\\n'); print('no newline', end='')", lines)
    status = await part.ended()

    assert status == 0
    assert sorted(lines) == [("part", "no newline"), ("part", "one"), ("part", "two")]


async def test_a_line_without_end_is_cut_and_bytes_that_are_no_text_are_shown() -> None:
    lines: list[tuple[str, str]] = []

    part = await start(f"import sys; sys.stdout.buffer.write(b'x' * {3 * LONGEST_LINE} + b'\\xff')", lines)
    await part.ended()

    assert "".join(line for _, line in lines) == "x" * 3 * LONGEST_LINE + "�"


async def test_it_keeps_its_last_lines() -> None:
    part = await start("for n in range(100): print(n)")
    await part.ended()

    assert list(part.tail) == [str(n) for n in range(100 - TAIL_LINES, 100)]


async def test_its_end_is_told_though_a_grandchild_holds_its_output() -> None:
    part = await start("import subprocess; print(subprocess.Popen(['sleep', '60']).pid)")
    try:
        assert await part.ended() == 0
    finally:
        os.kill(int(part.tail[0]), signal.SIGKILL)


async def test_stopping_asks_first() -> None:
    code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('up')\nsignal.pause()"
    lines: list[tuple[str, str]] = []
    part = await start(code, lines)
    await wait_for(lines)

    assert await part.stop(limit_s=30)
    assert await part.ended() == 7


async def test_stopping_kills_the_whole_group_of_one_that_does_not_listen() -> None:
    code = (
        "import signal, subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(subprocess.Popen(['sleep', '60']).pid)\nsignal.pause()"
    )
    lines: list[tuple[str, str]] = []
    part = await start(code, lines)
    await wait_for(lines)

    assert not await part.stop(limit_s=0.05)
    assert await part.ended() == -signal.SIGKILL
    grandchild = int(lines[0][1])
    eventually(lambda: not is_running(grandchild))


async def test_signals_to_one_that_ended_do_nothing() -> None:
    part = await start("pass")
    await part.ended()

    part.send(signal.SIGTERM)
    part.kill()

    assert await part.stop(limit_s=1)


async def wait_for(lines: list[tuple[str, str]]) -> None:
    while not lines:
        await asyncio.sleep(0.01)


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


async def test_why_it_can_not_start_is_left_to_whoever_started_it() -> None:
    lines: list[tuple[str, str]] = []

    part = await start("print('one'); print('taskpool: wrong'); print('more of it'); raise SystemExit(2)", lines)
    await part.ended()

    assert lines == [("part", "one")]
    assert list(part.tail) == ["one", "taskpool: wrong", "more of it"]


async def test_what_only_looks_like_it_is_passed_on() -> None:
    lines: list[tuple[str, str]] = []

    part = await start("print('part: one'); print('two')", lines)
    await part.ended()

    assert lines == [("part", "part: one"), ("part", "two")]


async def test_nothing_is_held_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskpool.cli.instance.HOLD_S", 0.05)
    lines: list[tuple[str, str]] = []

    part = await start("import time; print('taskpool: one', flush=True); time.sleep(600)", lines)
    await wait_for(lines)

    assert lines == [("part", "taskpool: one")]
    await part.stop(10)
