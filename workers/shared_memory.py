"""What each worker process runs, in memory that the supervisor shares with all of its processes.

A process owns one *block*: a head, one *lane* for each task it runs at once, a *batch* with what it has claimed
together, and a *spool* with the last lines of its tasks' logs. Only the process writes its block, with these
exceptions: the supervisor writes `drain`, `supervisor_pid`, `supervised_ms`, `looked_ms`, `stack_of`, `taken`,
`given_from` and `given`, and each lane's `request` and `renewed`, and the process's guardian writes `beat_ms` and
`guardian_pid`. A lane's `sequence` is odd while the lane is being written, so that reads are consistent. No write to
Redis trusts this memory: Redis checks the attempt id that comes with each write.

`LaneHead.run` counts the attempts that a lane has held. `request` is `run << 8 | kind`, so that a request for one run
never hits the next. The text of a lane is the task id, the attempt id and the queue.

An attempt that must not outlive its lease (`on_lost_lease` is "kill") shows in `safe_until` how long its lease surely
lasts, by `process_group.boottime`. The process writes the first such time. The supervisor writes later ones to
`renewed`, as `milliseconds << 24 | run`: one word, so that no reader sees half of it.

A batch lists its attempts in the order in which they begin, and behind that the results of those that are done but not
written to Redis. While the process is busy with a task that takes longer than the last ones did, the supervisor writes
the results, and gives back what hasn't begun. Both could use an attempt at the same moment, so each first says what it
does and then looks at what the other one has said (Dekker's algorithm): the process writes `begun` and reads `taken`,
the supervisor writes `taken` and reads `begun`. An attempt may be given back by both, which does no harm.

The spool is a ring in which the newest records overwrite the oldest. Each line is written before its task goes on, so
it outlives the process. The supervisor sends the lines whose numbers Redis doesn't have yet. `start` and `end` count
the bytes ever written; a record (length, number, length of the attempt id; attempt id; line) exists once `end` includes
it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import IO, Any, Final, NamedTuple

import msgspec


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


SPOOL_BYTES: Final = 128 * 1024
_SPOOL_HEAD: Final = struct.Struct("=QQ")
_RECORD: Final = struct.Struct("=IQH")
_ROOM: Final = SPOOL_BYTES - _SPOOL_HEAD.size
_LANE_BYTES: Final = 768
_BATCH_BYTES: Final = 32 * 1024
_RESULT_SIZE: Final = struct.Struct("=I")
LONGEST_NAME: Final = 300
_RUN_BITS: Final = 24
_RUN_MASK: Final = (1 << _RUN_BITS) - 1


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


def _fields(annotations: Mapping[str, str]) -> list[tuple[str, type[Any]]]:
    return [(name, ctypes.c_double if kind == "float" else ctypes.c_uint64) for name, kind in annotations.items()]


class BlockHead(ctypes.Structure):
    """The words at the start of a block. Each is aligned, so it is written in one piece."""

    ready: int
    """The process has reached its loop: it didn't die at start-up."""
    done: int
    failed: int
    working_us: int
    wants_guardian: int
    """The process asks the fork server for a guardian."""
    guardian_pid: int
    beat_ms: int
    """When the guardian last showed that it watches (`boottime`)."""
    drain: int
    """The supervisor asks the process to claim nothing more and to end when its tasks have ended."""
    supervised_ms: int
    """When the supervisor last showed that it is at work (`boottime`)."""
    stack_of: int
    """The supervisor wants to know where the attempt of this lane is; counted from 1, 0: of none."""
    supervisor_pid: int
    looked_ms: int
    """When the supervisor last looked at the batch (`boottime`)."""
    batch: int
    """The number of the batch; 0 while there is none, or it is being written."""
    opened_ms: int
    """When the batch was claimed (`boottime`)."""
    list_bytes: int
    begun: int
    """How many attempts of the batch have begun."""
    written: int
    """How many of their outcomes Redis has."""
    result_bytes: int
    """The size of the results behind the list."""
    is_sending: int
    """The process sends outcomes just now, and the supervisor needn't."""
    taken: int
    """The number of a batch from which the supervisor takes what hasn't begun."""
    given_from: int
    """The place of the first attempt that the supervisor has given back, in the batch with the number `given`."""
    given: int

    _fields_ = _fields(__annotations__)


class LaneHead(ctypes.Structure):
    """The words at the start of a lane, before the text."""

    sequence: int
    state: int
    run: int
    started_mono: float
    timeout_s: float
    safe_until: float
    id_bytes: int
    attempt_id_bytes: int
    queue_bytes: int
    request: int
    renewed: int

    _fields_ = _fields(__annotations__)

    def request_of(self, run: int) -> Request:
        """The request that was left for a run."""
        word = self.request
        return Request(word & 0xFF) if word >> 8 == run else Request.NONE


_HEAD_BYTES: Final = ctypes.sizeof(BlockHead)
_TEXT: Final = ctypes.sizeof(LaneHead)


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
        """Closes the file. Blocks stay usable while they are referenced."""
        os.close(self.fd)


def _block_bytes(lanes: int) -> int:
    return _HEAD_BYTES + lanes * _LANE_BYTES + _BATCH_BYTES + SPOOL_BYTES


class Block:
    """One process's block, as the process, its guardian and its supervisor use it."""

    def __init__(self, memory: SharedMemory, index: int) -> None:
        self.index, self.lanes = index, memory.lanes
        self._map, self._at = memory.map, index * _block_bytes(memory.lanes)
        self.head = BlockHead.from_buffer(self._map, self._at)
        self._lane_heads = [LaneHead.from_buffer(self._map, self._lane_at(lane)) for lane in range(self.lanes)]
        batch_at = self._lane_at(self.lanes)
        self.batch = Batch(self.head, memory.map, batch_at)
        self.spool = Spool(memory.map, batch_at + _BATCH_BYTES)

    def clear(self) -> None:
        """Resets it for the next process. Only while no process uses it."""
        size = _HEAD_BYTES + self.lanes * _LANE_BYTES
        self._map[self._at : self._at + size] = bytes(size)
        self.spool.clear()

    def _lane_at(self, number: int) -> int:
        return self._at + _HEAD_BYTES + number * _LANE_BYTES

    # --- used by the process ------------------------------------------------------------------------------------------

    def lane(self, number: int) -> Lane:
        """The writer of one lane."""
        return Lane(self._lane_heads[number], self._map, self._lane_at(number) + _TEXT)

    def add(self, done: int, failed: int, working_us: int) -> None:
        """Adds to the counters."""
        self.head.done += done
        self.head.failed += failed
        self.head.working_us += working_us

    # --- used by the supervisor ---------------------------------------------------------------------------------------

    def ask(self, run: Run, request: Request) -> None:
        """Leaves a request for this run; the next one of the lane doesn't see it."""
        self._lane_heads[run.lane].request = run.run << 8 | request

    def asked(self, run: Run) -> Request:
        """The request that was left for this run."""
        return self._lane_heads[run.lane].request_of(run.run)

    def renew(self, run: Run, safe_until: float) -> None:
        """The lease of this run surely lasts until then; the next run of the lane doesn't see it."""
        self._lane_heads[run.lane].renewed = int(safe_until * 1000) << _RUN_BITS | run.run & _RUN_MASK

    def runs(self) -> list[Run]:
        """What the lanes that aren't idle hold now."""
        return [run for lane in range(self.lanes) if (run := self.run(lane)) is not None]

    def run(self, lane: int) -> Run | None:
        """What one lane holds now; None: it is idle, or the process died while it wrote the lane."""
        live, at = self._lane_heads[lane], self._lane_at(lane)
        for _ in range(1000):
            head = LaneHead.from_buffer_copy(self._map, at)
            if head.sequence % 2:
                continue
            if head.state == LaneState.IDLE:
                return None
            second, third = head.id_bytes, head.id_bytes + head.attempt_id_bytes
            text = self._map[at + _TEXT : at + _TEXT + third + head.queue_bytes]
            if live.sequence != head.sequence:
                continue
            id, attempt_id, queue = (
                part.decode(errors="replace") for part in (text[:second], text[second:third], text[third:])
            )
            safe_until = head.safe_until
            if safe_until and head.renewed & _RUN_MASK == head.run & _RUN_MASK:
                safe_until = max(safe_until, (head.renewed >> _RUN_BITS) / 1000)
            times = (head.started_mono, head.timeout_s, safe_until)
            return Run(lane, LaneState(head.state), head.run, id, attempt_id, queue, *times)
        return None


class Lane:
    """The process's side of one lane. The three methods of the hot path cost well under a microsecond each."""

    __slots__ = ("_head", "_map", "_run", "_sequence", "_text_at")

    def __init__(self, head: LaneHead, map: mmap.mmap, text_at: int) -> None:
        self._head, self._map, self._text_at = head, map, text_at
        self._sequence, self._run = head.sequence, head.run

    def begin(  # noqa: PLR0917 - names would cost time, and this is done for every task
        self, id: str, attempt_id: str, queue: str, started_mono: float, timeout_s: float, safe_until: float = 0.0
    ) -> None:
        """Shows the attempt that runs now; `safe_until` as in `Run`.

        Names over LONGEST_NAME bytes, which only a plain RQ producer can create, are cut: such an attempt gets no
        heartbeats and must end within its lease."""
        id_, attempt, name = id.encode()[:LONGEST_NAME], attempt_id.encode(), queue.encode()[:LONGEST_NAME]
        text, head = id_ + attempt + name, self._head
        self._run += 1
        self._sequence += 2
        head.sequence = self._sequence - 1
        head.state, head.run = LaneState.RUNNING, self._run
        head.started_mono, head.timeout_s, head.safe_until = started_mono, timeout_s, safe_until
        head.id_bytes, head.attempt_id_bytes, head.queue_bytes = len(id_), len(attempt), len(name)
        self._map[self._text_at : self._text_at + len(text)] = text
        head.sequence = self._sequence

    def end(self) -> None:
        """The task's code is over: the run must not be interrupted from here on."""
        self._head.state = LaneState.ENDING

    def clear(self) -> None:
        """The lane is idle."""
        self._head.state = LaneState.IDLE

    def request(self) -> Request:
        """The request that was left for the run it shows."""
        return self._head.request_of(self._run)


class Member(NamedTuple):
    """An attempt of a batch: what ends it, or gives it back."""

    id: str
    attempt_id: str
    queue: str
    type: str
    result_ttl_s: int


class BatchView(NamedTuple):
    """A batch as the supervisor reads it. Of its attempts, the first `begun` have begun, and Redis has the outcomes of
    the first `written`. `results` are those of the first ones, as JSON; an empty one: it isn't simply done."""

    number: int
    members: Sequence[Member]
    results: Sequence[bytes]
    begun: int
    written: int


class Batch:
    """What a process has claimed together. The first methods are the process's side."""

    def __init__(self, head: BlockHead, map: mmap.mmap, at: int) -> None:
        self._head, self._map, self._at = head, map, at
        self._number = self._results_at = 0
        self._is_full = False
        self.is_open = False

    def open(self, members: Sequence[Member], opened: float) -> bool:
        """Lists what was claimed. Nothing of it has begun. False: there is no room, as only another program's ids can
        need it."""
        head, text = self._head, _encode(members)
        head.batch = 0
        if len(text) > _BATCH_BYTES:
            return False
        self._number += 1
        self._results_at = self._at + len(text)
        self._map[self._at : self._results_at] = text
        self._is_full = False
        head.opened_ms = int(opened * 1000)
        head.list_bytes = len(text)
        head.begun = head.written = head.result_bytes = head.is_sending = 0
        head.batch = self._number
        fence()
        self.is_open = True
        return True

    def begin(self) -> bool:
        """The next attempt begins. False: it must not, because the supervisor takes what hasn't begun."""
        self._head.begun += 1
        fence()
        return self._head.taken != self._number

    def keep(self, result: bytes) -> bool:
        """Keeps the result of the attempt that has begun last; nothing if it isn't simply done. False: there is no room
        for this one, nor for those that follow."""
        head = self._head
        at = self._results_at + head.result_bytes
        end = at + _RESULT_SIZE.size + len(result)
        if self._is_full or end > self._at + _BATCH_BYTES:
            self._is_full = True
            return False
        self._map[at:end] = _RESULT_SIZE.pack(len(result)) + result
        head.result_bytes += end - at
        return True

    def begin_sending(self) -> None:
        """The process sends all outcomes that Redis doesn't have."""
        self._head.is_sending = 1

    def end_sending(self, *, is_all_written: bool) -> None:
        """The process has sent them; `is_all_written`: Redis has them all."""
        if is_all_written:
            self._head.written = self._head.begun
        self._head.is_sending = 0

    def close(self) -> None:
        """Nothing of it is left to do."""
        self._head.batch = 0
        self.is_open = False

    @property
    def place_given(self) -> int | None:
        """From which place on the supervisor has given attempts back; None: it hasn't."""
        return self._head.given_from if self._head.given == self._number else None

    # --- used by the supervisor ---------------------------------------------------------------------------------------

    def view(self) -> BatchView | None:
        """The batch as it is now; None: there is none, or it changes just now."""
        head = self._head
        number, size, begun, written = head.batch, head.list_bytes, head.begun, head.written
        if not number or size > _BATCH_BYTES:
            return None
        results_at = self._at + size
        kept = self._map[results_at : min(results_at + head.result_bytes, self._at + _BATCH_BYTES)]
        text = self._map[self._at : results_at]
        if head.batch != number:
            return None
        try:
            members = _decode(text)
        except msgspec.MsgspecError:  # the process has died, and had damaged its memory before
            return None
        results, at = list[bytes](), 0
        while at < len(kept) and len(results) < len(members):
            (size,) = _RESULT_SIZE.unpack_from(kept, at)
            at += _RESULT_SIZE.size
            results.append(kept[at : at + size])
            at += size
        return BatchView(number, members, results, begun, written)

    def take(self, number: int) -> int:
        """Takes what hasn't begun; returns the place of the first such attempt."""
        self._head.taken = number
        fence()
        return self._head.begun

    def give(self, number: int, place: int) -> None:
        """The attempts from this place on are given back."""
        self._head.given_from = place
        self._head.given = number


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Member]).decode
_lock: Final = threading.Lock()


def fence() -> None:
    """A memory barrier: the processor carries out the writes before it first, and then the reads behind it. Taking a
    lock is one."""
    with _lock:
        pass


class Spool:
    """One process's ring of lines. Its threads may write at once; it is read when the process has ended."""

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
