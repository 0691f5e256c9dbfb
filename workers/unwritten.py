"""Outcomes that Redis doesn't take although it serves: a damaged record, or a reply that taskpool doesn't know.

An outcome is dropped only when Redis says that its attempt is lost. So it is kept here, its lease is renewed, and it is
written again every few seconds while the process goes on with other tasks. One thread and one connection do that,
started by the first such outcome: a process that never has one pays nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from taskpool import scripts
from taskpool.attempt import Outcome, stopped
from taskpool.errors import RedisUnavailable
from taskpool.status import update_status
from taskpool.store import ReplyFault, Store
from taskpool.types import RunningTask

log = logging.getLogger("workers")

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
