"""`taskpool keys` and `taskpool audit`: who may use the API, and who did what there. Straight on Redis, so that the
first key can be made; where the embedded Redis doesn't run, it is started for the moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.cli.options import CONNECTION, Command, load_settings, settings_flags
from taskpool.cli.show import moment, print_json, print_table
from taskpool.types import utc

if TYPE_CHECKING:
    from taskpool.apikey import ApiKey
    from taskpool.audit import Audited
    from taskpool.keyring import Listed
    from taskpool.store import Store

SCOPES: Final = ("tasks:read", "tasks:write", "tasks:stop", "admin")
DAY_S: Final = 86_400

CREATE_EPILOG: Final = """\b
Examples:
  taskpool keys create ops --scope admin
  taskpool keys create shop --project shop --queue mails --days 90 --rate-limit 600
  taskpool keys create prometheus --scope tasks:read

The key is shown once; only a hash of it is kept. From the first one on, the API lets
nobody in without.
"""

ROTATE_EPILOG: Final = """\b
Example:
  taskpool keys rotate k3v0h5m8t2qa --grace 3600

Until the grace is over, the old secret is as good as the new one.
"""

AUDIT_EPILOG: Final = """\b
Examples:
  taskpool audit
  taskpool audit --limit 500 --json | jq '.entries[] | select(.what == "task.stopped")'
"""


KEYS_EPILOG: Final = """\b
Examples:
  taskpool keys create ops --scope admin
  taskpool keys list
  taskpool keys revoke k3v0h5m8t2qa
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
@click.option("--type", "types", multiple=True, metavar="NAME", help="A task type it may submit [any]; repeatable.")
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="A queue it may submit to [any]; repeatable.")
@click.option("--days", type=click.IntRange(1, 3660), metavar="N", help="It expires after so many days [never].")
@click.option(
    "--rate-limit", type=click.IntRange(min=0), metavar="N", help="Requests a minute; 0: any number [the setting]."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_flags(*CONNECTION)
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
    from taskpool import keyring
    from taskpool.apikey import PLAIN_SCOPES, KeySpec, Scope
    from taskpool.cli.person import person

    spec = KeySpec(
        name=name,
        scopes=[Scope(scope) for scope in scopes] or PLAIN_SCOPES,
        project=project,
        types=types or None,
        queues=queues or None,
        expires_in_s=None if days is None else days * DAY_S,
        rate_limit=rate_limit,
    )
    with _open_store(flags) as store:
        key, text = store.carry_out(keyring.create(spec, person()))
    _show(key, text, as_json=as_json)


@keys.command("list", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_flags(*CONNECTION)
def list_(as_json: bool, **flags: Any) -> None:
    """List the keys, without their secrets."""
    from taskpool import keyring
    from taskpool.key_document import key_document

    with _open_store(flags) as store:
        found = store.carry_out(keyring.listed())
    if as_json:
        print_json({"keys": [key_document(each.key, each.used_ms) for each in found]})
    else:
        columns = ("id", "name", "scopes", "project", "types", "queues", "a minute", "expires", "last used")
        print_table(columns, map(_row, found), nothing="there is no key yet: make one with `taskpool keys create`")


@keys.command(cls=Command, epilog=ROTATE_EPILOG)
@click.argument("id")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0, max=366 * DAY_S),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Seconds for which the old secret stays good.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_flags(*CONNECTION)
def rotate(id: str, grace_s: float, as_json: bool, **flags: Any) -> None:
    """Give the key ID a new secret, and show it."""
    from taskpool import keyring
    from taskpool.cli.person import person

    with _open_store(flags) as store:
        key, text = store.carry_out(keyring.rotate(id, person(), grace_s=grace_s))
    _show(key, text, as_json=as_json)


@keys.command(cls=Command)
@click.argument("id")
@settings_flags(*CONNECTION)
def revoke(id: str, **flags: Any) -> None:
    """Take the key ID back; it opens nothing from now on."""
    from taskpool import keyring
    from taskpool.cli.person import person

    with _open_store(flags) as store:
        key = store.carry_out(keyring.revoke(id, person()))
    click.echo(f"{key.id} ({key.name}) is revoked; streams that are open with it end within a minute")


@click.command(cls=Command, epilog=AUDIT_EPILOG)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="Entries to show."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_flags(*CONNECTION)
def audit(limit: int, as_json: bool, **flags: Any) -> None:
    """Show who did what through the API and these commands, the newest first."""
    from taskpool.audit import read
    from taskpool.key_document import audit_document

    found: list[Audited] = []
    cursor = None
    with _open_store(flags) as store:
        while len(found) < limit:
            page = store.carry_out(read(cursor=cursor, limit=limit - len(found)))
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                break
    if as_json:
        print_json({"entries": [audit_document(each) for each in found]})
    else:
        columns = ("when", "what", "about", "who", "project", "from")
        print_table(
            columns, map(_entry_row, found), nothing="nothing has been done yet, through the API or these commands"
        )


@contextmanager
def _open_store(flags: Mapping[str, Any]) -> Iterator[Store]:
    from taskpool.embedded import EmbeddedRedis
    from taskpool.errors import ConfigurationError
    from taskpool.settings import resolve_redis_url
    from taskpool.store import Store

    settings = load_settings(flags)
    with ExitStack() as stack:
        try:
            url = resolve_redis_url(settings)
        except ConfigurationError:  # no `taskpool up` runs there: the first key may have to be there before one does
            url = stack.enter_context(EmbeddedRedis(settings.data_dir)).url
        store = Store(url)
        stack.callback(store.close)
        yield store


def _show(key: ApiKey, text: str, *, as_json: bool) -> None:
    from taskpool.key_document import key_document

    if as_json:
        print_json(key_document(key, text=text))
        return
    click.echo(text)
    click.echo("This is the only time it is shown: put it where secrets are kept.", err=True)


def _row(listed: Listed) -> tuple[str, ...]:
    key = listed.key
    return (
        key.id,
        key.name,
        ",".join(key.scopes),
        key.project or "",
        ",".join(key.types or ()),
        ",".join(key.queues or ()),
        "" if key.rate_limit is None else f"{key.rate_limit:,}" if key.rate_limit else "any",
        "" if key.expires_ms is None else moment(utc(key.expires_ms)),
        "" if listed.used_ms is None else moment(utc(listed.used_ms)),
    )


def _entry_row(audited: Audited) -> tuple[str, ...]:
    entry = audited.entry
    about = entry.about if entry.last is None else f"{entry.about} .. {entry.last} ({entry.count})"
    who = entry.name if entry.key is None else f"{entry.name} ({entry.key})"
    return moment(utc(audited.at_ms)), entry.what, about, who, entry.project or "", entry.address
