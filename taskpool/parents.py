"""What a task reads of the tasks it depends on: their results, or for each that has none the reason."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from taskpool import keys
from taskpool.calls import Call, Plan
from taskpool.interrupts import ParentResultGone

FIELDS: Final = ("status", "result", "data")
"""The fields of a parent's hash that tell its result."""

RQ_SUCCEEDED: Final = b"1"

_decode: Final = msgspec.json.Decoder().decode


class ParentResults(Mapping[str, Any]):
    """Results by id, in the order of `depends_on`, where at least one is missing: to read that one raises
    ParentResultGone. It is never None, so a task can't take it for a result."""

    def __init__(self, results: Mapping[str, Any], faults: Mapping[str, str]) -> None:
        self._results, self._faults = results, faults

    def __getitem__(self, id: str) -> Any:
        if id in self._faults:
            raise ParentResultGone(id, self._faults[id])
        return self._results[id]

    def __contains__(self, id: object) -> bool:
        return id in self._results

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        shown = {id: f"<{self._faults[id]}>" if id in self._faults else each for id, each in self._results.items()}
        return f"{type(self).__name__}({shown!r})"


def parents_of(ids: Sequence[str]) -> Plan[Mapping[str, Any]]:
    """The results of the tasks that a task depends on, by id, in order. To read one that is gone raises
    ParentResultGone."""
    hashes: list[list[bytes | None]] = yield [Call(("HMGET", keys.JOB + id, *FIELDS), list, again=True) for id in ids]
    records = dict(zip(ids, hashes, strict=True))
    ran_in_rq = [id for id, fields in records.items() if is_in_stream(fields)]
    latest: dict[str, Any] = {}
    if ran_in_rq:
        entries = yield [
            Call(("XREVRANGE", keys.RESULTS + id, "+", "-", "COUNT", 1), list, again=True) for id in ran_in_rq
        ]
        latest = {id: entry for id, (entry, *_) in zip(ran_in_rq, map(_entries, entries), strict=True)}
    return results_of(records, latest)


def is_in_stream(fields: Sequence[bytes | None]) -> bool:
    """Whether a parent is done and its record has no result: then a plain RQ worker ran a function that isn't ours."""
    status, result, _ = fields
    return status == b"finished" and result is None


def results_of(
    records: Mapping[str, Sequence[bytes | None]], latest: Mapping[str, Mapping[bytes, bytes] | None]
) -> Mapping[str, Any]:
    """The results in parents' `FIELDS`, and in the `latest` entries of RQ's result streams."""
    results: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for id, (status, result, data) in records.items():
        results[id] = None
        try:
            if data is None and status != b"finished":
                faults[id] = "its record expired or was removed"
            elif status != b"finished":
                faults[id] = f"it has none, its status is {(status or b'unknown').decode('utf-8', 'replace')}"
            elif result is not None:
                results[id] = _decode(result)
            elif (entry := latest.get(id)) is None or entry.get(b"type") != RQ_SUCCEEDED:
                faults[id] = "it is no longer stored"
            elif b"return_value" in entry:  # RQ stores no entry for None
                results[id] = _decode(base64.b64decode(entry[b"return_value"]))
        except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, RecursionError):
            faults[id] = "what is stored is not JSON"
    return ParentResults(results, faults) if faults else results


def _entries(reply: Sequence[Any]) -> Sequence[Mapping[bytes, bytes] | None]:
    """The entries of a stream, read as flat lists; at least one."""
    return [dict(zip(flat[::2], flat[1::2], strict=True)) for _, flat in reply] or [None]
