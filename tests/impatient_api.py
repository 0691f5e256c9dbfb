"""`python -m tests.impatient_api`: the API with a 25th of its usual times, for proxies with a 25th of theirs.

`retry:` is shorter still, so that clients that were cut off come back at once.
"""

from __future__ import annotations

from typing import Any

from api import wishes
from api.events import framing


def main() -> int:
    """Run it; the exit status."""
    shortened: Any = framing
    shortened.KEEP_ALIVE_S, shortened.RETRY = framing.KEEP_ALIVE_S / 25, b"retry: 50\n"
    shortened = wishes
    shortened.MAX_WAIT_S = 2
    from api import __main__, server  # what they import has these figures by now

    shortened = server
    shortened.PING_S = server.PING_S / 25
    return __main__.main()


if __name__ == "__main__":
    raise SystemExit(main())
