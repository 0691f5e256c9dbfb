"""The commands for single tasks: `submit`, `get`, `watch` and `logs`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from taskpool.cli.options import Command, read_json, read_pairs, seconds
from taskpool.cli.output import exit_of, moment, print_fields, print_json, say, short_json, size
from taskpool.cli.service import service_command
from taskpool.operations.documents import LogLineDocument, TaskDocument
from taskpool.text import coloured, indented, printable, printable_lines
from taskpool.types import OPTIONS, Exit, TaskStatus, utc

if TYPE_CHECKING:  # rich is imported by the few commands that draw: it takes a tenth of a second
    from rich.console import Console

    from taskpool.cli.service import Service
    from taskpool.tasks.log_lines import LogLine
    from taskpool.types import TaskRecord
    from taskpool.types.people import Answer

    Show = Callable[[TaskRecord], None]

SUBMIT_EPILOG = """\b
Examples:
  taskpool submit echo message=hello --wait
  taskpool submit long_task duration_s=20
  taskpool submit word_count text="one and one is two" --wait 30
  taskpool submit echo --json '{"message": [1, 2]}'
  id=$(taskpool submit echo message=later --delay 5m) && taskpool watch "$id"
  taskpool submit echo message=tonight --at 02:00

A value that is JSON is sent as JSON, any other as text; a field that the type
declares as text stays text (name=123). The exit status of --wait says how the
task ended: see `taskpool --help`.
"""

WATCH_EPILOG = """\b
Examples:
  taskpool watch d217r8m2n3aolstf2ch5
  taskpool watch "$id" --timeout 1m > result.json

Ctrl-C ends the watching, not the task. The exit status says how the task ended.
"""

GET_EPILOG = """\b
Examples:
  taskpool get d217r8m2n3aolstf2ch5
  taskpool get "$id" --json | jq .result

The exit status says how the task ended; it is 0 while it hasn't.
"""

LOGS_EPILOG = """\b
Examples:
  taskpool logs d217r8m2n3aolstf2ch5
  taskpool logs -f "$id"                      until the task has ended
  taskpool logs "$id" --json | jq -r 'select(.stream == "stderr").text'

Colours are kept on a terminal. The exit status says how the task ended; it is 0 while it hasn't.
"""

FOREVER: Final = "forever"
"""What `--wait` without a number stands for."""


def _wait_s(text: str) -> float:
    return math.inf if text == FOREVER else seconds()(text)


class SubmitCommand(Command):
    """Lets `--wait` stand before a word that isn't its duration: `submit --wait echo message=hi`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with the duration of each lonely `--wait` filled in."""
        filled = [
            f"--wait={FOREVER}" if arg == "--wait" and not _is_duration(after) else arg
            for arg, after in pairwise([*args, ""])
        ]
        return super().parse_args(ctx, filled)


def _is_duration(text: str) -> bool:
    """Whether it is meant as one: a number, or digits with units. A type's name starts with a letter."""
    if text[:1].isdigit():
        return "=" not in text
    try:
        float(text)
    except ValueError:
        return False
    return True


@service_command(cls=SubmitCommand, epilog=SUBMIT_EPILOG, options=OPTIONS)
@click.argument("type")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--json",
    "whole",
    type=read_json,
    metavar="FILE|-|TEXT",
    help="The payload as JSON; KEY=VALUE pairs are put on top.",
)
@click.option(
    "--wait", "wait_s", type=_wait_s, metavar="[S]", help="Wait until it ends, at most S seconds; print the result."
)
def submit(
    service: Service, type: str, pairs: tuple[str, ...], whole: Any, wait_s: float | None, **options: Any
) -> None:
    """Submit a task of TYPE; prints its id."""
    payload = {} if whole is None else whole
    if pairs:
        if not isinstance(payload, dict):
            raise click.UsageError("KEY=VALUE pairs can only be put on top of a JSON object")
        schema = next((info.schema for info in service.types() if info.name == type), None)
        payload |= read_pairs(pairs, schema)
    id = service.add_task(type, payload, **options).id
    say(id)
    if wait_s is not None:
        ended = _follow(service, id, None if wait_s == math.inf else wait_s)
        raise SystemExit(_print_end(ended, as_json=False))


@service_command(epilog=WATCH_EPILOG, json="Print the whole task as JSON at the end.")
@click.argument("id")
@click.option("--timeout", "timeout_s", type=seconds(), metavar="S", help="Give up after S seconds.")
def watch(service: Service, id: str, timeout_s: float | None, as_json: bool) -> None:
    """Follow a task's progress until it ends."""
    raise SystemExit(_print_end(_follow(service, id, timeout_s), as_json=as_json))


def _follow(service: Service, id: str, timeout_s: float | None) -> TaskRecord:
    """Wait until the task has ended, showing its progress on stderr."""
    from rich.console import Console

    out = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with task_bar(out) if out.is_terminal else _task_lines() as show:
        for record in service.follow(id, timeout_s=timeout_s):
            show(record)
    return record


@contextmanager
def task_bar(out: Console) -> Iterator[Show]:
    """A progress bar with the status and the note of one task. The value is a function that shows a record."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    described = TextColumn("{task.description}", markup=False)
    note = TextColumn("{task.fields[note]}", markup=False, style="dim")
    with Progress(described, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), note, console=out) as progress:
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
                note=printable(_asked(record) or str(reported.get("note") or "")),
            )

        yield show


@contextmanager
def _task_lines() -> Iterator[Show]:
    """A line for each step, where there is no terminal to draw a bar on."""
    last = ""

    def show(record: TaskRecord) -> None:
        nonlocal last
        progress = record.progress or {}
        done, total = progress.get("done"), progress.get("total")
        line = ": ".join([each for each in (record.status.value, _asked(record)) if each])
        if done is not None and not record.status.is_terminal:
            # A tenth at a time: a log file is no place for a thousand lines of progress.
            line += f", {10 * int(10 * done / total)} %" if total else f", {done:g}"
        if line != last:
            say(line, err=True)
            last = line

    yield show


def _print_end(record: TaskRecord, *, as_json: bool) -> Exit:
    """Print the result on stdout, or the error on stderr; the exit status that says how the task ended."""
    status = exit_of(record.status)
    if as_json:
        print_json(TaskDocument.of(record))
    elif status is Exit.DONE:
        say(short_json(record.result))
    else:
        why = indented(printable_lines(record.error or record.reason or ""))
        say(f"Error: the task {record.status.value}" + (f": {why}" if why else ""), err=True)
    return status


@service_command(epilog=GET_EPILOG, json="Print the task as JSON, as the API gives it.")
@click.argument("id")
def get(service: Service, id: str, as_json: bool) -> None:
    """Show a task: status, progress, result or error."""
    record = service.get(id)
    if as_json:
        print_json(TaskDocument.of(record))
    else:
        print_fields(_fields(record))
    raise SystemExit(exit_of(record.status))


def _fields(record: TaskRecord) -> dict[str, str]:
    """What a person wants to know of a task, in the order of its life."""
    took = attempt = ""
    if record.started_at and record.ended_at:
        took = f"{(record.ended_at - record.started_at).total_seconds():.3f} s"
    if record.attempt > 1 or record.max_attempts > 1:
        beyond = record.attempt > record.max_attempts  # what crashed, and what somebody queued again
        attempt = f"{record.attempt}" if beyond else f"{record.attempt} of {record.max_attempts}"
    fields = {
        "id": record.id,
        "type": record.type,
        "status": record.status.value,
        "queue": record.queue,
        "payload": short_json(record.payload),
        "tags": ", ".join(record.tags),
        "workflow": _place(record),
        "schedule": _run(record),
        "added by": record.added_by or "",
        "API key": record.submitted_by or "",
        "depends on": ", ".join(map(str, record.depends_on)),
        "asks": _asked(record),
        "answer by": moment(record.answer_by),
        "decision": _decision(record),
        "answers": "\n".join(map(_answer, record.answers)),
        "created": moment(record.created_at),
        "runs at": moment(record.run_at),
        "started": moment(record.started_at),
        "ended": moment(record.ended_at),
        "took": took,
        "attempt": attempt,
        "on lost lease": record.on_lost_lease if record.on_lost_lease != "continue" else "",
        "crashes": str(record.crashes or ""),
        "operations": ", ".join(record.operations),
    }
    if not record.status.is_terminal:
        fields |= {"worker": record.worker or "", "progress": _progress(record.progress or {})}
    else:
        fields |= {
            "result": short_json(record.result) if record.status is TaskStatus.DONE else "",
            "error": record.error or "",
            "reason": record.reason or "" if record.reason != record.error else "",
            "canceled by": record.canceled_by or "",
            "fingerprint": record.fingerprint or "",
            "traceback": str((record.failure or {}).get("traceback") or "").rstrip(),
            **_crash(record.failure or {}),
        }
    return {name: value for name, value in fields.items() if value}


def _crash(failure: Mapping[str, Any]) -> dict[str, str]:
    """What is known of a process that died or was killed. The parts come from a record, which can be damaged."""
    usage = failure["usage"] if isinstance(failure.get("usage"), Mapping) else {}
    memory, user_s, system_s = (_number(usage, name) for name in ("max_rss_bytes", "user_s", "system_s"))
    used = [] if memory is None else [f"{size(memory)} of memory"]
    used += [] if user_s is None or system_s is None else [f"{user_s + system_s:.3f} s of CPU time"]
    ran_s, pid, log = _number(failure, "ran_s"), failure.get("pid"), failure.get("log")
    return {
        "exit": str(failure.get("exit") or ""),
        "process": f"{failure.get('worker', '')}, process {pid}" if pid is not None else "",
        "ran": "" if ran_s is None else f"{ran_s:.3f} s",
        "used": ", ".join(used),
        "last lines": "\n".join(map(str, log)) if isinstance(log, list) else "",
        "stacks": str(failure.get("stacks") or "").rstrip(),
    }


def _number(parts: Mapping[str, Any], name: str) -> float | None:
    value = parts.get(name)
    return value if isinstance(value, int | float) else None


def _asked(record: TaskRecord) -> str:
    """What a person is asked now."""
    if record.status is not TaskStatus.WAITING_CONFIRMATION:
        return ""
    if record.question is not None:
        return f"{record.question.name}: {record.question.text}"
    return "" if record.confirm is None else record.confirm.text


def _place(record: TaskRecord) -> str:
    """Where the task stands in a workflow."""
    return "" if record.workflow is None else f"{record.workflow}, node {record.node}"


def _run(record: TaskRecord) -> str:
    """Which run of a schedule it is."""
    return "" if record.schedule is None else f"{record.schedule}, run of {moment(record.occurrence)}"


def _decision(record: TaskRecord) -> str:
    made = record.confirmation
    return "" if made is None else _in_words(made.decision, made.by_default, made.by, made.comment)


def _answer(made: Answer) -> str:
    answer = "none" if made.how == "timeout" else short_json(made.answer)
    return _in_words(f"{made.question}: {answer}", made.how != "answered", made.by, made.comment)


def _in_words(decision: str, in_vain: bool, by: str | None, comment: str | None) -> str:
    who = "no answer in time" if in_vain else "" if by is None else f"by {by}"
    return ", ".join([each for each in (decision, who, comment) if each])


def _progress(progress: Mapping[str, Any]) -> str:
    done, total, note = progress.get("done"), progress.get("total"), progress.get("note")
    if not progress:
        return ""
    share = f"{done:g} of {total:g} ({done / total:.0%})" if done is not None and total else f"{done}"
    return f"{share}, {note}" if note else share


@service_command(epilog=LOGS_EPILOG, json="Print each line as a JSON object.")
@click.argument("id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("-t", "--times", is_flag=True, help="Say when each line was written, and how.")
def logs(service: Service, id: str, follow: bool, times: bool, as_json: bool) -> None:
    """Show what a task has written."""
    attempt = 1
    for line in service.follow_log(id) if follow else _there(service, id):
        if as_json:
            say(short_json(msgspec.to_builtins(LogLineDocument.of(line))))
            continue
        if line.attempt > attempt:
            attempt = line.attempt
            _remark(f"attempt {attempt}")
        _print_line(line, times=times)
    raise SystemExit(exit_of(service.get(id).status))


PAGE: Final = 1000


def _there(service: Service, id: str) -> Iterator[LogLine]:
    """What stands in the log now."""
    cursor: str | None = None
    while True:
        page = service.logs(id, cursor=cursor, limit=PAGE)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None or len(page.items) < PAGE:
            return


def _print_line(line: LogLine, *, times: bool) -> None:
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
