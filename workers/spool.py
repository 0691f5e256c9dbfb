"""The lines that the tasks of a process wrote last, in memory shared with the supervisor: they outlive the process.

A ring of records, each written before the task goes on and never taken out: the newest push out the oldest. What was
sent already is told from what wasn't by its number, when the supervisor sends the rest (see settlement).

    spool   ┌────────┬────────┬────────────────────────────────────────────────────────────────┐
            │ start  │ end    │ records: length, number, length of the attempt id; id; line    │
            └────────┴────────┴────────────────────────────────────────────────────────────────┘
             u64      u64      u32     u64     u16

`start` and `end` count the bytes ever written; a record is there once `end` says so.
"""

from __future__ import annotations

import mmap
import struct
import threading
from typing import Final

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
