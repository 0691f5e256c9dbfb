"""`taskpool stats`: what happened, and since when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast, get_args

import click

from taskpool.cli.output import age, print_json, print_table, say
from taskpool.cli.service import service_command
from taskpool.operations.documents import StatsDocument
from taskpool.text import printable
from taskpool.types.insight import StatsBy, StatsRange, StatsSeries

if TYPE_CHECKING:
    from taskpool.cli.service import Service

EPILOG: Final = """\b
Examples:
  taskpool stats                      the last hour, by task type
  taskpool stats --range 7d --by build
  taskpool stats --range 24h --queue images --json

The durations are those of all attempts that ended in the range.
"""

BARS: Final = "▁▂▃▄▅▆▇█"
WIDTH: Final = 30
COLUMNS: Final = (
    ">submitted", ">done", ">failed", ">retried", ">crashed", ">canceled", ">waits p95", ">runs p50", ">runs p95",
)  # fmt: skip


@service_command(epilog=EPILOG, json="Print JSON.")
@click.option("--range", "range_", type=click.Choice(get_args(StatsRange)), default="1h", show_default=True)
@click.option("--type", "type_", metavar="NAME", help="Only this task type.")
@click.option("--queue", metavar="NAME", help="Only this queue.")
@click.option("--by", type=click.Choice(get_args(StatsBy)), help="What the rows are.  [default: type]")
def stats(
    service: Service, range_: str, type_: str | None, queue: str | None, by: str | None, *, as_json: bool
) -> None:
    """Show counts and durations over time, by type, queue or build."""
    over, of = cast(StatsRange, range_), cast("StatsBy | None", by)
    if as_json:
        print_json(StatsDocument.of(service.stats(over, type=type_, queue=queue, by=of)))
        return
    whole = service.stats(over, type=type_, queue=queue)
    parts = service.stats(over, type=type_, queue=queue, by=of or "type")
    named = [(_name(series, of or "type"), series) for series in parts.series]
    rows = [_row(name, series) for name, series in [*named, ("all", whole.series[0])]]
    print_table((of or "type", *COLUMNS, f"done per {age(whole.step_s * _grouped(whole.points))}"), rows, nothing="")
    for build in whole.builds:
        say(f"Build {printable(build.build)} since {build.since:%Y-%m-%d %H:%M} UTC")


def _name(series: StatsSeries, by: StatsBy) -> str:
    return {"type": series.type, "queue": series.queue, "build": series.build}[by] or "(none)"


def _row(name: str, series: StatsSeries) -> tuple[str, ...]:
    counts = (series.submitted, series.done, series.failed, series.retried, series.crashed, series.canceled)
    found = series.durations
    times = (found.wait_p95_ms, found.run_p50_ms, found.run_p95_ms)
    return name, *(f"{sum(each):,}" for each in counts), *map(_duration, times), sparkline(series.done)


def _duration(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.3g} ms" if ms < 1000 else age(ms / 1000)


def _grouped(points: int) -> int:
    return max(-(-points // WIDTH), 1)


def sparkline(values: Sequence[int]) -> str:
    """Numbers as a row of bars, at most WIDTH of them, each for as many values."""
    sums = [sum(values[at : at + _grouped(len(values))]) for at in range(0, len(values), _grouped(len(values)))]
    most = max(sums, default=0)
    return "".join(BARS[-(-n * (len(BARS) - 1) // most) if most else 0] for n in sums)
