"""`taskpool up` with real processes: how it starts, what stands in its way, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.ports import free_port
from taskpool.types import Exit
from taskpool.validation import BUILTIN_TYPES
from tests.instances import COMMAND, Up, taskpool
from tests.keys import make_key
from tests.support import PATIENCE_S, eventually

ROOT = Path(__file__).parent.parent
README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Up]]:
    """Collects what a test starts, and leaves nothing running."""
    instances: list[Up] = []
    yield instances
    for instance in instances:
        instance.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """An instance that no test ends, with the README's task file. Its directory has packages with the names of ours."""
    directory = tmp_path_factory.mktemp("shared")
    (directory / "images.py").write_text(next(block for block in README if block.startswith("# images.py")))
    for name in ("api", "workers"):
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text("raise RuntimeError('not ours')")
    up = Up(directory, "--tasks", "images.py", TASKPOOL_LOG_FORMAT="auto")
    try:
        up.await_ready()
        yield up
    finally:
        up.kill()


@pytest.fixture
def up(tmp_path: Path, started: list[Up]) -> Up:
    """A running instance."""
    started.append(Up(tmp_path))
    started[-1].await_ready()
    return started[-1]


def test_when_it_is_ready_the_workers_serve(shared: Up) -> None:
    status, task = shared.ask("POST", "/tasks", {"type": "echo", "payload": {"message": "hello"}})
    _, ended = shared.ask("GET", f"/tasks/{task['id']}?wait=30")

    assert status == 202
    assert (ended["status"], ended["result"]) == ("done", "hello")


def test_it_says_where_it_is_what_to_try_and_where_the_data_lies(shared: Up) -> None:
    assert f"ready: http://127.0.0.1:{shared.port}, 2 workers" in shared.text()
    assert f"curl -s http://127.0.0.1:{shared.port}/tasks" in shared.text()
    assert str(shared.directory / ".taskpool") in shared.text()
    assert "INFO api: listening" in shared.text(), "its log is for people, although its parts write into pipes"


def test_the_commands_beside_it_find_it(shared: Up) -> None:
    submitted = taskpool(shared.directory, "submit", "echo", 'message={"a": [1]}', "--wait", "30")
    id = submitted.stdout.split()[0]

    watched = taskpool(shared.directory, "watch", id)
    workers = json.loads(taskpool(shared.directory, "workers", "--json").stdout)["workers"]

    assert submitted.returncode == Exit.DONE
    assert json.loads(submitted.stdout.splitlines()[1]) == {"a": [1]}
    assert (watched.returncode, json.loads(watched.stdout)) == (Exit.DONE, {"a": [1]})
    assert len(workers) == 2


def test_the_readmes_python_programs_run_beside_it(shared: Up) -> None:
    printed = [python(block, shared.directory) for block in README if "TaskPool(" in block]

    assert printed == ["hello\n", "{'url': 'https://example.org/a.png', 'width': 80}\n"]


def test_a_pool_without_a_url_says_where_it_looked(tmp_path: Path) -> None:
    source = "import taskpool\ntry:\n    taskpool.{}()\nexcept taskpool.ConfigurationError as error:\n    print(error)"

    for kind in ("TaskPool", "AsyncTaskPool"):
        shown = python(source.format(kind), tmp_path)

        assert f"no Redis runs in {tmp_path / '.taskpool'}: start `taskpool up` there" in shown
        assert "TASKPOOL_REDIS_URL" in shown
        assert "TASKPOOL_DATA_DIR" in shown


def test_a_pool_without_a_url_takes_that_of_the_variable(tmp_path: Path, redis_url: str) -> None:
    source = "from taskpool import TaskPool; print(TaskPool().redis_url, TaskPool().queues())"

    assert python(source, tmp_path, TASKPOOL_REDIS_URL=redis_url) == f"{redis_url} []\n"


def python(source: str, directory: Path, **environment: str) -> str:
    """What a program in this directory prints."""
    ended = subprocess.run(
        [sys.executable, "-c", source], cwd=directory, env=os.environ | environment, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.parametrize("where", ["elsewhere", "your Redis"])
def test_the_command_it_prints_works_in_another_terminal(
    where: str, tmp_path: Path, redis_url: str, started: list[Up]
) -> None:
    flags = ["--redis-url", redis_url] if where == "your Redis" else []
    variables = {"TASKPOOL_DATA_DIR": str(tmp_path / "the data")} if where == "elsewhere" else {}
    started.append(up := Up(tmp_path, *flags, **variables))
    up.await_ready()

    run_the_printed_command(up)

    assert up.end() == Exit.DONE


def test_the_command_it_prints_works_in_its_own_directory(shared: Up) -> None:
    run_the_printed_command(shared)


def run_the_printed_command(up: Up) -> None:
    (line,) = [line.partition("Watch")[2].strip() for line in up.text().splitlines() if "Watch" in line]
    run = subprocess.run(
        line.replace("duration_s=10", "duration_s=0.1"), shell=True, cwd=up.directory, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr.splitlines()[-1:]) == (Exit.DONE, ["done"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_of_it_cleanly(number: signal.Signals, up: Up) -> None:
    assert up.end(number) == Exit.DONE

    assert up.text().rstrip().endswith("stopped")
    assert "Traceback" not in up.text()
    assert not (up.directory / ".taskpool" / "redis.url").exists()


def test_stopping_lets_a_running_task_finish_and_tasks_survive_a_restart(up: Up, started: list[Up]) -> None:
    _, done = up.ask("POST", "/tasks", {"type": "echo", "payload": {"message": "kept"}})
    up.ask("GET", f"/tasks/{done['id']}?wait=30")
    _, later = up.ask("POST", "/tasks", {"type": "echo", "payload": {"message": "later"}, "delay_s": 3600})
    _, task = up.ask("POST", "/tasks", {"type": "long_task", "payload": {"duration_s": 3}})
    eventually(lambda: up.ask("GET", f"/tasks/{task['id']}")[1]["status"] == "in_progress")

    up.end()
    started.append(again := Up(up.directory))
    again.await_ready()

    assert again.ask("GET", f"/tasks/{done['id']}")[1]["result"] == "kept"
    assert again.ask("GET", f"/tasks/{later['id']}")[1]["status"] == "scheduled"
    record = again.ask("GET", f"/tasks/{task['id']}")[1]
    assert (record["status"], record["attempt"]) == ("done", 1)


def test_a_second_signal_does_not_wait_and_puts_the_task_back(up: Up, started: list[Up]) -> None:
    _, task = up.ask("POST", "/tasks", {"type": "long_task", "payload": {"duration_s": 600}})
    eventually(lambda: up.ask("GET", f"/tasks/{task['id']}")[1]["status"] == "in_progress")
    up.process.send_signal(signal.SIGINT)
    eventually(lambda: "draining" in up.text())

    assert up.end() == Exit.DONE

    started.append(again := Up(up.directory))
    again.await_ready()
    eventually(lambda: again.ask("GET", f"/tasks/{task['id']}")[1]["status"] == "in_progress")
    assert again.ask("GET", f"/tasks/{task['id']}")[1]["attempt"] == 1
    again.ask("POST", f"/tasks/{task['id']}/stop", {"force": True})


@pytest.mark.parametrize("module", ["workers", "api"])
def test_a_part_that_dies_ends_the_rest_and_is_named(module: str, up: Up) -> None:
    up.part(f"taskpool_{module}").kill()

    assert up.await_end() == Exit.FAILED
    assert f"Error: {module} was killed by SIGKILL" in up.text()


def test_a_dead_redis_ends_the_rest_and_is_named(up: Up) -> None:
    redis = next(child for child in up.children if child.name() == "valkey-server")

    redis.kill()

    assert up.await_end() == Exit.FAILED
    assert "Error: redis ended; see " in up.text()


def test_nothing_outlives_a_launcher_that_is_killed(tmp_path: Path, redis_url: str, started: list[Up]) -> None:
    started.append(up := Up(tmp_path, "--redis-url", redis_url))
    up.await_ready()

    up.process.kill()

    up.await_end()


def test_the_users_tasks_are_served_and_reloaded(tmp_path: Path, started: list[Up]) -> None:
    file = tmp_path / "mine.py"
    code = "from taskpool import task\n\n@task('answer')\ndef answer() -> int:\n    return {}\n"
    file.write_text(code.format(41))
    started.append(up := Up(tmp_path, "--tasks", "mine.py", "--reload"))
    up.await_ready()

    first = json.loads(taskpool(tmp_path, "submit", "answer", "--wait", "30").stdout.split()[1])
    file.write_text(code.format(42))

    assert first == 41
    eventually(lambda: taskpool(tmp_path, "submit", "answer", "--wait", "30").stdout.split()[1] == "42")


def test_a_given_redis_is_used_and_left_running(tmp_path: Path, redis_url: str, started: list[Up]) -> None:
    make_key(redis_url)
    started.append(up := Up(tmp_path, "--redis-url", redis_url))
    up.await_ready()

    assert '/tasks -H "Authorization: Bearer $TASKPOOL_API_KEY"' in up.text()
    listed = taskpool(tmp_path, "workers", "--json", "--redis-url", redis_url)

    assert len(json.loads(listed.stdout)["workers"]) == 2
    assert up.end() == Exit.DONE
    assert not (tmp_path / ".taskpool").exists()
    assert taskpool(tmp_path, "queue", "--redis-url", redis_url).returncode == Exit.DONE


# --- what stands in its way --------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        result = taskpool(tmp_path, "up", "--port", str(port))

    assert result.returncode == Exit.USAGE
    assert result.stderr.startswith(f"Error: port {port} on 127.0.0.1 is in use")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / ".taskpool").exists()


def test_a_data_directory_in_use_is_one_line(shared: Up) -> None:
    result = taskpool(shared.directory, "up", "--port", str(free_port()))

    assert result.returncode == Exit.USAGE
    assert "is in use by process" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_redis_out_of_reach_is_one_line(tmp_path: Path) -> None:
    result = taskpool(tmp_path, "up", "--port", "0", "--redis-url", f"redis://:secret@127.0.0.1:{free_port()}/0")

    assert result.returncode == Exit.USAGE
    assert result.stderr.startswith("Error: can't reach the Redis at ")
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        ((), {"TASKPOOL_PROT": "80"}, "TASKPOOL_PROT: no such setting; did you mean TASKPOOL_PORT?"),
        (("--wokers", "3"), {}, "--workers"),
        (("--workers", "many"), {}, "--workers: 'many' is not a whole number"),
        ((), {"TASKPOOL_WORKERS": "0"}, "TASKPOOL_WORKERS: '0' is not a whole number from 1"),
        (("--log-level", "inof"), {}, "did you mean info?"),
        (("--tasks", "nowhere.py"), {}, "nowhere.py"),
        (("--queues", "a b"), {}, "--queues: 'a b' can't be the name of a queue: "),
        (("--files-root", "nowhere"), {}, "can't use the files root nowhere: No such file or directory"),
        (("--host", "203.0.113.7"), {}, "can't listen on 203.0.113.7"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_starts(
    arguments: tuple[str, ...], environment: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    result = taskpool(tmp_path, "up", *arguments, **{"TASKPOOL_PORT": "0"} | environment)

    assert result.returncode == Exit.USAGE
    assert complaint in result.stderr
    assert complaint not in result.stdout
    assert "Traceback" not in result.stderr


# --- the two halves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "served"),
    [((), []), (("--builtins", "echo,long_task"), ["echo", "long_task"])],
)
def test_what_others_can_reach_serves_only_the_built_in_types_that_are_named(
    arguments: tuple[str, ...], served: list[str], tmp_path: Path, redis_url: str, started: list[Up]
) -> None:
    make_key(redis_url)  # without one it doesn't listen there
    tasks = ("--tasks", str(ROOT / "tests" / "tasks_for_logs.py"))
    public = ("--public-address", "tasks.example.org", "--redis-url", redis_url)
    started.append(up := Up(tmp_path, *tasks, *public, *arguments))
    up.await_ready()

    shown = json.loads(taskpool(tmp_path, "types", "--json", "--redis-url", redis_url).stdout)["types"]
    refused = taskpool(tmp_path, "submit", "http_request", "url=http://a", "--redis-url", redis_url)

    assert [each["name"] for each in shown if each["name"] in BUILTIN_TYPES] == served
    assert refused.returncode == Exit.USAGE
    assert "is built in, but no worker pool serves it: name it in TASKPOOL_BUILTINS" in refused.stderr


@pytest.mark.parametrize("half", ["api", "worker"])
def test_a_half_alone_takes_the_place_of_its_command(half: str, redis_url: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, half, "--redis-url", redis_url, *(["--port", "0"] if half == "api" else ["--workers", "1"])],
        cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr:
        line = process.stderr.readline()
        module = psutil.Process(process.pid).cmdline()[-1]
        process.terminate()
        process.stderr.read()

    assert ("listening" if half == "api" else "pool") in line
    assert module == {"api": "taskpool_api", "worker": "taskpool_workers"}[half]
    assert process.wait(timeout=PATIENCE_S) == 0
