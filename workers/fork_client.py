"""The supervisor's side of one fork server: starts it, has it fork worker processes, and receives their ends.

A fork client lives as long as the code that its server loaded is wanted: a reload starts a new one beside it. When the
fork server dies, all its workers die with it, and each is reported as ended.

A fork server that is frozen can't report anything. So the supervisor also looks at each worker process. When a worker
has died and the fork server doesn't report it, or doesn't answer in other ways, it counts as silent for good: another
one is started in its place, the living workers finish their tasks, and it is killed when the last of them has ended.

`ProcessHandle` is one worker process as the supervisor sees it: its memory, its process group, and why it was killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, Final

import msgspec

from taskpool.errors import ConfigurationError
from taskpool.settings import Settings
from taskpool.tasks.schedule import DeclaredSchedule
from taskpool.types import TypeInfo

from . import process_group
from .duties import BackgroundTasks, log
from .shared_memory import BatchView, Block, LaneState, Request, Run, SharedMemory

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
STACKS_S: Final = 1.0
"""How long it may take to tell what a process wrote into its file for stacks."""


class ForkServerLost(Exception):
    """Raised when the fork server has died, which ends what it forked, or doesn't answer."""


class ForkRefused(Exception):
    """Raised when the fork server can't fork now: the host lacks file descriptors, processes or memory."""


class Ending(msgspec.Struct, frozen=True):
    """How a worker process ended: its wait `status` (None: unknown), what it used (`max_rss_bytes`, `user_s`,
    `system_s`), the dump of its threads, and by stream what stood unread in its pipes. `cause` is the reason when the
    process itself wasn't."""

    status: int | None
    usage: Mapping[str, float] = msgspec.field(default_factory=dict)
    stacks: str = ""
    output: Mapping[str, str] = msgspec.field(default_factory=dict)
    cause: str = ""


class LoadedTasks(msgspec.Struct, frozen=True):
    """The imported task modules: their types, the queues of those, their source files, their build, and the schedules
    that each module declares."""

    types: tuple[TypeInfo, ...] = ()
    queues: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    build: str = ""
    schedules: Mapping[str, tuple[DeclaredSchedule, ...]] = msgspec.field(default_factory=dict)


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
        self._dumps: dict[int, asyncio.Future[str]] = {}
        """By process id, of the worker processes whose stacks are asked for."""
        self._tasks = BackgroundTasks()
        self._older: set[int] = set()  # the processes that the task modules started when they were imported
        self._stopped_mono: float | None = None
        self.pid = 0
        self.loaded = LoadedTasks()
        self.is_lost = self.is_silent = False
        self.runs_at_loss = 0
        """How many attempts died with the fork server."""
        self.withheld_blocks: list[int] = []
        """Blocks that it may still give to a process, although it is silent."""

    @property
    def is_usable(self) -> bool:
        """Whether it can fork more processes."""
        return not self.is_lost and not self.is_silent

    async def start(self, settings: Settings, *, checks: bool = False) -> None:
        """Starts the fork server and waits until the task modules are loaded. `checks`: stored payloads are checked as
        the setting says.

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
            self._send({"settings": settings, "blocks": self._memory.blocks, "checks": checks})
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
        return pid, end

    async def take_stacks(self, pid: int) -> str:
        """What a worker process wrote into its file for stacks since this was called last. One call at a time for each
        process. Raises: TimeoutError."""
        self._dumps[pid] = asyncio.get_running_loop().create_future()
        self._send({"stacks": pid})
        try:
            async with asyncio.timeout(STACKS_S):
                return await self._dumps[pid]
        finally:
            del self._dumps[pid]

    async def close(self) -> None:
        """Ends the fork server and every worker it still has. Repeating it does nothing."""
        self._tasks.cancel()
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
        elif "stacks_of" in message:
            dump = self._dumps.get(message["stacks_of"])
            if dump is not None and not dump.done():
                dump.set_result(message["text"])
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
        """Called twice a second. Notices dead workers that aren't reported, and a fork server that is stopped while it
        has nothing to do."""
        for pid, report in self._ends.items():
            if not process_group.is_process_alive(pid):
                self._tasks.spawn(self._await_report(pid, report))
        if not self.is_usable or not process_group.is_stopped(self.pid):
            self._stopped_mono = None
        elif self._stopped_mono is None:
            self._stopped_mono = time.monotonic()
        elif time.monotonic() - self._stopped_mono > IDLE_STOPPED_S:
            self._fall_silent("it is stopped")

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


# --- one worker process -----------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """Why the supervisor ended an attempt. Without a verdict, the end of its process is a crash."""

    TIMEOUT = "timeout"
    STOPPED = "stopped"
    GIVEN_BACK = "given_back"
    LEASE_LOST = "lease_lost"


class ProcessHandle:
    """A worker process. `pid` is also the id of its process group."""

    def __init__(self, name: str, pid: int, block: Block, fork_client: ForkClient, queues: tuple[str, ...]) -> None:
        self.name, self.pid, self.block, self.fork_client, self.queues = name, pid, block, fork_client, queues
        self.verdicts: dict[str, Verdict] = {}
        """By attempt id. If there are any, attempts without one weren't the reason for the kill."""
        self.asked_for_stacks: set[str] = set()
        """Attempt ids."""
        self._takes_stacks = asyncio.Lock()
        self.ended = asyncio.Event()
        self.is_draining = self.is_dismissed = False
        self.relieved_batch = 0
        """The number of the last batch that the supervisor took from it."""

    def runs(self) -> list[Run]:
        """The attempts it runs now."""
        return self.block.runs()

    def batch(self) -> BatchView | None:
        """What it has claimed together, as long as that isn't all written."""
        return self.block.batch.view()

    def results(self) -> Mapping[str, bytes]:
        """By attempt id: the results, as JSON, of attempts of its batch that Redis may not have."""
        view = self.batch()
        if view is None:
            return {}
        pairs = list(zip(view.members, view.results, strict=False))[view.written :]
        return {member.attempt_id: result for member, result in pairs if result}

    def memory_bytes(self) -> int:
        """The memory that it uses now."""
        return process_group.memory_bytes(self.pid)

    def is_running(self, run: Run) -> bool:
        """Whether the task's code of this very attempt goes on."""
        now = self.block.run(run.lane)
        return not self.ended.is_set() and now is not None and now.run == run.run and now.state is LaneState.RUNNING

    def drain(self) -> None:
        """Has it claim nothing more and end when its tasks have ended."""
        self.is_draining = True
        self.block.head.drain = 1

    def dismiss(self) -> None:
        """Drains it, and it isn't replaced."""
        if not self.is_draining:
            self.is_dismissed = True
            self.drain()

    def ask(self, run: Run, request: Request) -> None:
        """Asks it to end one attempt by itself."""
        self.block.ask(run, request)
        self.wake()

    def wake(self) -> None:
        """Has it read its requests."""
        self._signal(signal.SIGUSR1)

    def ask_for_stacks(self, run: Run) -> None:
        """Has it dump the stacks of its threads because of this attempt, within `process_group.WRITE_S`."""
        self.asked_for_stacks.add(run.attempt_id)
        self._signal(process_group.STACKS_SIGNAL)

    async def take_stacks(self, run: Run) -> str:
        """The stacks of its threads, and that of this attempt if it is one of many. Empty if it is about to be killed:
        what it writes then belongs to the report of its end. Raises: TimeoutError."""
        async with self._takes_stacks:
            if self.asked_for_stacks:
                return ""
            await self.fork_client.take_stacks(self.pid)
            if self.block.lanes > 1:
                self.block.head.stack_of = run.lane + 1
                self.wake()
            self._signal(process_group.STACKS_SIGNAL)
            await asyncio.sleep(process_group.WRITE_S)
            return await self.fork_client.take_stacks(self.pid)

    def _signal(self, number: signal.Signals) -> None:
        if not self.ended.is_set():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to the process and everything it started."""
        if not self.ended.is_set():
            process_group.signal_group(self.pid, number)

    def kill(self, verdict: Verdict, run: Run | None = None) -> None:
        """Kills it because of one attempt, or of all it runs."""
        for doomed in self.runs() if run is None else [run]:
            self.verdicts.setdefault(doomed.attempt_id, verdict)
        self.signal_group(signal.SIGKILL)

    def note_fenced(self) -> None:
        """Notes the attempts because of which its guardian killed it."""
        for run in self.runs():
            if self.block.asked(run) is Request.FENCED:
                self.verdicts.setdefault(run.attempt_id, Verdict.LEASE_LOST)
                log.warning(
                    "task %s: its lease can't be renewed, and the supervisor didn't act in time: its guardian killed"
                    " the process group %d (on_lost_lease is kill)", run.id, self.pid,
                )  # fmt: skip
