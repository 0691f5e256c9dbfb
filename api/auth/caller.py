"""What each method of a route asks of its caller; the table of routes in `app` wraps every handler in one of these.

`START` and `STOP` open a route; which tasks the caller may start and stop there, `Caller.check` says.

Who asks: every handler finds the caller of its request here, put there by the gate before the handler runs.
"""

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
    """`scope`: what the caller must have; None: any caller is let in. `public`: nobody is asked who they are.

    `whole`: the answer shows the tasks of all projects, so a caller that is bound to one is refused.
    `ticket`: a single-use ticket in the query string does as well as a key, for browsers' sockets and streams.
    """

    scope: Scope | None = None
    public: bool = False
    whole: bool = False
    ticket: bool = False

    def __call__(self, handler: Callable[..., Awaitable[Any]]) -> Guarded:
        """This handler behind this access."""
        return Guarded(handler, self)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A handler and what it asks of its caller."""

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


SCOPE_KEY: Final = "taskpool.caller"
"""Where the gate puts the caller in the ASGI scope."""


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks, from where, and what it may do. None in `key_id`: no key was needed; in `project`: it sees the tasks of
    all; in `types` and `queues`: any. `address` is empty on a unix socket."""

    key_id: str | None
    name: str
    scopes: Collection[Scope]
    project: str | None
    types: Collection[str] | None
    queues: Collection[str] | None
    address: str
    rate_limit: int | None = None
    """Requests a minute; None: as the setting says."""

    def may(self, scope: Scope) -> bool:
        """Whether it has this scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def may_read(self) -> bool:
        """Whether it may be shown more of a task than its id and status."""
        return self.may(RIGHTS[Effect.READ].scope)

    def actor(self) -> Actor:
        """The caller as the audit and the core know it."""
        return Actor(self.key_id, self.name, self.project, self.address, self.types, self.queues, self.scopes)

    def is_limited(self, effect: Effect) -> bool:
        """Whether there are tasks that it may not do this to, though it has the scope."""
        bound = RIGHTS[effect].is_bound and (self.types is not None or self.queues is not None)
        return bound or self.project is not None

    def check(self, effect: Effect, task: TaskRecord) -> None:
        """Return if it may do this to a task, for which it has the scope. What is found here still holds when the task
        is changed: its project, type and queue never change.

        Raises:
            TaskNotFound: for this caller there is no such task: it is another project's, or the caller may not read
                tasks and may not do this to that one.
            NotAllowed: it has a type or a queue that the caller may not use.
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
    """The caller where no key is needed: it may do everything."""
    return Caller(None, "anonymous", ALL_SCOPES, None, None, None, address)


def caller_of(scope: AsgiScope) -> Caller:
    """The caller of this request or socket (`request.scope`); every route that isn't public has one."""
    caller: Caller = scope[SCOPE_KEY]
    return caller
