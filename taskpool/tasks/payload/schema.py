"""Makes the JSON Schema of a payload type, and the function that converts JSON values to it.

A payload that the conversion accepts fits the schema. The conversion may check more than the schema says: the format of
a date, a validator of the user's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Final

import msgspec

from taskpool.errors import ConfigurationError
from taskpool.tasks.payload.encode import is_pydantic, strict_json_value
from taskpool.tasks.payload.faults import NotJson, invalid_payload
from taskpool.tasks.payload.handlers import REFS, completed, convert, pydantic_schema, refuse_misread, schema_of
from taskpool.tasks.payload.secret_fields import SecretFields

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
REQUIRED: Final = msgspec.NODEFAULT

_PLAIN_DEFAULTS: Final = (type(None), bool, int, float, str)


@dataclass(frozen=True, slots=True)
class PayloadField:
    """One field of a payload: its annotation (Any when there is none) and its default, or REQUIRED."""

    name: str
    annotation: Any
    default: Any = REQUIRED


def payload_struct(
    name: str, fields: Sequence[PayloadField], *, is_open: bool = False, namespace: Mapping[str, Any] | None = None
) -> type[msgspec.Struct]:
    """A struct type with these fields. It refuses unknown fields unless it `is_open`.

    Raises: ConfigurationError for a default that isn't JSON and for a name or annotation msgspec can't hold.
    """
    try:
        return msgspec.defstruct(
            name,
            [(field.name, field.annotation, _default(field)) for field in fields],
            kw_only=True,
            forbid_unknown_fields=not is_open,
            namespace=dict(namespace) if namespace else None,
        )
    except (TypeError, RuntimeError) as error:
        raise ConfigurationError(str(error)) from error


def json_schema(type_: Any, *, title: str, defaults: Sequence[PayloadField] = ()) -> dict[str, Any]:
    """The JSON Schema 2020-12 document of a payload type, with those of the `defaults` that aren't secret.

    Raises: ConfigurationError for a type that has no JSON form and for a default that isn't JSON.
    """
    if is_pydantic(type_):
        document = pydantic_schema(type_.model_json_schema, REFS)
    else:
        root, definitions = schema_of(type_)
        refuse_misread(type_)
        document = {**root, "$defs": definitions}
    document = {"$schema": DIALECT, **_root_inlined(document), "title": title}
    for field in defaults:
        if field.default is not REQUIRED:
            document["properties"][field.name]["default"] = _as_json(field)
    try:
        plain: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"a default in the payload isn't JSON: {error}") from error
    secret = SecretFields(plain)
    return {**secret.without_secret_defaults()} if secret else plain


def converter(type_: Any, *, task: str) -> Callable[[Any], Any]:
    """The function that converts a JSON value to `type_`, strictly: "80" isn't an integer.

    It raises InvalidPayload, with the JSON Pointer of each fault in the submitted document.
    """
    read = completed(partial(convert, type=type_), type_)

    def convert_payload(payload: Any) -> Any:
        try:
            return read(payload)
        except UnicodeEncodeError as error:  # half a surrogate pair in a key, which JSON text can contain
            raise invalid_payload(task, error) from None
        except msgspec.ValidationError as error:
            fault = error
        # JSON Schema has one kind of number: 5.0 is an integer, and the API has accepted it.
        if "got `float`" in str(fault):
            try:
                return read(_with_integers(payload))
            except msgspec.ValidationError as error:
                fault = error
        raise invalid_payload(task, fault, type_) from None

    return convert_payload


def _default(field: PayloadField) -> Any:
    if field.default is REQUIRED:
        return REQUIRED
    _as_json(field)
    if type(field.default) in _PLAIN_DEFAULTS or isinstance(field.default, Enum):
        return field.default
    try:
        copy.deepcopy(field.default)
    except Exception as error:  # the user's own class may raise anything
        raise ConfigurationError(
            f"the default of {field.name!r} can't be copied for each task: {error}; use None and set it in the task"
        ) from error
    # Each payload gets its own copy: a shared mutable default would leak from one task into the next.
    return msgspec.field(default_factory=partial(copy.deepcopy, field.default))


def _as_json(field: PayloadField) -> Any:
    try:
        return strict_json_value(field.default)
    except NotJson as error:
        raise ConfigurationError(
            f"the default of {field.name!r} isn't JSON: {field.default!r} ({error}); use None and set it in the task"
        ) from error


def _root_inlined(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the definition that its root refers to at the root: forms look for `properties` there."""
    definitions = dict(document.get("$defs", {}))
    name = document.get("$ref", "").removeprefix(REFS)
    root = {key: value for key, value in document.items() if key not in {"$defs", "$ref"}}
    if name:
        root = {**definitions[name], **root}
        is_recursive = f'"{REFS}{name}"' in json.dumps([root, definitions], default=str)
        if not is_recursive:
            del definitions[name]
    return {**root, "$defs": definitions} if definitions else root


def _with_integers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return value
