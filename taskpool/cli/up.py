"""`taskpool up` runs the whole service in one terminal. `taskpool api` and `taskpool worker` become one part of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from taskpool.cli.instance import cancelled_by_signals, wants_key
from taskpool.cli.options import Command, environment, load_settings, settings_flags
from taskpool.cli.output import command_name, say
from taskpool.redis.address import Address
from taskpool.settings import Settings
from taskpool.validation import names_this_machine

if TYPE_CHECKING:
    from taskpool.cli.instance import Instance


SHARED: Final = ("redis_url", "data_dir", "max_attempts", "webhook_allow", "log_level")
API: Final = (
    "host", "port", "public_address", "auth", "cors_origins", "trusted_proxies", "root_path", "max_body_bytes",
    "max_connections", "max_connections_per_address", "max_streams", "max_streams_per_key", "max_streams_per_address",
    "header_timeout_s", "write_timeout_s", "idle_timeout_s", "rate_limit", "rate_burst_s", "result_ttl_s",
    "failure_ttl_s", "secret_ttl_s", "max_queue_depth", "max_queues", "max_tags", "max_unique_keys",
    "max_idempotency_keys", "max_webhooks", "timeout_s", "type_grace_s", *SHARED,
)  # fmt: skip
WORKER: Final = (
    "workers", "slots", "queues", "tasks", "max_result_bytes", "lease_s", "max_crashes", "grace_s", "builtins",
    "foreign_jobs", "rq_functions", "files_root", "task_output", "log_lines", "log_bytes", "log_line_chars", *SHARED,
)  # fmt: skip

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


@click.command(cls=Command, epilog=API_EPILOG)
@settings_flags(*API)
def api(**flags: Any) -> None:
    """Run the HTTP API alone."""
    _become("taskpool_api", flags)


@click.command(cls=Command, epilog=WORKER_EPILOG)
@click.option("--reload", is_flag=True, help="Restart the workers when a task file changes.")
@settings_flags(*WORKER)
def worker(reload: bool, **flags: Any) -> None:
    """Run a pool of worker processes alone."""
    _become("taskpool_workers", flags, *(["--reload"] if reload else []))


def _become(package: str, flags: Mapping[str, Any], *arguments: str) -> NoReturn:
    """Replace this process, so that signals and the exit status are the part's own."""
    variables = environment(load_settings(flags))
    sys.stdout.flush()
    # -P: a file in the current directory, such as redis.py, must not hide a module that this program imports.
    os.execve(sys.executable, [sys.executable, "-P", "-m", package, *arguments], variables)


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


@click.command(cls=Command, epilog=EPILOG)
@click.option("--reload", is_flag=True, help="Restart the workers when a task file changes.")
@settings_flags()
def up(reload: bool, **flags: Any) -> None:
    """Run everything here: Redis, workers and the API."""
    from taskpool.cli.instance import Instance

    settings = load_settings(flags)
    if settings.builtins is None and _is_for_this_machine(settings):
        settings = replace(settings, builtins=True)

    async def run() -> None:
        await _serve(Instance(settings, tell=tell, reload=reload))

    asyncio.run(run())


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


async def _serve(instance: Instance) -> None:
    """Start the instance, say how to use it, and run until a signal or the death of a part; then stop it."""
    with cancelled_by_signals(again=instance.hurry):
        try:
            tell("taskpool", "starting")
            await instance.start()
            _say(_welcome(instance, KEY if await asyncio.to_thread(wants_key, instance.url) else ""))
            await instance.died()
        except asyncio.CancelledError:
            _say("")  # the terminal has just written ^C
            grace_s = instance.settings.grace_s
            tell("taskpool", f"stopping; tasks that run get {grace_s:g} s. Ctrl-C again puts them back at once")
        finally:
            await instance.stop()
        tell("taskpool", "stopped")


def _welcome(instance: Instance, key: str) -> str:
    """What to know and to try; without the parts' names before it, so that it can be copied. `key`: how one is sent."""
    settings, url = instance.settings, shlex.quote(instance.url)
    where = "your Redis" if instance.data_dir is None else f"{instance.data_dir}, kept for the next `up`"
    submit = f"{command_name()} submit{_way_to(instance)}"
    tries = (TRIES if settings.builtins is True else TRIES_WITHOUT_BUILTINS).format(url=url, key=key, submit=submit)
    workers = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
    return WELCOME.format(url=instance.url, workers=workers, tries=tries, where=where)


def _way_to(instance: Instance) -> str:
    """The flag by which a command in another terminal, whose variables may be others, finds the instance."""
    data_dir = instance.data_dir
    if data_dir is None:  # not by the Redis's own URL: it may hold a password
        return f" --server {shlex.quote(instance.url)}"
    unflagged = (Settings(), load_settings({}))
    if all(_leads_to(data_dir, settings) for settings in unflagged):
        return ""
    return f" --data-dir {shlex.quote(str(data_dir))}"


def _leads_to(data_dir: Path, settings: Settings) -> bool:
    """Whether a command with these settings talks to the embedded Redis of `data_dir`."""
    return settings.server is None and settings.redis_url is None and Path(settings.data_dir).resolve() == data_dir
