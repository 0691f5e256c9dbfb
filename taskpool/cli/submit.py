"""`taskpool submit`: a task from the command line."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Final

import click

from taskpool.cli.options import Command, settings_flags
from taskpool.cli.seconds import Seconds
from taskpool.cli.service import SERVICE, Service, open_service
from taskpool.cli.show import say
from taskpool.cli.values import read_json, read_pairs, read_time
from taskpool.cli.watch import follow, print_end
from taskpool.types import LOST_LEASE_CHOICES

FOREVER: Final = "forever"
"""What `--wait` without a number stands for."""

EPILOG = """\b
Examples:
  taskpool submit echo message=hello --wait
  taskpool submit long_task duration_s=20
  taskpool submit word_count text="one and one is two" --wait 30
  taskpool submit echo --json '{"message": [1, 2]}'
  id=$(taskpool submit echo message=later --delay 60) && taskpool watch "$id"

A value that is JSON is sent as JSON, any other as text; a field that the type
declares as text stays text (name=123). The exit status of --wait says how the
task ended: see `taskpool --help`.
"""


class WaitSeconds(Seconds):
    """How long to wait; infinity stands for ever."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As for any seconds."""
        return math.inf if value == FOREVER else super().convert(value, param, ctx)


class SubmitCommand(Command):
    """Lets `--wait` stand before a word that isn't its number: `submit --wait echo message=hi`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with the number of each lonely `--wait` filled in."""
        filled = [
            f"--wait={FOREVER}" if arg == "--wait" and not _is_number(after) else arg
            for arg, after in pairwise([*args, ""])
        ]
        return super().parse_args(ctx, filled)


@click.command(cls=SubmitCommand, epilog=EPILOG)
@click.argument("type")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "source", metavar="FILE|-|TEXT", help="The payload as JSON; KEY=VALUE pairs are put on top.")
@click.option("--queue", metavar="NAME", help="Queue to put it in, instead of the type's.")
@click.option("--delay", "delay_s", type=Seconds(), metavar="S", help="Queue it in S seconds.")
@click.option("--at", "run_at", metavar="TIME", help="Queue it then: 2026-12-24T18:00:00Z; no zone: local time.")
@click.option("--front", is_flag=True, help="Put it at the head of its queue.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag to find it by; may be repeated.")
@click.option("--timeout", "timeout_s", type=Seconds(0.001), metavar="S", help="Seconds one attempt may take.")
@click.option("--max-attempts", type=int, metavar="N", help="Attempts it gets before it fails.")
@click.option(
    "--on-lost-lease",
    type=click.Choice(LOST_LEASE_CHOICES),
    help="kill: end an attempt before its lease ends if the lease can't be renewed, so that no two overlap.",
)
@click.option(
    "--expires-in",
    "expires_in_s",
    type=Seconds(0.001),
    metavar="S",
    help="Cancel it unless it starts within S seconds.",
)
@click.option("--depends-on", multiple=True, metavar="ID", help="Wait until this task is done; may be repeated.")
@click.option("--callback-url", metavar="URL", help="Send signed messages there when it ends.")
@click.option(
    "--wait",
    "wait_s",
    type=WaitSeconds(),
    metavar="[S]",
    help="Wait until it ends, at most S seconds; print the result.",
)
@settings_flags(*SERVICE)
def submit(
    type: str, pairs: tuple[str, ...], source: str | None, run_at: str | None, wait_s: float | None, **options: Any
) -> None:
    """Submit a task of TYPE; prints its id."""
    when = read_time(run_at, "--at") if run_at else None
    whole = read_json(source) if source is not None else None
    flags = {name: options.pop(name) for name in SERVICE}
    with open_service(flags) as service:
        payload = _payload(service, type, pairs, whole)
        record = service.add_task(type, payload, run_at=when, **options)
        say(record.id)
        if wait_s is not None:
            ended = follow(service, record.id, timeout_s=None if wait_s == math.inf else wait_s)
            raise SystemExit(print_end(ended))


def _payload(service: Service, type: str, pairs: tuple[str, ...], whole: Any) -> Any:
    if not pairs:
        return {} if whole is None else whole
    if whole is not None and not isinstance(whole, dict):
        raise click.UsageError("KEY=VALUE pairs can only be put on top of a JSON object")
    schema = next((info.schema for info in service.types() if info.name == type), None)
    return {**(whole or {}), **read_pairs(pairs, schema)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
