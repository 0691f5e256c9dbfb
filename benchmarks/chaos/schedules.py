"""Schedules in a soak: they run all the time, and the checker finds runs that came twice or got lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from itertools import pairwise
from typing import Final

from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.evidence import Finding
from taskpool import Every, TaskPool, TaskSpec
from taskpool.errors import RedisUnavailable, ScheduleNotFound
from taskpool.operations.flow.schedule_values import ScheduleRecord
from taskpool.types import TaskRecord

EVERY_S: Final = 2
NAMES: Final = ("first", "second", "third")
TASK: Final = TaskSpec(type="chaos", payload={"n": 0, "batch": "of a schedule"}, queue="fast", result_ttl_s=3600)


def begin(cluster: Cluster) -> None:
    """Makes the schedules. Pools of the release before know none."""
    if not cluster.plan.profile.older:
        with TaskPool(cluster.redis.url) as pool:
            for name in NAMES:
                pool.set_schedule(name, Every(EVERY_S), TASK)


def end(cluster: Cluster) -> dict[str, ScheduleRecord]:
    """Pauses the schedules, as soon as Redis answers: what they did."""
    found = {}
    with TaskPool(cluster.redis.url) as pool:
        for name in () if cluster.plan.profile.older else NAMES:
            while name not in found:
                cluster.keep()
                try:
                    found[name] = pool.pause_schedule(name)
                except RedisUnavailable:
                    time.sleep(0.1)
    return found


def remove(cluster: Cluster, schedules: Mapping[str, ScheduleRecord]) -> set[str]:
    """Removes the schedules: nothing of them may be left then. The names of those that are gone already."""
    gone = set()
    with TaskPool(cluster.redis.url) as pool:
        for name in schedules:
            try:
                pool.remove_schedule(name)
            except ScheduleNotFound:
                gone.add(name)
    return gone


def check_schedules(
    schedules: Mapping[str, ScheduleRecord], gone: Collection[str], records: Mapping[str, TaskRecord]
) -> Iterator[Finding]:
    """Findings: schedule.

    None is gone. No occurrence has two tasks, and each one from the first to the last was submitted, or was noted as
    missed."""
    for name in gone:
        yield Finding("schedule", f"{name} is gone, and no client removed it")
    runs = Counter((record.schedule, record.occurrence) for record in records.values() if record.schedule)
    for (name, occurrence), count in runs.items():
        if count > 1:
            yield Finding("schedule", f"the run of {name} at {occurrence} was submitted {count} times")
    for name, schedule in schedules.items():
        if not schedule.history:
            yield Finding("schedule", f"{name} never ran")
        for run in schedule.history:
            if run.outcome not in ("submitted", "missed"):
                yield Finding("schedule", f"the run of {name} at {run.occurrence} was {run.outcome}: {run.reason}")
        for before, run in pairwise(reversed(schedule.history)):
            expected = before.until or before.occurrence + timedelta(seconds=EVERY_S)
            # A run after missed ones is noted behind them.
            if run.occurrence != expected:
                yield Finding("schedule", f"{name}: after {before} comes {run}, not {expected}")
