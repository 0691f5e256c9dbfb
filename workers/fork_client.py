"""The supervisor's side of one fork server: starts it, has it fork worker processes, and receives their ends.

A fork client lives as long as the code that its server loaded is wanted: a reload starts a new one beside it. When the
fork server dies, all its workers die with it, and each is reported as ended.

A fork server that is frozen can't report anything. So the supervisor also watches each worker process (by a pidfd,
where the kernel has them). When a worker has died and the fork server doesn't report it, or doesn't answer in other
ways, it counts as silent for good: another one is started in its place, the living workers finish their tasks, and it
is killed when the last of them has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from taskpool.errors import ConfigurationError
from taskpool.settings import Settings
from taskpool.types import TypeInfo

from . import process_group
from .duties import BackgroundTasks
from .shared_memory import SharedMemory

log = logging.getLogger("workers")

LINE_BYTES: Final = 64 * 1024 * 1024
"""All task types with their schemas arrive in one line."""
FORK_S: Final = 15.0
"""How long a fork server may take to fork."""
REPORT_S: Final = 5.0
"""How long it may take to report the end of a worker process: it first ends the process's orphans."""
STOPPED_S: Final = 0.5
"""How long it may be stopped (SIGSTOP, a debugger) while it has something to do, and otherwise:"""
IDLE_STOPPED_S: Final = 5.0
LOOK_S: Final = 0.05


class ForkServerLost(Exception):
    """Raised when the fork server has died, which ends what it forked, or doesn't answer."""


class ForkRefused(Exception):
    """Raised when the fork server can't fork now: the host lacks file descriptors, processes or memory."""


class Ending(msgspec.Struct, frozen=True):
    """How a worker process ended.

    `status` is its wait status (None: unknown), `usage` what it used (`max_rss_bytes`,
    `user_s`, `system_s`), `stacks` the dump of its threads, if there is one, and `output` what stood unread in its
    pipes, by stream. `cause` is the reason when the process itself wasn't.
    """

    status: int | None
    usage: Mapping[str, float] = msgspec.field(default_factory=dict)
    stacks: str = ""
    output: Mapping[str, str] = msgspec.field(default_factory=dict)
    cause: str = ""


class LoadedTasks(msgspec.Struct, frozen=True):
    """The imported task modules: their types, the queues of those, and their source files."""

    types: tuple[TypeInfo, ...] = ()
    queues: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


class ForkClient:
    """A running fork server. `loaded` is what its modules define. `on_failure` is called when it is lost or silent."""

    def __init__(self, memory: SharedMemory, *, on_failure: Callable[[ForkClient], None]) -> None:
        self._memory, self._on_failure = memory, on_failure
        self._server: subprocess.Popen[bytes]
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._ends: dict[int, asyncio.Future[Ending]] = {}
        """By process id, of the worker processes whose end isn't reported yet."""
        self._forks: dict[int, asyncio.Future[tuple[int, asyncio.Future[Ending]]]] = {}
        """By block, of the workers that are being forked."""
        self._tasks = BackgroundTasks()
        self._pidfds: set[int] = set()
        self._older: set[int] = set()
        """The processes that the task modules started when they were imported."""
        self._stopped_mono: float | None = None
        self.pid = 0
        self.loaded = LoadedTasks()
        self.is_lost = self.is_silent = False
        self.runs_at_loss = 0
        """How many attempts died with the fork server."""

    @property
    def is_usable(self) -> bool:
        """Whether it can fork more processes."""
        return not self.is_lost and not self.is_silent

    async def start(self, settings: Settings) -> None:
        """Starts the fork server and waits until the task modules are loaded.

        Raises:
            ConfigurationError: a task module is wrong, or its import ended the process.
            OSError: the host lacks file descriptors, processes or memory.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            python = [sys.executable, *(["-P"] if sys.flags.safe_path else [])]
            numbers = [str(theirs.fileno()), str(self._memory.fd), str(os.getpid())]
            self._server = subprocess.Popen(
                [*python, "-m", f"{__package__}.fork_server", *numbers],
                pass_fds=(theirs.fileno(), self._memory.fd), stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.pid = self._server.pid
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES)
        try:
            self._send({"settings": settings, "blocks": self._memory.blocks})
            self.loaded = await self._load()
        except BaseException:
            await self.close()
            raise
        self._older = process_group.children(self.pid)
        self._tasks.spawn(self._listen())

    async def fork(self, block: int, name: str, queues: tuple[str, ...]) -> tuple[int, asyncio.Future[Ending]]:
        """Starts a worker process on a block of the shared memory; returns its process id and its end.

        Raises:
            ForkServerLost: the fork server is gone or silent. A silent one may still fork later and use the block for
                a moment: the block is free when this client is closed.
            ForkRefused: it can't fork now.
        """
        if not self.is_usable:
            raise ForkServerLost
        answer = self._forks[block] = asyncio.get_running_loop().create_future()
        self._send({"fork": block, "name": name, "queues": queues})
        if not await self._answers(answer, FORK_S):
            self._forks.pop(block, None)
            self._fall_silent("it was asked to fork a worker process")
            raise ForkServerLost
        pid, end = await answer
        self._watch(pid)
        return pid, end

    async def close(self) -> None:
        """Ends the fork server and every worker it still has. Repeating it does nothing."""
        self._tasks.cancel()
        for fd in tuple(self._pidfds):
            self._unwatch(fd)
        self._refuse_forks()
        self._writer.close()  # at the end of file the fork server kills what it forked, and ends
        if self.is_silent:
            self._server.kill()
        try:
            await asyncio.to_thread(self._server.wait, 5)
        except subprocess.TimeoutExpired:
            self._server.kill()
            await asyncio.to_thread(self._server.wait)

    def _send(self, message: Mapping[str, Any]) -> None:
        self._writer.write(msgspec.json.encode(message) + b"\n")

    async def _load(self) -> LoadedTasks:
        line = await self._reader.readline()
        if not line:
            status = await asyncio.to_thread(self._server.wait)
            raise ConfigurationError(f"importing the task modules ended the process ({_describe_returncode(status)})")
        message = msgspec.json.decode(line)
        if "error" in message:
            raise ConfigurationError(message["error"])
        return msgspec.convert(message, LoadedTasks)

    async def _listen(self) -> None:
        """Handles the fork server's messages until it dies."""
        while line := await self._reader.readline():
            self._handle(msgspec.json.decode(line))
        self.is_lost = True
        self._server.kill()
        await asyncio.to_thread(self._server.wait)  # its end of the socket closes a moment before its children are ours
        self._refuse_forks()
        for pid in tuple(self._ends):  # the kernel kills them now, or they died before
            self._report(pid, Ending(process_group.exit_status(pid), cause="because its fork server died"))
        self._on_failure(self)  # before the reports are received

    def _handle(self, message: Mapping[str, Any]) -> None:
        if "forked" in message:
            answer = self._forks.pop(message["forked"], None)
            if answer is None:  # it came too late
                os.kill(message["pid"], signal.SIGKILL)
                return
            end = self._ends[message["pid"]] = asyncio.get_running_loop().create_future()
            answer.set_result((message["pid"], end))
        elif "refused" in message:
            if answer := self._forks.pop(message["refused"], None):
                answer.set_exception(ForkRefused(message["error"]))
        elif message["ended"] in self._ends:  # else the supervisor saw the end while the fork server was frozen
            self._report(message["ended"], msgspec.convert(message, Ending))

    def _refuse_forks(self) -> None:
        for answer in self._forks.values():
            if not answer.done():
                answer.set_exception(ForkServerLost())
        self._forks.clear()

    def _report(self, pid: int, ending: Ending) -> None:
        self._ends.pop(pid).set_result(ending)

    # --- a fork server that doesn't answer ----------------------------------------------------------------------------

    def look(self) -> None:
        """Called about each second. Notices a fork server that is stopped while it has nothing to do, and dead workers
        of a silent one where there are no pidfds."""
        if self.is_silent:
            for pid in [pid for pid in self._ends if not process_group.is_process_alive(pid)]:
                self._expect_report(pid)
        elif self.is_lost or not process_group.is_stopped(self.pid):
            self._stopped_mono = None
        elif self._stopped_mono is None:
            self._stopped_mono = time.monotonic()
        elif time.monotonic() - self._stopped_mono > IDLE_STOPPED_S:
            self._fall_silent("it is stopped")

    def _watch(self, pid: int) -> None:
        """Notices the end of a worker process, even if the fork server doesn't report it."""
        try:
            pidfd = os.pidfd_open(pid)
        except (AttributeError, OSError):  # the kernel has none; it is reaped, so its end is reported; no descriptor
            return
        self._pidfds.add(pidfd)
        if process_group.is_child(pid, self.pid):  # else it was reaped, and the id may be another process's by now
            asyncio.get_running_loop().add_reader(pidfd, self._on_readable, pid, pidfd)
        else:
            self._unwatch(pidfd)

    def _unwatch(self, pidfd: int) -> None:
        self._pidfds.discard(pidfd)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)

    def _on_readable(self, pid: int, pidfd: int) -> None:
        self._unwatch(pidfd)
        self._expect_report(pid)

    def _expect_report(self, pid: int) -> None:
        if pid in self._ends:
            self._tasks.spawn(self._await_report(pid, self._ends[pid]))

    async def _await_report(self, pid: int, report: asyncio.Future[Ending]) -> None:
        """Waits until the fork server reports the end of a worker process; reports it in its place if it doesn't."""
        if await self._answers(report, REPORT_S):
            return
        self._fall_silent(f"worker process {pid} has died")
        status = process_group.exit_status(pid)  # before it is reaped
        # The fork server has adopted the orphans of its tasks, and can't end them.
        guardians = {self._memory.block(index).head.guardian_pid for index in range(self._memory.blocks)}
        spare = self._older | self._ends.keys() | guardians
        await asyncio.to_thread(process_group.end_orphans, self.pid, spare)
        if pid in self._ends:
            self._report(pid, Ending(status))

    async def _answers(self, answer: asyncio.Future[Any], within_s: float) -> bool:
        """Waits for an answer of the fork server. False: none came in time, or it is stopped."""
        waited_s = stopped_s = 0.0
        looked_mono = time.monotonic()
        while not answer.done():
            await asyncio.wait([answer], timeout=LOOK_S)
            looked_mono, before = time.monotonic(), looked_mono
            # Time in which this process was frozen itself, maybe with the fork server, doesn't count.
            passed_s = min(looked_mono - before, 2 * LOOK_S)
            waited_s += passed_s
            stopped_s = stopped_s + passed_s if process_group.is_stopped(self.pid) else 0.0
            if waited_s > within_s or stopped_s > STOPPED_S:
                return answer.done()
        return True

    def _fall_silent(self, why: str) -> None:
        if self.is_usable:
            self.is_silent = True
            log.error("fork server %d doesn't answer: %s", self.pid, why)
            self._on_failure(self)


def describe_status(status: int | None) -> str:
    """A wait status in words: "signal SIGKILL", "exit status 3"."""
    return "unknown status" if status is None else _describe_returncode(os.waitstatus_to_exitcode(status))


def _describe_returncode(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"signal {-code}"
