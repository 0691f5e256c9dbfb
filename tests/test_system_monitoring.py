"""A real Prometheus with our configuration reads a real API: each rule can be evaluated, and incidents raise alerts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from benchmarks.ports import free_port
from tests.api_client import api_process, publish_types
from tests.compose import ROOT
from tests.support import eventually

FOLDER = ROOT / "deploy" / "monitoring"

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus isn't installed")


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1/", timeout=10)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """The data of an answer; None while there is none."""
        try:
            answer = self._client.get(path)
        except httpx.TransportError:
            return None
        return answer.json()["data"] if answer.is_success else None

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in (self.get("rules") or {"groups": []})["groups"] for rule in group["rules"]]

    def raised(self) -> set[str]:
        """The alerts that fire, or will when they have lasted long enough."""
        return {rule["name"] for rule in self.rules() if rule["state"] != "inactive"}


@contextmanager
def prometheus(api: str, folder: Path) -> Iterator[Prometheus]:
    """Our configuration, with another target, and without the usual pauses."""
    config = (FOLDER / "prometheus.yml").read_text()
    for here, there in (("/etc/prometheus", str(FOLDER)), ("api:8080", api.removeprefix("http://")), ("15s", "200ms")):
        assert here in config
        config = config.replace(here, there)
    (folder / "prometheus.yml").write_text(config)
    port = free_port()
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
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
        prometheus(url, tmp_path) as prometheus_,
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
            eventually(lambda: wanted <= prometheus_.raised(), 30)
        finally:
            redis.config_set("maxmemory", 0)
        rules = prometheus_.rules()

    assert {rule["health"] for rule in rules} == {"ok"}, rules
    assert not {"TaskpoolDown", "TaskpoolTypeFails", "TaskpoolWebhooksFail"} & {
        rule["name"] for rule in rules if rule["state"] != "inactive"
    }
