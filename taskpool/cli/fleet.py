"""`taskpool queue`, `types` and `workers`: how the whole stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from taskpool.cli.options import Command, settings_flags
from taskpool.cli.output import age, moment, print_json, print_table, say, short_json
from taskpool.cli.service import SERVICE, open_service
from taskpool.text import printable
from taskpool.types import QUEUE_COUNTS, Page, QueuedTask, QueueInfo, TypeInfo, WorkerInfo

QUEUE_EPILOG = """\b
Examples:
  taskpool queue                  all queues
  taskpool queue default          what waits in one, in the order it will run
  taskpool queue default --json | jq -r '.tasks[].id'
"""

TYPES_EPILOG = """\b
Examples:
  taskpool types
  taskpool types --json | jq '.types[] | select(.name == "echo").schema'

In the payload, a field with ? may be left out.
"""


@click.command(cls=Command, epilog=QUEUE_EPILOG)
@click.argument("name", required=False)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, metavar="N", help="Tasks to list."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_flags(*SERVICE)
def queue(name: str | None, limit: int, as_json: bool, **flags: Any) -> None:
    """Show all queues, or what waits in queue NAME."""
    from taskpool.operations.documents import queue_document, queued_document

    with open_service(flags) as service:
        if name is None:
            infos = service.queues()
        else:
            page = service.get_queue(name, limit=limit)
    match name, as_json:
        case None, True:
            print_json({"queues": [queue_document(info) for info in infos]})
        case None, False:
            _print_queues(infos)
        case str(), True:
            more = {"next_cursor": page.next_cursor} if page.next_cursor else {}
            print_json({"tasks": [queued_document(task) for task in page.items], **more})
        case str(), False:
            _print_queue(name, page)


@click.command(cls=Command, epilog=TYPES_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with each payload's schema.")
@settings_flags(*SERVICE)
def types(as_json: bool, **flags: Any) -> None:
    """Show the task types, who serves them and their payloads."""
    from taskpool.operations.documents import type_document

    with open_service(flags) as service:
        infos = service.types()
    if as_json:
        print_json({"types": [type_document(info) for info in infos]})
    else:
        columns = ("type", "served", "queue", "payload", "description")
        print_table(columns, map(_type_row, infos), nothing="no worker pool has published a type yet")


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_flags(*SERVICE)
def workers(as_json: bool, **flags: Any) -> None:
    """Show the worker processes and what each is doing."""
    from taskpool.operations.documents import worker_document

    with open_service(flags) as service:
        infos, warnings = service.workers(), service.worker_warnings()
    if as_json:
        print_json({"workers": [worker_document(info) for info in infos], "warnings": list(warnings)})
    else:
        columns = ("worker", "host", ">pid", "state", ">done", ">failed", "started", "queues", "runs")
        print_table(columns, map(_worker_row, infos), nothing="no worker runs: start some with `taskpool worker`")
        for warning in warnings:
            say(f"Warning: {printable(warning)}.", err=True)


def _print_queues(infos: Sequence[QueueInfo]) -> None:
    columns = ("queue", *(f">{count}" for count in QUEUE_COUNTS), ">oldest")
    rows = [(info.name, *(str(getattr(info, count)) for count in QUEUE_COUNTS), age(info.oldest_s)) for info in infos]
    print_table(columns, rows, nothing="no queue has held a task yet")


def _print_queue(name: str, page: Page[QueuedTask]) -> None:
    rows = [
        (str(task.position), task.record.id, task.record.type, age(task.wait_s), short_json(task.record.payload))
        for task in page.items
    ]
    print_table((">#", "id", "type", ">waits", "payload"), rows, nothing=f"nothing waits in the queue {name!r}")
    if page.next_cursor:
        say(f"These are the first {len(rows)}; --limit shows more.", err=True)


def _type_row(info: TypeInfo) -> tuple[str, ...]:
    description = info.description.strip().partition("\n")[0]
    return info.name, "yes" if info.served_by else "no", info.queue, ", ".join(_fields(info.schema)), description


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    """The payload's fields, one by one, those that may be left out with a question mark."""
    root = schema
    if isinstance(ref := schema.get("$ref"), str):
        root = schema.get("$defs", {}).get(ref.rpartition("/")[2], {})
    required = root.get("required", [])
    for name in root.get("properties", {}):
        yield name if name in required else f"{name}?"


def _worker_row(info: WorkerInfo) -> tuple[str, ...]:
    started = moment(info.started_at).rpartition("(")[2].rstrip(")")
    counts = (str(info.done), str(info.failed))
    return (
        info.name, info.host, str(info.pid), info.state, *counts, started, ",".join(info.queues), ",".join(info.current)
    )  # fmt: skip
