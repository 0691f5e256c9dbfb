"""A stop reaches the attempt that it names, also one that its process doesn't show yet."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any, cast

import anyio
import pytest

from tests.support import PATIENCE_S
from workers.attempts import Stops
from workers.fork_client import ProcessHandle
from workers.shared_memory import Request, SharedMemory


@pytest.fixture
def process() -> Iterator[ProcessHandle]:
    """A process with one lane. It ends at the first signal; what it runs is written by the tests."""
    memory = SharedMemory.create(blocks=1, lanes=1)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as sleeper:
        yield ProcessHandle("worker", sleeper.pid, memory.block(0), cast(Any, None), ("default",))
        sleeper.kill()
    memory.close()


async def test_a_stop_waits_for_an_attempt_that_its_process_does_not_show_yet(process: ProcessHandle) -> None:
    stops, lane = Stops(), process.block.lane(0)
    lane.begin("earlier", "attempt-1", "default", 0.0, 0.0)

    stops.stop_attempt(process, "attempt-2", grace_s=60)
    before = lane.request()
    lane.begin("task", "attempt-2", "default", 0.0, 0.0)

    assert before is Request.NONE
    with anyio.fail_after(PATIENCE_S):
        while lane.request() is not Request.STOP:
            await anyio.sleep(0.01)
    process.ended.set()


async def test_a_forced_stop_waits_in_the_same_way(process: ProcessHandle) -> None:
    stops, lane = Stops(), process.block.lane(0)

    stops.stop_attempt(process, "attempt-1", grace_s=0, force=True)
    before = dict(process.verdicts)
    lane.begin("task", "attempt-1", "default", 0.0, 0.0)

    assert before == {}
    with anyio.fail_after(PATIENCE_S):
        while "attempt-1" not in process.verdicts:
            await anyio.sleep(0.01)
    process.ended.set()
