"""The address of Redis and our user there, read from a URL. Sentinels are asked for the master at each connection.

This is the only file that knows which kinds of URLs there are: `Address` is for our own connections, `connect` makes
clients of redis-py.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlencode

from redis import Redis, Sentinel
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import RedisError
from redis.retry import Retry

from taskpool.errors import ConfigurationError
from taskpool.redis.calls import Part
from taskpool.settings import SentinelUrl, is_sentinel_url

SENTINEL_TIMEOUT_S: Final = 1.0
"""How long each sentinel may take to answer; there are others to ask."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is, and our user there: at the unix socket `path`; else at the master that `sentinels` know; else at
    `host` and `port`."""

    path: str | None
    host: str
    port: int
    db: int
    username: str | None
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None
    sentinels: SentinelUrl | None = None
    must_be_master: bool = False
    """The sentinels named it. After a failover that they don't know of yet, it is a replica by now, or is empty."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `rediss+sentinel://` URL, with redis-py's
        `ssl_*` query options. Raises: ConfigurationError."""
        try:
            if is_sentinel_url(url):
                found = SentinelUrl.parse(url)
                tls = None if found.tls is None else _tls(_tls_options(found))
                return cls(None, found.service, 0, found.db, found.username, found.password, tls, found)
            options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ConfigurationError(f"not a Redis URL: {error}") from None
        return cls(
            path=options.get("path"),
            host=options.get("host", "localhost"),
            port=options.get("port", 6379),
            db=options.get("db", 0),
            username=options.get("username"),
            password=options.get("password"),
            tls=_tls(options) if url.startswith("rediss://") else None,
        )

    def __str__(self) -> str:
        return self.path or (str(self.sentinels) if self.sentinels else f"{self.host}:{self.port}")

    def located(self) -> Address:
        """The address to connect to: this one, or the master's, for which it asks the sentinels (and blocks).

        Raises: OSError, when no sentinel knows a master that lives.
        """
        if self.sentinels is None:
            return self
        asked = _sentinel(self.sentinels)
        try:
            host, port = asked.discover_master(self.sentinels.service)  # type: ignore[no-untyped-call]
        except RedisError as error:
            raise ConnectionError("no sentinel knows a master that lives") from error
        finally:
            for sentinel in asked.sentinels:
                sentinel.close()
        return replace(self, host=host, port=port, sentinels=None, must_be_master=True)

    def greeting(self, name: str, protocol: int = 2) -> list[tuple[Part, ...]]:
        """The first commands on a connection called `name` that speaks RESP 2 or 3."""
        commands: list[tuple[Part, ...]] = []
        if self.password is not None:
            commands.append(("AUTH", self.username, self.password) if self.username else ("AUTH", self.password))
        if self.db:
            commands.append(("SELECT", self.db))
        if protocol != 2:
            commands.append(("HELLO", protocol))
        commands.append(("CLIENT", "SETNAME", name))
        if self.must_be_master:
            commands.append(("INFO", "replication"))  # an ACL user may lack ROLE, which is a dangerous command
        return commands


def connect(url: str, **options: Any) -> Redis:
    """A client of redis-py, for what doesn't have to be fast; `options` are those of `redis.Redis`. With sentinels,
    each of its connections goes to the server that is the master when it is opened. Raises: ValueError."""
    if not is_sentinel_url(url):
        return Redis.from_url(url, **options)
    found = SentinelUrl.parse(url)
    who = {"db": found.db, "username": found.username, "password": found.password, **_tls_options(found)}
    client: Redis = _sentinel(found).master_for(found.service, **who, **options)  # type: ignore[no-untyped-call]
    return client


def why_no_master(url: str) -> str:
    """Why the sentinels of a URL name no master: the error of the first one that doesn't answer, if there is one."""
    found = SentinelUrl.parse(url)
    for sentinel in _sentinel(found).sentinels:
        try:
            sentinel.ping()
        except RedisError as error:
            return f"a sentinel doesn't answer: {error}"
        finally:
            sentinel.close()
    return f"the sentinels know no master of the service {found.service!r} that lives"


def _sentinel(url: SentinelUrl) -> Sentinel:
    options = {
        "username": url.sentinel_username,
        "password": url.sentinel_password,
        "socket_timeout": SENTINEL_TIMEOUT_S,
        "socket_connect_timeout": SENTINEL_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        **_tls_options(url),
    }
    return Sentinel(url.sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call]


def _tls_options(url: SentinelUrl) -> dict[str, Any]:
    """The arguments of redis-py's clients for TLS."""
    if url.tls is None:
        return {}
    read: dict[str, Any] = dict(parse_url(f"rediss://h?{urlencode(url.tls)}"))  # type: ignore[no-untyped-call]
    return {"ssl": True, **{name: read[name] for name in url.tls}}


def _tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    """The TLS context of our own connections, from the options that redis-py reads from a URL."""
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    if options.get("ssl_check_hostname") is False:
        context.check_hostname = False
    if options.get("ssl_cert_reqs") in ("none", ssl.CERT_NONE):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
