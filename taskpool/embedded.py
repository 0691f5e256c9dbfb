"""The embedded Redis: one private server over one data directory, its log of every write on disk.

A file lock keeps two servers off one directory. The server holds that lock too, so that after a crash of its
starter nobody opens the files before it has let go of them. `check_redis` judges any Redis, embedded or not;
`wait_for_redis` waits for one that can't serve yet.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

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

from taskpool import keys
from taskpool.connection.address import connect, why_no_master
from taskpool.connection.replies import TOLD_AGAIN_S, may_pass
from taskpool.connection.wire import greeting_error
from taskpool.errors import ConfigurationError, RedisRefused, TaskpoolError
from taskpool.redis_server import RedisServer, find_redis_server
from taskpool.server_version import ServerVersion
from taskpool.settings import Settings, redact_url

log = logging.getLogger("taskpool")

START_RETRY_S: Final = 0.5
OLDEST_REDIS: Final = (6, 2)
HANDOVER_TIMEOUT_S: Final = 5.0

# No retries, and RESP2: a server too old for the HELLO of RESP3 must still tell its version.
_PLAIN: Final = {"retry": Retry(NoBackoff(), 0), "protocol": 2}

_MAY_WE: Final = f"""
redis.call('DEL', '{keys.NOTHING}', 'rq:nothing')
redis.call('PUBLISH', '{keys.CHANNEL}', '')
redis.call('PUBLISH', '{keys.COMMANDS}', '')
"""
"""Changes nothing, and nobody listens: a user's rights are asked for with it, to keys, channels and scripts."""

_RIGHTS: Final = "its user needs ~rq:* ~taskpool:* &rq:* &taskpool:* +@all -@dangerous +info +client"

PERSISTENCE: Final = {"appendonly": "yes", "appendfsync": "everysec"}
APPEND_ONLY_DIR: Final = "appendonlydir"  # of Redis 7 and later and of Valkey; Redis 6.2 has one file, appendonly.aof
WRITER_FILE: Final = "server"  # the name and version of the server that last served the directory


class EmbeddedRedis:
    """A context in which `data_dir` is served by a Redis of its own; its URL stands in `data_dir/redis.url`.

    `binary` is the server to run, a path or a name on PATH; None: the one that `find_redis_server` finds.

    Example:
        with EmbeddedRedis(settings.data_dir) as redis:
            pool = TaskPool(redis.url)
    """

    def __init__(self, data_dir: str | Path, *, binary: str | None = None) -> None:
        self._binary = binary
        self._settings = Settings(data_dir=str(Path(data_dir).resolve()))
        self._exit = ExitStack()
        self._server: RedisServer | None = None

    @property
    def data_dir(self) -> Path:
        """Where the data lies, absolute."""
        return Path(self._settings.data_dir)

    @property
    def url(self) -> str:
        """The server's URL."""
        assert self._server is not None, "not started"
        return self._server.url

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it doesn't run (it crashed, or somebody ended it)."""
        return self._server.pid if self._server is not None else None

    def __enter__(self) -> Self:
        """Start it; returns once it answers, its data loaded.

        Raises:
            ConfigurationError: the directory can't be used or is in use, a newer server wrote its data, there is
                no server program, it is older than 6.2, or it can't start.
        """
        with ExitStack() as stack:
            try:
                self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = _lock(self.data_dir / "lock", stack)
            except OSError as error:
                raise ConfigurationError(f"can't use the data directory {self.data_dir}: {error.strerror}") from None
            program = find_redis_server(self._binary)
            _check_writer(self.data_dir, program)
            self._server = RedisServer(self.data_dir, binary=program, config=PERSISTENCE, inherit=[lock])
            stack.callback(self._server.stop)
            self._start(self._server)
            _note_writer(self.data_dir, check_redis(self.url))
            self._publish_url(stack)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it: it writes out what it holds and ends."""
        self._exit.close()

    def _start(self, server: RedisServer) -> None:
        has_data = (self.data_dir / APPEND_ONLY_DIR).exists()
        try:
            server.start()
        except ConfigurationError as error:
            hint = "; if another server wrote the data there, name that with TASKPOOL_REDIS_SERVER" if has_data else ""
            raise ConfigurationError(f"{error}{hint}") from None

    def _publish_url(self, stack: ExitStack) -> None:
        file = self._settings.redis_url_file
        fresh = file.with_suffix(".new")
        fresh.write_text(self.url + "\n")
        fresh.replace(file)  # whoever reads it sees the whole line
        stack.callback(file.unlink, missing_ok=True)


def _check_writer(data_dir: Path, program: str) -> None:
    """Return when the data in `data_dir` is older than `program`, or there is none.

    Without this, Redis 6.2 would start empty beside the data of a newer server: it doesn't know where that keeps it.
    """
    try:
        writer = ServerVersion(*(data_dir / WRITER_FILE).read_text().split())
    except (OSError, TypeError):  # no server has started there, or only an older release of ours
        if not (data_dir / APPEND_ONLY_DIR).exists():
            return
        writer = ServerVersion("Redis", "7.0")  # or newer, but then the server itself refuses the format
    reader = ServerVersion.from_program(program)
    if not reader.can_read_files_of(writer):
        raise ConfigurationError(
            f"{reader} ({program}) can't read the data in {data_dir}, which {writer} or newer wrote: name the server "
            "that wrote it with TASKPOOL_REDIS_SERVER, or choose another directory with TASKPOOL_DATA_DIR"
        )


def _note_writer(data_dir: Path, version: ServerVersion) -> None:
    """Note for the next start that `version` serves `data_dir`."""
    file = data_dir / WRITER_FILE
    file.touch(mode=0o600)
    file.write_text(f"{version}\n")


class _NoWrites(RedisRefused):
    """Raised for a Redis that serves, but takes no writes at the moment."""


def check_redis(url: str) -> ServerVersion:
    """Which server the Redis at `url` is: it answers, is new enough, is no replica, and lets us do what we need.

    Raises:
        ConfigurationError: it isn't so; one line says why, without the password.
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
    """Return when a part can start with the Redis at `url`; wait while that can't serve at the moment.

    A Redis that only takes no writes keeps no part from starting: it waits for that while it runs.

    Raises:
        ConfigurationError: as `check_redis`.
    """
    told_at: float | None = None
    while True:
        try:
            version = check_redis(url)
        except _NoWrites as error:
            log.warning("%s; starting, and waiting until it takes writes", error)
            return
        except RedisRefused as error:
            if told_at is None or time.monotonic() - told_at >= TOLD_AGAIN_S:
                told_at = time.monotonic()
                log.warning("%s; waiting to start until it serves", error)
            sleep(START_RETRY_S)
        else:
            if told_at is not None:
                log.warning("the Redis at %s serves; starting", redact_url(url))
            if unsafe := version.security_warning:
                log.warning("%s", unsafe)
            return


def _check_server(client: Redis, where: str) -> ServerVersion:
    version = ServerVersion.from_info(client.info("server"))
    if version.parts < OLDEST_REDIS:
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
        # Only what a write got: a Redis that loads or runs a script refuses reads as well.
        if may_pass(text := _reply(error)) and not text.startswith(("LOADING", "BUSY")):
            raise _NoWrites(f"the Redis at {where} takes no writes now: {text}") from None
        raise


def _refusal(error: Exception, url: str) -> TaskpoolError:
    """What a failed check means to a part that starts."""
    where = redact_url(url)
    if isinstance(error, AuthenticationError):
        return ConfigurationError(f"the Redis at {where} refuses the user or the password: {error}")
    if isinstance(error, ResponseError | BusyLoadingError):
        return _refusal_by_reply(_reply(error), where)
    if isinstance(error, MasterNotFoundError):
        return ConfigurationError(f"can't reach the Redis at {where}: {why_no_master(url)}")
    if isinstance(error, InvalidResponse):
        return ConfigurationError(f"what answers at {where} isn't Redis")
    if isinstance(error, ConnectionError | OSError) and (text := greeting_error(url)):
        return _refusal_by_reply(text, where)
    return ConfigurationError(f"can't reach the Redis at {where}: {error}")


def _refusal_by_reply(text: str, where: str) -> TaskpoolError:
    if may_pass(text):
        return RedisRefused(f"the Redis at {where} can't serve now: {text}")
    if "ACL failure" in text or "NOPERM" in text:
        return ConfigurationError(f"the Redis at {where} doesn't let us: {text}; {_RIGHTS}")
    return ConfigurationError(f"the Redis at {where} refuses us: {text}")


def _reply(error: RedisError) -> str:
    """The whole error reply: redis-py takes off the words that it knows."""
    return f"{error.status_code} {error}" if error.status_code else str(error)


def _lock(path: Path, stack: ExitStack) -> int:
    """Take the lock; its file descriptor, to be inherited by the server."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    stack.callback(os.close, lock)
    deadline = time.monotonic() + HANDOVER_TIMEOUT_S
    while not _try_lock(lock):
        owner = os.pread(lock, 20, 0).decode().strip()
        # When its owner is gone, the server it left behind is writing out its data and follows.
        if _runs(owner) or time.monotonic() > deadline:
            raise ConfigurationError(
                f"the data directory {path.parent} is in use by process {owner or '?'}; "
                "stop that one, or choose another with TASKPOOL_DATA_DIR"
            )
        time.sleep(0.05)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # it runs, as somebody else
        return True
    return True
