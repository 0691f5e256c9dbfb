"""The clients against a real API with workers: each method of both kinds, and that it says what the pool says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from taskpool import Client, TaskNotFound, TaskSpec, TaskStatus, WaitTimeout
from tests.client_kinds import KINDS, Service, client_of, service


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service"), redis_binary) as there:
        yield there


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, there: Service) -> Iterator[Client]:
    with client_of(request.param, there.url) as client:
        yield client


def test_a_task_is_added_and_waited_for(client: Client, there: Service) -> None:
    task = client.add_task("echo", {"message": "hello"}, tags=["a", "b"])

    record = client.wait(task.id, timeout_s=30)

    assert task.status in ("queued", "in_progress")
    assert (record.status, record.result, record.tags) == ("done", "hello", ("a", "b"))
    assert record == there.pool.get(task.id)


def test_every_option_arrives(client: Client, there: Service) -> None:
    parent = client.add_task("echo", {"message": 1}, delay_s=3600)

    task = client.add_task(
        "echo", {"message": 2}, queue="other", front=True, tags=("a",), timeout_s=7.5, result_ttl_s=60,
        failure_ttl_s=61, max_attempts=3, backoff_s=2, backoff_max_s=9, expires_in_s=600, depends_on=[parent.id],
        unique_key=f"key-{parent.id}", unique_until="start",
    )  # fmt: skip

    record = there.pool.get(task.id)
    assert task.status is record.status is TaskStatus.WAITING
    assert (record.queue, record.timeout_s, record.result_ttl_s, record.failure_ttl_s) == ("other", 7.5, 60, 61)
    assert (record.max_attempts, record.backoff_s, record.backoff_max_s) == (3, 2, 9)
    assert (record.depends_on, record.unique_key, record.unique_until) == ((parent.id,), f"key-{parent.id}", "start")
    assert record.expires_at is not None
    assert client.get(task.id) == record


def test_a_failure_is_told_whole(client: Client, there: Service) -> None:
    task = client.add_task("act", {"do": "fail"}, max_attempts=1)

    record = client.wait(task.id, timeout_s=30)

    assert record.status is TaskStatus.FAILED
    assert record.failure is not None
    assert "Traceback" in record.failure["traceback"]
    assert record == there.pool.get(task.id)


def test_a_wait_gives_up_in_time_with_how_the_task_stands(client: Client) -> None:
    task = client.add_task("echo", {"message": 1}, delay_s=3600)

    with pytest.raises(WaitTimeout, match="is still scheduled after") as raised:
        client.wait(task.id, timeout_s=0.2)

    assert raised.value.record.id == task.id


@pytest.mark.parametrize("id", ["nobody", "", "../queues", "a b", "x" * 300])
def test_what_names_no_task_is_not_found(id: str, client: Client) -> None:
    for method in (client.get, client.wait, client.kill_task, client.retry_task, client.remove_task, client.logs):
        with pytest.raises(TaskNotFound) as raised:
            method(id)
        assert raised.value.id == id[:200]


def test_a_batch_is_added_in_its_order(client: Client) -> None:
    tasks = client.add_tasks([TaskSpec(type="echo", payload={"message": n}) for n in range(5)])

    assert [client.wait(task.id, timeout_s=30).result for task in tasks] == list(range(5))
    assert client.add_tasks([]) == []


def test_who_imports_taskpool_does_not_import_http() -> None:
    code = "import sys, taskpool; assert not {'httpx', 'redis', 'rq'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_who_imports_the_client_does_not_import_redis() -> None:
    code = "import sys; from taskpool import Client; assert not {'redis', 'rq', 'hiredis'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
