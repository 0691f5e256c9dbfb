"""`taskpool get`, `stop` and `retry`: one task by its id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from taskpool.cli.exits import exit_of
from taskpool.cli.options import Command, settings_flags
from taskpool.cli.seconds import Seconds
from taskpool.cli.service import SERVICE, open_service
from taskpool.cli.show import moment, print_fields, print_json, say, short_json
from taskpool.seconds import LONGEST_GRACE_S
from taskpool.types import TaskStatus

if TYPE_CHECKING:
    from taskpool.types import TaskRecord

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
        from taskpool.document import task_document

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
