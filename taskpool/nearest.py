"""Which known names wrong ones may mean, for the texts of refusals."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import Final

LONGEST: Final = 64
MOST_KNOWN: Final = 500


class Guesses:
    """Guesses for the wrong names of one request: for the first few alone, because whoever sends them chooses how many
    there are, and a guess compares a name with all that are known, letter by letter."""

    def __init__(self, most: int = 5) -> None:
        self._left = most

    def near(self, name: str, known: Iterable[str], *, n: int = 1, cutoff: float = 0.6) -> list[str] | None:
        """The `n` most similar known names, best first; None when there were enough guesses already."""
        if not self._left:
            return None
        self._left -= 1
        if len(name) > LONGEST:
            return []
        return difflib.get_close_matches(name, islice(known, MOST_KNOWN), n=n, cutoff=cutoff)
