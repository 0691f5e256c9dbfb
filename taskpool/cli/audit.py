"""`taskpool audit`: who did what, through the API and the commands."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.cli.options import Command, settings_flags
from taskpool.cli.service import SERVICE
from taskpool.cli.show import moment, print_json, print_table
from taskpool.cli.values import read_time

if TYPE_CHECKING:
    from taskpool.access.audit import What
    from taskpool.access.document import AuditEntryDocument

EPILOG: Final = """\b
Examples:
  taskpool audit
  taskpool audit --what task.stopped --since 2026-11-24T00:00:00Z
  taskpool audit --key k3v0h5m8t2qa --limit 500 --json | jq -r '.entries[].about'

Times without a zone are local ones.
"""


@click.command(cls=Command, epilog=EPILOG)
@click.option("--what", metavar="WORD", help="Only changes of this kind, such as task.stopped.")
@click.option("--key", metavar="ID", help="Only what was done with this key.")
@click.option("--project", metavar="NAME", help="Only what was done with keys of this project.")
@click.option("--since", metavar="TIME", help="Nothing before this time: 2026-11-24T00:00:00Z.")
@click.option("--until", metavar="TIME", help="Nothing from this time on.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="Entries to show."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_flags(*SERVICE)
def audit(
    *,
    what: str | None,
    key: str | None,
    project: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Show who did what through the API and these commands, the newest first."""
    from taskpool.access.audit_pages import AuditFilter
    from taskpool.cli.keeper import open_keeper

    wanted = AuditFilter(
        None if what is None else _kind(what),
        None if key is None else _key_id(key),
        project,
        None if since is None else read_time(since, "--since"),
        None if until is None else read_time(until, "--until"),
    )
    found: list[AuditEntryDocument] = []
    cursor = None
    with open_keeper(flags) as keeper:
        while len(found) < limit:
            page = keeper.audit(wanted, cursor, limit - len(found))
            found += page.entries
            cursor = page.next_cursor
            if cursor is None:
                break
    if as_json:
        print_json({"entries": found})
    else:
        nothing = "nothing has been done yet, through the API or these commands"
        if wanted != AuditFilter():
            nothing = "no entry of the audit is like that"
        print_table(("when", "what", "about", "who", "project", "from"), map(_row, found), nothing=nothing)


def _kind(text: str) -> What:
    from taskpool.access.audit import What

    try:
        return What(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is none of {', '.join(What)}", param_hint="--what") from None


def _key_id(text: str) -> str:
    from taskpool.access.apikey import KEY_ID

    if not KEY_ID.fullmatch(text):
        raise click.BadParameter(
            f"{text!r} can't be the id of a key; `taskpool keys list` has them", param_hint="--key"
        )
    return text


def _row(entry: AuditEntryDocument) -> tuple[str, ...]:
    about = entry.about if entry.last is None else f"{entry.about} .. {entry.last} ({entry.count})"
    by = entry.by
    who = by.name if by.key is None else f"{by.name} ({by.key})"
    return moment(datetime.fromisoformat(entry.at)), entry.what, about, who, by.project or "", by.address
