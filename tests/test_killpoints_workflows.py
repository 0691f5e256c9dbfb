"""At every command of a workflow's life its worker process is killed, or the connection is cut.

A life: a task adds rows to its workflow, and an end behind them. Whatever happens at whichever command, nothing is
added twice, every task is done, and the workflow ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskpool import TaskSpec
from taskpool.operations.flow.values import NodeSpec, WorkflowSpec
from tests.proxy import Trap, When
from tests.support import eventually
from tests.test_killpoints import Site, is_worker
from tests.worker_pool import WorkerPool, lines

pytestmark = pytest.mark.long(about_s=15)
ROWS = 3
SHORTEST_LIFE, LONGEST_LIFE = 12, 60


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), redis_binary) as site:
        yield site


@pytest.fixture(scope="module")
def workers(site: Site) -> Iterator[WorkerPool]:
    with site.start_workers() as workers:
        yield workers


def live(site: Site, note: Path) -> None:
    """Goes through a life, and checks it."""
    grow = TaskSpec(type="grow", payload={"note": str(note), "rows": ROWS}, max_attempts=3)
    id = site.pool.add_workflow(WorkflowSpec(name="life", nodes=(NodeSpec(name="import", task=grow),))).id
    eventually(lambda: site.pool.get_workflow(id).status.is_terminal)
    record = site.pool.get_workflow(id)
    assert (record.status, record.total, record.counts) == ("done", ROWS + 2, {"done": ROWS + 2})
    assert [node.name for node in record.nodes] == ["import", "rows", "end"]
    assert set(lines(note)) == {str(n) for n in range(ROWS + 1)}
    # What was staged by an attempt that died before its commit expires.
    assert all(site.redis.ttl(key) > 0 for key in site.redis.keys("taskpool:staged:*"))
    assert not site.redis.exists("taskpool:workflows:expanding", "taskpool:workflows:open")


def sweep(site: Site, directory: Path, make_trap: Callable[[int], Trap]) -> int:
    """One life for each of its commands, until a life ends before its trap closes; how many there were."""
    for n in range(1, LONGEST_LIFE):
        trap = site.proxy.trap = make_trap(n)
        try:
            live(site, directory / str(n))
        except AssertionError as error:
            raise AssertionError(f"{trap.when} command {n} of {trap.passed}: {error}") from error
        finally:
            site.proxy.trap = None
        if not trap.closed.is_set():
            return n
    raise AssertionError(f"a life has no end: {trap.passed}")


def test_the_worker_process_is_killed_at_any_command(site: Site, workers: WorkerPool, tmp_path: Path) -> None:
    def kill(name: str) -> None:
        for process in workers.descendants():
            if process.pid in pids:
                process.kill()

    def make_trap(n: int) -> Trap:
        pids[:] = eventually(workers.pids)
        return Trap(is_worker, "after", n, kill)

    pids: list[int] = []
    assert sweep(site, tmp_path, make_trap) > SHORTEST_LIFE


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_connection_of_the_worker_is_cut_at_any_command(site: Site, tmp_path: Path, when: When) -> None:
    assert sweep(site, tmp_path, lambda n: Trap(is_worker, when, n)) > SHORTEST_LIFE
