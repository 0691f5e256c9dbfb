"""At every command that ends and claims quick tasks together, the worker's connection is cut, or its process is killed.

Whatever happens at whichever command, each task runs once and is done with its first attempt: what a process has done
stands in its shared memory until Redis has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool import TaskSpec, TaskStatus
from tests.proxy import Trap, When
from tests.support import PATIENCE_S, eventually
from tests.test_killpoints import LONG_S, SHORT_S, Site, check_events, is_worker, left_over
from tests.worker_pool import WorkerPool, lines

pytestmark = pytest.mark.long(about_s=30)
COUNT, WARM = 40, 60
MOST_COMMANDS = 100
FEWEST = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), redis_binary) as site:
        yield site


@pytest.fixture
def workers(site: Site, request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    with site.start_workers(*request.param) as workers:
        yield workers


def submit(site: Site, note: Path, count: int) -> list[str]:
    specs = [TaskSpec(type="brief", payload={"note": str(note)}) for _ in range(count)]
    return [record.id for record in site.pool.add_tasks(specs)]


def run_burst(site: Site, note: Path, count: int, most_crashes: int = 0) -> None:
    """Quick tasks, submitted at once: each runs once, and is done. `most_crashes` of them may run twice."""
    ids = submit(site, note, count)
    records = [site.pool.wait(id, timeout_s=PATIENCE_S) for id in ids]
    crashed = [record.id for record in records if record.crashes]
    assert len(crashed) <= most_crashes
    for record in records:
        assert (record.status, record.attempt, record.crashes) == (
            TaskStatus.DONE,
            *((2, 1) if record.crashes else (1, 0)),
        )
    assert Counter(lines(note)) == Counter(ids + crashed)


@pytest.mark.parametrize(
    ("workers", "when", "is_killed"),
    [
        ((1, LONG_S), "before", False),
        ((1, LONG_S), "after", False),
        ((1, SHORT_S), "after", True),
        ((4, LONG_S), "after", False),
    ],
    indirect=["workers"],
)
def test_whichever_command_of_a_batch_fails_each_task_runs_once(
    site: Site, workers: WorkerPool, tmp_path: Path, when: When, is_killed: bool
) -> None:
    pids: list[int] = []

    def kill(name: str) -> None:
        for process in workers.descendants():
            if process.pid in pids:
                process.kill()

    for n in range(1, MOST_COMMANDS):
        run_burst(site, tmp_path / f"warm{n}", WARM)
        pids[:] = eventually(workers.pids)
        trap = Trap(is_worker, when, n, kill) if is_killed else Trap(is_worker, when, n)
        site.proxy.trap = trap
        try:
            # On a slow machine the process that is killed may have claimed a task alone. Then its end is lost with it.
            run_burst(site, tmp_path / f"note{n}", COUNT, most_crashes=int(is_killed))
            eventually(lambda: not left_over(site.redis))
            check_events(site.redis)
        except AssertionError as error:
            raise AssertionError(f"{when} command {n} of {trap.passed}: {error}") from error
        finally:
            site.proxy.trap = None
        site.redis.delete("taskpool:events")
        if not trap.closed.is_set():
            assert n > FEWEST
            return
    raise AssertionError("a burst has no end")
