"""BullMQ: worker processes in Node.js, one worker each, with the concurrency that made it quickest on two cores.

Of the concurrencies 1, 8, 16, 32 and 64, the last two were the quickest, and 128 was no quicker. node-redis in place of
ioredis was no quicker, and ioredis's automatic pipelines weren't either. All else is BullMQ's default: workers renew
locks and look for stalled jobs, events are written, and completed jobs are kept with their results.

A Node.js program adds the jobs and reads their results through BullMQ. `npm ci` installs the packages of
package-lock.json into this folder's node_modules when BullMQ first takes part.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from benchmarks.contestants import NotInstalled
from benchmarks.processes import Command

FOLDER = Path(__file__).parent
QUEUE = "benchmark"
MESSAGE_LENGTH = 600  # of what npm writes when it fails; the reason comes first


class Queue:
    speed: float = 10_000
    concurrency = 64

    def __init__(self, redis_url: str) -> None:
        install(FOLDER)
        self.redis_url = redis_url
        self.redis = redis.Redis.from_url(redis_url)
        self.producer: subprocess.Popen[str] | None = None

    def enqueue(self, n: int) -> Any:
        return self.enqueue_each([n])[0]

    def enqueue_each(self, numbers: Sequence[int]) -> list[Any]:
        ids: list[str] = self._request("add", list(numbers))
        return ids

    def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        ids: list[str] = self._request("addBulk", list(numbers))
        return ids

    def commands(self, processes: int) -> list[Command]:
        arguments = [str(FOLDER / "worker.mjs"), self.redis_url, QUEUE, str(self.concurrency)]
        return [Command(arguments, program="node")] * processes

    def completed(self) -> int:
        return int(self.redis.zcard(f"bull:{QUEUE}:completed"))

    def result(self, handle: str) -> dict[str, int] | None:
        found: dict[str, int] | None = self._request("result", handle)
        return found

    def close(self) -> None:
        if self.producer is not None:
            self.producer.communicate()  # closes its input, which ends it
        self.redis.close()

    def _request(self, verb: str, argument: Any) -> Any:
        """The producer's answer. The first request starts it, because some queues are made only for their commands."""
        if self.producer is None:
            command = ["node", str(FOLDER / "producer.mjs"), self.redis_url, QUEUE]
            self.producer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.producer.stdin is not None
        assert self.producer.stdout is not None
        self.producer.stdin.write(json.dumps([verb, argument]) + "\n")
        self.producer.stdin.flush()
        if not (answer := self.producer.stdout.readline()):
            raise ChildProcessError(f"BullMQ's producer ended with status {self.producer.wait()}")
        return json.loads(answer)


def install(folder: Path) -> None:
    """Install the packages of the package-lock.json in `folder`, unless exactly these are installed.

    Raises:
        NotInstalled: Node.js or npm is missing, or npm failed.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise NotInstalled("it needs Node.js and npm; on Debian: apt-get install nodejs npm")
    installed = folder / "node_modules" / ".installed"
    with (folder / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another benchmark may start at the same time
        wanted = lock.read()
        if installed.is_file() and installed.read_text() == wanted:
            return
        options = ["--engine-strict", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        done = subprocess.run([npm, "ci", *options], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotInstalled(f"`npm ci` failed in {folder}: {done.stderr.strip()[:MESSAGE_LENGTH]}")
        installed.write_text(wanted)
