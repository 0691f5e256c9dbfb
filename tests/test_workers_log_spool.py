"""The ring in shared memory that keeps the last log lines of a process after its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from workers.recovery import with_open_lines
from workers.shared_memory import SPOOL_BYTES, SharedMemory


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory.create(blocks=2, lanes=2)
    yield memory
    memory.close()


def test_lines_are_read_by_attempt_in_their_order(memory: SharedMemory) -> None:
    spool = memory.block(0).spool

    spool.keep(b"a1", 1, b"one")
    spool.keep(b"b1", 1, b"other")
    spool.keep(b"a1", 2, b"")

    assert memory.block(0).spool.lines() == {"a1": [(1, b"one"), (2, b"")], "b1": [(1, b"other")]}
    assert memory.block(1).spool.lines() == {}


@pytest.mark.parametrize("size", [1, 100, 8192, 40_000])
def test_the_newest_lines_overwrite_the_oldest(memory: SharedMemory, size: int) -> None:
    spool = memory.block(0).spool
    count = 3 * SPOOL_BYTES // size

    for number in range(1, min(count, 20_000) + 1):
        spool.keep(b"a1", number, number.to_bytes(4, "big") * (size // 4 + 1))

    found = spool.lines()["a1"]
    last = min(count, 20_000)
    assert [number for number, _ in found] == list(range(last - len(found) + 1, last + 1))
    assert all(line == number.to_bytes(4, "big") * (size // 4 + 1) for number, line in found)
    assert sum(len(line) for _, line in found) < SPOOL_BYTES
    assert memory.block(1).spool.lines() == {}
    assert memory.block(0).runs() == []


def test_a_line_that_is_too_long_for_the_spool_is_not_kept(memory: SharedMemory) -> None:
    spool = memory.block(0).spool
    spool.keep(b"a1", 1, b"one")

    spool.keep(b"a1", 2, b"x" * SPOOL_BYTES)

    assert spool.lines() == {"a1": [(1, b"one")]}


def test_a_cleared_block_has_no_lines(memory: SharedMemory) -> None:
    memory.block(0).spool.keep(b"a1", 1, b"one")

    memory.block(0).clear()

    assert memory.block(0).spool.lines() == {}


def test_a_line_that_never_ended_is_the_last_one() -> None:
    def line(stream: str, text: str) -> bytes:
        return b'{"at_ms":1,"stream":"%s","text":"%s"}' % (stream.encode(), text.encode())

    lines = [
        (0, line("stdout", "on")), (1, line("stdout", "one")), (0, line("stdout", "tw")), (0, line("stderr", "er")),
        (2, line("stderr", "err")), (0, line("stdout", "two")),
    ]  # fmt: skip

    assert with_open_lines(lines) == [
        (1, line("stdout", "one")),
        (2, line("stderr", "err")),
        (3, line("stdout", "two")),
    ]
