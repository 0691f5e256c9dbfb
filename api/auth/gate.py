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
from collections.abc import Iterable, Sequence
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
from taskpool.redis.calls import Call, as_it_is, redis_ms
from taskpool.settings import Settings
from taskpool.types import utc
from taskpool.validation import names_this_machine

from ..http.declarations import ANYONE, Access
from ..http.problems import Problem, retry_after
from ..http.responses import Header
from .caller import SCOPE_KEY, Caller, anonymous
from .rate_limit import FailedAttempts, RateLimits, network
from .session import Session, Sessions, check_page, is_from_elsewhere, read_cookie

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


def read_origins(origins: Iterable[str]) -> frozenset[str]:
    """The origins of TASKPOOL_CORS_ORIGINS, as browsers write them.
    Raises: ConfigurationError: one isn't an exact origin."""
    found = frozenset(origin.lower() for origin in origins)
    for origin in sorted(found):
        if not _ORIGIN.fullmatch(origin):
            raise ConfigurationError(
                f"TASKPOOL_CORS_ORIGINS: {origin!r} is not an origin: give each exactly, like https://app.example.org"
            )
    return found


@lru_cache(maxsize=256)  # every request asks, mostly with the same addresses
def name_this_machine(addresses: bytes) -> bool:
    """Whether all addresses in the value of a header, separated by commas, are this machine's own."""
    return all(names_this_machine(each.strip()) for each in addresses.decode("latin-1").split(","))


FRESH_S: Final = 5.0
"""How long a key is used without reading it again. A revocation takes effect within this time."""
USE_NOTED_S: Final = 60.0
MOST_KEPT: Final = 4096


class _Entry(msgspec.Struct, gc=False):
    key: ApiKey
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
        if entry is None or now_mono - entry.read_at >= FRESH_S or now_mono - entry.noted_at >= USE_NOTED_S:
            return None
        now_ms = now_mono * 1000 + self._clock_offset_ms
        return entry.key if entry.key.takes(digest_of(secret), now_ms) and entry.key.lives(now_ms) else None

    async def verified(self, id: str, secret: str, *, is_listed: bool = False) -> ApiKey | None:
        """The key of this id and secret, if it exists; it may have expired. With `is_listed`, the key is read only if
        its id was in the list of all ids, which is read every few seconds at most.
        Raises: RedisUnavailable."""
        if is_listed and id not in self._entries and not await self._is_listed(id):
            return None
        entry = await self._entry(id)
        if entry is None or not entry.key.takes(digest_of(secret), self._now_ms()):
            return None
        await self._note_use(entry)
        return entry.key

    async def of_session(self, session: Session) -> ApiKey | None:
        """The key of a session, if it is valid and still takes the secret that started the session.
        Raises: RedisUnavailable."""
        entry = await self._entry(session.key)
        if entry is None or not (self.lives(entry.key) and entry.key.takes(session.digest, self._now_ms())):
            return None
        await self._note_use(entry)
        return entry.key

    async def _note_use(self, entry: _Entry) -> None:
        if time.monotonic() - entry.noted_at >= USE_NOTED_S:
            entry.noted_at = time.monotonic()  # now, so that concurrent requests don't record it as well
            with suppress(RedisUnavailable):  # Redis is full or went away: the next use is recorded
                await self._store.run(keyring.note_use(entry.key.id))

    async def living(self, id: str) -> ApiKey | None:
        """The key of this id, unless it was revoked or has expired. Raises: RedisUnavailable."""
        entry = await self._entry(id)
        return entry.key if entry is not None and self.lives(entry.key) else None

    def lives(self, key: ApiKey) -> bool:
        """Whether a key hasn't expired."""
        return key.lives(self._now_ms())

    async def _is_listed(self, id: str) -> bool:
        if time.monotonic() - self._listed_at >= FRESH_S:
            self._listed_at = time.monotonic()  # now, so that concurrent requests don't read it as well
            self._listed = await self._store.run(keyring.ids())
        return id in self._listed

    async def _entry(self, id: str) -> _Entry | None:
        entry = self._entries.get(id)
        if entry is not None and time.monotonic() - entry.read_at < FRESH_S:
            return entry
        key, now_ms = await self._store.run_many(keyring.find(id))
        self._clock_offset_ms = now_ms - time.monotonic() * 1000
        before = self._entries.pop(id, None)
        if key is None:  # not cached: clients could invent any number of ids
            return None
        if len(self._entries) >= MOST_KEPT:
            self._entries.pop(next(iter(self._entries)))
        entry = self._entries[id] = _Entry(key, time.monotonic(), before.noted_at if before else -USE_NOTED_S)
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
        (Call(("SET", keys.TICKET + digest_of(ticket), value, "EX", TICKET_S), as_it_is, again=True), redis_ms())
    )
    return ticket, utc(now_ms + TICKET_S * 1000)


REALM: Final = 'Bearer realm="taskpool"'
SAFE: Final = ("GET", "HEAD")
WITHOUT_KEYS: Final = "until there is an API key, the API serves only this machine, "
ADDRESS_HEADERS: Final = frozenset(
    (b"host", b"x-forwarded-host", b"x-forwarded-for", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip",
     b"true-client-ip", b"cf-connecting-ip")
)  # fmt: skip
"""Headers with names or addresses, all of which must be this machine's."""
ONCE: Final = (b"authorization", b"origin")
PROXY_HEADERS: Final = (b"forwarded", b"via")
"""Only proxies send these, and others that start with `x-forwarded-`."""


class Gate:
    """Admits callers or raises the problem that refuses them. `origins`: the pages that may open sockets."""

    def __init__(self, store: AsyncStore, settings: Settings, origins: frozenset[str]) -> None:
        self._store = store
        self._known = KnownKeys(store)
        self.sessions = Sessions(store)
        self._rates = RateLimits(store, settings)
        self._failed = FailedAttempts()
        self._origins = frozenset(origin.encode() for origin in origins)
        self._is_off = settings.auth == "off"
        self._is_shut = not self._is_off and not names_this_machine(settings.public_address or settings.host)
        self._looked_at = -FRESH_S  # mono

    async def admit(self, scope: AsgiScope, access: Access) -> Caller:
        """The caller of a request or a socket, which meets `access`. From now on, `caller_of` returns it.
        Raises: Problem 400 a repeated header; 401 no valid key; 403 not permitted; 421 the wrong host name; 429 over
        the rate limit, or too many failures of its address; RedisUnavailable."""
        authorization = origin = b""
        if given := [header for header in scope["headers"] if header[0] in ONCE]:
            _check_once(given)
            values = dict(given)
            authorization, origin = values.get(b"authorization", b""), values.get(b"origin", b"")
        if origin and not self._may_come_from(origin, scope):
            if scope["type"] == "websocket":
                raise _foreign_origin("sockets")
            if scope["method"] not in SAFE and not await self.needs_key():
                raise _foreign_origin("changes")
        client = scope.get("client")
        caller = await self._caller(scope, access, authorization, client[0] if client else "")
        await self._rates.take(caller, scope)
        check(caller, access)
        scope[SCOPE_KEY] = caller
        return caller

    async def charge(self, scope: AsgiScope, tasks: int | None = None) -> None:
        """Count more work of an admitted caller: the tasks of a batch, or (None) a message.
        Raises: Problem 429; RedisUnavailable."""
        caller: Caller = scope[SCOPE_KEY]
        await (self._rates.take(caller, scope) if tasks is None else self._rates.take_all(caller, scope, tasks))

    async def still_admits(self, caller: Caller) -> bool:
        """Whether an admitted caller would be admitted again: its key wasn't revoked and hasn't expired.
        Raises: RedisUnavailable."""
        if caller.key is None:
            return not await self.needs_key()
        return await self._known.living(caller.key) is not None

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
        Raises: RedisUnavailable."""
        try:
            caller = await self.known_caller(scope)
            if caller is not None:
                check(caller, access)
        except Problem:
            return False
        return caller is not None

    async def known_caller(self, scope: AsgiScope) -> Caller | None:
        """Who sends a request to a public route; None: it has no key, or no valid one.
        Raises: Problem as `admit`; RedisUnavailable."""
        given = [header for header in scope["headers"] if header[0] == b"authorization"]
        if not given and not read_cookie(scope) and await self.needs_key():  # not a failure: probes send no key
            return None
        client = scope.get("client")
        try:
            _check_once(given)
            return await self._caller(scope, ANYONE, given[0][1] if given else b"", client[0] if client else "")
        except Problem as problem:
            if problem.kind == "unauthorized":
                return None
            raise

    async def sign_in(self, scope: AsgiScope, key: str) -> Session | None:
        """The session that a request of the page with this key may start; None if no key is needed.
        Raises: Problem 401 no valid key; 403 another page has sent it; 429 too many failures; RedisUnavailable."""
        check_page(scope)
        client = scope.get("client")
        caller = await self._caller(scope, ANYONE, b"Bearer " + key.encode(), client[0] if client else "")
        found = TOKEN.fullmatch(key)
        return None if caller.key is None or found is None else Session(caller.key, digest_of(found[2]))

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
            if scope["type"] == "http" and (cookie := read_cookie(scope)):
                return await self._of_session(scope, cookie, address, wait_s)
            raise unauthorized("this needs an API key: send it as Authorization: Bearer tp_...")
        found = _token(authorization)
        if found is None:
            raise unauthorized("Authorization must be `Bearer` and an API key, tp_<id>_<secret>", "invalid_token")
        key = await self._known.verified(found[1], found[2], is_listed=bool(wait_s))
        if key is None:
            raise unauthorized("the API key is unknown: it was revoked, or it is wrong", "invalid_token")
        if not self._known.lives(key):
            raise unauthorized(f"the key {key.name!r} has expired", "invalid_token")
        return _holder(key, address)

    async def _of_session(self, scope: AsgiScope, cookie: str, address: str, wait_s: float) -> Caller:
        if scope["method"] not in SAFE:
            check_page(scope)
        elif is_from_elsewhere(scope):
            raise _foreign_origin("sessions")
        session = await self.sessions.find(cookie, is_known=bool(wait_s))
        key = await self._known.of_session(session) if session is not None else None
        if key is None:
            raise unauthorized("the session has ended: sign in again", "invalid_token")
        return _holder(key, address)

    async def _of_ticket(self, ticket: str, address: str, wait_s: float) -> Caller:
        # Not sent again if the reply is lost: the ticket is used up then, and its holder requests another one.
        redeem = Call(("GETDEL", keys.TICKET + digest_of(ticket)), as_it_is)
        stands_for: bytes | None = None if wait_s else await self._store.run(redeem)
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
        """Whether pages of this origin may send it: listed ones, and those that this `Host` served. (The scheme may
        differ: a proxy may have changed it.)"""
        own = origin.partition(b"://")[2].lower()
        hosts = [value.lower() for name, value in scope["headers"] if name == b"host"]
        return origin.lower() in self._origins or (own != b"" and hosts == [own])

    def _check_here(self, scope: AsgiScope) -> None:
        """Without keys, a client must name this machine as the host, and not come through a proxy on it."""
        if self._is_off:
            return
        for name, value in scope["headers"]:
            if name in ADDRESS_HEADERS:
                if value and not name_this_machine(value):
                    raise Problem("misdirected", WITHOUT_KEYS + "under the names localhost and 127.0.0.1")
            elif name in PROXY_HEADERS or name.startswith(b"x-forwarded-"):
                raise Problem("misdirected", WITHOUT_KEYS + "and not through a proxy")


def check(caller: Caller, access: Access) -> None:
    """Return if the caller meets `access`. Raises: Problem 403."""
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


def _check_once(headers: Sequence[Header]) -> None:
    names = [name for name, _ in headers]
    for name in names:
        if names.count(name) > 1:
            title = name.decode().title()
            raise Problem("invalid-header", f"{title} must be sent once; this request has it more than once")


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
    return Caller(key.id, key.name, key.project, address, types, queues, key.scopes, key.rate_limit)


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
