"""What was seen while it happened: every event of the stream, every effect of an attempt, what processes use.

The stream keeps only about 10,000 events, so it is read along, past the bad network, and kept in memory.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psutil
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.chaos.cluster import Cluster, Service
from taskpool.operations.status import read_event
from taskpool.redis import keys
from taskpool.types import Event
from taskpool.webhooks.endpoint import WORKFLOW_PREFIX

BLOCK_MS: Final = 200
AT_ONCE: Final = 2000
SAMPLE_S: Final = 0.5
START_SAMPLES: Final = 20
"""A process that starts on a busy machine hasn't all it needs at first."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One line a task wrote: it began (`start`), still works (`alive`) or had done its work (`end`), in that pool and
    process. At its end `token` is a word that only this attempt returned, and `parents` has those of `ctx.parents`."""

    id: str
    n: int
    attempt: int
    what: str
    pool: str
    pid: int
    at_ms: float
    batch: str = ""
    token: str = ""
    parents: Mapping[str, str] = field(default_factory=dict)


def read_effects(file: Path) -> dict[str, list[Effect]]:
    """The effects of each task, in order."""
    effects: dict[str, list[Effect]] = defaultdict(list)
    for line in file.read_text().splitlines():
        effect = Effect(**json.loads(line))
        effects[effect.id].append(effect)
    return effects


class EventTail:
    """Reads the event stream along, in a thread, through every outage of Redis."""

    def __init__(self, cluster: Cluster) -> None:
        self.events: dict[str, list[Event]] = defaultdict(list)
        """By task, in the order of the stream. Their times are right, also when Redis's clock isn't."""
        self.order: dict[tuple[str, int], int] = {}
        """At which place of the stream an event, by its task and number, stands."""
        self.rolled_back = 0
        """How often Redis came back without events that it had already shown."""
        self.seen = 0
        self._cluster = cluster
        self._last = "0-0"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="chaos-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Reads what is left, and ends."""
        self._ending.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._is_over():
            time.sleep(0.05)

    def _is_over(self) -> bool:
        """Reads until Redis is away, or until nothing is left to read when all is over."""
        try:
            with self._cluster.redis.connected() as redis:
                self._compare(redis)
                while True:
                    is_last = self._ending.is_set()
                    if not self._read(redis) and is_last:
                        return True
        except RedisError:
            return self._ending.is_set()

    def _compare(self, redis: Redis) -> None:
        """Is Redis, which may have been restarted or replaced, as far as it was?"""
        if redis.exists(keys.EVENTS):
            info: Mapping[str, Any] = redis.xinfo_stream(keys.EVENTS)
            if _entry(info["last-generated-id"].decode()) >= _entry(self._last):
                return
        elif self._last == "0-0":
            return
        self.rolled_back += 1

    def _read(self, redis: Redis) -> bool:
        found: Any = redis.xread({keys.EVENTS: self._last}, count=AT_ONCE, block=BLOCK_MS)
        for _, entries in found:
            for entry, fields in entries:
                event = read_event(fields[b"e"])
                self._last = entry.decode()
                if event.event.startswith(WORKFLOW_PREFIX):
                    continue
                event = replace(event, at_ms=round(self._cluster.right_ms(event.at_ms)))
                self.events[event.id].append(event)
                self.order[event.id, event.seq] = self.seen
                self.seen += 1
        return bool(found)


def _entry(id: str) -> tuple[int, int]:
    ms, _, number = id.partition("-")
    return int(ms), int(number)


@dataclass(frozen=True, slots=True)
class Use:
    """What one process used at one moment."""

    fds: int
    rss_mib: float


class Gauge:
    """Samples file descriptors and memory of the services' first processes, in a thread."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.uses: dict[tuple[str, int], list[Use]] = defaultdict(list)
        """By service and process id."""
        self._services = services
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="chaos-gauge", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes no more samples."""
        self._ending.set()
        self._thread.join()

    def growth(self) -> dict[tuple[str, int], tuple[Use, Use]]:
        """Of each process that lived long enough: its use after the first fifth of its life, and at its end."""
        found = {}
        for process, all_uses in self.uses.items():
            uses = all_uses[START_SAMPLES:]
            fifth = len(uses) // 5
            if fifth >= 4:
                found[process] = _typical(uses[fifth : 2 * fifth]), _typical(uses[-fifth:])
        return found

    def _sample(self) -> None:
        while not self._ending.wait(SAMPLE_S):
            for service in self._services:
                try:
                    process = service.root()
                    use = Use(process.num_fds(), process.memory_info().rss / 2**20)
                except (psutil.Error, AssertionError):  # it has ended, or hasn't begun
                    continue
                self.uses[service.name, process.pid].append(use)


def _typical(uses: Sequence[Use]) -> Use:
    return Use(round(statistics.median(use.fds for use in uses)), statistics.median(use.rss_mib for use in uses))
