"""Authentication: who sends a request, and whether it may come in at all, before any handler runs.

Where keys are needed, there is no other way in. They aren't needed with TASKPOOL_AUTH=off, or on an address that only
this machine can reach as long as no key exists. After the first key, they are needed for the rest of the process's
life.

A browser sends what any web page wants to any address, including this machine's own. So where no key is needed, `Host`
must be a name of this machine (against DNS rebinding), and pages of other origins may change nothing. Browsers let any
page open a WebSocket, so those always need a listed origin.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Scope as AsgiScope

from taskpool.access import keyring
from taskpool.access.api_key import TOKEN, ApiKey, digest_of
from taskpool.errors import ConfigurationError, RedisUnavailable
from taskpool.redis import keys
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, redis_ms
from taskpool.settings import Settings
from taskpool.types import utc
from taskpool.validation import names_this_machine

from ..http.problems import Problem, retry_after
from .caller import SCOPE_KEY, Access, Caller, anonymous
from .rate_limit import FailedAttempts, RateLimits, network

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


def read_origins(origins: Iterable[str]) -> frozenset[str]:
    """The origins of TASKPOOL_CORS_ORIGINS, as browsers write them.

    Raises:
        ConfigurationError: one isn't an exact origin.
    """
    found = frozenset(origin.lower() for origin in origins)
    for origin in sorted(found):
        if not _ORIGIN.fullmatch(origin):
            raise ConfigurationError(
                f"TASKPOOL_CORS_ORIGINS: {origin!r} is not an origin: give each exactly, like https://app.example.org"
            )
    return found


def is_own_origin(origin: bytes, host: bytes) -> bool:
    """Whether a page of this `Origin` was served by this `Host`. (The scheme may differ: a proxy may have changed
    it.)"""
    return bool(host) and origin.partition(b"://")[2].lower() == host.lower()


@lru_cache(maxsize=256)  # every request asks, mostly with the same addresses
def name_this_machine(addresses: bytes) -> bool:
    """Whether all addresses in the value of a header, separated by commas, are this machine's own."""
    return all(names_this_machine(each.strip()) for each in addresses.decode("latin-1").split(","))


FRESH_S: Final = 5.0
"""How long a key is used without reading it again. A revocation takes effect within this time."""
USE_NOTED_S: Final = 60.0
MOST_KEPT: Final = 4096


class _Entry(msgspec.Struct, gc=False):
    key: ApiKey | None
    read_at: float  # mono
    noted_at: float  # mono


class KnownKeys:
    """Keys, cached for a few seconds, so that a request with a key costs no round trip. They expire by Redis's
    clock."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._entries: dict[str, _Entry] = {}
        self._listed: frozenset[str] = frozenset()
        self._listed_at = -FRESH_S  # mono
        self._clock_offset_ms = 0.0  # Redis's time minus our monotonic one

    def at_hand(self, id: str, secret: str) -> ApiKey | None:
        """The valid key of this id and secret, if it is cached and its use needn't be recorded now."""
        entry, now_mono = self._entries.get(id), time.monotonic()
        if entry is None or entry.key is None or now_mono - entry.read_at >= FRESH_S:
            return None
        now_ms = now_mono * 1000 + self._clock_offset_ms
        is_good = entry.key.takes(digest_of(secret), now_ms) and entry.key.lives(now_ms)
        return entry.key if is_good and now_mono - entry.noted_at < USE_NOTED_S else None

    async def verified(self, id: str, secret: str, *, is_listed: bool = False) -> ApiKey | None:
        """The key of this id and secret, if it exists; it may have expired. With `is_listed`, the key is read only if
        its id was in the list of all ids, which is read every few seconds at most.

        Raises:
            RedisUnavailable
        """
        entry = self._entries.get(id)
        if entry is None and is_listed and not await self._is_listed(id):
            return None
        if entry is None or time.monotonic() - entry.read_at >= FRESH_S:
            entry = await self._look_up(id)
        if entry.key is None or not entry.key.takes(digest_of(secret), self._now_ms()):
            return None
        if time.monotonic() - entry.noted_at >= USE_NOTED_S:
            entry.noted_at = time.monotonic()  # now, so that concurrent requests don't record it as well
            with suppress(RedisUnavailable):  # Redis is full or went away: the next use is recorded
                await self._store.run(keyring.note_use(id))
        return entry.key

    async def living(self, id: str) -> ApiKey | None:
        """The key of this id, unless it was revoked or has expired.

        Raises:
            RedisUnavailable
        """
        entry = self._entries.get(id)
        if entry is None or time.monotonic() - entry.read_at >= FRESH_S:
            entry = await self._look_up(id)
        return entry.key if entry.key is not None and self.lives(entry.key) else None

    def lives(self, key: ApiKey) -> bool:
        """Whether a key hasn't expired."""
        return key.lives(self._now_ms())

    async def _is_listed(self, id: str) -> bool:
        if time.monotonic() - self._listed_at >= FRESH_S:
            self._listed_at = time.monotonic()  # now, so that concurrent requests don't read it as well
            self._listed = await self._store.run(keyring.ids())
        return id in self._listed

    async def _look_up(self, id: str) -> _Entry:
        key, now_ms = await self._store.run_many(keyring.find(id))
        self._clock_offset_ms = now_ms - time.monotonic() * 1000
        before = self._entries.pop(id, None)
        if key is None:  # not cached: clients could invent any number of ids
            return _Entry(None, 0, 0)
        if len(self._entries) >= MOST_KEPT:
            self._entries.pop(next(iter(self._entries)))
        entry = _Entry(key, time.monotonic(), before.noted_at if before else -USE_NOTED_S)
        self._entries[id] = entry
        return entry

    def _now_ms(self) -> float:
        return time.monotonic() * 1000 + self._clock_offset_ms


TICKET_S: Final = 30

NO_KEY: Final = b"-"
"""Stands for a key in the ticket of a caller that needs none."""


async def issue(store: AsyncStore, key_id: str | None) -> tuple[str, datetime]:
    """A new ticket for the holder of this key, and when it expires. A browser opens a socket or a stream with it, where
    it can't send a key. Redis keeps its hash and the key's id: the ticket of a revoked key opens nothing."""
    ticket = secrets.token_urlsafe(32)
    value = NO_KEY.decode() if key_id is None else key_id
    _, now_ms = await store.run_many(
        (
            Call(("SET", keys.TICKET + digest_of(ticket), value, "EX", TICKET_S), lambda _: None, again=True),
            redis_ms(),
        )
    )
    return ticket, utc(now_ms + TICKET_S * 1000)


async def redeem(store: AsyncStore, ticket: str) -> bytes | None:
    """Use up a ticket: a key's id or `NO_KEY`; None if the ticket is invalid."""
    # Not sent again if the reply is lost: the ticket is used up then, and its holder requests another one.
    found: bytes | None = await store.run(Call(("GETDEL", keys.TICKET + digest_of(ticket)), lambda reply: reply))
    return found


REALM: Final = 'Bearer realm="taskpool"'
SAFE: Final = ("GET", "HEAD")
THIS_MACHINE: Final = (
    "until there is an API key, the API serves only this machine, under the names localhost and 127.0.0.1"
)
THROUGH_A_PROXY: Final = "until there is an API key, the API serves only this machine, and not through a proxy"
ADDRESS_HEADERS: Final = frozenset(
    (b"host", b"x-forwarded-host", b"x-forwarded-for", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip",
     b"true-client-ip", b"cf-connecting-ip")
)  # fmt: skip
"""Headers with names or addresses, all of which must be this machine's."""
PROXY_HEADERS: Final = (b"forwarded", b"via")
"""Only proxies send these, and others that start with `x-forwarded-`."""
UNUSABLE: Final = "the API key is unknown: it was revoked, or it is wrong"


class Gate:
    """Admits callers or raises the problem that refuses them. `origins`: the pages that may open sockets."""

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
        """The caller of a request or a socket, which meets `access`. From now on, `caller_of` returns it.

        Raises:
            Problem: 400 a repeated header; 401 no valid key; 403 not permitted; 421 the wrong host name; 429 over the
                rate limit, or too many failures of its address.
            RedisUnavailable
        """
        authorization = origin = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                if authorization is not None:
                    raise _repeated("Authorization")
                authorization = value
            elif name == b"origin":
                if origin is not None:
                    raise _repeated("Origin")
                origin = value
        if origin and not self._may_come_from(origin, scope):
            if scope["type"] == "websocket":
                raise _foreign_origin("sockets")
            if scope["method"] not in SAFE and not await self.needs_key():
                raise _foreign_origin("changes")
        client = scope.get("client")
        caller = await self._caller(scope, access, authorization or b"", client[0] if client else "")
        await self._rates.take(caller, scope)
        check(caller, access)
        scope[SCOPE_KEY] = caller
        return caller

    async def charge(self, scope: AsgiScope, tasks: int | None = None) -> None:
        """Count more work of an admitted caller: the tasks of a batch, or (None) a message.

        Raises:
            Problem: 429.
            RedisUnavailable
        """
        caller: Caller = scope[SCOPE_KEY]
        await (self._rates.take(caller, scope) if tasks is None else self._rates.take_all(caller, scope, tasks))

    async def still_admits(self, caller: Caller) -> bool:
        """Whether an admitted caller would be admitted again: its key wasn't revoked and hasn't expired.

        Raises:
            RedisUnavailable
        """
        if caller.key_id is None:
            return not await self.needs_key()
        return await self._known.living(caller.key_id) is not None

    async def needs_key(self) -> bool:
        """Whether callers need a key."""
        if self._is_off or self._is_shut:
            return self._is_shut
        if time.monotonic() - self._looked_at >= FRESH_S:
            self._is_shut = await self._store.run(keyring.any_key())
            self._looked_at = time.monotonic()
        return self._is_shut

    async def would_admit(self, scope: AsgiScope, access: Access) -> bool:
        """Whether `admit` would admit the caller: for public routes that show some callers more.

        Raises:
            RedisUnavailable
        """
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given and await self.needs_key():  # not a failure: probes send no key
            return False
        client = scope.get("client")
        try:
            if len(given) > 1:
                raise _repeated("Authorization")
            check(await self._caller(scope, access, given[0] if given else b"", client[0] if client else ""), access)
        except Problem:
            return False
        return True

    async def _caller(self, scope: AsgiScope, access: Access, authorization: bytes, address: str) -> Caller:
        """Who sends this. If an address has failed too often, Redis is asked only about keys that exist: other clients
        may share the address."""
        has_ticket = access.ticket and b"ticket=" in scope["query_string"]
        if authorization and not has_ticket and not self._is_off:
            found = _token(authorization)
            if found is not None and (key := self._known.at_hand(found[1], found[2])) is not None:
                return _holder(key, address)  # most requests end here
        elif not has_ticket and not await self.needs_key():
            self._check_here(scope)
            return anonymous(address)
        name = f"{'ticket' if has_ticket else 'key'} {network(address)}"
        wait_s = self._failed.wait_s(name)
        if not wait_s:
            self._failed.note(name)  # before the look-up, or many concurrent requests would all cause one
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
            raise unauthorized("this needs an API key: send it as Authorization: Bearer tp_...")
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
        stands_for = None if wait_s else await redeem(self._store, ticket)
        if stands_for == NO_KEY and not await self.needs_key():
            return anonymous(address)
        key = None
        if stands_for is not None and stands_for != NO_KEY:
            key = await self._known.living(stands_for.decode())
        if key is None:
            detail = f"the ticket is invalid or expired; tickets work once, for {TICKET_S} s: request a new one"
            raise unauthorized(detail, "invalid_token")
        return _holder(key, address)

    def _may_come_from(self, origin: bytes, scope: AsgiScope) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        return origin.lower() in self._origins or (len(hosts) == 1 and is_own_origin(origin, hosts[0]))

    def _check_here(self, scope: AsgiScope) -> None:
        """Without keys, a client must name this machine as the host, and not come through a proxy on it."""
        if self._is_off:
            return
        for name, value in scope["headers"]:
            if name in ADDRESS_HEADERS:
                if value and not name_this_machine(value):
                    raise Problem("misdirected", THIS_MACHINE)
            elif name in PROXY_HEADERS or name.startswith(b"x-forwarded-"):
                raise Problem("misdirected", THROUGH_A_PROXY)


def check(caller: Caller, access: Access) -> None:
    """Return if the caller meets `access`.

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
    """The problem 401; `error` is a code of RFC 6750."""
    challenge = f'{REALM}, error="{error}"' if error else REALM
    return Problem("unauthorized", detail, headers=[(b"www-authenticate", challenge.encode())])


def _repeated(name: str) -> Problem:
    return Problem("invalid-header", f"{name} must be sent once; this request has it more than once")


def failed_too_often(wait_s: float) -> Problem:
    """The problem 429 of an address that sent too many wrong keys or tickets."""
    detail = (
        "authentication failed too often for this address; "
        f"try again in {math.ceil(wait_s)} s, or with a valid key, which is still accepted"
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
    """Take the ticket out of the query string, so that handlers neither show it nor refuse it as unknown."""
    query: bytes = scope["query_string"]
    parts = query.split(b"&")
    scope["query_string"] = b"&".join(part for part in parts if not part.startswith(b"ticket="))
    given: list[Any] = [part for part in parts if part.startswith(b"ticket=")]
    return dict(parse_qsl(given[0].decode("latin-1"))).get("ticket", "") if len(given) == 1 else ""


def _foreign_origin(what: str) -> Problem:
    detail = f"{what} are only allowed for pages of this origin and of those in TASKPOOL_CORS_ORIGINS"
    return Problem("forbidden", detail)
