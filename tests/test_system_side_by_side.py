"""The release before this one and this one serve the same Redis at the same time, as during a deployment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.chaos.cluster import OLDER, older_release
from taskpool import Client, TaskPool
from taskpool.redis.embedded import RedisServer
from tests.support import PATIENCE_S, eventually

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.long(about_s=20)
TASKS = """
import os
import time

from taskpool import TaskContext, task

RELEASE = os.environ["RELEASE"]


@task("where")
def where(nap_s: float = 0) -> str:
    time.sleep(nap_s)
    return RELEASE


@task("flaky", max_attempts=2, backoff_s=0.05)
def flaky(ctx: TaskContext) -> int:
    if ctx.attempt == 1:
        raise RuntimeError("once")
    return ctx.attempt


@task("total")
def total(ctx: TaskContext) -> int:
    return sum(ctx.parents.values())


@task("hang")
def hang(ctx: TaskContext) -> None:
    ctx.progress(1, 3, "hangs")
    print("it hangs")
    while not ctx.cancelled:
        time.sleep(0.02)
    ctx.raise_if_cancelled()
"""


@dataclass
class Both:
    """Two API processes and two worker pools of different releases, on one Redis."""

    old: str
    new: str
    redis_url: str

    def clients(self) -> list[Client]:
        return [Client(self.old), Client(self.new)]


def start(stack: ExitStack, root: Path, module: str, directory: Path, **variables: str) -> Path:
    """Starts one process of the code in `root`; its log."""
    log = directory / f"{module}-{variables['RELEASE']}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKPOOL_")}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            env={**environment, "PYTHONPATH": str(root), **variables},
            cwd=root, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    stack.callback(end, process)
    return log


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Both]:
    directory = tmp_path_factory.mktemp("both")
    old_root = older_release(directory / "old")
    if old_root is None:
        pytest.skip(f"the repository doesn't have {OLDER}, as in a shallow clone")
    (directory / "mytasks.py").write_text(TASKS)
    server = RedisServer(directory, binary=redis_binary)
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        common = {"TASKPOOL_REDIS_URL": server.url, "TASKPOOL_PORT": "0"}
        pool = {"TASKPOOL_WORKERS": "1", "TASKPOOL_TASKS": str(directory / "mytasks.py"), "TASKPOOL_LEASE_S": "60"}
        urls = []
        for root, prefix, release in ((old_root, "", "old"), (ROOT, "taskpool_", "new")):
            start(stack, root, f"{prefix}workers", directory, RELEASE=release, **common, **pool)
            log = start(stack, root, f"{prefix}api", directory, RELEASE=release, **common)
            urls.append(eventually(lambda log=log: listening(log)))  # type: ignore[misc]
        with TaskPool(server.url) as watch:
            eventually(lambda: len({worker.pool for worker in watch.workers()}) == 2)
        yield Both(urls[0], urls[1], server.url)


def listening(log: Path) -> str | None:
    _, found, url = log.read_text().partition("listening on ")
    return url.split()[0] if found and "\n" in url else None


def through_both(both: Both, act: Callable[[Client], Any]) -> list[Any]:
    """What each of the two API processes answers."""
    with both.clients()[0] as old, both.clients()[1] as new:
        return [act(old), act(new)]


@contextmanager
def events_of(url: str, id: str) -> Iterator[list[str]]:
    """The names of a task's events, read from one API process after the task has ended."""
    with httpx.stream("GET", f"{url}/tasks/{id}/events", timeout=PATIENCE_S) as answer:
        yield [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]


def test_both_pools_run_tasks_that_either_api_took(both: Both) -> None:
    def run(client: Client) -> set[str]:
        ids = [client.add_task("where", {"nap_s": 0.05}).id for _ in range(20)]
        return {str(client.wait(id, timeout_s=PATIENCE_S).result) for id in ids}

    assert through_both(both, run) == [{"old", "new"}, {"old", "new"}]


def test_an_edge_that_the_older_release_does_not_know_is_satisfied_whichever_pool_ends_the_parent(both: Both) -> None:
    with Client(both.new) as client:
        parents = [client.add_task("where", {"nap_s": 0.05}).id for _ in range(20)]
        after = [client.add_task("where", depends_on=[{"id": id, "on": "any"}]).id for id in parents]
        handlers = [client.add_task("where", depends_on=[{"id": id, "on": "failure"}]).id for id in parents]

        assert {client.wait(id, timeout_s=PATIENCE_S).result for id in parents} == {"old", "new"}
        assert {client.wait(id, timeout_s=PATIENCE_S).status for id in after} == {"done"}
        assert {client.wait(id, timeout_s=PATIENCE_S).reason for id in handlers} == {"not_needed"}


def test_a_task_that_needs_a_confirmation_is_asked_whichever_pool_ends_its_parent(both: Both) -> None:
    with Client(both.new) as client:
        parents = [client.add_task("where", {"nap_s": 0.05}).id for _ in range(20)]
        ids = [client.add_task("where", {"nap_s": 0}, depends_on=[id], confirm=True).id for id in parents]

        assert {client.wait(id, timeout_s=PATIENCE_S).result for id in parents} == {"old", "new"}
        for id in ids:
            record = eventually(lambda id=id: ready if (ready := client.get(id)).status != "waiting" else None)  # type: ignore[misc]
            assert (record.status, record.attempt, len(record.depends_on)) == ("waiting_confirmation", 0, 1)
            client.confirm(id)
        assert {client.wait(id, timeout_s=PATIENCE_S).status for id in ids} == {"done"}


SINCE = {"fingerprint"}
"""What the older release doesn't show."""


def test_both_apis_show_the_same_of_every_task(both: Both) -> None:
    ids = [id for ids in through_both(both, run_one_of_each) for id in ids]

    for id in ids:
        old, new = (httpx.get(f"{url}/tasks/{id}").json() for url in (both.old, both.new))
        assert old == {member: value for member, value in new.items() if member not in SINCE}
        with events_of(both.old, id) as first, events_of(both.new, id) as second:
            assert first == second
            assert first


def run_one_of_each(client: Client) -> list[str]:
    """Ids of tasks that are done, retried, depend on others, and are stopped while they run."""
    flaky = [client.add_task("flaky").id for _ in range(4)]
    total = client.add_task("total", depends_on=flaky).id
    assert client.wait(total, timeout_s=PATIENCE_S).result == 8
    hang = client.add_task("hang").id
    eventually(lambda: client.get(hang).progress)
    client.kill_task(hang)
    assert client.wait(hang, timeout_s=PATIENCE_S).status == "stopped"
    return [*flaky, total, hang]
