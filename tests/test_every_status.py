"""Every status, through Redis, RQ, events, HTTP, the client and the command line: all follow its row in STATUSES."""

from __future__ import annotations

import json
from contextlib import suppress

import httpx
import pytest
from click.testing import CliRunner
from rq.job import JobStatus

from taskpool import Client, TaskConflict, TaskPool
from taskpool.cli.__main__ import main
from taskpool.cli.output import STATUS_COLOURS
from taskpool.operations.documents import TaskDocument
from taskpool.operations.status import tells_end
from taskpool.redis import keys
from taskpool.redis.rq_job import status_of
from taskpool.types import ENDS, STATUSES, WEBHOOK_EVENTS, Exit, TaskStatus
from tests.states import SEED, World

S = TaskStatus
ANSI = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "magenta": "35"}
UNUSED = {S.THROTTLED}
"""Statuses of later releases, which no script of this one sets."""

seeded = pytest.mark.parametrize("status", SEED)


def test_every_status_has_a_row_and_a_way_to_come_about() -> None:
    assert list(STATUSES) == list(TaskStatus)
    assert SEED.keys() == {status for status, facts in STATUSES.items() if facts.registry} == set(TaskStatus) - UNUSED


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_is_one_of_rqs_and_scripts_know_its_words(status: TaskStatus) -> None:
    facts = STATUSES[status]

    assert JobStatus(facts.rq)
    assert STATUSES[status_of(facts.rq)].rq == facts.rq
    assert keys.SCRIPT_CONSTANTS["STATUS"][status] == status.value
    assert keys.SCRIPT_CONSTANTS["RQ"][status] == facts.rq
    assert keys.SCRIPT_CONSTANTS["EVENT"][status] == (facts.event or status.value)


def test_scripts_know_which_of_rqs_words_stand_for_an_end() -> None:
    ends = {facts.rq for facts in STATUSES.values() if not facts.moves}

    assert keys.RQ_SET["terminal"] == ends == {"finished", "failed", "stopped", "canceled"}
    assert keys.RQ_SET["retryable"] == ends - {"finished"}
    assert keys.RQ_SET["cancelable"] == {"queued", "scheduled", "deferred"}


@seeded
def test_a_task_stands_in_the_registry_of_its_status_and_only_there(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")

    found = set()
    for key in {f"{registry}default" for registry in keys.REGISTRY_OF.values()}:
        members = world.redis.lrange(key, 0, -1) if key.startswith("rq:queue:") else world.redis.zrange(key, 0, -1)
        found |= {key for member in members if member.partition(b":")[0] == b"a"}

    assert found == {f"{keys.REGISTRY_OF[status]}default"}
    assert world.redis.hget("rq:job:a", "status").decode() == STATUSES[status].rq


@seeded
def test_the_event_of_a_move_has_the_name_and_the_status_of_its_row(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")

    facts = STATUSES[status]
    assert world.events("a")[-1][1:] == (facts.event or status.value, status.value)
    assert (facts.event or status.value) in (*WEBHOOK_EVENTS, "stopping", "waiting")
    assert (not facts.moves) == ((facts.event or status.value) in ENDS)


@seeded
def test_a_waiter_takes_exactly_the_terminal_statuses_for_the_end(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")

    *_, (_, fields) = (each for each in world.redis.xrange("taskpool:events") if json.loads(each[1][b"e"])["id"] == "a")
    is_end = tells_end(fields[b"e"])

    assert is_end == status.is_terminal == (not STATUSES[status].moves)


@seeded
def test_http_the_client_and_the_command_line_show_the_same_status(
    world: World, api_url: str, status: TaskStatus
) -> None:
    SEED[status](world, "a")

    shown = httpx.get(f"{api_url}/tasks/a").json()
    listed = httpx.get(f"{api_url}/tasks", params={"status": status.value}).json()["tasks"]
    with Client(api_url) as client:
        record = client.get("a")
    printed = CliRunner().invoke(main, ["get", "a", "--redis-url", world.url], color=True)

    assert shown["status"] == TaskDocument.of(world.get("a")).status == status.value
    assert "a" in [task["id"] for task in listed]
    assert record.status is status
    assert printed.exit_code == STATUSES[status].exit_status
    colour = STATUSES[status].colour
    assert STATUS_COLOURS[status] == colour
    assert (f"\x1b[{ANSI[colour]}m{status.value}" if colour else status.value) in printed.stdout


@pytest.mark.parametrize("status", STATUSES)
def test_the_exit_status_shows_how_a_task_ended(status: TaskStatus) -> None:
    expected = {S.FAILED: Exit.FAILED, S.STOPPED: Exit.STOPPED, S.CANCELED: Exit.STOPPED}

    assert STATUSES[status].exit_status == expected.get(status, Exit.DONE)


@seeded
def test_exactly_the_retryable_statuses_can_be_retried_by_hand(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")

    with TaskPool(world.url) as pool, suppress(TaskConflict):
        pool.retry_task("a")

    is_retried = (world.events("a")[-1][1:], world.get("a").status) == (("queued", "queued"), S.QUEUED)
    assert (is_retried and status is not S.QUEUED) == STATUSES[status].is_retryable


@seeded
def test_exactly_the_cancelable_statuses_can_be_canceled(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")

    answer = world.cancel("a")

    assert (answer in ("ok", "children")) == (status in keys.CANCELABLE)
    assert world.get("a").status is (S.CANCELED if status in keys.CANCELABLE else status)
