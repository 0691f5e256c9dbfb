"""Parts of a value that is too large to look for every fault in it: an error for each of 60,000 items takes a second.

Long lists and objects are cut to a window, which is moved until it shows a fault.

What a task type's published schema says of a payload, for those who have the schema and not the type.

A schema comes from Redis, so it stands for itself: what it refers to elsewhere is never fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import jsonschema_rs

from taskpool.text import MASK

Path = tuple[str | int, ...]

WINDOW: Final = 100
"""Items and members of a list or an object that are looked at together."""
MOST_WINDOWS: Final = 100
MOST_VALUES: Final = 1000
"""Values in an excerpt. What is behind them is left out."""


def size(value: Any) -> int:
    """How many values are in it, counted up to a little more than MOST_VALUES."""
    count, left = 1, [value]
    while left and count <= MOST_VALUES:
        each = left.pop()
        if isinstance(each, dict | list):
            count += len(each)
            if count <= MOST_VALUES:
                left += each.values() if isinstance(each, dict) else each
    return count


def excerpts(value: Any) -> Iterator[Excerpt]:
    """The excerpts of a value, from the front to the back, as far as they are worth the time."""
    for window in range(MOST_WINDOWS):
        excerpt = Excerpt(value, window * WINDOW)
        yield excerpt
        if excerpt.is_last:
            return


class Excerpt:
    """A value whose long lists and objects begin at `start`, and end WINDOW later."""

    def __init__(self, value: Any, start: int) -> None:
        self._start = start
        self._cut: dict[Path, int] = {}
        """Where something is left out: the containers, and how much is left out before what is there."""
        self._left = MOST_VALUES
        self.is_last = True
        self.value = self._part(value, ())

    def is_cut(self, path: Sequence[str | int], *, itself: bool) -> bool:
        """Whether something is left out of the value at `path`; `itself`: not of those in it."""
        at = tuple(path)
        return at in self._cut if itself else any(cut[: len(at)] == at for cut in self._cut)

    def place(self, path: Sequence[str | int]) -> Path:
        """Where that value is in the whole."""
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


_DURATION: Final = re.compile(
    r"[-+]?P(?=[\dT])(?:[\d.]+Y)?(?:[\d.]+M)?(?:[\d.]+W)?(?:[\d.]+D)?"
    r"(?:T(?=\d)(?:[\d.]+H)?(?:[\d.]+M)?(?:[\d.]+S)?)?",
    re.ASCII | re.IGNORECASE,
)


def validator_of(schema: Mapping[str, Any], *, masks: bool = False) -> jsonschema_rs.Validator | None:
    """None for a schema that can't be used here: a regular expression of it is one that only Python knows, or a part of
    it is elsewhere. The worker, which converts the payload, then checks alone. With `masks`, what it finds wrong is
    said without the value."""
    mask = MASK if masks else None
    try:
        return jsonschema_rs.validator_for(
            dict(schema), validate_formats=True, formats={"duration": _is_duration}, mask=mask, retriever=_never
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError):
        return None


def _is_duration(text: str) -> bool:
    """A duration of ISO 8601, which may have a sign: a `timedelta` may be negative."""
    return _DURATION.fullmatch(text) is not None


def _never(uri: str) -> NoReturn:
    raise LookupError(f"{uri} isn't fetched")
