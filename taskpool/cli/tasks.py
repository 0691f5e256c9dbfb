"""The commands for single tasks: `submit`, `get`, `watch`, `stop`, `retry` and `logs`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.cli.options import Command, Seconds, given_options, option_flags, read_json, read_pairs, settings_flags
from taskpool.cli.output import console, exit_of, moment, print_fields, print_json, say, short_json, task_bar
from taskpool.cli.service import SERVICE, Service, open_service
from taskpool.text import coloured, indented, printable, printable_lines
from taskpool.types import Exit, TaskStatus, utc
from taskpool.validation import LONGEST_GRACE_S

if TYPE_CHECKING:
    from taskpool.tasks.log_lines import LogLine
    from taskpool.types import TaskRecord


WATCH_EPILOG = """\b
Examples:
  taskpool watch d217r8m2n3aolstf2ch5
  taskpool watch "$id" --timeout 60 > result.json

Ctrl-C ends the watching, not the task. The exit status says how the task ended.
"""


@click.command(cls=Command, epilog=WATCH_EPILOG)
@click.argument("id")
@click.option("--timeout", "timeout_s", type=Seconds(), metavar="S", help="Give up after S seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole task as JSON at the end.")
@settings_flags(*SERVICE)
def watch(id: str, timeout_s: float | None, as_json: bool, **flags: Any) -> None:
    """Follow a task's progress until it ends."""
    with open_service(flags) as service:
        record = follow(service, id, timeout_s=timeout_s)
        raise SystemExit(print_end(record, as_json=as_json))


def follow(service: Service, id: str, *, timeout_s: float | None = None) -> TaskRecord:
    """Wait until the task has ended, showing its progress on stderr.

    Raises:
        TaskNotFound: no task has this id.
        WaitTimeout: it didn't end within `timeout_s` seconds.
    """
    with _display() as show:
        for record in service.follow(id, timeout_s=timeout_s):
            show(record)
    return record


def print_end(record: TaskRecord, *, as_json: bool = False) -> Exit:
    """Print the result on stdout, or the error on stderr; the exit status that says how the task ended."""
    if as_json:
        from taskpool.operations.documents import task_document

        print_json(task_document(record))
    elif exit_of(record.status) is Exit.DONE:
        say(short_json(record.result))
    else:
        why = indented(printable_lines(record.error or record.reason or ""))
        say(f"Error: the task {record.status.value}" + (f": {why}" if why else ""), err=True)
    return exit_of(record.status)


def _display() -> AbstractContextManager[Callable[[TaskRecord], None]]:
    out = console(stderr=True)
    if not out.is_terminal:
        return nullcontext(_Lines().show)
    return task_bar(out)


class _Lines:
    """A line for each step, where there is no terminal to draw a bar on."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, record: TaskRecord) -> None:
        progress = record.progress or {}
        done, total = progress.get("done"), progress.get("total")
        parts = [record.status.value]
        if done is not None and not record.status.is_terminal:
            # A tenth at a time: a log file is no place for a thousand lines of progress.
            parts.append(f"{10 * int(10 * done / total)} %" if total else f"{done:g}")
        line = ", ".join(parts)
        if line != self._last:
            say(line, err=True)
            self._last = line


GET_EPILOG = """\b
Examples:
  taskpool get d217r8m2n3aolstf2ch5
  taskpool get "$id" --json | jq .result

The exit status says how the task ended; it is 0 while it hasn't.
"""

STOP_EPILOG = """\b
Examples:
  taskpool stop "$id"              ask it to stop; after 10 s its process is killed
  taskpool stop "$id" --grace 60   give it a minute
  taskpool stop "$id" --force      kill its process at once

A task that hasn't started is canceled. One that has ended is left as it is.
"""

RETRY_EPILOG = """\b
Example:
  taskpool retry "$id" && taskpool watch "$id"
"""


@click.command(cls=Command, epilog=GET_EPILOG)
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="Print the task as JSON, as the API gives it.")
@settings_flags(*SERVICE)
def get(id: str, as_json: bool, **flags: Any) -> None:
    """Show a task: status, progress, result or error."""
    with open_service(flags) as service:
        record = service.get(id)
    _print(record, as_json=as_json)
    raise SystemExit(exit_of(record.status))


@click.command(cls=Command, epilog=STOP_EPILOG)
@click.argument("id")
@click.option(
    "--grace",
    "grace_s",
    type=Seconds(most_s=LONGEST_GRACE_S),
    default=10.0,
    metavar="S",
    show_default=True,
    help="Seconds it gets to end by itself.",
)
@click.option("--force", is_flag=True, help="Kill its process at once.")
@click.option("--json", "as_json", is_flag=True, help="Print the task as JSON.")
@settings_flags(*SERVICE)
def stop(id: str, grace_s: float, force: bool, as_json: bool, **flags: Any) -> None:
    """Stop a running task, or cancel one that hasn't started."""
    with open_service(flags) as service:
        record = service.kill_task(id, grace_s=grace_s, force=force)
    _print_move(record, as_json=as_json)


@click.command(cls=Command, epilog=RETRY_EPILOG)
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="Print the task as JSON.")
@settings_flags(*SERVICE)
def retry(id: str, as_json: bool, **flags: Any) -> None:
    """Queue a task again that failed, was stopped or canceled."""
    with open_service(flags) as service:
        record = service.retry_task(id)
    _print_move(record, as_json=as_json)


def _print_move(record: TaskRecord, *, as_json: bool) -> None:
    if as_json:
        _print(record, as_json=True)
    else:
        say(record.status.value)


def _print(record: TaskRecord, *, as_json: bool) -> None:
    if as_json:
        from taskpool.operations.documents import task_document

        print_json(task_document(record))
    else:
        print_fields(dict(_fields(record)))


def _fields(record: TaskRecord) -> Iterator[tuple[str, str]]:
    """What a person wants to know of a task, in the order of its life."""
    yield "id", record.id
    yield "type", record.type
    yield "status", record.status.value
    yield "queue", record.queue
    yield "payload", short_json(record.payload)
    for name, words in (("tags", record.tags), ("depends on", record.depends_on)):
        if words:
            yield name, ", ".join(words)
    for name, at in (("created", record.created_at), ("runs at", record.run_at), ("started", record.started_at),
                     ("ended", record.ended_at)):  # fmt: skip
        if at is not None:
            yield name, moment(at)
    if record.started_at and record.ended_at:
        yield "took", f"{(record.ended_at - record.started_at).total_seconds():.3f} s"
    if record.attempt > 1 or record.max_attempts > 1:
        beyond = record.attempt > record.max_attempts  # what crashed, and what somebody queued again
        yield "attempt", f"{record.attempt}" if beyond else f"{record.attempt} of {record.max_attempts}"
    if record.on_lost_lease != "continue":
        yield "on lost lease", record.on_lost_lease
    if record.crashes:
        yield "crashes", str(record.crashes)
    yield from _outcome(record) if record.status.is_terminal else _running(record)


def _running(record: TaskRecord) -> Iterator[tuple[str, str]]:
    if record.worker:
        yield "worker", record.worker
    if record.progress:
        yield "progress", _progress(record.progress)


def _outcome(record: TaskRecord) -> Iterator[tuple[str, str]]:
    if record.status is TaskStatus.DONE:
        yield "result", short_json(record.result)
    if record.error:
        yield "error", record.error
    if record.reason and record.reason != record.error:
        yield "reason", record.reason
    if record.failure and record.failure.get("traceback"):
        yield "traceback", str(record.failure["traceback"]).rstrip()


def _progress(progress: Mapping[str, Any]) -> str:
    done, total, note = progress.get("done"), progress.get("total"), progress.get("note")
    share = f"{done:g} of {total:g} ({done / total:.0%})" if done is not None and total else f"{done}"
    return f"{share}, {note}" if note else share


FOREVER: Final = "forever"
"""What `--wait` without a number stands for."""

SUBMIT_EPILOG = """\b
Examples:
  taskpool submit echo message=hello --wait
  taskpool submit long_task duration_s=20
  taskpool submit word_count text="one and one is two" --wait 30
  taskpool submit echo --json '{"message": [1, 2]}'
  id=$(taskpool submit echo message=later --delay 60) && taskpool watch "$id"

A value that is JSON is sent as JSON, any other as text; a field that the type
declares as text stays text (name=123). The exit status of --wait says how the
task ended: see `taskpool --help`.
"""


class WaitSeconds(Seconds):
    """How long to wait; infinity stands for ever."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As for any seconds."""
        return math.inf if value == FOREVER else super().convert(value, param, ctx)


class SubmitCommand(Command):
    """Lets `--wait` stand before a word that isn't its number: `submit --wait echo message=hi`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with the number of each lonely `--wait` filled in."""
        filled = [
            f"--wait={FOREVER}" if arg == "--wait" and not _is_number(after) else arg
            for arg, after in pairwise([*args, ""])
        ]
        return super().parse_args(ctx, filled)


@click.command(cls=SubmitCommand, epilog=SUBMIT_EPILOG)
@click.argument("type")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "source", metavar="FILE|-|TEXT", help="The payload as JSON; KEY=VALUE pairs are put on top.")
@click.option(
    "--wait",
    "wait_s",
    type=WaitSeconds(),
    metavar="[S]",
    help="Wait until it ends, at most S seconds; print the result.",
)
@option_flags
@settings_flags(*SERVICE)
def submit(type: str, pairs: tuple[str, ...], source: str | None, wait_s: float | None, **options: Any) -> None:
    """Submit a task of TYPE; prints its id."""
    whole = read_json(source) if source is not None else None
    flags = {name: options.pop(name) for name in SERVICE}
    with open_service(flags) as service:
        payload = _payload(service, type, pairs, whole)
        record = service.add_task(type, payload, **given_options(options))
        say(record.id)
        if wait_s is not None:
            ended = follow(service, record.id, timeout_s=None if wait_s == math.inf else wait_s)
            raise SystemExit(print_end(ended))


def _payload(service: Service, type: str, pairs: tuple[str, ...], whole: Any) -> Any:
    if not pairs:
        return {} if whole is None else whole
    if whole is not None and not isinstance(whole, dict):
        raise click.UsageError("KEY=VALUE pairs can only be put on top of a JSON object")
    schema = next((info.schema for info in service.types() if info.name == type), None)
    return {**(whole or {}), **read_pairs(pairs, schema)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


PAGE: Final = 1000

LOGS_EPILOG = """\b
Examples:
  taskpool logs d217r8m2n3aolstf2ch5
  taskpool logs -f "$id"                      until the task has ended
  taskpool logs "$id" --json | jq -r 'select(.stream == "stderr").text'

Colours are kept on a terminal. The exit status says how the task ended; it is 0 while it hasn't.
"""


@click.command(cls=Command, epilog=LOGS_EPILOG)
@click.argument("id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("-t", "--times", is_flag=True, help="Say when each line was written, and how.")
@click.option("--json", "as_json", is_flag=True, help="Print each line as a JSON object.")
@settings_flags(*SERVICE)
def logs(id: str, follow: bool, times: bool, as_json: bool, **flags: Any) -> None:
    """Show what a task has written."""
    with open_service(flags) as service:
        attempt = 1
        for line in service.follow_log(id) if follow else _there(service, id):
            if line.attempt > attempt and not as_json:
                attempt = line.attempt
                _remark(f"attempt {attempt}")
            _print_line(line, times=times, as_json=as_json)
        raise SystemExit(exit_of(service.get(id).status))


def _there(service: Service, id: str) -> Iterator[LogLine]:
    """What stands in the log now."""
    cursor: str | None = None
    while True:
        page = service.logs(id, cursor=cursor, limit=PAGE)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None or len(page.items) < PAGE:
            return


def _print_line(line: LogLine, *, times: bool, as_json: bool) -> None:
    if as_json:
        import msgspec

        from taskpool.operations.documents import log_line_document

        say(short_json(msgspec.to_builtins(log_line_document(line))))
        return
    if line.stream == "taskpool" and not times:  # about the log, not in it
        _remark(printable(line.text))
        return
    head = ""
    if times:
        at = utc(line.at_ms).astimezone(UTC)
        said = printable(line.stream if line.level is None else f"{line.level} {line.logger}")
        head = click.style(f"{at:%Y-%m-%d %H:%M:%S}.{line.at_ms % 1000:03d} {said}: ", dim=True)
    say(head + coloured(line.text), nl=not line.continues or times)


def _remark(text: str) -> None:
    """Say what isn't the task's own words: on stderr, so that no line of a task can be taken for it in a pipe."""
    say(click.style(f"--- {text}", dim=True), err=True)
