"""From annotations to what msgspec reads: types that it doesn't know, or would read wrongly, are replaced.

msgspec passes a value of a class that it doesn't know to a hook, and `handler_of` finds how to read it. Annotations
that are no such classes (a union, a dict with paths as keys) are replaced by a stand-in, a subclass of `Custom` with a
handler of its own. `adapted` decides what is replaced. Nothing can be replaced inside structs and NamedTuples.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import operator
import re
import types
import typing
import warnings
from collections import abc
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass
from enum import Flag
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Union, cast

import msgspec
from msgspec import inspect

from taskpool.errors import ConfigurationError
from taskpool.tasks.payload.encode import is_of_pydantic, is_pydantic, is_pydantic_secret, package_of, strict_json_value
from taskpool.tasks.payload.faults import Misfit, NotJson
from taskpool.text import Secret

REFS: Final = "#/$defs/"
LEAVES: Final = (str, int, float, bool, type(None))

Classes = tuple[Any, ...]
Schema = tuple[dict[str, Any], dict[str, Any]]
"""A JSON Schema, and the definitions that it refers to."""

_AS_LIST: Final = (abc.Iterable, abc.Iterator, abc.Reversible, abc.Container)
_DICTS: Final = (dict, abc.Mapping, abc.MutableMapping)
_LIMITS: Final = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
"""Limits that msgspec, pydantic and annotated_types know by the same names."""
_ONLY_PYDANTICS: Final = (
    *("discriminator", "strict", "alias", "validation_alias", "coerce_numbers_to_str", "allow_inf_nan"),
    *("strip_whitespace", "to_lower", "to_upper"),
)
"""What a note may ask for that only pydantic does."""
_ANYTHING: Final = {"$comment": "taskpool: any value"}
"""Stands for `{}` until msgspec is done: msgspec takes an empty schema for none."""
_ABSENT: Final = object()

_COLLECTIONS: Final[dict[Any, Any]] = {collections.deque: list, collections.UserList: list} | dict.fromkeys(
    (collections.OrderedDict, collections.defaultdict, collections.Counter, collections.ChainMap, collections.UserDict,
     types.MappingProxyType), dict
)  # fmt: skip
"""Collections that msgspec doesn't know, each with the type that is read in its place."""
_FACTORIES: Final = (int, float, str, list, dict, set, bool)
_BOOLEANS: Final = {"true": True, "false": False}
_PLAIN: Final = (str, int, float)
_JSON_KINDS: Final = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def hints_of(holder: Any, what: str = "", names: dict[str, Any] | None = None) -> dict[str, Any]:
    """The annotations of a class or an object, resolved. `names` are the globals for those that are texts.

    Raises: ConfigurationError when one can't be resolved; it begins with `what`.
    """
    try:
        return typing.get_type_hints(holder, globalns=names, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        what = what or f"the annotations of {holder.__name__}"
        raise ConfigurationError(f"{what} can't be resolved: {error}") from error


def adapted(annotation: Any, above: Classes = ()) -> Any:
    """The same type for msgspec: `object` is any JSON value, an `Iterable` is a list, limits of pydantic and
    annotated_types are limits of msgspec, and a type that msgspec can't read is a stand-in. `above` are the classes of
    which this is a field.

    Raises: ConfigurationError for a limit that msgspec doesn't know, and for a type that can't be read.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, dataclasses.InitVar):
        return adapted(annotation.type, above)
    if annotation is object:
        return Any
    if annotation is typing.LiteralString:
        return str
    if annotation in _AS_LIST or origin in _AS_LIST:
        return list[adapted(arguments[0], above)] if arguments else list  # type: ignore[misc]
    if type(annotation).__name__ == "TypeAliasType" and not arguments:
        return annotation if annotation in above else _alias(annotation, above)
    if origin is Annotated:
        return _annotated(annotation, above)
    if origin is None and isinstance(annotation, type):
        return _class(annotation, above)
    if origin is None or origin is typing.Literal or not arguments:
        return annotation
    if origin in (Union, types.UnionType):
        return _union(annotation, arguments, above)
    if handler := collection(annotation, above):
        return stand_in(annotation, handler)
    if any(isinstance(each, list) for each in arguments):
        return annotation
    changed = tuple(each if each is Ellipsis else adapted(each, above) for each in arguments)
    if origin in _DICTS and (changed[0] is bool or handler_of(changed[0])):
        return stand_in(annotation, keyed_dict(*changed))
    return annotation if changed == arguments else origin[changed if len(changed) > 1 else changed[0]]


def _alias(alias: Any, above: Classes) -> Any:
    """The value of `type X = ...` if it changes, else the alias."""
    value = alias.__value__
    changed = adapted(value, (*above, alias))
    return alias if changed is value or changed == value else changed


def _union(annotation: Any, arguments: tuple[Any, ...], above: Classes) -> Any:
    models = [each for each in arguments if is_pydantic(each)]
    if len(models) > 1 and all(each in models or each is type(None) for each in arguments):
        return stand_in(annotation, by_pydantic(annotation, strict=None))
    changed = tuple(adapted(each, above) for each in arguments)
    foreign = [each for each in changed if handler_of(each)]
    native = [each for each in changed if each not in foreign and each is not type(None)]
    if foreign and (native or len(foreign) > 1):
        return stand_in(annotation, union(annotation, changed))
    return annotation if changed == arguments else functools.reduce(operator.or_, changed)


# --- classes -------------------------------------------------------------------------------------------------


def _class(cls: Any, above: Classes) -> Any:
    if is_pydantic(cls) or is_pydantic_secret(cls) or cls in above:
        return cls
    if hasattr(cls, "__pydantic_validator__"):  # a dataclass of pydantic's
        for name, each in cls.__pydantic_fields__.items():
            if each.alias or each.validation_alias or each.serialization_alias:
                raise ConfigurationError(
                    f"the field {name!r} of the pydantic dataclass {cls.__name__} has an alias; use a pydantic model"
                )
        return stand_in(cls, by_pydantic(cls, strict=None))
    if is_of_pydantic(cls):
        return stand_in(cls, by_pydantic(cls, strict=True))
    if hasattr(cls, "__attrs_attrs__") or hasattr(cls, "__dataclass_fields__"):
        return _with_fields(cls, above)
    if typing.is_typeddict(cls):
        return _typed_dict(cls, (*above, cls))
    return cls


def _with_fields(cls: Any, above: Classes) -> Any:
    """A dataclass or an attrs class."""
    hints = {name: each for name, each in hints_of(cls).items() if typing.get_origin(each) is not ClassVar}
    changed = {name: adapted(hint, (*above, cls)) for name, hint in hints.items()}
    is_same = all(each in (hints[name], Any) for name, each in changed.items())
    if is_same and is_made_by_msgspec(cls):
        return cls
    if getattr(cls, "__parameters__", ()):
        raise ConfigurationError(
            f"{cls.__name__} is generic and has fields that msgspec can't read; use a pydantic model"
        )
    return stand_in(cls, fields_of(cls, changed))


def _typed_dict(cls: Any, above: Classes) -> Any:
    hints = hints_of(cls)
    changed = {name: adapted(hint, above) for name, hint in hints.items()}
    if changed == hints:
        return cls
    for name, hint in changed.items():
        # A mark of the field itself counts: __required_keys__ doesn't know it when annotations are texts.
        if typing.get_origin(hint) not in (typing.Required, typing.NotRequired):
            changed[name] = (typing.Required if name in cls.__required_keys__ else typing.NotRequired)[hint]
    made: Any = typing.TypedDict(cls.__name__, changed)  # type: ignore[misc]
    made.__doc__, made.__module__ = cls.__doc__, cls.__module__
    return made


# --- notes: what stands in Annotated beside the type -----------------------------------------------------------


def _annotated(annotation: Any, above: Classes) -> Any:
    inner, *notes = typing.get_args(annotation)
    if any(_is_for_pydantic(note) for note in notes):
        strict = None if getattr(notes[0], "discriminator", None) else True
        return stand_in(annotation, by_pydantic(annotation, strict=strict))
    changed = adapted(inner, above)
    notes = [_adapted_note(note) for note in notes]
    if handler_of(changed) and any(isinstance(note, msgspec.Meta) and _limits(note) for note in notes):
        raise ConfigurationError(f"{annotation}: limits have no effect on this type")
    return functools.reduce(lambda of, note: Annotated[of, note], notes, changed)


def _is_for_pydantic(note: Any) -> bool:
    """Whether a note is of pydantic and more than a description and limits that msgspec knows."""
    if package_of(type(note)) not in ("pydantic", "pydantic_core"):
        return False
    parts = note.metadata if type(note).__name__ == "FieldInfo" else [note]
    return not all(map(_limits, parts)) or any(getattr(note, name, None) is not None for name in _ONLY_PYDANTICS)


def _adapted_note(note: Any) -> Any:
    if package_of(type(note)) not in ("annotated_types", "pydantic", "pydantic_core"):
        return note
    limits = _limits(note)
    if description := getattr(note, "description", None):
        limits["description"] = description
    if not limits and type(note).__name__ != "FieldInfo":
        raise ConfigurationError(
            f"{type(note).__name__} in Annotated has no effect here: use msgspec.Meta, or a pydantic model"
        )
    return msgspec.Meta(**limits)


def _limits(note: Any) -> dict[str, Any]:
    """The limits in one note; the `Field` of pydantic holds a list of notes of annotated_types."""
    found = {name: value for name in _LIMITS if (value := getattr(note, name, None)) is not None}
    for each in getattr(note, "metadata", ()):
        found |= _limits(each)
    return found


# --- stand-ins and handlers ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Handler:
    """How a type that msgspec doesn't know is described and read."""

    schema: Callable[[], Schema]
    read: Callable[[Any], Any]
    """Turns a JSON value into a value of the type. Raises: ValueError."""


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
        return read_as(str, make)
    if origin is object:
        return Handler(lambda: ({}, {}), lambda given: given)
    if is_pydantic(origin):
        return of_model(type_, re.sub(r"[^\w.]", "_", f"{type_.__module__}.{type_.__qualname__}") + ".")
    if is_pydantic_secret(origin):
        return read_as(Secret[str], (lambda text: make(text.encode())) if origin.__name__ == "SecretBytes" else make)
    if handler := collection(type_):
        return handler
    base = next((each for each in _PLAIN if issubclass(origin, each)), None)
    if base and origin not in (*_PLAIN, bool) and not hasattr(origin, "__members__"):
        return read_as(base, make)
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


# --- the handlers --------------------------------------------------------------------------------------------


def read_as(plain: Any, make: Callable[[Any], Any]) -> Handler:
    """For a type whose values are made of those of the type `plain`."""
    return Handler(lambda: schema_of(plain), lambda given: make(convert(given, plain)))


def collection(type_: Any, above: Classes | None = None) -> Handler | None:
    """For a collection of the standard library; None for other types. With `above` the types inside are adapted."""
    make, arguments = typing.get_origin(type_) or type_, typing.get_args(type_)
    if make not in _COLLECTIONS:
        return None
    if make is collections.Counter:
        arguments = (arguments[0] if arguments else str, int)
    plain = _COLLECTIONS[make][arguments] if arguments else _COLLECTIONS[make]
    if make is collections.defaultdict:
        origin = typing.get_origin(arguments[-1]) or arguments[-1] if arguments else None
        make = functools.partial(make, origin if origin in _FACTORIES else None)
    return read_as(plain if above is None else adapted(plain, above), make)


def keyed_dict(key: Any, value: Any) -> Handler:
    """For a dict whose keys msgspec would leave as texts: paths or booleans."""

    def read_key(text: str) -> Any:
        return convert(_BOOLEANS.get(text, text) if key is bool else text, key)

    return read_as(dict[str, value], lambda found: {read_key(name): each for name, each in found.items()})


def union(annotation: Any, members: tuple[Any, ...]) -> Handler:
    """For a union with members that msgspec doesn't know. The kind of the JSON value (text, object, ...) decides which
    member is read.

    Raises: ConfigurationError when two members are of the same kind.
    """
    known = [each for each in members if not handler_of(each)]
    groups = [functools.reduce(operator.or_, known)] if known else []
    groups += [each for each in members if handler_of(each)]
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

    return Handler(schema, read)


def _kinds(schema: dict[str, Any], definitions: dict[str, Any]) -> set[str]:
    """The kinds of JSON values that fit this schema."""
    if "$ref" in schema:
        return _kinds(definitions[schema["$ref"].removeprefix(REFS)], definitions)
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return set().union(*(_kinds(each, definitions) for each in branches))
    if found := schema.get("type"):
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
    return _of_pydantic(adapter.json_schema, functools.partial(adapter.validate_json, strict=strict))


def of_model(model: Any, prefix: str = "") -> Handler:
    """For a pydantic model. `prefix` distinguishes its definitions from those of other models."""
    return _of_pydantic(model.model_json_schema, model.model_validate_json, prefix)


def _of_pydantic(json_schema: Callable[..., Any], validate: Callable[[bytes], Any], prefix: str = "") -> Handler:
    """It reads JSON text, because a strict model refuses a date from a Python string."""

    def schema() -> Schema:
        from pydantic.errors import PydanticUserError
        from pydantic.json_schema import PydanticJsonSchemaWarning

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", PydanticJsonSchemaWarning)
                document = json_schema(ref_template=f"{REFS}{prefix}{{model}}")
        except (PydanticUserError, PydanticJsonSchemaWarning) as error:
            raise ConfigurationError(f"the payload has no JSON form: {error}") from error
        return document, {prefix + name: each for name, each in document.pop("$defs", {}).items()}

    return Handler(schema, lambda given: validate(msgspec.json.encode(given)))


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
    read_struct = reader(struct)

    def schema() -> Schema:
        root, definitions = schema_of(struct)
        described = definitions[root["$ref"].removeprefix(REFS)]
        if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):
            described["description"] = cls.__doc__
        for each in declared:
            if each.default is not _ABSENT:
                described["properties"][each.name]["default"] = default_as_json(each.name, each.default)
        return root, definitions

    def read(given: Any) -> Any:
        found = read_struct(given)
        values = [(each, value) for each in declared if (value := getattr(found, each.name)) is not _ABSENT]
        made = cls(**{each.argument: value for each, value in values if each.init})
        for each, value in values:
            if not each.init:
                object.__setattr__(made, each.name, value)
        return made

    return Handler(schema, read)


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


def default_as_json(name: str, default: Any) -> Any:
    """The JSON value of the default of the field `name`. Raises: ConfigurationError when it has none."""
    try:
        return strict_json_value(default)
    except NotJson as error:
        raise ConfigurationError(
            f"the default of {name!r} isn't JSON: {default!r} ({error}); use None and set it in the task"
        ) from error


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


def is_made_by_msgspec(cls: Any) -> bool:
    """Whether msgspec can make instances of a dataclass or an attrs class, and publish its defaults."""
    declared = list(_declared(cls))
    try:
        msgspec.to_builtins([each.default for each in declared if each.default is not _ABSENT])
    except Exception:  # from the user's own class
        return False
    return not needs_own_init(cls) and all(each.init for each in declared)


def reader(type_: Any) -> Callable[[Any], Any]:
    """The function that converts JSON values to a type, and sets all attributes of the dataclasses in it.

    msgspec leaves a default in the class when it makes an instance, and leaves it out when it encodes that instance.
    """
    read = functools.partial(convert, type=type_)
    try:
        classes = {each.cls for each in types_in(type_) if isinstance(each, inspect.DataclassType)}
    except (TypeError, NameError):  # making its schema says what is wrong with the type
        return read
    defaults = {
        cls: [each.name for each in _declared(cls) if each.init and hasattr(cls, each.name)]
        for cls in classes
        if "__dict__" in dir(cls)
    }
    if not any(defaults.values()):
        return read

    def read_and_complete(payload: Any) -> Any:
        value = read(payload)
        left, seen = [value], set[int]()
        while left:
            each = left.pop()
            if type(each) not in LEAVES and id(each) not in seen:
                seen.add(id(each))
                for name in defaults.get(type(each), ()):
                    each.__dict__.setdefault(name, getattr(type(each), name))
                left += _members(each)
        return value

    return read_and_complete


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
    for each in types_in(type_):
        _refuse_misread(each)
        if isinstance(each, inspect.EnumType) and issubclass(each.cls, Flag):
            _widen_flag(each.cls, definitions)
    root = _merged((root, definitions), foreign)
    root, foreign = _mapped([root, foreign], lambda node: {} if node == _ANYTHING else node)
    return root, foreign


def _widen_flag(flag: type[Flag], definitions: dict[str, Any]) -> None:
    """A Flag's values are all combinations of its members; msgspec lists only the members."""
    values = sorted(member.value for member in flag)
    for schema in definitions.values():
        if schema.get("title") == flag.__name__ and schema.get("enum") == values:
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


def _refuse_misread(found: inspect.Type) -> None:
    """Raise ConfigurationError for a type that msgspec would describe, but not read, or would read wrongly."""
    if isinstance(found, inspect.CustomType) and handler_of(found.cls) is None:  # a note has its schema
        raise ConfigurationError(f"the payload has no JSON form: type {name_of(found.cls)} is not supported")
    if isinstance(found, inspect.RawType):
        raise ConfigurationError("msgspec.Raw can't be read from a payload; use Any")
    if isinstance(found, inspect.DataclassType) and (why := needs_own_init(found.cls)):
        raise ConfigurationError(f"the dataclass {found.cls.__name__} {why}: it can't stand inside of this type")
    if isinstance(found, inspect.DictType):
        key = found.key_type.type if isinstance(found.key_type, inspect.Metadata) else found.key_type
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
