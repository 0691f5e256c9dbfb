"""Turns errors of msgspec and pydantic about a payload into `InvalidPayload` with JSON Pointers (RFC 6901)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import inspect

from taskpool.errors import FieldError, InvalidPayload
from taskpool.validation import shortened

PAYLOAD: Final = "/payload"

Steps = tuple[str | int, ...]

# msgspec: "Expected `int`, got `str` - at `$.sizes[1].width`", or "... - at `key` in `$.sizes`".
_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at (?:(?P<key>`key`) in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_FIELD = re.compile(r"Object (?:missing (?P<missing>required)|contains unknown) field `(?P<name>.*)`")
_KEY: Final = "`key`"
"""Stands in a path for the keys of a mapping: msgspec names no key in an error."""
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
    names = [shortened(str(step), LONGEST_SHOWN).replace("~", "~0").replace("/", "~1") for step in steps]
    return "".join([start, *["/" + name for name in names]])


class NotJson(ValueError):
    """Raised for a value that JSON can't hold. `pointer` is the JSON Pointer of the place, "" for the value itself."""

    def __init__(self, steps: Steps, detail: str) -> None:
        self.steps, self.pointer, self.detail = steps, pointer(steps, ""), detail
        super().__init__(f"{detail} (at {self.pointer})" if steps else detail)


class Misfit(ValueError):
    """Raised in msgspec's hook for a ValidationError, its cause, about a part of the value."""


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
    assert match is not None  # the expression matches any text
    what, path = _EXAMPLES.get(match["what"], match["what"]), match["path"] or ""
    places = list(_STEP.finditer(path))
    steps: list[str | int] = [int(place[2]) if (place[2] or "").isdigit() else place[1] or place[2] for place in places]
    if what.startswith("Invalid enum value ") and (
        known := _choices(wanted, [*steps, *([_KEY] if match["key"] else ())])
    ):
        more = f" or {len(known) - MOST_CHOICES} others" if len(known) > MOST_CHOICES else ""
        what = f"must be one of {', '.join(map(repr, known[:MOST_CHOICES]))}{more}"
    where = " as a key" if match["key"] else ""
    if "..." in steps:  # msgspec doesn't say which value of a mapping it is
        number = steps.index("...")
        rest = path[places[number].end() :]
        where = f" (in one of its values{', at ' + rest if rest else ''}){where}"
        del steps[number:]
    cause = error.__cause__.__cause__ if isinstance(error.__cause__, Misfit) else error.__cause__
    if cause is not None and (hasattr(cause, "errors") or isinstance(cause, msgspec.ValidationError)):
        return [FieldError(each.pointer, each.detail + where) for each in field_errors(cause, pointer(steps, start))]
    if not where and (field := _FIELD.fullmatch(what)):
        steps.append(field["name"])
        what = "this field is required" if field["missing"] else "unknown field"
    return [FieldError(pointer(steps, start), what + where)]


def _choices(wanted: Any, steps: list[str | int]) -> list[Any]:
    """The values that an Enum or a Literal allows at `steps` in a value of the type `wanted`; empty for other types.
    msgspec names only the wrong value."""
    try:
        return list(_choices_at(inspect.type_info(wanted), steps))
    except (TypeError, NameError):  # msgspec doesn't know the type
        return []


def _choices_at(place: inspect.Type, steps: list[str | int]) -> Iterator[Any]:
    if isinstance(place, inspect.UnionType | inspect.Metadata):
        for member in place.types if isinstance(place, inspect.UnionType) else (place.type,):
            yield from _choices_at(member, steps)
    elif steps:
        for below in _below(place, steps[0]):
            yield from _choices_at(below, steps[1:])
    elif isinstance(place, inspect.EnumType):
        yield from (member.value for member in place.cls)
    elif isinstance(place, inspect.LiteralType):
        yield from place.values


def _below(place: inspect.Type, step: str | int) -> Sequence[inspect.Type]:
    if isinstance(place, inspect.TupleType):
        return place.item_types[step : step + 1] if isinstance(step, int) else ()
    if isinstance(place, inspect.DictType):
        return [place.key_type if step == _KEY else place.value_type]
    if (item := getattr(place, "item_type", None)) is not None:  # of a list, a set, ...
        return [item]
    return [field.type for field in getattr(place, "fields", ()) if field.encode_name == step]
