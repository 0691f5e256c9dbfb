"""Encodes the values that users pass (payloads, defaults, results) as JSON.

Almost all values take the fast path: msgspec encodes them, and a few scans of its output prove that nothing was lost.
Other values are walked in Python (`_Walk`). The walk accepts more types and knows the place of each fault.

Pydantic is imported only by its users, so its types are recognized by their methods.
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

from taskpool.tasks.context import described, name_of
from taskpool.tasks.payload.faults import NotJson, Steps
from taskpool.text import is_deeper_than, is_plain_and_finite, may_hide_nan

DEEPEST: Final = 64
"""How many arrays and objects may be nested in one value."""

_encode: Final = msgspec.json.Encoder().encode
_check_json: Final = msgspec.json.Decoder(msgspec.Raw).decode
"""Checks the syntax without creating objects. Only `msgspec.Raw`, which msgspec copies unread, may be invalid."""


def encode_value(value: Any) -> bytes:
    """A result as JSON.

    Raises: NotJson when the value or a part of it has no JSON form, is NaN or infinite, contains itself, or is nested
    more than DEEPEST deep. Apart from interrupts (a stop, a timeout) it is the only exception.
    """
    try:
        encoded = _encode(value)
        if is_faithful(value, encoded):
            _check_json(encoded)
            if not encoded.isascii():
                encoded.decode()
            return encoded
    except Exception:  # not only msgspec's: a user's time zone may raise anything
        pass
    return _encode(_Walk(for_input=False).walk(value, ()))


def json_value(value: Any) -> Any:
    """A payload as JSON values, in the form that the schema of its type describes. It may still contain NaN:
    call `is_faithful` with the original payload.

    Unlike a result it has what its type reads: secrets of pydantic in clear text, no computed fields.

    Raises: NotJson, as `encode_value`, except for NaN and infinities.
    """
    try:
        return msgspec.to_builtins(value, str_keys=True)
    except Exception:  # as above
        return strict_json_value(value)


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

    False doesn't mean that there is a fault: only the walk finds out.
    """
    return not is_deeper_than(DEEPEST, encoded) and not (may_hide_nan(encoded) and not is_plain_and_finite(value))


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
            return self._composite(value, steps) if leaf is None else leaf(value)
        except NotJson as error:
            raise error if error.pointer or not steps else NotJson(steps, error.detail) from None
        except Exception as error:  # users' own code: serializers, iterators, properties
            text = f"{name_of(type(error))}: {described(error)}"
            raise NotJson(steps, f"{_name(kind)} can't be turned into JSON: {text}") from None

    def _composite(self, value: Any, steps: Steps) -> Any:
        if id(value) in self._above:
            raise NotJson(steps, f"the {type(value).__qualname__} contains itself")
        if len(self._above) >= DEEPEST:
            raise NotJson(steps, f"nested more than {DEEPEST} levels deep")
        if (other := self._other_form(value, steps)) is not value:
            return self.walk(other, steps)  # it is the same value, and no level of its own
        self._above.append(id(value))
        try:
            return self._members(value, steps)
        finally:
            self._above.pop()

    def _other_form(self, value: Any, steps: Steps) -> Any:
        """Another value with the same JSON form; the value itself if it is encoded by its members."""
        kind = type(value)
        if isinstance(value, Enum):
            return value.value
        if is_pydantic(kind):
            return _dumped(value, steps, for_input=self._for_input)
        if is_pydantic_secret(kind):
            return _in_clear(value) if self._for_input else str(value)
        if is_of_pydantic(kind):
            return _written(value)
        if package_of(kind) == "numpy" and hasattr(value, "tolist"):
            return _of_numpy(value)
        return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value

    def _members(self, value: Any, steps: Steps) -> Any:
        if isinstance(value, msgspec.Struct) and value.__struct_config__.array_like:
            tag = value.__struct_config__.tag
            items = [getattr(value, name) for name in value.__struct_fields__]
            return self._list(items if tag is None else [tag, *items], steps)
        if isinstance(value, Mapping):
            return self._object(value.items(), steps)
        if isinstance(value, Sequence | Set) and not isinstance(value, memoryview):
            return self._list(value, steps)
        fields = _fields(value)
        if fields is None:
            raise NotJson(steps, f"{_name(type(value))} has no JSON form")
        return self._object(fields, steps)

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
        if plain is None or isinstance(plain, bool | int | float):
            return _encode(plain).decode()
        raise NotJson(steps, f"a key is {_name(type(key))}; keys must be text or numbers")


# --- values without members ----------------------------------------------------------------------------------


def _finite(value: Any, steps: Steps = ()) -> Any:
    """Raises: NotJson for NaN and infinities."""
    if not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
        raise NotJson(steps, f"{value!s} is not JSON; use null or a text")
    return value


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


def _bytes(value: Any) -> Any:
    return msgspec.to_builtins(bytes(value))


_LEAVES: Final[dict[type, Callable[[Any], Any]]] = {
    float: lambda value: float(_finite(value)),
    int: int,
    str: _str,
    Decimal: lambda value: Decimal.__str__(_finite(value)),
    datetime: _datetime,
    date: lambda value: date(value.year, value.month, value.day).isoformat(),
    time: _time,
    timedelta: lambda value: msgspec.to_builtins(timedelta(value.days, value.seconds, value.microseconds)),
    UUID: str,
    PurePath: lambda value: _str(str(value)),
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
}
"""By type, also for subclasses, which msgspec doesn't encode: the JSON value."""


def _of_numpy(value: Any) -> Any:
    plain = value.tolist()
    if type(plain) is type(value):  # a long double returns itself
        return float(plain)
    if plain is None:
        raise NotJson((), "NaT is not JSON; use null or a text")
    return plain


# --- structs, dataclasses, attrs -----------------------------------------------------------------------------


def _fields(value: Any) -> Iterator[tuple[str, Any]] | None:
    """The members of a struct, a dataclass or an attrs object, under the names that msgspec gives them."""
    if isinstance(value, msgspec.Struct):
        return _of_struct(value)
    if (fields := getattr(type(value), "__dataclass_fields__", None)) is not None:
        names = [name for name, field in fields.items() if field._field_type.name == "_FIELD"]
    elif (attributes := getattr(type(value), "__attrs_attrs__", None)) is not None:
        names = [attribute.name for attribute in attributes]
    else:
        return None
    found = ((name, _attribute(value, name)) for name in names)
    return ((name, each) for name, each in found if each is not UNSET)


def _attribute(value: Any, name: str) -> Any:
    """The value of an instance's attribute; UNSET when only the class has it."""
    if name in getattr(value, "__dict__", ()):
        return value.__dict__[name]
    return getattr(value, name, UNSET) if isinstance(getattr(type(value), name, None), MemberDescriptorType) else UNSET


def _of_struct(value: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    config, names, defaults = value.__struct_config__, value.__struct_fields__, value.__struct_defaults__
    if config.tag is not None and config.tag_field is not None:
        yield config.tag_field, config.tag
    defaults = (NODEFAULT,) * (len(names) - len(defaults)) + defaults
    for name, shown, default in zip(names, value.__struct_encode_fields__, defaults, strict=True):
        each = getattr(value, name)
        if each is not UNSET and not (config.omit_defaults and _is_default(each, default)):
            yield shown, each


def _is_default(value: Any, default: Any) -> bool:
    factory = getattr(default, "factory", None)
    return type(value) is factory and not value if factory in (list, dict, set) else value is default


# --- pydantic ------------------------------------------------------------------------------------------------


def is_pydantic(type_: Any) -> bool:
    """Whether a type is a pydantic model."""
    return isinstance(type_, type) and hasattr(type_, "model_validate_json") and hasattr(type_, "model_json_schema")


def is_pydantic_secret(type_: Any) -> bool:
    """Whether a type is pydantic's SecretStr or SecretBytes."""
    is_named_so = isinstance(type_, type) and type_.__name__ in ("SecretStr", "SecretBytes")
    return is_named_so and hasattr(type_, "get_secret_value")


def is_of_pydantic(kind: type) -> bool:
    """Whether pydantic reads and writes a type: one of its own, such as a URL, or one made for it."""
    return hasattr(kind, "__get_pydantic_core_schema__") or package_of(kind) in ("pydantic", "pydantic_core")


def _in_clear(secret: Any) -> Any:
    """The JSON value of a secret. Raises: UnicodeDecodeError for bytes that aren't UTF-8."""
    value = secret.get_secret_value()
    return value.decode() if isinstance(value, bytes) else value


def _written(value: Any) -> Any:
    """A value as pydantic writes it."""
    from pydantic import TypeAdapter
    from pydantic_core import to_jsonable_python

    if hasattr(type(value), "__get_pydantic_core_schema__"):
        return TypeAdapter(type(value)).dump_python(value, mode="json")
    return to_jsonable_python(value)


def _dumped(model: Any, steps: Steps, *, for_input: bool) -> Any:
    """A pydantic model as it writes itself: as a result, or as what its own validation reads."""
    dumped = model.model_dump(mode="json", by_alias=True, round_trip=for_input)
    # Pydantic writes null for a float that is NaN or infinite, and a text for such a Decimal.
    if any(word in repr(dumped) for word in ("None", "NaN", "Infinity")):
        _refuse_nan(model.model_dump(by_alias=True), steps)
    return _as_read(model, dumped) if for_input else dumped


def _refuse_nan(value: Any, steps: Steps) -> None:
    if isinstance(value, float | Decimal):
        _finite(value, steps)
    elif isinstance(value, dict | list | tuple):
        for step, each in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_nan(each, (*steps, str(step)))


def _as_read(value: Any, dumped: Any) -> Any:
    """What pydantic wrote for `value`, with secrets in clear text and under the names that validation reads."""
    kind = type(value)
    if is_of_pydantic(kind) and hasattr(kind, "get_secret_value"):
        return _in_clear(value)
    if is_pydantic(kind):
        if "root" in kind.model_fields and not isinstance(dumped, dict):
            return _as_read(value.root, dumped)
        return _model_as_read(value, dumped) if isinstance(dumped, dict) else dumped
    if isinstance(dumped, dict):
        if hasattr(kind, "__dataclass_fields__"):
            return {name: _as_read(getattr(value, name, None), each) for name, each in dumped.items()}
        if isinstance(value, dict) and len(value) == len(dumped):
            return {name: _as_read(each, dumped[name]) for name, each in zip(dumped, value.values(), strict=True)}
    if isinstance(value, list | tuple) and isinstance(dumped, list) and len(value) == len(dumped):
        return [_as_read(each, shown) for each, shown in zip(value, dumped, strict=True)]
    return dumped


def _model_as_read(model: Any, dumped: dict[str, Any]) -> dict[str, Any]:
    read = dict(dumped)
    for name, field in type(model).model_fields.items():
        alias = field.serialization_alias or field.alias or name
        if field.exclude:
            value = _written(getattr(model, name))
        elif alias in dumped:
            value = _as_read(getattr(model, name), read.pop(alias))
        else:
            continue
        into = read
        *above, last = _steps_to(field, name)
        for step in above:
            into = into.setdefault(step, {})
        into[last] = value
    return read


def _steps_to(field: Any, name: str) -> list[str]:
    """Where validation reads a field: in general one name; several with an AliasPath."""
    alias = field.validation_alias or field.alias
    for each in getattr(alias, "choices", [alias]):  # of several names, the first one
        steps = [each] if isinstance(each, str) else list(getattr(each, "path", ()))
        if steps and all(isinstance(step, str) for step in steps):
            return steps
    return [name]


# --- texts ---------------------------------------------------------------------------------------------------


def package_of(kind: type) -> str:
    """The top-level package of a type. Optional packages are known by name: only their users import them."""
    return str(kind.__module__).partition(".")[0]


def _name(kind: type) -> str:
    return f"an object of the type {kind.__qualname__}"
