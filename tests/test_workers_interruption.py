"""Interrupts: raised in the task's own code and nowhere else, once, and only for the attempt that was meant."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import math
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import FrameType
from typing import Any

import pytest

from taskpool import Registry, SoftTimeout, TaskContext, TaskStatus, TaskStopped, task
from taskpool.tasks.attempt import Outcome, execute_task, run_in_fence
from taskpool.testing import RecordingSink
from taskpool.types import RunningTask
from tests.support import PATIENCE_S, eventually
from workers.process.interruption import Interruption, is_inside_fence
from workers.shared_memory import Block, Lane, LaneState, Request, Run, SharedMemory

SIGNALS = (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class Bench:
    """One lane and its interrupts, in this very process."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.lane: Lane = block.lane(0)
        self.interruption = Interruption(self.lane)
        self.runs = 0

    def ask(self) -> None:
        """Asks the current run to stop, as the supervisor does."""
        (run,) = self.block.runs()
        self.block.ask(run, Request.STOP)
        os.kill(os.getpid(), signal.SIGUSR1)

    def run(
        self,
        function: Callable[[], Any],
        *,
        timeout_s: float = math.inf,
        before_it: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Runs a function as a task; `before_it` is called last before that."""

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
        self.runs += 1
        self.interruption.watch(time.monotonic(), time.monotonic() + timeout_s)
        try:
            before_it()
            return execute_task(
                running,
                registry,
                TaskContext(RecordingSink(), id="a", type="bench"),
                max_result_bytes=1000,
                run_coroutine=self.interruption.run_coroutine,
            )
        finally:
            self.interruption.unwatch()
            self.lane.end()


@pytest.fixture
def bench() -> Iterator[Bench]:
    before = [signal.getsignal(number) for number in SIGNALS]
    hook = sys.unraisablehook
    memory = SharedMemory.create(1, 1)
    bench = Bench(memory.block(0))
    bench.interruption.install()
    yield bench
    bench.interruption.close()
    sys.unraisablehook = hook
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
    eventually(lambda: bench.run(lambda: "quick", timeout_s=0.05).status is TaskStatus.DONE)

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
        await asyncio.sleep(PATIENCE_S)

    async def answer() -> str:
        return "fine"

    outcome = bench.run(wait, timeout_s=PATIENCE_S if interrupt == "stop" else 0.02)
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


def times_out() -> int:
    return sum(range(50))


@contextmanager
def storm(*, alarms: bool) -> Iterator[None]:
    """SIGUSR1 from another process as fast as this one takes it; with `alarms` SIGALRM every 50 us on top."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        while os.getppid() == parent:
            os.kill(parent, signal.SIGUSR1)
            time.sleep(1e-5)  # faster, and handlers would nest without end
        os._exit(0)
    if alarms:
        signal.setitimer(signal.ITIMER_REAL, 5e-5, 5e-5)
    try:
        yield
    except (TaskStopped, SoftTimeout) as error:
        raise AssertionError("raised outside of a task") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.filterwarnings("ignore:coroutine")  # a stop just before its first step leaves it unawaited
@pytest.mark.parametrize("alarms", [False, True])
@pytest.mark.parametrize("function", [lambda: sum(range(50)), short_coroutine])
def test_no_signal_ever_escapes_a_storm(bench: Bench, function: Callable[[], Any], alarms: bool) -> None:
    """Signals at every point of many short tasks, and of each other's handlers: each task ends as done, stopped or
    timed out, and nothing else is ever raised."""
    statuses = set()
    with storm(alarms=alarms):
        for number in range(1, 1000):
            bench.block.ask(Run(0, LaneState.RUNNING, number, "", "", "", 0, 0), Request.STOP)
            statuses.add(bench.run(function, timeout_s=1e-9 if alarms else math.inf).status)

    assert statuses <= {TaskStatus.DONE, TaskStatus.STOPPED, *([TaskStatus.FAILED] if alarms else [])}


def signalled_at(bench: Bench, function: Callable[[], Any], at: int) -> tuple[Outcome, bool]:
    """Runs a function as a task, with a stop requested. The signal comes before step `at` of the interpreter's, counted
    over all frames of the task and of what calls it. Whether there were that many steps."""
    steps = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps += 1
            if steps == at:
                bench.interruption._on_request(signal.SIGUSR1, frame)
        return count

    bench.block.ask(Run(0, LaneState.RUNNING, bench.runs + 1, "", "", "", 0, 0), Request.STOP)
    before = sys.gettrace()
    try:
        return bench.run(function, before_it=lambda: sys.settrace(count)), steps >= at
    finally:
        sys.settrace(before)


def test_a_signal_at_any_step_of_the_interpreter_stops_the_task_or_is_too_early_or_too_late(bench: Bench) -> None:
    statuses = []
    for at in itertools.count(1):
        outcome, was_reached = signalled_at(bench, times_out, at)
        if not was_reached:
            break
        statuses.append(outcome.status)

    assert set(statuses) == {TaskStatus.DONE, TaskStatus.STOPPED}
    assert len(statuses) > 100


def test_a_handler_that_interrupts_another_one_sees_what_that_one_has_interrupted(bench: Bench) -> None:
    seen: list[tuple[str, bool]] = []

    def look(name: str) -> None:
        """Called by a handler: the frame of the handler is above what it has interrupted."""
        seen.append((name, is_inside_fence(sys._getframe(1))))

    def first_line_of(handler: str, interrupted: Callable[[], Any]) -> Any:
        """The frame of a handler before its first line, above `interrupted`."""

        def count(frame: FrameType, event: str, argument: Any) -> Any:
            if frame.f_code.co_name == handler:
                seen.append((handler, is_inside_fence(frame)))
            return None

        before = sys.gettrace()
        sys.settrace(count)
        try:
            return interrupted()
        finally:
            sys.settrace(before)

    def in_the_task() -> None:
        first_line_of("_on_request", lambda: bench.interruption._on_request(signal.SIGUSR1, None))

    bench.run(in_the_task)
    calls_the_handler = bench.interruption._on_request
    assert seen == [("_on_request", True)]

    seen.clear()
    before = sys.gettrace()
    try:
        sys.settrace(lambda frame, event, argument: seen.append((frame.f_code.co_name, is_inside_fence(frame))))
        run_in_fence(lambda: None, asyncio.run)  # the lambda is the user's, the frame of the fence isn't
        run_in_fence(functools.partial(calls_the_handler, signal.SIGUSR1, None), asyncio.run)
    finally:
        sys.settrace(before)
    look("outside")

    handled = [inside for name, inside in seen if name == "_on_request"]
    assert handled == [False]  # directly above the frame of the fence: an exception there would not be caught for sure
    assert [inside for name, inside in seen if name == "<lambda>"] == [True]
    assert seen[-1] == ("outside", False)


def test_nothing_is_raised_in_a_finalizer_which_would_swallow_it(bench: Bench) -> None:
    class Leaves:
        def __del__(self) -> None:
            bench.ask()
            spin(0.02)

    def leaves_one() -> str:
        leaves = Leaves()
        del leaves
        bench.ask()
        return spin()

    assert bench.run(leaves_one).status is TaskStatus.STOPPED


class _Referable: ...


def in_weakref(harm: Callable[..., None]) -> Any:
    referable = _Referable()
    return weakref.ref(referable, harm)


def in_collector(harm: Callable[..., None]) -> None:
    gc.callbacks.append(harm)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(harm)


def in_generator(harm: Callable[..., None]) -> None:
    def generator() -> Iterator[None]:
        try:
            yield
        finally:
            harm()

    next(generator())


SWALLOWERS = [in_weakref, in_collector, in_generator]


@pytest.mark.parametrize("swallower", SWALLOWERS)
def test_a_timeout_that_python_swallows_is_raised_again(bench: Bench, swallower: Callable[..., Any]) -> None:
    swallowed: list[bool] = []

    def overruns(*_: Any) -> None:
        with suppress(IndexError):
            try:
                spin(0.1)
            finally:
                swallowed.append(bench.interruption.has_raised)

    def swallows() -> str:
        swallower(overruns)
        return spin()

    while not swallowed:  # otherwise the time was over before it came that far
        outcome = bench.run(swallows, timeout_s=0.02)

    assert swallowed[0]
    assert outcome.failure["reason"] == "timeout"


@pytest.mark.parametrize("swallower", SWALLOWERS)
def test_a_stop_that_python_swallows_is_raised_by_the_next_signal(bench: Bench, swallower: Callable[..., Any]) -> None:
    def is_asked(*_: Any) -> None:
        bench.ask()
        spin(0.02)

    def swallows() -> str:
        swallower(is_asked)
        bench.ask()
        return spin()

    assert bench.run(swallows).status is TaskStatus.STOPPED


def test_what_else_python_swallows_is_reported_as_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(bench.interruption, "_report_swallowed", lambda each: reported.append(each.exc_type))

    def raises(*_: Any) -> None:
        raise ValueError

    bench.run(lambda: in_generator(raises))

    assert reported == [ValueError]


# --- what one task leaves to the next ------------------------------------------------------------------------


async def answer() -> str:
    return "fine"


def closes_loop_later() -> Any:
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.stop)
    return asyncio.sleep(0.01, "went on")


async def stops_the_loop() -> Any:
    return await closes_loop_later()


async def shuts_the_executor() -> str:
    await asyncio.get_running_loop().shutdown_default_executor()
    return "shut"


async def changes_the_loop() -> str:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda *arguments, **named: 1 / 0)  # type: ignore[arg-type]
    return "changed"


async def leaves_a_task_that_goes_on() -> str:
    async def goes_on() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    leaves_a_task_that_goes_on.left = asyncio.create_task(goes_on())  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    return "left"


async def needs_a_thread() -> str:
    return await asyncio.to_thread(lambda: "fine")


@pytest.mark.parametrize(
    ("harm", "result"),
    [
        (stops_the_loop, b'"went on"'),
        (shuts_the_executor, b'"shut"'),
        (changes_the_loop, b'"changed"'),
        (leaves_a_task_that_goes_on, b'"left"'),
    ],
)
def test_what_a_task_does_to_the_event_loop_is_not_the_next_ones_problem(
    bench: Bench, harm: Callable[[], Any], result: bytes
) -> None:
    assert bench.run(harm).result == result

    assert [bench.run(each).result for each in (answer, needs_a_thread)] == [b'"fine"'] * 2


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_sub_task_that_leaves_the_program_is_a_failure_of_this_task_alone(bench: Bench, error: BaseException) -> None:
    async def leave() -> None:
        raise error

    async def awaits_it() -> None:
        await asyncio.create_task(leave())

    async def does_not() -> str:
        asyncio.get_running_loop().set_debug(False)
        left = asyncio.create_task(leave())
        await asyncio.sleep(0.01)
        return f"{left.done()} {type(left.exception()).__name__}"

    awaited = bench.run(awaits_it)

    assert (awaited.status, awaited.failure["exception"]) == (TaskStatus.FAILED, type(error).__name__)
    assert bench.run(answer).result == b'"fine"'
    assert bench.run(does_not).result == f'"True {type(error).__name__}"'.encode()
    assert bench.run(answer).result == b'"fine"'


def test_a_context_variable_ends_with_its_attempt(bench: Bench) -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")

    def sets() -> str:
        user.set("alice")
        return user.get()

    async def sets_async() -> str:
        user.set("bob")
        await asyncio.sleep(0)
        return user.get()

    async def reads_async() -> str:
        return user.get()

    results = [bench.run(each).result for each in (sets, user.get, sets_async, reads_async, user.get)]

    assert results == [b'"alice"', b'"nobody"', b'"bob"', b'"nobody"', b'"nobody"']


@pytest.mark.parametrize("harm", ["alarm", "clear", "repeat", "late"])
def test_a_task_that_sets_the_timer_for_itself_does_not_cost_the_next_one_its_timeout(bench: Bench, harm: str) -> None:
    def selfish() -> None:
        if harm == "alarm":
            signal.alarm(100)
        elif harm == "late":
            signal.setitimer(signal.ITIMER_REAL, 100)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0 if harm == "clear" else 50, 50)

    bench.run(selfish, timeout_s=30)

    outcome = bench.run(spin, timeout_s=0.05)

    assert outcome.failure["reason"] == "timeout"


def test_a_task_that_takes_the_alarm_hears_of_its_timeout_from_the_supervisor(bench: Bench) -> None:
    def selfish() -> str:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        spin(0.03)
        os.kill(os.getpid(), signal.SIGUSR1)  # the supervisor does so to each task that is late
        return spin()

    assert bench.run(selfish, timeout_s=0.02).failure["reason"] == "timeout"
