"""Who asks: every handler finds the caller of its request here, put there by the gate before the handler runs."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Final

import msgspec
from starlette.types import Scope as AsgiScope

from taskpool.access.apikey import ALL_SCOPES, Scope
from taskpool.access.audit import Actor

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

    def actor(self) -> Actor:
        """The caller as the audit names it."""
        return Actor(self.key_id, self.name, self.project, self.address, self.types, self.queues)

    def sees(self, project: str | None) -> bool:
        """Whether a task with this project exists for it."""
        return self.project is None or self.project == project


@lru_cache(maxsize=1024)
def anonymous(address: str) -> Caller:
    """The caller where no key is needed: it may do everything."""
    return Caller(None, "anonymous", ALL_SCOPES, None, None, None, address)


def caller_of(scope: AsgiScope) -> Caller:
    """The caller of this request or socket (`request.scope`); every route that isn't public has one."""
    caller: Caller = scope[SCOPE_KEY]
    return caller
