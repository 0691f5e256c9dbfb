"""`python -m taskpool_api`: one API process, configured by the environment. Exit status 2: it could not start."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from taskpool.access import keyring
from taskpool.errors import ConfigurationError, RedisUnavailable
from taskpool.redis.embedded import START_RETRY_S, wait_for_redis
from taskpool.redis.store import Store
from taskpool.settings import Settings, resolve_redis_url
from taskpool.text import log_formatter, printable_lines
from taskpool.validation import names_this_machine

from .app import create_app
from .connections import Connections
from .server import bind, serve

logger = logging.getLogger("api")

MAKE_KEY = "`taskpool keys create NAME --scope admin`"


def main() -> int:
    """Run the process; returns the exit status."""
    # uvicorn handles these two while it serves, and raises them again afterwards: that is a normal end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        settings = Settings.load(os.environ)
        log = logging.StreamHandler()
        text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        log.setFormatter(log_formatter(settings.log_format, text, is_terminal=sys.stderr.isatty()))
        logging.basicConfig(level=settings.log_level.upper(), handlers=[log])
        logging.getLogger("uvicorn").setLevel("WARNING")
        if settings.otel == "on":
            from taskpool.tasks import telemetry

            telemetry.start("taskpool-api")
            atexit.register(telemetry.stop)
        connections = Connections(settings)
        listener = bind(settings.host, settings.port)
        callers = _check_access(settings)
        app = create_app(settings)
    except ConfigurationError as error:
        print(printable_lines(f"api: {error}"), file=sys.stderr)
        return 2
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%d %s", f"[{host}]" if ":" in host else host, port, callers)
    serve(app, listener, connections)
    return 0


def _check_access(settings: Settings) -> str:
    """Which callers will be admitted, in words for the log. Safe by default: without keys, only this machine. Raises:
    ConfigurationError, if others could reach the API without a key."""
    url = resolve_redis_url(settings)
    if settings.auth == "off":
        wait_for_redis(url)
        return "without keys (TASKPOOL_AUTH=off): everyone who can reach it may do everything"
    if _any_key(url):
        return "for holders of a key"
    address = settings.public_address or settings.host
    if not names_this_machine(address):
        raise ConfigurationError(
            f"others can reach {address}, and there is no API key yet: create the first with {MAKE_KEY}; "
            "or set TASKPOOL_HOST=127.0.0.1 to serve only this machine, or TASKPOOL_AUTH=off to admit everyone"
        )
    return f"for this machine only, without keys; {MAKE_KEY} creates the first"


def _any_key(url: str) -> bool:
    """Whether there is an API key. Waits until Redis can be read."""
    while True:
        wait_for_redis(url)
        store = Store(url)
        try:
            return store.run(keyring.any_key())
        except RedisUnavailable as error:
            logger.warning("%s; waiting to start until it serves", error)
            time.sleep(START_RETRY_S)
        finally:
            store.close()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    raise SystemExit(main())
