"""How the commands print: tables and records for people, JSON for programs.

On a terminal rich draws; in a pipe the same cells come as plain aligned columns, never cut, `-` for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.types import TaskStatus

if TYPE_CHECKING:
    from rich.console import Console

STATUS_STYLES: Final[Mapping[str, str]] = {
    TaskStatus.DONE: "green",
    TaskStatus.FAILED: "bold red",
    TaskStatus.STOPPED: "yellow",
    TaskStatus.CANCELED: "yellow",
    TaskStatus.STOPPING: "yellow",
    TaskStatus.IN_PROGRESS: "cyan",
}


def console(*, stderr: bool = False) -> Console:
    """A rich console that takes no text for markup and colours nothing by guessing."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, nothing: str) -> None:
    """A table; a column whose name starts with `>` is aligned to the right. `nothing` is said when it has no rows."""
    cells = [[cell or "-" for cell in row] for row in rows]
    if not cells:
        click.echo(nothing, err=True)
        return
    names = [column.removeprefix(">").upper() for column in columns]
    right = [column.startswith(">") for column in columns]
    out = console()
    if out.is_terminal:
        _print_rich(out, names, right, cells)
    else:
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        for row in [names, *cells]:
            aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
            click.echo("  ".join(aligned).rstrip())


def print_fields(fields: Mapping[str, str]) -> None:
    """Names and values, one a line; a value of several lines goes on below the first, indented."""
    from rich.text import Text

    width = max(map(len, fields), default=0) + 2
    out = console()
    for name, value in fields.items():
        text = value.replace("\n", "\n" + " " * width)
        if out.is_terminal:
            style = STATUS_STYLES.get(value, "") if name == "status" else ""
            out.print(Text.assemble((name.ljust(width), "dim"), (text, style)), soft_wrap=True)
        else:
            click.echo(name.ljust(width) + text)


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
    return json.dumps(value, ensure_ascii=False)


def _print_rich(out: Console, names: Sequence[str], right: Sequence[bool], cells: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    last = len(names) - 1
    for index, (name, is_right) in enumerate(zip(names, right, strict=True)):
        # Only the last column gives way where the terminal is narrow: an id that is cut is of no use.
        table.add_column(
            name,
            justify="right" if is_right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if index == last else max(len(r[index]) for r in cells),
        )
    for row in cells:
        table.add_row(*(Text(cell, style=STATUS_STYLES.get(cell, "")) for cell in row))
    out.print(table)
