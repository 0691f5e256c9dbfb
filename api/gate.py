"""Who is let in: finds out who asks, before any handler runs, and refuses who may not do what it asks for."""

from __future__ import annotations

from typing import Final

from starlette.types import Scope as AsgiScope

from api.access import Access
from api.caller import SCOPE_KEY, Caller, anonymous
from api.problems import Problem

REALM: Final = 'Bearer realm="taskpool"'


class Gate:
    """Lets callers in, or raises the problem that keeps them out."""

    async def admit(self, scope: AsgiScope, access: Access) -> Caller:
        """The caller of a request or a socket, which may do what `access` asks; `caller_of` finds it from then on.

        Raises:
            Problem: 401 it isn't known who asks; 403 it may not.
        """
        client = scope.get("client")
        caller = anonymous(client[0] if client else "")
        check(caller, access)
        scope[SCOPE_KEY] = caller
        return caller


def check(caller: Caller, access: Access) -> None:
    """Return when the caller may do what `access` asks.

    Raises:
        Problem: 403.
    """
    if access.scope is not None and not caller.may(access.scope):
        detail = f"the key {caller.name!r} doesn't have the scope {access.scope.value}"
        challenge = f'{REALM}, error="insufficient_scope", scope="{access.scope.value}"'
        raise Problem("forbidden", detail, headers=[(b"www-authenticate", challenge.encode())])
    if access.whole and caller.project is not None:
        detail = f"this shows the tasks of all projects; the key {caller.name!r} is bound to {caller.project!r}"
        raise Problem("forbidden", detail)
