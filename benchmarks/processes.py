"""The worker processes of one contestant: started, watched, ended by their own ids, and their CPU time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Command:
    """How to start one process: arguments after the program, what to add to the environment, the signal that ends it,
    and the program, which is the Python interpreter unless it says otherwise."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    program: str = sys.executable


class Workers:
    """Running worker processes. Their output is kept for the message of a failure."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        self.started = [(command, self.start(command)) for command in commands]

    def start(self, command: Command) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [command.program, *command.arguments],
            env={**os.environ, **command.environment},
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def cpu_s(self) -> float:
        """User and system time so far of every live process, children included, in seconds."""
        return sum(process_cpu_s(process) for process in self.tree())

    def tree(self) -> list[psutil.Process]:
        """Every live process of the contestant."""
        found = []
        for _, popen in self.started:
            try:
                parent = psutil.Process(popen.pid)
                found += [parent, *parent.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found

    def check_alive(self) -> None:
        """Raises ChildProcessError, with the end of the output, when a process has ended."""
        if any(popen.poll() is not None for _, popen in self.started):
            raise ChildProcessError(f"a worker ended early:\n{self.tail()}")

    def tail(self) -> str:
        self.output.seek(0)
        return self.output.read()[-4000:].decode(errors="replace")

    def stop(self) -> None:
        """Ask every process to end; what is left of its tree after STOP_TIMEOUT_S is killed."""
        tree = self.tree()
        for command, popen in self.started:
            if popen.poll() is None:
                popen.send_signal(command.stop_signal)
        _, left = psutil.wait_procs(tree, timeout=STOP_TIMEOUT_S)
        for process in left:
            process.kill()
        for _, popen in self.started:
            popen.wait()
        self.output.close()


@contextmanager
def running(commands: Sequence[Command]) -> Iterator[Workers]:
    """Worker processes for the length of the block."""
    workers = Workers(commands)
    try:
        yield workers
    finally:
        workers.stop()


def process_cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
