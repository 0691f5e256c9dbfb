"""JSON as a service should take it: RFC 8259 without the parts on which readers disagree (compare RFC 7493).

Refused, besides bad syntax and NaN: a name twice in one object, nesting deeper than MAX_DEPTH, integers beyond 64
bits, numbers beyond a double, lone surrogates. Whatever passes means the same to every reader behind us.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from taskpool.payload.encode import DEEPEST
from taskpool.payload.faults import pointer, shown

MAX_DEPTH: Final = DEEPEST + 3
"""A payload may be nested DEEPEST deep; a batch puts it three levels down."""
LEAST_INTEGER: Final = -(1 << 63)
MOST_INTEGER: Final = (1 << 64) - 1

_decode: Final = msgspec.json.Decoder().decode

# A name ends with a quote and a colon. Text may look like that too (":x", "a\": "), so what this finds is the
# number of members of all objects, or more.
_name_ends: Final = re.compile(rb'"[ \t\r\n]*:').findall


class InvalidJson(Exception):
    """Raised when a document isn't strict JSON. `pointer` says where, None when that can't be told."""

    def __init__(self, detail: str, pointer: str | None = None) -> None:
        super().__init__(detail)
        self.detail, self.pointer = detail, pointer


def decode(raw: bytes) -> Any:
    """The value of one JSON document in UTF-8.

    Raises:
        InvalidJson: it isn't one, or not a strict one.
    """
    try:
        value = _decode(raw)
    except RecursionError:
        raise InvalidJson(f"the document is nested deeper than {MAX_DEPTH}") from None
    except UnicodeDecodeError as error:
        raise InvalidJson(f"the document isn't UTF-8: {error.reason}") from None
    except msgspec.DecodeError as error:
        raise InvalidJson(_readable(str(error), raw)) from None
    members = _members((value,), 0)
    if raw.count(b":") != members and len(_name_ends(raw)) != members:
        _refuse_repeated_names(raw)
    return value


def _members(container: Any, depth: int) -> int:
    """How many members all objects in `container` have, which is itself at `depth`. Raises InvalidJson."""
    if depth > MAX_DEPTH:
        raise InvalidJson(f"the document is nested deeper than {MAX_DEPTH}")
    count = 0
    values = container
    if type(container) is dict:
        count = len(container)
        values = container.values()
    for value in values:
        kind = type(value)
        if kind is dict or kind is list:
            count += _members(value, depth + 1)
        elif kind is int and not LEAST_INTEGER <= value <= MOST_INTEGER:
            raise InvalidJson("an integer is out of range: it needs more than 64 bits")
    return count


class _Object(list[tuple[str, Any]]):
    """An object as its members were written, none dropped."""


def _refuse_repeated_names(raw: bytes) -> None:
    """The second reading, for documents where some text looks like a name: it sees each member."""
    for steps in _repeated(json.loads(raw, object_pairs_hook=_Object), ()):
        raise InvalidJson(f"the name {shown(str(steps[-1]))!r} occurs twice in one object", pointer(steps, ""))


def _repeated(value: Any, at: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Where a name occurs again, in the order of the document."""
    if not isinstance(value, list):
        return
    seen = set()
    for step, item in value if isinstance(value, _Object) else enumerate(value):
        if isinstance(value, _Object) and step in seen:
            yield (*at, step)
        seen.add(step)
        yield from _repeated(item, (*at, step))


def _readable(fault: str, raw: bytes) -> str:
    """What msgspec found wrong, in words for somebody who sees only the document."""
    if "surrogate" in fault or ("truncated" in fault and b"\\ud" in raw.lower()):
        return "a string holds half of a surrogate pair, or the document ends too early"
    if "range" in fault:
        return "a number is out of range"
    if "truncated" in fault:
        return "the document ends too early"
    return fault.replace("JSON is", "the document is")
