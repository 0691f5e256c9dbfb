"""Checks payloads with the JSON Schema that a task type publishes, for processes that don't have the type itself.

The validator finds all faults before it returns the first: an error for each of 60,000 items takes seconds. So of a
large payload, excerpts are checked until one shows a fault: an `Excerpt` has a window of each long list and object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import jsonschema_rs

from taskpool.text import MASK

Path = tuple[str | int, ...]

WINDOW: Final = 100
"""How many items or members of a list or an object an excerpt has."""
MOST_WINDOWS: Final = 100
MOST_VALUES: Final = 1000
"""How many values an excerpt has. The values after them are left out."""

_DURATION: Final = re.compile(
    r"[-+]?P(?=[\dT])(?:[\d.]+Y)?(?:[\d.]+M)?(?:[\d.]+W)?(?:[\d.]+D)?"
    r"(?:T(?=\d)(?:[\d.]+H)?(?:[\d.]+M)?(?:[\d.]+S)?)?",
    re.ASCII | re.IGNORECASE,
)


def validator_of(schema: Mapping[str, Any], *, masks: bool = False) -> jsonschema_rs.Validator | None:
    """The validator of a schema; None for a schema that only the worker can check, when it converts the payload: one
    with a regular expression that only Python knows, or with a reference to another document. With `masks`, error
    messages don't contain the value."""
    mask = MASK if masks else None
    try:
        return jsonschema_rs.validator_for(
            dict(schema), validate_formats=True, formats={"duration": _is_duration}, mask=mask, retriever=_never
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError):
        return None


def _is_duration(text: str) -> bool:
    """Whether a text is an ISO 8601 duration. It may have a sign, because a `timedelta` may be negative."""
    return _DURATION.fullmatch(text) is not None


def _never(uri: str) -> NoReturn:
    # A schema comes from Redis: nothing that it names is fetched.
    raise LookupError(f"{uri} isn't fetched")


def size(value: Any) -> int:
    """How many values a value contains, counted up to a little more than MOST_VALUES."""
    count, left = 1, [value]
    while left and count <= MOST_VALUES:
        each = left.pop()
        if isinstance(each, dict | list):
            count += len(each)
            if count <= MOST_VALUES:
                left += each.values() if isinstance(each, dict) else each
    return count


def excerpts(value: Any) -> Iterator[Excerpt]:
    """The first MOST_WINDOWS excerpts of a value, from front to back."""
    for window in range(MOST_WINDOWS):
        excerpt = Excerpt(value, window * WINDOW)
        yield excerpt
        if excerpt.is_last:
            return


class Excerpt:
    """A value of whose long lists and objects WINDOW items are left, from `start` on."""

    def __init__(self, value: Any, start: int) -> None:
        self._start = start
        self._cut: dict[Path, int] = {}
        """By the path of each shortened container, how many items are left out before the first one."""
        self._left = MOST_VALUES
        self.is_last = True
        self.value = self._part(value, ())

    def is_cut(self, path: Sequence[str | int], *, itself: bool) -> bool:
        """Whether something is left out of the value at `path`: with `itself` directly, else anywhere inside."""
        at = tuple(path)
        return at in self._cut if itself else any(cut[: len(at)] == at for cut in self._cut)

    def place(self, path: Sequence[str | int]) -> Path:
        """The path in the complete value."""
        places: list[str | int] = []
        for at, step in enumerate(path):
            places.append(step + self._cut.get(tuple(path[:at]), 0) if isinstance(step, int) else step)
        return tuple(places)

    def _part(self, value: Any, path: Path) -> Any:
        if not isinstance(value, dict | list):
            return value
        length = len(value)
        start = self._start if length > WINDOW else 0
        end = min(start + WINDOW, length, start + self._left)
        if start or end < length:
            self._cut[path] = start
            self.is_last = self.is_last and end >= length
        self._left -= max(end - start, 0)
        if isinstance(value, list):
            return [self._part(each, (*path, at)) for at, each in enumerate(value[start:end])]
        return {name: self._part(value[name], (*path, name)) for name in list(value)[start:end]}
