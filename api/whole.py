"""An answer that is all there, in one write. Told in two messages, as ASGI has it, uvicorn writes it in two pieces, for
which the client is woken twice, and looks at each header by itself: a third of what it does for a small request.

What can't be done in one goes the usual way: a stream, a client that doesn't read.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from api.access.rate import RATE_KEY
from api.headers import ALWAYS, Header
from api.responses import Whole

CYCLE: Final = "taskpool.cycle"
"""Where the connection puts its request's cycle in the ASGI scope."""


def offer(cycle: RequestResponseCycle) -> None:
    """Let this request be answered in one write."""
    scope: Any = cycle.scope
    scope[CYCLE] = cycle


def write(answer: Any, scope: Scope) -> bool:
    """Write an answer whole if that can be done; it has the headers that every answer has.

    Raises:
        ValueError: a header holds a line break; nothing was written.
    """
    cycle: RequestResponseCycle | None = scope.get(CYCLE)
    if cycle is None or cycle.flow.write_paused or not isinstance(answer, Whole):
        return False
    head = lines([*cycle.default_headers, *answer.raw_headers, *scope.get(RATE_KEY, ())])
    end = b"\r\n" if cycle.keep_alive or answer.unread_body else b"connection: close\r\n\r\n"
    body = b"" if scope["method"] == "HEAD" else answer.body
    if not cycle.disconnected:
        # From here on as uvicorn does it.
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join((STATUS_LINE[answer.status_code], head, ALWAYS_LINES, end, body)))
        cycle.message_event.set()
        if not cycle.keep_alive or answer.unread_body:
            cycle.transport.close()
        cycle.on_response()
    return True


def lines(headers: list[Header]) -> bytes:
    """Headers as they go over the wire.

    Raises:
        ValueError: one would be more than one.
    """
    text = b"".join([b"%b: %b\r\n" % header for header in headers])
    if text.count(b"\n") != len(headers) or text.count(b"\r") != len(headers):
        raise ValueError("a header holds a line break")
    return text


ALWAYS_LINES: Final = lines([*ALWAYS])
