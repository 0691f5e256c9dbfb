"""One Taskpool on this machine: Redis, a worker pool and the API, each as a process.

`Instance` starts them in this order and stops them in the reverse order. The API is last, so that workers serve by the
time `/readyz` answers 200. A part that ends by itself ends the instance: a restart would hide the reason.

Each part has a session of its own, so that Ctrl-C and a hang-up of the terminal reach only the launcher, which stops
the parts in order. If the launcher is killed, a `Watcher` ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from taskpool.async_pool import AsyncTaskPool
from taskpool.cli.options import environment
from taskpool.errors import ConfigurationError, RedisUnavailable, TaskpoolError
from taskpool.operations import catalog
from taskpool.redis.embedded import EmbeddedRedis, Watcher, check_redis
from taskpool.settings import Settings


def claim_port(host: str, port: int) -> int:
    """The port itself when it can be listened on, a free one for 0.

    Raises:
        ConfigurationError: it's in use, not allowed, or the host isn't an address of this machine.
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
        raise ConfigurationError(_obstacle(host, port, error)) from None


def local_url(host: str, port: int) -> str:
    """The URL by which this machine reaches a server that listens there."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def answers_ready(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a Taskpool at this URL says that it's ready. Blocks for `timeout_s` seconds at most."""
    return _status(url + "/readyz", timeout_s) == http.HTTPStatus.OK


def wants_key(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a Taskpool at this URL asks for an API key. Blocks as long."""
    return _status(url + "/types", timeout_s) == http.HTTPStatus.UNAUTHORIZED


def _status(url: str, timeout_s: float) -> int | None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _obstacle(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop what listens there, or choose another: --port {port + 1}"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than you have; choose one above 1023: --port 8080"
    return f"can't listen on {host}, port {port}: {error.strerror or error}"


ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def cancelled_by_signals(again: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a hang-up of the terminal cancel the current task; each further one calls `again`."""
    loop, current = asyncio.get_running_loop(), asyncio.current_task()
    assert current is not None

    def on_signal() -> None:
        if current.cancelling():
            again()
        else:
            current.cancel()

    for number in ENDING:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)


Tell = Callable[[str, str], None]
"""Takes a part's name and one line of its output."""

TAIL_LINES: Final = 15
LONGEST_LINE: Final = 16_384
READ_REST_S: Final = 1.0
HOLD_S: Final = 5.0
CONFIGURATION_FAULT: Final = 2
"""The exit status by which a part says that a setting or a task module is wrong."""


class Part:
    """A process by its name. `ended` gives its exit status, once it's gone and its output is read."""

    def __init__(self, name: str, tell: Tell) -> None:
        self.name = name
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._ended: asyncio.Task[int] | None = None
        self._last_words = _LastWords(name, tell)

    async def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it."""
        # A pipe of our own: with asyncio's pipe, `wait` would also wait for other processes that hold its end.
        reading, writing = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env={**environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._ended = asyncio.create_task(self._attend(self._process, reading))

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    async def ended(self) -> int:
        """Wait until it's gone; its exit status, negative for the signal that killed it."""
        assert self._ended is not None, "not started"
        return await asyncio.shield(self._ended)

    async def stop(self, limit_s: float) -> bool:
        """Ask it to end, with SIGTERM; after `limit_s` kill its process group. True when it ended by itself."""
        self.send(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.ended(), limit_s)
        except TimeoutError:
            self.kill()
            await self.ended()
            return False
        return True

    def send(self, number: signal.Signals) -> None:
        """Signal the process alone; nothing when it has ended."""
        if self._process is not None and self._process.returncode is None:
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                pass  # it ended between the look and the signal

    def kill(self) -> None:
        """Kill its whole process group; nothing when it has ended."""
        if self._process is not None and self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # as above

    async def _attend(self, process: asyncio.subprocess.Process, output: int) -> int:
        reading = asyncio.create_task(self._read(output))
        status = await process.wait()
        # A grandchild may still hold the pipe's other end: don't wait for its end of file.
        await asyncio.wait([reading], timeout=READ_REST_S)
        reading.cancel()
        await asyncio.wait([reading])
        self._last_words.close(are_told=status == CONFIGURATION_FAULT)
        return status

    async def _read(self, output: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", 0)
        )
        try:
            await self._read_lines(reader)
        finally:
            transport.close()

    async def _read_lines(self, reader: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await reader.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._pass_on(line)
        if rest:
            self._pass_on(rest)

    def _pass_on(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self.tail.append(text)
        self._last_words.hear(text)


class _LastWords:
    """Passes lines on, except those in which a part says why it can't start: the error of the instance contains them.

    Such lines begin with the part's name. If the part lives on, they are passed on after `HOLD_S`.
    """

    def __init__(self, name: str, tell: Tell) -> None:
        self._name = name
        self._tell = tell
        self._held: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def hear(self, text: str) -> None:
        """Take a line."""
        if not self._held and not text.startswith(("taskpool: ", f"{self._name}: ")):
            self._tell(self._name, text)
            return
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HOLD_S, self._pass_on)
        self._held.append(text)

    def close(self, *, are_told: bool) -> None:
        """Ends the output. `are_told`: the held lines are in the error of the instance, so they are dropped here."""
        if are_told:
            self._held.clear()
        self._pass_on()

    def _pass_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for text in self._held:
            self._tell(self._name, text)
        self._held.clear()


READY_LIMIT_S: Final = 60.0
LOOK_S: Final = 0.05
REDIS_LOOK_S: Final = 0.5
API_STOP_S: Final = 15.0
DRAIN_MARGIN_S: Final = 10.0
HURRY_S: Final = 5.0
BETWEEN_SIGNALS_S: Final = 0.2  # two that come at once are one to the process
TAKING: Final = ("idle", "busy")

T = TypeVar("T")


class PartDied(TaskpoolError):
    """Raised when a part of the instance ended by itself, or never served. The text contains its last output, if that
    wasn't printed before."""

    def __init__(self, what: str, tail: Iterable[str]) -> None:
        lines = [f"  {line}" for line in tail]
        super().__init__("\n".join([what + ("; its last output:" if lines else ""), *lines]))


class Instance:
    """One instance: `start` it, wait until it has `died` or for whatever else, and always `stop` it."""

    def __init__(self, settings: Settings, *, tell: Tell | None = None, reload: bool = False) -> None:
        """`tell` takes what the parts print; without it, an error that ends the instance has their last lines."""
        self.settings = settings
        self._is_quiet = tell is None
        self._tell: Tell = tell or (lambda name, line: None)
        self._reload = reload
        self._redis: EmbeddedRedis | None = None
        self._watcher: Watcher | None = None
        self._parts: list[Part] = []
        self._hurry = asyncio.Event()

    @property
    def url(self) -> str:
        """Where this machine reaches the API."""
        return local_url(self.settings.host, self.settings.port)

    @property
    def data_dir(self) -> Path | None:
        """Where the data lies; None with a Redis that somebody else runs."""
        return self._redis.data_dir if self._redis is not None else None

    async def start(self) -> None:
        """Start every part; returns when the API says that it's ready.

        Raises:
            ConfigurationError: something stands in the way, such as a port in use or a wrong task module.
            PartDied: a part ended instead of serving, or didn't serve within 60 s.
        """
        port = claim_port(self.settings.host, self.settings.port)
        self.settings = replace(self.settings, port=port, redis_url=await self._start_redis())
        self._watcher = Watcher()
        await self._start_part("workers", "taskpool_workers", *(["--reload"] if self._reload else []))
        await self._until(self._workers_serve)
        await self._start_part("api", "taskpool_api")
        await self._until(lambda: asyncio.to_thread(answers_ready, self.url))

    async def died(self) -> None:
        """Wait until a part ends by itself.

        Raises:
            PartDied: it did; the only way out.
        """
        watched = [asyncio.create_task(self._outlive(part)) for part in self._parts]
        watched.append(asyncio.create_task(self._outlive_redis()))
        try:
            for ended in asyncio.as_completed(watched):
                await ended
        finally:
            for task in watched:
                task.cancel()

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, as long as every part lives.

        Raises:
            PartDied: one ended first; `work` is cancelled.
        """
        working, death = asyncio.create_task(work), asyncio.create_task(self.died())
        try:
            await asyncio.wait([working, death], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await death
            return await working
        finally:
            working.cancel()
            death.cancel()

    async def stop(self) -> None:
        """Stop every part in order: the API takes no more, the workers finish what runs, Redis saves."""
        limits = {"api": API_STOP_S, "workers": self.settings.grace_s + DRAIN_MARGIN_S}
        for part in reversed(self._parts):
            await self._stop_part(part, limits[part.name])
        if self._redis is not None:
            await asyncio.to_thread(self._redis.__exit__, None, None, None)
        if self._watcher is not None:
            self._watcher.close()

    def hurry(self) -> None:
        """Let `stop` wait no longer for what runs; the tasks go back to their queues."""
        self._hurry.set()

    async def _start_redis(self) -> str:
        if self.settings.redis_url:
            await asyncio.to_thread(check_redis, self.settings.redis_url)
            return self.settings.redis_url
        redis = EmbeddedRedis(self.settings.data_dir, binary=self.settings.redis_server)
        await asyncio.to_thread(redis.__enter__)
        self._redis = redis
        return redis.url

    async def _start_part(self, name: str, *arguments: str) -> None:
        assert self._watcher is not None
        part = Part(name, self._tell)
        # -P: a file in the current directory, such as redis.py, must not hide a module that this program imports.
        await part.start([sys.executable, "-P", "-m", *arguments], environment(self.settings))
        self._watcher.add(part.pid)
        self._parts.append(part)

    async def _until(self, is_ready: Callable[[], Awaitable[bool]]) -> None:
        """Wait until `is_ready` says so."""

        async def look() -> None:
            while not await is_ready():
                await asyncio.sleep(LOOK_S)

        try:
            await self.during(asyncio.wait_for(look(), READY_LIMIT_S))
        except TimeoutError:
            part = self._parts[-1]
            raise self._death(part, f"didn't get ready within {READY_LIMIT_S:g} s") from None

    async def _workers_serve(self) -> bool:
        """Whether our pool has announced itself and as many of its worker processes as we asked for take tasks."""
        mine = (socket.gethostname(), self._parts[0].pid)
        try:
            async with AsyncTaskPool(self.settings.redis_url or "") as pool:
                found = await pool.store.carry_out(catalog.pools())
                names = {name for info in found if (info.host, info.pid) == mine for name in info.workers}
                workers = [worker for worker in await pool.workers() if worker.name in names]
        except RedisUnavailable:
            return False  # it loads its data, or it's gone: then `died` says so
        return sum(worker.state in TAKING for worker in workers) >= self.settings.workers

    async def _outlive(self, part: Part) -> None:
        status = await part.ended()
        if status == CONFIGURATION_FAULT:
            raise ConfigurationError(_last_words(part))
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise self._death(part, how)

    def _death(self, part: Part, how: str) -> PartDied:
        return PartDied(f"{part.name} {how}", part.tail if self._is_quiet else ())

    async def _outlive_redis(self) -> None:
        while self._redis is None or self._redis.pid is not None:
            await asyncio.sleep(REDIS_LOOK_S)
        self.hurry()  # running tasks can't report their ends any more
        raise PartDied(f"redis ended; see {self._redis.data_dir / 'redis.log'}", ())

    async def _stop_part(self, part: Part, limit_s: float) -> None:
        stopping = asyncio.create_task(part.stop(limit_s))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([stopping, hurry], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stopping.done():
            await asyncio.wait([stopping], timeout=BETWEEN_SIGNALS_S)
            part.send(signal.SIGTERM)  # the second one: don't wait for what runs
            await asyncio.wait([stopping], timeout=HURRY_S)
            part.kill()
        if not await stopping:
            self._tell(part.name, "killed: it didn't end in time")


def _last_words(part: Part) -> str:
    """What a part said of its configuration: from the last line that starts with a name, as errors do."""
    lines = list(part.tail)
    for at in reversed(range(len(lines))):
        name, colon, words = lines[at].partition(": ")
        if colon and name in ("taskpool", part.name):
            return "\n".join([words, *lines[at + 1 :]])
    return "\n".join([f"{part.name} can't start:", *lines])
