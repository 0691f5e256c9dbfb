"""Reads submissions from JSON documents: the bodies of requests, and the files of commands.

Only the types of fields are checked here. A document with faults is refused with all of them, each with its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo, replace

from taskpool.errors import FieldError, InvalidTask
from taskpool.operations.flow.graph import MOST_FAULTS
from taskpool.operations.flow.values import MOST_TASKS, NodeSpec, WorkflowSpec
from taskpool.tasks.node import After
from taskpool.tasks.payload.faults import field_errors, pointer
from taskpool.types import TaskSpec
from taskpool.validation import Guesses

T = TypeVar("T", bound=msgspec.Struct)


@cache
def fields_of(wanted: type[msgspec.Struct]) -> dict[str, FieldInfo]:
    """The fields of a struct, by name."""
    return {field.name: field for field in msgspec.structs.fields(wanted)}


def read(document: Any, wanted: type[T]) -> T:
    """The value of a JSON object. Raises: msgspec.ValidationError, with the first fault; `faults_in` finds all."""
    try:
        value = msgspec.convert(document, wanted)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error) or not isinstance(document, dict):
            raise
        value = msgspec.convert(_with_whole_numbers(document, wanted), wanted)
    if isinstance(value, TaskSpec) and value.payload is None:
        return replace(value, payload={})  # null is "not given" here as it is for the other options
    return value


def _with_whole_numbers(document: dict[str, Any], wanted: type[msgspec.Struct]) -> dict[str, Any]:
    """The document with each whole number as an integer, also in the objects of fields that are structs themselves."""
    fields = fields_of(wanted)
    return {
        name: _with_whole_numbers(each, inner)
        if isinstance(each, dict) and name in fields and (inner := _struct_of(fields[name]))
        else _whole(each)
        for name, each in document.items()
    }


def _struct_of(field: FieldInfo) -> type[msgspec.Struct] | None:
    """The struct that a field holds, and nothing else."""
    kind = get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _whole(value: Any) -> Any:
    """A whole number as an integer: JSON has one kind of number, and some writers make 5.0 of 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def faults_in(document: Any, wanted: type[msgspec.Struct], at: str, guesses: Guesses) -> Iterator[FieldError]:
    """Every fault of a document that `read` refused, field by field: msgspec by itself names only the first. `at` is
    the JSON Pointer to the document."""
    if not isinstance(document, dict):
        yield FieldError(at, "must be an object")
        return
    fields = fields_of(wanted)
    for name, value in document.items():
        if name not in fields:
            yield FieldError(pointer((name,), at), "unknown field" + guesses.hint(name, fields))
            continue
        if inner := _struct_of(fields[name]):
            try:
                read(value, inner)
            except msgspec.ValidationError:
                yield from faults_in(value, inner, pointer((name,), at), guesses)
            continue
        try:
            msgspec.convert(_whole(value), fields[name].type)
        except msgspec.ValidationError as error:
            yield from field_errors(error, pointer((name,), at), fields[name].type)
    for name, field in fields.items():
        if field.required and name not in document:
            yield FieldError(pointer((name,), at), "this field is required")


def read_workflow(document: Any) -> WorkflowSpec:
    """The workflow that a JSON document stands for. Its graph and its tasks are checked when it is submitted.
    Raises: InvalidTask, with the JSON Pointer of each fault."""
    if fault := _size_fault(document):
        raise InvalidTask(f"{fault.pointer}: {fault.detail}", [fault])
    try:
        return msgspec.convert(document, WorkflowSpec)
    except msgspec.ValidationError:
        return _Parts().workflow(document)


def _size_fault(document: Any) -> FieldError | None:
    """The fault of a document with too many tasks, before each of them is read."""
    nodes = document.get("nodes") if isinstance(document, dict) else None
    if not isinstance(nodes, list):
        return None
    maps = [node["map"] for node in nodes if isinstance(node, dict) and isinstance(node.get("map"), list)]
    count = len(nodes) - len(maps) + sum(map(len, maps))
    if len(nodes) <= MOST_TASKS >= count:
        return None
    return FieldError(
        "/nodes", f"a workflow has at most {MOST_TASKS:,} nodes and tasks, not {len(nodes):,} and {count:,}"
    )


class _WorkflowParts(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    nodes: list[Any]


class _NodeParts(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    task: Any = None
    map: list[Any] | None = None
    after: Sequence[str | After] = ()


class _Parts:
    """Reads a workflow part by part, and collects the faults."""

    def __init__(self) -> None:
        self._faults: list[FieldError] = []
        self._guesses = Guesses()

    def workflow(self, document: Any) -> WorkflowSpec:
        """Raises: InvalidTask, if there are faults."""
        parts = self._read(document, _WorkflowParts, "")
        nodes = [] if parts is None else [self._node(each, f"/nodes/{at}") for at, each in enumerate(parts.nodes)]
        if parts is None or self._faults:
            first, more = self._faults[0], len(self._faults) - 1
            text = f"{first.pointer or 'the workflow'}: {first.detail}" + (f" (and {more} more)" if more else "")
            raise InvalidTask(text, self._faults)
        return WorkflowSpec(name=parts.name, nodes=[node for node in nodes if node is not None])

    def _node(self, document: Any, at: str) -> NodeSpec | None:
        parts = self._read(document, _NodeParts, at)
        if parts is None:
            return None
        task = None if parts.task is None else self._read(parts.task, TaskSpec, f"{at}/task")
        tasks = [self._read(each, TaskSpec, f"{at}/map/{index}") for index, each in enumerate(parts.map or ())]
        mapped = None if parts.map is None else [each for each in tasks if each is not None]
        return NodeSpec(name=parts.name, task=task, map=mapped, after=parts.after)

    def _read(self, document: Any, wanted: type[T], at: str) -> T | None:
        try:
            return read(document, wanted)
        except msgspec.ValidationError:
            left = MOST_FAULTS - len(self._faults)
            self._faults += islice(faults_in(document, wanted, at, self._guesses), left)
            return None
