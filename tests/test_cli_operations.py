"""The commands that change many tasks at once, on Redis and through the API: what they ask, print, and how they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskpool import Registry, task
from taskpool.cli.__main__ import main
from taskpool.cli.operate import operations
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.types import Exit
from tests.cli_ways import Reached


@task("work")
def work(n: int = 0) -> None: ...


@pytest.fixture
def pool(redis_url: str, way: list[str]) -> Iterator[Reached]:
    registry = Registry()
    registry.add(work)
    me = PoolInfo(id="p1", host="here", pid=1, queues=("default",), types=tuple(registry.names()), workers=())
    with Reached(redis_url, way, registry) as pool:
        pool.store.run(publish(me, [each.info() for each in registry], ttl_s=60))
        yield pool


def run(pool: Reached, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [*arguments, *pool.way], input=stdin)


def add(pool: Reached, count: int = 3, **options: Any) -> list[str]:
    return [pool.add_task("work", {}, **options).id for _ in range(count)]


def statuses(pool: Reached, ids: list[str]) -> set[str]:
    return {pool.get(id).status.value for id in ids}


def test_tasks_are_canceled_restored_retried_and_removed(pool: Reached) -> None:
    ids = add(pool, tags=["red"])
    others = add(pool)

    canceled = run(pool, "cancel", "--tag", "red", "--yes")
    assert (canceled.exit_code, canceled.stdout) == (Exit.DONE, "canceled 3\n"), canceled.output
    assert (statuses(pool, ids), statuses(pool, others)) == ({"canceled"}, {"queued"})
    id = canceled.stderr.split()[-1]
    restored = run(pool, "operation", "undo", id)
    assert (restored.exit_code, restored.stdout) == (Exit.DONE, "restored 3\n")
    assert statuses(pool, ids) == {"queued"}

    stopped = run(pool, "stop", "--where", "tag=red status=queued", "--yes")
    retried = run(pool, "retry", "--where", "tag=red", "--where", "since=1h", "--yes", "--json")
    moved = run(pool, "move", "--to", "other", "--tag", "red", "--yes")
    assert (stopped.stdout, json.loads(retried.stdout)["changed"], moved.stdout) == ("stopped 3\n", 3, "moved 3\n")
    assert {pool.get(id).queue for id in ids} == {"other"}

    run(pool, "cancel", "--tag", "red", "--yes")
    assert run(pool, "remove", "--status", "canceled", "--yes").stdout == "removed 3\n"
    assert pool.list_tasks(tag="red").items == ()


@pytest.mark.parametrize(
    "text",
    [
        "status:canceled tag:red",
        "Status:canceled  tag=red since:1h",
        'tag:red "before it started"',
        "tag:red before it started",
    ],
)
def test_where_takes_what_the_search_box_of_the_page_takes(text: str, pool: Reached) -> None:
    ids = add(pool, tags=["red"])
    add(pool)
    run(pool, "cancel", "--tag", "red", "--yes")

    found = run(pool, "list", "--where", text, "--json")

    assert found.exit_code == Exit.DONE, found.output
    assert {each["id"] for each in json.loads(found.stdout)["tasks"]} == set(ids)


def test_where_finds_text_with_colons_and_tasks_that_took_long(pool: Reached) -> None:
    add(pool, tags=["red"])

    for text in ["took:5m", '"KeyError: 1"', "KeyError: 1", "https://example.org"]:
        found = run(pool, "list", "--where", text, "--json")

        assert (found.exit_code, json.loads(found.stdout)["tasks"]) == (Exit.DONE, []), found.output


def test_scheduled_tasks_run_now(pool: Reached) -> None:
    ids = add(pool, delay_s=100)

    assert run(pool, "run-now", "--type", "work", "-y").stdout == "queued 3\n"

    assert statuses(pool, ids) == {"queued"}


def test_a_preview_says_how_many_and_shows_some_and_changes_nothing(pool: Reached) -> None:
    ids = add(pool, 7)
    add(pool, 1, delay_s=100)

    seen = run(pool, "run-now", "--type", "work", "--preview")
    document = json.loads(run(pool, "cancel", "--type", "work", "--preview", "--json").stdout)

    assert seen.exit_code == Exit.DONE
    assert seen.stdout.splitlines()[0] == "1 task"
    assert len(seen.stdout.splitlines()) == 3
    assert seen.stderr == "Left out: 7 queued.\n"
    assert (document["count"], len(document["sample"])) == (8, 5)
    assert statuses(pool, ids) == {"queued"}


def test_it_asks_first(pool: Reached, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = add(pool)

    silent = run(pool, "cancel", "--type", "work")
    monkeypatch.setattr(operations, "_can_ask", lambda: True)
    no = run(pool, "cancel", "--type", "work", stdin="n\n")
    assert statuses(pool, ids) == {"queued"}
    yes = run(pool, "cancel", "--type", "work", stdin="y\n")

    assert silent.exit_code == Exit.USAGE
    assert "this would cancel 3 tasks: add --yes" in silent.stderr
    assert no.exit_code == Exit.FAILED
    assert "Cancel 3 tasks? [y/N]" in no.output
    assert (yes.exit_code, statuses(pool, ids)) == (Exit.DONE, {"canceled"})


def test_what_matches_nothing_is_no_operation(pool: Reached) -> None:
    result = run(pool, "retry", "--type", "work", "--yes")

    assert (result.exit_code, result.stdout, result.stderr) == (Exit.DONE, "", "no task matches\n")
    assert run(pool, "operation", "list").stderr == "there was no operation in the last week\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cancel", "--yes"], "give an ID or criteria"),
        (["retry", "some-id", "--type", "work"], "give either an ID or criteria"),
        (["stop", "--type", "work", "--force"], "--grace and --force are for the task ID"),
        (["cancel", "--where", "colour=red"], "names no criterion"),
        (["cancel", "--where", "colour:red"], "names no criterion"),
        (["cancel", "--where", "red", "--text", "blue"], "text is given twice"),
        (["cancel", "--where", "tag='red"], "No closing quotation"),
        (["cancel", "--tag", "red", "--where", "tag=blue"], "tag is given twice"),
        (["cancel", "--where", "since=soon", "--yes"], "/filter/since: must be a time"),
        (["move", "--type", "work", "--yes"], "Missing option '--to'"),
        (["move", "--to", "a b", "--type", "work", "--yes"], "/queue: 'a b' can't be the name of a queue"),
    ],
)
def test_what_is_no_operation_is_refused(pool: Reached, arguments: list[str], says: str) -> None:
    result = run(pool, *arguments)

    assert result.exit_code == Exit.USAGE, result.output
    assert says in result.stderr


def test_operations_are_listed_shown_and_canceled(pool: Reached) -> None:
    add(pool)
    run(pool, "cancel", "--type", "work", "--yes")

    rows = run(pool, "operation", "list").stdout.splitlines()
    id = rows[1].split()[0]
    shown = run(pool, "operation", "get", id)
    document = json.loads(run(pool, "operation", "get", id, "--json").stdout)
    canceled = run(pool, "operation", "cancel", id)

    assert rows[1].split()[1:5] == ["cancel", "done", "100%", "3"]
    assert ["changed", "3"] in [line.split() for line in shown.stdout.splitlines()]
    assert (document["action"], document["status"], document["filter"]) == ("cancel", "done", {"type": "work"})
    assert canceled.exit_code == Exit.CONFLICT
    assert run(pool, "operation", "get", "nothing").exit_code == Exit.NOT_FOUND


def test_ctrl_c_cancels_it(pool: Reached, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = add(pool)

    def interrupted(*arguments: object) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    for face in ("taskpool.client.client.Client", "taskpool.pool.TaskPool"):
        monkeypatch.setattr(f"{face}.follow_operation", interrupted)
    result = run(pool, "cancel", "--type", "work", "--yes")

    if pool.way[0] == "--redis-url":  # nobody else goes on with it; the API's process may have been faster
        assert (result.exit_code, result.stdout) == (Exit.STOPPED, "canceled 0; canceled\n")
        assert statuses(pool, ids) == {"queued"}
    else:
        assert result.exit_code in (Exit.STOPPED, Exit.CONFLICT)
