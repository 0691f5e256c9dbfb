"""What the headers of a submission ask for, beyond its body: to be carried out once, to wait, to be traced."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from api.problems import Problem
from api.tags import Headers

MAX_WAIT_S: Final = 50
"""The longest wait for a task's end: less than the 60 s after which nginx and others give up on an answer."""
LONGEST_KEY: Final = 255

_ASKS: Final = frozenset({b"idempotency-key", b"prefer", b"traceparent", b"tracestate"})
_KEY: Final = re.compile(rb"[!-~]{1,%d}" % LONGEST_KEY)
_WAIT: Final = re.compile(rb'(?:^|[,;])[ \t]*wait[ \t]*=[ \t]*"?([0-9]{1,9})"?[ \t]*(?=$|[,;])', re.IGNORECASE)


class Wishes(NamedTuple):
    """What the headers of a submission ask for; most ask for nothing."""

    key: str | None = None
    wait_s: int | None = None
    traceparent: str | None = None
    tracestate: str | None = None


NOTHING: Final = Wishes()


def wishes_of(headers: Headers) -> Wishes:
    """What the headers of a submission ask for. A `Prefer` that isn't understood is ignored, as RFC 7240 wants it.

    Raises:
        Problem: 400, an Idempotency-Key that can't be one.
    """
    asks = [header for header in headers if header[0] in _ASKS]
    return _wishes(asks) if asks else NOTHING


def waited(wait_s: float) -> tuple[bytes, bytes]:
    """The header that says for how long the server was ready to wait."""
    return b"preference-applied", f"wait={wait_s:g}".encode()


def _wishes(asks: Headers) -> Wishes:
    given: dict[bytes, bytes] = {}
    for name, value in asks:
        if name == b"idempotency-key" and name in given:
            raise Problem("invalid-header", "Idempotency-Key: given twice")
        # What may come in several lines means the same as one with commas. Two traceparents are none.
        given[name] = given[name] + b"," + value if name in given else value
    key = given.get(b"idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        detail = f"Idempotency-Key: must be 1 to {LONGEST_KEY} letters, digits or marks of ASCII, without blanks"
        raise Problem("invalid-header", detail)
    wait = _WAIT.search(given.get(b"prefer", b""))
    traceparent = given.get(b"traceparent")
    state = given.get(b"tracestate")
    return Wishes(
        None if key is None else key.decode(),
        None if wait is None else min(int(wait[1]), MAX_WAIT_S),
        None if traceparent is None else traceparent.decode("latin-1"),
        None if state is None else state.decode("latin-1"),
    )
