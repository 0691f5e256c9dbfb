"""`taskpool pause`, `resume`, `pools` and `drain`, on Redis and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from taskpool import Registry
from taskpool.cli.__main__ import main
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.types import Exit
from tests.cli_ways import Reached
from tests.stack_answers import answering


@pytest.fixture
def pool(redis_url: str, way: list[str]) -> Iterator[Reached]:
    registry = Registry(builtins=True)
    me = PoolInfo(
        id="p1", host="here", pid=1, queues=("default",), types=tuple(registry.names()), workers=("p1.1",),
        started_ms=1000, memory_bytes=300 * 2**20,
    )  # fmt: skip
    with Reached(redis_url, way, registry) as pool:
        pool.store.run(publish(me, [each.info() for each in registry], ttl_s=60))
        yield pool


def run(pool: Reached, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, *pool.way])


@pytest.mark.parametrize("what", [["default"], ["--pool", "p1"], ["--all"]])
def test_what_is_paused_starts_nothing_until_it_is_resumed(pool: Reached, what: list[str]) -> None:
    pool.add_task("echo", {"message": "hi"})

    paused = run(pool, "pause", *what, "--why", "a reason")
    again = json.loads(run(pool, "pause", *what, "--json").stdout)

    assert paused.exit_code == Exit.DONE
    assert "paused since" in paused.stderr
    assert again["why"] == "a reason"
    assert pool.run_task(["default"], worker="p1.1", attempt_id="a1") is None
    assert run(pool, "resume", *what).exit_code == Exit.DONE
    assert pool.run_task(["default"], worker="p1.1", attempt_id="a2") is not None


def test_the_audit_names_the_user(pool: Reached) -> None:
    run(pool, "pause", "default", "--why", "a reason")

    shown = run(pool, "queue").stdout
    is_direct = "--redis-url" in pool.way

    assert ("taskpool (" in shown) == is_direct
    assert ": a reason" in shown


def test_pools_are_shown_with_what_they_do(pool: Reached) -> None:
    head, line = run(pool, "pools").stdout.splitlines()
    drained = run(pool, "drain", "p1", "--why", "a reason")
    after = json.loads(run(pool, "pools", "--json").stdout)["pools"][0]

    assert head.split() == ["POOL", "STATE", "PROCESSES", "BUSY", "MEMORY", "STARTED", "SEEN", "QUEUES", "PAUSED"]
    assert line.split()[:6] == ["p1", "running", "1", "0", "300", "MiB"]
    assert (drained.exit_code, "draining since" in drained.stderr) == (Exit.DONE, True)
    assert (after["state"], after["paused"]["drains"]) == ("draining", True)


def test_why_a_task_does_not_run_is_told_to_the_root(pool: Reached) -> None:
    first = pool.add_task("echo", {"message": "hi"}).id
    assert "It can start" in run(pool, "why", first).stdout
    pool.pause_queue("default")
    child = pool.add_task("echo", {"message": "hi"}, depends_on=[first]).id

    lines = run(pool, "why", child).stdout.splitlines()
    document = json.loads(run(pool, "why", child, "--json").stdout)

    assert lines[0] == f"{child}  waiting"
    assert lines[1].startswith("  It waits for a task")
    assert lines[2] == f"    {first}  queued"
    assert lines[3].startswith("      The queue 'default' is paused since")
    assert document["reasons"][0]["tasks"][0]["why"][0]["kind"] == "paused"
    assert run(pool, "why", "nobody").exit_code == Exit.NOT_FOUND


def test_a_running_task_is_shown_where_it_is(pool: Reached, redis_url: str) -> None:
    id = pool.add_task("echo", {"message": "hi"}).id
    assert run(pool, "stack", id).exit_code == Exit.CONFLICT
    assert pool.run_task(["default"], worker="w", attempt_id="a1")

    with answering(redis_url, "w", id):
        shown = run(pool, "stack", id)
        whole = run(pool, "stack", id, "--all")
        document = json.loads(run(pool, "stack", id, "--json").stdout)

    assert shown.stdout.splitlines() == ["> /app/tasks.py:41 in resize"]
    assert whole.stdout == "Thread 1 runs something else\n"
    assert [frame["function"] for frame in document["frames"]] == ["run", "resize"]


def test_a_pause_of_a_queue_that_nothing_uses_warns_of_a_wrong_name(pool: Reached) -> None:
    pool.add_task("echo", {"message": "hi"}, queue="mail")

    warned = {name: "is the name right?" in run(pool, "pause", name).stderr for name in ("default", "mail", "mial")}

    assert warned == {"default": False, "mail": False, "mial": True}
    assert {info.name for info in pool.queues() if info.paused} == {"default", "mail", "mial"}


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["pause"], 2, "name a QUEUE"),
        (["pause", "default", "--all"], 2, "name a QUEUE"),
        (["resume", "--pool", "p1", "--all"], 2, "name a QUEUE"),
        (["pause", "a b"], 2, "/queue"),
        (["pause", "default", "--why", ""], 2, "/why"),
        (["drain", "nobody"], Exit.NOT_FOUND, "'nobody'"),
        (["pause", "--pool", "nobody"], Exit.NOT_FOUND, "'nobody'"),
    ],
)
def test_mistakes_are_named(pool: Reached, arguments: list[str], status: int, text: str) -> None:
    result = run(pool, *arguments)

    assert (result.exit_code, text in result.stderr) == (status, True), result.stderr


def test_a_pool_that_drains_is_not_resumed(pool: Reached) -> None:
    run(pool, "drain", "p1")

    assert run(pool, "resume", "--pool", "p1").exit_code == Exit.CONFLICT
