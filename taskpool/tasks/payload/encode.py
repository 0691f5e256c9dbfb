"""Pydantic models and secrets, known by what they do: pydantic is imported only by its users.

From the values that users hand over (payloads, defaults, results) to JSON.

Almost all values take the fast path: msgspec encodes them, and a few scans of its output prove that nothing was lost.
Every other value is walked in Python (`_Walk`). The walk accepts more types, and it knows the place of each fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from types import MemberDescriptorType
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import NODEFAULT, UNSET

from taskpool.tasks.payload.faults import NotJson, Steps
from taskpool.text import is_deeper_than, is_plain_and_finite, may_hide_nan

_MAY_BE_NAN: Final = ("None", "NaN", "Infinity")
"""What pydantic writes for a number that is NaN or infinite: null for a float, a text for a Decimal."""


def is_pydantic(type_: Any) -> bool:
    """A pydantic model, known by what it does: pydantic is imported only by its users."""
    return isinstance(type_, type) and hasattr(type_, "model_validate_json") and hasattr(type_, "model_json_schema")


def is_pydantic_secret(type_: Any) -> bool:
    """pydantic's SecretStr or SecretBytes, known in the same way."""
    return (
        isinstance(type_, type)
        and type_.__name__ in ("SecretStr", "SecretBytes")
        and hasattr(type_, "get_secret_value")
    )


def is_of_pydantic(kind: type) -> bool:
    """Another type that pydantic reads and writes: one of its own, such as a URL, or one made for it."""
    return hasattr(kind, "__get_pydantic_core_schema__") or _package(kind) in ("pydantic", "pydantic_core")


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]


def written(value: Any) -> Any:
    """A value of such a type as pydantic writes it."""
    from pydantic import TypeAdapter
    from pydantic_core import to_jsonable_python

    if hasattr(type(value), "__get_pydantic_core_schema__"):
        return TypeAdapter(type(value)).dump_python(value, mode="json")
    return to_jsonable_python(value)


def secret_from(type_: Any, text: str) -> Any:
    """The secret that a text in JSON is."""
    return type_(text.encode() if type_.__name__ == "SecretBytes" else text)


def in_clear(secret: Any) -> Any:
    """What a secret is in JSON. Raises: UnicodeDecodeError for bytes that aren't UTF-8."""
    value = secret.get_secret_value()
    return value.decode() if isinstance(value, bytes) else value


def dump(model: Any, *, for_input: bool) -> Any:
    """A pydantic model as it writes itself: as a result, or as what its own validation reads."""
    dumped = model.model_dump(mode="json", by_alias=True, round_trip=for_input)
    if any(word in repr(dumped) for word in _MAY_BE_NAN):
        _refuse_nan(model.model_dump(by_alias=True), ())
    return _as_read(model, dumped) if for_input else dumped


def _refuse_nan(value: Any, steps: Steps) -> None:
    if isinstance(value, float | Decimal):
        refuse_infinite(value, steps)
    elif isinstance(value, dict):
        for key, each in value.items():
            _refuse_nan(each, (*steps, str(key)))
    elif isinstance(value, list | tuple):
        for at, each in enumerate(value):
            _refuse_nan(each, (*steps, at))


def _as_read(value: Any, dumped: Any) -> Any:
    """What pydantic wrote of `value`, with secrets in clear and under the names that validation reads."""
    kind = type(value)
    if is_of_pydantic(kind) and hasattr(kind, "get_secret_value"):
        return in_clear(value)
    if is_pydantic(kind):
        if "root" in kind.model_fields and not isinstance(dumped, dict):
            return _as_read(value.root, dumped)
        return _model_as_read(value, dumped) if isinstance(dumped, dict) else dumped
    if hasattr(kind, "__dataclass_fields__") and isinstance(dumped, dict):
        return {name: _as_read(getattr(value, name, None), each) for name, each in dumped.items()}
    if isinstance(value, dict) and isinstance(dumped, dict) and len(value) == len(dumped):
        return {name: _as_read(each, dumped[name]) for name, each in zip(dumped, value.values(), strict=True)}
    if isinstance(value, list | tuple) and isinstance(dumped, list) and len(value) == len(dumped):
        return [_as_read(each, shown) for each, shown in zip(value, dumped, strict=True)]
    return dumped


def _model_as_read(model: Any, dumped: dict[str, Any]) -> dict[str, Any]:
    read = dict(dumped)
    for name, field in type(model).model_fields.items():
        alias = field.serialization_alias or field.alias or name
        if field.exclude:
            _put(read, _steps_to(field, name), written(getattr(model, name)))
        elif alias in dumped:
            value = _as_read(getattr(model, name), read.pop(alias))
            _put(read, _steps_to(field, name), value)
    return read


def _steps_to(field: Any, name: str) -> list[str]:
    """Where validation reads a field: mostly one name, with an AliasPath several."""
    alias = field.validation_alias or field.alias
    choices = getattr(alias, "choices", [alias])  # of several names, the first one
    for each in choices:
        steps = [each] if isinstance(each, str) else list(getattr(each, "path", ()))
        if steps and all(isinstance(step, str) for step in steps):
            return steps
    return [name]


def _put(into: dict[str, Any], steps: list[str], value: Any) -> None:
    for step in steps[:-1]:
        into = into.setdefault(step, {})
    into[steps[-1]] = value


def refuse_infinite(value: float | Decimal, steps: Steps = ()) -> None:
    """Raises: NotJson for NaN and infinities."""
    if not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
        raise NotJson(steps, f"{value!s} is not JSON; use null or a text")


DEEPEST: Final = 64
"""How many arrays and objects may be nested in one value."""
SHALLOW_BYTES: Final = 2 * DEEPEST
"""JSON of this size has too few brackets to be too deep."""

_encode: Final = msgspec.json.Encoder().encode
_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode
"""Looks at the syntax alone, and makes no objects."""


def encode_value(value: Any) -> bytes:
    """A result as JSON.

    Raises:
        NotJson: the value or a part of it has no JSON form, is NaN or infinite, contains itself, or is nested more
            than DEEPEST deep. Apart from interrupts (a stop, a timeout) it is the only exception.
    """
    try:
        encoded = _encode(value)
        if (not may_hide_nan(encoded) and len(encoded) <= SHALLOW_BYTES) or is_faithful(value, encoded):
            _check_syntax(encoded)
            return encoded
    except Exception:  # not only msgspec's: a time zone of the user's may raise anything
        pass
    return _encode(_Walk(for_input=False).walk(value, ()))


def json_value(value: Any) -> Any:
    """A payload as JSON values, in the form that the schema of its type describes. It may still hold NaN:
    call `is_faithful` with the payload as it was given.

    Unlike a result it has what its type reads: secrets of pydantic in clear, no computed fields.

    Raises:
        NotJson: as `encode_value`, but for NaN and infinities, which it may leave in.
    """
    try:
        return msgspec.to_builtins(value, str_keys=True)
    except Exception:  # as above
        return _Walk(for_input=True).walk(value, ())


def strict_json_value(value: Any) -> Any:
    """As `json_value`, with every check made. Raises: NotJson."""
    return _Walk(for_input=True).walk(value, ())


def fault_in(payload: Any) -> NotJson | None:
    """What is wrong with a payload; None when it is JSON."""
    try:
        strict_json_value(payload)
    except NotJson as error:
        return error
    return None


def is_faithful(value: Any, encoded: bytes) -> bool:
    """Whether `encoded`, which msgspec made of `value`, is known to be right: no lost NaN, and not too deep.

    False means that the walk has to look, not that there is a fault.
    """
    return not is_deeper_than(DEEPEST, encoded) and not (may_hide_nan(encoded) and not is_plain_and_finite(value))


def _check_syntax(encoded: bytes) -> None:
    """Only `msgspec.Raw`, which msgspec copies unseen, makes JSON that isn't valid. Raises: ValueError."""
    _skip(encoded)
    if not encoded.isascii():
        encoded.decode()


class _Walk:
    """Turns one value into Python's own JSON types, step by step."""

    def __init__(self, *, for_input: bool) -> None:
        self._for_input = for_input
        self._above: list[int] = []
        """The ids of the containers that the walk is in."""

    def walk(self, value: Any, steps: Steps) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is int:
            return value
        try:
            leaf = _LEAVES.get(kind) or next((_LEAVES[base] for base in kind.__mro__ if base in _LEAVES), None)
            if leaf is not None:
                return leaf(value)
            return self._composite(value, steps)
        except NotJson as error:
            raise error if error.pointer or not steps else NotJson(steps, error.detail) from None
        except Exception as error:  # users' own code: serializers, iterators, properties
            raise NotJson(steps, f"{_name(kind)} can't be turned into JSON: {_text(error)}") from None

    def _composite(self, value: Any, steps: Steps) -> Any:
        if id(value) in self._above:
            raise NotJson(steps, f"the {type(value).__qualname__} contains itself")
        if len(self._above) >= DEEPEST:
            raise NotJson(steps, f"nested more than {DEEPEST} levels deep")
        self._above.append(id(value))
        try:
            return self._members(value, steps)
        finally:
            self._above.pop()

    def _members(self, value: Any, steps: Steps) -> Any:
        kind = type(value)
        if isinstance(value, Enum):
            return self._inside(value.value, steps)
        if is_pydantic(kind):
            return self._inside(self._dumped(value, steps), steps)
        if is_pydantic_secret(kind):
            return self._inside(in_clear(value) if self._for_input else str(value), steps)
        if is_of_pydantic(kind):
            return self._inside(written(value), steps)
        if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
            return self._inside(_of_numpy(value), steps)
        if isinstance(value, msgspec.Struct) and type(value).__struct_config__.array_like:
            tag = type(value).__struct_config__.tag
            items = [getattr(value, name) for name in value.__struct_fields__]
            return self._list(items if tag is None else [tag, *items], steps)
        if isinstance(value, msgspec.Raw):
            return self._inside(msgspec.json.decode(value), steps)
        if isinstance(value, Mapping):
            return self._object(value.items(), steps)
        if isinstance(value, Sequence | Set) and not isinstance(value, memoryview):
            return self._list(value, steps)
        fields = _fields(value)
        if fields is None:
            raise NotJson(steps, f"{_name(kind)} has no JSON form")
        return self._object(fields, steps)

    def _dumped(self, model: Any, steps: Steps) -> Any:
        try:
            return dump(model, for_input=self._for_input)
        except NotJson as error:
            raise NotJson((*steps, *error.steps), error.detail) from None

    def _inside(self, value: Any, steps: Steps) -> Any:
        """Another form of the same value: it is no level of its own."""
        own = self._above.pop()
        try:
            return self.walk(value, steps)
        finally:
            self._above.append(own)

    def _list(self, values: Any, steps: Steps) -> list[Any]:
        return [self.walk(each, (*steps, at)) for at, each in enumerate(values)]

    def _object(self, members: Any, steps: Steps) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, each in members:
            name = self._key(key, steps)
            if name in found:
                raise NotJson((*steps, name), "two keys of this object are the same in JSON")
            found[name] = self.walk(each, (*steps, name))
        return found

    def _key(self, key: Any, steps: Steps) -> str:
        """Text as it is; numbers, dates and the like as JSON writes them."""
        try:
            plain = self.walk(key, ())
        except NotJson as error:
            raise NotJson(steps, f"a key, {_name(type(key))}: {error.detail}") from None
        if isinstance(plain, str):
            return plain
        if isinstance(plain, bool) or plain is None or isinstance(plain, int | float):
            return _encode(plain).decode()
        raise NotJson(steps, f"a key is {_name(type(key))}; keys must be text or numbers")


def _finite(value: float) -> float:
    refuse_infinite(value)
    return float(value)


def _decimal(value: Decimal) -> str:
    refuse_infinite(value)
    return Decimal.__str__(value)


def _str(value: str) -> str:
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotJson((), "the text has half of a surrogate pair, which UTF-8 can't hold") from None
    return text


def _datetime(value: datetime) -> Any:
    fields = (value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)
    return msgspec.to_builtins(datetime(*fields, tzinfo=value.tzinfo, fold=value.fold))


def _time(value: time) -> Any:
    plain = time(value.hour, value.minute, value.second, value.microsecond, value.tzinfo, fold=value.fold)
    return msgspec.to_builtins(plain)


def _timedelta(value: timedelta) -> Any:
    return msgspec.to_builtins(timedelta(value.days, value.seconds, value.microseconds))


_LEAVES: Final[dict[type, Callable[[Any], Any]]] = {
    float: _finite,
    int: int,
    str: _str,
    Decimal: _decimal,
    datetime: _datetime,
    date: lambda value: date(value.year, value.month, value.day).isoformat(),
    time: _time,
    timedelta: _timedelta,
    UUID: str,
    PurePath: lambda value: _str(str(value)),
    bytes: lambda value: msgspec.to_builtins(bytes(value)),
    bytearray: lambda value: msgspec.to_builtins(bytes(value)),
    memoryview: lambda value: msgspec.to_builtins(bytes(value)),
}
"""By type, also for the types derived from it: what JSON has instead."""


def _fields(value: Any) -> Iterator[tuple[str, Any]] | None:
    """The members of a struct, a dataclass or an attrs object, under the names that msgspec gives them."""
    if isinstance(value, msgspec.Struct):
        return _of_struct(value)
    names = getattr(type(value), "__dataclass_fields__", None)
    if names is not None:
        names = [name for name, field in names.items() if field._field_type.name == "_FIELD"]
    elif (attributes := getattr(type(value), "__attrs_attrs__", None)) is not None:
        names = [attribute.name for attribute in attributes]
    if names is None:
        return None
    found = ((name, _attribute(value, name)) for name in names)
    return ((name, each) for name, each in found if each is not UNSET)


def _attribute(value: Any, name: str) -> Any:
    """The value of an instance's attribute; UNSET when the class alone has it."""
    if name in getattr(value, "__dict__", ()):
        return value.__dict__[name]
    return getattr(value, name, UNSET) if isinstance(getattr(type(value), name, None), MemberDescriptorType) else UNSET


def _of_struct(value: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    config = value.__struct_config__
    if config.tag is not None and config.tag_field is not None:
        yield config.tag_field, config.tag
    defaults = (NODEFAULT,) * (
        len(value.__struct_fields__) - len(value.__struct_defaults__)
    ) + value.__struct_defaults__
    for name, shown, default in zip(value.__struct_fields__, value.__struct_encode_fields__, defaults, strict=True):
        each = getattr(value, name)
        if each is not UNSET and not (config.omit_defaults and _is_default(each, default)):
            yield shown, each


def _is_default(value: Any, default: Any) -> bool:
    factory = getattr(default, "factory", None)
    if factory in (list, dict, set):
        return type(value) is factory and not value
    return value is default


def _of_numpy(value: Any) -> Any:
    plain = value.tolist()
    if type(plain) is type(value):  # a long double gives itself
        return float(plain)
    if plain is None:
        raise NotJson((), "NaT is not JSON; use null or a text")
    return plain


def _name(kind: type) -> str:
    return f"an object of the type {kind.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # it is a user's own class, and its text may fail as well
        return type(error).__name__
