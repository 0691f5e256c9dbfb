"""Sets of words that a later release may add to: readers keep a word they don't know instead of failing on it.

Two releases run side by side during a deployment, so an API process, a worker pool or a client reads what a newer one
has written.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, Self

import msgspec

_is_word: Final = re.compile(r"[a-z][a-z0-9_.:-]{0,63}").fullmatch


class OpenEnum(StrEnum):
    """A `StrEnum` that takes any word: one that isn't a member becomes a value of the class with that word, which
    `is_known` tells from the members. What isn't a word at all raises ValueError.

    Programs read with it. What clients ask for is checked with `refuse_unknown`.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str) or not _is_word(value):
            return None
        unknown = str.__new__(cls, value)
        unknown._name_, unknown._value_ = "UNKNOWN", value
        return unknown

    @property
    def is_known(self) -> bool:
        """True for a member, False for a word from another release."""
        return self._name_ in type(self).__members__


def refuse_unknown(value: object, path: str = "") -> None:
    """Return unless this is a word that its enum doesn't know. `path`: where it stands, as msgspec names it.

    Raises:
        msgspec.ValidationError: as msgspec says it of other enums.
    """
    if isinstance(value, OpenEnum) and not value.is_known:
        raise msgspec.ValidationError(f"Invalid enum value {value.value!r}" + (f" - at `${path}`" if path else ""))
