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
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from taskpool.operations.documents import TaskDocument
from taskpool.text import coloured, indented, json_text, printable, printable_lines
from taskpool.types import STATUSES, Exit, Pause, TaskRecord, TaskStatus

STATUS_COLOURS: Final[Mapping[str, str | None]] = {status: facts.colour for status, facts in STATUSES.items()}


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text. The commands print everything with this function, because text from tasks and from Redis may contain
    control sequences. Of those, only colours pass."""
    click.echo("\n".join(map(coloured, text.split("\n"))), err=err, nl=nl)


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


def size(bytes: float | None) -> str:
    """A number of bytes for people: `992 B`, `16 KiB`, `300 MiB`; empty for None."""
    if bytes is None:
        return ""
    for unit in ("B", "KiB", "MiB"):
        if bytes < 1000:
            return f"{bytes:,.0f} {unit}"
        bytes /= 1024
    return f"{bytes:,.1f} GiB"


def per_time(per_s: float) -> str:
    """A rate for people: `12 per second`, `0.4 per minute`."""
    return f"{per_s:,.3g} per second" if per_s == 0 or per_s >= 0.1 else f"{60 * per_s:,.2g} per minute"


def moment(at: datetime | None, zone: tzinfo = UTC) -> str:
    """A time, and its distance from now."""
    if at is None:
        return ""
    away_s = (datetime.now(UTC) - at).total_seconds()
    near = f"{age(away_s)} ago" if away_s >= 0 else f"in {age(-away_s)}"
    return f"{at.astimezone(zone):%Y-%m-%d %H:%M:%S %Z} ({near})"


def who_paused(pause: Pause) -> str:
    """Who paused something, and why."""
    by = "by a program" if pause.by is None else f"by {pause.by}"
    return by if pause.why is None else f"{by}: {pause.why}"


def short_json(value: Any) -> str:
    """A JSON value on one line."""
    return json_text(json.dumps(value, ensure_ascii=False))


def _fitted(line: str) -> str:
    """The line, cut at the edge of the terminal if there is one."""
    if not sys.stdout.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return line if len(line) <= width else line[: width - 1] + "…"


def exit_of(status: TaskStatus) -> Exit:
    """The exit status for a task: `Exit.DONE` unless it ended badly."""
    return STATUSES[status].exit_status if status in STATUSES else Exit.DONE


def print_move(record: TaskRecord, *, as_json: bool) -> None:
    """Print what became of a task."""
    if as_json:
        print_json(TaskDocument.of(record))
    else:
        say(record.status.value)
