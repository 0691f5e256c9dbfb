"""The payload type of a task, from the parameters of its function or from the `Payload` of its class.

A payload of a function is decoded to a dict of arguments, one of a class to an instance of its payload type.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, Final

import msgspec

from taskpool.errors import ConfigurationError, FieldError, InvalidPayload
from taskpool.tasks.context import TaskContext
from taskpool.tasks.payload.annotations import adapted, hints_of
from taskpool.tasks.payload.encode import strict_json_value
from taskpool.tasks.payload.faults import PAYLOAD, invalid_payload_of, pointer
from taskpool.tasks.payload.schema import REQUIRED, PayloadField, converter, json_schema, payload_struct
from taskpool.tasks.payload.secret_fields import SecretFields
from taskpool.tasks.task import original_function
from taskpool.text import MASK

P = inspect.Parameter

_OF_THE_CLASS_ITSELF: Final = {
    "__dict__", "__weakref__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
    "__conditional_annotations__", "__firstlineno__", "__static_attributes__",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FunctionPayload:
    """A function's payload: its schema, `decode` from JSON to arguments, and `bind` from arguments to a call."""

    schema: dict[str, Any]
    decode: Callable[[Any], dict[str, Any]]
    bind: Callable[[dict[str, Any], TaskContext], Callable[[], Any]]


def function_payload(function: Callable[..., Any], name: str) -> FunctionPayload:
    """The payload of the task `name`, from the signature of its function.

    Raises: ConfigurationError for `*args`, and for annotations and defaults that have no JSON form.
    """
    parameters = _parameters(function)
    context, rest = _context_parameter(parameters)
    if any(parameter.kind is P.VAR_POSITIONAL for parameter in rest):
        raise ConfigurationError(f"task {name!r} takes *args, but a payload has named fields; name the parameters")
    hints = _hints(function, rest)
    fields = [
        PayloadField(p.name, hints[p.name], REQUIRED if p.default is P.empty else p.default)
        for p in rest
        if p.kind is not P.VAR_KEYWORD
    ]
    rest_name = next((p.name for p in rest if p.kind is P.VAR_KEYWORD), None)
    struct = payload_struct(_class_name(name), fields, is_open=rest_name is not None)
    schema = json_schema(struct, title=name, defaults=fields)
    convert = converter(struct, task=name)
    decode: Callable[[Any], dict[str, Any]] = partial(_decode_closed, convert)
    if rest_name is not None:
        reserved = context.name if context and context.kind is not P.POSITIONAL_ONLY else None
        schema = _open_schema(schema, hints[rest_name], reserved)
        decode = _open_decoder(convert, frozenset(f.name for f in fields), hints[rest_name], reserved, name)
    positional = [p.name for p in parameters if p.kind is P.POSITIONAL_ONLY]
    return FunctionPayload(schema, decode, _binder(function, context, positional))


def class_payload(payload: Any, owner: str) -> tuple[Any, list[PayloadField]]:
    """The type that payloads are converted to, and the fields whose defaults its schema doesn't have by itself.

    A plain annotated class becomes a struct with its methods; None is the empty payload.

    Raises: ConfigurationError for annotations and defaults that have no JSON form.
    """
    if payload is None:
        return payload_struct(f"{owner}Payload", []), []
    if not _is_plain_class(payload):
        return adapted(payload), []
    fields = _class_fields(payload)
    names = {field.name for field in fields}
    dropped = names | _OF_THE_CLASS_ITSELF
    namespace: dict[str, Any] = {}
    for base in reversed(payload.__mro__[:-1]):
        namespace.update({key: value for key, value in vars(base).items() if key not in dropped})
    return payload_struct(payload.__name__, fields, namespace=namespace), fields


def mask_in_repr(struct: type[msgspec.Struct], secret: SecretFields) -> None:
    """Mask secret fields in the repr of a struct that was made from a plain class."""

    def shown(payload: Any) -> str:
        plain = strict_json_value(payload)
        masked, _ = secret.split(plain)
        fields = [
            f"{name}={(getattr(payload, name) if masked[name] == plain[name] else MASK)!r}"
            for name in struct.__struct_fields__
        ]
        return f"{struct.__name__}({', '.join(fields)})"

    struct.__repr__ = shown  # type: ignore[method-assign]


def payload_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a task function that are fields of its payload: all except the one for the context.

    Raises: ConfigurationError when they can't be read.
    """
    return _context_parameter(_parameters(function))[1]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError, NameError) as error:
        raise ConfigurationError(f"its parameters can't be read: {error}") from error


def _context_parameter(
    parameters: list[inspect.Parameter],
) -> tuple[inspect.Parameter | None, list[inspect.Parameter]]:
    """The parameter that receives the context, and the others."""
    found = [p for p in parameters if p.name == "ctx" or _means_context(p.annotation)]
    if len(found) > 1:
        raise ConfigurationError(f"two parameters would receive the context: {', '.join(p.name for p in found)}")
    if found and found[0].kind in {P.VAR_POSITIONAL, P.VAR_KEYWORD}:
        raise ConfigurationError(f"*{found[0].name} can't receive the context")
    return (found[0] if found else None), [p for p in parameters if p not in found]


def _means_context(annotation: Any) -> bool:
    """Annotations may be texts: a file may import TaskContext only for its type checker."""
    if isinstance(annotation, str):
        return annotation.strip("'\" ").rpartition(".")[2] == TaskContext.__name__
    return annotation is TaskContext


def _hints(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """The resolved annotation of each parameter; Any where there is none."""
    names = getattr(original_function(function), "__globals__", {})
    hints = {}
    for parameter in parameters:
        if parameter.annotation is P.empty:
            hints[parameter.name] = Any
            continue
        holder = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
        what = f"the annotation of {parameter.name!r}, {parameter.annotation!r},"
        hints |= hints_of(holder, what, names)
    return {name: adapted(hint) for name, hint in hints.items()}


def _decode_closed(convert: Callable[[Any], Any], payload: Any) -> dict[str, Any]:
    return msgspec.structs.asdict(convert(payload))


def _open_decoder(
    convert: Callable[[Any], Any], known: frozenset[str], annotation: Any, reserved: str | None, task: str
) -> Callable[[Any], dict[str, Any]]:
    """Decodes the named fields as usual, and all others by the annotation of `**kwargs`."""
    convert_other = converter(annotation, task=task)

    def decode(payload: Any) -> dict[str, Any]:
        arguments = msgspec.structs.asdict(convert(payload))
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

    return decode


def _open_schema(schema: dict[str, Any], annotation: Any, reserved: str | None) -> dict[str, Any]:
    others = json_schema(dict[str, annotation], title="others")
    schema = {**schema, "additionalProperties": others.get("additionalProperties", True)}
    if "$defs" in others:
        schema["$defs"] = {**others["$defs"], **schema.get("$defs", {})}
    if reserved:
        schema["properties"] = {**schema["properties"], reserved: False}
    return schema


def _binder(
    function: Callable[..., Any], context: inspect.Parameter | None, positional: list[str]
) -> Callable[[dict[str, Any], TaskContext], Callable[[], Any]]:
    """Passes arguments by keyword, except those that can only be passed by position."""
    name = context.name if context else ""

    def bind(arguments: dict[str, Any], ctx: TaskContext) -> Callable[[], Any]:
        given = {**arguments, name: ctx} if name else dict(arguments)
        return partial(function, *[given.pop(each) for each in positional], **given)

    return bind


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
    hints = hints_of(payload, f"the annotations of {payload.__name__}")
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


def _class_name(task: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in task)
