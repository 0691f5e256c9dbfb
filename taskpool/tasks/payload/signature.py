"""The payload of a task: from the parameters of a function, or the `Payload` of a class, to a JSON Schema and to the
function that reads payloads.

A payload of a function is decoded to a dict of arguments, one of a class to an instance of its payload type. A payload
that is decoded without a fault fits the schema. Decoding may check more than the schema says: the format of a date, a
validator of the user's.
"""

from __future__ import annotations

import copy
import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, Final

import msgspec

from taskpool.errors import ConfigurationError, FieldError, InvalidPayload
from taskpool.tasks.context import TaskContext
from taskpool.tasks.functions import original_function
from taskpool.tasks.payload.annotations import (
    LEAVES,
    REFS,
    adapted,
    default_as_json,
    hints_of,
    of_model,
    reader,
    schema_of,
)
from taskpool.tasks.payload.encode import is_pydantic, strict_json_value
from taskpool.tasks.payload.faults import PAYLOAD, field_errors, invalid_payload_of, pointer
from taskpool.tasks.payload.secret_fields import SecretFields
from taskpool.text import MASK

P = inspect.Parameter
Decode = Callable[[Any], Any]
"""Converts a JSON value to the payload. Raises: InvalidPayload, with a JSON Pointer for each fault."""
Bind = Callable[[Any, TaskContext], Callable[[], Any]]
"""Returns the call that runs a task with a payload."""

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
REQUIRED: Final = msgspec.NODEFAULT

_OF_THE_CLASS_ITSELF: Final = {
    "__dict__", "__weakref__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
    "__conditional_annotations__", "__firstlineno__", "__static_attributes__",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PayloadField:
    """One field of a payload: its annotation (Any when there is none) and its default, or REQUIRED."""

    name: str
    annotation: Any
    default: Any = REQUIRED


# --- functions -----------------------------------------------------------------------------------------------


def function_payload(function: Callable[..., Any], name: str) -> tuple[dict[str, Any], Decode, Bind]:
    """The payload of the task `name`, from the signature of its function: its schema, and how it is read and passed.

    Raises: ConfigurationError for `*args`, and for annotations and defaults that have no JSON form.
    """
    context, parameters = _parameters(function)
    rest = [p for p in parameters if p is not context]
    if any(p.kind is P.VAR_POSITIONAL for p in rest):
        raise ConfigurationError(f"task {name!r} takes *args, but a payload has named fields; name the parameters")
    hints = _hints(function, rest)
    fields = [
        PayloadField(p.name, hints[p.name], REQUIRED if p.default is P.empty else p.default)
        for p in rest
        if p.kind is not P.VAR_KEYWORD
    ]
    others = next((hints[p.name] for p in rest if p.kind is P.VAR_KEYWORD), REQUIRED)
    struct = _struct("".join(c if c.isalnum() else "_" for c in name), fields, is_open=others is not REQUIRED)
    schema = _json_schema(struct, title=name, defaults=fields)
    convert = _converter(struct, name)
    positional = [p.name for p in parameters if p.kind is P.POSITIONAL_ONLY]

    def decode(payload: Any) -> dict[str, Any]:
        return msgspec.structs.asdict(convert(payload))

    def bind(arguments: dict[str, Any], ctx: TaskContext) -> Callable[[], Any]:
        if context:
            arguments = {**arguments, context.name: ctx}
        if not positional:
            return partial(function, **arguments)
        given = dict(arguments)
        return partial(function, *[given.pop(each) for each in positional], **given)

    if others is REQUIRED:
        return schema, decode, bind
    reserved = context.name if context and context.kind is not P.POSITIONAL_ONLY else None
    known = frozenset(field.name for field in fields)
    return _open_schema(schema, others, reserved), _open_decoder(decode, known, others, reserved, name), bind


def payload_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a task function that are fields of its payload: all except the one for the context.

    Raises: ConfigurationError when they can't be read.
    """
    context, parameters = _parameters(function)
    return [p for p in parameters if p is not context]


def _parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter | None, list[inspect.Parameter]]:
    """The parameter that receives the context, and all parameters."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError, NameError) as error:
        raise ConfigurationError(f"its parameters can't be read: {error}") from error
    found = [p for p in parameters if p.name == "ctx" or _means_context(p.annotation)]
    if len(found) > 1:
        raise ConfigurationError(f"two parameters would receive the context: {', '.join(p.name for p in found)}")
    if found and found[0].kind in {P.VAR_POSITIONAL, P.VAR_KEYWORD}:
        raise ConfigurationError(f"*{found[0].name} can't receive the context")
    return (found[0] if found else None), parameters


def _means_context(annotation: Any) -> bool:
    """Annotations may be texts: a file may import TaskContext only for its type checker."""
    if isinstance(annotation, str):
        return annotation.strip("'\" ").rpartition(".")[2] == TaskContext.__name__
    return annotation is TaskContext


def _hints(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """The resolved annotation of each parameter; Any where there is none."""
    names = getattr(original_function(function), "__globals__", {})
    hints: dict[str, Any] = {}
    for p in parameters:
        holder = SimpleNamespace(__annotations__={p.name: Any if p.annotation is P.empty else p.annotation})
        hints |= hints_of(holder, f"the annotation of {p.name!r}, {p.annotation!r},", names)
    return {name: adapted(hint) for name, hint in hints.items()}


def _open_decoder(
    decode: Decode, known: frozenset[str], annotation: Any, reserved: str | None, task: str
) -> Callable[[Any], dict[str, Any]]:
    """Decodes the named fields as usual, and all others by the annotation of `**kwargs`."""
    convert_other = _converter(annotation, task)

    def decode_all(payload: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = decode(payload)
        for key in payload.keys() - known:
            if key == reserved:
                raise invalid_payload_of(task, [FieldError(pointer([key]), "this name is the context's")])
            try:
                arguments[key] = convert_other(payload[key])
            except InvalidPayload as error:
                below = [(fault.pointer.removeprefix(PAYLOAD), fault.detail) for fault in error.errors]
                faults = [FieldError(pointer([key]) + rest, detail) for rest, detail in below]
                raise invalid_payload_of(task, faults) from None
        return arguments

    return decode_all


def _open_schema(schema: dict[str, Any], annotation: Any, reserved: str | None) -> dict[str, Any]:
    others = _json_schema(dict[str, annotation], title="others")
    schema = {**schema, "additionalProperties": others.get("additionalProperties", True)}
    if "$defs" in others:
        schema["$defs"] = {**others["$defs"], **schema.get("$defs", {})}
    if reserved:
        schema["properties"] = {**schema["properties"], reserved: False}
    return schema


# --- classes -------------------------------------------------------------------------------------------------


def class_payload(payload: Any, owner: str, name: str) -> tuple[dict[str, Any], Decode]:
    """The payload of the task `name`, from the `Payload` of the class `owner`: its schema, and how it is read.

    A plain annotated class becomes a struct with its methods; None is the empty payload.

    Raises: ConfigurationError for annotations and defaults that have no JSON form.
    """
    if payload is None:
        payload = type(f"{owner}Payload", (), {})
    if not _is_plain_class(payload):
        type_ = adapted(payload)
        return _json_schema(type_, title=name), _converter(type_, name)
    fields = _class_fields(payload)
    dropped = {field.name for field in fields} | _OF_THE_CLASS_ITSELF
    namespace: dict[str, Any] = {}
    for base in reversed(payload.__mro__[:-1]):
        namespace |= {key: value for key, value in vars(base).items() if key not in dropped}
    struct = _struct(payload.__name__, fields, namespace=namespace)
    schema = _json_schema(struct, title=name, defaults=fields)
    if secret := SecretFields(schema):
        _mask_in_repr(struct, secret)
    return schema, _converter(struct, name)


def _mask_in_repr(struct: Any, secret: SecretFields) -> None:
    def shown(payload: Any) -> str:
        plain = strict_json_value(payload)
        masked, _ = secret.split(plain)
        fields = [
            f"{name}={(getattr(payload, name) if masked[name] == plain[name] else MASK)!r}"
            for name in struct.__struct_fields__
        ]
        return f"{struct.__name__}({', '.join(fields)})"

    struct.__repr__ = shown


def _is_plain_class(payload: Any) -> bool:
    """Whether a class is no dataclass, struct, model, enum or subclass of a built-in type."""
    if type(payload) is not type:
        return False
    special = ("__dataclass_fields__", "__attrs_attrs__", "__struct_fields__")
    bases = payload.__mro__[:-1]
    return not any(hasattr(payload, name) for name in special) and not any(
        base.__module__ == "builtins" or "__init__" in vars(base) or "__new__" in vars(base) for base in bases
    )


def _class_fields(payload: type) -> list[PayloadField]:
    """The fields of a plain class: annotated attributes, and public values without annotation, which take any JSON."""
    hints = hints_of(payload)
    values: Mapping[str, Any] = {
        key: value for base in reversed(payload.__mro__[:-1]) for key, value in vars(base).items()
    }
    fields = [
        PayloadField(name, adapted(hint), values.get(name, REQUIRED))
        for name, hint in hints.items()
        if hint is not ClassVar and typing.get_origin(hint) is not ClassVar
    ]
    plain = [
        PayloadField(name, Any, value)
        for name, value in values.items()
        if name not in hints and not name.startswith("_") and not hasattr(value, "__get__") and not callable(value)
    ]
    return fields + plain


# --- schemas and conversion ----------------------------------------------------------------------------------


def _struct(
    name: str, fields: Sequence[PayloadField], *, is_open: bool = False, namespace: Mapping[str, Any] | None = None
) -> type[msgspec.Struct]:
    """A struct type with these fields. It refuses unknown fields unless it `is_open`."""
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


def _json_schema(type_: Any, *, title: str, defaults: Sequence[PayloadField] = ()) -> dict[str, Any]:
    """The JSON Schema 2020-12 document of a payload type, with those of the `defaults` that aren't secret."""
    root, definitions = of_model(type_).schema() if is_pydantic(type_) else schema_of(type_)
    document = {"$schema": DIALECT, **_root_inlined(root, definitions), "title": title}
    for field in defaults:
        if field.default is not REQUIRED:
            document["properties"][field.name]["default"] = default_as_json(field.name, field.default)
    try:
        plain: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"a default in the payload isn't JSON: {error}") from error
    return SecretFields(plain).without_secret_defaults()


def _converter(type_: Any, task: str) -> Callable[[Any], Any]:
    """The function that converts a JSON value to `type_`, strictly: "80" isn't an integer."""
    read = reader(type_)

    def convert_payload(payload: Any) -> Any:
        try:
            return read(payload)
        except UnicodeEncodeError as error:  # half a surrogate pair in a key, which JSON text can contain
            raise invalid_payload_of(task, field_errors(error)) from None
        except msgspec.ValidationError as error:
            fault = error
        # JSON Schema has one kind of number: 5.0 is an integer, and the API has accepted it.
        if "got `float`" in str(fault):
            try:
                return read(_with_integers(payload))
            except msgspec.ValidationError as error:
                fault = error
        raise invalid_payload_of(task, field_errors(fault, wanted=type_)) from None

    return convert_payload


def _default(field: PayloadField) -> Any:
    if field.default is REQUIRED:
        return REQUIRED
    default_as_json(field.name, field.default)
    if type(field.default) in LEAVES or isinstance(field.default, Enum):
        return field.default
    try:
        copy.deepcopy(field.default)
    except Exception as error:  # the user's own class may raise anything
        raise ConfigurationError(
            f"the default of {field.name!r} can't be copied for each task: {error}; use None and set it in the task"
        ) from error
    # Each payload gets its own copy: a shared mutable default would leak from one task into the next.
    return msgspec.field(default_factory=partial(copy.deepcopy, field.default))


def _root_inlined(root: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The document with the definition that its root refers to at the root: forms look for `properties` there."""
    if reference := root.get("$ref"):
        name = reference.removeprefix(REFS)
        root = {**definitions[name], **{key: value for key, value in root.items() if key != "$ref"}}
        is_recursive = f'"{reference}"' in json.dumps([root, definitions], default=str)
        definitions = {key: each for key, each in definitions.items() if is_recursive or key != name}
    return {**root, "$defs": definitions} if definitions else root


def _with_integers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return value
