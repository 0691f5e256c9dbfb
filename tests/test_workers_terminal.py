"""What a worker shows on its own output of what tasks write: no secret, neither in halves nor too late."""

from __future__ import annotations

import io

import pytest

from taskpool.secret import Secrets
from taskpool.types import RunningTask
from workers.terminal import LONGEST_LINE, MOST_REMEMBERED, Terminal


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


def test_of_a_task_without_secrets_everything_is_shown_at_once(shown: Shown) -> None:
    shown.write("no end", attempt("a"))

    assert shown.text == "no end"


def test_a_secret_in_two_halves_is_masked(shown: Shown) -> None:
    running = attempt("a", "canary")

    shown.write("it is can", running)
    before = shown.text
    shown.write("ary\nand more", running)

    assert (before, shown.text) == ("", "it is ***\n")


def test_what_comes_in_two_ways_does_not_mix(shown: Shown) -> None:
    running = attempt("a", "canary")

    shown.write("can", running, "stream")
    shown.write("whole\n", running, "descriptor")
    shown.write("ary\n", running, "stream")

    assert shown.text == "whole\n***\n"


def test_what_has_no_end_is_shown_when_the_task_has_ended(shown: Shown) -> None:
    running, other = attempt("a", "canary"), attempt("b", "other secret")

    shown.write("a canary", running)
    shown.write("still going", other)
    shown.terminal.end(running)

    assert shown.text == "a ***\n"


def test_a_line_without_an_end_is_not_kept_for_ever(shown: Shown) -> None:
    shown.write("x" * (LONGEST_LINE + 1), attempt("a", "canary"))

    assert shown.text == "x" * (LONGEST_LINE + 1) + "\n"


def test_what_belongs_to_nobody_shows_no_secret_of_those_who_run_or_ran(shown: Shown) -> None:
    running, former = attempt("a", "canary"), attempt("b", "a former one")
    for each in (running, former):
        shown.terminal.begin(each)
    shown.terminal.end(former)

    shown.write("canary, a former one, no secret\n", None)

    assert shown.text == "***, ***, no secret\n"


def test_only_so_many_are_remembered(shown: Shown) -> None:
    for number in range(MOST_REMEMBERED + 1):
        running = attempt(str(number), f"secret {number:04}")
        shown.terminal.begin(running)
        shown.terminal.end(running)

    shown.write("secret 0000, secret 0001\n", None)

    assert shown.text == "secret 0000, ***\n"


def test_an_output_that_is_gone_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr("sys.stdout", gone)

    Terminal().show("stdout", "lost\n", attempt("a"))
