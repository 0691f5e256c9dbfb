"""One typed function per script of workflows. Each returns a `Call`; nothing runs here. All may be sent twice."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from taskpool.redis import keys
from taskpool.redis.calls import Call, Part, Script, texts

_stage, _commit, _reserve = map(Script, ("workflow_stage", "workflow_commit", "workflow_reserve"))
_stop, _open, _sweep = map(Script, ("workflow_stop", "workflow_open", "workflow_sweep"))
_remove, _purge = map(Script, ("workflow_remove", "workflow_purge"))
_retry, _revive = map(Script, ("workflow_retry", "workflow_revive"))

Node = tuple[str, float, bytes]
"""The name of a node, its place (the number of its first member), and the node as JSON."""

_encode: Final = msgspec.json.Encoder().encode


def stage(token: str, index: int, chunk: bytes = b"", nodes: Sequence[Node] = ()) -> Call[str]:
    """Keep a chunk of tasks, the one with this index, and nodes until they are committed: ``ok``, or ``lost`` (the
    chunks before it have expired)."""
    flat: list[Part] = [part for node in nodes for part in node]
    return _stage.word(token, index, chunk, *flat)


def commit(asked: Mapping[str, Any], audited: bytes = b"") -> Call[list[Any]]:
    """Make what was staged a workflow, or a part of one; `asked` and the reply as in `workflow_commit.lua`."""
    return _commit.call((_encode(asked), audited), lambda reply: reply)


def reserve(workflow: str, count: int) -> Call[int | None]:
    """Reserve numbers for so many members that are to be added: the first of them; None if the workflow is gone."""
    return _reserve.call((workflow, count), lambda reply: reply)


def stop(id: str, *, grace_s: float, force: bool, audited: bytes = b"") -> Call[str]:
    """Ask a workflow to stop: ``ok``, ``gone``, or the status that doesn't allow it."""
    return _stop.word(id, f"{grace_s:g}", "1" if force else "", audited)


def retry(id: str, numbers: Sequence[int], *, seq: int, audited: bytes = b"") -> Call[str]:
    """Note that members of an ended workflow are to run again: ``ok``, ``gone``, ``changed`` (its last event isn't
    `seq` any more), or the status that doesn't allow it."""
    return _retry.word(id, secrets.token_hex(6), seq, audited, *numbers)


def revive(id: str, most: int) -> Call[str]:
    """Give members that are to run again new lives, in a step of about `most` members and edges: ``more`` or
    ``end``."""
    return _revive.word(id, most)


class Open(NamedTuple):
    """Members of a stopping workflow that wait, and that run; and the number to go on with (0: there are no more)."""

    next_number: int
    grace_s: float = 0
    force: bool = False
    waiting: Sequence[str] = ()
    running: Sequence[str] = ()


def find_open(id: str, number: int, most: int) -> Call[Open]:
    """Look for members of a stopping workflow that still wait or run, `most` from this number on."""

    def read(reply: list[Any]) -> Open:
        if len(reply) == 1:
            return Open(0)
        next_number, grace, force, waiting, running = reply
        return Open(next_number, float(grace), force == b"1", texts(waiting), texts(running))

    return _open.call((id, number, most), read)


def sweep(index: str, most: int) -> Call[str]:
    """Count members of workflows anew whose status differs from the counted one, in one step of `most` members:
    ``more`` or ``end``. `index`: WORKFLOWS or WORKFLOWS_OPEN."""
    return _sweep.call((most,), bytes.decode, keys=(index,))


def remove(id: str, audited: bytes = b"") -> Call[str]:
    """Mark an ended workflow as removed: ``ok``, ``gone``, or the status that doesn't allow it."""
    return _remove.word(id, audited)


def purge(id: str, most: int) -> Call[str]:
    """Make the records of `most` members of a workflow due whose time is over: ``more``, ``end`` (it is gone) or
    ``early``."""
    return _purge.word(id, most)


def expanding(limit: int, *, idle_ms: int, now_ms: int) -> Call[list[str]]:
    """The workflows whose chunks are committed, but haven't been stored for so long."""
    command = ("ZRANGEBYSCORE", keys.EXPANDING, "-inf", now_ms - idle_ms, "LIMIT", 0, limit)
    return Call(command, texts, again=True)
