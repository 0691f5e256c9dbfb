"""How the commands print: tables and records for people, JSON for programs.

In a pipe there are no colours, and no line is cut. `-` stands for nothing, so that columns can be counted.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from taskpool.printable import coloured, indented, json_text, printable, printable_lines
from taskpool.types import TaskStatus

if TYPE_CHECKING:
    from rich.console import Console

STATUS_COLOURS: Final[Mapping[str, str]] = {
    TaskStatus.DONE: "green",
    TaskStatus.FAILED: "red",
    TaskStatus.STOPPED: "yellow",
    TaskStatus.CANCELED: "yellow",
    TaskStatus.STOPPING: "yellow",
    TaskStatus.IN_PROGRESS: "cyan",
}


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
