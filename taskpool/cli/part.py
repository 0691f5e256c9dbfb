"""One process of an instance: started in a session of its own, its output passed on line by line, stopped in steps.

It has its own session so that Ctrl-C and a hang-up of the terminal reach the launcher alone, which stops
the parts in order. When the launcher is killed outright, a watcher ends them: see `Watcher`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

Tell = Callable[[str, str], None]
"""Takes a part's name and one line of its output."""

TAIL_LINES: Final = 15
LONGEST_LINE: Final = 16_384
READ_REST_S: Final = 1.0
HOLD_S: Final = 5.0
CONFIGURATION_FAULT: Final = 2
"""The exit status by which a part says that a setting or a task module is wrong."""

_WATCH: Final = 'while read -r pid; do pids="$pids $pid"; done; [ -z "$pids" ] || kill -TERM $pids 2>/dev/null'


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
        # A pipe of our own: asyncio's `wait` would wait for whoever else holds the end of one of its pipes.
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
    """Passes lines on, except for those by which a part says why it can't start: whoever started it says that.

    They begin with its name. Should it go on to live, they are passed on after `HOLD_S`.
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
        """There will be no more; `are_told`: what is held is told by somebody else."""
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


class Watcher:
    """A shell that sends SIGTERM to the processes it was told of when we die without `close`."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(["/bin/sh", "-c", _WATCH], stdin=subprocess.PIPE, start_new_session=True)

    def add(self, pid: int) -> None:
        """Guard this process."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{pid}\n".encode())
        self._shell.stdin.flush()

    def close(self) -> None:
        """Guard nothing any more: everything was ended in order."""
        assert self._shell.stdin is not None
        self._shell.kill()  # before its pipe closes: it must not signal ids that other processes have by now
        self._shell.wait()
        self._shell.stdin.close()
