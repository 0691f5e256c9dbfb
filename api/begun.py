"""Taking what is there already without the price of a timeout: most bodies have arrived before anybody asks."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """Something awaitable, taken as far as it goes without waiting. `is_done`: it went to its end, `value` has what it
    gave; else `await` goes on with it. What it raises on the way is raised here."""

    __slots__ = ("_going", "_waits_for", "is_done", "value")

    value: T

    def __init__(self, awaitable: Awaitable[T]) -> None:
        self._going = awaitable.__await__()
        try:
            self._waits_for: Any = next(self._going)
            self.is_done = False
        except StopIteration as end:
            self.value = end.value
            self.is_done = True

    def __await__(self) -> Generator[Any, Any, T]:
        """What it gives in the end: the loop is handed what it waits for, as it would have been."""
        going: Any = self._going
        waits_for = self._waits_for
        try:
            while True:
                try:
                    sent = yield waits_for
                except BaseException as failure:
                    waits_for = going.throw(failure)
                else:
                    waits_for = going.send(sent)
        except StopIteration as end:
            value: T = end.value
            return value
