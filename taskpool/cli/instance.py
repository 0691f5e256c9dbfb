"""One Taskpool on this machine: Redis, a worker pool and the API, each as a process.

`Instance` starts them in this order and stops them in the reverse order. The API is last, so that workers serve by the
time `/readyz` answers 200. A part that ends by itself ends the instance: a restart would hide the reason.

Each part has a session of its own, so that Ctrl-C and a hang-up of the terminal reach only the launcher, which stops
the parts in order. If the launcher is killed, a `Watcher` ends them.
"""

from __future__ import annotations

import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

from taskpool.cli.options import environment
from taskpool.errors import ConfigurationError, RedisUnavailable, TaskpoolError
from taskpool.operations import catalog
from taskpool.pool import TaskPool
from taskpool.redis.embedded import EmbeddedRedis, Watcher, check_redis
from taskpool.settings import Settings

Tell = Callable[[str, str], None]
"""Takes a part's name and one line of its output."""

LONGEST_LINE: Final = 16_384
READ_REST_S: Final = 1.0
HOLD_S: Final = 5.0
CONFIGURATION_FAULT: Final = 2
"""The exit status by which a part says that a setting or a task module is wrong."""


class Part:
    """A process by its name. A thread passes on what it prints, except why it can't start: `fault` has these lines."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], tell: Tell) -> None:
        self.name = name
        self.fault: list[str] = []
        self._tell = tell
        self._hold_s = HOLD_S
        self.process = subprocess.Popen(
            command,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ended(self) -> int | None:
        """Its exit status, negative for the signal that killed it, once its output is read; None while it runs."""
        status = self.process.poll()
        if status is not None:
            self._reader.join(READ_REST_S)  # not longer: a grandchild may hold the pipe's other end
        return status

    def kill(self) -> None:
        """Kill its whole process group; nothing when it has ended."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):  # it ended between the look and the signal
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            while line := output.readline(LONGEST_LINE):
                text = line.decode(errors="replace").rstrip()
                name, colon, words = text.partition(": ")
                if self.fault:
                    self.fault.append(text)
                elif colon and name in ("taskpool", self.name) and self._ends_by_fault():
                    self.fault.append(words)
                else:
                    self._tell(self.name, text)

    def _ends_by_fault(self) -> bool:
        """Whether a line that looks like an error is the reason of its end. If it lives on, waits for `HOLD_S`, and
        half as long each further time: a task module may print many such lines."""
        try:
            return self.process.wait(self._hold_s) == CONFIGURATION_FAULT
        except subprocess.TimeoutExpired:
            self._hold_s /= 2
            return False


READY_LIMIT_S: Final = 60.0
LOOK_S: Final = 0.05
API_STOP_S: Final = 15.0
DRAIN_MARGIN_S: Final = 10.0
HURRY_S: Final = 5.0
BETWEEN_SIGNALS_S: Final = 0.2  # two that come at once are one to the process
TAKING: Final = ("idle", "busy")
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """Raised when a signal has asked the instance to stop."""


class Instance:
    """One instance: `start` it, `look` at it again and again, and always `stop` it."""

    def __init__(self, settings: Settings, tell: Tell, *, reload: bool = False) -> None:
        """`tell` takes what the parts print."""
        self.settings = settings
        self._tell = tell
        self._reload = reload
        self._redis: EmbeddedRedis | None = None
        self._parts: list[Part] = []
        self._resources = ExitStack()
        self._is_asked_to_stop = False
        self._hurries = False

    @property
    def url(self) -> str:
        """Where this machine reaches the API."""
        host, port = self.settings.host, self.settings.port
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
        return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"

    @property
    def data_dir(self) -> Path | None:
        """Where the data lies; None with a Redis that somebody else runs."""
        return self._redis.directory if self._redis is not None else None

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and a hang-up of the terminal ask it to stop. At a further one, `stop` waits no longer for
        what runs; the tasks go back to their queues."""

        def note(number: int, frame: FrameType | None) -> None:
            # It only notes: an exception between the start of a process and its entry in `_parts` would lose it.
            self._hurries |= self._is_asked_to_stop
            self._is_asked_to_stop = True

        before = {number: signal.signal(number, note) for number in ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self) -> None:
        """Start every part; returns when the API says that it's ready.

        Raises:
            ConfigurationError: something stands in the way, such as a port in use or a wrong task module.
            TaskpoolError: a part ended instead of serving, or didn't serve within 60 s.
            Interrupted
        """
        port = claim_port(self.settings.host, self.settings.port)
        url = self.settings.redis_url
        if url is not None:
            check_redis(url)
        else:
            redis = EmbeddedRedis(self.settings.data_dir, binary=self.settings.redis_server)
            self._redis = self._resources.enter_context(redis)
            url = self._redis.url
        self.settings = replace(self.settings, port=port, redis_url=url)
        watcher = self._resources.enter_context(closing(Watcher()))
        self._start_part(watcher, "workers", "taskpool_workers", *(["--reload"] if self._reload else []))
        with TaskPool(url) as pool:
            self._await(lambda: self._workers_serve(pool))
        self._start_part(watcher, "api", "taskpool_api")
        self._await(lambda: self.answer("/readyz") == HTTPStatus.OK)

    def look(self) -> None:
        """Wait a moment. Raises: ConfigurationError or TaskpoolError, when a part has ended; Interrupted."""
        for part in self._parts:
            status = part.ended()
            if status == CONFIGURATION_FAULT:
                raise ConfigurationError("\n".join(part.fault or [f"{part.name} can't start: see its output"]))
            if status is not None:
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
                raise TaskpoolError(f"{part.name} {how}")
        if self._redis is not None and self._redis.pid is None:
            self._hurries = True  # running tasks can't report their ends any more
            raise TaskpoolError(f"redis ended; see {self._redis.directory / 'redis.log'}")
        if self._is_asked_to_stop:
            raise Interrupted
        time.sleep(LOOK_S)

    def stop(self) -> None:
        """Stop every part in order: the API takes no more, the workers finish what runs, Redis saves."""
        limits = {"api": API_STOP_S, "workers": self.settings.grace_s + DRAIN_MARGIN_S}
        for part in reversed(self._parts):
            self._stop_part(part, limits[part.name])
        self._resources.close()

    def answer(self, path: str) -> int | None:
        """The HTTP status that the API answers; None if it doesn't within 2 s."""
        with closing(http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=2)) as connection:
            try:
                connection.request("GET", path)
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):
                return None

    def _start_part(self, watcher: Watcher, name: str, *arguments: str) -> None:
        # -P: a file in the current directory, such as redis.py, must not hide a module that this program imports.
        part = Part(name, [sys.executable, "-P", "-m", *arguments], environment(self.settings), self._tell)
        self._parts.append(part)
        watcher.add(part.process.pid)

    def _await(self, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_LIMIT_S
        while not is_ready():
            if time.monotonic() > deadline:
                raise TaskpoolError(f"{self._parts[-1].name} didn't get ready within {READY_LIMIT_S:g} s")
            self.look()

    def _workers_serve(self, pool: TaskPool) -> bool:
        """Whether our pool has announced itself and as many of its worker processes as we asked for take tasks."""
        mine = (socket.gethostname(), self._parts[0].process.pid)
        try:
            found = pool.store.carry_out(catalog.pools())
            workers = pool.workers()
        except RedisUnavailable:
            return False  # it loads its data, or it's gone: then `look` says so
        names = {name for info in found if (info.host, info.pid) == mine for name in info.workers}
        return sum(worker.name in names and worker.state in TAKING for worker in workers) >= self.settings.workers

    def _stop_part(self, part: Part, limit_s: float) -> None:
        part.process.terminate()
        asked_mono = time.monotonic()
        deadline_mono, is_hurried = asked_mono + limit_s, False
        while part.ended() is None:
            now_mono = time.monotonic()
            if now_mono > deadline_mono:
                part.kill()
                self._tell(part.name, "killed: it didn't end in time")
            elif self._hurries and not is_hurried and now_mono > asked_mono + BETWEEN_SIGNALS_S:
                part.process.terminate()  # the second one: don't wait for what runs
                deadline_mono, is_hurried = now_mono + HURRY_S, True
            else:
                time.sleep(LOOK_S)


def claim_port(host: str, port: int) -> int:
    """The port itself when it can be listened on, a free one for 0.

    Raises: ConfigurationError, when it's in use, not allowed, or the host isn't an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server does: connections that linger from the last run are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except OSError as error:
        obstacle = f"can't listen on {host}, port {port}: {error.strerror or error}"
        if error.errno == errno.EADDRINUSE:
            obstacle = f"port {port} on {host} is in use; stop what listens there, or choose another: --port {port + 1}"
        elif error.errno == errno.EACCES:
            obstacle = f"port {port} needs more rights than you have; choose one above 1023: --port 8080"
        raise ConfigurationError(obstacle) from None
