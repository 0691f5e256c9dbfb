"""What clients were answered, and what tasks returned: is it what happened?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.chaos.cluster import RQ
from benchmarks.chaos.evidence import Evidence, Finding, attempts
from benchmarks.chaos.load import SOON_PURGED_S, Submission, edges
from benchmarks.chaos.tasks import ADDED
from taskpool.types import TERMINAL, Event, TaskStatus

NO_TASK = frozenset({"existing", "conflict", "refused"})
RUNS = frozenset({TaskStatus.IN_PROGRESS, TaskStatus.STOPPING})
AT_ONCE_MS = 50
"""By how much clocks and the way of an answer may differ."""


def check_submissions(evidence: Evidence) -> Iterator[Finding]:
    """Findings: answer, batch, twice-submitted, repeated.

    Each submission became each of its tasks once, or none of them; what the service can't blame on Redis is ours.
    """
    known: dict[str, dict[int, set[str]]] = {}
    for id, record in evidence.records.items():
        known.setdefault(record.payload["batch"], {}).setdefault(record.payload["n"], set()).add(id)
    for submission in evidence.ledger.submissions:
        if submission.status >= 500 and submission.status != 503:
            yield Finding("answer", f"the API answered {submission.status}: {submission.detail}")
        if submission.word == "refused" and not _is_refused_rightly(evidence, submission):
            yield Finding("answer", f"a good submission was refused: {submission.detail}")
        if submission.repeated:
            yield Finding("repeated", f"{submission.batch} was sent again with its key and {submission.repeated}")
        found = known.get(submission.batch, {})
        for number, ids in found.items():
            if len(ids) > 1:
                yield Finding("twice-submitted", f"{submission.batch} number {number} exists as {sorted(ids)}")
        if submission.word in NO_TASK and found:
            yield Finding("answer", f"{submission.batch} was answered {submission.word}, and {found} exist")
        kept = {
            n
            for n, spec in zip(submission.numbers, submission.specs, strict=True)
            if spec["result_ttl_s"] > SOON_PURGED_S
        }
        if submission.word == "unknown" and found and kept - set(found):
            yield Finding("batch", f"of {submission.batch} only {sorted(found)} exist, not {sorted(kept - set(found))}")


def check_added(evidence: Evidence) -> Iterator[Finding]:
    """Findings: added.

    What a task adds exists once, however often its attempts added it; and wholly, if the task is done.
    """
    added: dict[str, set[str]] = {}
    batches = [(id, record.payload["batch"]) for id, record in evidence.records.items()]
    batches += [(id, effect.batch) for id, effects in evidence.effects.items() for effect in effects if effect.batch]
    for id, batch in batches:
        if batch.endswith(ADDED):
            added.setdefault(batch.removesuffix(ADDED), set()).add(id)
    for id in {*evidence.events, *added}:
        most, count = evidence.spec(id).get("payload", {}).get("adds", 0), len(added.get(id, ()))
        if count > most:
            yield Finding("added", f"it adds {most} tasks, and {count} exist: {sorted(added[id])}", id)
        elif count < most and evidence.status(id) is TaskStatus.DONE:
            yield Finding("added", f"it is done, and of the {most} tasks that it adds, {count} exist", id)


def _is_refused_rightly(evidence: Evidence, submission: Submission) -> bool:
    """Whether one of its parents may have been gone by then: purged, or removed."""
    if "depends_on" not in submission.detail and "UnknownDependency" not in submission.detail:
        return False
    parents = {id for spec in submission.specs for id in edges(spec)}
    removed = evidence.ledger.asked("remove")
    return any(id in removed or evidence.spec(id).get("result_ttl_s", 0) <= SOON_PURGED_S for id in parents)


# --- unique keys ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hold:
    """One time for which a task held its unique key: the events that began and ended it, and the task's own."""

    id: str
    began: Event
    ended: Event | None
    events: Sequence[Event]


def check_unique_keys(evidence: Evidence) -> Iterator[Finding]:
    """Findings: unique.

    At no time two tasks hold one key. (That the process of one that has ended is gone, unless its end is presumed, is
    checked of every task.) What was refused, or answered with the holder, really met one.
    """
    by_key: dict[str, list[Hold]] = {}
    for id, events in evidence.events.items():
        spec = evidence.spec(id)
        if spec.get("payload", {}).get("key"):
            by_key.setdefault(spec["unique_key"], []).extend(_holds(id, events, spec.get("unique_until", "done")))
    order = evidence.order
    for key, holds in by_key.items():
        for before, after in pairwise(sorted(holds, key=lambda hold: order[hold.id, hold.began.seq])):
            if before.ended is None or order[before.id, before.ended.seq] > order[after.id, after.began.seq]:
                yield Finding("unique", f"it took {key} while {before.id} held it", after.id)
    for submission in evidence.ledger.submissions:
        if submission.word in ("existing", "conflict"):
            key = submission.specs[0]["unique_key"]
            held = [hold for hold in by_key.get(key, ()) if hold.id == submission.holder]
            if not any(_meets(submission, hold) for hold in held):
                text = f"{submission.batch} was answered {submission.word} for {key}, which {submission.holder} didn't"
                yield Finding("unique", f"{text} hold then", submission.holder)


def _holds(id: str, events: Sequence[Event], until: str) -> Iterator[Hold]:
    began: Event | None = None
    for event in events:
        is_first = event.seq == 1 and event.status not in TERMINAL
        if is_first or event.data.get("retried_by") == "hand":
            began = event
        elif began is not None and (event.status in TERMINAL or (until == "start" and event.event == "started")):
            yield Hold(id, began, event, events)
            began = None
    if began is not None:
        yield Hold(id, began, None, events)


def _meets(submission: Submission, hold: Hold) -> bool:
    """Whether a submission can have met this holder; one that would replace it must have found it running, or waiting
    for the answer to its question."""
    ended_ms = hold.ended.at_ms if hold.ended else float("inf")
    if not (hold.began.at_ms <= submission.answered_ms + AT_ONCE_MS and submission.at_ms <= ended_ms + AT_ONCE_MS):
        return False
    wanted: str = submission.specs[0]["on_conflict"]
    if submission.word == "existing" or wanted == "return":
        return submission.word == "existing" and wanted == "return"
    if wanted == "reject":
        return True
    ran = [
        (event.at_ms, after.at_ms)
        for event, after in pairwise(hold.events)
        if event.status in RUNS or {"question", "text"} <= event.data.keys()
    ]
    return any(
        began_ms <= submission.answered_ms + AT_ONCE_MS and submission.at_ms <= ended_ms + AT_ONCE_MS
        for began_ms, ended_ms in ran
    )


# --- results ----------------------------------------------------------------------------------------------------------


def check_results(evidence: Evidence) -> Iterator[Finding]:
    """Findings: result, parents.

    A result is that of the attempt that ended done, and of no other; `ctx.parents` had the results of the parents.
    """
    tokens = {id: _token(evidence, id) for id, events in evidence.events.items()}
    for id, record in evidence.records.items():
        if record.status is TaskStatus.DONE and record.result.get("token") != tokens.get(id):
            yield Finding("result", f"its result is {record.result}, and its last attempt's {tokens.get(id)}", id)
    for id, effects in evidence.effects.items():
        wanted = [parent for parent, on in edges(evidence.spec(id)).items() if on == "success"]
        for end in (effect for effect in effects if effect.what == "end"):
            seen, had = dict(end.parents), {parent: tokens.get(parent) for parent in wanted}
            if seen != had:
                yield Finding("parents", f"it saw the results {seen} of its parents, and they were {had}", id)


def _token(evidence: Evidence, id: str) -> str | None:
    """What the attempt returned that ended done."""
    effects = evidence.effects.get(id, ())
    for attempt in attempts(evidence.events[id], effects):
        if attempt.over is not None and attempt.over.status is TaskStatus.DONE:
            return next((effect.token for effect in attempt.effects if effect.what == "end"), None)
    return next((effect.token for effect in effects if effect.pool == RQ and effect.what == "end"), None)
