"""What a task forks is no second worker: it handles signals as any program does, and ends where the task's code does.

With the worker's handlers it would note a SIGTERM for after the task, as its parent does, and never end. Coming back
from the task's code (`os.fork()` without an `os._exit`) it would go on in the worker's name, on the same connections.

The start and the end of a worker process, which was forked from one that has imported the task modules.

Tasks whose type this pool doesn't know though another one serves it: they go back, for that one to take.

It happens while a new version is rolled out, and where a pool was started without some of the task files.

Outcomes that Redis doesn't take although it serves: a damaged record, or a reply that taskpool doesn't know.

An outcome is dropped only when Redis says that its attempt is lost. So it is kept here, its lease is renewed, and it is
written again every few seconds while the process goes on with other tasks. One thread and one connection do that,
started by the first such outcome: a process that never has one pays nothing.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread
import logging
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from taskpool.errors import RedisUnavailable
from taskpool.operations.catalog import is_served
from taskpool.operations.status import update_status
from taskpool.redis import scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.replies import ReplyFault
from taskpool.redis.store import Store
from taskpool.tasks import hooks
from taskpool.tasks.attempt import Outcome, backoff_s, stopped
from taskpool.types import RunningTask, TaskStatus


def keep_apart(numbers: Iterable[signal.Signals]) -> None:
    """From now on gives these signals their default meaning in every process that this one forks.

    They are held back while it forks: one sent to the new process at once, before it has set its handlers, isn't lost.
    """
    held = frozenset(numbers)
    masks: list[set[int]] = []

    def before() -> None:
        masks.append({int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, held)})

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    def in_child() -> None:
        for number in held:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())
        # A `multiprocessing.Process` that a thread of an executor starts would wait for that thread at its end: for
        # itself, and so fail. Python has no public way to forget the threads of executors.
        getattr(concurrent.futures.thread, "_threads_queues", {}).clear()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def end_if_forked(worker_pid: int, outcome: Outcome) -> None:
    """Ends this process, as Python would end a program with that outcome, unless it is the worker itself."""
    if os.getpid() == worker_pid:
        return
    is_exit = outcome.failure.get("exception") == SystemExit.__name__
    code = outcome.error.removeprefix(SystemExit.__name__).removeprefix(": ") if is_exit else ""
    with suppress(OSError, ValueError):
        if not is_exit:
            sys.stderr.write(outcome.traceback)
        sys.stdout.flush()
        sys.stderr.flush()
    has_failed = not is_exit and outcome.status is not TaskStatus.DONE
    os._exit(int(code) & 0xFF if code.isdecimal() else int(has_failed or bool(code)))


log = logging.getLogger("workers")

STOP_S: Final = 5.0
"""How long the hooks of a process's end and the handlers of `atexit` may take together."""


def become_separate() -> None:
    """Undoes what a fork shares: random generators, and what is to be removed when the fork server ends."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        with suppress(Exception):
            numpy_random.seed()
    # Temporary directories and child processes that the task modules made at import are the fork server's: it removes
    # them at its own end. Python tells of neither in public; `multiprocessing` does the same in what it forks itself.
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False
    for module, name in (("multiprocessing.process", "_children"), ("multiprocessing.util", "_finalizer_registry")):
        with suppress(AttributeError, KeyError):
            getattr(sys.modules[module], name).clear()


def run_start_hooks(run: Callable[[Any], Any]) -> bool:
    """Calls them in order. `run` runs what an `async def` hook returns. False: one failed, and the log says so."""
    for hook in hooks.starts:
        try:
            if (awaitable := hook()) is not None:
                run(awaitable)
        except BaseException:
            log.exception("the hook %s of the process's start failed: the process ends", _name(hook))
            return False
    return True


def run_stop_hooks(run: Callable[[Any], Any]) -> None:
    """Calls them, the last one first; what they raise is logged."""
    for hook in reversed(hooks.stops):
        try:
            if (awaitable := hook()) is not None:
                run(awaitable)
        except BaseException:
            log.exception("the hook %s of the process's end failed", _name(hook))


async def await_start_hooks() -> bool:
    """As `run_start_hooks`, on the running event loop."""
    for hook in hooks.starts:
        try:
            await _awaited(hook())
        except BaseException:
            log.exception("the hook %s of the process's start failed: the process ends", _name(hook))
            return False
    return True


async def await_stop_hooks() -> None:
    """As `run_stop_hooks`, on the running event loop."""
    for hook in reversed(hooks.stops):
        try:
            await _awaited(hook())
        except BaseException:
            log.exception("the hook %s of the process's end failed", _name(hook))


def run_exit_handlers() -> None:
    """Runs the handlers of `atexit`, those that the task modules registered at import as well. A process that was
    forked by hand would end without them."""
    try:
        atexit._run_exitfuncs()
    except BaseException:
        log.exception("a handler of atexit failed")


def limit_end() -> None:
    """From now on the process has STOP_S left: then it ends, whatever hook or handler hangs."""

    def end() -> None:
        time.sleep(STOP_S)
        log.error("the hooks and handlers of the process's end took longer than %g s: it ends without them", STOP_S)
        os._exit(0)

    with suppress(RuntimeError):  # no more threads are allowed
        threading.Thread(target=end, name="taskpool-end", daemon=True).start()


async def _awaited(result: Awaitable[None] | None) -> None:
    if result is not None:
        await result


def _name(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__name__))


FIRST_S: Final = 1.0
LONGEST_S: Final = 30.0
"""The longest waits before it is taken again, at first and later on: it may be this pool that takes it."""


class Elsewhere:
    """Says what becomes of tasks that can't run here: they run again, which costs them no attempt; or they fail, as
    `refused` says, when no pool has served their type for `type_grace_s`."""

    def __init__(self, *, type_grace_s: float) -> None:
        self._type_grace_s = type_grace_s
        self._named: set[str] = set()

    def outcome(self, running: RunningTask, refused: Outcome, store: Store) -> Outcome:
        """What becomes of this one."""
        try:
            served = store.carry_out(is_served(running.type, within_s=self._type_grace_s))
        except (RedisUnavailable, ReplyFault):
            served = True  # as far as anybody knows
        return self._put_back(running, refused) if served else refused

    async def outcome_async(self, running: RunningTask, refused: Outcome, store: AsyncStore) -> Outcome:
        """The same, awaited."""
        try:
            served = await store.carry_out(is_served(running.type, within_s=self._type_grace_s))
        except (RedisUnavailable, ReplyFault):
            served = True
        return self._put_back(running, refused) if served else refused

    def _put_back(self, running: RunningTask, refused: Outcome) -> Outcome:
        if running.type not in self._named:  # once is enough: there may be thousands of them
            self._named.add(running.type)
            what = "worker %s: the task type %r isn't known here; its tasks are left to the pools that serve it"
            log.warning(what, running.worker, running.type)
        delay_s = backoff_s(running.snoozes + 1, first_s=FIRST_S, longest_s=LONGEST_S)
        error = f"{refused.error}: left to another one"
        return Outcome(TaskStatus.SCHEDULED, error=error, failure=refused.failure, delay_s=delay_s, counts=False)


MOST: Final = 100
"""How many outcomes a process keeps. With so many it claims no more tasks."""
AGAIN_S: Final = 2.0
PATIENCE: Final = 10
"""How many times in a row Redis may answer an outcome with an unknown error until it is kept here."""


@dataclass(frozen=True, slots=True)
class _Kept:
    running: RunningTask
    outcome: Outcome


class Unwritten:
    """The outcomes that a process still has to write. Safe for threads."""

    thread: threading.Thread | None = None
    """Set from the first outcome on."""

    def __init__(self, redis_url: str, *, worker: str, lease_s: float) -> None:
        self._redis_url, self._worker = redis_url, worker
        self._lease_ms = round(lease_s * 1000)
        self._again_s = min(AGAIN_S, lease_s / 3)
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def add(self, running: RunningTask, outcome: Outcome, error: Exception) -> None:
        """Keeps an outcome that Redis answered with `error`, and writes it again until Redis takes it."""
        log.error(
            "worker %s: the outcome of task %s (%s) can't be written, it is kept and tried again: %s; look at the keys "
            "rq:job:%s and rq:wip:%s",
            self._worker, running.id, outcome.status.value, error, running.id, running.queue,
        )  # fmt: skip
        with self._lock:
            self._kept[running.attempt_id] = _Kept(running, outcome)
            if self.thread is None:
                self.thread = threading.Thread(target=self._write_for_ever, name="taskpool-unwritten", daemon=True)
                self.thread.start()

    @property
    def is_full(self) -> bool:
        """Whether the process must not claim more tasks, because it keeps too many outcomes already."""
        return len(self._kept) >= MOST

    def attempt_ids(self) -> Collection[str]:
        """The attempts whose outcomes are kept."""
        return tuple(self._kept)

    def close(self) -> None:
        """Tries once more. What is left then is lost with the process: the log names it, and the task runs again."""
        if self.thread is None:
            return
        self._closing.set()
        self.thread.join()
        for kept in self._kept.values():
            log.error(
                "worker %s ends with an unwritten outcome: task %s was %s; it runs again when its lease ends",
                self._worker, kept.running.id, kept.outcome.status.value,
            )  # fmt: skip

    def _write_for_ever(self) -> None:
        store = Store(self._redis_url, name=f"{self._worker}-unwritten")
        try:
            is_last = False
            while not is_last:
                is_last = self._closing.wait(self._again_s)
                for attempt_id, kept in tuple(self._kept.items()):
                    if self._is_settled(store, kept):
                        with self._lock:
                            del self._kept[attempt_id]
        finally:
            store.close()

    def _is_settled(self, store: Store, kept: _Kept) -> bool:
        """Tries to write one; True when it is written, or its attempt is lost."""
        running = kept.running
        try:
            store.run(scripts.heartbeat([(running.id, running.attempt_id, running.queue)], self._lease_ms))
        except (RedisUnavailable, ReplyFault):  # the outcome may pass where this doesn't
            pass
        try:
            word = store.run(update_status(running, kept.outcome))
            if word == "stopping":
                word = store.run(update_status(running, stopped()))
        except (RedisUnavailable, ReplyFault):
            return False
        if word == "lost":
            log.error("worker %s: the attempt of task %s is lost, and its outcome with it", self._worker, running.id)
        else:
            log.warning("worker %s: the outcome of task %s is written at last", self._worker, running.id)
        return True
