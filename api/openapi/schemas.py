"""JSON Schemas in the form that generators of clients understand, and how they become components of the document.

The payload schema of a task type comes from Redis and has its nested types in `$defs`. In the document every nested
type is a component. Types with one name share a component if they are alike. If they differ, the name of each component
begins with the name of its task type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from taskpool.access.api_key import KeySpec
from taskpool.operations.documents import Document
from taskpool.operations.flow.schedule_values import ScheduleSpec
from taskpool.operations.flow.values import NodeSpec, WorkflowSpec
from taskpool.tasks.node import NODE_NAME, After
from taskpool.types import Confirm, TaskSpec, TypeInfo
from taskpool.types.control import Filter, OperationSpec
from taskpool.types.dependency import Dependency, Parent
from taskpool.url_guard import LONGEST_URL, URL
from taskpool.validation import LONGEST_S, TASK_ID, Declared, Duration, declared
from taskpool.webhooks.endpoint import SECRET, Message, NewWebhook, TaskData, WebhookFields

from ..answers import ProblemDocument
from ..http.declarations import Operation
from ..http.submission import SUBMISSION

Schema = dict[str, Any]


_ONE: Final = frozenset({"additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"})
_MANY: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})


def _with_subschemas(schema: Schema, change: Callable[[Any], Any]) -> Schema:
    """A copy of a schema with each direct subschema changed. Defaults, examples and so on aren't subschemas."""
    changed: Schema = {}
    for key, value in schema.items():
        if key in _ONE:
            changed[key] = change(value)
        elif key in _MANY and isinstance(value, list | tuple):
            changed[key] = [change(each) for each in value]
        elif key in _NAMED and isinstance(value, dict):
            changed[key] = {name: change(each) for name, each in value.items()}
        else:
            changed[key] = value
    return changed


def as_generators_read(schema: Any, *, is_component: bool = False) -> Schema:
    """The same schema in the form that generators of clients understand.

    They take a field with a default for one that is always present, so defaults go into descriptions. They make class
    names of titles, and two equal ones break a client. They don't understand true, false, an array without `items`, and
    an `enum` of several types.
    """
    if not isinstance(schema, dict):
        return {"not": {}} if schema is False else {}
    plain = {key: value for key, value in schema.items() if key not in ("$schema", "title", "default")}
    if schema.get("default") is not None:
        default = json.dumps(schema["default"], ensure_ascii=False)
        plain["description"] = f"{schema.get('description', '')} Default: `{default}`.".strip()
    has_more = plain.get("additionalProperties")
    plain = _with_subschemas(plain, as_generators_read)
    if isinstance(has_more, bool):
        plain["additionalProperties"] = has_more
    if plain.get("type") == "array":
        plain.setdefault("items", {})
    if not is_component and len(plain.get("enum", ())) == 1:
        return {key: value for key, value in plain.items() if key != "enum"} | {"const": plain["enum"][0]}
    return _with_plain_enum(plain)


def _with_plain_enum(schema: Schema) -> Schema:
    """The schema with one `enum` for each type of its choices."""
    choices = schema.get("enum")
    if not isinstance(choices, list):
        return schema
    by_type: dict[str, list[Any]] = {}
    for choice in choices:
        by_type.setdefault(_json_type(choice), []).append(choice)
    forms = [_form(kind, values) for kind, values in by_type.items()]
    rest = {key: value for key, value in schema.items() if key not in ("enum", "type")}
    if len(forms) == 1:
        return rest | forms[0]
    any_of = {"anyOf": forms}
    return {**rest, "allOf": [*rest.get("allOf", ()), any_of]} if "anyOf" in rest else rest | any_of


_JSON_TYPES: Final = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", NoneType: "null"}
"""In the order in which they are tried: a bool is an int, too."""


def _json_type(value: Any) -> str:
    return next((name for kind, name in _JSON_TYPES.items() if isinstance(value, kind)), "object")


def _form(kind: str, values: list[Any]) -> Schema:
    if kind == "null" or (kind == "boolean" and len(values) > 1):
        return {"type": kind}
    return {"const": values[0]} if kind == "boolean" else {"type": kind, "enum": values}


REFS: Final = "#/components/schemas/"


def _pattern(pattern: re.Pattern[str] | None) -> str:
    return f"^{pattern.pattern}$" if pattern else ""


_A_TARGET: Final = {
    "maxLength": LONGEST_URL,
    "pattern": _pattern(re.compile(re.sub(r"\?P<[a-z]+>", "", URL.pattern))),  # JSON Schema names no groups
    "examples": ["https://hooks.example/in"],
}


def _limits(field: Declared) -> Schema:
    """What a field means and takes, besides its type."""
    about = field.about
    limits: Schema = {"description": about.description}
    if about.default and about.default != "required":
        limits |= {"description": f"{about.description} Default: {about.default}.", "default": None}
    if field.is_list:
        limits |= {"maxItems": about.most} | ({"minItems": about.least} if about.least else {})
        if get_args(field.type) == (str,):
            each = {"enum": [*about.choices]} if about.choices else {"pattern": _pattern(about.pattern)}
            limits["items"] = {"type": "string", **each}
        elif get_args(field.type) == (Parent,):
            limits["items"] = {
                "anyOf": [{"type": "string", "pattern": _pattern(TASK_ID)}, {"$ref": REFS + "Dependency"}]
            }
    elif about.least is not None:
        limits |= {"minimum": about.least, "maximum": about.most}
    if about.is_url:
        limits |= _A_TARGET
    elif about.pattern is not None and not field.is_list:
        limits["pattern"] = _pattern(about.pattern)
    if field.type is str and about.most != LONGEST_S:
        limits["maxLength"] = about.most
    return limits | ({"examples": [*about.examples]} if about.examples else {})


def _rules(fields: Sequence[Declared]) -> Iterator[Schema]:
    """The combinations of fields that are refused."""
    given = {each.name: _given(each) for each in fields}
    for each in fields:
        for other in each.about.excludes:
            yield {"properties": given[other] | given[each.name], "required": [other, each.name]}
    for needed in dict.fromkeys(each.about.needs for each in fields if each.about.needs):
        missing = {needed: {"type": "null"}}
        names = [each.name for each in fields if each.about.needs == needed]
        if len(names) == 1:
            yield {"properties": given[names[0]] | missing, "required": names}
        else:
            forms = [{"properties": given[name], "required": [name]} for name in names]
            yield {"properties": missing, "anyOf": forms}


def _given(field: Declared) -> Schema:
    """The schema of a field that isn't null and hasn't its default."""
    if field.is_list:
        return {field.name: {"type": "array"}}
    if get_origin(field.type) is Literal and field.default is not None:
        return {field.name: {"enum": [each for each in get_args(field.type) if each != field.default]}}
    return {
        field.name: {"type": ["number", "string"] if field.type == Duration else _JSON_TYPES.get(field.type, "string")}
    }


_A_SECRET: Final = {
    "description": "The signing secret: `whsec_` and 24 to 64 bytes in base64. Default: a new one.",
    "pattern": _pattern(SECRET),
    "writeOnly": True,
}
_A_BOUND_ADMIN: Final = {
    "properties": {"scopes": {"contains": {"const": "admin"}}},
    "required": ["scopes"],
    "anyOf": [
        {"properties": {name: {"type": kind}}, "required": [name]}
        for name, kind in (("project", "string"), ("types", "array"), ("queues", "array"))
    ],
}


_A_TASK_OR_A_MAP: Final = {
    "oneOf": [
        {"properties": {"task": {"type": "object"}}, "required": ["task"]},
        {"properties": {"map": {"type": "array"}}, "required": ["map"]},
    ]
}


_ONE_OF_TIMES: Final = {
    "anyOf": [
        {"properties": {"cron": {"type": "string"}}, "required": ["cron"]},
        {"properties": {"every": {"type": ["number", "string"]}}, "required": ["every"]},
        {"properties": {"at": {"type": "string"}}, "required": ["at"]},
    ]
}


_AFTER: Final = {
    **next(_limits(each) for each in declared(NodeSpec) if each.name == "after"),
    "items": {
        "anyOf": [{"type": "string", "pattern": _pattern(NODE_NAME)}, {"$ref": "#/components/schemas/After"}],
    },
}


def _all_limits(kind: type) -> Mapping[str, Schema]:
    return {each.name: _limits(each) for each in declared(kind)}


FIELDS: Final[Mapping[str, tuple[Mapping[str, Schema], Sequence[Schema]]]] = {
    "TaskSpec": (_all_limits(TaskSpec), [{"not": rule} for rule in _rules(declared(TaskSpec))]),
    "Confirm": (_all_limits(Confirm), ()),
    "WorkflowSpec": (_all_limits(WorkflowSpec), ()),
    "NodeSpec": ({**_all_limits(NodeSpec), "after": _AFTER}, [_A_TASK_OR_A_MAP]),
    "After": (_all_limits(After), ()),
    "ScheduleSpec": (
        _all_limits(ScheduleSpec),
        [_ONE_OF_TIMES, *({"not": rule} for rule in _rules(declared(ScheduleSpec)))],
    ),
    "KeySpec": (_all_limits(KeySpec), [{"not": _A_BOUND_ADMIN}]),
    "NewWebhook": ({**_all_limits(NewWebhook), "secret": _A_SECRET}, ()),
    "WebhookFields": (_all_limits(WebhookFields), ()),
    "Dependency": (
        {**_all_limits(Dependency), "node": {**_all_limits(Dependency).get("node", {}), "readOnly": True}},
        [{"oneOf": [{"required": [name], "properties": {name: {"type": "string"}}} for name in ("id", "workflow")]}],
    ),
    "NewSecret": ({"secret": _A_SECRET}, ()),
    "Filter": (_all_limits(Filter), ()),
    "OperationSpec": (_all_limits(OperationSpec), ()),
    "ListQuery": (_all_limits(Filter), ()),
}
"""The fields of each body, and the rules for several fields at once."""


def with_limits(name: str, schema: Schema) -> Schema:
    """The schema of a body, which has the types of its fields, with descriptions and limits."""
    if name not in FIELDS:
        return schema
    fields, rules = FIELDS[name]
    properties = {field: _narrowed(plain, fields.get(field, {})) for field, plain in schema["properties"].items()}
    return {**schema, "properties": properties, **({"allOf": rules} if rules else {})}


def _narrowed(schema: Schema, limits: Schema) -> Schema:
    """The schema of a field with these limits. If the field may be null, the limits are those of the other form."""
    limits = dict(limits)
    about: Schema = {name: limits.pop(name) for name in ("description", "examples", "readOnly") if name in limits}
    if "anyOf" not in schema:
        return schema | limits | about
    forms = [
        form | {name: value for name, value in limits.items() if _concerns(name, form)} for form in schema["anyOf"]
    ]
    return {**schema, "anyOf": forms, **about}


_OF_TEXTS: Final = ("pattern", "maxLength")
_OF_NUMBERS: Final = ("minimum", "maximum")


def _concerns(limit: str, form: Schema) -> bool:
    """Whether a form of a field's values, a schema with a type, has this limit."""
    kind = form.get("type")
    if kind in (None, "null") or (limit in _OF_TEXTS and kind == "number"):
        return False
    return not (limit in _OF_NUMBERS and kind == "string")


class Schemas:
    """The schemas of the requests and answers of operations. `components` are those that they refer to, by name."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        wanted = list(dict.fromkeys([ProblemDocument, TaskSpec, Message, *_types(operations)]))
        schemas, components = msgspec.json.schema_components(wanted, ref_template=REFS + "{name}")
        documents = {cls.__name__ for cls in _subclasses(Document)}
        queries = {operation.query.__name__ for operation in operations if operation.query is not None}
        for name in documents | queries | {TaskData.__name__}:
            for member, schema in components.get(name, {}).get("properties", {}).items():
                components[name]["properties"][member] = _without_null(schema)
        self._queries: dict[str, dict[str, Schema]] = {
            name: with_limits(name, components.pop(name))["properties"] for name in queries
        }
        new_names = {name: name.removesuffix("Document") for name in documents}

        specs = {REFS + "TaskSpec": SUBMISSION["$ref"]}
        for name in components.keys() & {"NodeSpec", "ScheduleSpec"}:  # their tasks are of any known type
            components[name] = with_refs(components[name], lambda ref: specs.get(ref, ref))

        def renamed(ref: str) -> str:
            name = ref.removeprefix(REFS)
            return REFS + new_names.get(name, name)

        self._of = {kind: with_refs(schema, renamed) for kind, schema in zip(wanted, schemas, strict=True)}
        self.components: dict[str, Schema] = {}
        for name, schema in components.items():
            plain = as_generators_read(with_limits(name, with_refs(schema, renamed)), is_component=True)
            self.components[new_names.get(name, name)] = plain | {"title": new_names.get(name, name)}

    def of(self, kind: Any) -> Schema:
        """The schema of the type that an operation declares as a body."""
        if isinstance(kind, tuple):
            return {"anyOf": [self.of(each) for each in kind]}
        return SUBMISSION if kind is TaskSpec else self._of[kind]

    def parameters(self, query: type[msgspec.Struct]) -> Mapping[str, Schema]:
        """The schemas of the query parameters that `query` reads."""
        return self._queries[query.__name__]


def with_refs(schema: Any, move: Callable[[str], str]) -> Any:
    """A copy of a schema in which each reference is what `move` makes of it."""
    if not isinstance(schema, dict):
        return schema
    moved = _with_subschemas(schema, lambda each: with_refs(each, move))
    if isinstance(schema.get("$ref"), str):
        moved["$ref"] = move(schema["$ref"])
    discriminator = schema.get("discriminator")
    if isinstance(discriminator, dict) and isinstance(discriminator.get("mapping"), dict):
        mapping = {name: move(ref) for name, ref in discriminator["mapping"].items()}
        moved["discriminator"] = discriminator | {"mapping": mapping}
    return moved


def _types(operations: Sequence[Operation]) -> Iterator[Any]:
    for operation in operations:
        if operation.query is not None:
            yield operation.query
        if operation.body is not None:
            yield operation.body
        for answer in operation.answers.values():
            yield from answer.events.values()
            yield from answer.body if isinstance(answer.body, tuple) else [answer.body] if answer.body else ()


def _subclasses(cls: type[Document]) -> Iterator[type[Document]]:
    for below in cls.__subclasses__():
        yield below
        yield from _subclasses(below)


def _without_null(schema: Schema) -> Schema:
    """The schema of a member that is left out instead of being null."""
    if "default" not in schema or schema["default"] is not None:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    forms: list[Schema] = [each for each in schema["anyOf"] if each != {"type": "null"}]
    return rest | (forms[0] if len(forms) == 1 else {"anyOf": forms})


_PLACES: Final = ("$defs", "definitions")
_LOCAL: Final = re.compile(r"#/(?:\$defs|definitions)/([^/]+)(.*)", re.DOTALL)
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]")

Key = tuple[str, str]
"""A nested type: the task type that has it, and its name there."""


def payload_name(info: TypeInfo) -> str:
    """The component of a type's payload."""
    return f"{info.name}.payload"


def hoisted(types: Sequence[TypeInfo], taken: Collection[str]) -> dict[str, Schema]:
    """The components of the payloads of these types, and of all types nested in them. `taken`: other names."""
    nested = {(info.name, name): schema for info in types for name, schema in _definitions(info.schema).items()}
    names = _names(types, nested, {*taken, *map(payload_name, types)})
    components: dict[str, Schema] = {}
    for info in types:
        definitions = _definitions(info.schema)
        move = _mover(info, names)
        for name in definitions:
            components[names[info.name, name]] = _component(definitions[name], names[info.name, name], move)
        root = {key: value for key, value in info.schema.items() if key not in _PLACES}
        components[payload_name(info)] = _component(root, payload_name(info), move)
    return components


def _definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for place in _PLACES for name, each in dict(schema.get(place) or {}).items()}


def _names(types: Sequence[TypeInfo], nested: Mapping[Key, Any], taken: Collection[str]) -> dict[Key, str]:
    """The name of the component for each nested type."""
    prints = {info.name: _fingerprints(_definitions(info.schema)) for info in types}
    alike: dict[str, set[str]] = {}
    for type_name, name in nested:
        alike.setdefault(name, set()).add(prints[type_name][name])
    used = {_folded(name): "" for name in taken}
    found: dict[Key, str] = {}
    for type_name, name in nested:
        content = name + prints[type_name][name]
        candidates = [f"{type_name}.{name}", *(f"{type_name}.{name}.{number}" for number in range(2, 2 + len(nested)))]
        if len(alike[name]) == 1:
            candidates.insert(0, name)
        cleaned = [_NOT_IN_NAMES.sub("_", candidate) for candidate in candidates]
        found[type_name, name] = next(
            (each for each in cleaned if used.get(_folded(each), content) == content), cleaned[-1]
        )
        used[_folded(found[type_name, name])] = content
    return found


def _folded(name: str) -> str:
    """The letters and digits of a name. Generators make the class name `ParcelsSend` of `parcels.send`, so names must
    differ in these."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _fingerprints(definitions: Mapping[str, Any]) -> dict[str, str]:
    """For each type, its schema and those that it refers to, as one text. It tells types of one name apart."""
    refs = {name: set(_refs(schema)) & definitions.keys() for name, schema in definitions.items()}

    def reached(name: str) -> set[str]:
        seen, left = set[str](), [name]
        while left:
            each = left.pop()
            if each not in seen:
                seen.add(each)
                left += refs[each]
        return seen

    return {
        name: json.dumps({each: definitions[each] for each in reached(name)}, sort_keys=True, default=str)
        for name in definitions
    }


def _refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _refs(value)
    elif isinstance(node, list):
        for value in node:
            yield from _refs(value)
    elif isinstance(node, str) and (match := _LOCAL.fullmatch(node)):
        yield _unescaped(match[1])


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def _mover(info: TypeInfo, names: Mapping[Key, str]) -> Callable[[str], str]:
    """How a reference within the schema of this type is written in the document."""

    def move(ref: str) -> str:
        if (match := _LOCAL.fullmatch(ref)) and (info.name, _unescaped(match[1])) in names:
            return REFS + names[info.name, _unescaped(match[1])] + match[2]
        if ref == "#" or ref.startswith("#/"):
            return REFS + payload_name(info) + ref.removeprefix("#")
        return ref

    return move


def _component(schema: Any, name: str, move: Callable[[str], str]) -> Schema:
    return {**as_generators_read(with_refs(schema, move), is_component=True), "title": name}
