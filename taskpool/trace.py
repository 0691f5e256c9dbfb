"""The W3C trace context of a submission as its record holds it, in one field that is there only if it had one.

It is the traceparent and, after a blank, the tracestate. What is invalid is ignored, as W3C wants it.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 512
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_TRACESTATE: Final = re.compile(r"[ -~]*")


def trace_text(traceparent: str, tracestate: str | None) -> str | None:
    """The field of a trace context; None when the traceparent is invalid, which W3C wants ignored with its state."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or match[1] == "ff" or not match[2].strip("0") or not match[3].strip("0"):
        return None
    if (match[1] == "00" and match[5]) or len(traceparent) > LONGEST:
        return None
    state = tracestate or ""
    if not state or len(state) > LONGEST or not _TRACESTATE.fullmatch(state):
        return traceparent
    return f"{traceparent} {state}"


def trace_of(field: str | None) -> tuple[str | None, str | None]:
    """The traceparent and the tracestate in the field."""
    parent, _, state = (field or "").partition(" ")
    return parent or None, state or None
