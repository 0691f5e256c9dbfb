"""What a worker shows on its own output of what tasks write: marked as theirs, no secret, nothing a terminal obeys."""

from __future__ import annotations

import io
import json
import re

import pytest

from taskpool.text import Secrets
from taskpool.types import RunningTask
from workers.process.output import LONGEST_LINE, MOST_REMEMBERED, Terminal


class Shown:
    """A terminal and what has come out at its stdout."""

    def __init__(self, terminal: Terminal, output: io.StringIO) -> None:
        self.terminal, self._output = terminal, output

    def write(self, text: str, running: RunningTask | None, source: str = "") -> None:
        """Write to stdout."""
        self.terminal.show("stdout", text, running, source=source)

    @property
    def text(self) -> str:
        """What has come out."""
        return self._output.getvalue()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    return Shown(Terminal(), output)


def attempt(id: str, secret: str | None = None) -> RunningTask:
    secrets = None if secret is None else Secrets([(("token",), secret)])
    return RunningTask(
        id=id, attempt_id=id, type="t", queue="q", payload={}, attempt=1, max_attempts=1, timeout_s=None,
        worker="w", result_ttl_s=1, failure_ttl_s=1, started_ms=0, secrets=secrets,
    )  # fmt: skip


def test_lines_are_shown_as_they_end_each_with_whose_it_is(shown: Shown) -> None:
    first, second = attempt("a"), attempt("b")

    shown.write("one\ntwo", first)
    shown.write("other\n", second)
    shown.write(" and more\n\n", first)

    assert shown.text == "[a] one\n[b] other\n[a] two and more\n[a] \n"


BREAKS = (
    *("\r", "\r\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"),
    *("\x1bE", "\x1bD", "\x1b[E", "\x1b[1;1H"),
)


@pytest.mark.parametrize("end", BREAKS)
def test_no_line_of_a_task_looks_like_the_workers(shown: Shown, end: str) -> None:
    shown.write(f"work{end}2026-11-29 12:00:00,000 INFO forged\n", attempt("a"))
    shown.write(f"work{end}2026-11-29 12:00:00,000 INFO forged\n", None)

    assert not [line for line in re.split(r"[\n\r]", shown.text) if line and not line.startswith(("[a] ", "[-] "))]
    assert not [line for line in shown.text.splitlines() if not line.startswith(("[a] ", "[-] "))]


def test_of_what_a_terminal_obeys_only_colours_are_shown(shown: Shown) -> None:
    shown.write("\x1b]52;c;aGk=\x07\x1b[2J\x1b[31mred\b\x9b1A\n", attempt("a"))

    assert shown.text == "[a] \\x1b]52;c;aGk=\\x07\x1b[31mred\\x08\\x9b1A\x1b[0m\n"


def test_in_json_each_line_says_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    shown = Shown(Terminal("json"), output)

    shown.write("it is can", attempt("a", "canary"))
    shown.write('ary\nforged", "task_id": "b\n\x1b[31mred \udc80\u2028\n', attempt("a", "canary"))
    shown.write("nobody's\n", None)

    documents = [json.loads(line) for line in shown.text.splitlines()]
    assert shown.text.isprintable() or "\u2028" not in shown.text
    assert [each["message"] for each in documents] == [
        "it is ***", 'forged", "task_id": "b', "\x1b[31mred ?\u2028", "nobody's",
    ]  # fmt: skip
    about = {"level": "info", "logger": "stdout", "task_id": "a", "type": "t", "queue": "q", "attempt": 1}
    assert [about.items() <= each.items() for each in documents] == [True, True, True, False]
    assert "task_id" not in documents[3]


def test_a_secret_in_two_halves_is_masked(shown: Shown) -> None:
    running = attempt("a", "canary")

    shown.write("it is can", running)
    before = shown.text
    shown.write("ary\nand more", running)

    assert (before, shown.text) == ("", "[a] it is ***\n")


def test_what_comes_in_two_ways_does_not_mix(shown: Shown) -> None:
    running = attempt("a", "canary")

    shown.write("can", running, "stream")
    shown.write("whole\n", running, "descriptor")
    shown.write("ary\n", running, "stream")

    assert shown.text == "[a] whole\n[a] ***\n"


def test_what_has_no_end_is_shown_when_the_task_has_ended(shown: Shown) -> None:
    running, other = attempt("a", "canary"), attempt("b", "other secret")

    shown.write("a canary", running)
    shown.write("still going", other)
    shown.terminal.end(running)

    assert shown.text == "[a] a ***\n"


@pytest.mark.parametrize("secret", ["canary" * 3, None])
def test_a_line_without_an_end_is_not_kept_for_ever_nor_is_a_secret_cut_in_it(shown: Shown, secret: str | None) -> None:
    running = attempt("a", secret)

    for _ in range(LONGEST_LINE):
        shown.write("xx", running)
        if "x" in shown.text:
            break
    shown.write("canary" * 2, running)
    shown.write("x" * LONGEST_LINE, running)
    shown.write("canary" * 2, running)
    shown.write("canary" + "x" * LONGEST_LINE + "\n", running)

    lines = shown.text.splitlines()
    assert len(lines) > 2
    assert all(line.startswith("[a] ") for line in lines)
    assert ("canary" * 3 in shown.text) == (secret is None)
    assert "***" in shown.text or secret is None


def test_of_a_bar_of_progress_only_the_last_state_is_shown(shown: Shown) -> None:
    for percent in range(0, 101, 10):
        shown.write(f"\r{percent} %", attempt("a"))
    shown.write("\r\n", attempt("a"))

    assert shown.text == "[a] 100 %\n"


def test_lines_of_no_task_show_no_secret_of_running_or_ended_tasks(shown: Shown) -> None:
    running, former = attempt("a", "canary"), attempt("b", "a former one")
    for each in (running, former):
        shown.terminal.begin(each)
    shown.terminal.end(former)

    shown.write("can", None)
    shown.write("ary, a former one, no secret\n", None)

    assert shown.text == "[-] ***, ***, no secret\n"


def test_only_so_many_are_remembered(shown: Shown) -> None:
    for number in range(MOST_REMEMBERED + 1):
        running = attempt(str(number), f"secret {number:04}")
        shown.terminal.begin(running)
        shown.terminal.end(running)

    shown.write("secret 0000, secret 0001\n", None)

    assert shown.text == "[-] secret 0000, ***\n"


def test_an_output_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr("sys.stdout", gone)

    Terminal().show("stdout", "lost\n", attempt("a"))
