"""Parts of a value that is too large to look for every fault in it: an error for each of 60,000 items takes a second.

Long lists and objects are cut to a window, which is moved until it shows a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

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
