"""`taskpool up` runs the whole service in one terminal. `taskpool api` and `taskpool worker` become one part of it."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final, NoReturn

import click

from taskpool.cli.instance import Instance, Interrupted
from taskpool.cli.options import Command, Flags, environment, load_settings
from taskpool.cli.output import command_name, say
from taskpool.redis.address import Address
from taskpool.settings import CLIENT_SETTINGS, SETTING_FIELDS, Settings
from taskpool.validation import names_this_machine

UP: Final = {row.name for row in SETTING_FIELDS} - CLIENT_SETTINGS
_OF_WORKERS: Final = {
    "workers", "slots", "queues", "tasks", "build", "payload_check", "max_result_bytes", "lease_s", "max_crashes",
    "grace_s", "builtins", "foreign_jobs", "rq_functions", "files_root", "task_output", "log_lines",
    "log_bytes", "log_line_chars",
}  # fmt: skip
WORKER: Final = {
    *_OF_WORKERS,
    "redis_url",
    "data_dir",
    "max_attempts",
    "webhook_allow",
    "log_level",
    "log_format",
    "otel",
}
API: Final = UP - _OF_WORKERS - {"redis_server"}

API_EPILOG = """\b
Examples:
  taskpool api --redis-url redis://redis:6379/0 --host 0.0.0.0
  TASKPOOL_REDIS_URL=redis://redis:6379/0 taskpool api

It needs none of your task modules: what it knows of the types, the workers tell it.
"""

WORKER_EPILOG = """\b
Examples:
  taskpool worker --redis-url redis://redis:6379/0 --tasks myapp.tasks
  taskpool worker --workers 8 --queues images,default
  taskpool worker --workers 2 --slots 100     many async tasks at once

SIGTERM drains: it takes no more, finishes what runs (at most --grace-s) and puts
the rest back.
"""


def _opened(flags: Flags) -> AbstractContextManager[Settings]:
    return nullcontext(load_settings(flags))


part_command = partial(click.command, cls=Command, opens=_opened)
with_reload = click.option("--reload", is_flag=True, help="Restart the workers when a task file changes.")


@part_command(epilog=API_EPILOG, settings=API)
def api(settings: Settings) -> None:
    """Run the HTTP API alone."""
    _become("taskpool_api", settings)


@part_command(epilog=WORKER_EPILOG, settings=WORKER)
@with_reload
def worker(settings: Settings, reload: bool) -> None:
    """Run a pool of worker processes alone."""
    _become("taskpool_workers", settings, *(["--reload"] if reload else []))


def _become(package: str, settings: Settings, *arguments: str) -> NoReturn:
    """Replace this process, so that signals and the exit status are the part's own."""
    sys.stdout.flush()
    # -P: a file in the current directory, such as redis.py, must not hide a module that this program imports.
    os.execve(sys.executable, [sys.executable, "-P", "-m", package, *arguments], environment(settings))


COLOURS: Final[Mapping[str, str]] = {"workers": "cyan", "api": "magenta", "taskpool": "green"}
NAME_WIDTH: Final = max(map(len, COLOURS))

EPILOG = """\b
Examples:
  taskpool up
  taskpool up --tasks mytasks.py --reload
  taskpool up --port 9000 --workers 2 --data-dir /var/lib/taskpool
  TASKPOOL_REDIS_URL=redis://localhost:6379/0 taskpool up

Ctrl-C stops it: the API first, then the workers once they have finished what
they run (at most --grace-s), Redis last. A second Ctrl-C doesn't wait for the
tasks: they are put back and run again. Tasks survive a restart.
"""

WELCOME: Final = """
  Taskpool is ready: {url}, {workers}

  Page     {url}/ in a browser
{tries}
  Data     {where}
  Stop     Ctrl-C
"""

TRIES: Final = """\
  Submit   curl -s {url}/tasks{key} -H 'Content-Type: application/json' \\
             -d '{{"type": "echo", "payload": {{"message": "hello"}}}}'
  Look     curl -s {url}/tasks{key}
  Watch    {submit} long_task duration_s=10 --wait"""

KEY: Final = ' -H "Authorization: Bearer $TASKPOOL_API_KEY"'

TRIES_WITHOUT_BUILTINS: Final = """\
  Types    curl -s {url}/types{key}
  Look     curl -s {url}/tasks{key}
  Submit   {submit} TYPE KEY=VALUE --wait"""


@part_command(epilog=EPILOG, settings=UP)
@with_reload
def up(settings: Settings, reload: bool) -> None:
    """Run everything here: Redis, workers and the API."""
    if settings.builtins is None and _is_for_this_machine(settings):
        settings = replace(settings, builtins=True)
    if settings.log_format == "auto":  # its parts write into pipes, and people read what it prints
        settings = replace(settings, log_format="text")
    instance = Instance(settings, tell, reload=reload)
    with instance.heeding_signals():
        try:
            tell("taskpool", "starting")
            instance.start()
            _say(_welcome(instance))
            while True:
                instance.look()
        except Interrupted:
            _say("")  # the terminal has just written ^C
            grace = f"tasks that run get {settings.grace_s:g} s"
            tell("taskpool", f"stopping; {grace}. Ctrl-C again puts them back at once")
        finally:
            instance.stop()
        tell("taskpool", "stopped")


def _is_for_this_machine(settings: Settings) -> bool:
    """Whether programs of other machines can submit nothing to it: neither its API nor its Redis is theirs to reach."""
    if not names_this_machine(settings.public_address or settings.host):
        return False
    redis = None if settings.redis_url is None else Address.parse(settings.redis_url)
    return redis is None or redis.path is not None or (redis.sentinels is None and names_this_machine(redis.host))


def tell(name: str, line: str) -> None:
    """Print one line of one part. A terminal that is gone, or a closed pipe, mustn't keep us from stopping."""
    _say(f"{click.style(name.rjust(NAME_WIDTH), fg=COLOURS.get(name))} | {line}")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        say(text)


def _welcome(instance: Instance) -> str:
    """What to know and to try; without the parts' names before it, so that it can be copied."""
    settings, url = instance.settings, shlex.quote(instance.url)
    where = "your Redis" if instance.data_dir is None else f"{instance.data_dir}, kept for the next `up`"
    submit = f"{command_name()} submit{_way_to(instance)}"
    key = KEY if instance.answer("/types") == HTTPStatus.UNAUTHORIZED else ""
    tries = (TRIES if settings.builtins is True else TRIES_WITHOUT_BUILTINS).format(url=url, key=key, submit=submit)
    workers = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
    return WELCOME.format(url=instance.url, workers=workers, tries=tries, where=where)


def _way_to(instance: Instance) -> str:
    """The flag by which a command in another terminal, whose variables may be others, finds the instance."""
    data_dir = instance.data_dir
    if data_dir is None:  # not by the Redis's own URL: it may hold a password
        return f" --server {shlex.quote(instance.url)}"
    is_found = all(
        unflagged.server is None and unflagged.redis_url is None and Path(unflagged.data_dir).resolve() == data_dir
        for unflagged in (Settings(), load_settings({}))
    )
    return "" if is_found else f" --data-dir {shlex.quote(str(data_dir))}"
