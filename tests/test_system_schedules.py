"""Schedules with real worker pools: fired once by three pools at a time, also while pools are killed as they fire."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from taskpool import Every, TaskPool, TaskSpec
from taskpool.redis.embedded import RedisServer
from tests.proxy import Proxy
from tests.shifted_clock import ShiftedClock
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool

ECHO = TaskSpec(type="echo", payload={"message": "hi"})


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    with TaskPool(redis_url) as pool:
        yield pool


def nominal(pool: TaskPool, name: str) -> list[datetime]:
    """The nominal times of the submitted runs of a schedule, in order."""
    found, cursor = [], None
    while True:
        page = pool.list_tasks(cursor=cursor, limit=500)
        found += [record.occurrence for record in page.items if record.schedule == name and record.occurrence]
        cursor = page.next_cursor
        if cursor is None:
            return sorted(found)


def assert_each_second_once(pool: TaskPool, name: str) -> None:
    """Every second from the first run to the last has exactly one run, and one entry in the history."""
    runs = nominal(pool, name)
    seconds = [round(run.timestamp()) for run in runs]
    assert seconds == list(range(seconds[0], seconds[-1] + 1))
    history = pool.get_schedule(name).history
    assert [run.occurrence for run in reversed(history)] == runs[-len(history) :]
    assert {run.outcome for run in history} == {"submitted"}


@pytest.mark.long(about_s=10)
@pytest.mark.parametrize("is_carried_out", [False, True], ids=["before", "after"])
def test_a_pool_that_is_killed_as_it_fires_leaves_the_run_to_another_one(
    pool: TaskPool, redis_server: RedisServer, redis_url: str, tmp_path: Path, is_carried_out: bool
) -> None:
    """It is killed before its submission reaches Redis, or after Redis has carried it out."""
    proxy = Proxy(tmp_path, redis_server.socket_path)
    fired = threading.Event()
    with WorkerPool(proxy.url, tmp_path / "log1") as first:

        def kill(name: str, words: list[bytes]) -> str | None:
            if fired.is_set() or not any(b'"schedule":{' in word for word in words):
                return None
            fired.set()
            first.process.kill()
            return None if is_carried_out else "ERR cut"

        proxy.refuse = kill
        pool.set_schedule("s", Every("1s", catch_up="all"), ECHO)
        assert fired.wait(PATIENCE_S)
        first.end()
        with WorkerPool(redis_url, tmp_path / "log2"):
            killed_at = datetime.now(UTC)
            eventually(lambda: (found := nominal(pool, "s")) and found[-1] > killed_at)
            pool.pause_schedule("s")
    proxy.close()

    assert_each_second_once(pool, "s")


@pytest.mark.long(about_s=10)
def test_the_clocks_of_worker_hosts_have_no_effect(
    pool: TaskPool, redis_url: str, redis_binary: str | None, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        for name, hours in (("ahead", 1), ("behind", -1)):
            clock = ShiftedClock(tmp_path / name, redis_binary)
            clock.step(hours * 3600)
            stack.enter_context(WorkerPool(redis_url, tmp_path / f"log-{name}", env=clock.env))
        began = datetime.now(UTC)
        pool.set_schedule("s", Every("1s", catch_up="all"), ECHO)
        eventually(lambda: len(nominal(pool, "s")) >= 4)
        pool.pause_schedule("s")
        ended = datetime.now(UTC)

    runs = nominal(pool, "s")
    assert began - timedelta(seconds=1) < runs[0]
    assert runs[-1] <= ended
    assert_each_second_once(pool, "s")


@pytest.mark.long(about_s=12)
def test_three_pools_submit_each_run_once_and_one_that_is_killed_leaves_no_gap(
    pool: TaskPool, redis_url: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        workers = [stack.enter_context(WorkerPool(redis_url, tmp_path / f"log{at}")) for at in range(3)]
        for number in range(20):
            pool.set_schedule(f"s{number}", Every("1s", catch_up="all"), ECHO)
        eventually(lambda: len(nominal(pool, "s0")) >= 2)
        workers[0].send(signal.SIGKILL)
        killed_at = datetime.now(UTC)
        eventually(lambda: nominal(pool, "s19")[-1] > killed_at and len(nominal(pool, "s19")) >= 5)
        for number in range(20):
            pool.pause_schedule(f"s{number}")

    for number in range(20):
        assert_each_second_once(pool, f"s{number}")
