"""The bases of the values in `types`: enums that take unknown words, and values that are JSON documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final, Self

import msgspec

_is_word: Final = re.compile(r"[a-z][a-z0-9_.:-]{0,63}").fullmatch


class OpenEnum(StrEnum):
    """A `StrEnum` that accepts any word: one that isn't a member becomes a value whose `is_known` is False.

    A later release may add members, and two releases run side by side during a deployment, so readers keep an unknown
    word. What clients ask for is checked with `refuse_unknown`. A text that is no word raises ValueError."""

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
    """Check that this isn't an unknown word of an `OpenEnum`. `path`: its place, in msgspec's form.
    Raises: msgspec.ValidationError (with msgspec's text for other enums)."""
    if isinstance(value, OpenEnum) and not value.is_known:
        raise msgspec.ValidationError(f"Invalid enum value {value.value!r}" + (f" - at `${path}`" if path else ""))


class Document(msgspec.Struct, frozen=True):
    """A value that web frameworks can answer with: `to_dict()` is its JSON form. FastAPI turns it into JSON by itself,
    also as the annotated return type of an endpoint."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values: times as RFC 3339 texts, statuses as words."""
        values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return values

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """The items of `to_dict()`, so that ``dict(record)`` works. FastAPI relies on that."""
        yield from self.to_dict().items()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        answer = core_schema.plain_serializer_function_ser_schema(cls.to_dict)
        return core_schema.is_instance_schema(cls, serialization=answer)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "object", "title": cls.__name__, "properties": {name: {} for name in cls.__struct_fields__}}
