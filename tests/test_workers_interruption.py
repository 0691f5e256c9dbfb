"""Interrupts: raised in the task's own code and nowhere else, once, and only for the attempt that was meant."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskpool import Registry, SoftTimeout, TaskContext, TaskStatus, TaskStopped, task
from taskpool.attempt import Outcome, execute_task
from taskpool.types import RunningTask
from workers.interruption import Interruption
from workers.slots import Block, Lane, LaneState, Request, Run, SharedMemory

SIGNALS = (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class Bench:
    """One lane and its interrupts, in this very process."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.lane: Lane = block.lane(0)
        self.interruption = Interruption(self.lane)

    def ask(self) -> None:
        """Asks the current run to stop, as the supervisor does."""
        (run,) = self.block.runs()
        self.block.ask(run, Request.STOP)
        os.kill(os.getpid(), signal.SIGUSR1)

    def run(self, function: Callable[[], Any], *, timeout_s: float = math.inf) -> Outcome:
        """Runs a function as a task."""

        @task("bench")
        def bench() -> Any:
            return function()

        registry = Registry()
        registry.add(bench)
        running = RunningTask(
            id="a", type="bench", payload={}, queue="q", attempt=1, attempt_id="1", worker="w", max_attempts=1,
            timeout_s=timeout_s, result_ttl_s=1, failure_ttl_s=1, started_ms=0,
        )  # fmt: skip
        self.lane.begin("a", "1", "q", time.monotonic(), 0)
        self.interruption.watch(time.monotonic(), time.monotonic() + timeout_s)
        try:
            return execute_task(
                running,
                registry,
                TaskContext(_Sink(), id="a", type="bench"),
                max_result_bytes=1000,
                run_coroutine=self.interruption.run_coroutine,
            )
        finally:
            self.interruption.unwatch()
            self.lane.end()


class _Sink:
    def progress(self, done: float, total: float | None, note: str | None) -> None: ...
    def log(self, message: str) -> None: ...
    def is_cancelled(self) -> bool:
        return False

    def parents(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def bench() -> Iterator[Bench]:
    before = [signal.getsignal(number) for number in SIGNALS]
    memory = SharedMemory.create(1, 1)
    bench = Bench(memory.block(0))
    bench.interruption.install()
    yield bench
    bench.interruption.close()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    memory.close()


def spin(seconds: float = 5) -> str:
    """Goes on in the interpreter until something is raised."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass
    return "undisturbed"


def test_a_stop_is_raised_in_the_task(bench: Bench) -> None:
    def stopped_midway() -> str:
        bench.ask()
        return spin()

    outcome = bench.run(stopped_midway)

    assert outcome.status is TaskStatus.STOPPED
    assert bench.interruption.has_raised


def test_a_timeout_is_raised_in_the_task(bench: Bench) -> None:
    outcome = bench.run(spin, timeout_s=0.02)

    assert outcome.status is TaskStatus.FAILED
    assert outcome.failure["reason"] == "timeout"


def test_a_stop_is_raised_once_however_often_it_is_signalled(bench: Bench) -> None:
    seen = []

    def patient() -> str:
        for _ in range(3):
            try:
                bench.ask()
                spin(0.02)
            except TaskStopped as stop:
                seen.append(stop)
        return "tidied up"

    outcome = bench.run(patient)

    assert outcome.status is TaskStatus.DONE
    assert len(seen) == 1


def test_nothing_is_raised_without_a_request(bench: Bench) -> None:
    def signalled() -> str:
        os.kill(os.getpid(), signal.SIGUSR1)
        return spin(0.02)

    assert bench.run(signalled).status is TaskStatus.DONE


def test_nothing_is_raised_outside_the_task(bench: Bench) -> None:
    bench.lane.begin("a", "1", "q", 0, 0)
    bench.interruption.watch(time.monotonic(), time.monotonic() - 1)

    bench.ask()
    os.kill(os.getpid(), signal.SIGALRM)

    assert not bench.interruption.has_raised


def test_an_alarm_of_an_earlier_task_spares_the_next(bench: Bench) -> None:
    assert bench.run(lambda: "quick", timeout_s=0.05).status is TaskStatus.DONE

    assert bench.run(lambda: spin(0.1), timeout_s=30).status is TaskStatus.DONE


def test_an_alarm_that_comes_early_is_set_again(bench: Bench) -> None:
    bench.run(lambda: "quick", timeout_s=0.02)

    outcome = bench.run(spin, timeout_s=0.1)

    assert outcome.failure["reason"] == "timeout"


def test_a_task_that_takes_the_alarm_for_itself_does_not_cost_the_next_one_its_timeout(bench: Bench) -> None:
    def selfish() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)

    bench.run(selfish, timeout_s=0.05)
    bench.interruption.reinstall()
    bench.run(lambda: time.sleep(0.1), timeout_s=30)

    outcome = bench.run(spin, timeout_s=0.1)

    assert outcome.failure["reason"] == "timeout"


@pytest.mark.parametrize("interrupt", ["stop", "timeout"])
def test_a_coroutine_is_cancelled_and_the_loop_stays_whole(bench: Bench, interrupt: str) -> None:
    async def wait() -> None:
        if interrupt == "stop":
            bench.ask()
        await asyncio.sleep(5)

    async def answer() -> str:
        return "fine"

    outcome = bench.run(wait, timeout_s=5 if interrupt == "stop" else 0.02)
    following = bench.run(answer)

    assert outcome.failure["reason"] == ("stopped" if interrupt == "stop" else "timeout")
    assert following.result == b'"fine"'


def test_what_a_coroutine_leaves_running_is_cancelled(bench: Bench) -> None:
    left: list[asyncio.Task[None]] = []

    async def careless() -> None:
        left.append(asyncio.create_task(asyncio.sleep(60)))
        await asyncio.sleep(0)

    assert bench.run(careless).status is TaskStatus.DONE
    assert left[0].cancelled()


def test_a_coroutine_that_cancels_itself_is_no_stop(bench: Bench) -> None:
    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    outcome = bench.run(cancels_itself)

    assert outcome.status is TaskStatus.FAILED
    assert "CancelledError" in outcome.error


def test_sigterm_is_noted_for_after_the_task(bench: Bench) -> None:
    def terminated() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return spin(0.02)

    outcome = bench.run(terminated)

    assert outcome.status is TaskStatus.DONE
    assert bench.interruption.terminated


async def short_coroutine() -> int:
    await asyncio.sleep(0)
    return sum(range(50))


@pytest.mark.filterwarnings("ignore:coroutine")  # a stop just before its first step leaves it unawaited
@pytest.mark.parametrize("function", [lambda: sum(range(50)), short_coroutine])
def test_no_signal_ever_escapes_a_storm(bench: Bench, function: Callable[[], Any]) -> None:
    """Signals at every point of many short tasks: each ends as done or stopped, and nothing else is ever raised."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        while os.getppid() == parent:
            os.kill(parent, signal.SIGUSR1)
            time.sleep(1e-5)  # faster, and handlers would nest without end
        os._exit(0)
    statuses = set()
    gc.disable()  # Python swallows what is raised in a callback of the collector's, and other tests may have left one
    try:
        for number in range(1, 2000):
            bench.block.ask(Run(0, LaneState.RUNNING, number, "", "", "", 0, 0), Request.STOP)
            statuses.add(bench.run(function).status)
    except (TaskStopped, SoftTimeout) as error:
        raise AssertionError("raised outside of a task") from error
    finally:
        gc.enable()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    assert statuses <= {TaskStatus.DONE, TaskStatus.STOPPED}
