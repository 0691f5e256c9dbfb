"""`python -m tests.impatient_api 15`: the API with a 15th of its usual times, so that tests need not wait so long.

It keeps as much less for clients that don't read. `retry:` is shorter still: clients that were cut off come back at
once. With `clients` behind it, clients have as little
time to send a body and to answer a ping.
"""

from __future__ import annotations

import sys
from typing import Any

from api.events import sse
from api.http import body, query


def main(divisor: float, *, hurries_clients: bool) -> int:
    """Run it; the exit status."""
    changed: Any = sse
    changed.KEEP_ALIVE_S, changed.RETRY = sse.KEEP_ALIVE_S / divisor, b"retry: 50\n"
    changed = query
    changed.MAX_WAIT_S = query.MAX_WAIT_S / divisor
    if hurries_clients:
        changed = body
        changed.BODY_TIMEOUT_S = body.BODY_TIMEOUT_S / divisor
    from api import __main__, connections, server  # what they import has these figures by now

    changed = connections
    changed.MOST_UNREAD_BYTES = round(connections.MOST_UNREAD_BYTES / divisor)
    changed = server
    changed.PING_S = server.PING_S / divisor
    if hurries_clients:
        changed.PONG_S = server.PONG_S / divisor
    return __main__.main()


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1]), hurries_clients="clients" in sys.argv[2:]))
