"""Submissions checked: by their type, where it is registered here, else by the schema that its workers published.

Nothing is stored here; what stores what was checked is in `queue` and `entry`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from taskpool.access.audit import Actor
from taskpool.calls import SLICE_S, Plan
from taskpool.catalogue import Catalogue
from taskpool.errors import FieldError, InvalidPayload, InvalidTask
from taskpool.payload.encode import json_value
from taskpool.payload.faults import NotJson, invalid_payload_of, not_json
from taskpool.registry import Registry
from taskpool.secret import Secrets
from taskpool.submission.addition import NewTask
from taskpool.submission.prepare import Defaults, TypeOptions, prepare
from taskpool.submission.specs import check_spec, read_specs
from taskpool.tasktype import TaskType
from taskpool.types import TaskSpec


class Checked(NamedTuple):
    """A submission that may be stored, and its payload as JSON values, with masks for what is secret."""

    task: NewTask
    payload: Any


def check_task(
    spec: TaskSpec,
    catalogue: Catalogue,
    registry: Registry | None,
    defaults: Defaults,
    *,
    by: Actor | None = None,
) -> Plan[Checked]:
    """Check a submission as `add_task` does, and store nothing. `by`: who submits it, whose project it gets.

    Raises:
        InvalidTask: as `add_task`.
        NotAllowed: `by` may not use its type, its queue or one of its options.
    """
    check_spec(spec)
    if by is not None:
        by.check_options(spec)
    task_type = None if registry is None else registry.get(spec.type)
    info = task_type or (yield from catalogue.find((spec.type,)))[spec.type]
    return _checked(spec, task_type or catalogue, info, defaults, "", by=by)


def check_tasks(
    specs: Sequence[TaskSpec],
    catalogue: Catalogue,
    registry: Registry | None,
    defaults: Defaults,
    *,
    by: Actor | None = None,
    start: str = "",
) -> Plan[list[Checked]]:
    """Check submissions as `add_tasks` does, and store nothing; `by` as in `check_task`. The faults' pointers begin
    with `start` and the task's index.

    Raises:
        InvalidTask: as `add_tasks`.
        NotAllowed
    """
    specs = read_specs(specs, start)
    if by is not None:
        for index, spec in enumerate(specs):
            by.check_options(spec, f"{start}/{index}")
    _check_keys(specs, start)
    local = {} if registry is None else {spec.type: registry.get(spec.type) for spec in specs}
    foreign = {spec.type for spec in specs if local.get(spec.type) is None}
    infos = (yield from catalogue.find(list(foreign))) if foreign else {}
    checked = []
    due_mono = time.monotonic() + SLICE_S
    for index, spec in enumerate(specs):
        if time.monotonic() >= due_mono:
            yield ()
            due_mono = time.monotonic() + SLICE_S
        task_type = local.get(spec.type)
        info = task_type or infos[spec.type]
        checked.append(_checked(spec, task_type or catalogue, info, defaults, f"{start}/{index}", by=by))
    yield ()
    return checked


def _check_keys(specs: Sequence[TaskSpec], start: str) -> None:
    """A unique key can't be held by two that come together."""
    first: dict[str, int] = {}
    for index, spec in enumerate(specs):
        if spec.unique_key is not None and first.setdefault(spec.unique_key, index) != index:
            fault = FieldError(
                f"{start}/{index}/unique_key",
                f"the task with the index {first[spec.unique_key]} has the same unique key",
            )
            raise InvalidTask(f"{fault.pointer}: {fault.detail}", [fault])


def _checked(
    spec: TaskSpec,
    judge: TaskType | Catalogue,
    info: TypeOptions,
    defaults: Defaults,
    start: str,
    *,
    by: Actor | None,
) -> Checked:
    """One submission, checked by its type where that is registered here, else by its schema in the catalogue."""
    if by is not None:
        by.check_task(spec.type, spec.queue or info.queue, start)
    # What comes over HTTP or from a command, in somebody's name, was read from JSON: a large one takes long to copy.
    payload = _as_json(spec, start) if by is None else spec.payload
    if payload is None:
        payload = {}
    fields = judge.secret_fields(spec.type) if isinstance(judge, Catalogue) else judge.secret_fields
    shown, secrets = fields.split(payload) if fields else (payload, None)
    if isinstance(judge, Catalogue):
        judge.check(spec.type, payload, start + "/payload")
    else:
        _check_locally(judge, payload, start, secrets)
    return Checked(prepare(spec, shown, info, defaults, start, secrets=secrets, by=by), shown)


def _check_locally(task_type: TaskType, payload: Any, start: str, secrets: Secrets | None) -> None:
    try:
        task_type.decode(payload)
    except InvalidPayload as error:
        if not start and secrets is None:
            raise
        hide = secrets.hide if secrets else str
        faults = [FieldError(start + each.pointer, hide(each.detail)) for each in error.errors]
        refusal = invalid_payload_of(task_type.name, faults)
        raise InvalidPayload(hide(str(refusal)), refusal.errors) from None


def _as_json(spec: TaskSpec, start: str) -> Any:
    """The payload as JSON values: a program may give dataclasses, dates and the like."""
    try:
        return json_value(spec.payload)
    except NotJson as error:
        raise not_json(spec.type, error, start) from None
