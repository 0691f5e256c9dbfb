"""How a filter, and an operation with one, is read: which values may be given, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from taskpool.errors import FieldError, InvalidOperation, InvalidTask
from taskpool.types import TaskStatus
from taskpool.types.control import ACTIONS, Filter, OperationSpec
from taskpool.validation import (
    DURATION,
    EARLIEST,
    LATEST,
    declared,
    is_text,
    queue_name_fault,
    seconds_of,
    shortened,
    value_faults,
)

F = TypeVar("F", bound=Filter)

_FIELDS: Final = {each.name: each for each in declared(Filter)}
NO_PROJECT: Final = "/"  # no project has this name


def checked(wanted: F, now: datetime | None = None) -> F:
    """The filter with a status of its type, times in full, and durations in seconds. `now`: from when "how long ago"
    counts. Raises: InvalidTask, with the JSON Pointer of each fault."""
    values = dict(_read(wanted, now or datetime.now(UTC)))
    faults = [FieldError(f"/{name}", value.text) for name, value in values.items() if isinstance(value, _Fault)]
    if wanted.node is not None and wanted.workflow is None:
        faults.append(FieldError("/node", "needs a workflow"))
    since, until = values.get("since"), values.get("until")
    if isinstance(since, datetime) and isinstance(until, datetime) and until <= since:
        faults.append(FieldError("/until", "must be later than `since`"))
    if faults:
        raise InvalidTask(f"{faults[0].pointer}: {faults[0].detail}", faults)
    return replace(wanted, **values) if values else wanted


def checked_operation(spec: OperationSpec) -> OperationSpec:
    """The operation with its filter read. Raises: InvalidOperation, with the JSON Pointer of each fault."""
    faults = []
    wanted = spec.filter
    if spec.action not in ACTIONS:
        faults.append(FieldError("/action", f"must be one of {', '.join(ACTIONS)}, not {shortened(repr(spec.action))}"))
    try:
        wanted = checked(wanted)
    except InvalidTask as error:
        faults += [FieldError(f"/filter{each.pointer}", each.detail) for each in error.errors]
    if not wanted.given:
        faults.append(FieldError("/filter", "needs at least one criterion"))
    if spec.action == "move":
        fault = "this field is required" if spec.queue is None else queue_name_fault(spec.queue)
        faults += [FieldError("/queue", fault)] if fault else []
    elif spec.queue is not None:
        faults.append(FieldError("/queue", "is only for the action `move`; `filter` has the queue of the tasks"))
    if spec.include_nonretryable and spec.action != "retry":
        faults.append(FieldError("/include_nonretryable", "is only for the action `retry`"))
    if faults:
        raise InvalidOperation(faults)
    return replace(spec, filter=wanted)


def within(project: str | None, wanted: F) -> F:
    """The filter for a caller of this project (None: any), for whom tasks of other projects don't exist."""
    if project is None:
        return wanted
    return replace(wanted, project=project if wanted.project in (None, project) else NO_PROJECT)


class _Fault:
    def __init__(self, text: str) -> None:
        self.text = text


def _read(wanted: Filter, now: datetime) -> Iterator[tuple[str, Any]]:
    for name, value in wanted.given.items():
        if name == "status":
            yield name, _status(value)
        elif name in ("since", "until"):
            yield name, _past(value, now)
        else:
            yield name, _plain(name, value)


def _plain(name: str, value: Any) -> Any:
    if _FIELDS[name].type is str and not is_text(value):
        return _Fault(f"must be a name, not {value!r}")
    fault = next((fault for _, fault in value_faults(_FIELDS[name], value)), None)
    if fault is not None:
        return _Fault(fault)
    return seconds_of(value) if name == "min_duration" else value


def _status(value: Any) -> Any:
    known = tuple(TaskStatus)
    return TaskStatus(value) if value in known else _Fault(f"must be one of {', '.join(known)}, not {value!r}")


def _past(value: Any, now: datetime) -> Any:
    fault = _Fault(f"must be {_FIELDS['since'].about.takes}")
    try:
        if isinstance(value, timedelta) or (isinstance(value, str) and DURATION.fullmatch(value)):
            return now - timedelta(seconds=seconds_of(value))
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        return fault
    if not (isinstance(at, datetime) and at.tzinfo is not None and EARLIEST <= at <= LATEST):
        return fault
    return at.astimezone(UTC)  # JSON has no seconds in an offset
