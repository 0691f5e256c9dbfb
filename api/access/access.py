"""What each method of a route asks of its caller; the table of routes in `app` wraps every handler in one of these.

`START` and `STOP` open a route; which tasks the caller may start and stop there, `Caller.check` says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from taskpool.access.apikey import Scope
from taskpool.access.rights import RIGHTS, Effect


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
