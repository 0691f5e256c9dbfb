"""Files without a name, which end with the processes that hold them. On Linux they are in memory: a full disk doesn't
matter to them (a full one would end a process that writes to a mapped file).

The lines that the tasks of a process wrote last, in memory shared with the supervisor: they outlive the process.

A ring of records, each written before the task goes on and never taken out: the newest push out the oldest. What was
sent already is told from what wasn't by its number, when the supervisor sends the rest (see settlement).

    spool   ┌────────┬────────┬────────────────────────────────────────────────────────────────┐
            │ start  │ end    │ records: length, number, length of the attempt id; id; line    │
            └────────┴────────┴────────────────────────────────────────────────────────────────┘
             u64      u64      u32     u64     u16

`start` and `end` count the bytes ever written; a record is there once `end` says so.

What each worker process runs, in memory shared by the supervisor and all of its processes.

A process owns one *block*: a head with its counters, one *lane* for each task it runs at once, and the `Spool` of the
lines that its tasks wrote last. The process alone writes its block, with these exceptions: `drain`, `supervised` and
each lane's `request` and `renewed` belong to the supervisor, `beat` and `guardian` (a process id) to its guardian.
Reads are consistent: a lane's sequence is odd while it is being written. Nothing here is trusted for a write to Redis:
the attempt id it carries is checked there.

An attempt that must not outlive its lease (`on_lost_lease` is "kill") shows in `safe_until` how long the lease surely
lasts, by the clock of `guardian.boottime`. The process writes the first such time. The supervisor writes later ones to
`renewed`, as `milliseconds << 24 | run`: one word, so that no reader sees half of it.

    block   ┌───────┬──────┬────────┬────────────┬───────┬───────┬──────┬──────────┬────────────┬────────┬───┬───────┐
            │ ready │ done │ failed │ working_us │ drain │ guard │ beat │ guardian │ supervised │ lane 0 │ … │ spool │
            └───────┴──────┴────────┴────────────┴───────┴───────┴──────┴──────────┴────────────┴────────┴───┴───────┘
             u64     u64    u64      u64          u64     u64     u64    u64        u64          from byte 72 on

    lane    ┌──────────┬───────┬─────┬──────────────┬───────────┬────────────┬─────────┬─────────┬─────────┬──────┐
            │ sequence │ state │ run │ started_mono │ timeout_s │ safe_until │ lengths │ request │ renewed │ text │
            └──────────┴───────┴─────┴──────────────┴───────────┴────────────┴─────────┴─────────┴─────────┴──────┘
             u64        u64     u64   f64            f64         f64          3 x u16   u64       u64       to 768 bytes

`run` counts the attempts a lane has held. `request` is `run << 8 | kind`: a request made for one run never
hits the next. `text` is the task's id, the attempt id and the queue, one after the other.
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
    """A new, empty file, unbuffered. `name` is only shown, in /proc/PID/fd for example.

    Raises:
        OSError: no file descriptors, memory or disk space are left.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b", buffering=0)
    return tempfile.TemporaryFile(prefix=f"{name}-", buffering=0)


BYTES: Final = 128 * 1024
_HEAD: Final = struct.Struct("=QQ")
_RECORD: Final = struct.Struct("=IQH")
_ROOM: Final = BYTES - _HEAD.size


class Spool:
    """One process's ring. Its threads may write at once; it is read when the process has ended."""

    def __init__(self, map: mmap.mmap, at: int) -> None:
        self._map, self._at = map, at
        self._lock = threading.RLock()

    def clear(self) -> None:
        """Make it as new."""
        _HEAD.pack_into(self._map, self._at, 0, 0)

    def keep(self, attempt_id: bytes, number: int, line: bytes) -> None:
        """Keep a line of an attempt; one that is far too long isn't."""
        record = _RECORD.pack(len(line), number, len(attempt_id)) + attempt_id + line
        if len(record) > _ROOM:
            return
        with self._lock:
            start, end = _HEAD.unpack_from(self._map, self._at)
            while end + len(record) - start > _ROOM:
                start += self._length(start)
            _HEAD.pack_into(self._map, self._at, start, end)  # first: what is written over isn't there any more
            self._write(end, record)
            _HEAD.pack_into(self._map, self._at, start, end + len(record))

    def lines(self) -> dict[str, list[tuple[int, bytes]]]:
        """By attempt id, the numbered lines that are still there, the oldest first."""
        found: dict[str, list[tuple[int, bytes]]] = {}
        at, end = _HEAD.unpack_from(self._map, self._at)
        while at < end:
            size, number, id_size = _RECORD.unpack(self._read(at, _RECORD.size))
            text = self._read(at + _RECORD.size, id_size + size)
            found.setdefault(text[:id_size].decode("ascii", "replace"), []).append((number, text[id_size:]))
            at += _RECORD.size + id_size + size
        return found

    def _length(self, at: int) -> int:
        size, _, id_size = _RECORD.unpack(self._read(at, _RECORD.size))
        return int(_RECORD.size + id_size + size)

    def _write(self, at: int, data: bytes) -> None:
        begin = at % _ROOM
        first = data[: _ROOM - begin]
        base = self._at + _HEAD.size
        self._map[base + begin : base + begin + len(first)] = first
        rest = data[len(first) :]
        self._map[base : base + len(rest)] = rest

    def _read(self, at: int, size: int) -> bytes:
        begin = at % _ROOM
        base = self._at + _HEAD.size
        first = self._map[base + begin : base + min(begin + size, _ROOM)]
        return first + self._map[base : base + size - len(first)]


_WORD: Final = struct.Struct("=Q")
_HEAD_BYTES: Final = 72
_READY, _DONE, _FAILED, _WORKING_US, _DRAIN, _GUARD, _BEAT, _GUARDIAN, _SUPERVISED = range(0, _HEAD_BYTES, 8)

_LANE: Final = struct.Struct("=QQdddHHHxx")
"""state, run, started_mono, timeout_s, safe_until, lengths of id, attempt id and queue; stands behind the sequence."""
_ATOMIC: Final = struct.Struct("@Q")
"""A word that is written in one piece, since it is aligned."""
_RUN_BITS: Final = 24
_LANE_BYTES: Final = 768
_STATE: Final = 8
_REQUEST: Final = 8 + _LANE.size
_RENEWED: Final = _REQUEST + 8
_TEXT: Final = _RENEWED + 8
LONGEST_NAME: Final = 300


class LaneState(IntEnum):
    """What a lane does. ENDING: the user's code is over, its outcome isn't written yet."""

    IDLE = 0
    RUNNING = 1
    ENDING = 2


class Request(IntEnum):
    """What is asked of a run. LOST: it no longer holds its lease, so its outcome will be refused. FENCED: its guardian
    kills its process, because its lease is about to end."""

    NONE = 0
    STOP = 1
    LOST = 2
    FENCED = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt as a lane shows it. `started_mono` is `time.monotonic()`; `timeout_s` 0 means no limit.

    `safe_until` (`guardian.boottime()`) is when its lease ends at the earliest, if the attempt must not outlive it; 0
    if it may."""

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
    """What a process has done since it started."""

    ready: bool
    done: int
    failed: int
    working_s: float


class SharedMemory:
    """The mapped file: `blocks` blocks of `lanes` lanes. The supervisor creates it, its processes inherit it."""

    def __init__(self, fd: int, blocks: int, lanes: int) -> None:
        self.fd, self.blocks, self.lanes = fd, blocks, lanes
        self.block_bytes = _HEAD_BYTES + lanes * _LANE_BYTES + BYTES
        self.map = mmap.mmap(fd, blocks * self.block_bytes)

    @classmethod
    def create(cls, blocks: int, lanes: int) -> SharedMemory:
        """A new, zeroed one, in a file without a name: nothing is left behind however the pool ends."""
        with open_file("taskpool") as file:
            file.truncate(blocks * (_HEAD_BYTES + lanes * _LANE_BYTES + BYTES))
            return cls(os.dup(file.fileno()), blocks, lanes)

    def block(self, index: int) -> Block:
        """The block of that index, from 0."""
        return Block(self, index)

    def close(self) -> None:
        """Unmaps the file; no block of it may be used after that."""
        self.map.close()
        os.close(self.fd)


class Block:
    """One process's block, as both sides use it."""

    def __init__(self, memory: SharedMemory, index: int) -> None:
        self.index = index
        self._map = memory.map
        self.lanes = memory.lanes
        self._at = index * memory.block_bytes
        self.spool = Spool(memory.map, self._at + _HEAD_BYTES + memory.lanes * _LANE_BYTES)

    def clear(self) -> None:
        """Makes it as new, for the next process. Only while no process uses it."""
        size = _HEAD_BYTES + self.lanes * _LANE_BYTES
        self._map[self._at : self._at + size] = bytes(size)
        self.spool.clear()

    def lane(self, number: int) -> Lane:
        """The writer of one lane."""
        return Lane(self._map, self._at + _HEAD_BYTES + number * _LANE_BYTES)

    # --- the process's words ---------------------------------------------------------------------------

    def set_ready(self) -> None:
        """Says that the process has reached its loop: it didn't die at start-up."""
        _WORD.pack_into(self._map, self._at + _READY, 1)

    def add(self, done: int, failed: int, working_us: int) -> None:
        """Adds to the counters."""
        for offset, more in ((_DONE, done), (_FAILED, failed), (_WORKING_US, working_us)):
            _WORD.pack_into(self._map, self._at + offset, self._word(offset) + more)

    def counters(self) -> Counters:
        """The counters as they stand."""
        ready, done, failed, working_us = struct.unpack_from("=QQQQ", self._map, self._at)
        return Counters(bool(ready), done, failed, working_us / 1e6)

    def ask_for_guardian(self) -> None:
        """Has the fork server give this process a guardian, as soon as a signal makes it look."""
        _WORD.pack_into(self._map, self._at + _GUARD, 1)

    # --- the guardian's words -----------------------------------------------------------------------------

    def beat(self, guardian: int, now: float) -> None:
        """Says that the process `guardian` watches this one at `now` (`guardian.boottime()`)."""
        _WORD.pack_into(self._map, self._at + _GUARDIAN, guardian)
        _ATOMIC.pack_into(self._map, self._at + _BEAT, int(now * 1000))

    @property
    def beaten_at(self) -> float:
        """When a guardian last said that it watches; 0: none did."""
        beat: int = _ATOMIC.unpack_from(self._map, self._at + _BEAT)[0]
        return beat / 1000

    @property
    def guardian_pid(self) -> int:
        """The process that watches this one, or did; 0: none did."""
        return self._word(_GUARDIAN)

    @property
    def wants_guardian(self) -> bool:
        """Whether the process has asked for a guardian."""
        return self._map[self._at + _GUARD] != 0

    # --- the supervisor's words --------------------------------------------------------------------------

    def ask_to_drain(self) -> None:
        """Tells the process to claim nothing more and to end when its tasks have."""
        _WORD.pack_into(self._map, self._at + _DRAIN, 1)

    @property
    def draining(self) -> bool:
        """True when the supervisor wants no more claims."""
        return self._map[self._at + _DRAIN] != 0

    def supervise(self, now: float) -> None:
        """Says that the supervisor is at work at `now` (`guardian.boottime()`)."""
        _ATOMIC.pack_into(self._map, self._at + _SUPERVISED, int(now * 1000))

    @property
    def supervised_at(self) -> float:
        """When the supervisor last said that it is at work; 0: it never did."""
        at: int = _ATOMIC.unpack_from(self._map, self._at + _SUPERVISED)[0]
        return at / 1000

    def ask(self, run: Run, request: Request) -> None:
        """Leaves a request for this very run; the next one of the lane doesn't see it."""
        lane_at = self._at + _HEAD_BYTES + run.lane * _LANE_BYTES
        _WORD.pack_into(self._map, lane_at + _REQUEST, run.run << 8 | request)

    def asked(self, run: Run) -> Request:
        """What was asked of this very run."""
        lane_at = self._at + _HEAD_BYTES + run.lane * _LANE_BYTES
        return _request_at(self._map, lane_at, run.run)

    def renew(self, run: Run, safe_until: float) -> None:
        """Says that the lease of this very run surely lasts until then; the next one of the lane doesn't see it."""
        word = int(safe_until * 1000) << _RUN_BITS | run.run & (1 << _RUN_BITS) - 1
        _ATOMIC.pack_into(self._map, self._at + _HEAD_BYTES + run.lane * _LANE_BYTES + _RENEWED, word)

    def runs(self) -> list[Run]:
        """What the lanes hold now, idle ones left out."""
        runs = (self.run(lane) for lane in range(self.lanes))
        return [run for run in runs if run is not None]

    def run(self, lane: int) -> Run | None:
        """What one lane holds now; None when it is idle, or died in the middle of writing."""
        at = self._at + _HEAD_BYTES + lane * _LANE_BYTES
        for _ in range(1000):
            (sequence,) = _WORD.unpack_from(self._map, at)
            if sequence % 2:
                continue
            state, run, started_mono, timeout_s, safe_until, *lengths = _LANE.unpack_from(self._map, at + 8)
            if state == LaneState.IDLE:
                return None
            text = self._map[at + _TEXT : at + _TEXT + sum(lengths)]
            if _WORD.unpack_from(self._map, at)[0] == sequence:
                first, second = lengths[0], lengths[0] + lengths[1]
                id, attempt_id, queue = (
                    text[:first].decode(),
                    text[first:second].decode(),
                    text[second:].decode(errors="replace"),
                )
                if safe_until:
                    safe_until = max(safe_until, self._renewed_until(at, run))
                return Run(lane, LaneState(state), run, id, attempt_id, queue, started_mono, timeout_s, safe_until)
        return None

    def _renewed_until(self, lane_at: int, run: int) -> float:
        word: int = _ATOMIC.unpack_from(self._map, lane_at + _RENEWED)[0]
        is_its = word & (1 << _RUN_BITS) - 1 == run & (1 << _RUN_BITS) - 1
        return (word >> _RUN_BITS) / 1000 if is_its else 0.0

    def _word(self, offset: int) -> int:
        word: int = _WORD.unpack_from(self._map, self._at + offset)[0]
        return word


class Lane:
    """The process's side of one lane. The three methods of the hot path cost well under a microsecond each."""

    __slots__ = ("_at", "_map", "_run", "_sequence")

    def __init__(self, map: mmap.mmap, at: int) -> None:
        self._map, self._at = map, at
        self._sequence: int = _WORD.unpack_from(map, at)[0]
        self._run: int = _WORD.unpack_from(map, at + 16)[0]

    def begin(  # noqa: PLR0917 - names would cost time, and this is done for every task
        self, id: str, attempt_id: str, queue: str, started_mono: float, timeout_s: float, safe_until: float = 0.0
    ) -> None:
        """Shows the attempt that now runs; `safe_until` as in `Run`.

        Names over LONGEST_NAME bytes, which only a plain RQ producer can give, are shown cut: such an attempt gets no
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
        """Says that the user's code is over: nobody may interrupt the run from here on."""
        self._map[self._at + _STATE] = LaneState.ENDING

    def clear(self) -> None:
        """Says that the lane is idle."""
        self._map[self._at + _STATE] = LaneState.IDLE

    def request(self) -> Request:
        """What was asked of the run it now shows."""
        return _request_at(self._map, self._at, self._run)


def _request_at(map: mmap.mmap, lane_at: int, run: int) -> Request:
    word: int = _WORD.unpack_from(map, lane_at + _REQUEST)[0]
    return Request(word & 0xFF) if word >> 8 == run else Request.NONE
