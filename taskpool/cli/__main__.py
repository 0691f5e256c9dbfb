"""The `taskpool` command: its subcommands, and how an error becomes one line and an exit status."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, NoReturn

import click

from taskpool.cli.fleet import queue, types, workers
from taskpool.cli.keys import audit, keys
from taskpool.cli.new import new
from taskpool.cli.output import HELP, Failure, failure_of, say
from taskpool.cli.tasks import get, logs, retry, stop, submit, watch
from taskpool.cli.up import api, up, worker
from taskpool.errors import TaskpoolError
from taskpool.text import LogFormatter, indented
from taskpool.types import Exit

GROUPS: Final[tuple[tuple[str, tuple[click.Command, ...]], ...]] = (
    ("Service", (up, api, worker)),
    ("Tasks", (submit, get, watch, logs, stop, retry, new)),
    ("State", (queue, types, workers)),
    ("Access", (keys, audit)),
)

EPILOG = f"""\b
First steps:
  taskpool up                             in one terminal
  taskpool submit echo message=hi --wait  in another

{HELP}
Every setting is a flag and a variable: --redis-url and TASKPOOL_REDIS_URL.
"""

if logging.lastResort is not None:  # for log lines of the library without a configured handler
    logging.lastResort.setFormatter(LogFormatter())

CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Commands(click.Group):
    """The group: lists its commands by subject, and turns errors into one line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Failure as failure:
            _leave(failure)
        except TaskpoolError as error:
            _leave(failure_of(error))
        except KeyboardInterrupt:
            sys.exit(Exit.INTERRUPTED)
        except BrokenPipeError:
            raise  # click handles it: the reader of the output has gone
        except OSError as error:
            _leave(Failure(str(error), Exit.FAILED))
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click's own: usage errors, --help
        except Exception as error:
            if sys.flags.dev_mode:
                raise
            what = f"{type(error).__name__}: {error}"
            _leave(Failure(f"unexpected {what} (a bug in taskpool; PYTHONDEVMODE=1 shows where)", Exit.BUG))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in GROUPS:
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str(80)) for command in commands])


@click.group(cls=Commands, epilog=EPILOG, context_settings=CONTEXT)
@click.version_option(package_name="taskpool-jobs", message="taskpool %(version)s")
def main() -> None:
    """A job service on Redis: typed tasks, run by worker processes."""


def _leave(failure: Failure) -> NoReturn:
    say("Error: " + indented(str(failure), "  "), err=True)
    sys.exit(failure.status)


for _, commands in GROUPS:
    for command in commands:
        main.add_command(command)


if __name__ == "__main__":
    main()
