"""`taskpool check`: whether the stored tasks fit the task types of this build."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from taskpool.cli.options import Command, Flags, load_settings
from taskpool.cli.output import print_json, print_table, say
from taskpool.operations.insight.check import CHECKED, STARTABLE, check_tasks
from taskpool.redis.store import Store
from taskpool.settings import Settings, resolve_redis_url
from taskpool.tasks.registry import Registry
from taskpool.types import Exit

EPILOG: Final = """\b
Examples:
  taskpool check --redis-url redis://redis:6379/0 --tasks myapp.tasks
  taskpool check --tasks myapp.tasks --queues images,default --no-failed
  taskpool check --tasks myapp.tasks --json | jq '.types'

Run it in a deployment, with the new code, before you replace the workers. It needs the
task modules and Redis, changes nothing, and looks at the queues that a pool with these
settings serves.

Exit status: 0 if every task fits, 1 if some would break.
"""

SETTINGS: Final = {"redis_url", "data_dir", "tasks", "builtins", "queues", "rq_functions"}


@contextmanager
def _opened(flags: Flags) -> Iterator[Settings]:
    yield load_settings(flags)


@click.command(
    cls=Command,
    settings=SETTINGS,
    opens=_opened,
    epilog=EPILOG,
    json="Print the report as JSON.",
    short_help="Check stored payloads against the task types of this build.",
)
@click.option("--no-failed", is_flag=True, help="Leave out failed tasks, which run again only if they are retried.")
def check(settings: Settings, no_failed: bool, as_json: bool) -> None:
    """Decode the payloads of all tasks that wait, and of failed ones, with the task types of this build."""
    registry = Registry(settings.tasks, builtins=settings.builtins)
    registry.load_functions(settings.rq_functions)
    store = Store(resolve_redis_url(settings))
    try:
        queues = settings.queues or tuple(dict.fromkeys(("default", *registry.queues())))
        statuses = STARTABLE if no_failed else CHECKED
        report = store.carry_out(check_tasks(registry, queues=queues, statuses=statuses))
    finally:
        store.close()
    if as_json:
        print_json(report)
    else:
        rows = [(each.id, each.type, each.status.value, each.queue, each.reason, each.detail) for each in report.tasks]
        if rows:
            print_table(("id", "type", "status", "queue", "reason", "what"), rows, nothing="")
        more = "" if report.broken <= len(rows) else f" These are the first {len(rows)}."
        say(f"{report.checked:,} tasks checked, {report.broken:,} would break.{more}")
    if report.broken:
        sys.exit(Exit.FAILED)
