"""`taskpool queue`, `waits`, `types`, `storage` and `workers`: how the whole stands."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from taskpool.cli.output import (
    age,
    moment,
    per_time,
    print_json,
    print_table,
    say,
    short_json,
    size,
    who_paused,
)
from taskpool.cli.service import service_command
from taskpool.errors import InvalidTask, NotAllowed
from taskpool.operations.documents import (
    QueuedDocument,
    QueueDocument,
    QueueLoadDocument,
    TypeDocument,
    TypeStorageDocument,
    WaitsDocument,
    WorkerDocument,
)
from taskpool.tasks.payload.secret_fields import expanded
from taskpool.text import printable
from taskpool.types import QUEUE_COUNTS, Page, QueuedTask, QueueInfo, TypeInfo, WorkerInfo
from taskpool.types.insight import WaitsBy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskpool.cli.service import Service
    from taskpool.types.fleet import QueueLoad

QUEUE_EPILOG = """\b
Examples:
  taskpool queue                  all queues
  taskpool queue default          what is ready to run in one, in that order
  taskpool queue default --json | jq -r '.tasks[].id'
"""

WAITS_EPILOG = """\b
Examples:
  taskpool waits                  by queue
  taskpool waits --by type
  taskpool waits --by key --json | jq '.groups[0]'

It looks at up to 1,000 tasks: the first of the 20 queues that wait longest.
"""

TYPES_EPILOG = """\b
Examples:
  taskpool types
  taskpool types --json | jq '.types[] | select(.name == "echo").schema'

In the payload, a field with ? may be left out.
"""


STORAGE_EPILOG = """\b
Examples:
  taskpool storage
  taskpool storage --json | jq '.types[0]'
"""


@service_command(epilog=QUEUE_EPILOG, json="Print JSON.")
@click.argument("name", required=False)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, metavar="N", help="Tasks to list."
)
def queue(service: Service, name: str | None, limit: int, as_json: bool) -> None:
    """Show all queues, or what is ready to run in queue NAME."""
    if name is not None:
        page, load = service.get_queue(name, limit=limit), None
        with suppress(NotAllowed, InvalidTask):  # the key is bound to a project, or no task can have this queue
            load = service.queue_load(name)
        if as_json:
            _print_queue_json(page, load)
            return
        _print_queue(page, name)
        _tell_others(service.queues(), name)
        if load is not None and (load.backlog or load.in_progress or load.workers):
            _tell_load(load)
        return
    infos = service.queues()
    if as_json:
        print_json({"queues": [QueueDocument.of(info) for info in infos]})
        return
    columns = ["queue", *(f">{count}" for count in QUEUE_COUNTS), ">oldest"]
    rows = [[info.name, *(str(getattr(info, count)) for count in QUEUE_COUNTS), age(info.oldest_s)] for info in infos]
    if any(info.paused for info in infos):
        columns.append("paused")
        for row, info in zip(rows, infos, strict=True):
            row.append("" if info.paused is None else who_paused(info.paused))
    print_table(columns, rows, nothing="no queue has held a task yet")


def _print_queue_json(page: Page[QueuedTask], load: QueueLoad | None) -> None:
    document: dict[str, Any] = {"tasks": [QueuedDocument.of(task) for task in page.items]}
    if page.next_cursor:
        document["next_cursor"] = page.next_cursor
    if load is not None:
        document["load"] = QueueLoadDocument.of(load)
    print_json(document)


def _print_queue(page: Page[QueuedTask], name: str) -> None:
    rows = [
        (str(task.position), task.record.id, task.record.type, age(task.wait_s), short_json(task.record.payload))
        for task in page.items
    ]
    print_table(
        (">#", "id", "type", ">waits", "payload"), rows, nothing=f"no task is ready to run in the queue {name!r}"
    )
    if page.next_cursor:
        say(f"These are the first {len(rows)}; --limit shows more.", err=True)


def _tell_others(infos: Sequence[QueueInfo], name: str) -> None:
    """Say what else is in a queue and isn't ready to run."""
    for info in infos:
        others = [(status, getattr(info, status)) for status in ("scheduled", "waiting", "in_progress")]
        shown = [f"{count:,} {status}" for status, count in others if count]
        if info.name == name and shown:
            say(f"Besides: {', '.join(shown)}; see taskpool list --queue {name} --status STATUS.", err=True)


def _tell_load(load: QueueLoad) -> None:
    """Say what the queue asks of its workers."""
    rates = [
        f"{per_time(each)} {word}"
        for each, word in ((load.arrival_per_s, "arrive"), (load.service_per_s, "end"))
        if each is not None
    ]
    if rates:
        say(f"Load: {', '.join(rates)}.", err=True)
    needed = f"{load.workers_needed} needed to finish what waits within {load.target_s:g} s"
    say(f"Worker processes: {load.workers}; {needed}.", err=True)


@service_command(epilog=WAITS_EPILOG, json="Print JSON.")
@click.option(
    "--by", type=click.Choice(get_args(WaitsBy)), default="queue", show_default=True, help="What the rows are."
)
def waits(service: Service, by: str, as_json: bool) -> None:
    """Show who waits longest, by queue, type, API key or project."""
    found = service.waits(cast("WaitsBy", by))
    if as_json:
        print_json(WaitsDocument.of(found))
        return
    columns = [by, ">tasks", ">oldest"]
    counts = [each.count if each.queued is None else each.queued for each in found.groups]
    rows = [
        [each.name or "(none)", f"{count:,}", age(each.oldest_s)]
        for each, count in zip(found.groups, counts, strict=True)
    ]
    if by != "queue":
        columns.append("queues")
        for row, each in zip(rows, found.groups, strict=True):
            row.append(",".join(each.queues))
    print_table(columns, rows, nothing="no task waits for a worker")
    if by != "queue" and found.looked_at < found.queued:
        say(
            f"Of {found.queued:,} queued tasks, {found.looked_at:,} of those that wait longest were looked at.",
            err=True,
        )


@service_command(epilog=TYPES_EPILOG, json="Print JSON, with each payload's schema.")
def types(service: Service, as_json: bool) -> None:
    """Show the task types, who serves them and their payloads."""
    infos = service.types()
    if as_json:
        print_json({"types": [TypeDocument.of(info) for info in infos]})
    else:
        columns = ("type", "served", "queue", "payload", "description")
        print_table(columns, map(_type_row, infos), nothing="no worker pool has published a type yet")


def _type_row(info: TypeInfo) -> tuple[str, ...]:
    description = info.description.strip().partition("\n")[0]
    parts = list(expanded(info.schema, info.schema))
    required = {name for part in parts for name in part.get("required", ())}
    fields = [name if name in required else f"{name}?" for part in parts for name in part.get("properties", {})]
    return info.name, "yes" if info.served_by else "no", info.queue, ", ".join(fields), description


@service_command(epilog=STORAGE_EPILOG, json="Print JSON.")
def storage(service: Service, as_json: bool) -> None:
    """Show what fills Redis: records by task type."""
    found = service.storage()
    if as_json:
        print_json({"types": [TypeStorageDocument.of(each) for each in found]})
        return
    rows = [(each.type, f"{each.tasks:,}", size(each.bytes)) for each in found]
    print_table(("type", ">tasks", ">memory, about"), rows, nothing="Redis has no task")


@service_command(json="Print JSON.")
def workers(service: Service, as_json: bool) -> None:
    """Show the worker processes and what each is doing."""
    infos, warnings = service.workers(), service.worker_warnings()
    if as_json:
        print_json({"workers": [WorkerDocument.of(info) for info in infos], "warnings": warnings})
        return
    columns = ("worker", "host", ">pid", "state", ">done", ">failed", "started", "queues", "runs")
    print_table(columns, map(_worker_row, infos), nothing="no worker runs: start some with `taskpool worker`")
    for warning in warnings:
        say(f"Warning: {printable(warning)}.", err=True)


def _worker_row(info: WorkerInfo) -> tuple[str, ...]:
    started = moment(info.started_at).rpartition("(")[2].rstrip(")")
    numbers = (str(info.pid), info.state, str(info.done), str(info.failed))
    return info.name, info.host, *numbers, started, ",".join(info.queues), ",".join(info.current)
