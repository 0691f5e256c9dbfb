"""The fork server: a process that has imported the task modules once and forks worker processes from that state.

A replacement is ready in milliseconds, and the supervisor itself never runs the user's code. It speaks JSON lines
with the supervisor over one socket; when that closes it kills every process group it started, and ends.

    supervisor ->  {"settings": {...}, "blocks": n}                       first line
                   {"fork": block, "name": worker, "queues": [...]}
    fork server -> {"types": [...], "queues": [...], "files": [...]}      once, when the modules are loaded;
                   {"error": text}                                        or when they can't be
                   {"forked": block, "pid": pid}
                   {"refused": block, "error": text}                      the host lacks something for it
                   {"ended": pid, "status": wait status, "usage": {...}, "stacks": text, "output": {...}}
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

import taskpool
from taskpool.errors import ConfigurationError
from taskpool.settings import Settings
from taskpool.tasks.registry import Registry

from . import process_group
from .process import sync_worker, worker_loop
from .process.output import Capture, Pipes
from .process_group import STALE_S, boottime
from .process_group import become as become_guardian
from .shared_memory import Block, SharedMemory

RECEIVE_BYTES = 65536
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Guardian:
    """What watches a worker process (see guardian). `forked_at` is by `boottime()`."""

    pid: int
    forked_at: float

    def is_stale(self, block: Block) -> bool:
        """True when it is frozen, as it seems: it should beat more often."""
        return boottime() - max(self.forked_at, block.beaten_at) > STALE_S


class ForkServer:
    """Forks on request and reports each end. One thread, so that every fork is of a process in a known state."""

    def __init__(
        self, control: socket.socket, settings: Settings, registry: Registry, memory: SharedMemory, capture: Capture
    ) -> None:
        self._control, self._settings, self._registry, self._memory = control, settings, registry, memory
        self._capture = capture
        self._stacks: dict[int, IO[bytes]] = {}
        """Of each worker process, which leads a process group, the file in which it says where its threads are."""
        self._blocks: dict[int, Block] = {}
        """Of each worker process, its block of the shared memory."""
        self._guardians: dict[int, Guardian] = {}
        """Of each worker process that runs tasks which must not outlive their leases, what watches it."""
        self._pipes: dict[int, Pipes] = {}
        """Of each worker process, the pipes that its output goes through."""
        self._older = process_group.children()
        """What the task modules started when they were imported: it stays."""

    def serve(self, lines: Iterator[bytes]) -> None:
        """Works until the supervisor closes the socket or dies; then nothing that was forked is left."""
        for line in lines:
            if line:
                self._fork(msgspec.json.decode(line))
            else:
                self._reap()
                self._guard()
        for group in self._stacks:
            process_group.signal_group(group, signal.SIGKILL)
        process_group.end_children(spare=self._older)

    def _fork(self, order: Mapping[str, Any]) -> None:
        """Forks a worker process. If the host lacks something for it, it tells the supervisor, which may ask again."""
        parent = os.getpid()
        with ExitStack() as undo:
            try:
                file = undo.enter_context(process_group.open_file())
                pipes = Pipes()
                undo.callback(pipes.close)
                pid = os.fork()
            except OSError as error:
                send(self._control, {"refused": order["fork"], "error": process_group.explain(error)})
                return
            undo.pop_all()
        if pid == 0:
            os._exit(self._become_worker(parent, order, file, pipes))
        self._stacks[pid] = file
        self._blocks[pid] = self._memory.block(order["fork"])
        pipes.close_writers()
        self._pipes[pid] = pipes
        send(self._control, {"forked": order["fork"], "pid": pid})

    def _become_worker(self, parent: int, order: Mapping[str, Any], file: IO[bytes], pipes: Pipes) -> int:
        """The new process's whole life; returns its exit status."""
        try:
            os.setsid()
            process_group.die_with_parent(parent)
            process_group.adopt_orphans()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            process_group.write_into(file)
            worker_loop.become_separate()
            return sync_worker.serve(
                self._settings,
                self._registry,
                self._memory.block(order["fork"]),
                self._capture,
                sync_worker.Place(order["name"], tuple(order["queues"]), pipes, file),
            )
        except BaseException as error:  # the outermost frame of the process: say why it ends, and end
            if lack := process_group.lack(error):
                logging.getLogger("workers").error("worker %s ends: %s", order["name"], lack)
            else:
                traceback.print_exc()
            return 1
        finally:
            self._capture.terminal.close()
            sys.stdout.flush()
            sys.stderr.flush()

    def _guard(self) -> None:
        """Gives each worker process that has asked for it a guardian, and another one when that died or is frozen."""
        for pid, block in self._blocks.items():
            watching = self._guardians.get(pid)
            if not block.wants_guardian or (watching is not None and not watching.is_stale(block)):
                continue
            if watching is not None:
                os.kill(watching.pid, signal.SIGKILL)  # frozen, as it seems
                del self._guardians[pid]
            try:
                self._guardians[pid] = Guardian(self._fork_guardian(pid, block), boottime())
            except OSError as error:  # the worker begins no task that needs one, and asks again
                logging.getLogger("workers").error("no guardian can be started: %s", process_group.explain(error))

    def _fork_guardian(self, pid: int, block: Block) -> int:
        pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None  # it can't be another's: we haven't reaped it
        try:
            forked = os.fork()
            if forked == 0:
                try:
                    become_guardian(block, pid, pidfd, self._settings.lease_s)
                finally:
                    os._exit(0)
        finally:
            if pidfd is not None:
                os.close(pidfd)
        return forked

    def _spared(self) -> set[int]:
        """The children that are no orphans of tasks."""
        return self._older | self._stacks.keys() | {guardian.pid for guardian in self._guardians.values()}

    def _reap(self) -> None:
        """Reports the workers that ended. Orphans of their tasks are killed, and reaped without a word."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for worker, guardian in tuple(self._guardians.items()):
                if guardian.pid == pid:
                    del self._guardians[worker]
            if pid in self._stacks:
                del self._blocks[pid]
                with self._stacks.pop(pid) as file:  # closed first: to look for orphans takes a file descriptor
                    written = process_group.read(file)
                # What it leaves behind has fallen to us: nothing of its tasks lives when its end is reported.
                process_group.end_children(spare=self._spared())
                output = self._pipes.pop(pid).left_over()
                if self._settings.slots > 1:  # it may be any task's, or say why the process died
                    for name, text in output.items():
                        self._capture.terminal.show(name, text.removesuffix("\n") + "\n", None)
                    output = {}
                ending = {"status": status, "usage": in_words(usage), "stacks": written, "output": output}
                send(self._control, {"ended": pid, **ending})


def read_lines(control: socket.socket) -> Iterator[bytes]:
    """The supervisor's lines; an empty one stands for "a child ended". Ends at the end of file."""
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_reader, False)
    os.set_blocking(wake_writer, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(wake_reader, selectors.EVENT_READ)
    rest = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if wake_reader in ready:
            os.read(wake_reader, RECEIVE_BYTES)
            yield b""
        if control.fileno() in ready:
            try:
                data = control.recv(RECEIVE_BYTES)
            except ConnectionError:
                return
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from lines


def in_words(usage: resource.struct_rusage) -> dict[str, float]:
    """What a process has used."""
    return {
        "max_rss_bytes": usage.ru_maxrss * RSS_UNIT_BYTES,
        "user_s": round(usage.ru_utime, 3),
        "system_s": round(usage.ru_stime, 3),
    }


def send(control: socket.socket, message: Mapping[str, Any]) -> None:
    """Sends one line; a supervisor that is gone is noticed where lines are read."""
    try:
        control.sendall(msgspec.json.encode(message) + b"\n")
    except ConnectionError:
        pass


def source_files(registry: Registry) -> list[str]:
    """The task files and the Python files below their folders that they have imported: what a reload watches."""
    own = Path(taskpool.__file__).parent
    tasks = [path for file in registry.files() if own not in (path := Path(file).resolve()).parents]
    folders = {path.parent for path in tasks}
    loaded = [Path(file).resolve() for module in tuple(sys.modules.values()) if (file := _file_of(module))]
    return sorted({str(path) for path in loaded if folders & set(path.parents) and "site-packages" not in path.parts})


def _file_of(module: object) -> str | None:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else None


def main(control_fd: int, memory_fd: int, parent: int) -> None:
    """Runs the process: it inherits the control socket and the shared memory from the supervisor, `parent`."""
    process_group.die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)  # the supervisor alone decides when to end
    control = socket.socket(fileno=control_fd)
    with control.makefile("rb", buffering=0) as file:
        start = msgspec.json.decode(file.readline())
    settings = msgspec.convert(start["settings"], Settings)
    capture = Capture(settings.task_output)
    capture.install(settings.log_level)
    try:
        registry = Registry(settings.tasks, builtins=settings.builtins)
        registry.load_functions(settings.rq_functions)
    except ConfigurationError as error:
        send(control, {"error": str(error)})
        return
    memory = SharedMemory(memory_fd, start["blocks"], settings.slots)
    process_group.adopt_orphans()
    process_group.outlive_parent()  # the end of file tells as well, and leaves time to take the groups along
    gc.collect()
    gc.freeze()  # the modules' objects stay shared with the children: no collection touches their pages
    lines = read_lines(control)
    types = [each.info(max_attempts=settings.max_attempts) for each in registry if each.is_published]
    send(control, {"types": types, "queues": registry.queues(), "files": source_files(registry)})
    ForkServer(control, settings, registry, memory, capture).serve(lines)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
