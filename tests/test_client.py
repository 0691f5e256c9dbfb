"""The clients against a real API with workers: each method of both kinds, and that it says what the pool says."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from msgspec import structs
from msgspec.structs import replace as replace_line

from taskpool import (
    ApiUnavailable,
    AsyncClient,
    Client,
    ConfigurationError,
    Dependency,
    InvalidPayload,
    InvalidTask,
    TaskConflict,
    TaskNotFound,
    TaskSpec,
    TaskStatus,
    UniqueConflict,
    WaitTimeout,
)
from taskpool.operations.documents import WorkerDocument
from taskpool.types import TaskOptions, WorkerInfo
from tests.api_client import ROOT
from tests.client_kinds import KINDS, Service, client_of, service
from tests.support import PATIENCE_S
from tests.worker_pool import started


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

    record = client.wait(task.id, timeout_s=PATIENCE_S)

    assert task.status in ("queued", "in_progress")
    assert (record.status, record.result, record.tags) == ("done", "hello", ("a", "b"))
    assert record == there.pool.get(task.id)


def test_every_option_arrives(client: Client, there: Service) -> None:
    parent = client.add_task("echo", {"message": 1}, delay_s=3600)

    task = client.add_task(
        "echo", {"message": 2}, queue="other", front=True, tags=("a",), timeout_s=7.5, result_ttl_s=60,
        failure_ttl_s=61, max_attempts=3, backoff_s=2, backoff_max_s=9, expires_in_s=600,
        depends_on=[parent.id, Dependency(parent.id, "failure"), {"id": parent.id, "on": "any"}],
        unique_key=f"key-{parent.id}", unique_until="start", on_lost_lease="kill",
    )  # fmt: skip

    record = there.pool.get(task.id)
    assert task.status is record.status is TaskStatus.WAITING
    assert (record.queue, record.timeout_s, record.result_ttl_s, record.failure_ttl_s) == ("other", 7.5, 60, 61)
    assert (record.max_attempts, record.backoff_s, record.backoff_max_s) == (3, 2, 9)
    assert record.depends_on == (parent.id, Dependency(parent.id, "failure"), Dependency(parent.id, "any"))
    assert (record.unique_key, record.unique_until) == (f"key-{parent.id}", "start")
    assert record.expires_at is not None
    assert record.on_lost_lease == "kill"
    assert client.get(task.id) == record


def test_a_failure_has_all_its_details(client: Client, there: Service) -> None:
    task = client.add_task("act", {"do": "fail"}, max_attempts=1)

    record = client.wait(task.id, timeout_s=PATIENCE_S)

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

    assert [client.wait(task.id, timeout_s=PATIENCE_S).result for task in tasks] == list(range(5))
    assert client.add_tasks([]) == []


def test_a_refused_submission_says_what_is_wrong_as_the_pool_says_it(client: Client, there: Service) -> None:
    submissions: list[tuple[str, Any, TaskOptions]] = [
        ("eco", {}, {}),
        ("echo", {"mesage": 1}, {}),
        ("echo", {"message": float("nan")}, {}),
        ("echo", {"message": object()}, {}),
        ("echo", {"message": 1}, {"queue": "a b"}),
        ("echo", {"message": 1}, {"depends_on": ["nobody"]}),
        ("echo", {"message": 1}, {"delay_s": 1, "run_at": datetime(2199, 1, 1, tzinfo=UTC)}),
    ]
    for type, payload, options in submissions:
        with pytest.raises(InvalidTask) as raised:
            client.add_task(type, payload, **options)
        with pytest.raises(InvalidTask) as expected:
            there.pool.add_task(type, payload, **options)

        assert vars(raised.value) == vars(expected.value)
        assert raised.type is expected.type
        assert str(raised.value).startswith(str(expected.value).partition(" (and")[0])


def test_nothing_of_a_refused_batch_is_stored(client: Client) -> None:
    specs = [TaskSpec(type="echo", payload={"message": 1}, tags=["refused"]), TaskSpec(type="echo", payload={"x": 1})]

    with pytest.raises(InvalidPayload) as raised:
        client.add_tasks(specs)

    assert [fault.pointer for fault in raised.value.errors] == ["/1/payload/x", "/1/payload/message"]
    assert client.list_tasks(tag="refused").items == ()


def test_a_unique_key_is_refused_or_answered_with_its_holder(client: Client) -> None:
    key = secrets.token_hex(8)
    holder = client.add_task("echo", {"message": 1}, unique_key=key, delay_s=3600)

    with pytest.raises(UniqueConflict) as raised:
        client.add_task("echo", {"message": 2}, unique_key=key)
    with pytest.raises(UniqueConflict) as in_batch:
        client.add_tasks([TaskSpec(type="echo", payload={"message": n}, unique_key=(None, key)[n]) for n in (0, 1)])
    same = client.add_task("echo", {"message": 3}, unique_key=key, on_conflict="return")

    assert (raised.value.id, raised.value.status, raised.value.key) == (holder.id, "scheduled", key)
    assert (in_batch.value.key, in_batch.value.index) == (key, 1)
    assert (same.id, same.is_existing, holder.is_existing) == (holder.id, True, False)


def test_tasks_are_listed_page_by_page(client: Client, there: Service) -> None:
    tag = secrets.token_hex(8)
    ids = [client.add_task("echo", {"message": n}, tags=[tag], delay_s=3600).id for n in range(5)]

    first = client.list_tasks(tag=tag, status=TaskStatus.SCHEDULED, limit=3)
    second = client.list_tasks(tag=tag, status=TaskStatus.SCHEDULED, limit=3, cursor=first.next_cursor)

    # Of one millisecond, ids are in any order.
    assert [record.id for record in (*first.items, *second.items)] == sorted(ids, reverse=True)
    assert first == there.pool.list_tasks(tag=tag, status=TaskStatus.SCHEDULED, limit=3)
    assert client.list_tasks(tag=tag, type="long_task").items == ()
    with pytest.raises(InvalidTask, match="not a cursor"):
        client.list_tasks(cursor="x")


def test_a_queue_is_shown_in_its_order(client: Client, there: Service) -> None:
    name = f"q-{secrets.token_hex(4)}"
    ids = [client.add_task("echo", {"message": n}, queue=name).id for n in range(3)]

    page = client.get_queue(name, limit=2)

    assert [(task.position, task.record.id) for task in page.items] == [(1, ids[0]), (2, ids[1])]
    assert [task.record for task in page.items] == [there.pool.get(id) for id in ids[:2]]
    assert [task.record.id for task in client.get_queue(name, cursor=page.next_cursor).items] == ids[2:]
    assert name in [info.name for info in client.queues()]


def test_the_fleet_is_shown_as_the_pool_shows_it(client: Client, there: Service) -> None:
    def shown(workers: Sequence[WorkerInfo]) -> list[WorkerDocument]:
        idle = [
            replace(each, last_heartbeat=None, working_s=0, done=0, failed=0, state="", current=()) for each in workers
        ]
        return [WorkerDocument.of(each) for each in idle]

    assert client.types() == [structs.replace(info, last_seen_ms=ANY) for info in there.pool.types()]
    assert shown(client.workers()) == shown(there.pool.workers())


def test_what_waits_is_canceled_and_queued_again_and_purged(client: Client) -> None:
    id = client.add_task("echo", {"message": 1}, queue="nobody").id

    canceled = client.remove_task(id)
    again = client.retry_task(id)
    stopped = client.kill_task(id)
    purged = client.remove_task(id)

    assert (canceled, again.status, stopped.status, purged) == ("canceled", "queued", "canceled", None)
    with pytest.raises(TaskNotFound):
        client.get(id)


def test_what_runs_is_stopped_and_what_has_ended_is_left(client: Client, tmp_path: Path) -> None:
    id = client.add_task("act", {"do": "hang", "note": str(tmp_path / "note")}).id
    started(tmp_path / "note")

    with pytest.raises(TaskConflict) as removed:
        client.remove_task(id)
    with pytest.raises(TaskConflict) as retried:
        client.retry_task(id)
    stopping = client.kill_task(id, force=True)
    ended = client.wait(id, timeout_s=PATIENCE_S)

    assert (removed.value.id, removed.value.status, retried.value.status) == (id, "in_progress", "in_progress")
    assert stopping.status in {"stopping", "stopped"}  # it may be gone before the answer is read
    assert ended.status == "stopped"
    assert client.kill_task(id) == ended


def test_a_task_is_followed_with_its_progress_to_its_end(client: Client, tmp_path: Path) -> None:
    id = client.add_task("act", {"do": "report_and_hang", "until": str(tmp_path / "until")}).id

    statuses = []
    for record in client.follow(id, timeout_s=PATIENCE_S):
        statuses.append(record.status)
        if record.progress is not None:
            (tmp_path / "until").touch()

    assert statuses[-1] is TaskStatus.DONE
    assert statuses.count(TaskStatus.DONE) == 1
    with pytest.raises(WaitTimeout):
        list(client.follow(client.add_task("echo", {"message": 1}, delay_s=60).id, timeout_s=0.1))


def test_each_event_comes_once_up_to_the_end(client: Client, tmp_path: Path) -> None:
    id = client.add_task("act", {"do": "report_until", "until": str(tmp_path / "until")}, queue="default").id

    events = []
    for event in client.events(id):
        events.append(event)
        (tmp_path / "until").touch()

    record = client.get(id)
    assert [event.seq for event in events] == list(range(events[0].seq, record.seq + 1))
    assert (events[0].event, events[0].data["id"]) == ("snapshot", id)
    assert [event.data["progress"] for event in events if event.event == "progress"] == [{"done": 1, "total": 2}]
    assert (events[-1].event, events[-1].status, events[-1].id) == ("done", "done", id)
    assert list(client.events(id, after=events[-2].stream)) == events[-1:]
    assert list(client.events(id, after=events[-1].stream)) == []
    assert [event.status for event in client.events(id)] == ["done"]


def test_a_loop_over_events_may_end_early(client: Client) -> None:
    received = client.events(client.add_task("echo", {"message": 1}, delay_s=3600).id)

    assert next(received).event == "snapshot"
    received.close()  # type: ignore[attr-defined]


def test_a_log_is_read_in_pages_and_followed(client: Client, there: Service) -> None:
    id = client.add_task("act", {"do": "report"}).id

    followed = list(client.follow_log(id))
    first = client.logs(id, limit=60)
    second = client.logs(id, limit=60, cursor=first.next_cursor)

    assert [line.text for line in followed] == [f"line {n}" for n in range(101)]
    assert [*first.items, *second.items] == followed
    assert second.next_cursor is None
    assert [replace_line(line, id="") for line in there.pool.logs(id, limit=101).items] == followed
    assert list(client.follow_log(id, cursor=first.next_cursor)) == followed[60:]
    with pytest.raises(InvalidTask):
        list(client.follow_log(id, cursor="x"))


@pytest.mark.parametrize("name", ["events", "follow_log", "follow"])
def test_following_an_unknown_task_raises(name: str, client: Client) -> None:
    with pytest.raises(TaskNotFound):
        list(getattr(client, name)("nobody"))


@pytest.mark.parametrize(
    ("url", "key"), [("localhost:8080", None), ("redis://h", None), ("http://", None), ("http://h:x", None),
     ("http://h?a=1", None), ("http://user:hush@h", None), ("ftp://user:hush@h", None), ("http://h", "a b\n")],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_can_be_no_server_or_key_is_refused(kind: type[Client], url: str, key: str | None) -> None:
    with pytest.raises(ConfigurationError) as raised:
        kind(url, key)

    assert "hush" not in str(raised.value)


def test_a_proxy_of_the_surroundings_is_not_for_a_server_on_this_machine(
    there: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    for kind in KINDS:
        with client_of(kind, there.url, retries=0) as client:
            assert client.queues() is not None
        with client_of(kind, "http://tasks.invalid", retries=0) as client, pytest.raises(ApiUnavailable):
            client.queues()


def test_the_examples_of_the_guide_work(there: Service) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text("utf-8"), re.DOTALL)
    shown = []
    for code in blocks:
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", code.replace("http://localhost:8080", there.url)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.stderr == ""
        shown.append(ran.stdout.splitlines())

    first, second, third = shown
    assert first[1].startswith("snapshot ")
    assert first[-2:] == ["done done", "done {'slept_s': 1.0}"]
    assert second == [str(list(range(10)))]
    assert third == ["""[('/payload/duration_s', '"soon" is not of type "number"')]""", "unknown"]


def test_importing_taskpool_does_not_import_http() -> None:
    code = "import sys, taskpool; assert not {'httpx', 'redis', 'rq'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_client_does_not_import_redis() -> None:
    code = "import sys; from taskpool import Client; assert not {'redis', 'rq', 'hiredis'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
