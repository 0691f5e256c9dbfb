"""A private redis-server for one benchmark run: every contestant meets the same server with the same settings.

Nothing is persisted: what is compared is the work of the queues, not of the disk.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import redis

from benchmarks.ending import ends_with_us
from benchmarks.ports import free_port
from taskpool.redis.embedded import find_redis_server

START_TIMEOUT_S = 10.0


@contextmanager
def private_redis(
    binary: str | None = None, *, unix: bool = False, config: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start a redis-server and yield its URL; it ends with the block, and so does all else that is started in it, also
    when this process is told to end.

    `unix` chooses a unix socket over loopback TCP; `config` holds more directives.

    Raises:
        ConfigurationError: there is no redis-server on this machine.
        ChildProcessError: it didn't answer within START_TIMEOUT_S.
    """
    with ends_with_us(), tempfile.TemporaryDirectory(prefix="taskpool-bench-") as directory:
        port, path = (0, f"{directory}/redis.sock") if unix else (free_port(), "")
        where = ["--port", str(port)] + (["--unixsocket", path] if unix else ["--bind", "127.0.0.1"])
        quiet = ["--save", "", "--appendonly", "no", "--dir", directory, "--loglevel", "warning"]
        more = [word for name, value in (config or {}).items() for word in (f"--{name}", value)]
        command = [binary or find_redis_server(), *where, *quiet, *more]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        url = f"unix://{path}" if unix else f"redis://127.0.0.1:{port}/0"
        try:
            wait_until_it_answers(url, process)
            yield url
        finally:
            process.terminate()
            process.wait()


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with redis.Redis.from_url(url) as client:
                client.ping()
            return
        except redis.ConnectionError:
            time.sleep(0.01)
    raise ChildProcessError(f"redis-server did not start (exit status {process.poll()})")
