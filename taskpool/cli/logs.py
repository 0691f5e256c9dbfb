"""`taskpool logs`: what a task has written, and with `-f` what it writes, until it ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.cli.exits import exit_of
from taskpool.cli.options import Command, settings_flags
from taskpool.cli.service import SERVICE, Service, open_service
from taskpool.cli.show import say, short_json
from taskpool.printable import coloured, printable
from taskpool.types import utc

if TYPE_CHECKING:
    from taskpool.logs.line import LogLine

PAGE: Final = 1000

EPILOG = """\b
Examples:
  taskpool logs d217r8m2n3aolstf2ch5
  taskpool logs -f "$id"                      until the task has ended
  taskpool logs "$id" --json | jq -r 'select(.stream == "stderr").text'

Colours are kept on a terminal. The exit status says how the task ended; it is 0 while it hasn't.
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("-t", "--times", is_flag=True, help="Say when each line was written, and how.")
@click.option("--json", "as_json", is_flag=True, help="Print each line as a JSON object.")
@settings_flags(*SERVICE)
def logs(id: str, follow: bool, times: bool, as_json: bool, **flags: Any) -> None:
    """Show what a task has written."""
    with open_service(flags) as service:
        attempt = 1
        for line in service.follow_log(id) if follow else _there(service, id):
            if line.attempt > attempt and not as_json:
                attempt = line.attempt
                _remark(f"attempt {attempt}")
            _print(line, times=times, as_json=as_json)
        raise SystemExit(exit_of(service.get(id).status))


def _there(service: Service, id: str) -> Iterator[LogLine]:
    """What stands in the log now."""
    cursor: str | None = None
    while True:
        page = service.logs(id, cursor=cursor, limit=PAGE)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None or len(page.items) < PAGE:
            return


def _print(line: LogLine, *, times: bool, as_json: bool) -> None:
    if as_json:
        import msgspec

        from taskpool.document import log_line_document

        say(short_json(msgspec.to_builtins(log_line_document(line))))
        return
    if line.stream == "taskpool" and not times:  # about the log, not in it
        _remark(printable(line.text))
        return
    head = ""
    if times:
        at = utc(line.at_ms).astimezone(UTC)
        said = printable(line.stream if line.level is None else f"{line.level} {line.logger}")
        head = click.style(f"{at:%Y-%m-%d %H:%M:%S}.{line.at_ms % 1000:03d} {said}: ", dim=True)
    say(head + coloured(line.text), nl=not line.continues or times)


def _remark(text: str) -> None:
    """Say what isn't the task's own words: on stderr, so that no line of a task can be taken for it in a pipe."""
    say(click.style(f"--- {text}", dim=True), err=True)
