"""Types that msgspec can't read, or reads wrongly: the JSON Schema of each, and how its values are read.

msgspec passes a value of a type that it doesn't know to a hook, and `handler_of` finds how to read it. Annotations that
are no classes (a union, a dict with paths as keys) are replaced by a stand-in, a subclass of `Custom` with a handler of
its own. `annotations.adapted` decides what is replaced.
"""

from __future__ import annotations

import collections
import functools
import operator
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass
from enum import Flag
from pathlib import PurePath
from typing import Any, ClassVar, Final, NamedTuple, cast

import msgspec
from msgspec import inspect

from taskpool.errors import ConfigurationError
from taskpool.tasks.payload.encode import is_pydantic, is_pydantic_secret, secret_from, strict_json_value
from taskpool.tasks.payload.faults import Misfit, NotJson

REFS: Final = "#/$defs/"

Schema = tuple[dict[str, Any], dict[str, Any]]
"""A JSON Schema, and the definitions that it refers to."""

_ANYTHING: Final = {"$comment": "taskpool: any value"}
"""Stands for `{}` until msgspec is done: msgspec takes an empty schema for none."""
_ABSENT: Final = object()

_COLLECTIONS: Final[dict[type, Any]] = {
    collections.deque: list,
    collections.OrderedDict: dict,
    collections.defaultdict: dict,
    collections.Counter: dict,
    collections.ChainMap: dict,
    collections.UserDict: dict,
    collections.UserList: list,
    types.MappingProxyType: dict,
}
"""Collections that msgspec doesn't know, each with the type that is read in its place."""
_FACTORIES: Final = (int, float, str, list, dict, set, bool)
_BOOLEANS: Final = {"true": True, "false": False}
_PLAIN: Final = (str, int, float)
_JSON_KINDS: Final = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
_LEAVES: Final = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Handler:
    """How a type that msgspec doesn't know is described and read."""

    schema: Callable[[], Schema]
    read: Callable[[Any], Any]
    """Turns a JSON value into a value of the type. Raises: ValueError."""
    inner: tuple[Any, ...] = ()
    """The types that msgspec reads for it."""


class _AnyInstance(type):
    """msgspec checks that its hook returns an instance of the type. Every object is an instance of a stand-in."""

    def __instancecheck__(cls, instance: object) -> bool:
        return True


class Custom(metaclass=_AnyInstance):
    """A stand-in for an annotation. Messages show its `__name__`."""

    __slots__ = ()
    handler: ClassVar[Handler]


def stand_in(annotation: Any, handler: Handler) -> type[Custom]:
    """A new stand-in for this annotation."""
    namespace = {"__slots__": (), "handler": handler}
    return cast("type[Custom]", _AnyInstance(name_of(annotation), (Custom,), namespace))


def handler_of(type_: Any) -> Handler | None:
    """The handler of a type; None for a type that msgspec knows, and for one that has no JSON form."""
    origin = typing.get_origin(type_) or type_
    if not isinstance(origin, type):
        return None
    make: Any = origin
    if issubclass(origin, Custom):
        return origin.handler
    if issubclass(origin, PurePath):
        return Handler(lambda: ({"type": "string"}, {}), lambda given: make(_text(given)))
    if origin is object:
        return Handler(lambda: ({}, {}), lambda given: given)
    if is_pydantic(origin):
        return _model(type_)
    if is_pydantic_secret(origin):
        schema = {"type": "string", "writeOnly": True}
        return Handler(lambda: (schema, {}), lambda given: secret_from(type_, _text(given)))
    if (plain := plain_collection(type_)) is not None:
        return collection(type_, plain)
    base = next((each for each in _PLAIN if issubclass(origin, each)), None)
    if base and origin not in (*_PLAIN, bool) and not hasattr(origin, "__members__"):
        return Handler(lambda: (msgspec.json.schema(base), {}), lambda given: make(convert(given, base)))
    return None


def _decode(type_: Any, value: Any) -> Any:
    """msgspec's hook for values of types that it doesn't know."""
    handler = handler_of(type_)
    assert handler is not None  # the type has a schema, and only handlers make one
    try:
        return handler.read(value)
    except msgspec.ValidationError as error:  # msgspec would raise it as it is, without the path above it
        raise Misfit(str(error)) from error


convert: Final = functools.partial(msgspec.convert, strict=True, str_keys=True, dec_hook=_decode)
"""Converts a JSON value to a type, strictly. Raises: msgspec.ValidationError."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")
    return value


# --- the handlers --------------------------------------------------------------------------------------------


def plain_collection(type_: Any) -> Any:
    """The list or dict type that is read in place of a collection; None for other types."""
    origin, arguments = typing.get_origin(type_) or type_, typing.get_args(type_)
    if origin not in _COLLECTIONS:
        return None
    if origin is collections.Counter:
        return dict[arguments[0] if arguments else str, int]  # type: ignore[misc]
    plain = _COLLECTIONS[origin]
    return plain[arguments] if arguments else plain


def collection(type_: Any, plain: Any) -> Handler:
    """For a collection of the standard library that is read as the list or dict type `plain`."""
    make, arguments = typing.get_origin(type_) or type_, typing.get_args(type_)
    if make is collections.defaultdict:
        origin = typing.get_origin(arguments[-1]) or arguments[-1] if arguments else None
        make = functools.partial(make, origin if origin in _FACTORIES else None)
    return Handler(lambda: schema_of(plain), lambda given: make(convert(given, plain)), (plain,))


def keyed_dict(key: Any, value: Any) -> Handler:
    """For a dict whose keys msgspec would leave as texts: paths or booleans."""
    plain = dict[str, value]

    def read_key(text: str) -> Any:
        return convert(_BOOLEANS.get(text, text) if key is bool else text, key)

    def read(given: Any) -> Any:
        return {read_key(name): each for name, each in convert(given, plain).items()}

    return Handler(lambda: schema_of(plain), read, (plain,))


def union(annotation: Any, members: tuple[Any, ...]) -> Handler:
    """For a union with members that msgspec doesn't know. The kind of the JSON value (text, object, ...) decides which
    member is read.

    Raises: ConfigurationError when two members are of the same kind.
    """
    known = [each for each in members if not handler_of(each)]
    others = [each for each in members if handler_of(each)]
    groups = (*([functools.reduce(operator.or_, known)] if known else []), *others)
    kinds: dict[str, Any] = {}
    for group in groups:
        for kind in _kinds(*schema_of(group)):
            if kind in kinds:
                raise ConfigurationError(
                    f"{name_of(annotation)}: JSON can't distinguish {name_of(kinds[kind])} from {name_of(group)}: "
                    f"both are {kind}; use one of them, or pydantic models with a discriminator"
                )
            kinds[kind] = group

    def read(given: Any) -> Any:
        wanted = kinds.get(_kind_of(given), kinds.get("any value"))
        if wanted is None:
            raise ValueError(f"Expected {' or '.join(kinds)}, got `{type(given).__name__}`")
        return convert(given, wanted)

    def schema() -> Schema:
        definitions: dict[str, Any] = {}
        return {"anyOf": [_merged(schema_of(group), definitions) for group in groups]}, definitions

    return Handler(schema, read, groups)


def _kinds(schema: dict[str, Any], definitions: dict[str, Any]) -> set[str]:
    """The kinds of JSON values that fit this schema."""
    if "$ref" in schema:
        return _kinds(definitions[schema["$ref"].removeprefix(REFS)], definitions)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return set().union(*(_kinds(each, definitions) for each in schema[word]))
    found = schema.get("type", [])
    if found:
        return {"number" if each == "integer" else each for each in ([found] if isinstance(found, str) else found)}
    values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())]
    return {_kind_of(each) for each in values} or {"any value"}


def _kind_of(value: Any) -> str:
    return "null" if value is None else _JSON_KINDS.get(type(value), "any value")


def by_pydantic(annotation: Any, *, strict: bool | None) -> Handler:
    """For what only pydantic reads: its dataclasses, its own types, its validators, its discriminated unions."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except PydanticUserError as error:
        raise ConfigurationError(f"{name_of(annotation)}: {str(error).splitlines()[0]}") from error

    def schema() -> Schema:
        document = pydantic_schema(adapter.json_schema, REFS)
        return document, document.pop("$defs", {})

    return Handler(schema, lambda given: adapter.validate_json(msgspec.json.encode(given), strict=strict))


def _model(model: Any) -> Handler:
    """For a pydantic model. It reads JSON text, because a strict model refuses a date from a Python string."""
    prefix = "".join(c if c.isalnum() or c in "._" else "_" for c in f"{model.__module__}.{model.__qualname__}")

    def schema() -> Schema:
        document = pydantic_schema(model.model_json_schema, f"{REFS}{prefix}.")
        return document, {f"{prefix}.{name}": each for name, each in document.pop("$defs", {}).items()}

    return Handler(schema, lambda given: model.model_validate_json(msgspec.json.encode(given)))


def pydantic_schema(json_schema: Callable[..., dict[str, Any]], refs: str) -> dict[str, Any]:
    """The JSON Schema that a model or an adapter makes. Raises: ConfigurationError when it has none."""
    from pydantic.errors import PydanticUserError
    from pydantic.json_schema import PydanticJsonSchemaWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PydanticJsonSchemaWarning)
            return json_schema(ref_template=refs + "{model}")
    except (PydanticUserError, PydanticJsonSchemaWarning) as error:
        raise ConfigurationError(f"the payload has no JSON form: {error}") from error


# --- dataclasses and attrs classes ---------------------------------------------------------------------------


class _Declared(NamedTuple):
    """A field of a dataclass or an attrs class: `argument` is its name in `__init__`, which takes it if `init`."""

    name: str
    argument: str
    init: bool
    default: Any
    is_required: bool


def fields_of(cls: Any, hints: Mapping[str, Any]) -> Handler:
    """For a dataclass or an attrs class that its own `__init__` makes, of fields with these annotations.

    A payload may have a field that `__init__` doesn't take; it is set afterwards.
    """
    declared = list(_declared(cls))
    absent = msgspec.field(default_factory=lambda: _ABSENT)
    struct = msgspec.defstruct(
        cls.__name__,
        [(each.name, hints[each.name], msgspec.NODEFAULT if each.is_required else absent) for each in declared],
        kw_only=True,
        module=cls.__module__,
    )
    read_struct = completed(functools.partial(convert, type=struct), struct)

    def schema() -> Schema:
        root, definitions = schema_of(struct)
        described = definitions[root["$ref"].removeprefix(REFS)]
        if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):
            described["description"] = cls.__doc__
        for each in declared:
            if each.default is not _ABSENT:
                try:
                    described["properties"][each.name]["default"] = strict_json_value(each.default)
                except NotJson as error:
                    raise ConfigurationError(f"the default of {each.name!r} isn't JSON: {error}") from error
        return root, definitions

    def read(given: Any) -> Any:
        found = read_struct(given)
        values = [(each, getattr(found, each.name)) for each in declared]
        values = [(each, value) for each, value in values if value is not _ABSENT]
        made = cls(**{each.argument: value for each, value in values if each.init})
        for each, value in values:
            if not each.init:
                object.__setattr__(made, each.name, value)
        return made

    return Handler(schema, read, (struct,))


def _declared(cls: Any) -> Iterator[_Declared]:
    for each in getattr(cls, "__dataclass_fields__", {}).values():
        if each._field_type.name != "_FIELD_CLASSVAR":
            has_default = each.default is not MISSING or each.default_factory is not MISSING
            default = _ABSENT if each.default is MISSING else each.default
            yield _Declared(each.name, each.name, each.init, default, each.init and not has_default)
    for each in getattr(cls, "__attrs_attrs__", ()):
        has_default = type(each.default).__name__ != "_Nothing"
        default = each.default if has_default and not hasattr(each.default, "factory") else _ABSENT
        argument = each.alias or each.name.lstrip("_")
        yield _Declared(each.name, argument, each.init, default, each.init and not has_default)


def needs_own_init(cls: Any) -> str:
    """Why msgspec can't make instances of a dataclass; empty when it can."""
    if hasattr(cls, "__pydantic_validator__"):
        return "has validators of pydantic"
    fields = getattr(cls, "__dataclass_fields__", {}).values()
    if any(each._field_type.name == "_FIELD_INITVAR" for each in fields):
        return "has an InitVar"
    if any(not each.init and each._field_type.name == "_FIELD" for each in fields):
        return "has a field with init=False"
    return ""


def has_plain_defaults(cls: Any) -> bool:
    """Whether msgspec can publish the defaults of a dataclass or an attrs class."""
    try:
        msgspec.to_builtins([each.default for each in _declared(cls) if each.default is not _ABSENT])
    except Exception:  # from the user's own class
        return False
    return True


def completed(read: Callable[[Any], Any], type_: Any) -> Callable[[Any], Any]:
    """`read`, with all attributes of the dataclasses set that a value of `type_` contains.

    msgspec leaves a default in the class when it makes an instance, and leaves it out when it encodes that instance.
    """
    try:
        classes = {each.cls for each in types_in(type_) if isinstance(each, inspect.DataclassType)}
    except (TypeError, NameError):  # making its schema says what is wrong with the type
        return read
    defaults = {cls: names for cls in classes if (names := _class_defaults(cls))}
    if not defaults:
        return read

    def read_and_complete(payload: Any) -> Any:
        value = read(payload)
        left, seen = [value], set[int]()
        while left:
            each = left.pop()
            if type(each) not in _LEAVES and id(each) not in seen:
                seen.add(id(each))
                for name in defaults.get(type(each), ()):
                    each.__dict__.setdefault(name, getattr(type(each), name))
                left += _members(each)
        return value

    return read_and_complete


def _class_defaults(cls: type) -> list[str]:
    """The fields of a dataclass whose default is an attribute of the class."""
    fields: dict[str, Any] = getattr(cls, "__dataclass_fields__", {})
    has_slots = "__dict__" not in dir(cls)
    return [] if has_slots else [name for name, each in fields.items() if hasattr(cls, name) and each.init]


def _members(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    kind = type(value)
    names = getattr(kind, "__struct_fields__", None) or getattr(kind, "__dataclass_fields__", None)
    return [getattr(value, name, None) for name in names or [a.name for a in getattr(kind, "__attrs_attrs__", ())]]


# --- schemas and checks -----------------------------------------------------------------------


def schema_of(type_: Any) -> Schema:
    """The JSON Schema of a type. Raises: ConfigurationError for a type that has no JSON form."""
    foreign: dict[str, Any] = {}

    def describe(other: Any) -> dict[str, Any]:
        handler = handler_of(other)
        if handler is None:
            raise NotImplementedError
        return _merged(handler.schema(), foreign) or dict(_ANYTHING)

    try:
        (root,), definitions = msgspec.json.schema_components(
            [type_], schema_hook=describe, ref_template=REFS + "{name}"
        )
    except (TypeError, NameError) as error:
        # msgspec explains its hooks at length; the last line names the type.
        raise ConfigurationError(f"the payload has no JSON form: {str(error).splitlines()[-1]}") from error
    except RecursionError:
        raise ConfigurationError("the payload has no JSON form: a type alias refers to itself; use Any") from None
    except KeyError as error:  # from msgspec, for a class below its own stand-in
        raise ConfigurationError(
            f"the payload has no JSON form: {error} refers to itself and has fields that msgspec can't read"
        ) from error
    _widen_flags(type_, definitions)
    root = _merged((root, definitions), foreign)
    return _with_anything(root), _with_anything(foreign)


def _with_anything(schema: Any) -> Any:
    return _mapped(schema, lambda node: {} if node == _ANYTHING else node)


def _widen_flags(type_: Any, definitions: dict[str, Any]) -> None:
    """A Flag's values are all combinations of its members; msgspec lists only the members."""
    for each in types_in(type_):
        if isinstance(each, inspect.EnumType) and issubclass(each.cls, Flag):
            values = sorted(member.value for member in each.cls)
            for schema in definitions.values():
                if schema.get("title") == each.cls.__name__ and schema.get("enum") == values:
                    del schema["enum"]
                    schema |= {"type": "integer", "minimum": 0}


def _merged(schema: Schema, into: dict[str, Any]) -> dict[str, Any]:
    """Add the definitions of a schema to `into`, and return the schema. A name that means something else there gets a
    number."""
    root, definitions = schema
    renamed = {}
    for name, each in definitions.items():
        new, number = name, 2
        while new in into and into[new] != each:
            new, number = f"{name}{number}", number + 1
        if new != name:
            renamed[REFS + name] = REFS + new
    if renamed:
        root, definitions = _mapped(
            [root, definitions],
            lambda node: node if node.get("$ref") not in renamed else {**node, "$ref": renamed[node["$ref"]]},
        )
    into.update({renamed.get(REFS + name, REFS + name).removeprefix(REFS): each for name, each in definitions.items()})
    return root


def _mapped(node: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A copy of a schema in which each object is changed."""
    if isinstance(node, dict):
        return change({key: _mapped(value, change) for key, value in node.items()})
    return [_mapped(each, change) for each in node] if isinstance(node, list) else node


def refuse_misread(type_: Any, above: tuple[Any, ...] = ()) -> None:
    """Raise ConfigurationError for a type that msgspec would read without an error, but wrongly."""
    for each in types_in(type_):
        if isinstance(each, inspect.CustomType) and each.cls not in above:
            handler = handler_of(each.cls)
            for inner in handler.inner if handler else ():
                refuse_misread(inner, (*above, each.cls))
        if isinstance(each, inspect.DictType):
            _refuse_key(each.key_type)
        if isinstance(each, inspect.RawType):
            raise ConfigurationError("msgspec.Raw can't be read from a payload; use Any")
        if isinstance(each, inspect.DataclassType) and (why := needs_own_init(each.cls)):
            raise ConfigurationError(f"the dataclass {each.cls.__name__} {why}: it can't stand inside of this type")


def _refuse_key(key: inspect.Type) -> None:
    key = key.type if isinstance(key, inspect.Metadata) else key
    misread = (inspect.CustomType, inspect.BoolType, inspect.CollectionType, inspect.DictType, inspect.TupleType)
    if isinstance(key, misread) and not (isinstance(key, inspect.CustomType) and key.cls is object):
        name = name_of(getattr(key, "cls", type(key)))
        raise ConfigurationError(f"keys of the type {name} can't be read here; use texts, numbers, dates or Enums")


def types_in(type_: Any) -> Iterator[inspect.Type]:
    """What msgspec knows of a type and of all types inside it, each once. Raises: TypeError, NameError."""
    root = inspect.type_info(type_)
    left, seen = [root], set[int]()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inside = [getattr(each, name, None) for name in ("type", "item_type", "key_type", "value_type")]
        left += [below for below in inside if isinstance(below, inspect.Type)]
        left += [below for name in ("types", "item_types") for below in getattr(each, name, ())]
        left += [field.type for field in getattr(each, "fields", ())]


def name_of(annotation: Any) -> str:
    """The annotation as messages show it."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
