"""How the commands print: tables and records for people, JSON for programs.

In a pipe there are no colours, and no line is cut. `-` stands for nothing, so that columns can be counted.

Progress bars on a terminal.

What the command's exit status says, and how an error becomes one line on stderr.

A status tells a script how the task ended, without parsing anything. No command prints a traceback.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from taskpool.errors import InvalidTask, TaskpoolError, Unauthorized
from taskpool.text import coloured, indented, json_text, printable, printable_lines
from taskpool.types import STATUSES, Exit, TaskStatus

if TYPE_CHECKING:
    from rich.console import Console

    from taskpool.types import TaskRecord


STATUS_COLOURS: Final[Mapping[str, str | None]] = {status: facts.colour for status, facts in STATUSES.items()}


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text. All that the commands print comes through here, and much of it comes from tasks and from Redis: of
    what a terminal takes for orders, only colours pass."""
    click.echo("\n".join(map(coloured, text.split("\n"))), err=err, nl=nl)


def console(*, stderr: bool = False) -> Console:
    """A rich console that takes no text for markup and colours nothing by guessing."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    say(json_text(json.dumps(msgspec.to_builtins(document), indent=2, ensure_ascii=False)))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, nothing: str) -> None:
    """A table; a column whose name starts with `>` is aligned to the right. `nothing` is said when it has no rows."""
    cells = [[printable(cell) or "-" for cell in row] for row in rows]
    if not cells:
        say(nothing, err=True)
        return
    names = [column.removeprefix(">").upper() for column in columns]
    right = [column.startswith(">") for column in columns]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for number, row in enumerate([names, *cells]):
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        line = _fitted("  ".join(aligned).rstrip())
        say(click.style(line, bold=True) if number == 0 else line)


def print_fields(fields: Mapping[str, str]) -> None:
    """Names and values, one a line; a value of several lines goes on below the first, indented."""
    width = max(map(len, fields), default=0) + 2
    for name, value in fields.items():
        text = indented(printable_lines(value), " " * width)
        colour = STATUS_COLOURS.get(value) if name == "status" else None
        say(click.style(name.ljust(width), dim=True) + click.style(text, fg=colour))


def command_name(name: str = "taskpool", *, module: str = "taskpool.cli") -> str:
    """How to call a command of this environment in a shell: by its name, by its path where the name isn't found or
    means another environment's, or as the module it is."""
    script, found = Path(sys.executable).with_name(name), shutil.which(name)
    if script.exists() and (found is None or not script.samefile(found)):
        return shlex.quote(min(os.path.relpath(script), str(script), key=len))
    return name if found else f"{shlex.quote(sys.executable)} -m {module}"


def age(seconds: float | None) -> str:
    """A span of time as people say it: `4 s`, `12 min`, `3 h`, `2 d`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def moment(at: datetime | None) -> str:
    """A time in UTC, and how long ago it was or how far ahead it is."""
    if at is None:
        return ""
    away_s = (datetime.now(UTC) - at).total_seconds()
    near = f"{age(away_s)} ago" if away_s >= 0 else f"in {age(-away_s)}"
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({near})"


def short_json(value: Any) -> str:
    """A JSON value on one line."""
    return json_text(json.dumps(value, ensure_ascii=False))


def _fitted(line: str) -> str:
    """The line, cut at the terminal's edge; whole where there is none."""
    if not sys.stdout.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return line if len(line) <= width else line[: width - 1] + "…"


class TaskBar:
    """One task's status, bar and note; a context manager whose value shows a record."""

    def __init__(self, out: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=out,
        )
        self._row = self._progress.add_task("", total=None, note="")

    def __enter__(self) -> Callable[[TaskRecord], None]:
        self._progress.start()
        return self.show

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, record: TaskRecord) -> None:
        """Draw what the record says; a task that is done fills the bar."""
        progress = record.progress or {}
        done, total = progress.get("done", 0), progress.get("total")
        if record.status.is_terminal:
            done, total = (1, 1) if record.status == "done" else (done, total or 1)
        self._progress.update(
            self._row,
            description=printable(f"{record.type} {record.status.value}"),
            completed=done,
            total=total,
            note=printable(str(progress.get("note") or "")),
        )


class CountBars:
    """How many files have been submitted and how many are counted; a context manager."""

    def __init__(self, out: Console, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=out,
            disable=not out.is_terminal,
        )
        self._submitted = self._progress.add_task("submitted", total=total)
        self._counted = self._progress.add_task("counted", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, submitted: int, counted: int) -> None:
        """Draw these numbers."""
        self._progress.update(self._submitted, completed=submitted)
        self._progress.update(self._counted, completed=counted)


HELP: Final = "\b\nExit status:\n" + "".join(f"  {each.value}  {each.meaning}\n" for each in Exit if each.meaning)


class Failure(Exception):
    """Raised to leave the command with one line on stderr and an exit status."""

    def __init__(self, message: str, status: Exit) -> None:
        super().__init__(message)
        self.status = status


def exit_of(status: TaskStatus) -> Exit:
    """The exit status for a task: `Exit.DONE` unless it ended badly."""
    return STATUSES[status].exit_status if status in STATUSES else Exit.DONE


def failure_of(error: TaskpoolError) -> Failure:
    """The line and the exit status of an error of the library."""
    return Failure(_text(error), error.exit_status)


def _text(error: TaskpoolError) -> str:
    if isinstance(error, Unauthorized):
        return f"{error}; the command takes it as --api-key, or from TASKPOOL_API_KEY"
    if not isinstance(error, InvalidTask):
        return str(error)
    faults = [f"{fault.pointer}: {fault.detail}" for fault in error.errors if fault.detail not in str(error)]
    return "; ".join([str(error), *faults])
