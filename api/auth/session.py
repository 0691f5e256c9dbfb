"""Sessions of the web page: who signs in with an API key gets a cookie, and the page never sees the key again.

The cookie holds 256 random bits; Redis has their hash, with the key's id and the hash of its secret. So a session ends
with its key, or with the rotation of its secret, and after SESSION_S. Scripts of the page can't read the cookie
(HttpOnly), and other sites can't make a browser send it (SameSite=Strict). Beside it, a change needs PAGE_HEADER, which
only scripts of this origin can send, and an `Origin` that is this one.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Final, NamedTuple

from starlette.types import Scope as AsgiScope

from taskpool.access.api_key import digest_of
from taskpool.redis import keys
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, as_it_is

from ..http.prefix import prefix_of
from ..http.problems import Problem
from ..http.responses import Header

SESSION_S: Final = 12 * 3600
PAGE_HEADER: Final = b"taskpool-page"
FRESH_S: Final = 5.0
"""How long a session is used without reading it again: another process may end it."""
MOST_KEPT: Final = 4096
_COOKIE: Final = re.compile(r"[A-Za-z0-9_-]{43}")


class Session(NamedTuple):
    """What a session stands for: a key's id, and the hash of the secret that started it."""

    key: str
    digest: str


class Sessions:
    """The sessions in Redis, each cached for a few seconds, so that most requests of a page cost no round trip."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._found: dict[str, tuple[Session, float]] = {}  # by the cookie's hash; when it was read (monotonic)

    async def start(self, session: Session) -> str:
        """Start a session: the value of its cookie. Raises: RedisUnavailable."""
        cookie = secrets.token_urlsafe(32)
        name = keys.SESSION + digest_of(cookie)
        await self._store.run(Call(("SET", name, " ".join(session), "EX", SESSION_S), as_it_is, again=True))
        return cookie

    async def find(self, cookie: str, *, is_known: bool = False) -> Session | None:
        """The session with this cookie. `is_known`: ask Redis only about one that this process has seen before.
        Raises: RedisUnavailable."""
        digest = digest_of(cookie)
        session, read_mono = self._found.get(digest, (None, 0.0))
        if time.monotonic() - read_mono < FRESH_S or (is_known and session is None):
            return session
        self._found.pop(digest, None)
        reply: bytes | None = await self._store.run(Call(("GET", keys.SESSION + digest), as_it_is, again=True))
        if reply is None:  # not cached: clients could invent any number of cookies
            return None
        if len(self._found) >= MOST_KEPT:
            del self._found[next(iter(self._found))]
        session = Session(*reply.decode().split(" ", 1))
        self._found[digest] = session, time.monotonic()
        return session

    async def end(self, cookie: str) -> None:
        """End a session. Raises: RedisUnavailable."""
        self._found.pop(digest_of(cookie), None)
        await self._store.run(Call(("DEL", keys.SESSION + digest_of(cookie)), as_it_is, again=True))


def read_cookie(scope: AsgiScope) -> str:
    """The value of the session's cookie; empty without a valid one. If there are two, another application of this host
    name has set one of them, and neither counts."""
    name = _name(scope)
    header = "; ".join(value.decode("latin-1") for key, value in scope["headers"] if key == b"cookie")
    found = [value for each in header.split(";") for key, _, value in [each.strip().partition("=")] if key == name]
    return found[0] if len(found) == 1 and _COOKIE.fullmatch(found[0]) else ""


def set_cookie(scope: AsgiScope, value: str) -> Header:
    """The header that gives the browser this cookie; an empty value takes it away."""
    age_s = SESSION_S if value else 0
    secure = "; Secure" if _is_secure(scope) else ""
    cookie = f"{_name(scope)}={value}; Path={prefix_of(scope) or '/'}; Max-Age={age_s}; HttpOnly; SameSite=Strict"
    return b"set-cookie", (cookie + secure).encode()


def check_page(scope: AsgiScope) -> None:
    """Return if a script of this origin's page has sent a request that changes something. Raises: Problem 403."""
    given = dict(scope["headers"])
    origin, host = given.get(b"origin", b""), given.get(b"host", b"")
    if PAGE_HEADER not in given or not host or origin.partition(b"://")[2].lower() != host.lower():
        detail = "with a session, changes are only allowed for the page itself; other programs send an API key"
        raise Problem("forbidden", detail)


def is_from_elsewhere(scope: AsgiScope) -> bool:
    """Whether a browser says that another site's page caused the request."""
    sites = [value for name, value in scope["headers"] if name == b"sec-fetch-site"]
    return any(site not in (b"same-origin", b"none") for site in sites)


def _is_secure(scope: AsgiScope) -> bool:
    return scope.get("scheme") == "https"


def _name(scope: AsgiScope) -> str:
    """With `__Host-`, browsers refuse the cookie from other host names of the same domain."""
    return "__Host-taskpool" if _is_secure(scope) and not prefix_of(scope) else "taskpool_session"
