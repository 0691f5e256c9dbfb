"""Reads the bodies of submissions, stops and retries.

The fields are those of `TaskSpec`. Only their types are checked here; limits, and whether the payload fits its task
type, are checked in `taskpool.operations.submit`. A body with faults is refused with all of them, each with its JSON
Pointer.
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from taskpool.errors import FieldError
from taskpool.operations.insight.failure_values import LARGEST_STEP, MOST_STEPS, STEPS
from taskpool.operations.reading import faults_in, read
from taskpool.types import TaskSpec
from taskpool.types.insight import ALL
from taskpool.validation import LONGEST_GRACE_S, Guesses

from .problems import MAX_SHOWN, Problem

MAX_BATCH: Final = 1000
SUBMISSION: Final = {"$ref": "#/components/schemas/Submission"}
"""How a schema says "a task of any known type"; the OpenAPI document has it."""
ENOUGH: Final = MAX_SHOWN + 1
"""The search for faults ends here."""

T = TypeVar("T", bound=msgspec.Struct)


class Batch(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /tasks/batch."""

    tasks: Annotated[list[Any], Meta(extra_json_schema={"items": SUBMISSION, "minItems": 1, "maxItems": MAX_BATCH})]


class Stop(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /tasks/{id}/stop: seconds until the task is killed, or kill it at once."""

    grace_s: Annotated[float, Meta(ge=0, le=LONGEST_GRACE_S)] = 10.0
    force: bool = False


class RedriveBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /failures/{fingerprint}/redrive, if any: how many tasks each step retries, and whether failures
    by `NonRetryable` are retried, too."""

    steps: Annotated[
        list[Any],
        Meta(
            extra_json_schema={
                "items": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": LARGEST_STEP}, {"const": ALL}]},
                "minItems": 1,
                "maxItems": MOST_STEPS,
            }
        ),
    ] = msgspec.field(default_factory=lambda: list(STEPS))
    include_nonretryable: bool = False


class Retry(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /tasks/{id}/retry, if any: nothing can be chosen."""


def read_batch(document: Any) -> list[TaskSpec]:
    """The tasks that the body of POST /tasks/batch stands for, in order.
    Raises: Problem 422, with an entry for each field at fault; the pointers name the index."""
    submitted = read_as(document, Batch).tasks
    if not 1 <= len(submitted) <= MAX_BATCH:
        raise _invalid([FieldError("/tasks", f"a batch has 1 to {MAX_BATCH:,} tasks, not {len(submitted):,}")])
    specs: list[TaskSpec] = []
    faults: list[FieldError] = []
    guesses = Guesses()
    for index, item in enumerate(submitted):
        try:
            specs.append(read(item, TaskSpec))
        except msgspec.ValidationError:
            faults += islice(faults_in(item, TaskSpec, f"/tasks/{index}", guesses), ENOUGH - len(faults))
            if len(faults) == ENOUGH:
                break
    if faults:
        raise _invalid(faults)
    return specs


def read_as(document: Any, wanted: type[T], kind: str = "invalid-task") -> T:
    """A body that is this kind of object. Raises: Problem 422, of this kind, with an entry for each field at fault."""
    try:
        return read(document, wanted)
    except msgspec.ValidationError:
        raise _invalid(list(islice(faults_in(document, wanted, "", Guesses()), ENOUGH)), kind) from None


def _invalid(faults: list[FieldError], kind: str = "invalid-task") -> Problem:
    first = faults[0]
    more = f" (and {'at least ' if len(faults) == ENOUGH else ''}{len(faults) - 1} more)" if len(faults) > 1 else ""
    errors = [{"pointer": fault.pointer, "detail": fault.detail} for fault in faults]
    return Problem(kind, f"{first.pointer or 'the body'}: {first.detail}{more}", errors=errors)
