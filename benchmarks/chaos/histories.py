"""Is each task's history one that may be? By its events alone: numbered, legal, ended; and as its record says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from benchmarks.chaos.evidence import Evidence, Finding, is_given_back
from taskpool.types import RETRYABLE, TERMINAL, TRANSITIONS, Event, TaskStatus

FIRST = frozenset(
    {
        TaskStatus.QUEUED,
        TaskStatus.SCHEDULED,
        TaskStatus.WAITING,
        TaskStatus.WAITING_CONFIRMATION,
        TaskStatus.CANCELED,
    }
)
NO_MOVE = frozenset({"progress", "log", "stopping"})


def check_histories(evidence: Evidence) -> Iterator[Finding]:
    """Findings: lost, unfinished, numbering, transition, attempts, limits, record."""
    for id in evidence.specs():
        if id not in evidence.events:
            yield Finding("lost", "it was accepted, and no event tells of it", id)
    for id, events in evidence.events.items():
        if (status := evidence.status(id)) not in TERMINAL:
            yield Finding("unfinished", f"it was {status} when all should have ended", id)
        yield from _check_numbering(id, events)
        record = evidence.records.get(id)
        yield from _check_moves(id, events, in_workflow=record is not None and record.workflow is not None)
        yield from _check_attempts(id, events)
        yield from _check_limits(evidence, id, events)
    yield from _check_records(evidence)


def _check_numbering(id: str, events: Sequence[Event]) -> Iterator[Finding]:
    numbers = [event.seq for event in events]
    if numbers != list(range(1, len(numbers) + 1)):
        yield Finding("numbering", f"its events are numbered {numbers}", id)


def _check_moves(id: str, events: Sequence[Event], *, in_workflow: bool) -> Iterator[Finding]:
    """A retry of a workflow runs tasks again that come after failed ones, also those that were done."""
    if events[0].status not in FIRST:
        yield Finding("transition", f"it began as {events[0].status}", id)
    for before, after in pairwise(events):
        if after.event in NO_MOVE and after.status == before.status and before.status not in TERMINAL:
            continue
        is_retryable = before.status in RETRYABLE or (in_workflow and before.status in TERMINAL)
        if is_retryable and after.data.get("retried_by") == "hand":
            continue
        if after.status not in TRANSITIONS[before.status]:
            yield Finding("transition", f"number {after.seq} moves it from {before.status} to {after.status}", id)


def _check_attempts(id: str, events: Sequence[Event]) -> Iterator[Finding]:
    """Attempts are counted from 1 on; one that was given back isn't counted."""
    expected = 1
    for before, event in pairwise(events):
        expected -= is_given_back(before, event)
        if event.event == "started":
            if event.data["attempt"] != expected:
                yield Finding("attempts", f"number {event.seq} is attempt {event.data['attempt']}, not {expected}", id)
            expected += 1


def _check_limits(evidence: Evidence, id: str, events: Sequence[Event]) -> Iterator[Finding]:
    """Each life may fail `max_attempts` times and crash `max_crashes` times, and run no more often than that."""
    most = evidence.specs().get(id, {}).get("max_attempts", 1)
    retries = crashes = 0
    for before, event in pairwise(events):
        if event.data.get("retried_by") == "hand":
            retries = crashes = 0
        retries += event.event == "retry"
        crashes += event.event in ("crashed", "lease_lost") and not is_given_back(before, event)
        if id in evidence.specs() and retries >= most:
            yield Finding("limits", f"it was retried {retries} times in one life, with {most} attempts", id)
        if crashes >= evidence.plan.max_crashes:
            yield Finding("limits", f"it was queued again after crash {crashes} in one life", id)


def _check_records(evidence: Evidence) -> Iterator[Finding]:
    for id, record in evidence.records.items():
        events = evidence.events.get(id)
        if not events:
            yield Finding("record", "it has a record, and no event tells of it", id)
        elif (record.status, record.seq) != (evidence.status(id), events[-1].seq):
            shown = f"{record.status} and number {record.seq}"
            yield Finding("record", f"its record says {shown}, its events {events[-1].status}, {events[-1].seq}", id)
    for id, spec in evidence.specs().items():
        kept = spec["result_ttl_s"] > evidence.plan.seconds + evidence.plan.heal_s
        if kept and id not in evidence.records and id not in evidence.ledger.asked("remove") and id in evidence.events:
            yield Finding("record", "its record is gone, long before its time", id)
