"""Who sent a request, what each route requires of its caller, and which tasks a caller may read and change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import msgspec
from starlette.types import Scope as AsgiScope

from taskpool.access.api_key import ALL_SCOPES, RIGHTS, Effect, Scope
from taskpool.access.audit import Actor
from taskpool.errors import NotAllowed, TaskNotFound
from taskpool.types import TaskRecord


@dataclass(frozen=True, slots=True)
class Access:
    """What a route requires of its caller. The table of routes in `app` wraps each handler in one of the constants
    below.

    `scope`: the caller must have it; None: any caller. `public`: callers need no key. `whole`: the answer shows tasks
    of all projects, so callers that are bound to one are refused. `ticket`: a single-use ticket in the query string is
    as good as a key; browsers need that for sockets and streams.
    """

    scope: Scope | None = None
    public: bool = False
    whole: bool = False
    ticket: bool = False

    def __call__(self, handler: Callable[..., Awaitable[Any]]) -> Guarded:
        """The handler with this requirement."""
        return Guarded(handler, self)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A handler and what it requires of its caller."""

    handler: Callable[..., Awaitable[Any]]
    access: Access


PUBLIC: Final = Access(public=True)
ANYONE: Final = Access()
READ: Final = Access(RIGHTS[Effect.READ].scope)
READ_ALL: Final = replace(READ, whole=True)
STREAM: Final = replace(READ, ticket=True)
START: Final = Access(RIGHTS[Effect.START].scope)
STOP: Final = Access(RIGHTS[Effect.STOP].scope)
ADMIN: Final = Access(Scope.ADMIN)
"""START and STOP open a route; `Caller.check` decides for which tasks."""


DECLARATION: Final = "operation"
"""The attribute of a handler with what `openapi.declarations.operation` declares of it."""
SCOPE_KEY: Final = "taskpool.caller"
"""Where the gate puts the caller in the ASGI scope."""


class Caller(msgspec.Struct, frozen=True, gc=False):
    """The holder of a key, or anyone if no key is needed (then `key_id` is None). None in `project`: all projects; in
    `types` and `queues`: all. `address` is empty on a unix socket."""

    key_id: str | None
    name: str
    scopes: Collection[Scope]
    project: str | None
    types: Collection[str] | None
    queues: Collection[str] | None
    address: str
    rate_limit: int | None = None
    """Requests a minute; None: the setting."""

    def may(self, scope: Scope) -> bool:
        """Whether it has this scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def may_read(self) -> bool:
        """Whether it may see more of a task than its id and status."""
        return self.may(RIGHTS[Effect.READ].scope)

    def actor(self) -> Actor:
        """The caller, as `taskpool` and its audit log know it."""
        return Actor(self.key_id, self.name, self.project, self.address, self.types, self.queues, self.scopes)

    def is_limited(self, effect: Effect) -> bool:
        """Whether there are tasks to which it may not do this, although it has the scope."""
        bound = RIGHTS[effect].is_bound and (self.types is not None or self.queues is not None)
        return bound or self.project is not None

    def check(self, effect: Effect, task: TaskRecord) -> None:
        """Return if the caller, who has the scope, may do this to the task. The result stays true: a task's project,
        type and queue never change.

        Raises:
            TaskNotFound: the task belongs to another project, or the caller may neither read tasks nor do this.
            NotAllowed: the caller may not use the task's type or queue.
        """
        if self.project is not None and self.project != task.project:
            raise TaskNotFound(task.id)
        if RIGHTS[effect].is_bound:
            try:
                self.actor().check_task(task.type, task.queue)
            except NotAllowed:
                if self.may_read:
                    raise
                raise TaskNotFound(task.id) from None


@lru_cache(maxsize=1024)
def anonymous(address: str) -> Caller:
    """The caller if no key is needed: it may do everything."""
    return Caller(None, "anonymous", ALL_SCOPES, None, None, None, address)


def caller_of(scope: AsgiScope) -> Caller:
    """The caller of this request or socket (`request.scope`). Every route that isn't public has one."""
    caller: Caller = scope[SCOPE_KEY]
    return caller
