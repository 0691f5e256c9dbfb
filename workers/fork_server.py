"""The fork server: a process that has imported the task modules once and forks worker processes from that state.

A replacement is ready in milliseconds, and the supervisor itself never runs the user's code. The fork server exchanges
JSON lines with the supervisor over one socket. When that closes, it kills every process group it started, and ends.

    supervisor ->  {"settings": {...}, "blocks": n, "checks": true}       first line
                   {"fork": block, "name": worker, "queues": [...]}
                   {"stacks": pid}                                        what it wrote so far; then that is removed
    fork server -> {"types": [...], "queues": [...], "files": [...], "schedules": {...}}  once, when the modules are
                   {"error": text}                                        loaded, or when they can't be
                   {"forked": block, "pid": pid}
                   {"refused": block, "error": text}                      the host lacks a resource for it
                   {"stacks_of": pid, "text": text}
                   {"ended": pid, "status": wait status, "usage": {...}, "stacks": text, "output": {...}}
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

import msgspec

import taskpool
from taskpool.errors import ConfigurationError, RedisUnavailable
from taskpool.operations.insight.builds import build_of
from taskpool.operations.insight.check import STARTABLE, check_tasks, refusal_of
from taskpool.redis.store import Store
from taskpool.settings import Settings, resolve_redis_url
from taskpool.tasks.registry import Registry

from . import process_group
from .process import async_worker, sync_worker, worker_loop
from .process.output import Capture, Pipes
from .process_group import boottime
from .shared_memory import Block, SharedMemory, open_file

log = logging.getLogger("workers")

RECEIVE_BYTES: Final = 65536
RSS_UNIT_BYTES: Final = 1 if sys.platform == "darwin" else 1024


@dataclass(slots=True)
class Worker:
    """A worker process: its memory, the file for its stacks, the pipes that its output goes through, and the guardian
    that watches it if it runs tasks which must not outlive their leases."""

    block: Block
    stacks: IO[bytes]
    pipes: Pipes
    guardian: int | None = None
    guarded_since: float = 0.0


class ForkServer:
    """Forks on request and reports each end. It has one thread, so every fork copies a process in a known state."""

    def __init__(
        self, control: socket.socket, settings: Settings, registry: Registry, memory: SharedMemory, capture: Capture
    ) -> None:
        self._control, self._settings, self._registry = control, settings, registry
        self._memory, self._capture = memory, capture
        self._workers: dict[int, Worker] = {}  # by process id, which is also that of the process group
        self._older = process_group.children()  # what the task modules started when they were imported: it stays

    def serve(self, lines: Iterator[bytes]) -> None:
        """Works until the supervisor closes the socket or dies; then ends everything that was forked."""
        for line in lines:
            if line:
                order = msgspec.json.decode(line)
                (self._tell_stacks if "stacks" in order else self._fork)(order)
            else:
                self._reap()
                self._guard()
        for group in self._workers:
            process_group.signal_group(group, signal.SIGKILL)
        process_group.end_children(spare=self._older)

    def _fork(self, order: Mapping[str, Any]) -> None:
        """Forks a worker process, or refuses when the host lacks a resource: the supervisor may ask again."""
        parent, index = os.getpid(), order["fork"]
        with ExitStack() as undo:
            try:
                stacks = undo.enter_context(open_file("taskpool-stacks"))
                pipes = Pipes()
                undo.callback(pipes.close)
                pid = os.fork()
            except OSError as error:
                send(self._control, {"refused": index, "error": process_group.explain(error)})
                return
            undo.pop_all()
        worker = Worker(self._memory.block(index), stacks, pipes)
        if pid == 0:
            os._exit(self._become_worker(parent, order["name"], tuple(order["queues"]), worker))
        self._workers[pid] = worker
        pipes.close_writers()
        send(self._control, {"forked": index, "pid": pid})

    def _become_worker(self, parent: int, name: str, queues: tuple[str, ...], worker: Worker) -> int:
        """The new process's whole life; returns its exit status."""
        try:
            os.setsid()
            process_group.die_with_parent(parent)
            process_group.adopt_orphans()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            process_group.write_stacks_to(worker.stacks)
            worker_loop.become_separate()
            setup = worker_loop.Setup(
                self._settings, self._registry, worker.block, self._capture, name, queues, worker.pipes, worker.stacks
            )
            return async_worker.serve(setup) if self._settings.slots > 1 else sync_worker.serve(setup)
        except BaseException as error:  # the outermost frame of the process: it logs why it ends
            if shortage := process_group.shortage(error):
                log.error("worker %s ends: %s", name, shortage)
            else:
                traceback.print_exc()
            return 1
        finally:
            self._capture.terminal.close()
            sys.stdout.flush()
            sys.stderr.flush()

    def _tell_stacks(self, order: Mapping[str, Any]) -> None:
        """Tells the stacks that a worker process has written, and empties its file. (Both use it at one position.)"""
        pid, text = order["stacks"], ""
        if worker := self._workers.get(pid):
            text = process_group.read_stacks(worker.stacks)
            worker.stacks.seek(0)
            worker.stacks.truncate()
        send(self._control, {"stacks_of": pid, "text": text})

    def _guard(self) -> None:
        """Forks a guardian for each worker process that has asked for one, and again when that died or is frozen."""
        for pid, worker in self._workers.items():
            if not worker.block.head.wants_guardian:
                continue
            if worker.guardian is not None:
                if boottime() - max(worker.guarded_since, worker.block.head.beat_ms / 1000) <= process_group.STALE_S:
                    continue  # else it seems to be frozen
                os.kill(worker.guardian, signal.SIGKILL)
                worker.guardian = None
            try:
                worker.guardian, worker.guarded_since = self._fork_guardian(pid, worker.block), boottime()
            except OSError as error:  # the worker starts no task that needs one, and asks again
                log.error("no guardian can be started: %s", process_group.explain(error))

    def _fork_guardian(self, pid: int, block: Block) -> int:
        with ExitStack() as opened:
            pidfd = None
            if hasattr(os, "pidfd_open"):
                pidfd = os.pidfd_open(pid)  # surely the worker's: this process hasn't reaped it
                opened.callback(os.close, pidfd)
            guardian = os.fork()
            if guardian == 0:
                try:
                    process_group.become_guardian(block, pid, pidfd, self._settings.lease_s)
                finally:
                    os._exit(0)
            return guardian

    def _reap(self) -> None:
        """Reports the workers that ended. Orphans of their tasks are killed and reaped."""
        with suppress(ChildProcessError):
            while (found := os.wait4(-1, os.WNOHANG))[0]:
                pid, status, usage = found
                for worker in self._workers.values():
                    if worker.guardian == pid:
                        worker.guardian = None
                if pid in self._workers:
                    self._report_end(pid, self._workers.pop(pid), status, usage)

    def _report_end(self, pid: int, worker: Worker, status: int, usage: resource.struct_rusage) -> None:
        with worker.stacks as file:  # closed first: the search for orphans needs a file descriptor
            stacks = process_group.read_stacks(file)
        # This process has adopted the worker's orphans: they must be dead when the end is reported.
        guardians = {each.guardian for each in (*self._workers.values(), worker) if each.guardian is not None}
        process_group.end_children(spare=self._older | self._workers.keys() | guardians)
        output = worker.pipes.left_over()
        if self._settings.slots > 1:  # it may be any task's, or say why the process died
            for stream, text in output.items():
                self._capture.terminal.show(stream, text.removesuffix("\n") + "\n", None)
            output = {}
        used = {
            "max_rss_bytes": usage.ru_maxrss * RSS_UNIT_BYTES,
            "user_s": round(usage.ru_utime, 3),
            "system_s": round(usage.ru_stime, 3),
        }
        send(self._control, {"ended": pid, "status": status, "usage": used, "stacks": stacks, "output": output})


def read_lines(control: socket.socket) -> Iterator[bytes]:
    """The supervisor's lines, and an empty one when a child has ended. Ends at the end of file."""
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_reader, False)
    os.set_blocking(wake_writer, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    rest = b""
    while True:
        ready, _, _ = select.select([control.fileno(), wake_reader], [], [])
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


def send(control: socket.socket, message: Mapping[str, Any]) -> None:
    """Sends one line. `read_lines` notices when the supervisor is gone."""
    with suppress(ConnectionError):
        control.sendall(msgspec.json.encode(message) + b"\n")


def source_files(registry: Registry) -> list[str]:
    """The files that a reload watches: the task files, and the modules below their folders that they import."""
    own = Path(taskpool.__file__).parent
    tasks = [path for file in registry.files() if own not in (path := Path(file).resolve()).parents]
    folders = {path.parent for path in tasks}
    files = [getattr(module, "__file__", None) for module in tuple(sys.modules.values())]
    loaded = [Path(file).resolve() for file in files if isinstance(file, str)]
    return sorted({str(path) for path in loaded if folders & set(path.parents) and "site-packages" not in path.parts})


def refuse_broken(settings: Settings, registry: Registry) -> None:
    """Raises ConfigurationError if tasks wait whose payloads this build can't read."""
    store = Store(resolve_redis_url(settings))
    try:
        queues = settings.queues or tuple(dict.fromkeys(("default", *registry.queues())))
        report = store.carry_out(check_tasks(registry, queues=queues, statuses=STARTABLE))
    except RedisUnavailable as error:
        raise ConfigurationError(f"the stored payloads can't be checked: {error}") from None
    finally:
        store.close()
    if report.broken:
        raise ConfigurationError(refusal_of(report))


def main(control_fd: int, memory_fd: int, parent: int) -> None:
    """Runs the process. It inherits the control socket and the shared memory from the supervisor, process `parent`."""
    process_group.die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)  # only the supervisor decides when to end
    control = socket.socket(fileno=control_fd)
    with control.makefile("rb", buffering=0) as file:
        start = msgspec.json.decode(file.readline())
    settings = msgspec.convert(start["settings"], Settings)
    capture = Capture(settings.task_output, settings.log_format)
    capture.install(settings.log_level)
    try:
        if settings.otel == "on":
            from taskpool.tasks import telemetry

            telemetry.instrument_workers()
        registry = Registry(settings.tasks, builtins=settings.builtins)
        registry.load_functions(settings.rq_functions)
        if start["checks"] and settings.payload_check == "refuse":
            refuse_broken(settings, registry)
    except ConfigurationError as error:
        send(control, {"error": str(error)})
        return
    memory = SharedMemory(memory_fd, start["blocks"], settings.slots)
    process_group.adopt_orphans()
    process_group.outlive_parent()  # the end of file is noticed as well, and leaves time to kill the groups
    gc.collect()
    gc.freeze()  # no collection touches the pages of the modules' objects: they stay shared with the children
    lines = read_lines(control)
    types = [each.info(max_attempts=settings.max_attempts) for each in registry if each.is_published]
    files = source_files(registry)
    settings = replace(settings, build=settings.build or build_of(files))
    found = {"queues": registry.queues(), "files": files, "build": settings.build, "schedules": registry.schedules()}
    send(control, {"types": types, **found})
    ForkServer(control, settings, registry, memory, capture).serve(lines)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
