"""Who is let in: finds out who asks, before any handler runs, and refuses who may not do what it asks for.

Where keys are needed, no other way leads in. They aren't with TASKPOOL_AUTH=off; and, on an address that only this
machine can reach, as long as there is none. Once there was one, it stays so for this process's life.
"""

from __future__ import annotations

import math
import re
import time
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.types import Scope as AsgiScope

from api.access import tickets
from api.access.access import Access
from api.access.addresses import network
from api.access.caller import SCOPE_KEY, Caller, anonymous
from api.access.known import FRESH_S, KnownKeys
from api.access.origins import is_own_origin, name_this_machine
from api.access.rate import FailedAttempts, RateLimits
from api.problems import Problem, retry_after
from taskpool.access import keyring
from taskpool.access.apikey import TOKEN, ApiKey
from taskpool.names import names_this_machine
from taskpool.settings import Settings
from taskpool.store import AsyncStore

REALM: Final = 'Bearer realm="taskpool"'
SAFE: Final = ("GET", "HEAD")
THIS_MACHINE: Final = (
    "as long as there is no API key, only this machine is served, by the names localhost and 127.0.0.1"
)
THROUGH_A_PROXY: Final = "as long as there is no API key, only this machine is served, and not through a proxy"
TELLING_WHERE: Final = frozenset(
    (b"host", b"x-forwarded-host", b"x-forwarded-for", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip",
     b"true-client-ip", b"cf-connecting-ip")
)  # fmt: skip
"""Headers with names or addresses, which must be this machine's."""
MARKS_OF_A_PROXY: Final = (b"forwarded", b"via")
"""With all others that begin with `x-forwarded-`: no client sends them by itself."""
UNUSABLE: Final = "this key isn't known: it was revoked, or it is wrong"


class Gate:
    """Lets callers in, or raises the problem that keeps them out. `origins`: the pages that may open sockets."""

    def __init__(self, store: AsyncStore, settings: Settings, origins: frozenset[str]) -> None:
        self._store = store
        self._known = KnownKeys(store)
        self._rates = RateLimits(store, settings)
        self._failed = FailedAttempts()
        self._origins = frozenset(origin.encode() for origin in origins)
        self._is_off = settings.auth == "off"
        self._is_shut = not self._is_off and not names_this_machine(settings.public_address or settings.host)
        self._looked_at = -FRESH_S  # mono

    async def admit(self, scope: AsgiScope, access: Access) -> Caller:
        """The caller of a request or a socket, which may do what `access` asks; `caller_of` finds it from then on.

        Raises:
            Problem: 400 it says twice who asks; 401 it isn't known who asks; 403 it may not; 421 it asked for another
                machine; 429 it asks too often, or its address failed to authenticate too often.
            RedisUnavailable
        """
        authorization = origin = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                if authorization is not None:
                    raise _twice("Authorization")
                authorization = value
            elif name == b"origin":
                if origin is not None:
                    raise _twice("Origin")
                origin = value
        if origin and not self._may_come_from(origin, scope):
            if scope["type"] == "websocket":
                raise _from_elsewhere("sockets")
            if scope["method"] not in SAFE and not await self.needs_key():
                raise _from_elsewhere("changes")
        client = scope.get("client")
        caller = await self._caller(scope, access, authorization or b"", client[0] if client else "")
        await self._rates.take(caller, scope)
        check(caller, access)
        scope[SCOPE_KEY] = caller
        return caller

    async def charge(self, scope: AsgiScope, tasks: int | None = None) -> None:
        """Count work of a caller that was let in: the tasks of a batch, or (None) a message.

        Raises:
            Problem: 429.
            RedisUnavailable
        """
        caller: Caller = scope[SCOPE_KEY]
        await (self._rates.take(caller, scope) if tasks is None else self._rates.take_all(caller, scope, tasks))

    async def still_admits(self, caller: Caller) -> bool:
        """Whether the caller, let in before, would be let in now: its key wasn't revoked and hasn't expired.

        Raises:
            RedisUnavailable
        """
        if caller.key_id is None:
            return not await self.needs_key()
        return await self._known.living(caller.key_id) is not None

    async def needs_key(self) -> bool:
        """Whether nobody is let in without a key."""
        if self._is_off or self._is_shut:
            return self._is_shut
        if time.monotonic() - self._looked_at >= FRESH_S:
            self._is_shut = await self._store.run(keyring.any_key())
            self._looked_at = time.monotonic()
        return self._is_shut

    async def would_admit(self, scope: AsgiScope, access: Access) -> bool:
        """Whether the caller could come in: for routes that are public, but don't tell everybody everything.

        Raises:
            RedisUnavailable
        """
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given and await self.needs_key():  # which is no failure: probes ask like that all the time
            return False
        client = scope.get("client")
        try:
            if len(given) > 1:
                raise _twice("Authorization")
            check(await self._caller(scope, access, given[0] if given else b"", client[0] if client else ""), access)
        except Problem:
            return False
        return True

    async def _caller(self, scope: AsgiScope, access: Access, authorization: bytes, address: str) -> Caller:
        """Who asks. An address that fails too often is refused without a word to Redis, but for keys that exist: others
        may share the address."""
        has_ticket = access.ticket and b"ticket=" in scope["query_string"]
        if authorization and not has_ticket and not self._is_off:
            found = _token(authorization)
            if found is not None and (key := self._known.at_hand(found[1], found[2])) is not None:
                return _holder(key, address)  # as most are: nothing failed, and nothing is asked
        elif not has_ticket and not await self.needs_key():
            self._check_here(scope)
            return anonymous(address)
        name = f"{'ticket' if has_ticket else 'key'} {network(address)}"
        wait_s = self._failed.wait_s(name)
        if not wait_s:
            self._failed.note(name)  # before it is known, or many at once would all be looked up
        try:
            if has_ticket:
                return await self._of_ticket(_take_ticket(scope), address, wait_s)
            return await self._identified(scope, authorization, address, wait_s)
        except Problem as problem:
            if problem.kind == "unauthorized":
                name = ""
                if wait_s:
                    raise failed_too_often(wait_s) from None
            raise
        finally:
            if name and not wait_s:
                self._failed.forgive(name)

    async def _identified(self, scope: AsgiScope, authorization: bytes, address: str, wait_s: float) -> Caller:
        if not authorization:
            raise unauthorized("this takes an API key: send it as Authorization: Bearer tp_...")
        found = _token(authorization)
        if found is None:
            raise unauthorized("Authorization must be `Bearer` and an API key, tp_<id>_<secret>", "invalid_token")
        key = await self._known.verified(found[1], found[2], is_listed=bool(wait_s))
        if key is None:
            raise unauthorized(UNUSABLE, "invalid_token")
        if not self._known.lives(key):
            raise unauthorized(f"the key {key.name!r} has expired", "invalid_token")
        return _holder(key, address)

    async def _of_ticket(self, ticket: str, address: str, wait_s: float) -> Caller:
        stands_for = None if wait_s else await tickets.redeem(self._store, ticket)
        if stands_for == tickets.NO_KEY and not await self.needs_key():
            return anonymous(address)
        key = None
        if stands_for is not None and stands_for != tickets.NO_KEY:
            key = await self._known.living(stands_for.decode())
        if key is None:
            detail = f"this ticket isn't good: one is good once, for {tickets.TICKET_S} s; ask for another"
            raise unauthorized(detail, "invalid_token")
        return _holder(key, address)

    def _may_come_from(self, origin: bytes, scope: AsgiScope) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        return origin.lower() in self._origins or (len(hosts) == 1 and is_own_origin(origin, hosts[0]))

    def _check_here(self, scope: AsgiScope) -> None:
        """Nobody is asked for a key: whoever it is must ask this machine by its name, and not through a proxy on it."""
        if self._is_off:
            return
        for name, value in scope["headers"]:
            if name in TELLING_WHERE:
                if value and not name_this_machine(value):
                    raise Problem("misdirected", THIS_MACHINE)
            elif name in MARKS_OF_A_PROXY or name.startswith(b"x-forwarded-"):
                raise Problem("misdirected", THROUGH_A_PROXY)


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


def unauthorized(detail: str, error: str = "") -> Problem:
    """The problem 401; `error` is RFC 6750's word for what is wrong with what was sent."""
    challenge = f'{REALM}, error="{error}"' if error else REALM
    return Problem("unauthorized", detail, headers=[(b"www-authenticate", challenge.encode())])


def _twice(name: str) -> Problem:
    return Problem("invalid-header", f"{name} must be sent once; this request has it more than once")


def failed_too_often(wait_s: float) -> Problem:
    """The problem 429 of an address that showed too many wrong keys or tickets."""
    detail = (
        "authentication failed too often for this address; "
        f"try again in {math.ceil(wait_s)} s, or with a valid key, which is let in all the same"
    )
    return Problem("rate-limited", detail, headers=[retry_after(wait_s)])


def _token(authorization: bytes) -> re.Match[str] | None:
    kind, _, token = authorization.decode("latin-1").partition(" ")
    return TOKEN.fullmatch(token.strip()) if kind.lower() == "bearer" else None


def _holder(key: ApiKey, address: str) -> Caller:
    types = None if key.types is None else frozenset(key.types)
    queues = None if key.queues is None else frozenset(key.queues)
    return Caller(key.id, key.name, key.scopes, key.project, types, queues, address, key.rate_limit)


def _take_ticket(scope: AsgiScope) -> str:
    """The ticket, out of the query string: nothing behind the gate may show it, or refuse it as unknown."""
    query: bytes = scope["query_string"]
    parts = query.split(b"&")
    scope["query_string"] = b"&".join(part for part in parts if not part.startswith(b"ticket="))
    given: list[Any] = [part for part in parts if part.startswith(b"ticket=")]
    return dict(parse_qsl(given[0].decode("latin-1"))).get("ticket", "") if len(given) == 1 else ""


def _from_elsewhere(what: str) -> Problem:
    detail = f"{what} are for pages of this origin and those that TASKPOOL_CORS_ORIGINS lists"
    return Problem("forbidden", detail)
