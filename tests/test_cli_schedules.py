"""`taskpool schedule` against a real Redis, and through the API: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from taskpool import Registry, task
from taskpool.cli.__main__ import main
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.types import Exit
from tests.cli_ways import Reached


@task("work")
def work(n: int = 0, text: str = "") -> None: ...


@pytest.fixture
def pool(redis_url: str, way: list[str]) -> Iterator[Reached]:
    registry = Registry()
    registry.add(work)
    me = PoolInfo(id="p1", host="here", pid=1, queues=("default",), types=tuple(registry.names()), workers=())
    with Reached(redis_url, way, registry) as pool:
        pool.store.run(publish(me, [each.info() for each in registry], ttl_s=60))
        yield pool


def run(pool: Reached, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["schedule", *arguments, *pool.way])


NIGHTLY = ("add", "nightly", "work", "n=3", "text=7", "--cron", "0 2 * * *", "--tz", "Europe/Berlin")


def test_a_schedule_is_added_with_its_task_and_its_options(pool: Reached) -> None:
    added = run(pool, *NIGHTLY, "--overlap", "skip", "--catch-up", "none", "--tag", "x", "--queue", "mails")

    assert added.exit_code == Exit.DONE, added.output
    assert added.output.startswith("At 02:00 every day (Europe/Berlin); next run ")
    record = pool.get_schedule("nightly")
    assert record.task == {"type": "work", "payload": {"n": 3, "text": "7"}, "queue": "mails", "tags": ["x"]}
    assert (record.overlap, record.catch_up) == ("skip", "none")


@pytest.mark.parametrize(
    ("given", "confirm"),
    [
        ("Go?", {"text": "Go?"}),
        ("true", {"text": "Run this task?"}),
        (
            '{"text": "Go?", "timeout": "3h", "default": "confirm"}',
            {"text": "Go?", "timeout": 10_800, "default": "confirm"},
        ),
    ],
)
def test_a_question_is_a_text_or_an_object_of_json(given: str, confirm: dict[str, object], pool: Reached) -> None:
    added = run(pool, "add", "asks", "work", "--every", "1h", "--confirm", given)

    assert added.exit_code == Exit.DONE, added.output
    assert pool.get_schedule("asks").task["confirm"].items() >= confirm.items()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ('{"text": "Go?"', "isn't JSON"),
        ('{"text": "Go?", "timeout": "9q"}', "/confirm/timeout"),
        ('{"text": "Go?", "timeou": "9h"}', "/confirm"),
    ],
)
def test_a_wrong_question_is_refused_with_its_place(given: str, fault: str, pool: Reached) -> None:
    refused = run(pool, "add", "asks", "work", "--every", "1h", "--confirm", given)

    assert refused.exit_code == Exit.USAGE
    assert fault in refused.output


def test_every_and_at_take_human_times(pool: Reached) -> None:
    every = run(pool, "add", "often", "work", "--every", "1h30m", "--jitter", "10s")
    once = run(pool, "add", "once", "work", "--at", "2099-12-24T18:00:00Z", "--json", '{"n": 1}')

    assert every.output.startswith("Every 90 minutes; next run ")
    assert once.output.startswith("Once, at 2099-12-24T18:00:00Z; next run 2099-12-24")
    assert pool.get_schedule("once").task["payload"] == {"n": 1}


def test_schedules_are_listed_previewed_paused_resumed_run_and_removed(pool: Reached) -> None:
    run(pool, *NIGHTLY)

    listed = run(pool, "list")
    preview = run(pool, "next", "nightly")
    paused = run(pool, "pause", "nightly")
    assert run(pool, "list").output.count("paused") == 1
    shown = dict(line.split(maxsplit=1) for line in run(pool, "show", "nightly").output.splitlines())
    assert (shown["name"], shown["status"]) == ("nightly", "paused")
    assert shown["runs"] == "At 02:00 every day (Europe/Berlin)"
    assert json.loads(shown["submits"])["type"] == "work"
    assert json.loads(run(pool, "show", "nightly", "--json").output)["name"] == "nightly"
    assert run(pool, "show", "nobody").exit_code == Exit.NOT_FOUND
    resumed = run(pool, "resume", "nightly")
    id = run(pool, "run", "nightly").output.strip()
    history = run(pool, "history", "nightly")
    removed = run(pool, "remove", "nightly")

    assert "nightly" in listed.output
    assert "At 02:00 every day (Europe/Berlin)" in listed.output
    lines = preview.output.splitlines()
    assert lines[0] == "At 02:00 every day (Europe/Berlin); active"
    runs = [line for line in lines if line.startswith("  ")]
    assert len(runs) == 10
    assert all(" 02:00:00 CET (" in line or " 02:00:00 CEST (" in line for line in runs)
    assert sum("when the clock goes from" in line for line in lines) == 2
    assert paused.output == "nightly is paused\n"
    assert "next run" in resumed.output
    assert id in history.output
    assert "submitted" in history.output
    assert removed.output == "nightly is removed\n"
    assert run(pool, "list").output == "there is no schedule\n"
    assert pool.get(id).schedule == "nightly"


def test_a_preview_needs_no_service() -> None:
    result = CliRunner().invoke(main, ["schedule", "next", "--cron", "0 2 * * *", "--tz", "Europe/Berlin"])

    assert result.exit_code == Exit.DONE, result.output
    lines = result.output.splitlines()
    assert lines[0] == "At 02:00 every day (Europe/Berlin)"
    assert len(lines) == 13


def test_json_is_that_of_the_api(pool: Reached) -> None:
    run(pool, *NIGHTLY)
    run(pool, "run", "nightly")

    listed = json.loads(run(pool, "list", "--json").output)
    shown = json.loads(run(pool, "next", "nightly", "--json").output)
    history = json.loads(run(pool, "history", "nightly", "--json").output)

    assert [each["name"] for each in listed["schedules"]] == ["nightly"]
    assert len(shown["next_runs"]) == 10
    assert history["history"] == shown["history"]
    assert [each["outcome"] for each in history["history"]] == ["submitted"]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["add", "s", "work", "--cron", "0 25 * * *"], Exit.USAGE, "--cron: the hour '25' is invalid"),
        (["add", "s", "work", "--cron", "* * * * * *"], Exit.USAGE, "--cron: has six fields"),
        (["add", "s", "work", "--cron", "0 2 * * *", "--tz", "Mars"], Exit.USAGE, "--tz: must be the IANA name"),
        (["add", "s", "work"], Exit.USAGE, "give one of cron, every and at"),
        (["add", "s", "work", "--every", "5", "--cron", "@daily"], Exit.USAGE, "--every: give either cron or every"),
        (["add", "s", "work", "--every", "0.5"], Exit.USAGE, "must be a duration from 1s"),
        (["add", "s", "work", "--at", "2020-01-01T00:00:00Z"], Exit.USAGE, "/at: must be a time to come"),
        (["add", "s", "work", "n=x", "--every", "5"], Exit.USAGE, "/task/payload/n"),
        (["add", "s", "wrok", "--every", "5"], Exit.USAGE, "unknown task type 'wrok'"),
        (["add", "a name", "work", "--every", "5"], Exit.USAGE, "must be 1 to 64 letters"),
        (["next"], Exit.USAGE, "give either the name of a schedule, or one of --cron"),
        (["next", "s", "--every", "5"], Exit.USAGE, "give either the name of a schedule, or one of --cron"),
        (["next", "--cron", "0 25 * * *"], Exit.USAGE, "--cron: the hour '25' is invalid"),
        (["next", "gone"], Exit.NOT_FOUND, "no schedule has the name 'gone'"),
        (["pause", "gone"], Exit.NOT_FOUND, "no schedule has the name 'gone'"),
        (["run", "gone"], Exit.NOT_FOUND, "no schedule has the name 'gone'"),
        (["remove", "gone"], Exit.NOT_FOUND, "no schedule has the name 'gone'"),
    ],
)
def test_what_is_wrong_ends_with_its_place(pool: Reached, arguments: list[str], status: int, text: str) -> None:
    result = run(pool, *arguments)

    assert result.exit_code == status, result.output
    assert text in result.output
