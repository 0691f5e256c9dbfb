"""The commands against a real Redis: what they print, as text and as JSON, and how they end."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
import redis
from click.testing import CliRunner, Result

from taskpool import Client, Registry, TaskContext, TaskPool, task
from taskpool.cli.__main__ import main
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.operations.documents import TaskDocument
from taskpool.types import Exit, TaskRecord
from tests.cli_ways import Reached
from tests.support import PATIENCE_S, eventually


@task("greet", max_attempts=2)
def greet(name: str, times: int = 1) -> str:
    """Say hello."""
    return ", ".join([f"hello {name}"] * times)


@task("boom", queue="fragile")
def boom(ctx: TaskContext) -> None:
    """Fail."""
    raise RuntimeError("no luck")


@pytest.fixture
def pool(redis_url: str, way: list[str]) -> Iterator[Reached]:
    """A pool whose types are announced as a worker pool does it."""
    registry = Registry()
    registry.add(greet)
    registry.add(boom)
    me = PoolInfo(id="p1", host="here", pid=1, queues=("default",), types=tuple(registry.names()), workers=())
    with Reached(redis_url, way, registry) as pool:
        pool.store.run(publish(me, [each.info() for each in registry], ttl_s=60))
        yield pool


def run(pool: Reached, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [*arguments, *pool.way], input=stdin)


def execute_next(pool: TaskPool, queue: str = "default") -> TaskRecord:
    """Run the task at the head of the queue to its end, here."""
    running = pool.run_task([queue], worker="w", attempt_id=secrets.token_hex(4))
    assert running is not None
    pool.execute_task(running)
    return pool.get(running.id)


def in_the_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_submit_prints_the_id_and_queues_the_task(pool: Reached) -> None:
    result = run(pool, "submit", "greet", "name=Ada", "times=2")

    assert result.exit_code == Exit.DONE
    record = pool.get(result.stdout.strip())
    assert (record.type, record.payload, record.status) == ("greet", {"name": "Ada", "times": 2}, "queued")


def test_submit_reads_each_value_as_the_type_wants_it(pool: Reached) -> None:
    result = run(pool, "submit", "greet", "name=123", "times=1")

    assert pool.get(result.stdout.strip()).payload == {"name": "123", "times": 1}


def test_submit_takes_json_and_puts_pairs_on_top(pool: Reached) -> None:
    result = run(pool, "submit", "greet", "times=3", "--json", "-", stdin='{"name": "Ada", "times": 1}')

    assert pool.get(result.stdout.strip()).payload == {"name": "Ada", "times": 3}


def test_submit_passes_its_options_on(pool: Reached) -> None:
    parent = pool.add_task("greet", {"name": "parent"})

    result = run(
        pool, "submit", "greet", "name=x", "--queue", "other", "--tag", "a", "--tag", "b", "--timeout", "7",
        "--max-attempts", "5", "--expires-in", "60", "--depends-on", parent.id,
        "--callback-url", "https://hooks.example/in", "--on-lost-lease", "kill",
    )  # fmt: skip

    record = pool.get(result.stdout.strip())
    assert (record.queue, record.tags, record.timeout_s, record.max_attempts) == ("other", ("a", "b"), 7, 5)
    assert (record.status, record.depends_on) == ("waiting", (parent.id,))
    assert record.expires_at is not None
    assert record.callback_url == "https://hooks.example/in"
    assert record.on_lost_lease == "kill"
    assert re.search(r"on lost lease +kill", run(pool, "get", record.id).stdout)


def test_submit_alone_asks_for_a_type() -> None:
    result = CliRunner().invoke(main, ["submit"])

    assert result.exit_code == Exit.USAGE
    assert "Missing argument 'TYPE'" in result.stderr


@pytest.mark.parametrize("when", [("--delay", "3600"), ("--at", "2199-12-24T18:00:00Z"), ("--at", "2199-12-24 18:00")])
def test_submit_schedules(when: tuple[str, str], pool: Reached) -> None:
    result = run(pool, "submit", "greet", "name=x", *when)

    assert pool.get(result.stdout.strip()).status == "scheduled"


def test_submit_puts_in_front(pool: Reached) -> None:
    pool.add_task("greet", {"name": "first"})

    result = run(pool, "submit", "greet", "name=x", "--front")

    assert pool.get_queue().items[0].record.id == result.stdout.strip()


def test_submit_and_wait_prints_the_result_too(pool: Reached) -> None:
    def work() -> None:
        with TaskPool(pool.redis_url, registry=pool.registry) as mine:
            eventually(lambda: mine.get_queue().items)
            execute_next(mine)

    worker = in_the_background(work)
    result = run(pool, "submit", "greet", "name=Ada", "--wait", "30")
    worker.join()

    assert result.exit_code == Exit.DONE
    assert result.stdout.splitlines()[1:] == ['"hello Ada"']


@pytest.mark.parametrize(
    "arguments",
    [("greet", "--wait", "name=Ada"), ("--wait", "greet", "name=Ada"), ("greet", "name=Ada", "--wait")],
)
def test_wait_takes_no_word_that_is_not_its_number(arguments: tuple[str, ...], pool: Reached) -> None:
    def work() -> None:
        with TaskPool(pool.redis_url, registry=pool.registry) as mine:
            eventually(lambda: mine.get_queue().items)
            execute_next(mine)

    worker = in_the_background(work)
    result = run(pool, "submit", *arguments)
    worker.join()

    assert result.stdout.splitlines()[1:] == ['"hello Ada"']


def test_submit_and_wait_gives_up_when_the_time_is_over(pool: Reached) -> None:
    result = run(pool, "submit", "greet", "name=Ada", "--wait", "0.05")

    assert result.exit_code == Exit.TIMED_OUT
    assert result.stderr.splitlines()[-1].endswith("is still queued after 0.05 s")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["gret", "name=x"], "did you mean 'greet'"),
        (["greet"], "name"),
        (["greet", "name=x", "times=many"], "/payload/times"),
        (["greet", "name=x", "--queue", "a b"], "must be the name of a queue"),
        (["greet", "name=x", "--at", "tomorrow"], "'tomorrow' isn't a time"),
        (["greet", "name"], "'name' isn't key=value"),
        (["greet", "--json", "nowhere.json"], "neither JSON nor a readable file"),
        (["greet", "name=x", "--json", "[1]"], "on top of a JSON object"),
        (["greet", "name=x", "--depends-on", "nobody"], "'nobody'"),
        (["greet", "name=x", "--callback-url", "http://10.0.0.1/"], "the address isn't public"),
        (["greet", "name=x", "--delay", "-1"], "--delay"),
        (["greet", "name=x", "--dealy", "1"], "--delay"),
    ],
)
def test_a_wrong_submission_is_one_clear_line(arguments: list[str], complaint: str, pool: Reached) -> None:
    result = run(pool, "submit", *arguments)

    assert result.exit_code == Exit.USAGE
    assert complaint in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert pool.queues() == [] or sum(info.queued for info in pool.queues()) == 0


def test_get_shows_a_task_and_its_end_in_the_exit_status(pool: Reached) -> None:
    id = pool.add_task("greet", {"name": "Ada"}, tags=["x"]).id
    queued = run(pool, "get", id)
    execute_next(pool)

    done = run(pool, "get", id)

    assert (queued.exit_code, done.exit_code) == (Exit.DONE, Exit.DONE)
    assert ["status", "queued"] in [line.split() for line in queued.stdout.splitlines()]
    fields = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert (fields["id"], fields["status"], fields["result"]) == (id, "done", '"hello Ada"')
    assert fields["attempt"] == "1 of 2"


def test_get_of_a_failed_task_shows_the_traceback(pool: Reached) -> None:
    id = pool.add_task("boom").id
    execute_next(pool, "fragile")

    result = run(pool, "get", id)

    assert result.exit_code == Exit.FAILED
    assert "no luck" in result.stdout
    assert "Traceback" in result.stdout


def test_get_as_json_is_the_document_of_the_api(pool: Reached) -> None:
    record = pool.add_task("greet", {"name": "Ada"})

    result = run(pool, "get", record.id, "--json")

    assert json.loads(result.stdout) == msgspec.to_builtins(TaskDocument.of(pool.get(record.id)))


CRASH = {
    "reason": "crashed", "exit": "signal SIGSEGV", "signal": "SIGSEGV", "worker": "w.1", "pid": 4711, "ran_s": 0.25,
    "usage": {"max_rss_bytes": 52_428_800, "user_s": 0.5, "system_s": 0.25}, "log": ["page 1", "page 2"],
    "stacks": "Thread 1:\n  draw",
}  # fmt: skip


def set_failure(pool: Reached, id: str, failure: Mapping[str, object]) -> None:
    with redis.Redis.from_url(pool.redis_url) as client:
        client.hset(f"rq:job:{id}", "failure", json.dumps(failure))


def test_get_shows_how_the_process_of_a_task_died(pool: Reached) -> None:
    id = pool.add_task("boom", queue="fragile").id
    execute_next(pool, "fragile")
    set_failure(pool, id, CRASH)

    lines = run(pool, "get", id).stdout.splitlines()

    assert [line.split(maxsplit=1) for line in lines if line.startswith(("exit", "process", "ran", "used"))] == [
        ["exit", "signal SIGSEGV"],
        ["process", "w.1, process 4711"],
        ["ran", "0.250 s"],
        ["used", "50 MiB of memory, 0.750 s of CPU time"],
    ]
    assert [" ".join(line.split()) for line in lines[-4:]] == [
        "last lines page 1",
        "page 2",
        "stacks Thread 1:",
        "draw",
    ]
    assert any(line.startswith("fingerprint") for line in lines)


def test_get_shows_a_task_whose_crash_report_is_damaged(pool: Reached) -> None:
    id = pool.add_task("boom", queue="fragile").id
    execute_next(pool, "fragile")
    set_failure(pool, id, {name: ["?"] for name in CRASH})

    result = run(pool, "get", id)

    assert result.exit_code == Exit.FAILED
    assert f"id           {id}" in result.stdout


@pytest.mark.parametrize("command", ["get", "watch", "stop", "retry"])
def test_an_unknown_id_has_its_exit_status(command: str, pool: Reached) -> None:
    result = run(pool, command, "nobody")

    assert result.exit_code == Exit.NOT_FOUND
    assert result.stderr.startswith("Error: no task has the id 'nobody'")
    assert result.stderr.count("\n") == 1


def test_watch_follows_to_the_end(pool: Reached) -> None:
    id = pool.add_task("greet", {"name": "Ada"}).id
    worker = in_the_background(lambda: execute_next(pool))

    result = run(pool, "watch", id)
    worker.join()

    assert (result.exit_code, result.stdout) == (Exit.DONE, '"hello Ada"\n')
    assert result.stderr.splitlines()[-1] == "done"


def test_watch_of_a_failed_task_says_why(pool: Reached) -> None:
    id = pool.add_task("boom").id
    execute_next(pool, "fragile")

    result = run(pool, "watch", id)

    assert (result.exit_code, result.stdout) == (Exit.FAILED, "")
    assert "no luck" in result.stderr.splitlines()[-1]


def test_watch_as_json_prints_the_task(pool: Reached) -> None:
    id = pool.add_task("greet", {"name": "Ada"}).id
    execute_next(pool)

    assert json.loads(run(pool, "watch", id, "--json").stdout)["result"] == "hello Ada"


def test_watch_gives_up_when_the_time_is_over(pool: Reached) -> None:
    id = pool.add_task("greet", {"name": "Ada"}).id

    assert run(pool, "watch", id, "--timeout", "0").exit_code == Exit.TIMED_OUT


def test_stop_cancels_what_waits_and_retry_queues_it_again(pool: Reached) -> None:
    id = pool.add_task("greet", {"name": "Ada"}).id

    stopped = run(pool, "stop", id)
    got = run(pool, "get", id)
    retried = run(pool, "retry", id)

    assert (stopped.exit_code, stopped.stdout) == (Exit.DONE, "canceled\n")
    assert got.exit_code == Exit.STOPPED
    assert (retried.exit_code, retried.stdout) == (Exit.DONE, "queued\n")
    assert pool.get(id).status == "queued"


def test_stop_asks_what_runs_and_leaves_what_ended(pool: Reached) -> None:
    running, ended = (pool.add_task("greet", {"name": name}).id for name in ("a", "b"))
    pool.run_task(["default"], worker="w", attempt_id="t1")
    execute_next(pool)

    assert run(pool, "stop", running).stdout == "stopping\n"
    assert run(pool, "stop", ended, "--force").stdout == "done\n"


def test_retry_of_a_task_that_is_done_is_a_conflict(pool: Reached) -> None:
    id = pool.add_task("greet", {"name": "Ada"}).id
    execute_next(pool)

    result = run(pool, "retry", id)

    assert result.exit_code == Exit.CONFLICT
    assert result.stderr.startswith("Error: ")


def test_queue_lists_all_queues(pool: Reached) -> None:
    pool.add_task("greet", {"name": "Ada"})
    pool.add_task("boom")

    table = [line.split() for line in run(pool, "queue").stdout.splitlines()]
    documents = json.loads(run(pool, "queue", "--json").stdout)["queues"]

    assert table[0] == [
        *["QUEUE", "QUEUED", "IN_PROGRESS", "SCHEDULED", "WAITING", "DONE", "FAILED", "CANCELED", "OLDEST"]
    ]
    assert [row[:2] for row in table[1:]] == [["default", "1"], ["fragile", "1"]]
    assert [(document["name"], document["queued"]) for document in documents] == [("default", 1), ("fragile", 1)]


def test_queue_lists_what_waits_in_one_in_order(pool: Reached) -> None:
    ids = [pool.add_task("greet", {"name": "x" * 200}).id for _ in range(3)]

    result = run(pool, "queue", "default", "--limit", "2")
    documents = json.loads(run(pool, "queue", "default", "--json").stdout)["tasks"]

    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [("1", ids[0]), ("2", ids[1])]
    assert "x" * 200 in result.stdout
    assert "first 2" in result.stderr
    assert [(document["position"], document["id"]) for document in documents] == list(enumerate(ids, start=1))


def test_an_empty_queue_is_reported_on_stderr(pool: Reached) -> None:
    result = run(pool, "queue", "nothing")

    assert (result.exit_code, result.stdout) == (Exit.DONE, "")
    assert result.stderr == "no task is ready to run in the queue 'nothing'\n"


def test_queue_says_what_else_is_in_one(pool: Reached) -> None:
    pool.add_task("greet", {"name": "later"}, delay_s=100)

    result = run(pool, "queue", "default")

    assert result.stderr.splitlines()[1].startswith("Besides: 1 scheduled; see taskpool list --queue default")


def test_list_shows_the_tasks_that_match_all_criteria(pool: Reached) -> None:
    later = pool.add_task("greet", {"name": "later"}, delay_s=100).id
    failed = pool.add_task("boom", {}).id
    execute_next(pool, "fragile")
    running = pool.add_task("greet", {"name": "now"}).id
    pool.run_task(["default"], worker="w", attempt_id="a")

    def listed(*criteria: str) -> list[str]:
        return [task["id"] for task in json.loads(run(pool, "list", *criteria, "--json").stdout)["tasks"]]

    assert listed() == sorted([running, failed, later], reverse=True)
    assert listed("--status", "scheduled") == [later]
    assert listed("--status", "failed", "--queue", "fragile") == listed("--error", "LUCK") == [failed]
    assert listed("--status", "in_progress", "--worker", "w", "--since", "1h") == listed("--text", running) == [running]
    assert listed("--until", "1h") == listed("--min-duration", "1h") == []
    assert failed in run(pool, "list").stdout
    assert "first 1; --limit shows more" in run(pool, "list", "--limit", "1").stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--since", "yesterday"], "/since: must be a time"), (["--status", "lost"], "'lost' is not one of"),
     (["--attempts", "0"], "/attempts: must be a whole number"), (["--node", "a"], "/node: needs a workflow")],
)  # fmt: skip
def test_list_refuses_criteria_that_cannot_be_read(pool: Reached, flags: list[str], says: str) -> None:
    result = run(pool, "list", *flags)

    assert result.exit_code == Exit.USAGE
    assert says in result.stderr


def test_types_are_listed_with_their_payloads(pool: Reached) -> None:
    rows = run(pool, "types").stdout.splitlines()
    documents = {document["name"]: document for document in json.loads(run(pool, "types", "--json").stdout)["types"]}

    assert rows[2].split() == ["greet", "yes", "default", "name,", "times?", "Say", "hello."]
    assert documents["greet"]["max_attempts"] == 2
    assert "name" in json.dumps(documents["greet"]["schema"])


def test_workers_are_none_when_none_runs(pool: Reached) -> None:
    assert "no worker runs" in run(pool, "workers").stderr
    assert json.loads(run(pool, "workers", "--json").stdout) == {"workers": [], "warnings": []}


def test_an_unreachable_redis_is_one_line() -> None:
    result = CliRunner().invoke(main, ["queue", "--redis-url", "redis://127.0.0.1:1/0"])

    assert result.exit_code == Exit.NO_REDIS
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_no_redis_at_all_says_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["types", "--data-dir", str(tmp_path)])

    assert result.exit_code == Exit.USAGE
    assert "taskpool up" in result.stderr


def test_a_bug_is_one_line_too(pool: Reached, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: TaskPool | Client, id: str) -> TaskRecord:
        raise LookupError("this can't be")

    monkeypatch.setattr(TaskPool, "get", fail)
    monkeypatch.setattr(Client, "get", fail)

    result = run(pool, "get", "some-id")

    assert result.exit_code == Exit.BUG
    assert result.stderr.startswith("Error: unexpected LookupError: this can't be")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_ends_watching_quietly(pool: Reached) -> None:
    id = pool.add_task("greet", {"name": "Ada"}, delay_s=3600).id
    process = subprocess.Popen(
        [sys.executable, "-m", "taskpool.cli", "watch", id, *pool.way],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    first = process.stderr.readline()

    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE_S)

    assert (first, output, errors) == ("scheduled\n", "", "")
    assert process.returncode == Exit.INTERRUPTED


def test_a_reader_that_has_gone_is_no_error(pool: Reached) -> None:
    command = f"{sys.executable} -m taskpool.cli types --json {shlex.join(pool.way)} | true"

    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    assert result.stderr == ""


def test_a_misspelt_variable_is_named_with_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPOOL_REDIS_ULR", "redis://127.0.0.1:1/0")

    result = CliRunner().invoke(main, ["workers"])

    assert result.exit_code == Exit.USAGE
    assert "did you mean TASKPOOL_REDIS_URL?" in result.stderr
