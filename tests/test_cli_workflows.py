"""`taskpool workflow` against a real Redis, and through the API: what it prints, and how it ends."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskpool import Registry, TaskSpec, task
from taskpool.cli.__main__ import main
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.redis import keys, scripts
from taskpool.redis.calls import Call, texts
from taskpool.types import Exit
from tests.cli_ways import Reached
from tests.support import PATIENCE_S


@task("load")
def load(n: int = 0) -> int:
    if n < 0:
        raise ValueError("no luck")
    return n


@pytest.fixture
def pool(redis_url: str, way: list[str]) -> Iterator[Reached]:
    registry = Registry()
    registry.add(load)
    me = PoolInfo(id="p1", host="here", pid=1, queues=("default",), types=tuple(registry.names()), workers=())
    with Reached(redis_url, way, registry) as pool:
        pool.store.run(publish(me, [each.info() for each in registry], ttl_s=60))
        yield pool


def run(pool: Reached, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["workflow", *arguments, *pool.way], input=stdin)


def execute_all(pool: Reached) -> None:
    while running := pool.run_task(["default"], worker="w", attempt_id=secrets.token_hex(4)):
        pool.execute_task(running)
        while refs := pool.store.run(Call(("SMEMBERS", keys.OUTBOX), texts)):  # as housekeeping does it
            pool.store.run_many([scripts.release(ref) for ref in refs])


def submit(pool: Reached, *numbers: int) -> str:
    with pool.workflow("import") as w:
        w.add("first", load.spec())
        w.map("rows", [load.spec(n=n) for n in numbers], after="first")
    return w.id


DOCUMENT: dict[str, Any] = {
    "name": "import",
    "nodes": [
        {"name": "first", "task": {"type": "load", "payload": {"n": 1}}},
        {"name": "second", "task": {"type": "load"}, "after": ["first"]},
    ],
}


def test_submit_takes_a_file_and_prints_the_id(pool: Reached, tmp_path: Path) -> None:
    file = tmp_path / "import.json"
    file.write_text(json.dumps(DOCUMENT))

    by_file, by_stdin = run(pool, "submit", str(file)), run(pool, "submit", "-", stdin=json.dumps(DOCUMENT))

    for result in (by_file, by_stdin):
        assert result.exit_code == Exit.DONE, result.output
        record = pool.get_workflow(result.stdout.strip())
        assert (record.name, [each.name for each in record.nodes]) == ("import", ["first", "second"])


@pytest.mark.parametrize(
    ("nodes", "place"),
    [
        ([{"name": "a", "task": {"type": "load"}, "after": ["b"]}], "/nodes/0/after/0"),
        ([{"name": "a", "task": {"typ": "load"}}], "/nodes/0/task/typ"),
        ([{"name": "a", "map": [{"type": "load", "payload": {"n": "x"}}]}], "/nodes/0/map/0/payload/n"),
    ],
)
def test_submit_names_the_place_of_a_fault(pool: Reached, nodes: Any, place: str) -> None:
    result = run(pool, "submit", json.dumps({"name": "import", "nodes": nodes}))

    assert result.exit_code == Exit.USAGE
    assert place in result.stderr
    assert pool.workflows().items == ()


def test_show_draws_the_graph_and_exits_as_the_workflow_ended(pool: Reached) -> None:
    id = submit(pool, 1, -1)

    before = run(pool, "show", id)
    execute_all(pool)
    after = run(pool, "show", id)

    assert before.exit_code == Exit.DONE
    assert before.stdout.splitlines()[-2:] == [f"· first    queued  {id[:16]}0001", "└─ · rows  2 tasks"]
    assert after.exit_code == Exit.FAILED
    assert "status   failed" in after.stdout
    assert "tasks    3 of 3 ended (100 %): 2 done, 1 failed" in after.stdout
    assert after.stdout.splitlines()[-1] == "└─ ✗ rows  2 tasks: 1 done, 1 failed"


def test_show_prints_json_as_the_api_gives_it(pool: Reached) -> None:
    id = submit(pool, 1)

    document = json.loads(run(pool, "show", id, "--json").stdout)

    assert (document["id"], document["total"]) == (id, 2)
    assert [each["name"] for each in document["nodes"]] == ["first", "rows"]


def test_list_shows_the_newest_first(pool: Reached) -> None:
    first = submit(pool, 1)
    execute_all(pool)
    second = submit(pool, 1)

    every, failed, done = (
        run(pool, "list"),
        run(pool, "list", "--status", "failed"),
        run(pool, "list", "--name", "import", "--status", "done"),
    )
    documents = json.loads(run(pool, "list", "--limit", "1", "--json").stdout)

    lines = every.stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATUS", "ENDED", "OUTCOMES", "CREATED"]
    newest = sorted([first, second], reverse=True)  # ids of one millisecond have no order of their making
    assert [line.split()[0] for line in lines[1:]] == newest
    assert "2 of 2  2 done" in lines[1 + newest.index(first)]
    assert (failed.stdout, failed.stderr) == ("", "there is no workflow\n")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [first]
    assert [each["id"] for each in documents["workflows"]] == newest[:1]


@pytest.mark.parametrize(
    ("number", "status", "text"), [(1, Exit.DONE, "2 of 2 ended"), (-1, Exit.FAILED, "Error: the ")]
)
def test_watch_ends_with_the_workflow(pool: Reached, number: int, status: Exit, text: str) -> None:
    id = submit(pool, number)
    execute_all(pool)

    result = run(pool, "watch", id)

    assert result.exit_code == status
    assert text in result.output


def test_watch_gives_up_after_its_timeout(pool: Reached) -> None:
    id = submit(pool, 1)

    result = run(pool, "watch", id, "--timeout", "0.01")

    assert result.exit_code == Exit.TIMED_OUT
    assert f"workflow {id} is still in_progress" in result.stderr


def test_stop_cancels_and_remove_removes(pool: Reached) -> None:
    id = submit(pool, 1)

    early = run(pool, "remove", id)
    stopped = run(pool, "stop", id)
    again = run(pool, "stop", id, "--json")
    removed = run(pool, "remove", id)
    gone = run(pool, "show", id)

    assert (early.exit_code, "stop it first" in early.stderr) == (Exit.CONFLICT, True)
    assert (stopped.exit_code, stopped.stdout) == (Exit.DONE, "stopped\n")
    assert json.loads(again.stdout)["status"] == "stopped"
    assert (removed.exit_code, removed.stdout) == (Exit.DONE, "removed\n")
    assert (gone.exit_code, f"no workflow has the id {id!r}" in gone.stderr) == (Exit.NOT_FOUND, True)
    assert pool.workflows().items == ()


def test_what_was_done_is_in_the_audit(pool: Reached) -> None:
    id = run(pool, "submit", json.dumps(DOCUMENT)).stdout.strip()
    run(pool, "stop", id)
    run(pool, "remove", id)

    listed = CliRunner().invoke(main, ["audit", "--json", *pool.way])

    entries = [(each["what"], each["about"]) for each in json.loads(listed.stdout)["entries"]]
    assert entries[:3] == [("workflow.removed", id), ("workflow.stopped", id), ("workflow.submitted", id)]


def test_a_batch_runs_its_handler_at_the_end(pool: Reached) -> None:
    record = pool.batch([load.spec(n=1), TaskSpec(type="load")], on_end=load.spec(n=3))

    execute_all(pool)

    ended = pool.wait_workflow(record.id, timeout_s=PATIENCE_S)
    assert (ended.status, ended.counts) == ("done", {"done": 3})


def test_retry_runs_what_failed_again(pool: Reached) -> None:
    id = submit(pool, -1)
    execute_all(pool)
    failed = pool.get_workflow(id)

    result, conflict = run(pool, "retry", id), run(pool, "retry", id, "--json")

    assert (failed.status, failed.counts) == ("failed", {"done": 1, "failed": 1})
    assert (result.exit_code, result.stdout) == (Exit.DONE, "in_progress\n")
    assert (conflict.exit_code, pool.get_workflow(id).counts) == (Exit.CONFLICT, {"done": 1})
