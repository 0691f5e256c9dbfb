"""Pydantic models and secrets, known by what they do: pydantic is imported only by its users."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Final

from taskpool.payload.faults import NotJson, Steps

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
