"""A task function with its payload, ready to be submitted: `resize.spec(url=url)`.

`@task` leaves the function as it is and only gives it an attribute, `spec`. For type checkers it is a `TaskFunction`:
they compare the arguments of `spec` with the function's parameters, without the context.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import lru_cache
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, overload

from taskpool.errors import FieldError, InvalidTask
from taskpool.tasks.context import TaskContext
from taskpool.tasks.payload.signature import payload_parameters
from taskpool.types import TaskSpec

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

if TYPE_CHECKING:

    class Spec(TaskSpec, Generic[R_co], frozen=True, kw_only=True):
        """A submission of a task that returns an `R_co`."""
else:
    Spec = TaskSpec
    """A submission of a task whose result type is known to type checkers. At run time it is a `TaskSpec`."""


class WithContext(Protocol[Q, R_co]):
    """A task function whose first parameter takes the context. mypy looks at that parameter here, but wouldn't in
    `self: TaskFunction[Concatenate[TaskContext, Q], T]`."""

    def __call__(self, context: TaskContext, /, *fields: Q.args, **named: Q.kwargs) -> R_co: ...


class TaskFunction(Protocol[P, R_co]):
    """A function marked by `@task`: it can be called as before, and has a `spec`."""

    __name__: str
    __qualname__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def spec(self: WithContext[Q, Coroutine[Any, Any, T]], *fields: Q.args, **named: Q.kwargs) -> Spec[T]: ...
    @overload
    def spec(self: WithContext[Q, T], *fields: Q.args, **named: Q.kwargs) -> Spec[T]: ...
    @overload
    def spec(self: TaskFunction[Q, Coroutine[Any, Any, T]], *fields: Q.args, **named: Q.kwargs) -> Spec[T]: ...
    @overload
    def spec(self: TaskFunction[Q, T], *fields: Q.args, **named: Q.kwargs) -> Spec[T]: ...
    def spec(self, *fields: Any, **named: Any) -> Any:
        """The submission of this task with these fields of its payload: for `add_task` with options, for `add_tasks`,
        `add_and_wait`, `ctx.add_task` and workflows. Every keyword argument is a field, even if it has the name of an
        option.

            pool.add_task(resize.spec(url="https://example.org/a.png"), delay="5m")

        Raises: InvalidTask, if there are too many arguments, or one is given twice."""


def spec_of(type: str, function: Callable[..., Any], /, *fields: Any, **named: Any) -> TaskSpec:
    """What `spec` of a marked function does. Raises: InvalidTask."""
    return TaskSpec(type=type, payload=payload_of(type, field_names(function), fields, named))


@lru_cache(maxsize=1024)
def field_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """The fields of the payload of a task function, in order."""
    parameters = payload_parameters(function)
    return tuple(each.name for each in parameters if each.kind is not Parameter.VAR_KEYWORD)


@lru_cache(maxsize=1024)
def class_field_names(payload: type | None) -> tuple[str, ...]:
    """The fields of the `Payload` of a task class."""
    annotations = [vars(base).get("__annotations__", ()) for base in getattr(payload, "__mro__", ())]
    return tuple(name for names in annotations for name in names)


def payload_of(type: str, names: Sequence[str], values: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The payload of a task with these fields, given by place and by name. Raises: InvalidTask."""
    if len(values) > len(names):
        refuse("/payload", f"the task {type!r} takes {len(names)} values, not {len(values)}")
    payload = dict(zip(names, values, strict=False))
    if twice := payload.keys() & named.keys():
        refuse(f"/payload/{min(twice)}", "is given twice: by its place and by its name")
    return payload | dict(named)


def refuse(pointer: str, fault: str) -> NoReturn:
    """Raise the error about one place of a submission."""
    raise InvalidTask(f"{pointer}: {fault}", [FieldError(pointer, fault)])
