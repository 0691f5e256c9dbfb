"""The `taskpool` command: its subcommands, and how an error becomes one line and an exit status."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, NoReturn

import click

from taskpool.cli.confirmations import answer, confirm, reject
from taskpool.cli.fleet import queue, storage, types, waits, workers
from taskpool.cli.keys import audit, keys
from taskpool.cli.new import new
from taskpool.cli.operate.check import check
from taskpool.cli.operate.control import drain, pause, pools, resume, stack, why
from taskpool.cli.operate.failures import doctor, failures, redrive
from taskpool.cli.operate.operations import cancel, list_tasks, move, operation, remove, retry, run_now, stop
from taskpool.cli.operate.stats import stats
from taskpool.cli.operate.top import top
from taskpool.cli.output import say
from taskpool.cli.schedules import schedule
from taskpool.cli.tasks import get, logs, submit, watch
from taskpool.cli.up import api, up, worker
from taskpool.cli.workflows import workflow
from taskpool.errors import FieldErrors, TaskpoolError, Unauthorized
from taskpool.text import LogFormatter, indented
from taskpool.types import Exit

GROUPS: Final[tuple[tuple[str, tuple[click.Command, ...]], ...]] = (
    ("Service", (up, api, worker)),
    ("Tasks", (submit, get, watch, logs, stop, retry, new)),
    ("Many tasks", (list_tasks, cancel, remove, move, run_now, operation)),
    ("Flow", (workflow, schedule)),
    ("People", (confirm, reject, answer)),
    ("State", (top, queue, waits, types, workers, pools, stats, storage)),
    ("Operation", (failures, redrive, doctor, check, pause, resume, drain, why, stack)),
    ("Access", (keys, audit)),
)

EXITS: Final = "".join(f"  {each.value}  {each.meaning}\n" for each in Exit if each.meaning)
EPILOG: Final = f"""\b
First steps:
  taskpool up                             in one terminal
  taskpool submit echo message=hi --wait  in another

\b
Exit status:
{EXITS}
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
        except TaskpoolError as error:
            _leave(_text(error), error.exit_status)
        except KeyboardInterrupt:
            sys.exit(Exit.INTERRUPTED)
        except BrokenPipeError:
            raise  # click handles it: the reader of the output has gone
        except OSError as error:
            _leave(str(error), Exit.FAILED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click's own: usage errors, --help
        except Exception as error:
            if sys.flags.dev_mode:
                raise
            what = f"unexpected {type(error).__name__}: {error}"
            _leave(f"{what} (a bug in taskpool; PYTHONDEVMODE=1 shows where)", Exit.BUG)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in GROUPS:
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str(80)) for command in commands])


@click.group(cls=Commands, epilog=EPILOG, context_settings=CONTEXT)
@click.version_option(package_name="taskpool-jobs", message="taskpool %(version)s")
def main() -> None:
    """A job service on Redis: typed tasks, run by worker processes."""


def _text(error: TaskpoolError) -> str:
    if isinstance(error, Unauthorized):
        return f"{error}; the command takes it as --api-key, or from TASKPOOL_API_KEY"
    faults = error.errors if isinstance(error, FieldErrors) else ()
    return "; ".join(
        [str(error), *(f"{each.pointer}: {each.detail}" for each in faults if each.detail not in str(error))]
    )


def _leave(text: str, status: Exit) -> NoReturn:
    say("Error: " + indented(text, "  "), err=True)
    sys.exit(status)


for _, commands in GROUPS:
    for command in commands:
        main.add_command(command)


if __name__ == "__main__":
    main()
