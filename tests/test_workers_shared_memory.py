"""The shared memory: readers see whole runs, and a request reaches only the run it was made for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from workers.shared_memory import LONGEST_NAME, LaneState, Request, Run, SharedMemory


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory.create(blocks=3, lanes=2)
    yield memory
    memory.close()


def test_a_new_block_is_idle(memory: SharedMemory) -> None:
    block = memory.block(1)

    assert block.runs() == []
    assert (block.head.ready, block.head.done, block.head.failed, block.head.working_us) == (0, 0, 0, 0)
    assert block.head.drain == 0


def test_a_run_is_read_as_it_was_written(memory: SharedMemory) -> None:
    memory.block(1).lane(1).begin("id-1", "attempt", "quéue", 12.5, 600)

    assert memory.block(1).runs() == [Run(1, LaneState.RUNNING, 1, "id-1", "attempt", "quéue", 12.5, 600)]
    assert memory.block(0).runs() == []
    assert memory.block(2).runs() == []


def test_ending_and_idle_lanes_are_distinguished(memory: SharedMemory) -> None:
    block = memory.block(0)
    lane = block.lane(0)
    lane.begin("a", "b", "c", 1, 0)

    lane.end()
    ending = block.run(0)
    lane.clear()

    assert ending is not None
    assert ending.state is LaneState.ENDING
    assert block.run(0) is None


def test_a_request_reaches_the_run_it_was_made_for(memory: SharedMemory) -> None:
    block = memory.block(0)
    lane = block.lane(0)
    lane.begin("a", "1", "q", 1, 0)
    (run,) = block.runs()

    block.ask(run, Request.STOP)

    assert lane.request() is Request.STOP


def test_a_late_request_does_not_reach_the_next_run(memory: SharedMemory) -> None:
    block = memory.block(0)
    lane = block.lane(0)
    lane.begin("a", "1", "q", 1, 0)
    (run,) = block.runs()

    lane.begin("b", "2", "q", 2, 0)
    block.ask(run, Request.STOP)

    assert lane.request() is Request.NONE


def test_counters_add_up(memory: SharedMemory) -> None:
    block = memory.block(0)

    block.add(2, 1, 1_500_000)
    block.add(1, 0, 500_000)

    assert (block.head.done, block.head.failed, block.head.working_us) == (3, 1, 2_000_000)


def test_a_cleared_block_is_as_new_and_leaves_its_neighbours(memory: SharedMemory) -> None:
    for index in range(3):
        memory.block(index).lane(1).begin("a", "1", "q", 1, 0)
        memory.block(index).head.drain = 1

    memory.block(1).clear()

    assert [len(memory.block(index).runs()) for index in range(3)] == [1, 0, 1]
    assert [memory.block(index).head.drain for index in range(3)] == [1, 0, 1]


def test_names_that_are_too_long_are_cut(memory: SharedMemory) -> None:
    block = memory.block(2)

    block.lane(1).begin("i" * 1000, "a" * 64, "q" * 1000, 1, 0)

    (run,) = block.runs()
    assert (run.id, run.attempt_id, run.queue) == ("i" * LONGEST_NAME, "a" * 64, "q" * LONGEST_NAME)


def test_a_reader_never_sees_half_a_run(memory: SharedMemory) -> None:
    block = memory.block(0)
    pid = os.fork()
    if pid == 0:
        lane = block.lane(0)
        for number in range(1, 100_000):
            letter = "abcdefgh"[number % 8]
            lane.begin(letter * (number % 97 + 1), letter * 20, letter * 7, float(number), float(number))
        os._exit(0)

    torn = []
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        run = block.run(0)
        if run is not None and (len(set(run.id + run.attempt_id + run.queue)) > 1 or run.timeout_s != run.started_mono):
            torn.append(run)

    assert torn == []


def test_a_lease_lasts_until_its_last_renewal_and_a_renewal_is_for_one_run_only(memory: SharedMemory) -> None:
    block = memory.block(0)
    lane = block.lane(1)
    lane.begin("a", "1", "default", 5.0, 60.0, 100.0)
    first = block.runs()[0]

    block.renew(first, 115.25)
    renewed = block.runs()[0]
    lane.begin("b", "2", "default", 6.0, 60.0, 103.0)
    second = block.runs()[0]
    block.renew(first, 200.0)

    assert (first.safe_until, renewed.safe_until, second.safe_until) == (100.0, 115.25, 103.0)
    assert block.runs()[0].safe_until == 103.0


def test_a_lane_shows_no_lease_end_of_an_attempt_that_may_outlive_its_lease(memory: SharedMemory) -> None:
    block = memory.block(0)
    block.lane(1).begin("a", "1", "default", 5.0, 60.0)

    block.renew(block.runs()[0], 115.0)

    assert block.runs()[0].safe_until == 0
