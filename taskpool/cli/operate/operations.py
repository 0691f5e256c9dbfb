"""The commands that find tasks and change many of them at once: `list`, `retry`, `stop`, `cancel`, `remove`, `move`,
`run-now` and `operation`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.cli.options import Command, seconds
from taskpool.cli.output import age, moment, print_fields, print_json, print_move, print_table, say, short_json
from taskpool.cli.service import service_command
from taskpool.operations.documents import OperationDocument, PreviewDocument, TaskDocument
from taskpool.types import Exit
from taskpool.types.control import ACTIONS, CRITERIA, UNDOABLE, Action, Filter, Operation, OperationStatus, Preview
from taskpool.validation import LONGEST_GRACE_S, Guesses, declared

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from taskpool.cli.service import Service
    from taskpool.types import TaskRecord

LIST_EPILOG: Final = """\b
Examples:
  taskpool list --status failed --since 1h
  taskpool list --type resize --error "disk full" --limit 500
  taskpool list --status in_progress --min-duration 10m
  taskpool list --where 'status:failed since:1h "disk full"'
  taskpool list --queue default --status scheduled --json | jq -r '.tasks[].id'

The newest come first. Times are RFC 3339, or how long ago: 90, 5m, 1h30m, 2d.
"""

RETRY_EPILOG: Final = """\b
Examples:
  taskpool retry "$id" && taskpool watch "$id"
  taskpool retry --status failed --type resize --since 1h --preview
  taskpool retry --where 'status:failed error:"disk full"' --yes

A retry of many tasks leaves out those that failed with NonRetryable, unless
--include-nonretryable asks for them.
"""

STOP_EPILOG: Final = """\b
Examples:
  taskpool stop "$id"              ask it to stop; after 10 s its process is killed
  taskpool stop "$id" --grace 60   give it a minute
  taskpool stop "$id" --force      kill its process at once
  taskpool stop --type resize --min-duration 1h

A task that hasn't started is canceled. One that has ended is left as it is.
"""

MANY_EPILOG: Final = """\b
Examples:
  taskpool {name} {flags}--queue default --since 1h --preview
  taskpool {name} {flags}--where 'type:resize tag:red' --yes

It says how many tasks match and asks first. Ctrl-C ends it; what it has changed
stays changed.{undo}
"""

OPERATION_EPILOG: Final = """\b
Examples:
  taskpool operation list
  taskpool operation get d217r8m2n3aolstf2ch5 --json
  taskpool operation undo d217r8m2n3aolstf2ch5

What an operation has canceled or removed can be restored for ten minutes.
"""

PAGE: Final = 200
MOST_LOOKED_AT: Final = 100_000
"""How many tasks `list` looks at before it gives up."""
FILTERS: Final = declared(Filter)
DONE: Final[Mapping[str, str]] = {
    "retry": "retried", "stop": "stopped", "cancel": "canceled", "remove": "removed", "move": "moved",
    "run_now": "queued", "undo": "restored",
}  # fmt: skip
"""By action: what has become of its tasks."""
assert DONE.keys() == {*ACTIONS, "undo"}

CRITERION: Final = re.compile(r"(?P<name>[A-Za-z_-]+)[:=](?!//)(?P<value>.*)", re.DOTALL)
"""A criterion in a text. A URL is none."""
SHORT: Final = {"took": "min_duration"}
"""Short names of criteria, as the search box of the page has them."""

where = click.option(
    "--where",
    multiple=True,
    metavar="'NAME:VALUE ...'",
    help="Criteria in one text, as the web page's search box has them; NAME=VALUE means the same. Words without a NAME "
    "are --text. May be repeated.",
)


def criteria_of(texts: Sequence[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The criteria of `--where` and of flags. Raises: click.BadParameter."""
    found = dict(flags)
    words: list[str] = []
    for text in texts:
        try:
            pairs = shlex.split(text)
        except ValueError as error:
            raise click.BadParameter(f"{text[:80]!r}: {error}", param_hint="--where") from None
        for pair in pairs:
            parts = CRITERION.fullmatch(pair)
            if parts is None:
                words.append(pair)
                continue
            name, value = parts["name"].lower().replace("-", "_"), parts["value"]
            name = SHORT.get(name, name)
            if name not in CRITERIA and not parts["name"].islower():  # `KeyError:` is a part of an error
                words.append(pair)
                continue
            if name not in CRITERIA:
                hint = Guesses().hint(name, CRITERIA)
                raise click.BadParameter(f"{pair[:80]!r} names no criterion{hint}", param_hint="--where")
            if name in found:
                raise click.BadParameter(f"{name} is given twice", param_hint="--where")
            found[name] = int(value) if name == "attempts" and value[:10].isdecimal() and len(value) < 10 else value
    if words:
        if "text" in found:
            raise click.BadParameter("text is given twice", param_hint="--where")
        found["text"] = " ".join(words)
    return found


@service_command("list", cls=Command, epilog=LIST_EPILOG, json="Print JSON.", options=FILTERS)
@where
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Tasks to list.")
def list_tasks(service: Service, where: Sequence[str], limit: int, as_json: bool, **flags: Any) -> None:
    """List the tasks that match all criteria."""
    criteria = criteria_of(where, flags)
    found: list[TaskRecord] = []
    looked_at, cursor = 0, None
    while True:
        page = service.list_tasks(**criteria, cursor=cursor, limit=min(PAGE, limit - len(found)))
        found += page.items
        looked_at, cursor = looked_at + (page.looked_at or 0), page.next_cursor
        if cursor is None or len(found) >= limit or looked_at >= MOST_LOOKED_AT:
            break
    if as_json:
        print_json({"tasks": [TaskDocument.of(record) for record in found], "complete": cursor is None})
        return
    _print_tasks(found, nothing="no task matches")
    if cursor is not None and len(found) >= limit:
        say(f"These are the first {len(found)}; --limit shows more.", err=True)
    elif cursor is not None:
        say(f"That is all among {looked_at:,} tasks, the newest; there are older ones. Give more criteria.", err=True)


def _print_tasks(records: Sequence[TaskRecord], *, nothing: str) -> None:
    print_table(("id", "type", "status", "queue", ">age", "what"), map(_row, records), nothing=nothing)


def _row(record: TaskRecord) -> tuple[str, ...]:
    since = record.created_at
    old = "" if since is None else age((datetime.now(UTC) - since).total_seconds())
    what = record.error if record.error else short_json(record.payload)
    return record.id, record.type, record.status.value, record.queue, old, what


# --- many tasks at once --------------------------------------------------------------------------------------


def many_command(name: str, *, epilog: str = "", flags: str = "") -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command that changes all tasks that match: with flags for the criteria, `--preview` and
    `--yes`."""
    undo = " `taskpool operation undo` restores the tasks, for ten minutes." if name in UNDOABLE else ""
    text = epilog or MANY_EPILOG.format(name=name, flags=flags, undo=undo)

    def decorate(function: Callable[..., Any]) -> Command:
        for option in (
            click.option("--yes", "-y", is_flag=True, help="Don't ask."),
            click.option("--preview", is_flag=True, help="Only say how many tasks match, and show some."),
            where,
        ):
            function = option(function)
        made = service_command(name, epilog=text, json="Print JSON.", options=FILTERS)
        return made(function)

    return decorate


@many_command("retry", epilog=RETRY_EPILOG)
@click.argument("id", required=False)
@click.option("--include-nonretryable", is_flag=True, help="Also tasks that failed with NonRetryable.")
def retry(service: Service, id: str | None, include_nonretryable: bool, **given: Any) -> None:
    """Queue a failed, stopped or canceled task again, or all that match."""
    if id is not None:
        as_json = _only_one(given)
        print_move(service.retry_task(id), as_json=as_json)
        return
    _operate(service, "retry", given, include_nonretryable=include_nonretryable)


@many_command("stop", epilog=STOP_EPILOG)
@click.argument("id", required=False)
@click.option("--grace", "grace_s", type=seconds(most_s=LONGEST_GRACE_S), default=10.0, metavar="S", show_default=True,
              help="Seconds that the task ID gets to end by itself.")  # fmt: skip
@click.option("--force", is_flag=True, help="Kill the process of the task ID at once.")
def stop(service: Service, id: str | None, grace_s: float, force: bool, **given: Any) -> None:
    """Stop a running task, or cancel one that hasn't started; or all tasks that match."""
    if id is not None:
        as_json = _only_one(given)
        print_move(service.kill_task(id, grace_s=grace_s, force=force), as_json=as_json)
        return
    if force or grace_s != 10.0:
        raise click.UsageError("--grace and --force are for the task ID")
    _operate(service, "stop", given)


@many_command("cancel")
def cancel(service: Service, **given: Any) -> None:
    """Cancel all tasks that match and haven't started."""
    _operate(service, "cancel", given)


@many_command("remove")
def remove(service: Service, **given: Any) -> None:
    """Remove the records of all ended tasks that match."""
    _operate(service, "remove", given)


@many_command("move", flags="--to fast ")
@click.option("--to", "target", required=True, metavar="QUEUE", help="The queue to move them to.")
def move(service: Service, target: str, **given: Any) -> None:
    """Move all tasks that match and haven't started to another queue."""
    _operate(service, "move", given, queue=target)


@many_command("run-now")
def run_now(service: Service, **given: Any) -> None:
    """Queue all scheduled tasks that match at once."""
    _operate(service, "run_now", given)


def _only_one(given: dict[str, Any]) -> bool:
    """Whether to print JSON, for a command that was given an id. Raises: click.UsageError (and more than that)."""
    as_json: bool = given.pop("as_json")
    if any(given.values()):
        raise click.UsageError("give either an ID or criteria")
    return as_json


def _operate(service: Service, action: Action, given: dict[str, Any], **options: Any) -> None:
    """Say how many tasks match, ask, and change them."""
    texts, only_preview, yes, as_json = (given.pop(name) for name in ("where", "preview", "yes", "as_json"))
    criteria = criteria_of(texts, given)
    if not criteria:
        raise click.UsageError("give an ID or criteria, such as --type resize; see --help")
    wanted = Filter(**criteria)
    preview = service.preview_operation(action, wanted, **options)
    if only_preview:
        _print_preview(preview, as_json=as_json)
        return
    if not preview.count:
        _tell_left_out(preview)
        say("no task matches", err=True)
        return
    if not yes:
        _confirm(action, preview)
    started = service.start_operation(action, wanted, **options)
    raise SystemExit(_follow(service, started, as_json=as_json))


def _print_preview(preview: Preview, *, as_json: bool) -> None:
    if as_json:
        print_json(PreviewDocument.of_preview(preview))
        return
    say(_count(preview))
    _print_tasks(preview.sample, nothing="")
    _tell_left_out(preview)


def _count(preview: Preview) -> str:
    about = "" if preview.is_exact else "about "
    return f"{about}{preview.count:,} task{'' if preview.count == 1 else 's'}"


def _tell_left_out(preview: Preview) -> None:
    if preview.left_out:
        say(f"Left out: {_reasons(preview.left_out)}.", err=True)


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in counts.items())


def _confirm(action: str, preview: Preview) -> None:
    """Ask. Raises: click.Abort (no), click.UsageError (there is no terminal)."""
    if not _can_ask():
        raise click.UsageError(f"this would {action.replace('_', ' ')} {_count(preview)}: add --yes")
    _tell_left_out(preview)
    click.confirm(f"{action.replace('_', ' ').capitalize()} {_count(preview)}?", abort=True, err=True)


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _follow(service: Service, started: Operation, *, as_json: bool) -> Exit:
    """Show the progress of an operation until it has ended. Ctrl-C cancels it."""
    latest = started
    try:
        with _progress() as show:
            for latest in service.follow_operation(started.id):
                show(latest)
    except KeyboardInterrupt:
        latest = service.cancel_operation(started.id)
    if as_json:
        print_json(OperationDocument.of(latest))
    else:
        say(_summary(latest))
    if latest.undo_until is not None and latest.changed and not as_json:
        say(f"To restore them within ten minutes: taskpool operation undo {latest.id}", err=True)
    return _EXITS.get(latest.status, Exit.DONE)


_EXITS: Final = {OperationStatus.FAILED: Exit.FAILED, OperationStatus.CANCELED: Exit.STOPPED}


def _summary(operation: Operation) -> str:
    done = f"{DONE.get(operation.action, operation.action)} {operation.changed:,}"
    skipped = f"; skipped {_reasons(operation.skipped)}" if operation.skipped else ""
    ended = {OperationStatus.FAILED: f"; it failed: {operation.error}", OperationStatus.CANCELED: "; canceled"}
    return f"{done}{skipped}{ended.get(operation.status, '')}"


@contextmanager
def _progress() -> Iterator[Callable[[Operation], None]]:
    """A bar on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    out = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        yield lambda operation: None
        return
    described = TextColumn("{task.description}", markup=False)
    with Progress(described, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=out) as progress:
        row = progress.add_task("", total=1.0)

        def show(operation: Operation) -> None:
            progress.update(row, completed=operation.progress, description=_summary(operation))

        yield show


# --- operations ----------------------------------------------------------------------------------------------


@click.group(epilog=OPERATION_EPILOG)
def operation() -> None:
    """List, read, cancel and undo operations on many tasks."""


@service_command("list", json="Print JSON.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, metavar="N", help="How many.")
def list_operations(service: Service, limit: int, as_json: bool) -> None:
    """List the operations, the newest first."""
    found = service.list_operations(limit=limit).items
    if as_json:
        print_json({"operations": [OperationDocument.of(each) for each in found]})
        return
    rows = [
        (
            each.id, each.action, each.status.value, f"{each.progress:.0%}", f"{each.changed:,}",
            _reasons(each.skipped), moment(each.created_at), each.by or "", short_json(each.filter),
        )
        for each in found
    ]  # fmt: skip
    columns = ("id", "action", "status", ">done", ">changed", "skipped", "started", "by", "filter")
    print_table(columns, rows, nothing="there was no operation in the last week")


@service_command("get", json="Print the operation as JSON, as the API gives it.")
@click.argument("id")
def get_operation(service: Service, id: str, as_json: bool) -> None:
    """Show an operation."""
    _print(service.get_operation(id), as_json=as_json)


@service_command("cancel", json="Print the operation as JSON.")
@click.argument("id")
def cancel_operation(service: Service, id: str, as_json: bool) -> None:
    """Cancel an operation that runs. What it has changed stays changed."""
    _print(service.cancel_operation(id), as_json=as_json)


@service_command("undo", json="Print the operation that does it as JSON.")
@click.argument("id")
def undo_operation(service: Service, id: str, as_json: bool) -> None:
    """Restore what an operation has canceled or removed."""
    raise SystemExit(_follow(service, service.undo_operation(id), as_json=as_json))


def _print(each: Operation, *, as_json: bool) -> None:
    if as_json:
        print_json(OperationDocument.of(each))
        return
    fields = {
        "id": each.id,
        "action": each.action,
        "status": each.status.value,
        "filter": short_json(each.filter),
        "to queue": each.queue or "",
        "undoes": each.undoes or "",
        "progress": f"{each.progress:.0%}",
        "looked at": f"{each.looked_at:,}",
        "matched": f"{each.matched:,}",
        "changed": f"{each.changed:,}",
        "skipped": _reasons(each.skipped),
        "error": each.error or "",
        "by": each.by or "",
        "started": moment(each.created_at),
        "ended": moment(each.ended_at),
        "undo until": moment(each.undo_until),
    }
    print_fields({name: value for name, value in fields.items() if value})


for _command in (list_operations, get_operation, cancel_operation, undo_operation):
    operation.add_command(_command)
