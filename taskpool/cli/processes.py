"""`taskpool api` and `taskpool worker`: the two halves of production, each the process itself, not a child."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import click

from taskpool.cli.options import Command, environment, load_settings, settings_flags

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
    _become("api", flags)


@click.command(cls=Command, epilog=WORKER_EPILOG)
@click.option("--reload", is_flag=True, help="Restart the workers when a task file changes.")
@settings_flags(*WORKER)
def worker(reload: bool, **flags: Any) -> None:
    """Run a pool of worker processes alone."""
    _become("workers", flags, *(["--reload"] if reload else []))


def _become(package: str, flags: Mapping[str, Any], *arguments: str) -> NoReturn:
    """Replace this process, so that signals and the exit status are the part's own."""
    variables = environment(load_settings(flags))
    sys.stdout.flush()
    # -P: a directory of the user's own that is called `api` or `workers` isn't taken for ours.
    os.execve(sys.executable, [sys.executable, "-P", "-m", package, *arguments], variables)
