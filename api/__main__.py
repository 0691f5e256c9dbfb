"""`python -m taskpool_api`: one API process, set up by the environment. Exit status 2: it could not start."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from taskpool.errors import ConfigurationError, RedisUnavailable
from taskpool.redis.embedded import START_RETRY_S, wait_for_redis
from taskpool.settings import Settings, resolve_redis_url
from taskpool.text import LogFormatter, printable_lines

from .app import create_app
from .auth.door import check_door
from .connections import DROPPED_BYTES, Limits, check_files
from .server import bind, serve

logger = logging.getLogger("api")


def main() -> int:
    """Run it; the exit status."""
    # uvicorn takes these two over while it serves, and raises them again when it is done: that is a normal end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        settings = Settings.load(os.environ)
        log = logging.StreamHandler()
        log.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(level=settings.log_level.upper(), handlers=[log])
        logging.getLogger("uvicorn").setLevel("WARNING")
        check_files()
        listener = bind(settings.host, settings.port)
        who = _check(settings)
        app = create_app(settings)
    except ConfigurationError as error:
        print(printable_lines(f"api: {error}"), file=sys.stderr)
        return 2
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%d %s", f"[{host}]" if ":" in host else host, port, who)
    limits = Limits(
        settings.max_connections,
        settings.max_connections_per_address,
        settings.header_timeout_s,
        settings.write_timeout_s,
        settings.idle_timeout_s,
        body_bytes=settings.max_body_bytes + DROPPED_BYTES,
    )
    serve(app, listener, limits, log_level="warning")
    return 0


def _check(settings: Settings) -> str:
    """As `check_door`, once Redis can be read.

    Raises:
        ConfigurationError
    """
    while True:
        wait_for_redis(resolve_redis_url(settings))
        try:
            return check_door(settings)
        except RedisUnavailable as error:
            logger.warning("%s; waiting to start until it serves", error)
            time.sleep(START_RETRY_S)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    raise SystemExit(main())
