"""Defaults of dataclasses: when msgspec makes an instance, it leaves defaults in the class, and when it encodes that
instance, it leaves them out. A payload's dataclasses get all their attributes here, as their `__init__` would set them.

Types that msgspec can't read, or would read wrongly: paths, pydantic's types, collections, unions, some dataclasses.

msgspec hands a value of a type that it doesn't know to a hook. So such an annotation is replaced by a stand-in: a
subclass of `Custom` that knows its JSON Schema and how to read its values. `annotations.adapted` decides what is
replaced.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Flag
from pathlib import PurePath
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

from taskpool.errors import ConfigurationError
from taskpool.tasks.payload.encode import is_pydantic, is_pydantic_secret, secret_from, strict_json_value
from taskpool.tasks.payload.faults import Misfit, NotJson


def completed(convert: Callable[[Any], Any], type_: Any) -> Callable[[Any], Any]:
    """`convert`, with the dataclasses completed that `type_` leads to. Types without any pay nothing."""
    names = {cls: _names(cls) for cls in _dataclasses(type_)}
    if not any(names.values()):
        return convert

    def convert_and_complete(payload: Any) -> Any:
        value = convert(payload)
        _complete(value, names)
        return value

    return convert_and_complete


def _names(cls: type) -> list[str]:
    """The fields whose default is an attribute of the class."""
    fields: dict[str, Any] = getattr(cls, "__dataclass_fields__", {})
    has_slots = "__dict__" not in dir(cls)
    return [] if has_slots else [name for name, each in fields.items() if hasattr(cls, name) and each.init]


def _complete(value: Any, names: dict[type, list[str]]) -> None:
    left, seen = [value], set[int]()
    while left:
        each = left.pop()
        kind = type(each)
        if kind in (str, int, float, bool, type(None)) or id(each) in seen:
            continue
        seen.add(id(each))
        for name in names.get(kind, ()):
            if name not in each.__dict__:
                each.__dict__[name] = getattr(kind, name)
        if isinstance(each, list | tuple | set | frozenset):
            left += each
        elif isinstance(each, dict):
            left += each.values()
        elif isinstance(each, msgspec.Struct):
            left += [getattr(each, name) for name in each.__struct_fields__]
        elif is_dataclass(each) or hasattr(kind, "__attrs_attrs__"):
            attributes = getattr(kind, "__dataclass_fields__", None) or [a.name for a in kind.__attrs_attrs__]
            left += [getattr(each, name, None) for name in attributes]


def _dataclasses(type_: Any) -> Iterator[type]:
    """The dataclasses that a type leads to."""
    try:
        left: list[Any] = [inspect.type_info(type_)]
    except (TypeError, NameError):  # its schema says what is wrong with it
        return
    seen = set[int]()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, inspect.DataclassType) and hasattr(each.cls, "__dataclass_fields__"):
            yield each.cls
        for name in ("type", "item_type", "key_type", "value_type"):
            if isinstance(below := getattr(each, name, None), inspect.Type):
                left.append(below)
        left += [below for name in ("types", "item_types") for below in getattr(each, name, ())]
        left += [field.type for field in getattr(each, "fields", ())]


REFS: Final = "#/$defs/"

_ANYTHING: Final = {"$comment": "taskpool: any value"}
_ABSENT: Final = object()

_COLLECTIONS: Final[dict[type, tuple[Any, Callable[[Any, tuple[Any, ...]], Any]]]] = {
    collections.deque: (list, lambda value, _: collections.deque(value)),
    collections.OrderedDict: (dict, lambda value, _: collections.OrderedDict(value)),
    collections.defaultdict: (dict, lambda value, of: collections.defaultdict(_factory(of), value)),
    collections.Counter: (dict, lambda value, _: collections.Counter(value)),
    collections.ChainMap: (dict, lambda value, _: collections.ChainMap(value)),
    collections.UserDict: (dict, lambda value, _: collections.UserDict(value)),
    collections.UserList: (list, lambda value, _: collections.UserList(value)),
    types.MappingProxyType: (dict, lambda value, _: types.MappingProxyType(value)),
}
_BOOLEANS: Final = {"true": True, "false": False}
_PLAIN: Final = (str, int, float)
_FACTORIES: Final = (int, float, str, list, dict, set, bool)


class _AnyInstance(type):
    """msgspec checks that what its hook returns is an instance of the type: of a stand-in, everything is."""

    def __instancecheck__(cls, instance: object) -> bool:
        return True


class Custom(metaclass=_AnyInstance):
    """A stand-in for an annotation. `__name__` is shown in messages."""

    __slots__ = ()

    @classmethod
    def schema(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """Its JSON Schema, and the definitions that this refers to."""
        raise NotImplementedError

    @classmethod
    def read(cls, value: Any) -> Any:
        """The value of a JSON value. Raises: ValueError."""
        raise NotImplementedError

    @classmethod
    def inner(cls) -> tuple[Any, ...]:
        """The types that msgspec reads on its behalf."""
        return ()


def is_custom(type_: Any) -> bool:
    """Whether msgspec leaves this type to the hooks below."""
    origin = typing.get_origin(type_) or type_
    if not isinstance(origin, type):
        return False
    return (
        issubclass(origin, Custom | PurePath)
        or is_pydantic(origin)
        or is_pydantic_secret(origin)
        or origin in _COLLECTIONS
        or _plain_base(origin) is not None
    )


def stand_in(name: str, **methods: Any) -> type[Custom]:
    """A new subclass of `Custom` with these class methods."""
    namespace = {"__slots__": (), **{key: classmethod(each) for key, each in methods.items()}}
    return cast("type[Custom]", _AnyInstance(name, (Custom,), namespace))


def keyed_dict(annotation: Any, key: Any, value: Any) -> type[Custom]:
    """A dict whose keys msgspec would leave as texts, as paths or booleans."""
    plain = dict[str, value]

    def read_key(text: str) -> Any:
        return convert(_BOOLEANS.get(text, text) if key is bool else text, key)

    def read(_: Any, given: Any) -> Any:
        return {read_key(name): each for name, each in convert(given, plain).items()}

    return stand_in(_name_of(annotation), schema=lambda _: schema_of(plain), read=read, inner=lambda _: (plain,))


def collection(annotation: Any, plain: Any) -> type[Custom]:
    """A collection of the standard library that is read as the list or dict type `plain`."""
    make, arguments = _COLLECTIONS[typing.get_origin(annotation) or annotation][1], typing.get_args(annotation)
    return stand_in(
        _name_of(annotation),
        schema=lambda _: schema_of(plain),
        read=lambda _, given: make(convert(given, plain), arguments),
        inner=lambda _: (plain,),
    )


def union(annotation: Any, members: tuple[Any, ...]) -> type[Custom]:
    """A union with members that msgspec doesn't know. JSON must tell them apart: a text and an object, for example.

    Raises: ConfigurationError when it can't.
    """
    known = [each for each in members if not is_custom(each)]
    others = [each for each in members if is_custom(each)]
    groups = [*([functools.reduce(lambda a, b: a | b, known)] if known else []), *others]
    kinds: dict[str, Any] = {}
    for group in groups:
        for kind in _kinds(*schema_of(group)):
            if kind in kinds:
                raise ConfigurationError(
                    f"{_name_of(annotation)}: JSON doesn't tell {_name_of(kinds[kind])} from {_name_of(group)}: "
                    f"both are {kind}; use one of them, or pydantic models with a discriminator"
                )
            kinds[kind] = group

    def read(_: Any, given: Any) -> Any:
        wanted = kinds.get(_kind_of(given), kinds.get("any value"))
        if wanted is None:
            raise ValueError(f"Expected {' or '.join(kinds)}, got `{type(given).__name__}`")
        return convert(given, wanted)

    def schema(_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        definitions: dict[str, Any] = {}
        return {"anyOf": [merged(*schema_of(group), definitions) for group in groups]}, definitions

    return stand_in(_name_of(annotation), schema=schema, read=read, inner=lambda _: tuple(groups))


def by_pydantic(annotation: Any, *, strict: bool | None) -> type[Custom]:
    """What only pydantic reads: its dataclasses, its own types, its validators, its discriminated unions."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError
    from pydantic.json_schema import PydanticJsonSchemaWarning

    def schema(_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PydanticJsonSchemaWarning)
            try:
                found = adapter.json_schema(ref_template=REFS + "{model}")
            except (PydanticUserError, PydanticJsonSchemaWarning) as error:
                raise ConfigurationError(f"the payload has no JSON form: {error}") from error
        return found, found.pop("$defs", {})

    def read(_: Any, given: Any) -> Any:
        return adapter.validate_json(msgspec.json.encode(given), strict=strict)

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except PydanticUserError as error:
        raise ConfigurationError(f"{_name_of(annotation)}: {str(error).splitlines()[0]}") from error
    return stand_in(_name_of(annotation), schema=schema, read=read)


def fields_of(cls: Any, hints: Mapping[str, Any]) -> type[Custom]:
    """A dataclass (or an attrs class) that is made by its own `__init__`, of fields with these annotations.

    A field that `__init__` doesn't take may be given as well, and is set afterwards.
    """
    declared = list(_declared(cls))
    struct = msgspec.defstruct(
        cls.__name__,
        [
            (name, hints[name], msgspec.NODEFAULT if is_required else msgspec.field(default_factory=lambda: _ABSENT))
            for name, _, _, _, is_required in declared
        ],
        kw_only=True,
        module=cls.__module__,
    )
    convert_struct = completed(functools.partial(convert, type_=struct), struct)

    def schema(_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        root, definitions = schema_of(struct)
        described = definitions[root["$ref"].removeprefix(REFS)]
        if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):
            described["description"] = cls.__doc__
        for name, _argument, _is_init, default, _is_required in declared:
            if default is not _ABSENT:
                try:
                    described["properties"][name]["default"] = strict_json_value(default)
                except NotJson as error:
                    raise ConfigurationError(f"the default of {name!r} isn't JSON: {error}") from error
        return root, definitions

    def read(_: Any, given: Any) -> Any:
        found = convert_struct(given)
        values = [(*each[:3], getattr(found, each[0])) for each in declared]
        made = cls(**{argument: value for _, argument, init, value in values if init and value is not _ABSENT})
        for name, _argument, is_init, value in values:
            if not is_init and value is not _ABSENT:
                object.__setattr__(made, name, value)
        return made

    return stand_in(cls.__name__, schema=schema, read=read, inner=lambda _: (struct,))


def _declared(cls: Any) -> typing.Iterator[tuple[str, str, bool, Any, bool]]:
    """Of each field: its name, the name of its argument, whether `__init__` takes it, its default, and whether it
    must be given."""
    if dataclasses.is_dataclass(cls):
        for each in cls.__dataclass_fields__.values():
            kind = each._field_type.name  # type: ignore[attr-defined]
            if kind != "_FIELD_CLASSVAR":
                has_none = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
                default = _ABSENT if each.default is dataclasses.MISSING else each.default
                yield each.name, each.name, each.init, default, has_none and each.init
        return
    for each in cls.__attrs_attrs__:
        has_factory = hasattr(each.default, "factory")
        has_none = type(each.default).__name__ == "_Nothing"
        default = _ABSENT if has_none or has_factory else each.default
        yield each.name, each.alias or each.name.lstrip("_"), each.init, default, has_none and each.init


def convert(value: Any, type_: Any) -> Any:
    """A JSON value as `type_`, strictly. Raises: msgspec.ValidationError."""
    return msgspec.convert(value, type_, strict=True, str_keys=True, dec_hook=decode_custom)


def decode_custom(type_: Any, value: Any) -> Any:
    """msgspec's hook: the value of a type that it doesn't know."""
    try:
        return _decoded(type_, value)
    except msgspec.ValidationError as error:  # as it is, it would lose the place above it
        raise Misfit(str(error)) from error


def _decoded(type_: Any, value: Any) -> Any:
    if type_ is object:
        return value
    origin = typing.get_origin(type_) or type_
    if issubclass(origin, Custom):
        return origin.read(value)
    if is_pydantic(type_):
        return type_.model_validate_json(msgspec.json.encode(value))
    if origin in _COLLECTIONS:
        return _COLLECTIONS[origin][1](convert(value, plain_collection(type_)), typing.get_args(type_))
    if (base := _plain_base(origin)) is not None:
        return origin(msgspec.convert(value, base, strict=True))
    if isinstance(value, str) and issubclass(origin, PurePath):
        return type_(value)
    if isinstance(value, str) and is_pydantic_secret(type_):
        return secret_from(type_, value)
    raise ValueError(f"Expected `str`, got `{type(value).__name__}`")


def schema_of(type_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON Schema of a type, and the definitions that it refers to.

    Raises: ConfigurationError for a type that has no JSON form.
    """
    foreign: dict[str, Any] = {}

    def schema_of_custom(other: Any) -> dict[str, Any]:
        origin = typing.get_origin(other) or other
        if is_pydantic(other):
            prefix = "".join(c if c.isalnum() or c in "._" else "_" for c in f"{other.__module__}.{other.__qualname__}")
            document = pydantic_schema(other, f"{REFS}{prefix}.")
            foreign.update({f"{prefix}.{name}": schema for name, schema in document.pop("$defs", {}).items()})
            return document
        if other is object:
            return dict(_ANYTHING)
        if isinstance(origin, type):
            if issubclass(origin, Custom):
                return merged(*origin.schema(), foreign) or dict(_ANYTHING)
            if origin in _COLLECTIONS:
                return merged(*schema_of(plain_collection(other)), foreign)
            if (base := _plain_base(origin)) is not None:
                return msgspec.json.schema(base)
            if issubclass(origin, PurePath):
                return {"type": "string"}
            if is_pydantic_secret(origin):
                return {"type": "string", "writeOnly": True}
        raise NotImplementedError

    try:
        (root,), definitions = msgspec.json.schema_components(
            [type_], schema_hook=schema_of_custom, ref_template=REFS + "{name}"
        )
    except (TypeError, NameError) as error:
        # msgspec explains hooks of its own at length; the last line says which type it is about.
        raise ConfigurationError(f"the payload has no JSON form: {str(error).splitlines()[-1]}") from error
    except RecursionError:
        raise ConfigurationError("the payload has no JSON form: a type alias refers to itself; use Any") from None
    except KeyError as error:  # msgspec's, for a class below its own stand-in
        raise ConfigurationError(
            f"the payload has no JSON form: {error} refers to itself and has fields that msgspec can't read"
        ) from error
    _widen_flags(type_, definitions)
    root = merged(root, definitions, foreign)
    return _with_anything(root), _with_anything(foreign)


def pydantic_schema(model: Any, refs: str) -> dict[str, Any]:
    """The JSON Schema of a pydantic model. Raises: ConfigurationError when it has none."""
    from pydantic.errors import PydanticUserError
    from pydantic.json_schema import PydanticJsonSchemaWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PydanticJsonSchemaWarning)
            schema: dict[str, Any] = model.model_json_schema(ref_template=refs + "{model}")
            return schema
    except (PydanticUserError, PydanticJsonSchemaWarning) as error:
        raise ConfigurationError(f"the payload has no JSON form: {error}") from error


def merged(root: dict[str, Any], more: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Add `more`, which `root` refers to, to `definitions`; a name that means something else there gets a number."""
    renamed = {name: name for name in more}
    for name, schema in more.items():
        number = 2
        while renamed[name] in definitions and definitions[renamed[name]] != schema:
            renamed[name] = f"{name}{number}"
            number += 1
    changed = {name: new for name, new in renamed.items() if name != new}
    if changed:
        root, more = _refer_anew([root, more], changed)
    definitions.update({renamed[name]: schema for name, schema in more.items()})
    return root


def refuse_lossy(type_: Any, above: tuple[Any, ...] = ()) -> None:
    """Refuse what msgspec would read without a fault, but wrongly. Stand-ins have replaced the rest.

    Raises: ConfigurationError.
    """
    root = inspect.type_info(type_)
    left: list[Any] = [root]
    seen = set[int]()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, inspect.CustomType) and each.cls not in above:
            for inner in _inside(each.cls):
                refuse_lossy(inner, (*above, each.cls))
        if isinstance(each, inspect.DictType):
            _refuse_key(each.key_type)
        if isinstance(each, inspect.RawType):
            raise ConfigurationError("msgspec.Raw can't be read from a payload; use Any")
        if isinstance(each, inspect.DataclassType) and (why := why_own(each.cls)):
            raise ConfigurationError(f"the dataclass {each.cls.__name__} {why}: it can't stand inside of this type")
        for name in ("type", "item_type", "key_type", "value_type"):
            if isinstance(below := getattr(each, name, None), inspect.Type):
                left.append(below)
        left += [below for name in ("types", "item_types") for below in getattr(each, name, ())]
        left += [field.type for field in getattr(each, "fields", ())]


def why_own(cls: Any) -> str:
    """Why a dataclass can't be left to msgspec; empty when it can."""
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
        msgspec.to_builtins([default for *_, default, _ in _declared(cls) if default is not _ABSENT])
    except Exception:  # of the user's own class
        return False
    return True


def _inside(custom: Any) -> tuple[Any, ...]:
    """The types that msgspec reads inside of one that it doesn't know."""
    if isinstance(custom, type) and issubclass(custom, Custom):
        return custom.inner()
    plain = plain_collection(custom)
    return () if plain is None else (plain,)


def _refuse_key(key: inspect.Type) -> None:
    key = key.type if isinstance(key, inspect.Metadata) else key
    lossy = (inspect.CustomType, inspect.BoolType, inspect.CollectionType, inspect.DictType, inspect.TupleType)
    if isinstance(key, lossy) and not (isinstance(key, inspect.CustomType) and key.cls is object):
        name = _name_of(getattr(key, "cls", type(key)))
        raise ConfigurationError(f"keys of the type {name} can't be read here; use texts, numbers, dates or Enums")


def _widen_flags(type_: Any, definitions: dict[str, Any]) -> None:
    """A Flag's values are all combinations; msgspec lists the single ones."""
    for cls in _flags(inspect.type_info(type_)):
        values = sorted(member.value for member in cls)
        for schema in definitions.values():
            if schema.get("title") == cls.__name__ and schema.get("enum") == values:
                del schema["enum"]
                schema |= {"type": "integer", "minimum": 0}


def _flags(root: inspect.Type) -> typing.Iterator[Any]:
    left: list[Any] = [root]
    seen = set[int]()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, inspect.EnumType) and issubclass(each.cls, Flag):
            yield each.cls
        for name in ("type", "item_type", "key_type", "value_type"):
            if isinstance(below := getattr(each, name, None), inspect.Type):
                left.append(below)
        left += [below for name in ("types", "item_types") for below in getattr(each, name, ())]
        left += [field.type for field in getattr(each, "fields", ())]


def _plain_base(cls: type) -> type | None:
    """Of a subclass of a text or number that is nothing else: what it is in JSON."""
    if cls in _PLAIN or cls is bool or hasattr(cls, "__members__") or is_pydantic_secret(cls):
        return None
    return next((base for base in _PLAIN if issubclass(cls, base)), None)


def plain_collection(type_: Any) -> Any:
    """The list or dict type that stands for a collection; None when it isn't one of those that msgspec doesn't know."""
    origin, arguments = typing.get_origin(type_) or type_, typing.get_args(type_)
    if origin not in _COLLECTIONS:
        return None
    if origin is collections.Counter:
        return dict[arguments[0] if arguments else str, int]  # type: ignore[misc]
    plain = _COLLECTIONS[origin][0]
    return plain[arguments] if arguments else plain


def _factory(arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 2:
        return None
    origin = typing.get_origin(arguments[1]) or arguments[1]
    return origin if origin in _FACTORIES else None


def _kinds(schema: dict[str, Any], definitions: dict[str, Any]) -> set[str]:
    """What a value of this schema is in JSON."""
    if "$ref" in schema:
        return _kinds(definitions[schema["$ref"].removeprefix(REFS)], definitions)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return set().union(*(_kinds(each, definitions) for each in schema[word]))
    found = schema.get("type")
    if isinstance(found, list):
        return {"number" if each == "integer" else each for each in found}
    if found is not None:
        return {"number" if found == "integer" else found}
    values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())]
    return {_kind_of(each) for each in values} or {"any value"}


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "any value")


def _refer_anew(node: Any, renamed: dict[str, str]) -> Any:
    if isinstance(node, dict):
        anew = {key: _refer_anew(value, renamed) for key, value in node.items()}
        if isinstance(reference := anew.get("$ref"), str) and reference.removeprefix(REFS) in renamed:
            anew["$ref"] = REFS + renamed[reference.removeprefix(REFS)]
        return anew
    return [_refer_anew(each, renamed) for each in node] if isinstance(node, list) else node


def _with_anything(node: Any) -> Any:
    """A copy in which the marks of `object` are schemas for any value. (msgspec takes an empty schema for none.)"""
    if isinstance(node, dict):
        return {} if node == _ANYTHING else {key: _with_anything(value) for key, value in node.items()}
    return [_with_anything(each) for each in node] if isinstance(node, list) else node


def _name_of(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
