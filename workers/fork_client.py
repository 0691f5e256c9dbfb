"""The supervisor's end of one fork server: starts it, has it fork, hears of every end.

A nursery lives as long as the code it loaded is wanted: a reload starts a new one beside it. When the fork server
itself dies, all its workers die with it, and each is reported as ended.

A fork server that is frozen can't report anything. So the supervisor watches each worker process itself (by a pidfd,
where the kernel has them). When one has died and the fork server doesn't report it, or doesn't answer in other ways,
the nursery counts as silent: another one is started in its place, the living workers finish their tasks, and the
frozen fork server is killed when the last of them has ended.
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
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from taskpool.errors import ConfigurationError
from taskpool.settings import Settings
from taskpool.types import TypeInfo

from . import process_group
from .shared_memory import SharedMemory

log = logging.getLogger("workers")

LINE_BYTES = 64 * 1024 * 1024  # all types with their schemas arrive in one line
FORK_S: Final = 15.0
"""How long a fork server may take to fork."""
REPORT_S: Final = 5.0
"""How long it may take to report the end of a worker process: it first ends what the process left behind."""
STOPPED_S: Final = 0.5
"""How long it may be stopped (SIGSTOP, a debugger) while something is expected of it, and otherwise:"""
IDLE_STOPPED_S: Final = 5.0
LOOK_S: Final = 0.05


class NurseryLost(Exception):
    """Raised when the fork server has died, which ends what it forked, or doesn't answer."""


class ForkRefused(Exception):
    """Raised when the fork server can't fork now: the host lacks file descriptors, processes or memory."""


class Ending(msgspec.Struct, frozen=True):
    """How a worker process ended: its wait status (None: only its fork server could have told), what it used from its
    start on (`max_rss_bytes`, `user_s`, `system_s`), the stacks of its threads, if they were written (see stacks), and
    by stream what stood unread in its pipes (see pipes). `cause` says why, if it was for something else than itself."""

    status: int | None
    usage: Mapping[str, float] = msgspec.field(default_factory=dict)
    stacks: str = ""
    output: Mapping[str, str] = msgspec.field(default_factory=dict)
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The task modules as imported: their types, the queues those go to, and their source files."""

    types: tuple[TypeInfo, ...] = ()
    queues: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


class Nursery:
    """A running fork server. `loaded` is what its modules define."""

    def __init__(
        self,
        server: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        memory: SharedMemory,
        *,
        on_end: Callable[[int, Ending], None],
        on_lost: Callable[[Nursery], None],
        on_silent: Callable[[Nursery], None],
    ) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._on_end, self._on_lost, self._on_silent = on_end, on_lost, on_silent
        self._memory = memory
        self._ends: dict[int, asyncio.Future[None]] = {}
        """Of each worker process whose end hasn't been told yet: done when it is."""
        self._forks: dict[int, asyncio.Future[int]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._waits: set[asyncio.Task[None]] = set()
        self._pidfds: set[int] = set()
        self._older: set[int] = set()
        """What the task modules started when they were imported."""
        self._stopped_at: float | None = None
        self.pid = server.pid
        self.loaded = Loaded()
        self.is_lost = False
        self.runs_at_loss: int | None = None
        """How many attempts died with the fork server."""
        self.is_silent = False
        """True when it doesn't answer. That doesn't change any more, even if it goes on."""

    @classmethod
    async def start(
        cls,
        settings: Settings,
        memory: SharedMemory,
        *,
        on_end: Callable[[int, Ending], None],
        on_lost: Callable[[Nursery], None],
        on_silent: Callable[[Nursery], None],
    ) -> Nursery:
        """Starts a fork server and waits until the task modules are loaded.

        `on_end` is called with the process id and the ending of every worker that ended, `on_lost` when the
        fork server itself died, `on_silent` when it doesn't answer any more.

        Raises:
            ConfigurationError: a task module is wrong, or its import ended the process.
            OSError: the host lacks file descriptors, processes or memory.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            python = [sys.executable, *(["-P"] if sys.flags.safe_path else [])]
            numbers = [str(theirs.fileno()), str(memory.fd), str(os.getpid())]
            arguments = [*python, "-m", f"{__package__}.fork_server", *numbers]
            server = subprocess.Popen(
                arguments, pass_fds=(theirs.fileno(), memory.fd), stdin=subprocess.DEVNULL, start_new_session=True
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES)
        nursery = cls(server, reader, writer, memory, on_end=on_end, on_lost=on_lost, on_silent=on_silent)
        try:
            writer.write(msgspec.json.encode({"settings": settings, "blocks": memory.blocks}) + b"\n")
            nursery.loaded = await nursery._load()
        except BaseException:
            await nursery.close()
            raise
        nursery._older = process_group.children(nursery.pid)
        nursery._listener = asyncio.create_task(nursery._listen())
        return nursery

    async def fork(self, block: int, name: str, queues: tuple[str, ...]) -> int:
        """Starts a worker process on a block of the shared memory; returns its process id, which is its group's too.

        Raises:
            NurseryLost: the fork server is gone, or doesn't answer. If it goes on later, it may still fork and use the
                block for a moment: the block is free when the nursery is closed.
            ForkRefused: it can't fork now.
        """
        if self.is_lost or self.is_silent:
            raise NurseryLost
        answer = self._forks[block] = asyncio.get_running_loop().create_future()
        self._writer.write(msgspec.json.encode({"fork": block, "name": name, "queues": queues}) + b"\n")
        if not await self._answers(answer, FORK_S):
            self._forks.pop(block, None)
            self._fall_silent("it was asked to fork a worker process")
            raise NurseryLost
        pid: int = await answer
        self._watch(pid)
        return pid

    def look(self) -> None:
        """Called about each second: notices a fork server that is stopped although nothing is expected of it now, and
        dead workers of a silent one that no pidfd told of."""
        if self.is_silent:
            for pid in [pid for pid in self._ends if not process_group.is_there(pid)]:
                self._died(pid)
        is_stopped = process_group.is_stopped(self.pid)
        if not is_stopped or self.is_silent or self.is_lost:
            self._stopped_at = None
        elif self._stopped_at is None:
            self._stopped_at = time.monotonic()
        elif time.monotonic() - self._stopped_at > IDLE_STOPPED_S:
            self._fall_silent("it is stopped")

    async def close(self) -> None:
        """Ends the fork server and every worker it still has. Repeating it does nothing."""
        for task in (self._listener, *self._waits):
            if task is not None:
                task.cancel()
        for fd in tuple(self._pidfds):
            self._unwatch(fd)
        for answer in self._forks.values():
            if not answer.done():
                answer.set_exception(NurseryLost())
        self._writer.close()  # the end of file tells it to kill what it forked and to end
        if self.is_silent:
            self._server.kill()
        try:
            await asyncio.to_thread(self._server.wait, 5)
        except subprocess.TimeoutExpired:
            self._server.kill()
            await asyncio.to_thread(self._server.wait)

    async def _load(self) -> Loaded:
        line = await self._reader.readline()
        if not line:
            status = await asyncio.to_thread(self._server.wait)
            raise ConfigurationError(f"importing the task modules ended the process ({describe_returncode(status)})")
        message = msgspec.json.decode(line)
        if "error" in message:
            raise ConfigurationError(message["error"])
        return msgspec.convert(message, Loaded)

    async def _listen(self) -> None:
        """Hands on what the fork server says, until it dies."""
        while line := await self._reader.readline():
            self._handle(msgspec.json.decode(line))
        self.is_lost = True
        self._server.kill()
        await asyncio.to_thread(self._server.wait)  # its end of the socket closes a moment before its children are ours
        for answer in self._forks.values():
            if not answer.done():
                answer.set_exception(NurseryLost())
        self._forks.clear()
        for pid in tuple(self._ends):  # their status is unknown: the kernel kills them now, or they died before
            self._ended(pid, Ending(process_group.exit_status(pid), cause="because its fork server died"))
        self._on_lost(self)

    def _handle(self, message: Mapping[str, Any]) -> None:
        if "forked" in message:
            answer = self._forks.pop(message["forked"], None)
            if answer is None:  # it was waited for no longer
                os.kill(message["pid"], signal.SIGKILL)
                return
            self._ends[message["pid"]] = asyncio.get_running_loop().create_future()
            answer.set_result(message["pid"])
        elif "refused" in message:
            answer = self._forks.pop(message["refused"], None)
            if answer is not None:
                answer.set_exception(ForkRefused(message["error"]))
        elif message["ended"] in self._ends:  # else its end was told before: the fork server was frozen then
            self._ended(message["ended"], msgspec.convert(message, Ending))

    # --- a fork server that doesn't answer ---------------------------------------------------------------------------

    def _watch(self, pid: int) -> None:
        """Notices the end of a worker process, even if the fork server doesn't report it."""
        try:
            pidfd = os.pidfd_open(pid)
        except (AttributeError, OSError):  # the kernel has none; it is collected, so its end is reported; no descriptor
            return
        self._pidfds.add(pidfd)
        if process_group.is_child(pid, self.pid):  # else it was collected, and the id may be another process's by now
            asyncio.get_running_loop().add_reader(pidfd, self._on_readable, pid, pidfd)
        else:
            self._unwatch(pidfd)

    def _unwatch(self, pidfd: int) -> None:
        self._pidfds.discard(pidfd)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)

    def _on_readable(self, pid: int, pidfd: int) -> None:
        self._unwatch(pidfd)
        self._died(pid)

    def _died(self, pid: int) -> None:
        if pid in self._ends:
            wait = asyncio.create_task(self._await_report(pid, self._ends[pid]))
            self._waits.add(wait)
            wait.add_done_callback(self._waits.discard)

    async def _await_report(self, pid: int, report: asyncio.Future[None]) -> None:
        """Waits until the fork server reports the end of a worker process, and tells it in its place if it doesn't."""
        if await self._answers(report, REPORT_S):
            return
        self._fall_silent(f"worker process {pid} has died")
        status = process_group.exit_status(pid)  # before anybody collects it
        # Orphans of its tasks have fallen to the fork server, which can't end them.
        await asyncio.to_thread(
            process_group.end_orphans, self.pid, self._older | self._ends.keys() | self._guardians()
        )
        if pid in self._ends:
            self._ended(pid, Ending(status))

    def _guardians(self) -> set[int]:
        """The processes that watch worker processes: children of the fork server, but no orphans."""
        return {self._memory.block(index).guardian_pid for index in range(self._memory.blocks)}

    async def _answers(self, answer: asyncio.Future[Any], within_s: float) -> bool:
        """Waits for something that the fork server is to do; False: it doesn't, or it is stopped."""
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
        if not self.is_silent and not self.is_lost:
            self.is_silent = True
            log.error("fork server %d doesn't answer: %s", self.pid, why)
            self._on_silent(self)

    def _ended(self, pid: int, ending: Ending) -> None:
        """Reports an end, after `on_lost`. The caller of `fork` may not have received the process id yet."""
        self._ends.pop(pid).set_result(None)
        asyncio.get_running_loop().call_soon(self._on_end, pid, ending)


def describe_status(status: int | None) -> str:
    """A wait status in words: "signal SIGKILL", "exit status 3"."""
    if status is None:
        return "unknown status"
    return describe_returncode(os.waitstatus_to_exitcode(status))


def describe_returncode(code: int) -> str:
    """The same of what `subprocess` calls a return code."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"signal {-code}"
