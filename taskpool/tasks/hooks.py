"""Hooks that a task file registers: at the start and the end of each worker process, and around each attempt.
Submissions have one too (`sending`), which telemetry uses.

Task files are imported once, in a fork server, and worker processes are forked from it. So hooks create the objects
that processes can't share (connections, threads, random generators). A hook registers itself when its module is
imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import MappingProxyType, ModuleType
from typing import Any, Final, Protocol, Self, TypeVar

from taskpool.errors import ConfigurationError
from taskpool.tasks.context import TaskContext
from taskpool.tasks.task import place_of
from taskpool.types import TaskSpec

ProcessHook = Callable[[], Awaitable[None] | None]
AttemptHook = Callable[[TaskContext], AbstractContextManager[Any]]
P = TypeVar("P", bound=ProcessHook)
A = TypeVar("A", bound=AttemptHook)
H = TypeVar("H", bound=Callable[..., Any])

starts: Final[list[ProcessHook]] = []
stops: Final[list[ProcessHook]] = []
arounds: Final[list[AttemptHook]] = []


NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class SentTask(Protocol):
    """A task that was submitted, as a `SendHook` sees it. `shared` has its type and queue."""

    @property
    def id(self) -> str: ...
    @property
    def shared(self) -> Any: ...


class Sending:
    """A submission on its way, a context manager. `specs` are sent in the place of those that were given; `headers` go
    with what is sent over HTTP without specs, which is a workflow."""

    __slots__ = ("headers", "specs")

    def __init__(self, specs: Sequence[TaskSpec]) -> None:
        self.specs = specs
        self.headers: Mapping[str, str] = NO_HEADERS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def note(self, tasks: Sequence[SentTask]) -> None:
        """Take note of the tasks that are sent."""


senders: Final[list[Callable[[Sequence[TaskSpec]], Sending]]] = []
"""Telemetry, if it is on. There is one at most."""


def sending(specs: Sequence[TaskSpec]) -> Sending:
    """The hook around a submission of these tasks."""
    return senders[0](specs) if senders else Sending(specs)


def on_process_start(hook: P) -> P:
    """Call this function in each worker process before its first task. If it is `async def`, it runs on the event loop
    of the process's `async def` tasks. If it raises, the process ends, and another one starts a moment later.

    Example:

        @on_process_start
        def connect() -> None:
            global database
            database = Database(os.environ["DATABASE_URL"])
    """
    starts.append(_checked(hook, "on_process_start"))
    return hook


def on_process_stop(hook: P) -> P:
    """Call this function in each worker process that isn't killed, after its last task. It may be `async def`. The last
    hook registered runs first, and the handlers of `atexit` run after all hooks; together they have 5 seconds. If one
    raises, this is logged, and the next one runs."""
    stops.append(_checked(hook, "on_process_stop"))
    return hook


def around_attempt(hook: A) -> A:
    """Enter the context manager that this function returns around each attempt. The first hook registered is the
    outermost one. It is a part of the attempt: its exceptions count as the task's, and it sees the exceptions of the
    task. It runs in the attempt's own context, and on the event loop when the task does.

    Example:

        @around_attempt
        @contextmanager
        def traced(ctx: TaskContext) -> Iterator[None]:
            with tracer.start_as_current_span(ctx.type):
                yield
    """
    makes = inspect.unwrap(_checked(hook, "around_attempt"))
    if inspect.iscoroutinefunction(makes) or inspect.isasyncgenfunction(makes):
        raise ConfigurationError(f"{place_of(hook)}: @around_attempt needs a plain context manager, not an async one")
    arounds.append(hook)
    return hook


def are_in(modules: Collection[ModuleType]) -> bool:
    """Whether one of these modules has registered a hook."""
    names = {module.__name__ for module in modules}
    return any(getattr(hook, "__module__", None) in names for hook in (*starts, *stops, *arounds))


def surrounded(call: Callable[[], Any], context: TaskContext, *, is_async: bool) -> Callable[[], Any]:
    """The same call with the hooks around it. A plain `call` must not return an awaitable; an awaitable of an async one
    is awaited inside the hooks."""

    def surround() -> Any:
        with ExitStack() as stack:
            for hook in arounds:
                stack.enter_context(hook(context))
            return call()

    async def surround_async() -> Any:
        with ExitStack() as stack:
            for hook in arounds:
                stack.enter_context(hook(context))
            result = call()
            while hasattr(type(result), "__await__"):  # an `async def` may return an asyncio task
                result = await result
            return result

    return surround_async if is_async else surround


def _checked(hook: H, decorator: str) -> H:
    if not callable(hook):
        raise ConfigurationError(f"@{decorator} takes a function, not {hook!r}")
    if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook):
        advice = "put @contextmanager below it" if decorator == "around_attempt" else "a hook can't use yield"
        raise ConfigurationError(f"{place_of(hook)}: @{decorator} got a generator; {advice}")
    return hook
