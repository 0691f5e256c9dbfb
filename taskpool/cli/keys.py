"""`taskpool keys` manages API keys; `taskpool audit` shows who did what, through the API and the commands."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.cli.options import Command, Seconds, Time, settings_flags
from taskpool.cli.output import moment, print_json, print_table, say
from taskpool.cli.service import SERVICE

if TYPE_CHECKING:
    from taskpool.access.audit import What
    from taskpool.operations.documents import AuditEntryDocument, KeyDocument


SCOPES: Final = ("tasks:read", "tasks:write", "tasks:stop", "admin")
DAY_S: Final = 86_400

CREATE_EPILOG: Final = """\b
Examples:
  taskpool keys create ops --scope admin
  taskpool keys create shop --project shop --queue mails --days 90 --rate-limit 600
  taskpool keys create prometheus --scope tasks:read

The key is shown once; only a hash of it is kept. As soon as there is a key, the API
asks for one. So make one with the scope admin first: only it can make others at the API.
"""

NO_ADMIN: Final = (
    "Warning: no key has the scope admin, so keys, webhooks and the audit can't be reached through the API. "
    "`taskpool keys create NAME --scope admin` makes one here."
)

ROTATE_EPILOG: Final = """\b
Example:
  taskpool keys rotate k3v0h5m8t2qa --grace 3600

Until the grace is over, the old secret is as good as the new one.
"""

KEYS_EPILOG: Final = """\b
Examples:
  taskpool keys create ops --scope admin
  taskpool keys list
  taskpool keys revoke k3v0h5m8t2qa

With --server they are made through the API, which takes a key with the scope admin
(TASKPOOL_API_KEY); else in Redis itself.
"""


@click.group(epilog=KEYS_EPILOG)
def keys() -> None:
    """Make, list, rotate and revoke keys of the API."""


@keys.command(cls=Command, epilog=CREATE_EPILOG)
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="What it may do [all but admin]; repeatable."
)
@click.option("--project", metavar="NAME", help="It sees the tasks of this project alone, and adds to it.")
@click.option(
    "--type", "types", multiple=True, metavar="NAME", help="Tasks of this type it may start and stop [any]; repeatable."
)
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    help="Tasks in this queue it may start and stop [any]; repeatable.",
)
@click.option("--days", type=click.IntRange(1, 3660), metavar="N", help="It expires after so many days [never].")
@click.option(
    "--rate-limit", type=click.IntRange(min=0), metavar="N", help="Requests a minute; 0: any number [the setting]."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_flags(*SERVICE)
def create(
    name: str,
    *,
    scopes: tuple[str, ...],
    project: str | None,
    types: tuple[str, ...],
    queues: tuple[str, ...],
    days: int | None,
    rate_limit: int | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Make a key called NAME, and show it."""
    from taskpool.access.api_key import PLAIN_SCOPES, KeySpec, Scope
    from taskpool.cli.service import open_keeper

    spec = KeySpec(
        name=name,
        scopes=[Scope(scope) for scope in scopes] or PLAIN_SCOPES,
        project=project,
        types=types or None,
        queues=queues or None,
        expires_in_s=None if days is None else days * DAY_S,
        rate_limit=rate_limit,
    )
    with open_keeper(flags) as keeper:
        key = keeper.create(spec)
        _show(key, as_json=as_json)
        if Scope.ADMIN not in key.scopes and not any(Scope.ADMIN in each.scopes for each in keeper.listed()):
            say(NO_ADMIN, err=True)


@keys.command("list", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_flags(*SERVICE)
def list_(as_json: bool, **flags: Any) -> None:
    """List the keys, without their secrets."""
    from taskpool.cli.service import open_keeper

    with open_keeper(flags) as keeper:
        found = keeper.listed()
    if as_json:
        print_json({"keys": found})
    else:
        columns = ("id", "name", "scopes", "project", "types", "queues", "a minute", "expires", "last used")
        print_table(columns, map(_row, found), nothing="there is no key yet: make one with `taskpool keys create`")


@keys.command(cls=Command, epilog=ROTATE_EPILOG)
@click.argument("id")
@click.option(
    "--grace",
    "grace_s",
    type=Seconds(most_s=366 * DAY_S),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Seconds for which the old secret stays good.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_flags(*SERVICE)
def rotate(id: str, grace_s: float, as_json: bool, **flags: Any) -> None:
    """Give the key ID a new secret, and show it."""
    from taskpool.cli.service import open_keeper

    with open_keeper(flags) as keeper:
        key = keeper.rotate(id, grace_s)
    _show(key, as_json=as_json)


@keys.command(cls=Command)
@click.argument("id")
@settings_flags(*SERVICE)
def revoke(id: str, **flags: Any) -> None:
    """Take the key ID back; it opens nothing from now on."""
    from taskpool.cli.service import open_keeper

    with open_keeper(flags) as keeper:
        keeper.revoke(id)
    say(f"{id} is revoked; streams that are open with it end within a minute")


def _show(key: KeyDocument, *, as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    say(str(key.key))
    say("This is the only time it is shown: put it where secrets are kept.", err=True)


def _row(key: KeyDocument) -> tuple[str, ...]:
    return (
        key.id,
        key.name,
        ",".join(key.scopes),
        key.project or "",
        ",".join(key.types or ()),
        ",".join(key.queues or ()),
        "" if key.rate_limit is None else f"{key.rate_limit:,}" if key.rate_limit else "any",
        _moment(key.expires_at),
        _moment(key.last_used_at),
    )


def _moment(time: str | None) -> str:
    return "" if time is None else moment(datetime.fromisoformat(time))


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
@click.option("--since", type=Time(), metavar="TIME", help="Nothing before this time: 2026-11-24T00:00:00Z.")
@click.option("--until", type=Time(), metavar="TIME", help="Nothing from this time on.")
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
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Show who did what through the API and these commands, the newest first."""
    from taskpool.access.audit import AuditFilter
    from taskpool.cli.service import open_keeper

    wanted = AuditFilter(
        None if what is None else _kind(what),
        None if key is None else _key_id(key),
        project,
        since,
        until,
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
        print_table(("when", "what", "about", "who", "project", "from"), map(_audit_row, found), nothing=nothing)


def _kind(text: str) -> What:
    from taskpool.access.audit import What

    try:
        return What(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is none of {', '.join(What)}", param_hint="--what") from None


def _key_id(text: str) -> str:
    from taskpool.access.api_key import KEY_ID

    if not KEY_ID.fullmatch(text):
        raise click.BadParameter(
            f"{text!r} can't be the id of a key; `taskpool keys list` has them", param_hint="--key"
        )
    return text


def _audit_row(entry: AuditEntryDocument) -> tuple[str, ...]:
    about = entry.about if entry.last is None else f"{entry.about} .. {entry.last} ({entry.count})"
    by = entry.by
    who = by.name if by.key is None else f"{by.name} ({by.key})"
    return moment(datetime.fromisoformat(entry.at)), entry.what, about, who, by.project or "", by.address
