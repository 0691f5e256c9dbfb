"""A real Prometheus with our configuration reads a real API: each rule and each panel of the dashboards works, and
incidents raise alerts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from benchmarks.ports import free_port
from taskpool import TaskPool
from tests.api_client import api_process, publish_types
from tests.support import eventually
from tests.test_monitoring import DASHBOARDS, FOLDER, queries, variables
from tests.test_system_metrics import TASKS
from tests.worker_pool import WorkerPool

DEADLINE_S = 120

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus isn't installed; it is Debian's package `prometheus`"
)


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1/", timeout=30)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; None while there is none."""
        try:
            answer = self._client.get(path, params=parameters)
        except httpx.TransportError:  # it starts
            return None
        if answer.status_code == 503:
            return None
        assert answer.is_success, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def query(self, query: str) -> list[dict[str, Any]]:
        """The series that a query finds now, without those that are no number. Fails if it can't be evaluated."""
        found = (self.get("query", query=query) or {"result": []})["result"]
        return [series for series in found if series["value"][1] != "NaN"]

    def values(self, metric: str, label: str) -> list[str]:
        """The values of a label."""
        return self.get(f"label/{label}/values", **{"match[]": metric}) or []

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in (self.get("rules") or {"groups": []})["groups"] for rule in group["rules"]]

    def alerts(self, *states: str) -> set[str]:
        """The alerts in one of these states."""
        return {rule["name"] for rule in self.rules() if rule["state"] in states}

    def is_evaluated(self) -> bool:
        """Whether every rule was evaluated since the target answered."""
        rules = self.rules()
        return bool(rules) and all(rule["health"] != "unknown" for rule in rules)


def moved(path: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """A copy of a file, with each of these patterns replaced."""
    text = path.read_text()
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text)
        assert count, pattern
    (folder / path.name).write_text(text)
    return folder / path.name


@contextmanager
def prometheus(api: str, folder: Path) -> Iterator[Prometheus]:
    """Our configuration and alerts, with another target, and without the usual pauses."""
    target = api.removeprefix("http://")
    moved(FOLDER / "alerts.yml", folder, (r"(?m)\bfor: \d+[smh]$", "for: 1s"))
    config = moved(
        FOLDER / "prometheus.yml", folder, ("/etc/prometheus", str(folder)), ("api:8080", target), ("15s", "200ms")
    )
    port = free_port()
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip
    server = Prometheus(port)
    try:
        yield server
    except AssertionError:
        print((folder / "prometheus.log").read_text())
        raise
    finally:
        server.close()
        process.terminate()
        process.wait(30)


@pytest.mark.long(about_s=8)
def test_incidents_raise_alerts(redis_url: str, tmp_path: Path) -> None:
    redis = Redis.from_url(redis_url)
    publish_types(redis_url)
    with (
        api_process(redis_url, tmp_path / "api") as (_, url),
        httpx.Client(base_url=url) as client,
        prometheus(url, tmp_path) as server,
    ):
        for queue in ("paused", "nobody"):
            task = {"type": "echo", "payload": {"message": 1}, "queue": queue}
            id = client.post("/tasks", json=task).json()["id"]
            redis.hset(f"rq:job:{id}", "enqueued_at", "2026-11-24T12:00:00.000000Z")
        client.post("/queues/paused/pause")
        redis.set("rq:suspended", 1)
        used = int(redis.info("memory")["used_memory"])
        redis.config_set("maxmemory", used + used // 20)
        try:
            wanted = {
                *("TaskpoolNoWorkers", "TaskpoolQueuePaused", "TaskpoolUnserved", "TaskpoolQueueStalls"),
                *("TaskpoolSuspended", "TaskpoolRedisFull"),
            }
            eventually(lambda: wanted <= server.alerts("firing"), DEADLINE_S)
        finally:
            redis.config_set("maxmemory", 0)
        rules = server.rules()

    assert {rule["health"] for rule in rules} == {"ok"}, rules
    assert not {"TaskpoolDown", "TaskpoolTypeFails", "TaskpoolWebhooksFail"} & {
        rule["name"] for rule in rules if rule["state"] != "inactive"
    }


def work(pool: TaskPool) -> None:
    """Tasks that end in different ways; more than a quarter of the attempts fail. First comes the one that kills its
    process: what that has counted in its last second is lost."""
    for hows in (["die"], ["ok", "snooze", "retry", "fail", "fail", "fail"]):
        for task in [pool.add_task("act", {"how": how}) for how in hows]:
            assert pool.wait(task.id, timeout_s=DEADLINE_S).status.is_terminal


def await_data(server: Prometheus, asked: Iterable[str]) -> None:
    """Wait until each of these queries finds something."""
    left = set(asked)

    def has_all() -> bool:
        left.difference_update([query for query in left if server.query(query)])
        return not left

    with suppress(AssertionError):  # the next line says which have found nothing
        eventually(has_all, DEADLINE_S)
    assert left == set()


@pytest.mark.long(about_s=20)
def test_every_panel_shows_what_workers_and_clients_do(redis_url: str, tmp_path: Path) -> None:
    redis = Redis.from_url(redis_url)
    redis.config_set("maxmemory", 2**40)
    (tmp_path / "acts.py").write_text(TASKS)
    settings = {"tasks": str(tmp_path / "acts.py"), "max_crashes": 1}
    try:
        with (
            WorkerPool(redis_url, tmp_path / "workers.log", **settings) as workers,
            api_process(redis_url, tmp_path / "api.log") as (_, url),
            prometheus(url, tmp_path) as server,
            httpx.stream("GET", f"{url}/events", timeout=DEADLINE_S),
        ):
            httpx.post(f"{url}/queues/paused/pause")
            workers.pool.add_task("act", queue="paused")
            work(workers.pool)
            # The rate of a counter begins with its second scrape.
            ended = {"done", "failed", "retried", "snoozed", "crashed"}
            eventually(lambda: ended <= set(server.values("taskpool_tasks_total", "outcome")), DEADLINE_S)
            work(workers.pool)

            failing = {"TaskpoolTypeFails", "TaskpoolQueuePaused"}
            eventually(lambda: failing <= server.alerts("firing"), DEADLINE_S)
            asked = []
            for board in DASHBOARDS:
                values = {
                    name: f"({'|'.join(server.values(metric, label))})"
                    for name, (metric, label) in variables(board).items()
                }
                assert values.get("queue", "(default|paused)") == "(default|paused)"
                assert values["type"] == "(act)"
                asked += [*queries(board), *queries(board, values)]
            await_data(server, asked)

            assert [target["health"] for target in server.get("targets")["activeTargets"]] == ["up"]
            eventually(server.is_evaluated, DEADLINE_S)
            rules = server.rules()
            lag = {name: server.query(f"taskpool_api_event_lag_seconds_{name}") for name in ("count", "sum")}
    finally:
        redis.config_set("maxmemory", 0)

    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
    assert int(lag["count"][0]["value"][1]) > 0
    assert 0 <= float(lag["sum"][0]["value"][1]) < 86_400
