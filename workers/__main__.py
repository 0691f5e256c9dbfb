"""`python -m taskpool_workers`: one worker pool, set up by the environment and by flags of the same names."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from taskpool.errors import ConfigurationError
from taskpool.redis.embedded import wait_for_redis
from taskpool.settings import SETTING_FIELDS, Settings, resolve_redis_url
from taskpool.tasks.builtin import check_root
from taskpool.text import printable_lines

from .process.output import configure
from .supervisor import Supervisor

EXIT_CONFIGURATION: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a pool to its end; the exit status is 0 after a shutdown, 2 for a wrong setting or task module."""
    parser = argparse.ArgumentParser(prog="python -m taskpool_workers", description="Run a pool of worker processes.")
    parser.add_argument("--reload", action="store_true", help="load the task files again when they change")
    for field in SETTING_FIELDS:
        parser.add_argument(field.flag, dest=field.name, metavar=field.name.upper(), help=field.help.replace("%", "%%"))
    flags = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):  # the supervisor replaces these handlers when it runs
        signal.signal(number, _end)
    try:
        settings = Settings.load(os.environ, **{field.name: getattr(flags, field.name) for field in SETTING_FIELDS})
        configure(settings.log_level, settings.log_format)
        wait_for_redis(resolve_redis_url(settings))
        if settings.files_root is not None:
            check_root(Path(settings.files_root))
        return asyncio.run(Supervisor(settings, reloads=flags.reload).run())
    except ConfigurationError as error:
        print(printable_lines(f"taskpool: {error}"), file=sys.stderr)
        return EXIT_CONFIGURATION


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())
