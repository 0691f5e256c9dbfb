"""`taskpool keys` and `taskpool audit` on a Redis that runs: what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from taskpool.access.api_key import Scope
from taskpool.cli.__main__ import main
from tests.api_client import api_process, publish_types
from tests.keys import id_of, make_key


def run(redis_url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--redis-url", redis_url])


def test_a_key_is_made_listed_rotated_and_revoked(redis_url: str) -> None:
    made = run(redis_url, "keys", "create", "shop", "--project", "shop", "--queue", "mails", "--days", "3",
               "--rate-limit", "1234", "--json")  # fmt: skip
    document = json.loads(made.stdout)
    rotated = run(redis_url, "keys", "rotate", document["id"], "--grace", "60")
    listed = json.loads(run(redis_url, "keys", "list", "--json").stdout)
    table = run(redis_url, "keys", "list").stdout
    revoked = run(redis_url, "keys", "revoke", document["id"])

    assert "no key has the scope admin" in made.stderr
    assert document["key"].startswith(f"tp_{document['id']}_")
    assert document["scopes"] == ["tasks:read", "tasks:write", "tasks:stop"]
    assert id_of(rotated.stdout) == document["id"]
    assert rotated.stdout.strip() != document["key"]
    assert [key["old_secret_until"] is not None for key in listed["keys"]] == [True]
    assert document["rate_limit"] == 1234
    assert "mails" in table
    assert "1,234" in table
    assert revoked.exit_code == 0
    assert json.loads(run(redis_url, "keys", "list", "--json").stdout) == {"keys": []}


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("create", "x", "--scope", "root"), 2, "tasks:read"),
        (("create", "x", "--scope", "admin", "--project", "p"), 2, "/project"),
        (("create", ""), 2, "/name"),
        (("rotate", "000000000000"), 3, "no API key has the id"),
        (("revoke", "nobody"), 3, "no API key has the id"),
    ],
)
def test_what_cannot_be_is_one_line_and_a_status(
    redis_url: str, arguments: tuple[str, ...], status: int, says: str
) -> None:
    result = run(redis_url, "keys", *arguments)

    assert result.exit_code == status
    assert says in result.output
    assert "Traceback" not in result.output


def test_with_a_server_it_is_all_done_through_the_api(redis_url: str, tmp_path: Path) -> None:
    admin = make_key(redis_url, "root", Scope.ADMIN)
    with api_process(redis_url, tmp_path / "log") as (_, url):

        def ask(*arguments: str, key: str = admin) -> Result:
            return CliRunner().invoke(main, [*arguments, "--server", url, "--api-key", key])

        made = json.loads(ask("keys", "create", "shop", "--project", "shop", "--days", "3", "--json").stdout)
        rotated = ask("keys", "rotate", made["id"], "--grace", "0").stdout
        listed = json.loads(ask("keys", "list", "--json").stdout)["keys"]
        shown = ask("keys", "list").stdout
        revoked = ask("keys", "revoke", made["id"])
        again, forbidden = ask("keys", "revoke", made["id"]), ask("keys", "list", key=rotated.strip())
        wrong = ask("keys", "create", "x", "--scope", "admin", "--project", "p")
        entries = json.loads(ask("audit", "--limit", "3", "--json").stdout)["entries"]
        filters = ("--about", made["id"], "--what", "key.rotated", "--since", "2020-01-01")
        few = json.loads(ask("audit", *filters, "--json").stdout)["entries"]
        by_nobody = ask("audit", "--key", made["id"], "--until", "2999-01-01T00:00:00Z")

    assert made["key"].startswith(f"tp_{made['id']}_")
    assert rotated.startswith(f"tp_{made['id']}_")
    assert rotated.strip() != made["key"]
    assert [(key["name"], key.get("project")) for key in listed] == [("root", None), ("shop", "shop")]
    assert "(in " in shown
    assert (revoked.exit_code, again.exit_code, forbidden.exit_code, wrong.exit_code) == (0, 3, 2, 2)
    assert "no API key has the id" in again.output
    assert "can't have one itself" in wrong.output
    assert [entry["what"] for entry in entries] == ["key.revoked", "key.rotated", "key.created"]
    assert {entry["by"]["name"] for entry in entries} == {"root"}
    assert few == [entries[1]]
    assert (by_nobody.exit_code, by_nobody.stdout, "no entry" in by_nobody.output) == (0, "", True)


def test_creating_a_key_warns_until_there_is_an_admins(redis_url: str) -> None:
    warned = []
    for arguments in ((), ("--scope", "admin"), ()):
        made = run(redis_url, "keys", "create", "x", *arguments)
        warned.append("Warning: no key has the scope admin" in made.stderr)

    assert warned == [True, False, False]


def test_the_audit_has_the_user_who_ran_the_command(redis_url: str) -> None:
    run(redis_url, "keys", "create", "x")

    entries = json.loads(run(redis_url, "audit", "--json").stdout)["entries"]

    assert [entry["what"] for entry in entries] == ["key.created"]
    assert entries[0]["by"]["name"].startswith("taskpool (")
    assert "key.created" in run(redis_url, "audit", "--limit", "1").stdout


def test_the_audit_has_changes_of_tasks_by_commands(redis_url: str) -> None:
    publish_types(redis_url)
    id = run(redis_url, "submit", "echo", "message=hi").stdout.strip()
    run(redis_url, "stop", id)
    run(redis_url, "retry", id)

    entries = json.loads(run(redis_url, "audit", "--json").stdout)["entries"]

    assert [(entry["what"], entry["about"]) for entry in entries] == [
        ("task.retried", id),
        ("task.stopped", id),
        ("task.submitted", id),
    ]
    assert {entry["by"]["name"].partition(" ")[0] for entry in entries} == {"taskpool"}
    assert all(entry["by"]["address"] for entry in entries)


def test_the_audit_is_shown_by_kind_project_and_time(redis_url: str) -> None:
    for name in ("x", "y"):
        run(redis_url, "keys", "create", name)
    publish_types(redis_url)
    id = run(redis_url, "submit", "echo", "message=hi").stdout.strip()

    def found(*wanted: str) -> list[str]:
        return [entry["what"] for entry in json.loads(run(redis_url, "audit", *wanted, "--json").stdout)["entries"]]

    assert id in run(redis_url, "audit", "--what", "task.submitted").stdout
    assert found("--what", "key.created", "--limit", "1") == ["key.created"]
    assert found("--what", "key.created", "--since", "2020-01-01") == ["key.created"] * 2
    assert found("--project", "shop") == found("--until", "2020-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--what", "task.stoped"], "task.stopped"),
        (["--key", "root"], "`taskpool keys list` has them"),
        (["--since", "soon"], "isn't a time"),
        (["--since", "2026-11-24", "--until", "2026-11-23"], "later than `since`"),
    ],
)
def test_a_filter_of_the_audit_that_cannot_be_is_refused(redis_url: str, flags: list[str], says: str) -> None:
    refused = run(redis_url, "audit", *flags)

    assert (refused.exit_code, refused.stdout) == (2, "")
    assert says in refused.output
    assert flags[-2] in refused.output or "until" in refused.output


def test_an_empty_list_is_reported(redis_url: str) -> None:
    assert "there is no key yet" in run(redis_url, "keys", "list").output
    assert "nothing has been done" in run(redis_url, "audit").output
