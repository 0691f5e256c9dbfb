"""Reads the bodies of submissions, stops and retries.

The fields are those of `TaskSpec`. Only their types are checked here; limits, and whether the payload fits its task
type, are checked in `taskpool.operations.submit`. A body with faults is refused with all of them, each with its JSON
Pointer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from taskpool.errors import FieldError
from taskpool.tasks.payload.faults import field_errors, pointer
from taskpool.types import TaskSpec
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


class Retry(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /tasks/{id}/retry, if any: nothing can be chosen."""


def read_submission(document: Any) -> TaskSpec:
    """The task that the body of POST /tasks stands for.

    Raises:
        Problem: 422, with an entry for each field at fault.
    """
    return read_as(document, TaskSpec)


def read_batch(document: Any) -> list[TaskSpec]:
    """The tasks that the body of POST /tasks/batch stands for, in order.

    Raises:
        Problem: 422, with an entry for each field at fault; the pointers name the index.
    """
    submitted = read_as(document, Batch).tasks
    if not 1 <= len(submitted) <= MAX_BATCH:
        raise _invalid([FieldError("/tasks", f"a batch has 1 to {MAX_BATCH:,} tasks, not {len(submitted):,}")])
    specs: list[TaskSpec] = []
    faults: list[FieldError] = []
    guesses = Guesses()
    for index, item in enumerate(submitted):
        try:
            specs.append(_read(item, TaskSpec))
        except msgspec.ValidationError:
            faults += islice(_faults(item, TaskSpec, f"/tasks/{index}", guesses), ENOUGH - len(faults))
            if len(faults) == ENOUGH:
                break
    if faults:
        raise _invalid(faults)
    return specs


def read_stop(document: Any) -> Stop:
    """How the body of POST /tasks/{id}/stop wants it. Raises: Problem 422."""
    return read_as(document, Stop, "invalid-body")


def read_retry(document: Any) -> None:
    """Nothing. Raises: Problem 422 for a body with any field."""
    read_as(document, Retry, "invalid-body")


def read_as(document: Any, wanted: type[T], kind: str = "invalid-task") -> T:
    """A body that is this kind of object.

    Raises:
        Problem: 422, of this kind, with an entry for each field at fault.
    """
    try:
        return _read(document, wanted)
    except msgspec.ValidationError:
        raise _invalid(list(islice(_faults(document, wanted, "", Guesses()), ENOUGH)), kind) from None


def _read(document: Any, wanted: type[T]) -> T:
    try:
        value = msgspec.convert(document, wanted)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error) or not isinstance(document, dict):
            raise
        value = msgspec.convert({name: _whole(each) for name, each in document.items()}, wanted)
    if isinstance(value, TaskSpec) and value.payload is None:
        return replace(value, payload={})  # null is "not given" here as it is for the other options
    return value


def _whole(value: Any) -> Any:
    """A whole number as an integer: JSON has one kind of number, and some writers make 5.0 of 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _faults(document: Any, wanted: type[msgspec.Struct], at: str, guesses: Guesses) -> Iterator[FieldError]:
    """Every fault of a document that `_read` refused, field by field: msgspec by itself names only the first."""
    if not isinstance(document, dict):
        yield FieldError(at, "must be an object")
        return
    annotations = _annotations(wanted)
    for name, value in document.items():
        if name not in annotations:
            yield FieldError(pointer((name,), at), "unknown field" + _hint(name, annotations, guesses))
            continue
        try:
            msgspec.convert(_whole(value), annotations[name])
        except msgspec.ValidationError as error:
            yield from field_errors(error, pointer((name,), at), annotations[name])
    for name in _required(wanted):
        if name not in document:
            yield FieldError(pointer((name,), at), "this field is required")


@cache
def _annotations(wanted: type[msgspec.Struct]) -> dict[str, Any]:
    return get_type_hints(wanted, include_extras=True)


@cache
def _required(wanted: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(wanted) if field.required]


def _hint(name: str, known: dict[str, Any], guesses: Guesses) -> str:
    if not known:
        return "; there are none"
    near = guesses.near(name, known)
    if near is None:
        return ""
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _invalid(faults: list[FieldError], kind: str = "invalid-task") -> Problem:
    first = faults[0]
    more = f" (and {'at least ' if len(faults) == ENOUGH else ''}{len(faults) - 1} more)" if len(faults) > 1 else ""
    errors = [{"pointer": fault.pointer, "detail": fault.detail} for fault in faults]
    return Problem(kind, f"{first.pointer or 'the body'}: {first.detail}{more}", errors=errors)
