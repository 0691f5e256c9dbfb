"""`taskpool watch`: follow a task to its end. The progress goes to stderr, the result to stdout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from taskpool.cli.exits import Exit, exit_of
from taskpool.cli.options import Command, settings_flags
from taskpool.cli.seconds import Seconds
from taskpool.cli.service import SERVICE, Service, open_service
from taskpool.cli.show import console, print_json, say, short_json
from taskpool.printable import indented, printable_lines

if TYPE_CHECKING:
    from taskpool.types import TaskRecord

EPILOG = """\b
Examples:
  taskpool watch d217r8m2n3aolstf2ch5
  taskpool watch "$id" --timeout 60 > result.json

Ctrl-C ends the watching, not the task. The exit status says how the task ended.
"""


@click.command(cls=Command, epilog=EPILOG)
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
        from taskpool.document import task_document

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
    from taskpool.cli.bars import TaskBar

    return TaskBar(out)


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
