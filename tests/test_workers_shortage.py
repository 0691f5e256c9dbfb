"""How a process reacts when the host has run out of a resource."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import msgspec
import pytest

from taskpool.errors import RedisUnavailable
from taskpool.settings import Settings
from workers import process_group
from workers.fork_server import ForkServer
from workers.process.reports import Reporter
from workers.process_group import FileDescriptors
from workers.shared_memory import SharedMemory


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EAGAIN, "ulimit -u"),
        (errno.ENOMEM, "memory"),
        (errno.ENOSPC, "TMPDIR"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_a_shortage_is_explained_with_what_to_do(number: int, says: str) -> None:
    assert says in process_group.explain(OSError(number, os.strerror(number)))


def test_a_shortage_is_found_behind_other_errors_and_a_read_that_would_block_is_none() -> None:
    try:
        try:
            raise OSError(errno.EMFILE, "x")
        except OSError as error:
            raise RedisUnavailable("away") from error
    except RedisUnavailable as error:
        found = process_group.shortage(error)

    assert found == process_group.ADVICE[errno.EMFILE]
    assert process_group.shortage(RuntimeError("can't start new thread")) == process_group.ADVICE[errno.EAGAIN]
    assert process_group.shortage(BlockingIOError(errno.EAGAIN, "x")) is None
    assert process_group.shortage(ValueError("x")) is None


@pytest.fixture
def low_limit() -> Iterator[int]:
    """A limit of open files that a test can reach."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    yield 512
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def fill(limit: int) -> list[int]:
    opened = []
    with suppress(OSError):
        for _ in range(limit):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    return opened


def test_a_process_leaves_before_it_runs_out_of_file_descriptors(low_limit: int) -> None:
    files = FileDescriptors("w")
    was_short = files.are_running_out()
    opened = fill(low_limit)

    is_short = files.are_running_out()
    for fd in opened:
        os.close(fd)

    assert (was_short, is_short, files.are_running_out()) == (False, True, False)


def test_the_reserve_is_freed_once_and_only_for_a_lack_of_file_descriptors(low_limit: int) -> None:
    files = FileDescriptors("w")
    opened = fill(low_limit)

    for_another_reason = files.free_reserve(OSError(errno.ECONNREFUSED, "x"))
    first = files.free_reserve(OSError(errno.EMFILE, "x"))
    room = fill(low_limit)
    again = files.free_reserve(OSError(errno.EMFILE, "x"))
    for fd in opened + room:
        os.close(fd)

    assert (for_another_reason, first, again) == (False, True, False)
    assert len(room) == process_group.RESERVED


def test_a_fork_that_is_not_allowed_is_reported_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    class Capture:
        keeps = True

    memory = SharedMemory.create(2, 1)
    ours, theirs = socket.socketpair()
    server = ForkServer(theirs, Settings(), cast("Any", None), memory, cast("Any", Capture()))
    monkeypatch.setattr(os, "fork", refuse)
    gc.collect()  # what other tests left open isn't closed in between
    before = len(os.listdir("/proc/self/fd"))

    server.serve(iter([msgspec.json.encode({"fork": 1, "name": "w", "queues": ["default"]})]))

    assert msgspec.json.decode(ours.recv(10_000)) == {"refused": 1, "error": process_group.ADVICE[errno.EAGAIN]}
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()
    theirs.close()
    memory.close()


def test_reports_wait_for_the_end_of_the_attempt_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    reporter = Reporter("redis://localhost:1", cast("Any", None), cast("Any", None), cast("Any", None))
    monkeypatch.setattr(threading.Thread, "start", refuse)

    reporter.notice(cast("Any", object()))

    assert reporter.thread is None
