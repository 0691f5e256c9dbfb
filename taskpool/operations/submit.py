"""Checks submissions and prepares them for storage: options, payload, the defaults of the type and of the settings.

A payload is checked by its task type if that is registered in this process, else with the JSON Schema that workers
published. All faults of a list of submissions are found before the first is stored; nothing is sent from here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

import msgspec

from taskpool import types
from taskpool.access.audit import Actor
from taskpool.errors import FieldError, InvalidPayload, InvalidTask
from taskpool.operations.catalog import Catalogue
from taskpool.operations.specs import check_spec, read_specs
from taskpool.redis import rq_job
from taskpool.redis.add_script import DEFAULT_ATTEMPTS, NO_CAPS, Caps, NewTask, share
from taskpool.redis.calls import SLICE_S, Part, Plan
from taskpool.settings import Settings
from taskpool.tasks.payload.encode import fault_in, is_faithful, json_value, strict_json_value
from taskpool.tasks.payload.faults import NotJson, invalid_payload_of, not_json
from taskpool.tasks.registry import Registry
from taskpool.tasks.task_type import DEFAULT_QUEUE, TaskType
from taskpool.text import Secrets, may_hide_nan
from taskpool.types import (
    DEFAULT_FAILURE_TTL_S,
    DEFAULT_RESULT_TTL_S,
    DEFAULT_SECRET_TTL_S,
    OPTIONS,
    TaskSpec,
    TypeOptions,
    Unique,
    trace_text,
)
from taskpool.types.dependency import edges_of
from taskpool.url_guard import Allowed, parse_target
from taskpool.validation import Declared, new_id, new_ids, value_faults
from taskpool.webhooks.endpoint import callback_events

IDS_AT_ONCE: Final = 1000
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a task gets when neither its submission nor its type says otherwise. Seconds."""

    timeout_s: float = 600.0
    result_ttl_s: int = DEFAULT_RESULT_TTL_S
    failure_ttl_s: int = DEFAULT_FAILURE_TTL_S
    max_attempts: int = DEFAULT_ATTEMPTS
    secret_ttl_s: int = DEFAULT_SECRET_TTL_S
    max_queue_depth: int = 0
    caps: Caps = NO_CAPS
    webhook_allow: tuple[str, ...] = ()
    max_schedules: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Defaults:
        """Those of these settings."""
        return cls(
            timeout_s=settings.timeout_s,
            result_ttl_s=settings.result_ttl_s,
            failure_ttl_s=settings.failure_ttl_s,
            max_attempts=settings.max_attempts,
            secret_ttl_s=settings.secret_ttl_s,
            max_queue_depth=settings.max_queue_depth,
            caps=Caps(settings.max_queues, settings.max_tags, settings.max_unique_keys, settings.max_idempotency_keys),
            webhook_allow=settings.webhook_allow,
            max_schedules=settings.max_schedules,
        )


def prepare(
    spec: TaskSpec,
    payload: Any,
    info: TypeOptions,
    defaults: Defaults,
    start: str = "",
    *,
    secrets: Secrets | None = None,
    by: Actor | None = None,
    id: str | None = None,
) -> NewTask:
    """The task that `spec` asks for, with `payload`: its own as JSON values, which fit the schema already, with masks
    in the places of its `secrets`.

    `start` prefixes the faults' pointers; `by` is who submits it, and may do so; `id` is its id (None: a new one).

    Raises:
        InvalidTask: with a JSON Pointer for each fault.
    """
    is_plain = spec == TaskSpec(type=spec.type, payload=spec.payload)
    given = () if is_plain else _given(spec)
    if given and (faults := [FieldError(start + at, fault) for at, fault in _faults(spec, given, defaults)]):
        raise InvalidTask(f"{faults[0].pointer}: {faults[0].detail}", faults)
    queue = spec.queue or info.queue or DEFAULT_QUEUE
    project = None if by is None else by.project
    result_ttl_s = spec.result_ttl_s or info.result_ttl_s or defaults.result_ttl_s
    failure_ttl_s = spec.failure_ttl_s or defaults.failure_ttl_s
    if spec.unique_for_s is not None:  # the record stays as long as it is needed to tell who holds the key
        least_s = math.ceil(spec.unique_for_s)
        result_ttl_s, failure_ttl_s = max(result_ttl_s, least_s), max(failure_ttl_s, least_s)
    shared = share(
        spec.type,
        queue,
        spec.timeout_s or info.timeout_s or defaults.timeout_s,
        result_ttl_s,
        failure_ttl_s,
        spec.max_attempts or info.max_attempts or defaults.max_attempts,
        info.backoff_s if spec.backoff_s is None else spec.backoff_s,
        info.backoff_max_s if spec.backoff_max_s is None else spec.backoff_max_s,
        spec.on_lost_lease or info.on_lost_lease or "continue",
        None if by is None else by.key_name,
    )
    encoded, hidden = _encoded(spec, payload, secrets, start)
    data = rq_job.data(spec.type, encoded)
    description = rq_job.description(spec.type, payload, size=len(encoded))
    if is_plain and secrets is None and project is None:
        return NewTask(
            id or new_id(),
            shared,
            data,
            description,
            payload,
            max_depth=defaults.max_queue_depth,
            caps=defaults.caps,
            is_plain=True,
        )
    held = types.unique_of(spec, project, b"" if by is None else by.bounds())
    traced = trace_text(spec.traceparent, spec.tracestate) if spec.traceparent else None
    fields: list[Part] = list(_stored(given, held, traced))
    if secrets is not None:
        fields += ("secret_ttl", defaults.secret_ttl_s)
    if project is not None:
        fields += ("project", project)
    events = callback_events(spec.callback_url, spec.callback_events)
    recorded = {option.name: _once(option, value) for option, value in given if option.about.stored}
    edges = edges_of(spec.depends_on)
    recorded["depends_on"] = tuple(edge.shown for edge in edges)
    recorded |= {"callback_events": events, **types.rare_fields(None if held is None else held.text, traced)}
    return NewTask(
        id or new_id(),
        shared,
        data,
        description,
        payload,
        recorded,
        front=spec.front,
        run_ms=round(spec.run_at.timestamp() * 1000) if isinstance(spec.run_at, datetime) else None,
        delay_ms=None if spec.delay_s is None else round(spec.delay_s * 1000),
        expires_ms=None if spec.expires_in_s is None else round(spec.expires_in_s * 1000),
        tags=tuple(dict.fromkeys(spec.tags)) if spec.tags else (),
        parents=tuple(edge.ref for edge in edges if edge.is_plain),
        edges=tuple(edge for edge in edges if not edge.is_plain),
        fields=fields,
        secrets=hidden,
        secret_ttl_s=None if secrets is None else defaults.secret_ttl_s,
        max_depth=defaults.max_queue_depth,
        caps=defaults.caps,
        callback_events=events,
        unique=held,
        project=project,
        confirm=spec.confirm is not None,
    )


def _encoded(spec: TaskSpec, payload: Any, secrets: Secrets | None, start: str) -> tuple[bytes, bytes]:
    """The payload as JSON, and its secrets as they are kept. Raises: InvalidPayload, with the place of the fault."""
    try:
        encoded = _encode(payload)
        hidden = b"" if secrets is None else secrets.stored()
        if not is_faithful(spec.payload, encoded) or (hidden and may_hide_nan(hidden)):
            strict_json_value(spec.payload)
        return encoded, hidden
    except ValueError as error:  # NaN, too deep, or half a surrogate pair in a text
        raise not_json(spec.type, fault_in(spec.payload) or NotJson((), str(error)), start) from None


Given = Sequence[tuple[Declared, Any]]
"""The options of a submission that don't have their defaults, with their values."""

_values: Final = attrgetter(*[option.name for option in OPTIONS])


def _given(spec: TaskSpec) -> Given:
    pairs = zip(OPTIONS, _values(spec), strict=True)
    return [(option, value) for option, value in pairs if value is not None and value != option.default]


def _faults(spec: TaskSpec, given: Given, defaults: Defaults) -> Iterator[tuple[str, str]]:
    """What is wrong with the options: a JSON Pointer below the submission, and why."""
    for option, value in given:
        about = option.about
        if about.needs and getattr(spec, about.needs) is None:
            yield f"/{option.name}", f"needs a {about.needs}"
        for other in about.excludes:
            if getattr(spec, other) is not None:
                yield f"/{option.name}", f"give either {other} or {option.name}, not both"
        for below, fault in value_faults(option, value):
            yield f"/{option.name}{below}", fault
    if isinstance(spec.callback_url, str):
        try:
            parse_target(spec.callback_url, Allowed(defaults.webhook_allow))
        except ValueError as error:
            yield "/callback_url", str(error)


def _once(option: Declared, value: Any) -> Any:
    """The value of an option as records show it: a list has each item once."""
    return tuple(dict.fromkeys(value)) if option.is_list else value


def _stored(given: Given, held: Unique | None, traced: str | None) -> Iterator[Part]:
    """The hash fields, flat, of the options that only a submission can give."""
    for option, value in given:
        about = option.about
        if about.stored:
            once = _once(option, value)
            yield about.stored
            if about.is_joined:
                yield ",".join(once)
            else:
                yield once if option.type is str else _encode(once)
    if held is not None:
        yield from ("unique", held.text)
    if traced is not None:
        yield from ("trace", traced)


def check_task(
    spec: TaskSpec,
    catalogue: Catalogue,
    registry: Registry | None,
    defaults: Defaults,
    *,
    by: Actor | None = None,
    start: str = "",
) -> Plan[NewTask]:
    """Check a submission as `add_task` does, and store nothing. `by`: who submits it, whose project it gets. The
    faults' pointers begin with `start`.

    Raises:
        InvalidTask: as `add_task`.
        NotAllowed: `by` may not use its type, its queue or one of its options.
    """
    check_spec(spec, start)
    if by is not None:
        by.check_options(spec, start)
    task_type = None if registry is None else registry.get(spec.type)
    info = task_type.options if task_type else (yield from catalogue.find((spec.type,)))[spec.type]
    return _checked(spec, task_type or catalogue, info, defaults, start, by=by)


def check_tasks(
    specs: Sequence[TaskSpec],
    catalogue: Catalogue,
    registry: Registry | None,
    defaults: Defaults,
    *,
    by: Actor | None = None,
    start: str = "",
    pointers: Sequence[str] = (),
) -> Plan[list[NewTask]]:
    """Check submissions as `add_tasks` does, and store nothing; `by` as in `check_task`. The faults' pointers begin
    with those in `pointers`, else with `start` and the task's index.

    Raises:
        InvalidTask: as `add_tasks`.
        NotAllowed
    """
    specs = read_specs(specs, start)
    pointers = pointers or [f"{start}/{index}" for index in range(len(specs))]
    if by is not None:
        for spec, pointer in zip(specs, pointers, strict=True):
            by.check_options(spec, pointer)
    _check_keys(specs, pointers)
    local = {} if registry is None else {spec.type: registry.get(spec.type) for spec in specs}
    foreign = {spec.type for spec in specs if local.get(spec.type) is None}
    infos = (yield from catalogue.find(list(foreign))) if foreign else {}
    checked = []
    ids = _ids_in_order(len(specs))
    due_mono = time.monotonic() + SLICE_S
    for spec, pointer, id in zip(specs, pointers, ids, strict=True):
        if time.monotonic() >= due_mono:
            yield ()
            due_mono = time.monotonic() + SLICE_S
        task_type = local.get(spec.type)
        info = task_type.options if task_type else infos[spec.type]
        checked.append(_checked(spec, task_type or catalogue, info, defaults, pointer, by=by, id=id))
    yield ()
    return checked


def _ids_in_order(count: int) -> Iterator[str]:
    """New ids, a thousand at a time in order. So tasks that are submitted together are listed in their order, although
    ids of one millisecond are random."""
    for start in range(0, count, IDS_AT_ONCE):
        yield from new_ids(min(IDS_AT_ONCE, count - start))


def _check_keys(specs: Sequence[TaskSpec], pointers: Sequence[str]) -> None:
    """A unique key can't be held by two that come together."""
    first: dict[str, int] = {}
    for index, spec in enumerate(specs):
        if spec.unique_key is not None and first.setdefault(spec.unique_key, index) != index:
            fault = FieldError(
                f"{pointers[index]}/unique_key",
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
    id: str | None = None,
) -> NewTask:
    """One submission, checked by its type where that is registered here, else by its schema in the catalogue."""
    if by is not None:
        by.check_task(spec.type, spec.queue or info.queue or DEFAULT_QUEUE, start)
    # What comes over HTTP or from a command, in somebody's name, was read from JSON: a large one takes long to copy.
    payload = as_json(spec, start) if by is None else spec.payload
    if payload is None:
        payload = {}
    fields = judge.secret_fields(spec.type) if isinstance(judge, Catalogue) else judge.secret_fields
    shown, secrets = fields.split(payload) if fields else (payload, None)
    if isinstance(judge, Catalogue):
        judge.check(spec.type, payload, start + "/payload")
    else:
        _check_locally(judge, payload, start, secrets)
    return prepare(spec, shown, info, defaults, start, secrets=secrets, by=by, id=id)


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


def as_json(spec: TaskSpec, start: str) -> Any:
    """The payload as JSON values: a program may give dataclasses, dates and the like.
    Raises: InvalidPayload, with the place of what has no JSON form, below `start`."""
    try:
        return json_value(spec.payload)
    except NotJson as error:
        raise not_json(spec.type, error, start) from None
