"""Answers requests for stacks in the place of a supervisor, for the tests of those who ask."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from redis import Redis

from taskpool.operations.control import stacks
from taskpool.redis.store import Store
from taskpool.types.fleet import Stack, StackFrame

FRAMES = (
    StackFrame(file="/usr/lib/python3/runpy.py", line=1, function="run"),
    StackFrame(file="/app/tasks.py", line=41, function="resize", is_user=True),
)


@contextmanager
def answering(redis_url: str, worker: str, id: str) -> Iterator[None]:
    """While the block runs, requests for the stack of what this worker runs are answered."""
    redis: Any = Redis.from_url(redis_url)
    channel = redis.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(f"rq:pubsub:{worker}")
    ended = threading.Event()

    def answer() -> None:
        store = Store(redis_url)
        while not ended.is_set():
            if message := channel.get_message(timeout=0.05):
                stack = Stack(id=id, taken_at=datetime.now(UTC), frames=FRAMES, text="Thread 1 runs something else")
                store.run(stacks.answer(json.loads(message["data"])["token"], stack))
        store.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        channel.close()
        redis.close()
