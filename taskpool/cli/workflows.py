"""`taskpool workflow`: submit, list, show, watch, stop, retry and remove workflows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from taskpool.cli.graph import counted, draw, progress
from taskpool.cli.options import read_json, seconds
from taskpool.cli.output import moment, print_fields, print_json, print_table, say
from taskpool.cli.service import service_command
from taskpool.operations.documents import WorkflowDocument
from taskpool.operations.flow.values import WORKFLOW_STATUSES, WorkflowRecord, WorkflowStatus
from taskpool.operations.reading import read_workflow
from taskpool.text import printable
from taskpool.types import Exit
from taskpool.validation import LONGEST_GRACE_S

if TYPE_CHECKING:  # rich is imported by the few commands that draw: it takes a tenth of a second
    from rich.console import Console

    from taskpool.cli.service import Service

    Show = Callable[[WorkflowRecord], None]

WORKFLOW_EPILOG = """\b
Examples:
  id=$(taskpool workflow submit import.json)
  taskpool workflow watch "$id"
  taskpool workflow list --status failed
"""

SUBMIT_EPILOG = """\b
Example of a file:
  {"name": "import", "nodes": [
    {"name": "load", "task": {"type": "echo", "payload": {"message": "hi"}}},
    {"name": "rows", "map": [{"type": "echo", "payload": {"message": 1}},
                             {"type": "echo", "payload": {"message": 2}}], "after": ["load"]},
    {"name": "end", "task": {"type": "echo", "payload": {"message": "bye"}},
     "after": [{"name": "rows", "on": "any"}]}]}

A node starts when all nodes in `after` have ended: well, or with "on": "any" in
whatever way, or with "on": "failure" badly.
"""

SHOW_EPILOG = """\b
Signs:
  ✓ done   ✗ failed or stopped   – canceled   ▶ running   ? waits for a person   · waits

The exit status says how the workflow ended; it is 0 while it hasn't.
"""

WATCH_EPILOG = """\b
Example:
  taskpool workflow watch "$id" --timeout 3600

Ctrl-C ends the watching, not the workflow. The exit status says how it ended.
"""

RETRY_EPILOG = """\b
Example:
  taskpool workflow retry "$id" && taskpool workflow watch "$id"

Tasks that are done stay done, except those that ran because something failed.
"""


@click.group(epilog=WORKFLOW_EPILOG)
def workflow() -> None:
    """Submit, show, watch, stop, retry and remove workflows."""


@service_command(epilog=SUBMIT_EPILOG)
@click.argument("document", type=read_json, metavar="FILE|-|TEXT")
def submit(service: Service, document: Any) -> None:
    """Submit the workflow in a JSON file; prints its id."""
    say(service.add_workflow(read_workflow(document)).id)


@service_command("list", json="Print JSON.")
@click.option(
    "--status", type=click.Choice([each.value for each in WorkflowStatus]), help="Only those with this status."
)
@click.option("--name", metavar="NAME", help="Only those with this name.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, metavar="N", help="How many.")
def list_(service: Service, status: str | None, name: str | None, limit: int, as_json: bool) -> None:
    """List the workflows, the newest first."""
    found: list[WorkflowRecord] = []
    cursor: str | None = None
    while len(found) < limit:
        wanted = None if status is None else WorkflowStatus(status)
        page = service.workflows(status=wanted, name=name, cursor=cursor, limit=min(limit - len(found), 200))
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    if as_json:
        print_json({"workflows": [WorkflowDocument.of(each) for each in found]})
        return
    rows = [
        (each.id, each.name, each.status.value, f"{each.ended:,} of {each.total:,}", counted(each.counts),
         moment(each.created_at))
        for each in found
    ]  # fmt: skip
    print_table(("id", "name", "status", ">ended", "outcomes", "created"), rows, nothing="there is no workflow")
    if cursor is not None:
        say(f"These are the newest {len(found)}; --limit shows more.", err=True)


@service_command(epilog=SHOW_EPILOG, json="Print the workflow as JSON, as the API gives it.")
@click.argument("id")
@click.option("--all", "every", is_flag=True, help="Show each node, also of a large graph.")
def show(service: Service, id: str, every: bool, as_json: bool) -> None:
    """Show a workflow: status, progress and its graph."""
    record = service.get_workflow(id)
    if as_json:
        print_json(WorkflowDocument.of(record))
    else:
        print_fields(_fields(record))
        say()
        for line in draw(record.nodes, **({"most": None} if every else {})):
            say(line)
    raise SystemExit(_exit_of(record))


@service_command(epilog=WATCH_EPILOG, json="Print the workflow as JSON at the end.")
@click.argument("id")
@click.option("--timeout", "timeout_s", type=seconds(), metavar="S", help="Give up after S seconds.")
def watch(service: Service, id: str, timeout_s: float | None, as_json: bool) -> None:
    """Follow a workflow until it ends."""
    from rich.console import Console

    out = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with live_graph(out) if out.is_terminal else _lines() as show:
        for record in service.follow_workflow(id, timeout_s=timeout_s):
            show(record)
    if as_json:
        print_json(WorkflowDocument.of(record))
    elif _exit_of(record) is Exit.DONE:
        say(progress(record))
    else:
        say(f"Error: the workflow {record.status.value}; {progress(record)}", err=True)
    raise SystemExit(_exit_of(record))


@service_command(json="Print the workflow as JSON.")
@click.argument("id")
@click.option("--grace", "grace_s", type=seconds(most_s=LONGEST_GRACE_S), default=10.0, metavar="S", show_default=True,
              help="Seconds its running tasks get to end by themselves.")  # fmt: skip
@click.option("--force", is_flag=True, help="Kill the processes of its running tasks at once.")
def stop(service: Service, id: str, grace_s: float, force: bool, as_json: bool) -> None:
    """Stop a workflow: cancel what hasn't started, stop what runs."""
    _print_move(service.stop_workflow(id, grace_s=grace_s, force=force), as_json=as_json)


@service_command(epilog=RETRY_EPILOG, json="Print the workflow as JSON.")
@click.argument("id")
def retry(service: Service, id: str, as_json: bool) -> None:
    """Run again what failed in a workflow, and what follows."""
    _print_move(service.retry_workflow(id), as_json=as_json)


@service_command()
@click.argument("id")
def remove(service: Service, id: str) -> None:
    """Remove an ended workflow with all of its tasks."""
    service.remove_workflow(id)
    say("removed")


for each in (submit, list_, show, watch, stop, retry, remove):
    workflow.add_command(each)


def _exit_of(record: WorkflowRecord) -> Exit:
    facts = WORKFLOW_STATUSES.get(record.status)
    return Exit.DONE if facts is None else facts.exit_status


def _print_move(record: WorkflowRecord, *, as_json: bool) -> None:
    if as_json:
        print_json(WorkflowDocument.of(record))
    else:
        say(record.status.value)


def _fields(record: WorkflowRecord) -> dict[str, str]:
    fields = {
        "id": record.id,
        "name": record.name,
        "status": record.status.value,
        "tasks": progress(record),
        "created": moment(record.created_at),
        "ended": moment(record.ended_at),
    }
    return {name: value for name, value in fields.items() if value}


@contextmanager
def live_graph(out: Console) -> Iterator[Show]:
    """The graph, drawn again as it changes. The value is a function that shows a record."""
    from rich.live import Live
    from rich.text import Text

    with Live(console=out, refresh_per_second=4, transient=False) as live:

        def show(record: WorkflowRecord) -> None:
            head = f"{printable(record.name)} {record.status.value}: {progress(record)}"
            lines = draw(record.nodes, most=max(4, (out.height - 4) // 2))
            live.update(Text("\n", no_wrap=True, overflow="ellipsis").join(map(Text.from_ansi, [head, *lines])))

        yield show


@contextmanager
def _lines() -> Iterator[Show]:
    """A line for each step, where there is no terminal to draw on."""
    last = ""

    def show(record: WorkflowRecord) -> None:
        nonlocal last
        line = record.status.value
        if not record.status.is_terminal and record.total:
            # A tenth at a time: a log file is no place for a thousand lines of progress.
            line += f", {10 * (10 * record.ended // record.total)} %"
        if line != last:
            say(line, err=True)
            last = line

    yield show
