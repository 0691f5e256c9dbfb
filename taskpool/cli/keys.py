"""`taskpool keys` manages API keys; `taskpool audit` shows who did what, through the API and the commands."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from taskpool.access import keyring
from taskpool.access.api_key import KEY_ID, KeySpec, Scope
from taskpool.access.audit import AuditFilter, What, read_audit
from taskpool.cli.options import read_time, seconds
from taskpool.cli.output import moment, print_json, print_table, say
from taskpool.cli.service import PersonsPool, open_service, person, service_command
from taskpool.client import operations as api
from taskpool.operations.documents import AuditEntryDocument, KeyDocument, audit_document, key_document
from taskpool.types import Page
from taskpool.validation import declared

if TYPE_CHECKING:
    from taskpool.client.client import Client

    Keeper = PersonsPool | Client

DAY_S: Final = 86_400

KEYS_EPILOG: Final = """\b
Examples:
  taskpool keys create ops --scope admin
  taskpool keys list
  taskpool keys revoke k3v0h5m8t2qa

With --server they are made through the API, which takes a key with the scope admin
(TASKPOOL_API_KEY); else in Redis itself.
"""

CREATE_EPILOG: Final = """\b
Examples:
  taskpool keys create ops --scope admin
  taskpool keys create shop --project shop --queue mails --days 90 --rate-limit 600
  taskpool keys create prometheus --scope tasks:read

The key is shown once; only a hash of it is kept. As soon as there is a key, the API
asks for one. So make one with the scope admin first: only it can make others at the API.
"""

ROTATE_EPILOG: Final = """\b
Example:
  taskpool keys rotate k3v0h5m8t2qa --grace 3600

Until the grace is over, the old secret is as good as the new one.
"""

AUDIT_EPILOG: Final = """\b
Examples:
  taskpool audit
  taskpool audit --what task.stopped --since 2026-11-24T00:00:00Z
  taskpool audit --key k3v0h5m8t2qa --limit 500 --json | jq -r '.entries[].about'

Times without a zone are local ones.
"""

NO_ADMIN: Final = (
    "Warning: no key has the scope admin, so keys, webhooks and the audit can't be reached through the API. "
    "`taskpool keys create NAME --scope admin` makes one here."
)

KEY_OPTIONS: Final = [each for each in declared(KeySpec) if each.name not in ("name", "expires_in_s")]

keeper_command = partial(service_command, opens=partial(open_service, starts_redis=True))


@click.group(epilog=KEYS_EPILOG)
def keys() -> None:
    """Make, list, rotate and revoke keys of the API."""


@keeper_command(epilog=CREATE_EPILOG, json="Print JSON.", options=KEY_OPTIONS)
@click.argument("name")
@click.option("--days", type=click.IntRange(1, 3660), metavar="N", help="It expires after this many days [never].")
def create(keeper: Keeper, name: str, days: int | None, as_json: bool, **options: Any) -> None:
    """Make a key called NAME, and show it."""
    expires_in_s = None if days is None else days * DAY_S
    spec = msgspec.convert({"name": name, "expires_in_s": expires_in_s, **options}, KeySpec)
    if isinstance(keeper, PersonsPool):
        made, text = keeper.store.carry_out(keyring.create(spec, person()))
        key = key_document(made, text=text)
    else:
        key = keeper.send(api.create(spec))
    _show(key, as_json=as_json)
    if Scope.ADMIN not in key.scopes and not any(Scope.ADMIN in each.scopes for each in _listed(keeper)):
        say(NO_ADMIN, err=True)


@keeper_command("list", json="Print JSON.")
def list_(keeper: Keeper, as_json: bool) -> None:
    """List the keys, without their secrets."""
    found = _listed(keeper)
    if as_json:
        print_json({"keys": found})
    else:
        columns = ("id", "name", "scopes", "project", "types", "queues", "a minute", "expires", "last used")
        print_table(columns, map(_key_row, found), nothing="there is no key yet: make one with `taskpool keys create`")


def _listed(keeper: Keeper) -> Sequence[KeyDocument]:
    if isinstance(keeper, PersonsPool):
        return [key_document(each.key, each.used_ms) for each in keeper.store.carry_out(keyring.listed())]
    return keeper.send(api.listed()).items


@keeper_command(epilog=ROTATE_EPILOG, json="Print JSON.")
@click.argument("id")
@click.option(
    "--grace", "grace_s", type=seconds(most_s=366 * DAY_S), default=600.0, show_default=True, metavar="S",
    help="Seconds for which the old secret stays good.",
)  # fmt: skip
def rotate(keeper: Keeper, id: str, grace_s: float, as_json: bool) -> None:
    """Give the key ID a new secret, and show it."""
    if isinstance(keeper, PersonsPool):
        rotated, text = keeper.store.carry_out(keyring.rotate(id, person(), grace_s=grace_s))
        key = key_document(rotated, text=text)
    else:
        key = keeper.send(api.rotate(id, grace_s))
    _show(key, as_json=as_json)


@keeper_command()
@click.argument("id")
def revoke(keeper: Keeper, id: str) -> None:
    """Take the key ID back; it opens nothing from now on."""
    if isinstance(keeper, PersonsPool):
        keeper.store.carry_out(keyring.revoke(id, person()))
    else:
        keeper.send(api.revoke(id))
    say(f"{id} is revoked; streams that are open with it end within a minute")


for command in (create, list_, rotate, revoke):
    keys.add_command(command)


def _show(key: KeyDocument, *, as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    say(str(key.key))
    say("This is the only time it is shown: put it where secrets are kept.", err=True)


def _key_row(key: KeyDocument) -> tuple[str, ...]:
    limits = (key.project or "", ",".join(key.types or ()), ",".join(key.queues or ()))
    rate = "" if key.rate_limit is None else f"{key.rate_limit:,}" if key.rate_limit else "any"
    times = [moment(None if at is None else datetime.fromisoformat(at)) for at in (key.expires_at, key.last_used_at)]
    return key.id, key.name, ",".join(key.scopes), *limits, rate, *times


def _key_id(text: str) -> str:
    if not KEY_ID.fullmatch(text):
        raise click.BadParameter(f"{text!r} can't be the id of a key; `taskpool keys list` has them")
    return text


@keeper_command(epilog=AUDIT_EPILOG, json="Print JSON.")
@click.option("--what", type=click.Choice([*map(str, What)]), metavar="WORD",
              help="Only changes of this kind, such as task.stopped.")  # fmt: skip
@click.option("--about", metavar="ID", help="Only changes of this task, key or webhook.")
@click.option("--key", type=_key_id, metavar="ID", help="Only what was done with this key.")
@click.option("--project", metavar="NAME", help="Only what was done with keys of this project.")
@click.option("--since", type=read_time, metavar="TIME", help="Nothing before this time: 2026-11-24T00:00:00Z.")
@click.option("--until", type=read_time, metavar="TIME", help="Nothing from this time on.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="Entries to show."
)
def audit(keeper: Keeper, what: str | None, limit: int, as_json: bool, **filters: Any) -> None:
    """Show who did what through the API and these commands, the newest first."""
    wanted = AuditFilter(None if what is None else What(what), **filters)
    found: list[AuditEntryDocument] = []
    cursor: str | None = None
    while len(found) < limit:
        page = _audit_page(keeper, wanted, cursor, limit - len(found))
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    if as_json:
        print_json({"entries": found})
        return
    nothing = "no entry of the audit is like that"
    if wanted == AuditFilter():
        nothing = "nothing has been done yet, through the API or these commands"
    print_table(("when", "what", "about", "who", "project", "from"), map(_audit_row, found), nothing=nothing)


def _audit_page(keeper: Keeper, wanted: AuditFilter, cursor: str | None, limit: int) -> Page[AuditEntryDocument]:
    if not isinstance(keeper, PersonsPool):
        return keeper.send(api.audit(wanted, cursor, limit))
    page = keeper.store.carry_out(read_audit(wanted, cursor=cursor, limit=limit))
    return Page(tuple([audit_document(each) for each in page.items]), page.next_cursor)


def _audit_row(entry: AuditEntryDocument) -> tuple[str, ...]:
    about = entry.about if entry.last is None else f"{entry.about} .. {entry.last} ({entry.count})"
    by = entry.by
    who = by.name if by.key is None else f"{by.name} ({by.key})"
    return moment(datetime.fromisoformat(entry.at)), entry.what, about, who, by.project or "", by.address
