"""What rq-dashboard shows of our tasks: the real one, as a process, read as its browser side reads it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskpool import TaskPool
from taskpool.redis.embedded import RedisServer
from taskpool.tasks.registry import Registry
from taskpool.types import TaskStatus
from tests.rq_processes import TASKS, Dashboard, dashboard

REGISTRIES = ("queued", "scheduled", "deferred", "started", "finished", "failed", "canceled")
WORKER = "ann"


@pytest.fixture(scope="module")
def pages(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """rq-dashboard on the tests' Redis."""
    with dashboard(redis_server.url, tmp_path_factory.mktemp("dashboard")) as pages:
        yield pages


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    """A pool that runs the tasks of these tests in this process."""
    with TaskPool(redis_url, registry=Registry([TASKS], builtins=True)) as pool:
        yield pool


def start_next(pool: TaskPool, queue: str = "default") -> str:
    """Claim the next task of a queue; its id."""
    running = pool.run_task([queue], worker=WORKER, attempt_id="attempt1")
    assert running is not None
    return running.id


def run_next(pool: TaskPool, queue: str = "default") -> TaskStatus:
    """Run the next task of a queue here; how it ended."""
    running = pool.run_task([queue], worker=WORKER, attempt_id="attempt1")
    assert running is not None
    return pool.execute_task(running)


@pytest.fixture
def one_of_each(pool: TaskPool) -> dict[str, str]:
    """A task in each of rq-dashboard's registries: their ids."""
    ids = {"finished": pool.add_task("echo", {"message": "well done"}).id}
    run_next(pool)
    ids["failed"] = pool.add_task("read", {"path": "/no/such/file"}).id
    run_next(pool)
    ids["started"] = pool.add_task("echo", {"message": "running"}).id
    start_next(pool)
    ids["canceled"] = pool.add_task("echo", {"message": "never mind"}).id
    pool.remove_task(ids["canceled"])
    ids["queued"] = pool.add_task("echo", {"message": "next"}).id
    ids["scheduled"] = pool.add_task("echo", {"message": "later"}, delay_s=3600).id
    ids["deferred"] = pool.add_task("collect", depends_on=[ids["queued"]]).id
    return ids


def test_each_registry_counts_and_lists_its_task(pages: Dashboard, one_of_each: dict[str, str]) -> None:
    counts = pages.queue("default")
    listed = {registry: [job["id"] for job in pages.jobs(registry)] for registry in REGISTRIES}

    assert counts == dict.fromkeys(REGISTRIES, 1)
    assert listed == {registry: [id] for registry, id in one_of_each.items()}


def test_every_page_opens(pages: Dashboard, one_of_each: dict[str, str]) -> None:
    paths = ["/", "/0/view/workers", *[f"/0/view/jobs/default/{registry}/8/asc/1" for registry in REGISTRIES]]
    paths += [f"/0/view/job/{id}" for id in one_of_each.values()]

    answers = {path: pages.client.get(path).status_code for path in paths}

    assert answers == dict.fromkeys(paths, 200)


def test_a_jobs_page_says_how_its_task_stands(pages: Dashboard, one_of_each: dict[str, str]) -> None:
    statuses = {registry: pages.job(id)["status"] for registry, id in one_of_each.items()}

    assert statuses == {registry: registry for registry in REGISTRIES}


def test_the_page_of_a_done_task_has_its_call_its_result_and_its_times(
    pages: Dashboard, pool: TaskPool, one_of_each: dict[str, str]
) -> None:
    record = pool.get(one_of_each["finished"])

    page = pages.job(record.id)

    assert page["description"] == "echo(message=&#x27;well done&#x27;)"
    assert page["result"] == "well done"
    assert page["exc_info"] is None
    assert [page[name] for name in ("created_at", "started_at", "ended_at")] == [
        time and time.isoformat() for time in (record.created_at, record.started_at, record.ended_at)
    ]


def test_a_failed_task_is_listed_and_shown_with_its_traceback(pages: Dashboard, one_of_each: dict[str, str]) -> None:
    (row,) = pages.jobs("failed")
    page = pages.job(one_of_each["failed"])

    for text in (row["exc_info"], page["exc_info"]):
        assert "in read" in text
        assert "FileNotFoundError: [Errno 2] No such file or directory" in text


def test_the_list_has_readable_calls_and_a_waiting_task_its_own_page(
    pages: Dashboard, one_of_each: dict[str, str]
) -> None:
    assert [job["description"] for job in pages.jobs("queued")] == ["echo(message='next')"]
    assert [job["description"] for job in pages.jobs("deferred")] == ["collect()"]
    assert pages.job(one_of_each["deferred"])["enqueued_at"] is None


def test_queues_are_shown_apart(pages: Dashboard, pool: TaskPool) -> None:
    pool.add_task("echo", {"message": 1}, queue="mails")
    pool.add_task("echo", {"message": 2}, queue="mails")
    other = pool.add_task("echo", {"message": 3}, queue="images")

    assert (pages.queue("mails")["queued"], pages.queue("images")["queued"]) == (2, 1)
    assert [job["id"] for job in pages.jobs("queued", "images")] == [other.id]


def test_no_markup_of_a_payload_reaches_a_page_that_does_not_escape(pages: Dashboard, pool: TaskPool) -> None:
    markup = "<img src=x onerror=alert(1)>"
    task = pool.add_task("echo", {"message": {markup: [markup, 1, None]}})
    run_next(pool)

    answer = pages.client.get(f"/0/data/job/{task.id}.json")

    assert "<" not in answer.text
    escaped = "&lt;img src=x onerror=alert(1)&gt;"
    assert answer.json()["result"] == {escaped: [escaped, 1, None]}
    assert escaped in answer.json()["description"]
