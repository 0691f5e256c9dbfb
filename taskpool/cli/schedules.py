"""`taskpool schedule`: make, list, preview, pause, resume, run and remove schedules."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import click

from taskpool.cli.options import Flags, read_json, read_pairs
from taskpool.cli.output import moment, print_fields, print_json, print_table, say, short_json
from taskpool.cli.service import open_service, service_command
from taskpool.operations.documents import ScheduleDocument
from taskpool.operations.flow.schedule_values import NOT_IN_A_SCHEDULE, ScheduleRecord, ScheduleStatus
from taskpool.tasks.schedule import Timing, clock_changes, preview, times_of, timing_faults, zone_fault
from taskpool.types import OPTIONS, TaskSpec, utc
from taskpool.validation import declared

if TYPE_CHECKING:
    from taskpool.cli.service import Service

SCHEDULE_EPILOG = """\b
Examples:
  taskpool schedule add nightly long_task --cron '0 2 * * *' --tz Europe/Berlin
  taskpool schedule add often echo message=hi --every 30s --overlap skip
  taskpool schedule show nightly
  taskpool schedule next nightly
  taskpool schedule history nightly
"""

ADD_EPILOG = """\b
Examples:
  taskpool schedule add nightly long_task duration_s=20 --cron '0 2 * * *' --tz Europe/Berlin
  taskpool schedule add often echo message=hi --every 90s --jitter 10s
  taskpool schedule add once echo message=hi --at 2026-12-24T18:00:00Z

A schedule of that name is replaced. Give one of --cron, --every and --at. A cron
expression has five fields: minute, hour, day of the month, month, day of the week.
"""

NEXT_EPILOG = """\b
Examples:
  taskpool schedule next nightly
  taskpool schedule next --cron '0 2 * * *' --tz Europe/Berlin

With --cron, --every or --at it shows when such a schedule would run, without a service.
Times are those of the schedule's time zone.
"""

TIMING: Final = declared(Timing)
UNDECLARED: Final = ScheduleStatus.UNDECLARED
OF_TASK: Final = [each for each in OPTIONS if each.name not in NOT_IN_A_SCHEDULE]


@click.group(epilog=SCHEDULE_EPILOG)
def schedule() -> None:
    """Make, list, show, preview, pause, run and remove schedules."""


@service_command(short_help="Make or replace a schedule.", epilog=ADD_EPILOG, options=[*TIMING, *OF_TASK])
@click.argument("name")
@click.argument("type")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--json",
    "whole",
    type=read_json,
    metavar="FILE|-|TEXT",
    help="The payload as JSON; KEY=VALUE pairs are put on top.",
)
def add(service: Service, name: str, type: str, pairs: tuple[str, ...], whole: Any, **options: Any) -> None:
    """Make or replace the schedule NAME, which submits tasks of TYPE; prints its next run."""
    payload = {} if whole is None else whole
    if pairs:
        if not isinstance(payload, dict):
            raise click.UsageError("KEY=VALUE pairs can only be put on top of a JSON object")
        schema = next((info.schema for info in service.types() if info.name == type), None)
        payload |= read_pairs(pairs, schema)
    timing = _timing({each.name: options.pop(each.name) for each in TIMING if each.name in options})
    record = service.set_schedule(name, times_of(timing), TaskSpec(type=type, payload=payload, **options))
    say(_next_of(record))


@service_command("list", json="Print JSON.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="How many.")
def list_(service: Service, limit: int, as_json: bool) -> None:
    """List the schedules by name."""
    found: list[ScheduleRecord] = []
    cursor: str | None = None
    while len(found) < limit:
        page = service.list_schedules(cursor=cursor, limit=min(limit - len(found), 500))
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    if as_json:
        print_json({"schedules": [ScheduleDocument.of(each) for each in found]})
        return
    rows = [
        (_shown_name(each), each.status.value, moment(each.next_at), each.words, str(each.task["type"]),
         moment(each.last_at))
        for each in found
    ]  # fmt: skip
    print_table(("name", "status", "next", "when", "type", "last"), rows, nothing="there is no schedule")
    if cursor is not None:
        say(f"These are the first {len(found)}; --limit shows more.", err=True)


@contextmanager
def _open_later(flags: Flags) -> Iterator[Callable[[], Service]]:
    """A function that opens the service of these flags."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(open_service(flags))


@service_command(
    "next",
    short_help="Show when a schedule runs next.",
    epilog=NEXT_EPILOG,
    json="Print the schedule as JSON, as the API gives it.",
    opens=_open_later,
    options=[each for each in TIMING if each.name in ("cron", "tz", "every", "anchor", "at")],
)
@click.argument("name", required=False)
def next_(opened: Callable[[], Service], name: str | None, as_json: bool, **options: Any) -> None:
    """Show when the schedule NAME runs: in words, the next ten runs, and what happens when the clock changes."""
    if (name is None) == (not options):
        raise click.UsageError("give either the name of a schedule, or one of --cron, --every and --at")
    if name is None:
        timing, now_ms = _timing(options), round(time.time() * 1000)
        _show_runs(times_of(timing).words(), timing, map(utc, preview(timing, now_ms)), clock_changes(timing, now_ms))
        return
    record = opened().get_schedule(name)
    if as_json:
        print_json(ScheduleDocument.of(record))
        return
    _show_runs(f"{record.words}; {record.status.value}", record, record.next_runs, record.clock_changes)
    if record.declared_at is not None:
        rest = "; no live worker pool declares it, so it doesn't run" if record.status is UNDECLARED else ""
        say(f"Declared at {record.declared_at}{rest}")


def _show_runs(words: str, timing: Timing, runs: Iterable[datetime], notes: Iterable[str]) -> None:
    say(words)
    for each in runs:
        say(f"  {moment(each, _zone_of(timing))}")
    for note in notes:
        say(note)


def _timing(given: Mapping[str, Any]) -> Timing:
    """What the flags say. Raises: click.UsageError, which names the flag."""
    timing = Timing(**given)
    for fault in timing_faults(timing):
        flags = {f"/{each.name}": f"{each.flag}: " for each in TIMING}
        raise click.UsageError(flags.get(fault.pointer, "") + fault.detail)
    return timing


@service_command(short_help="Show what became of a schedule's last runs.", json="Print JSON.")
@click.argument("name")
def history(service: Service, name: str, as_json: bool) -> None:
    """Show what became of the last 100 runs of the schedule NAME, the newest first."""
    record = service.get_schedule(name)
    if as_json:
        print_json({"history": ScheduleDocument.of(record).history})
        return
    rows = [
        (f"{run.occurrence:%Y-%m-%d %H:%M:%S} UTC", run.outcome, run.task or "",
         run.reason or ("" if run.until is None else f"until {moment(run.until)}"), moment(run.at))
        for run in record.history
    ]  # fmt: skip
    print_table(("run of", "outcome", "task", "why", "at"), rows, nothing="it hasn't run yet")


@service_command(short_help="Show a schedule.", json="Print the schedule as JSON, as the API gives it.")
@click.argument("name")
def show(service: Service, name: str, as_json: bool) -> None:
    """Show the schedule NAME: when it runs, what it submits, and what became of its last run."""
    record = service.get_schedule(name)
    if as_json:
        print_json(ScheduleDocument.of(record))
        return
    zone = _zone_of(record)
    last = record.history[0] if record.history else None
    fields = {
        "name": _shown_name(record),
        "status": record.status.value,
        "paused": moment(record.paused_at),
        "runs": record.words,
        "next run": moment(record.next_at, zone),
        "last run": moment(record.last_at, zone),
        "outcome": "" if last is None else f"{last.outcome}: {last.reason}" if last.reason else last.outcome,
        "last task": record.last_task or "",
        "submits": short_json(record.task),
        "catch up": record.catch_up,
        "overlap": record.overlap,
        "declared": record.declared_at or "",
        "created": moment(record.created_at),
    }
    print_fields({name: value for name, value in fields.items() if value})


@service_command(short_help="Let a schedule submit nothing.")
@click.argument("name")
def pause(service: Service, name: str) -> None:
    """Let the schedule NAME submit nothing until it is resumed."""
    service.pause_schedule(name)
    say(f"{name} is paused")


@service_command(short_help="Let a paused schedule go on.")
@click.argument("name")
def resume(service: Service, name: str) -> None:
    """Let the paused schedule NAME go on; prints its next run."""
    say(_next_of(service.resume_schedule(name)))


@service_command(short_help="Submit the task of a schedule now.")
@click.argument("name")
def run(service: Service, name: str) -> None:
    """Submit the task of the schedule NAME now, beside its runs; prints its id."""
    say(service.run_schedule(name).id)


@service_command(short_help="Remove a schedule.")
@click.argument("name")
def remove(service: Service, name: str) -> None:
    """Remove the schedule NAME. The tasks that it has submitted stay."""
    service.remove_schedule(name)
    say(f"{name} is removed")


for command in (add, list_, show, next_, pause, resume, run, history, remove):
    schedule.add_command(command)


def _zone_of(timing: Timing) -> tzinfo:
    """The time zone of a schedule; UTC if it has none, or if this machine doesn't know it."""
    return UTC if timing.tz is None or zone_fault(timing.tz) else ZoneInfo(timing.tz)


def _shown_name(record: ScheduleRecord) -> str:
    return record.name if record.project is None else f"{record.project}:{record.name}"


def _next_of(record: ScheduleRecord) -> str:
    if record.next_at is None:
        return f"{record.words}; {record.status.value}"
    return f"{record.words}; next run {moment(record.next_at, _zone_of(record))}"
