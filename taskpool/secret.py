"""Secret payload fields: how a type marks them, and the values of one task, which nothing here shows.

JSON Schema's word for such a field is `writeOnly`: it may be sent and is never shown. `secret_fields` finds them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from taskpool.finite import refuse_nan
from taskpool.masking import MASK, Masker

T = TypeVar("T")

Secret = Annotated[T, msgspec.Meta(extra_json_schema={"writeOnly": True})]
"""Marks a field of a payload as secret: `token: Secret[str]`. The task gets a plain `str`; nobody else sees it."""

Path = Sequence[str | int]

_decode = msgspec.json.Decoder().decode


class SecretsGone(Exception):
    """Raised when a task is to run whose secret values are no longer kept."""


class Secrets:
    """The secret values of one payload, each with its path into it. None stands for those that are no longer kept."""

    __slots__ = ("_masker", "_places")

    def __init__(self, places: Sequence[tuple[Path, Any]] | None) -> None:
        self._places = places
        self._masker: Masker | None = None

    @classmethod
    def restore(cls, stored: bytes) -> Secrets:
        """Those that `stored` made; nothing is left of what is no longer kept."""
        return cls(_decode(stored) if stored else None)

    def stored(self) -> bytes:
        """As they are kept in Redis.

        Raises:
            ValueError: one of them is not JSON.
        """
        encoded = msgspec.json.encode(self._places)
        refuse_nan([value for _, value in self._places or ()], encoded)
        return encoded

    def put_into(self, payload: Any) -> Any:
        """A copy of the masked payload with the values in their places.

        Raises:
            SecretsGone: they are no longer kept.
            LookupError, TypeError: the payload, a damaged one, has no such place.
        """
        if self._places is None:
            raise SecretsGone("its secret fields are no longer kept (TASKPOOL_SECRET_TTL_S): submit it again")
        payload = [copy.deepcopy(payload)]
        for path, value in self._places:
            *steps, last = (0, *path)
            place: Any = payload
            for step in steps:
                place = place[step]
            place[last] = value
        return payload[0]

    @property
    def masker(self) -> Masker:
        """Masks the values; made when the first text is to be masked."""
        if self._masker is None:
            self._masker = Masker(leaf for _, value in self._places or () for leaf in _leaves(value))
        return self._masker

    def hide(self, text: str) -> str:
        """The text with every value masked, also where it is escaped or packed."""
        return self.masker.hide(text)

    def hide_in(self, value: Any) -> Any:
        """The JSON value with all its texts, and numbers that are secret, masked."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, dict):
            return {self.hide(name): self.hide_in(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide_in(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool) and self.hide(str(value)) == MASK:
            return MASK
        return value

    def __repr__(self) -> str:
        return f"<{len(self._places or ())} secrets>"


def hidden(text: str, secrets: Secrets | None) -> str:
    """The text with these secrets masked, if there are any: for all that a task says and that others may read."""
    return text if secrets is None else secrets.hide(text)


def _leaves(value: Any) -> Iterator[str]:
    """The texts and numbers in a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool):
        yield str(value)
