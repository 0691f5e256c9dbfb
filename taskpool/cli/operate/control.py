"""`taskpool pause`, `resume`, `pools` and `drain`: what operators do to queues and worker pools."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from taskpool.cli.output import age, moment, print_json, print_table, say, size, who_paused
from taskpool.cli.service import service_command
from taskpool.errors import NotAllowed
from taskpool.operations.documents import PauseDocument, PoolDocument, StackDocument, WhyDocument
from taskpool.text import printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from taskpool.cli.service import Service
    from taskpool.types.fleet import Pause, PoolRecord, Reason

PAUSE_EPILOG: Final = """\b
Examples:
  taskpool pause images --why "the disk is full"
  taskpool pause --all
  taskpool pause --pool host-1.4711.9f3c

What runs goes on, and new tasks are accepted. Of several pauses, the first one counts.
"""

RESUME_EPILOG: Final = """\b
Examples:
  taskpool resume images
  taskpool resume --all

Queues and pools that are paused themselves stay so after --all.
"""

DRAIN_EPILOG: Final = """\b
Example:
  taskpool drain host-1.4711.9f3c --why "a new kernel"

`taskpool pools` lists the names.
"""

POOLS_EPILOG: Final = """\b
Examples:
  taskpool pools
  taskpool pools --json | jq -r '.pools[] | select(.state == "gone").name'
"""

WHY_EPILOG: Final = """\b
Examples:
  taskpool why d217r8m2n3aolstf2ch5
  taskpool why "$id" --json | jq -r '.reasons[].kind'
"""

STACK_EPILOG: Final = """\b
Examples:
  taskpool stack d217r8m2n3aolstf2ch5
  taskpool stack "$id" --json | jq -r '.frames[] | select(.is_user).function'
"""

queue_argument = click.argument("queue", required=False)
pool_option = click.option("--pool", metavar="NAME", help="A worker pool, as `taskpool pools` lists it.")
all_option = click.option("--all", "everything", is_flag=True, help="All queues.")
why_option = click.option("--why", metavar="TEXT", help="Why: for people and the audit.")


@service_command(epilog=PAUSE_EPILOG, json="Print JSON.")
@queue_argument
@pool_option
@all_option
@why_option
def pause(
    service: Service, queue: str | None, pool: str | None, why: str | None, *, everything: bool, as_json: bool
) -> None:
    """Let no task of QUEUE, of a worker pool, or at all, start until it is resumed."""
    _check_one(queue, pool, everything)
    if queue is not None:
        held = service.pause_queue(queue, why=why)
    elif pool is not None:
        held = service.pause_pool(pool, why=why)
    else:
        held = service.pause_all(why=why)
    _print_pause(_named(queue, pool), "paused", held, as_json=as_json)
    if queue is not None:
        _warn_of_unknown(service, queue)


@service_command(epilog=RESUME_EPILOG)
@queue_argument
@pool_option
@all_option
def resume(service: Service, queue: str | None, pool: str | None, *, everything: bool) -> None:
    """Let the tasks of QUEUE, of a worker pool, or at all, start again, at once."""
    _check_one(queue, pool, everything)
    if queue is not None:
        service.resume_queue(queue)
    elif pool is not None:
        service.resume_pool(pool)
    else:
        service.resume_all()
    say(f"{_named(queue, pool)}: resumed", err=True)


@service_command(epilog=DRAIN_EPILOG, json="Print JSON.")
@click.argument("name")
@why_option
def drain(service: Service, name: str, why: str | None, *, as_json: bool) -> None:
    """Let worker pool NAME finish its tasks and end, as a SIGTERM does."""
    _print_pause(f"pool {name}", "draining", service.drain_pool(name, why=why), as_json=as_json)


@service_command(epilog=POOLS_EPILOG, json="Print JSON.")
def pools(service: Service, as_json: bool) -> None:
    """Show the worker pools, and for a day those that went away without draining."""
    found = service.pools()
    if as_json:
        print_json({"pools": [PoolDocument.of(pool) for pool in found]})
        return
    columns = ("pool", "state", ">processes", ">busy", ">memory", "started", ">seen", "queues", "paused")
    print_table(columns, map(_row, found), nothing="no worker pool runs: start one with `taskpool worker`")


def _row(pool: PoolRecord) -> tuple[str, ...]:
    started_s = None if pool.started_at is None else (datetime.now(UTC) - pool.started_at).total_seconds()
    return (
        pool.name,
        pool.state,
        str(pool.processes),
        str(pool.busy),
        size(pool.memory_bytes),
        age(started_s),
        age(time.time() - pool.last_seen_ms / 1000),
        ",".join(pool.queues),
        "" if pool.paused is None else who_paused(pool.paused),
    )


@service_command(epilog=WHY_EPILOG, json="Print JSON.")
@click.argument("id")
def why(service: Service, id: str, *, as_json: bool) -> None:
    """Tell why a task isn't running, and why the tasks that it waits for aren't."""
    found = service.why(id)
    if as_json:
        print_json(WhyDocument.of(found))
        return
    say(f"{found.id}  {found.status}")
    if found.can_run:
        say("  It can start: a worker is free.")
    for line in _lines(found.reasons):
        say(f"  {line}")


@service_command(epilog=STACK_EPILOG, json="Print JSON.")
@click.argument("id")
@click.option("--all", "everything", is_flag=True, help="The stacks of all threads of its process.")
def stack(service: Service, id: str, *, everything: bool, as_json: bool) -> None:
    """Show where a running task is, its innermost frame last. Frames of your own code are marked with >, and those
    before the first of them aren't shown."""
    found = service.stack(id)
    if as_json:
        print_json(StackDocument.of(found))
    elif everything:
        say(printable_lines(found.text))
    else:
        above = next((at for at, frame in enumerate(found.frames) if frame.is_user), 0)
        for frame in found.frames[above:]:
            say(f"{'>' if frame.is_user else ' '} {printable(f'{frame.file}:{frame.line} in {frame.function}')}")


def _lines(reasons: Sequence[Reason]) -> Iterator[str]:
    for reason in reasons:
        yield printable(reason.text)
        if reason.running:
            yield "  they run: " + ", ".join([f"{each.n:,} {printable(each.type)}" for each in reason.running])
        for task in reason.tasks:
            yield f"  {printable(task.id)}  {printable(task.status or 'gone')}"
            yield from (f"    {line}" for line in _lines(task.why))
        if reason.more:
            yield f"  and {reason.more:,} more"


def _check_one(queue: str | None, pool: str | None, everything: bool) -> None:
    if (queue is not None) + (pool is not None) + everything != 1:
        raise click.UsageError("name a QUEUE, or give --pool NAME or --all")


def _warn_of_unknown(service: Service, queue: str) -> None:
    """Warn of a queue that nothing uses. Its name may be a mistake, or it is paused before its first task."""
    with suppress(NotAllowed):  # a key of a project may pause nothing, one bound to queues may not see the pools
        is_served = any(queue in pool.queues for pool in service.pools())
        used = {info.name for info in service.queues() if info.queued or info.scheduled or info.waiting}
        if not is_served and queue not in used:
            text = f"Warning: no worker pool serves the queue {queue!r}, and no task waits in it: is the name right?"
            say(printable(text), err=True)


def _named(queue: str | None, pool: str | None) -> str:
    return f"queue {queue}" if queue is not None else f"pool {pool}" if pool is not None else "everything"


def _print_pause(what: str, word: str, pause: Pause, *, as_json: bool) -> None:
    if as_json:
        print_json(PauseDocument.of(pause))
    else:
        say(printable(f"{what}: {word} since {moment(pause.at)}, {who_paused(pause)}"), err=True)
