"""Who sent a request, and which tasks a caller may read and change."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from starlette.types import Scope as AsgiScope

from taskpool.access.api_key import ALL_SCOPES, RIGHTS, Effect
from taskpool.access.audit import ANONYMOUS, Actor
from taskpool.errors import NotAllowed, TaskNotFound
from taskpool.types import TaskRecord

SCOPE_KEY: Final = "taskpool.caller"
"""Where the gate puts the caller in the ASGI scope."""


class Caller(Actor, frozen=True, gc=False):
    """The holder of a key, or anyone if no key is needed. `rate_limit`: requests a minute, if not as the setting says.
    `address` is empty on a unix socket."""

    rate_limit: int | None = None

    @property
    def key_name(self) -> str | None:
        """The name of its key, if it has shown one."""
        return None if self.key is None else self.name

    @property
    def may_read(self) -> bool:
        """Whether it may see more of a task than its id and status."""
        return self.may(RIGHTS[Effect.READ].scope)

    def is_limited(self, effect: Effect) -> bool:
        """Whether there are tasks to which it may not do this, although it has the scope."""
        return (RIGHTS[effect].is_bound and self.is_bound) or self.project is not None

    def check(self, effect: Effect, task: TaskRecord) -> None:
        """Return if the caller, who has the scope, may do this to the task. The result stays true: a task's project and
        type never change, and who moves it to another queue meanwhile comes second.
        Raises: TaskNotFound: the task belongs to another project, or the caller may neither read tasks nor do this;
        NotAllowed: the caller may not use the task's type or queue."""
        if self.project is not None and self.project != task.project:
            raise TaskNotFound(task.id)
        if RIGHTS[effect].is_bound:
            try:
                self.check_task(task.type, task.queue)
            except NotAllowed:
                if self.may_read:
                    raise
                raise TaskNotFound(task.id) from None


@lru_cache(maxsize=1024)
def anonymous(address: str) -> Caller:
    """The caller if no key is needed: it may do everything."""
    return Caller(None, ANONYMOUS, None, address, scopes=ALL_SCOPES)


def caller_of(scope: AsgiScope) -> Caller:
    """The caller of this request or socket (`request.scope`). Every route that isn't public has one."""
    caller: Caller = scope[SCOPE_KEY]
    return caller
