"""The bare loop: one Lua call a task stores the last result and takes the next task, over a plain socket.

No lease, no status, no record: the limit of one round trip a task. Run as a module it is one worker:
`python -m benchmarks.contestants.lua REDIS_URL drain|answer`; `answer` blocks for each task and publishes its result.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

import hiredis

from benchmarks.increment import increment
from benchmarks.processes import Command
from benchmarks.proxy import connect

TASKS, RESULTS, REPLIES = "bare:tasks", "bare:results", "bare:replies"
BLOCK_S = 1

# KEYS: hash of results, list of tasks. ARGV: id and result of the last task ("" at first), reply channel or "".
# Returns the next task, or false.
STEP = """
if ARGV[1] ~= '' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[2]) end
return redis.call('LPOP', KEYS[2])
"""


class Wire:
    """A plain socket with hiredis on both ways: the cheapest client there is in Python."""

    def __init__(self, redis_url: str) -> None:
        self.socket = connect(redis_url)
        self.reader = hiredis.Reader()

    def call(self, *words: str | int) -> Any:
        command: tuple[Any, ...] = words
        self.socket.sendall(hiredis.pack_command(command))
        return self.read()

    def read(self) -> Any:
        while (reply := self.reader.gets()) is False:
            self.reader.feed(self.socket.recv(1 << 16))
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def close(self) -> None:
        self.socket.close()


class Queue:
    speed: float = 40_000

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.wire = Wire(redis_url)
        self.replies = Wire(redis_url)
        self.replies.call("SUBSCRIBE", REPLIES)
        self.ids = itertools.count()

    def enqueue(self, n: int) -> str:
        id = f"{next(self.ids)}"
        self.wire.call("RPUSH", TASKS, json.dumps([id, {"n": n}]))
        return id

    def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        ids = [f"{next(self.ids)}" for _ in numbers]
        self.wire.call("RPUSH", TASKS, *(json.dumps([id, {"n": n}]) for id, n in zip(ids, numbers, strict=True)))
        return ids

    def ask(self, n: int) -> dict[str, int]:
        """Put a task in and wait for its answer; it needs a worker in the mode `answer`, and one asker."""
        self.enqueue(n)
        answer: dict[str, int] = json.loads(self.replies.read()[2])
        return answer

    def commands(self, processes: int, mode: str = "drain") -> list[Command]:
        return [Command(["-m", __name__, self.redis_url, mode])] * processes

    def completed(self) -> int:
        return int(self.wire.call("HLEN", RESULTS))

    def result(self, handle: str) -> dict[str, int] | None:
        found = self.wire.call("HGET", RESULTS, handle)
        return None if found is None else json.loads(found)

    def close(self) -> None:
        self.wire.close()
        self.replies.close()


def work(redis_url: str, mode: str) -> None:
    """Work until killed."""
    wire = Wire(redis_url)
    sha = wire.call("SCRIPT", "LOAD", STEP)
    channel = REPLIES if mode == "answer" else ""
    id, answer = "", ""
    while True:
        task = wire.call("EVALSHA", sha, 2, RESULTS, TASKS, id, answer, channel if id else "")
        while task is None:
            popped = wire.call("BLPOP", TASKS, BLOCK_S)
            task = popped and popped[1]
        id, payload = json.loads(task)
        answer = json.dumps(increment(**payload))


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2])
