"""Runs an attempt in the caller's own thread and reports through the caller's store: no supervisor, no heartbeat.

For tests and for whoever writes a worker of their own. An attempt that outlives its lease is taken back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from taskpool import scripts, status
from taskpool.attempt import execute_task, stopped
from taskpool.context import TaskContext
from taskpool.errors import AttemptLost
from taskpool.parents import parents_of
from taskpool.registry import Registry
from taskpool.store import Store
from taskpool.types import RunningTask, TaskStatus


class StoreSink:
    """What a task's context needs, written at once through a store. Raises AttemptLost when the lease is gone."""

    def __init__(self, store: Store, running: RunningTask) -> None:
        self._store = store
        self._running = running

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Write the progress."""
        self._kept(self._store.run(scripts.progress(self._running, {"done": done, "total": total, "note": note})))

    def log(self, message: str) -> None:
        """Write one line of the log."""
        at_ms = time.time_ns() // 1_000_000
        self._kept(self._store.run(status.log_task(self._running, [(at_ms, line) for line in message.split("\n")])))

    def is_cancelled(self) -> bool:
        """Ask Redis whether a stop was requested."""
        attempt = (self._running.id, self._running.attempt_id, self._running.queue)
        (word,) = self._store.run(scripts.heartbeat([attempt], 15_000))
        return word != "ok"

    def parents(self) -> Mapping[str, Any]:
        """Read the parents' results."""
        return self._store.carry_out(parents_of(self._running.depends_on))

    def _kept(self, word: str) -> None:
        if word == "lost":
            raise AttemptLost(f"attempt {self._running.attempt} of task {self._running.id} no longer holds its lease")


def execute_here(store: Store, registry: Registry, running: RunningTask, *, max_result_bytes: int) -> TaskStatus:
    """Run a claimed task to the end of its attempt and write how it ended: the status it ended with.

    Raises:
        AttemptLost: its lease was lost meanwhile; nothing was written.
    """
    context = TaskContext.of(running, StoreSink(store, running))
    outcome = execute_task(running, registry, context, max_result_bytes=max_result_bytes, run_coroutine=asyncio.run)
    word = store.run(status.update_status(running, outcome))
    if word == "stopping":
        outcome = stopped()
        word = store.run(status.update_status(running, outcome))
    if word == "lost":
        raise AttemptLost(f"attempt {running.attempt} of task {running.id} no longer holds its lease")
    if word == "children":
        store.carry_out(status.release_dependents(running.id))
    return outcome.status
