"""Turns errors of msgspec and pydantic about a payload into `InvalidPayload` with JSON Pointers (RFC 6901)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import inspect

from taskpool.errors import FieldError, InvalidPayload

PAYLOAD: Final = "/payload"

Steps = tuple[str | int, ...]

# msgspec: "Expected `int`, got `str` - at `$.sizes[1].width`", or "... - at `key` in `$.sizes`".
_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at (?:(?P<key>`key`) in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_FIELD = re.compile(r"Object (?:missing (?P<missing>required)|contains unknown) field `(?P<name>.*)`")
_CHOICE = "Invalid enum value "
_EXAMPLES: Final = {
    "Invalid RFC3339 encoded datetime": "must be a time as RFC 3339 writes it, like 2026-11-24T03:00:00Z",
    "Expected `datetime` with a timezone component": "must be a time with its zone, like 2026-11-24T03:00:00Z",
    "Invalid RFC3339 encoded date": "must be a date, like 2026-11-24",
    "Invalid RFC3339 encoded time": "must be a time of day, like 03:00:00",
}
LONGEST_SHOWN: Final = 200
MOST_CHOICES: Final = 30
"""How many choices an error names. The schema of the type has all of them."""


def pointer(steps: Iterable[str | int], start: str = PAYLOAD) -> str:
    """The JSON Pointer of the place that `steps` lead to from `start`. Long names are cut."""
    return start + "".join("/" + shown(str(step)).replace("~", "~0").replace("/", "~1") for step in steps)


def shown(name: str) -> str:
    """A name as error texts show it. A client may send one of any length."""
    return name if len(name) <= LONGEST_SHOWN else name[: LONGEST_SHOWN - 1] + "…"


class NotJson(ValueError):
    """Raised for a value that JSON can't hold. `pointer` is the JSON Pointer of the place, "" for the value itself."""

    def __init__(self, steps: Steps, detail: str) -> None:
        self.steps, self.pointer, self.detail = steps, pointer(steps, ""), detail
        super().__init__(f"{detail} (at {self.pointer})" if steps else detail)


class Misfit(ValueError):
    """Raised in msgspec's hook for a ValidationError, its cause, about a part of the value."""


def invalid_payload(task: str, error: Exception, wanted: Any = Any) -> InvalidPayload:
    """The InvalidPayload for an error of msgspec or pydantic. `task` is the name of the task type, `wanted` the
    annotation of its payload."""
    return invalid_payload_of(task, field_errors(error, wanted=wanted))


def invalid_payload_of(task: str, errors: Iterable[FieldError]) -> InvalidPayload:
    """The InvalidPayload for these faults. Its text names the first one."""
    faults = tuple(errors)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidPayload(
        f"the payload doesn't fit the task type {task!r}: {faults[0].pointer}: {faults[0].detail}{more}", faults
    )


def not_json(type_name: str, error: NotJson, start: str) -> InvalidPayload:
    """The InvalidPayload for a payload that isn't JSON. `start` prefixes the pointer."""
    fault = FieldError(start + PAYLOAD + error.pointer, error.detail)
    return InvalidPayload(f"the payload of {type_name!r} is not JSON: {fault.pointer}: {fault.detail}", [fault])


def field_errors(error: BaseException, start: str = PAYLOAD, wanted: Any = Any) -> list[FieldError]:
    """The faults in an error of msgspec or pydantic, at least one, each with the pointer of its field. `wanted` is the
    annotation of the value at `start`: with it, an error about a choice names the choices."""
    if hasattr(error, "errors"):  # pydantic lists all faults
        return [FieldError(pointer(fault["loc"], start), fault["msg"]) for fault in error.errors()]
    match = _MESSAGE.fullmatch(str(error))
    what, path = (match["what"], match["path"] or "") if match else (str(error), "")
    what = _EXAMPLES.get(what, what)
    places = list(_STEP.finditer(path))
    steps: list[str | int] = [int(place[2]) if (place[2] or "").isdigit() else place[1] or place[2] for place in places]
    if what.startswith(_CHOICE) and (known := choices(wanted, steps, is_key=bool(match and match["key"]))):
        what = _one_of(known)
    for number, place in enumerate(places):
        if place[2] == "...":  # msgspec doesn't say which value of a mapping it is
            rest = path[place.end() :]
            what = f"{what} (in one of its values{', at ' + rest if rest else ''})"
            del steps[number:]
            break
    cause = error.__cause__.__cause__ if isinstance(error.__cause__, Misfit) else error.__cause__
    if cause is not None and (hasattr(cause, "errors") or isinstance(cause, msgspec.ValidationError)):
        return field_errors(cause, pointer(steps, start))
    if match and match["key"]:
        what = f"{what} as a key"
    if field := _FIELD.fullmatch(what):
        steps.append(field["name"])
        what = "this field is required" if field["missing"] else "unknown field"
    return [FieldError(pointer(steps, start), what)]


def _one_of(known: list[Any]) -> str:
    more = f" or {len(known) - MOST_CHOICES} others" if len(known) > MOST_CHOICES else ""
    return f"must be one of {', '.join(map(repr, known[:MOST_CHOICES]))}{more}"


def choices(wanted: Any, steps: Sequence[str | int], *, is_key: bool = False) -> list[Any]:
    """The values that an Enum or a Literal allows at `steps` in a value of the type `wanted`, with `is_key` as a key of
    the mapping there; empty for other types. msgspec names only the wrong value. The step ``...`` is any value of a
    mapping."""
    try:
        places = [inspect.type_info(wanted)]
    except (TypeError, NameError):  # msgspec doesn't know the type
        return []
    for step in steps:
        places = [below for place in places for below in _below(place, step)]
    if is_key:
        places = [each.key_type for place in places for each in _each(place) if isinstance(each, inspect.DictType)]
    return [choice for place in places for choice in _choices(place)]


def _each(place: inspect.Type) -> Iterator[inspect.Type]:
    """The members of a union, without metadata."""
    if isinstance(place, inspect.UnionType):
        for member in place.types:
            yield from _each(member)
    elif isinstance(place, inspect.Metadata):
        yield from _each(place.type)
    else:
        yield place


def _below(place: inspect.Type, step: str | int) -> Iterator[inspect.Type]:
    for each in _each(place):
        if isinstance(each, inspect.TupleType):
            if isinstance(step, int) and step < len(each.item_types):
                yield each.item_types[step]
        elif isinstance(each, inspect.DictType):
            yield each.value_type
        elif (item := getattr(each, "item_type", None)) is not None:  # of a list, a set, ...
            yield item
        else:  # of a struct, a dataclass, ...
            yield from (field.type for field in getattr(each, "fields", ()) if field.encode_name == step)


def _choices(place: inspect.Type) -> Iterator[Any]:
    for each in _each(place):
        if isinstance(each, inspect.EnumType):
            yield from (member.value for member in each.cls)
        elif isinstance(each, inspect.LiteralType):
            yield from each.values
