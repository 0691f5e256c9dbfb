"""What programs give as submissions: whether it is some at all. What they ask for is checked in `prepare`."""

from __future__ import annotations

from collections.abc import Iterable

from taskpool.errors import FieldError, InvalidTask
from taskpool.names import is_text
from taskpool.types import TaskSpec


def check_spec(spec: object, start: str = "") -> None:
    """Return if it is a `TaskSpec` whose type is a text; `start` is the JSON Pointer to it.

    Raises:
        InvalidTask
    """
    if not isinstance(spec, TaskSpec):
        raise _refusal(start, f"must be a TaskSpec, not {type(spec).__name__}")
    if not is_text(spec.type):
        raise _refusal(f"{start}/type", f"must be the name of a task type, not {spec.type!r}")


def read_specs(specs: object, start: str = "") -> list[TaskSpec]:
    """The submissions in a list, which a generator isn't.

    Raises:
        InvalidTask: one of them is no `TaskSpec`, or they are nothing that could hold any.
    """
    if isinstance(specs, str | bytes) or not isinstance(specs, Iterable):
        raise _refusal(start, f"must be a list of TaskSpecs, not {type(specs).__name__}")
    listed = list(specs)
    for index, spec in enumerate(listed):
        check_spec(spec, f"{start}/{index}")
    return listed


def _refusal(pointer: str, text: str) -> InvalidTask:
    return InvalidTask(f"{pointer}: {text}" if pointer else f"what is submitted {text}", [FieldError(pointer, text)])
