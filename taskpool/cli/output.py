"""What the commands print, and their exit statuses.

People get tables, records and progress bars; programs get JSON. In a pipe there are no colours, and no line is cut. An
empty cell of a table is `-`, so that columns can be counted. An error becomes one line on stderr, never a traceback.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from taskpool.errors import FieldErrors, TaskpoolError, Unauthorized
from taskpool.text import coloured, indented, json_text, printable, printable_lines
from taskpool.types import STATUSES, Exit, TaskStatus

if TYPE_CHECKING:  # rich is imported by the few commands that draw: it takes a tenth of a second
    from rich.console import Console
    from rich.progress import TextColumn

    from taskpool.types import TaskRecord

STATUS_COLOURS: Final[Mapping[str, str | None]] = {status: facts.colour for status, facts in STATUSES.items()}


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text. The commands print everything with this function, because text from tasks and from Redis may contain
    control sequences. Of those, only colours pass."""
    click.echo("\n".join(map(coloured, text.split("\n"))), err=err, nl=nl)


def console(*, stderr: bool = False) -> Console:
    """A rich console without markup, emoji and highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_json(document: Any) -> None:
    """Print one JSON document."""
    say(json_text(json.dumps(msgspec.to_builtins(document), indent=2, ensure_ascii=False)))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, nothing: str) -> None:
    """Print a table, or `nothing` on stderr if it has no rows. A name that starts with `>` aligns its column right."""
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
    """Print names and values, one per line. Further lines of a value are indented."""
    width = max(map(len, fields), default=0) + 2
    for name, value in fields.items():
        text = indented(printable_lines(value), " " * width)
        colour = STATUS_COLOURS.get(value) if name == "status" else None
        say(click.style(name.ljust(width), dim=True) + click.style(text, fg=colour))


def command_name(name: str = "taskpool", *, module: str = "taskpool.cli") -> str:
    """How to call a command of this environment in a shell: by its name, by its path if the name isn't found or belongs
    to another environment, or else as a module."""
    script, found = Path(sys.executable).with_name(name), shutil.which(name)
    if script.exists() and (found is None or not script.samefile(found)):
        return shlex.quote(min(os.path.relpath(script), str(script), key=len))
    return name if found else f"{shlex.quote(sys.executable)} -m {module}"


def age(seconds: float | None) -> str:
    """A duration for people: `4 s`, `12 min`, `3 h`, `2 d`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def moment(at: datetime | None) -> str:
    """A time in UTC, and its distance from now."""
    if at is None:
        return ""
    away_s = (datetime.now(UTC) - at).total_seconds()
    near = f"{age(away_s)} ago" if away_s >= 0 else f"in {age(-away_s)}"
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({near})"


def short_json(value: Any) -> str:
    """A JSON value on one line."""
    return json_text(json.dumps(value, ensure_ascii=False))


def _fitted(line: str) -> str:
    """The line, cut at the edge of the terminal if there is one."""
    if not sys.stdout.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return line if len(line) <= width else line[: width - 1] + "…"


@contextmanager
def task_bar(out: Console) -> Iterator[Callable[[TaskRecord], None]]:
    """A progress bar with the status and the note of one task. The value is a function that shows a record."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    note = TextColumn("{task.fields[note]}", markup=False, style="dim")
    columns = (_described(), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), note)
    with Progress(*columns, console=out) as progress:
        row = progress.add_task("", total=None, note="")

        def show(record: TaskRecord) -> None:
            reported = record.progress or {}
            done, total = reported.get("done", 0), reported.get("total")
            if record.status.is_terminal:  # a task that is done fills the bar
                done, total = (1, 1) if record.status is TaskStatus.DONE else (done, total or 1)
            progress.update(
                row,
                description=printable(f"{record.type} {record.status.value}"),
                completed=done,
                total=total,
                note=printable(str(reported.get("note") or "")),
            )

        yield show


@contextmanager
def count_bars(out: Console, total: int) -> Iterator[Callable[[int, int], None]]:
    """Progress bars for the files that are submitted and counted. The value is a function that shows both numbers."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (_described(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal) as progress:
        rows = [progress.add_task(name, total=total) for name in ("submitted", "counted")]

        def show(submitted: int, counted: int) -> None:
            for row, completed in zip(rows, (submitted, counted), strict=True):
                progress.update(row, completed=completed)

        yield show


def _described() -> TextColumn:
    from rich.progress import TextColumn

    return TextColumn("{task.description}", markup=False)


HELP: Final = "\b\nExit status:\n" + "".join(f"  {each.value}  {each.meaning}\n" for each in Exit if each.meaning)


class Failure(Exception):
    """Raised to end the command with one line on stderr and an exit status."""

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
    if not isinstance(error, FieldErrors):
        return str(error)
    faults = [f"{fault.pointer}: {fault.detail}" for fault in error.errors if fault.detail not in str(error)]
    return "; ".join([str(error), *faults])
