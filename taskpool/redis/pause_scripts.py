"""The scripts of pauses, as typed functions; see `scripts`. What is paused is the hash `SWITCHES`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from taskpool.redis import keys
from taskpool.redis.calls import Call, Script, hash_of, readable, tolerant
from taskpool.types import utc
from taskpool.types.fleet import Pause

_pause, _resume = map(Script, ("pause", "resume"))

ALL: Final = "all"
QUEUE: Final = "queue:"
POOL: Final = "pool:"
"""The fields of the hash; the latter two with a name behind."""


class _Switch(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value of the hash, except for its time."""

    by: str | None = None
    why: str | None = None
    drain: bool = False


class _Kept(_Switch, frozen=True, kw_only=True):
    at_ms: int


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Kept).decode


def pause(
    field: str, by: str | None, why: str | None, audited: bytes = b"", *, drains: bool = False
) -> Call[Pause | None]:
    """Pause what the field names, or have a pool drain. The pause that holds; None: there is no such pool."""
    # The script puts the time in front of a member, so there is always one.
    document = b'{"drain":true}' if drains else b'{"drain":false}'
    if members := _encode(_Switch(by, why))[1:-1]:
        document = document[:-1] + b"," + members + b"}"
    return _pause.call((field, document, audited), lambda reply: None if reply is None else read_pause(reply))


def resume(field: str, queues: Sequence[str], audited: bytes = b"") -> Call[str]:
    """Resume what the field names: ``ok``, or ``draining`` (a pool that ends); and wake workers of these queues."""
    return _resume.word(field, audited, *queues)


def read_pause(document: bytes) -> Pause:
    """A value of the hash."""
    kept = _decode(document)
    return Pause(at=utc(kept.at_ms), by=kept.by, why=kept.why, drains=kept.drain)


def paused() -> Call[Mapping[str, Pause]]:
    """All that is paused, by field. Values that can't be read are skipped."""

    def read(reply: Any) -> Mapping[str, Pause]:
        pairs = [(field.decode(errors="replace"), value) for field, value in hash_of(reply).items()]
        return readable(pairs, read_pause, "pause")

    return tolerant(Call(("HGETALL", keys.SWITCHES), read, again=True), {})
