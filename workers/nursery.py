"""The supervisor's end of one fork server: starts it, has it fork, hears of every end.

A nursery lives as long as the code it loaded is wanted: a reload starts a new one beside it. When the fork server
itself dies, all its workers die with it, and each is reported as ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from taskpool.errors import ConfigurationError
from taskpool.fleet import TypeInfo
from taskpool.settings import Settings
from workers.slots import SharedMemory

LINE_BYTES = 64 * 1024 * 1024  # all types with their schemas arrive in one line


class NurseryLost(Exception):
    """Raised when the fork server has died; what it forked died with it."""


class Ending(msgspec.Struct, frozen=True):
    """How a worker process ended: its wait status, what it used from its start on (`max_rss_bytes`, `user_s`,
    `system_s`), the stacks of its threads, if they were written (see stacks), and by stream what stood unread in its
    pipes (see pipes)."""

    status: int
    usage: Mapping[str, float] = msgspec.field(default_factory=dict)
    stacks: str = ""
    output: Mapping[str, str] = msgspec.field(default_factory=dict)


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
        on_end: Callable[[int, Ending], None],
        on_lost: Callable[[Nursery], None],
    ) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._on_end, self._on_lost = on_end, on_lost
        self._pids: set[int] = set()
        self._forks: dict[int, asyncio.Future[int]] = {}
        self._listener: asyncio.Task[None] | None = None
        self.pid = server.pid
        self.loaded = Loaded()
        self.is_lost = False

    @classmethod
    async def start(
        cls,
        settings: Settings,
        memory: SharedMemory,
        *,
        on_end: Callable[[int, Ending], None],
        on_lost: Callable[[Nursery], None],
    ) -> Nursery:
        """Starts a fork server and waits until the task modules are loaded.

        `on_end` is called with the process id and the ending of every worker that ended, `on_lost` when the
        fork server itself died.

        Raises:
            ConfigurationError: a task module is wrong, or its import ended the process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            python = [sys.executable, *(["-P"] if sys.flags.safe_path else [])]
            numbers = [str(theirs.fileno()), str(memory.fd), str(os.getpid())]
            arguments = [*python, "-m", "workers.forkserver", *numbers]
            server = subprocess.Popen(
                arguments, pass_fds=(theirs.fileno(), memory.fd), stdin=subprocess.DEVNULL, start_new_session=True
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES)
        nursery = cls(server, reader, writer, on_end, on_lost)
        try:
            writer.write(msgspec.json.encode({"settings": settings, "blocks": memory.blocks}) + b"\n")
            nursery.loaded = await nursery._load()
        except BaseException:
            await nursery.close()
            raise
        nursery._listener = asyncio.create_task(nursery._listen())
        return nursery

    async def fork(self, block: int, name: str, queues: tuple[str, ...]) -> int:
        """Starts a worker process on a block of the shared memory; returns its process id, which is its group's too.

        Raises:
            NurseryLost: the fork server is gone.
        """
        if self.is_lost:
            raise NurseryLost
        answer = self._forks[block] = asyncio.get_running_loop().create_future()
        self._writer.write(msgspec.json.encode({"fork": block, "name": name, "queues": queues}) + b"\n")
        pid: int = await answer
        return pid

    async def close(self) -> None:
        """Ends the fork server and every worker it still has. Repeating it does nothing."""
        if self._listener is not None:
            self._listener.cancel()
        self._writer.close()  # the end of file tells it to kill what it forked and to end
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
            answer.set_exception(NurseryLost())
        self._forks.clear()
        for pid in tuple(self._pids):
            self._ended(pid, Ending(signal.SIGKILL))
        self._on_lost(self)

    def _handle(self, message: Mapping[str, Any]) -> None:
        if "forked" in message:
            self._pids.add(message["pid"])
            self._forks.pop(message["forked"]).set_result(message["pid"])
        else:
            self._ended(message["ended"], msgspec.convert(message, Ending))

    def _ended(self, pid: int, ending: Ending) -> None:
        """Tells of an end one turn later, so that whoever awaits this very fork has seen its process id before."""
        self._pids.discard(pid)
        asyncio.get_running_loop().call_soon(self._on_end, pid, ending)


def describe_status(status: int) -> str:
    """A wait status in words: "signal SIGKILL", "exit status 3"."""
    return describe_returncode(os.waitstatus_to_exitcode(status))


def describe_returncode(code: int) -> str:
    """The same of what `subprocess` calls a return code."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"signal {-code}"
