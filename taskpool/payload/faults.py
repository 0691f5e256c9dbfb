"""From what msgspec and pydantic say of a bad payload to `InvalidPayload` with JSON Pointers (RFC 6901)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from taskpool.errors import FieldError, InvalidPayload

PAYLOAD: Final = "/payload"

# msgspec: "Expected `int`, got `str` - at `$.sizes[1].width`", or "... - at `key` in `$.sizes`".
_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at (?:(?P<key>`key`) in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_FIELD = re.compile(r"Object (?:missing (?P<missing>required)|contains unknown) field `(?P<name>.*)`")


def pointer(steps: Iterable[str | int], start: str = PAYLOAD) -> str:
    """The JSON Pointer of the place reached by `steps` from `start`."""
    return start + "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def invalid_payload(task: str, error: Exception) -> InvalidPayload:
    """The InvalidPayload that says what `error`, msgspec's or pydantic's, says. `task` is the type's name."""
    return invalid_payload_of(task, field_errors(error))


def invalid_payload_of(task: str, errors: Iterable[FieldError]) -> InvalidPayload:
    """The InvalidPayload of these faults; its text names the first."""
    faults = tuple(errors)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidPayload(
        f"the payload doesn't fit the task type {task!r}: {faults[0].pointer}: {faults[0].detail}{more}", faults
    )


def field_errors(error: BaseException, start: str = PAYLOAD) -> list[FieldError]:
    """The faults that `error` tells of, each with the pointer of its field; at least one."""
    if hasattr(error, "errors"):  # pydantic's, which lists them all
        return [FieldError(pointer(fault["loc"], start), fault["msg"]) for fault in error.errors()]
    match = _MESSAGE.fullmatch(str(error))
    what, path = (match["what"], match["path"] or "") if match else (str(error), "")
    steps: list[str | int] = []
    for step in _STEP.finditer(path):
        if step[2] == "...":  # msgspec doesn't say which value of a mapping it is
            what = f"{what} (in one of its values{', at ' + path[step.end() :] if path[step.end() :] else ''})"
            break
        steps.append(step[1] or int(step[2]))
    if error.__cause__ is not None and hasattr(error.__cause__, "errors"):
        return field_errors(error.__cause__, pointer(steps, start))
    if match and match["key"]:
        what = f"{what} as a key"
    if field := _FIELD.fullmatch(what):
        steps.append(field["name"])
        what = "this field is required" if field["missing"] else "unknown field"
    return [FieldError(pointer(steps, start), what)]
