"""`redis+sentinel://` URLs, and `rediss+sentinel://` with TLS: which sentinels to ask for which master, and who we are
to it and to them. Reading only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEME: Final = "redis+sentinel"
TLS_SCHEME: Final = "rediss+sentinel"
FORM: Final = "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB"
SENTINEL_PORT: Final = 26379
TLS_OPTIONS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """What such a URL says. `username` and `password` are for the master, the other two for the sentinels."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    db: int
    username: str | None
    password: str | None = field(repr=False)
    sentinel_username: str | None
    sentinel_password: str | None = field(repr=False)
    tls: Mapping[str, str] | None = None
    """With TLS, to the sentinels and to the master: redis-py's `ssl_*` options as they stand there; None: without."""

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Read ``redis+sentinel://[user:pass@]host:port[,host:port...]/service[/db]``, with `sentinel_username` and
        `sentinel_password` as query options, and with ``rediss`` redis-py's `ssl_*` options too.

        Raises:
            ValueError: it isn't such a URL; the text doesn't show it.
        """
        parts = urlsplit(url)
        if not is_sentinel_url(url):
            raise ValueError(f"the scheme is neither {SCHEME} nor {TLS_SCHEME}")
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        service, _, db = parts.path.removeprefix("/").partition("/")
        if not service:
            raise ValueError("names no service")
        if db and not db.isdecimal():
            raise ValueError(f"the database {db!r} is not a number")
        options = dict(parse_qsl(parts.query))
        tls = None
        if parts.scheme == TLS_SCHEME:
            tls = {name: value for name, value in options.items() if name in TLS_OPTIONS}
        unknown = options.keys() - {"sentinel_username", "sentinel_password", *(tls or ())}
        if unknown:
            raise ValueError(f"has no option {sorted(unknown)[0]!r}")
        return cls(
            sentinels=tuple([_host_and_port(host) for host in hosts.split(",")]),
            service=unquote(service),
            db=int(db or 0),
            username=unquote(username) or None,
            password=unquote(password) or None,
            sentinel_username=options.get("sentinel_username"),
            sentinel_password=options.get("sentinel_password"),
            tls=tls,
        )

    def __str__(self) -> str:
        return f"{self.service} (sentinels {', '.join(f'{host}:{port}' for host, port in self.sentinels)})"


def is_sentinel_url(url: str) -> bool:
    """Whether a URL is one of these."""
    return url.startswith((f"{SCHEME}:", f"{TLS_SCHEME}:"))


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")  # it knows about brackets, and which ports can be
    if not parts.hostname:
        raise ValueError("names no host")
    return parts.hostname, parts.port or SENTINEL_PORT
