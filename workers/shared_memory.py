"""What each worker process runs, in memory that the supervisor shares with all of its processes.

A process owns one *block*: a head of 64-bit words, one *lane* for each task it runs at once, and a *spool* with the
lines that its tasks wrote last. Only the process writes its block, with these exceptions: `drain`, `supervised` and
each lane's `request` and `renewed` belong to the supervisor, `beat` and `guardian` (a process id) to its guardian.
A lane's `sequence` is odd while the lane is being written, so that reads are consistent. No write to Redis trusts this
memory: Redis checks the attempt id that comes with each write.

    block   ready, done, failed, working_us, drain, guard, beat, guardian, supervised | lane 0 | lane 1 | ... | spool
    lane    sequence, state, run | started_mono, timeout_s, safe_until: f64 | lengths: 3 x u16 | request, renewed | text
    spool   start, end | records, each: length u32, number u64, length of the attempt id u16; attempt id; line

`run` counts the attempts that a lane has held. `request` is `run << 8 | kind`, so that a request for one run never hits
the next. `text` is the task id, the attempt id and the queue.

An attempt that must not outlive its lease (`on_lost_lease` is "kill") shows in `safe_until` how long its lease surely
lasts, by `process_group.boottime`. The process writes the first such time. The supervisor writes later ones to
`renewed`, as `milliseconds << 24 | run`: one word, so that no reader sees half of it.

The spool is a ring in which the newest records overwrite the oldest. Each line is written before its task goes on, so
it outlives the process. The supervisor sends the lines whose numbers Redis doesn't have yet.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import threading
from dataclasses import dataclass
from enum import IntEnum
from typing import IO, Final


def open_file(name: str) -> IO[bytes]:
    """A new, empty, unbuffered file without a name, which ends with the processes that hold it. `name` is only shown,
    in /proc/PID/fd for example. On Linux it is in memory, because a full disk ends a process that writes to a mapped
    file.

    Raises:
        OSError: no file descriptors, memory or disk space are left.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b", buffering=0)
    return tempfile.TemporaryFile(prefix=f"{name}-", buffering=0)


_WORD: Final = struct.Struct("@Q")
"""Aligned, so it is written in one piece."""
_READY, _DONE, _FAILED, _WORKING_US, _DRAIN, _GUARD, _BEAT, _GUARDIAN, _SUPERVISED = range(0, 72, 8)
_HEAD_BYTES: Final = 72

_LANE: Final = struct.Struct("=QQdddHHHxx")
"""state, run, started_mono, timeout_s, safe_until and the lengths of the three names; it follows the sequence."""
_RUN_BITS: Final = 24
_RUN_MASK: Final = (1 << _RUN_BITS) - 1
_LANE_BYTES: Final = 768
_STATE: Final = 8
_REQUEST: Final = 8 + _LANE.size
_RENEWED: Final = _REQUEST + 8
_TEXT: Final = _RENEWED + 8
LONGEST_NAME: Final = 300

SPOOL_BYTES: Final = 128 * 1024
_SPOOL_HEAD: Final = struct.Struct("=QQ")
_RECORD: Final = struct.Struct("=IQH")
_ROOM: Final = SPOOL_BYTES - _SPOOL_HEAD.size


class LaneState(IntEnum):
    """What a lane does. ENDING: the task's code is over, its outcome isn't written yet."""

    IDLE = 0
    RUNNING = 1
    ENDING = 2


class Request(IntEnum):
    """What a run is asked to do. LOST: its lease is lost, so its outcome will be refused. FENCED: its guardian kills
    its process, because its lease is about to end."""

    NONE = 0
    STOP = 1
    LOST = 2
    FENCED = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt as a lane shows it. `started_mono` is `time.monotonic()`; a `timeout_s` of 0 means no limit.
    `safe_until` is when its lease ends at the earliest, if the attempt must not outlive it, and otherwise 0."""

    lane: int
    state: LaneState
    run: int
    id: str
    attempt_id: str
    queue: str
    started_mono: float
    timeout_s: float
    safe_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What a process has done since it started. `ready`: it has reached its loop."""

    ready: bool
    done: int
    failed: int
    working_s: float


class SharedMemory:
    """The mapped file: `blocks` blocks of `lanes` lanes. The supervisor creates it, its processes inherit it."""

    def __init__(self, fd: int, blocks: int, lanes: int) -> None:
        self.fd, self.blocks, self.lanes = fd, blocks, lanes
        self.map = mmap.mmap(fd, blocks * _block_bytes(lanes))

    @classmethod
    def create(cls, blocks: int, lanes: int) -> SharedMemory:
        """A new, zeroed one."""
        with open_file("taskpool") as file:
            file.truncate(blocks * _block_bytes(lanes))
            return cls(os.dup(file.fileno()), blocks, lanes)

    def block(self, index: int) -> Block:
        """The block of that index, from 0."""
        return Block(self, index)

    def close(self) -> None:
        """Unmaps the file; no block may be used after that."""
        self.map.close()
        os.close(self.fd)


def _block_bytes(lanes: int) -> int:
    return _HEAD_BYTES + lanes * _LANE_BYTES + SPOOL_BYTES


class Block:
    """One process's block, as the process, its guardian and its supervisor use it."""

    def __init__(self, memory: SharedMemory, index: int) -> None:
        self.index, self.lanes = index, memory.lanes
        self._map, self._at = memory.map, index * _block_bytes(memory.lanes)
        self.spool = Spool(memory.map, self._lane_at(self.lanes))

    def clear(self) -> None:
        """Resets it for the next process. Only while no process uses it."""
        size = _HEAD_BYTES + self.lanes * _LANE_BYTES
        self._map[self._at : self._at + size] = bytes(size)
        self.spool.clear()

    def lane(self, number: int) -> Lane:
        """The writer of one lane."""
        return Lane(self._map, self._lane_at(number))

    def _lane_at(self, number: int) -> int:
        return self._at + _HEAD_BYTES + number * _LANE_BYTES

    def _word(self, offset: int) -> int:
        return _word_at(self._map, self._at + offset)

    def _set(self, offset: int, value: int) -> None:
        _WORD.pack_into(self._map, self._at + offset, value)

    # --- written by the process ---------------------------------------------------------------------------------------

    def set_ready(self) -> None:
        """The process has reached its loop: it didn't die at start-up."""
        self._set(_READY, 1)

    def add(self, done: int, failed: int, working_us: int) -> None:
        """Adds to the counters."""
        for offset, more in ((_DONE, done), (_FAILED, failed), (_WORKING_US, working_us)):
            self._set(offset, self._word(offset) + more)

    def counters(self) -> Counters:
        """The counters as they stand."""
        return Counters(bool(self._word(_READY)), self._word(_DONE), self._word(_FAILED), self._word(_WORKING_US) / 1e6)

    def ask_for_guardian(self) -> None:
        """Asks the fork server for a guardian. It sees this when a signal makes it look."""
        self._set(_GUARD, 1)

    @property
    def wants_guardian(self) -> bool:
        """Whether the process has asked for a guardian."""
        return self._word(_GUARD) != 0

    # --- written by the guardian --------------------------------------------------------------------------------------

    def beat(self, guardian: int, now: float) -> None:
        """The process `guardian` watches this one at `now` (`boottime`)."""
        self._set(_GUARDIAN, guardian)
        self._set(_BEAT, int(now * 1000))

    @property
    def beaten_at(self) -> float:
        """When a guardian last showed that it watches; 0: none did."""
        return self._word(_BEAT) / 1000

    @property
    def guardian_pid(self) -> int:
        """The process that watches this one, or did; 0: none did."""
        return self._word(_GUARDIAN)

    # --- written by the supervisor ------------------------------------------------------------------------------------

    def ask_to_drain(self) -> None:
        """Asks the process to claim nothing more and to end when its tasks have ended."""
        self._set(_DRAIN, 1)

    @property
    def draining(self) -> bool:
        """Whether the process was asked to drain."""
        return self._map[self._at + _DRAIN] != 0

    def supervise(self, now: float) -> None:
        """The supervisor is at work at `now` (`boottime`)."""
        self._set(_SUPERVISED, int(now * 1000))

    @property
    def supervised_at(self) -> float:
        """When the supervisor last showed that it is at work; 0: it never did."""
        return self._word(_SUPERVISED) / 1000

    def ask(self, run: Run, request: Request) -> None:
        """Leaves a request for this run; the next one of the lane doesn't see it."""
        _WORD.pack_into(self._map, self._lane_at(run.lane) + _REQUEST, run.run << 8 | request)

    def asked(self, run: Run) -> Request:
        """The request that was left for this run."""
        return _request_at(self._map, self._lane_at(run.lane), run.run)

    def renew(self, run: Run, safe_until: float) -> None:
        """The lease of this run surely lasts until then; the next run of the lane doesn't see it."""
        word = int(safe_until * 1000) << _RUN_BITS | run.run & _RUN_MASK
        _WORD.pack_into(self._map, self._lane_at(run.lane) + _RENEWED, word)

    # --- read by the supervisor ---------------------------------------------------------------------------------------

    def runs(self) -> list[Run]:
        """What the lanes that aren't idle hold now."""
        return [run for lane in range(self.lanes) if (run := self.run(lane)) is not None]

    def run(self, lane: int) -> Run | None:
        """What one lane holds now; None: it is idle, or the process died while it wrote the lane."""
        at = self._lane_at(lane)
        for _ in range(1000):
            sequence = _word_at(self._map, at)
            if sequence % 2:
                continue
            state, run, started_mono, timeout_s, safe_until, *lengths = _LANE.unpack_from(self._map, at + 8)
            if state == LaneState.IDLE:
                return None
            text = self._map[at + _TEXT : at + _TEXT + sum(lengths)]
            renewed = _word_at(self._map, at + _RENEWED)
            if _word_at(self._map, at) != sequence:
                continue
            second, third = lengths[0], lengths[0] + lengths[1]
            id, attempt_id, queue = (
                part.decode(errors="replace") for part in (text[:second], text[second:third], text[third:])
            )
            if safe_until and renewed & _RUN_MASK == run & _RUN_MASK:
                safe_until = max(safe_until, (renewed >> _RUN_BITS) / 1000)
            return Run(lane, LaneState(state), run, id, attempt_id, queue, started_mono, timeout_s, safe_until)
        return None


def _word_at(map: mmap.mmap, at: int) -> int:
    word: int = _WORD.unpack_from(map, at)[0]
    return word


def _request_at(map: mmap.mmap, lane_at: int, run: int) -> Request:
    word: int = _WORD.unpack_from(map, lane_at + _REQUEST)[0]
    return Request(word & 0xFF) if word >> 8 == run else Request.NONE


class Lane:
    """The process's side of one lane. The three methods of the hot path cost well under a microsecond each."""

    __slots__ = ("_at", "_map", "_run", "_sequence")

    def __init__(self, map: mmap.mmap, at: int) -> None:
        self._map, self._at = map, at
        self._sequence = _word_at(map, at)
        self._run = _word_at(map, at + 16)

    def begin(  # noqa: PLR0917 - names would cost time, and this is done for every task
        self, id: str, attempt_id: str, queue: str, started_mono: float, timeout_s: float, safe_until: float = 0.0
    ) -> None:
        """Shows the attempt that runs now; `safe_until` as in `Run`.

        Names over LONGEST_NAME bytes, which only a plain RQ producer can create, are cut: such an attempt gets no
        heartbeats and must end within its lease."""
        id_, attempt, name = id.encode()[:LONGEST_NAME], attempt_id.encode(), queue.encode()[:LONGEST_NAME]
        text = id_ + attempt + name
        map, at = self._map, self._at
        self._run += 1
        self._sequence += 2
        _WORD.pack_into(map, at, self._sequence - 1)
        _LANE.pack_into(
            map, at + 8, LaneState.RUNNING, self._run, started_mono, timeout_s, safe_until,
            len(id_), len(attempt), len(name),
        )  # fmt: skip
        map[at + _TEXT : at + _TEXT + len(text)] = text
        _WORD.pack_into(map, at, self._sequence)

    def end(self) -> None:
        """The task's code is over: the run must not be interrupted from here on."""
        self._map[self._at + _STATE] = LaneState.ENDING

    def clear(self) -> None:
        """The lane is idle."""
        self._map[self._at + _STATE] = LaneState.IDLE

    def request(self) -> Request:
        """The request that was left for the run it shows."""
        return _request_at(self._map, self._at, self._run)


class Spool:
    """One process's ring of lines. Its threads may write at once; it is read when the process has ended.

    `start` and `end` count the bytes ever written; a record exists once `end` includes it.
    """

    def __init__(self, map: mmap.mmap, at: int) -> None:
        self._map, self._at = map, at
        self._lock = threading.RLock()

    def clear(self) -> None:
        """Empties it."""
        _SPOOL_HEAD.pack_into(self._map, self._at, 0, 0)

    def keep(self, attempt_id: bytes, number: int, line: bytes) -> None:
        """Keeps a line of an attempt, unless it is far too long."""
        record = _RECORD.pack(len(line), number, len(attempt_id)) + attempt_id + line
        if len(record) > _ROOM:
            return
        with self._lock:
            start, end = _SPOOL_HEAD.unpack_from(self._map, self._at)
            while end + len(record) - start > _ROOM:
                size, _, id_size = _RECORD.unpack(self._read(start, _RECORD.size))
                start += _RECORD.size + size + id_size
            _SPOOL_HEAD.pack_into(self._map, self._at, start, end)  # first: a record that is overwritten is gone
            self._write(end, record)
            _SPOOL_HEAD.pack_into(self._map, self._at, start, end + len(record))

    def lines(self) -> dict[str, list[tuple[int, bytes]]]:
        """By attempt id, the numbered lines that are still there, the oldest first."""
        found: dict[str, list[tuple[int, bytes]]] = {}
        at, end = _SPOOL_HEAD.unpack_from(self._map, self._at)
        while at < end:
            size, number, id_size = _RECORD.unpack(self._read(at, _RECORD.size))
            text = self._read(at + _RECORD.size, id_size + size)
            found.setdefault(text[:id_size].decode("ascii", "replace"), []).append((number, text[id_size:]))
            at += _RECORD.size + id_size + size
        return found

    def _write(self, at: int, data: bytes) -> None:
        base, offset = self._at + _SPOOL_HEAD.size, at % _ROOM
        first = min(len(data), _ROOM - offset)
        self._map[base + offset : base + offset + first] = data[:first]
        self._map[base : base + len(data) - first] = data[first:]

    def _read(self, at: int, size: int) -> bytes:
        base, offset = self._at + _SPOOL_HEAD.size, at % _ROOM
        first = self._map[base + offset : base + min(offset + size, _ROOM)]
        return first + self._map[base : base + size - len(first)]
