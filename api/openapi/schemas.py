"""From the types of declarations to schemas, and how a schema's references are moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from api.answers import ProblemDocument
from api.openapi.fields import with_limits
from api.openapi.operation import Operation
from api.openapi.readable import as_generators_read
from api.submission import SUBMISSION
from taskpool.document_types import Document
from taskpool.types import TaskSpec
from taskpool.webhooks.message import Message, TaskData

Schema = dict[str, Any]

REFS: Final = "#/components/schemas/"
_ONE: Final = frozenset({"additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"})
_MANY: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})


class Schemas:
    """The schemas of all that some operations take and answer. `components` is what they refer to, by name."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        wanted = list(dict.fromkeys([ProblemDocument, TaskSpec, Message, *_types(operations)]))
        schemas, components = msgspec.json.schema_components(wanted, ref_template=REFS + "{name}")
        documents = {cls.__name__ for cls in _subclasses(Document)}
        queries = {operation.query.__name__ for operation in operations if operation.query is not None}
        for name in documents | queries | {TaskData.__name__}:
            for member, schema in components.get(name, {}).get("properties", {}).items():
                components[name]["properties"][member] = _without_null(schema)
        self._queries: dict[str, dict[str, Schema]] = {name: components.pop(name)["properties"] for name in queries}
        new_names = {name: name.removesuffix("Document") for name in documents}

        def renamed(ref: str) -> str:
            name = ref.removeprefix(REFS)
            return REFS + new_names.get(name, name)

        self._of = {kind: with_refs(schema, renamed) for kind, schema in zip(wanted, schemas, strict=True)}
        self.components: dict[str, Schema] = {}
        for name, schema in components.items():
            plain = as_generators_read(with_limits(name, with_refs(schema, renamed)), is_component=True)
            self.components[new_names.get(name, name)] = plain | {"title": new_names.get(name, name)}

    def of(self, kind: Any) -> Schema:
        """The schema of what an operation declares as its body, or as that of an answer."""
        if isinstance(kind, tuple):
            return {"anyOf": [self.of(each) for each in kind]}
        return SUBMISSION if kind is TaskSpec else self._of[kind]

    def parameters(self, query: type[msgspec.Struct]) -> Mapping[str, Schema]:
        """The schemas of the query parameters that `query` reads."""
        return self._queries[query.__name__]


def with_refs(schema: Any, move: Callable[[str], str]) -> Any:
    """A copy of a schema in which each reference is what `move` makes of it.

    It goes where schemas stand: a default or an example that looks like a reference isn't one.
    """
    if not isinstance(schema, dict):
        return schema
    moved: Schema = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str):
            moved[key] = move(value)
        elif key in _ONE:
            moved[key] = with_refs(value, move)
        elif key in _MANY and isinstance(value, list):
            moved[key] = [with_refs(each, move) for each in value]
        elif key in _NAMED and isinstance(value, dict):
            moved[key] = {name: with_refs(each, move) for name, each in value.items()}
        elif key == "discriminator" and isinstance(value, dict) and isinstance(value.get("mapping"), dict):
            moved[key] = value | {"mapping": {name: move(ref) for name, ref in value["mapping"].items()}}
        else:
            moved[key] = value
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
    """The schema of a member that isn't there when it would be null."""
    if "default" not in schema or schema["default"] is not None:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    plain: Schema = next(each for each in schema["anyOf"] if each != {"type": "null"})
    return rest | plain
