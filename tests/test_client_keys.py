"""An API that wants a key: what the clients and the commands make of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from taskpool import ApiError, InvalidTask, NotAllowed, TaskNotFound, TaskSpec, Unauthorized
from taskpool.access.api_key import Scope
from taskpool.cli.__main__ import main
from taskpool.types import Exit
from tests.client_kinds import KINDS, Service, client_of, service
from tests.instances import taskpool
from tests.keys import make_key
from tests.support import PATIENCE_S


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service"), redis_binary) as there:
        there.key = make_key(there.redis_url, "mine")
        yield there


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(there: Service, *arguments: str, key: str | None = None) -> Result:
    return CliRunner().invoke(main, [*arguments, "--server", there.url, "--api-key", key or there.key])


def test_with_its_key_a_client_does_all(kind: str, there: Service) -> None:
    with client_of(kind, there.url, there.key) as client:
        task = client.add_task("echo", {"message": 1})

        assert client.wait(task.id, timeout_s=PATIENCE_S).result == 1
        assert [event.event for event in client.events(task.id)] == ["snapshot"]


@pytest.mark.parametrize("key", [None, "nonsense", "tp_" + "a" * 12 + "_" + "b" * 43])
def test_without_a_valid_key_calls_are_refused(key: str | None, kind: str, there: Service) -> None:
    with client_of(kind, there.url, key) as client, pytest.raises(Unauthorized, match=r"key|Authorization") as raised:
        client.get("t1")

    assert (raised.value.status, raised.value.kind) == (401, "unauthorized")


def test_what_a_key_may_not_do_is_refused(kind: str, there: Service) -> None:
    reader = make_key(there.redis_url, "reader", Scope.READ)
    narrow = make_key(there.redis_url, "narrow", types=["echo"], queues=["default"])

    with client_of(kind, there.url, reader) as client, pytest.raises(NotAllowed, match="tasks:write"):
        client.add_task("echo", {"message": 1})
    with client_of(kind, there.url, narrow) as client:
        with pytest.raises(NotAllowed) as alone:
            client.add_task("echo", {"message": 1}, queue="other")
        with pytest.raises(NotAllowed) as in_batch:
            client.add_tasks([TaskSpec(type="echo", payload={"message": 1}), TaskSpec(type="act", payload={})])

    assert [fault.pointer for fault in alone.value.errors] == ["/queue"]
    assert [fault.pointer for fault in in_batch.value.errors] == ["/1/type"]


def test_a_key_that_may_change_tasks_but_not_read_them_gets_their_statuses(kind: str, there: Service) -> None:
    changer = make_key(there.redis_url, "changer", Scope.WRITE, Scope.STOP)
    with client_of(kind, there.url, changer) as client:
        ids = [client.add_task("echo", {"message": 1}, delay_s=600).id for _ in range(2)]

        killed, removed = client.kill_task(ids[0]), client.remove_task(ids[1])
        retried = client.retry_task(ids[0])

        assert (killed.id, killed.status, killed.payload) == (ids[0], "canceled", None)
        assert (removed, retried.id, retried.payload) == ("canceled", ids[0], None)
        assert run(there, "stop", client.add_task("echo", {"message": 1}, delay_s=600).id, key=changer).exit_code == 0


def test_the_task_of_another_project_is_not_there(kind: str, there: Service) -> None:
    mine, theirs = (make_key(there.redis_url, name, project=name) for name in ("mine", "theirs"))
    with client_of(kind, there.url, mine) as client:
        id = client.add_task("echo", {"message": 1}).id
        client.wait(id, timeout_s=PATIENCE_S)

    with client_of(kind, there.url, theirs) as client:
        for follow in (client.events, client.follow_log, client.follow):
            with pytest.raises(TaskNotFound):
                list(follow(id))
        with pytest.raises(TaskNotFound):
            client.wait(id)


def test_a_body_that_is_too_large_raises_with_its_kind(kind: str, there: Service) -> None:
    with client_of(kind, there.url, there.key) as client:
        with pytest.raises(ApiError) as raised:
            client.add_task("echo", {"message": "x" * 300_000})
        with pytest.raises(InvalidTask, match="1,001"):
            client.add_tasks([TaskSpec(type="echo", payload={"message": 1})] * 1001)

    assert (raised.value.status, raised.value.kind) == (413, "body-too-large")


def test_the_commands_work_from_the_task_to_its_log(there: Service) -> None:
    submitted = run(there, "submit", "act", "do=report", "--wait", "60")
    id = submitted.stdout.split()[0]

    assert (submitted.exit_code, submitted.stdout.split()[1:]) == (Exit.DONE, ["null"])
    assert run(there, "get", id, "--json").stdout.startswith("{")
    assert run(there, "watch", id).exit_code == Exit.DONE
    assert run(there, "logs", "-f", id).stdout.splitlines() == [f"line {n}" for n in range(101)]
    assert "act" in run(there, "types").stdout
    assert json.loads(run(there, "workers", "--json").stdout)["workers"][0]["state"] in ("idle", "busy")
    assert run(there, "retry", id).exit_code == Exit.CONFLICT
    assert run(there, "stop", id).stdout == "done\n"


def test_a_failed_task_has_its_exit_status_here_too(there: Service) -> None:
    failed = run(there, "submit", "act", "do=fail", "--wait")

    assert failed.exit_code == Exit.FAILED
    assert "as asked" in failed.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("key", "complaint"), [("tp_" + "a" * 12 + "_" + "b" * 43, "the API key is unknown"), ("nonsense", "Authorization")]
)
def test_a_wrong_key_is_one_line_and_a_status(key: str, complaint: str, there: Service) -> None:
    result = run(there, "get", "t1", key=key)

    assert result.exit_code == Exit.USAGE
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1
    assert key not in result.stderr


def test_variables_name_the_server_and_the_key(there: Service, tmp_path: Path) -> None:
    variables = {"TASKPOOL_SERVER": there.url, "TASKPOOL_API_KEY": there.key}

    listed = taskpool(tmp_path, "queue", "--json", **variables)
    elsewhere = taskpool(tmp_path, "queue", "--json", "--redis-url", "redis://127.0.0.1:1", **variables)

    assert "default" in [queue["name"] for queue in json.loads(listed.stdout)["queues"]]
    assert elsewhere.returncode == Exit.NO_REDIS


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--server", "http://127.0.0.1:1"], Exit.NO_REDIS, "the API at http://127.0.0.1:1 can't be reached"),
        (["--server", "localhost:8080"], Exit.USAGE, "accepted: http://HOST:PORT or https://HOST:PORT"),
        (["--server", "http://h", "--redis-url", "redis://h"], Exit.USAGE, "exclude each other"),
    ],
)
def test_a_wrong_server_is_one_line(arguments: list[str], status: Exit, complaint: str) -> None:
    result = CliRunner().invoke(main, ["queue", *arguments])

    assert (result.exit_code, result.stderr.count("\n")) == (status, 1)
    assert complaint in result.stderr


def test_a_command_without_a_good_key_says_how_to_give_one(there: Service) -> None:
    result = run(there, "types", key="tp_" + "a" * 12 + "_" + "b" * 43)

    assert result.exit_code == 2
    assert "--api-key" in result.stderr
    assert "TASKPOOL_API_KEY" in result.stderr
