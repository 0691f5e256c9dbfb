"""Ten incidents, each seeded in a real installation and found from the home page in at most four clicks."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import pytest
from playwright.sync_api import expect
from redis import Redis

from taskpool import Every, TaskSpec
from taskpool.operations.insight import history
from taskpool.redis import keys, scripts
from tests.browser.conftest import Faults, Site, started_site
from tests.states import new_task
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, started

MOST_CLICKS: Final = 4
NOBODY: Final = "http://127.0.0.1:9/hook"
"""Where nothing listens."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Site]:
    """One installation, in which one thing after the other goes wrong: its pool has the build `b1`."""
    with started_site(tmp_path_factory.mktemp("site"), redis_binary, build="b1") as site:
        yield site


@pytest.fixture
def redis(site: Site) -> Iterator[Redis]:
    """The Redis of the installation."""
    client = Redis.from_url(site.redis_url)
    yield client
    client.close()


@contextmanager
def another_pool(site: Site, folder: Path, **settings: Any) -> Iterator[WorkerPool]:
    """A further worker pool of the same installation."""
    with WorkerPool(site.redis_url, folder / "pool.log", **settings) as workers:
        yield workers


@dataclass
class Walk:
    """Somebody who starts at home and clicks."""

    page: Any
    clicks: int = 0

    def click(self, place: Any) -> None:
        """One click. There may be four."""
        self.clicks += 1
        assert self.clicks <= MOST_CLICKS
        place.click()


def from_home(page: Any, site: Site, rule: str, title: str) -> Walk:
    """Waits until a rule has found something, and opens what home says about it: the first click."""
    eventually(
        lambda: any(each["id"].startswith(rule) for each in httpx.get(f"{site.url}/findings").json()["findings"])
    )
    page.goto("/")
    walk = Walk(page)
    finding = page.get_by_role("list", name="Findings").get_by_role("link").filter(has_text=re.compile(title))
    walk.click(finding.first)
    return walk


def yes(page: Any, button: str) -> Any:
    return page.get_by_role("dialog").get_by_role("button", name=button, exact=True)


def test_a_bad_deployment(page: Any, site: Site, tmp_path: Path) -> None:
    with another_pool(site, tmp_path, queues="images", build="4f2c1a") as bad:
        for _ in range(6):
            bad.result("fail", queue="images")

    from_home(page, site, "failing", "act fails since build 4f2c1a: ValueError at tasks_for_tests.py")

    expect(page.locator("main")).to_contain_text('raise ValueError("as asked")')
    expect(page.locator(".split").first).to_contain_text("4f2c1a")


def test_a_queue_that_no_pool_serves(page: Any, site: Site, redis: Redis) -> None:
    id = site.workers.submit(queue="reports").id
    redis.hset(keys.JOB + id, "enqueued_at", "2026-11-01T00:00:00.000Z")

    from_home(page, site, "unserved_queue", "No worker serves the queue reports: 1 task waits")

    expect(page.locator(".command")).to_contain_text("taskpool worker --queues reports")


def test_a_paused_queue(page: Any, site: Site) -> None:
    site.pool.pause_queue("default", why="migration")
    id = site.workers.submit().id

    try:
        walk = from_home(page, site, "paused", "The queue default is paused .*: migration")
        walk.click(page.get_by_role("button", name="Resume default"))
        walk.click(yes(page, "Resume"))
        expect(page.get_by_role("dialog")).to_have_count(0)
    finally:
        site.pool.resume_queue("default")

    assert site.pool.wait(id, timeout_s=PATIENCE_S).status == "done"


def _pool_of(queue: str, site: Site) -> str | None:
    """The name of the pool that serves a queue, once it has announced its processes."""
    return next((each.name for each in site.pool.pools() if each.queues == (queue,) and each.processes), None)


def test_a_pool_that_is_missing(page: Any, site: Site, redis: Redis, tmp_path: Path) -> None:
    with another_pool(site, tmp_path, queues="eu") as lost:
        name = eventually(lambda: _pool_of("eu", site))  # with its process, which it announces a little later
        id = lost.submit("hang", queue="eu", note=tmp_path / "note").id
        started(tmp_path / "note")
        os.kill(lost.process.pid, signal.SIGKILL)
    redis.delete(f"{keys.POOL}{name}")  # otherwise it is missed after its next heartbeats
    redis.zrem(keys.POOLS, str(name))

    walk = from_home(page, site, "gone_pool", f"The pool {name} has been gone")
    expect(page.get_by_role("region", name=f"Pool {name}")).to_contain_text("gone, not drained")
    walk.click(page.get_by_role("region", name=f"Pool {name}").get_by_role("link", name="process 1"))

    expect(page.get_by_role("row").filter(has_text=id[-8:])).to_be_visible()


def test_a_task_that_kills_its_worker(page: Any, site: Site) -> None:
    for _ in range(2):
        site.workers.result("die")

    walk = from_home(page, site, "poison", "act kills its worker process: SIGKILL")
    walk.click(page.locator(".tiles").get_by_role("link", name=re.compile("^…")))

    expect(page.locator("main")).to_contain_text("SIGKILL")


def test_a_slow_dependency(page: Any, site: Site, redis: Redis) -> None:
    minute = int(time.time()) // 60
    usual = history.bucket_of({history.Key("long_task", "slow", "b"): {"done": 20, "r0.5": 20}}, {})
    slow = history.bucket_of({history.Key("long_task", "slow", "b"): {"done": 10, "r10": 10}}, {})
    redis.hset(keys.STATS_MINUTES, mapping={**{minute - ago: usual for ago in (30, 31, 32)}, minute - 2: slow})
    id = site.pool.add_task("long_task", {"duration_s": 60}).id

    walk = from_home(page, site, "slow", "long_task takes 7.5 s, usually 375 ms")
    walk.click(page.get_by_role("row").get_by_role("link", name=re.compile(id[-8:])))

    walk.click(page.get_by_role("button", name="Show its stack"))

    stack = page.get_by_role("region", name="What it does now")
    expect(stack).to_contain_text("builtin.py")
    site.pool.kill_task(id)


def test_a_redis_that_is_full(page: Any, site: Site, redis: Redis, faults: Faults) -> None:
    faults.expect("503 ")
    used = int(redis.info("memory")["used_memory"])
    redis.config_set("maxmemory", int(used * 1.005))
    try:
        from_home(page, site, "redis_memory", "Redis has used (99|100)% of its memory")
        expect(page.get_by_role("row").filter(has_text="long_task")).to_be_visible()
        expect(page.get_by_role("columnheader", name="Kept in Redis")).to_be_visible()
        expect(page.get_by_role("row").filter(has=page.get_by_role("link", name="act", exact=True))).to_contain_text(
            "kB"
        )
    finally:
        redis.config_set("maxmemory", 0)


def test_a_webhook_target_that_is_down(page: Any, site: Site) -> None:
    body = {"url": NOBODY, "description": "billing", "events": ["done"]}
    webhook = httpx.post(f"{site.url}/webhooks", json=body).json()["id"]
    site.workers.result()

    from_home(page, site, f"webhook:{webhook}", "The webhook target billing fails: 1 delivery waits")

    expect(page.locator(".tiles")).to_contain_text("can't connect")
    httpx.delete(f"{site.url}/webhooks/{webhook}")


def test_a_flood_by_one_project(page: Any, site: Site) -> None:
    for start in range(0, 1200, 200):
        batch = [new_task(f"flood{at:05}", queue="busy", project="acme") for at in range(start, start + 200)]
        site.pool.store.run(scripts.add(batch))
    site.pool.store.run(scripts.add([new_task(f"other{at}", queue="busy") for at in range(20)]))

    walk = from_home(page, site, "flood", "The project acme has about .* of the 1,220 tasks in busy")
    walk.click(page.get_by_label("Select all shown"))
    walk.click(page.get_by_role("button", name=re.compile("^Select all")))
    walk.click(page.get_by_role("button", name="Move…", exact=True))

    expect(page.get_by_role("dialog")).to_contain_text("1,200")


def test_a_schedule_that_has_stopped(page: Any, site: Site, redis: Redis) -> None:
    site.pool.set_schedule("nightly", Every("1d"), TaskSpec(type="act"))
    for day in (3, 2, 1):
        at_ms = round(time.time() * 1000) - day * 86_400_000
        run = {"occurrence_ms": at_ms, "at_ms": at_ms, "outcome": "missed", "reason": None}
        redis.lpush(keys.OCCURRENCES + "nightly", msgspec.json.encode(run))

    walk = from_home(page, site, "schedule:nightly", "The schedule nightly missed its last 3 runs")
    expect(page.locator(".banner.warning")).to_contain_text("3 were missed or refused")
    walk.click(page.get_by_role("button", name="Run now nightly"))
    walk.click(yes(page, "Run now"))

    expect(page.locator("#toasts")).to_contain_text("Submitted")
    site.pool.remove_schedule("nightly")
