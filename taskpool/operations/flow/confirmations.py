"""What people answer: they confirm or reject tasks, and answer what running tasks ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from taskpool.access.audit import ANONYMOUS, Actor, entry
from taskpool.errors import FieldError, InvalidTask, NotAllowed, TaskConflict, TaskNotFound
from taskpool.operations.catalog import schema_faults
from taskpool.operations.records import check_id, fetch
from taskpool.operations.status import release_dependents
from taskpool.redis import keys, people_scripts
from taskpool.redis.calls import Plan, one, tolerant
from taskpool.redis.people_scripts import By
from taskpool.redis.scripts import due
from taskpool.tasks.payload.encode import json_value
from taskpool.text import refuse_nan
from taskpool.types import TaskRecord, TaskStatus
from taskpool.types.people import LONGEST_TEXT, TEXT, TEXT_TAKES
from taskpool.validation import is_text

BATCH: Final = 200
"""How many unanswered questions one round of housekeeping closes."""

RACES: Final = 5
"""How often an answer is given again when the task asks something else meanwhile."""
MOST_ANSWER_BYTES: Final = 16 * 1024

_encode: Final = msgspec.json.Encoder(order="deterministic").encode

Decision = Literal["confirmed", "rejected"]


def confirm_task(
    id: str, decision: Decision, *, comment: str | None = None, by: Actor | None = None
) -> Plan[TaskRecord]:
    """Confirm or reject a task that waits for confirmation. The first decision counts; the same one again agrees.

    Raises:
        TaskNotFound
        InvalidTask: the comment is no text of 1 to 2,000 characters.
        NotAllowed: the task names others who may answer.
        TaskConflict: it doesn't wait for confirmation, or the decision was another one.
    """
    check_id(id)
    who = answerer(comment, by)
    if decision == "confirmed":
        audited = entry(by, "task.confirmed", id, comment=comment)
    else:
        audited = entry(by, "task.rejected", id, comment=comment)
    word = yield from one(people_scripts.confirm(id, decision, who, audited))
    if word == "children":
        yield from release_dependents(id)
    if word == "gone":
        raise TaskNotFound(id)
    if word == "not_allowed":
        raise NotAllowed(
            [FieldError("", f"task {id} names who may answer, and the key {who.name!r} isn't one of them")]
        )
    record = yield from one(fetch(id))
    if word not in ("ok", "children"):
        raise TaskConflict(id, record.status, f"task {id} {_why_not(record)}")
    return record


def answer_task(
    id: str, answer: Any, *, question: str | None = None, comment: str | None = None, by: Actor | None = None
) -> Plan[TaskRecord]:
    """Answer what a task asks in the middle of its work. The first answer counts; the same one again agrees.

    `question`: the name of the question that is meant. Without it, it is the one that the task asks now, or else the
    last one that it asked.

    Raises:
        TaskNotFound
        InvalidTask: the answer doesn't fit the question's schema, isn't JSON, or is too large; or the comment isn't
            right.
        TaskConflict: it doesn't ask that, or there is another answer.
    """
    check_id(id)
    who = answerer(comment, by)
    given = _answer_document(answer)
    audited = entry(by, "task.answered", id, comment=comment)
    for _ in range(RACES):
        record = yield from one(fetch(id))
        asked = record.question
        if asked is None or question not in (None, asked.name):
            break
        if asked.schema is not None:
            _refuse(schema_faults(asked.schema, msgspec.json.decode(given), "/answer"))
        word = yield from one(people_scripts.answer(id, record.seq, given, who, audited))
        if word == "gone":
            raise TaskNotFound(id)
        if word == "ok":
            return (yield from one(fetch(id)))
    last = next((each for each in reversed(record.answers) if question in (None, each.question)), None)
    if last is None:
        what = "anything now" if question is None else repr(question)
        instead = f"; it asks {record.question.name!r}" if record.question is not None else ""
        if record.question is None and record.status is TaskStatus.WAITING_CONFIRMATION:
            instead = ": it waits to be confirmed or rejected"
        raise TaskConflict(id, record.status, f"task {id} doesn't ask {what}{instead}")
    if last.how == "timeout" or _encode(last.answer) != given:
        raise TaskConflict(id, record.status, f"task {id} has another answer to that question")
    return record


def _answer_document(answer: Any) -> bytes:
    try:
        document = _encode(json_value(answer))
        refuse_nan(answer, document)
    except (ValueError, TypeError) as error:
        _refuse([FieldError("/answer", f"is not JSON: {error}")])
        raise
    if len(document) > MOST_ANSWER_BYTES:
        _refuse([FieldError("/answer", f"may have {MOST_ANSWER_BYTES:,} bytes of JSON, not {len(document):,}")])
    return document


def _refuse(faults: Sequence[FieldError]) -> None:
    if faults:
        raise InvalidTask(f"{faults[0].pointer}: {faults[0].detail}", faults)


def answerer(comment: str | None, by: Actor | None) -> By:
    """Who answers, and why. Raises: InvalidTask."""
    if comment is not None and not (is_text(comment) and len(comment) <= LONGEST_TEXT and TEXT.fullmatch(comment)):
        _refuse([FieldError("/comment", f"must be {TEXT_TAKES}")])
    return By(comment=comment) if by is None or by.name == ANONYMOUS else By(by.name, by.key, comment)


def _why_not(record: TaskRecord) -> str:
    if record.confirmation is not None:
        return f"was {record.confirmation.decision} before"
    if record.question is not None:
        return f"asks {record.question.name!r} in the middle of its work: answer it"
    if record.confirm is None:
        return "doesn't ask for a confirmation"
    if record.status is TaskStatus.WAITING:
        return "waits for other tasks first: its question is asked when they have ended"
    return f"doesn't wait for a confirmation: it is {record.status}"


def close_unanswered(*, by_ms: int | None = None) -> Plan[None]:
    """Has the default answers count for questions whose time is over."""
    (found,) = yield (due(keys.CONFIRMATIONS, limit=BATCH, by_ms=by_ms),)
    words = yield [tolerant(people_scripts.unanswered(id), "") for id in found.members]
    for id, word in zip(found.members, words, strict=True):
        if word == "children":
            yield from release_dependents(id)
