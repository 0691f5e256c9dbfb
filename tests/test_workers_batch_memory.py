"""What shared memory shows of a batch: the supervisor and the process agree who has which attempt."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event

import pytest

from workers.shared_memory import Batch, Member, SharedMemory

MEMBERS = [Member(f"t{n}", f"a-{n}", "default", "work", 3600) for n in range(4)]


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory.create(blocks=2, lanes=1)
    yield memory
    memory.close()


@pytest.fixture
def process(memory: SharedMemory) -> Batch:
    """The process's side, with a batch."""
    batch = memory.block(0).batch
    assert batch.open(MEMBERS, 1.0)
    return batch


@pytest.fixture
def supervisor(memory: SharedMemory) -> Batch:
    return memory.block(0).batch


def test_there_is_no_batch_before_one_was_claimed_and_after_it_was_closed(memory: SharedMemory) -> None:
    process, supervisor = memory.block(1).batch, memory.block(1).batch
    assert supervisor.view() is None

    process.open(MEMBERS, 1.0)
    assert supervisor.view() is not None

    process.close()
    assert supervisor.view() is None


def test_a_view_shows_what_has_begun_what_was_returned_and_what_is_written(process: Batch, supervisor: Batch) -> None:
    for result in (b"1", b""):
        assert process.begin()
        assert process.keep(result)
    process.end_sending(is_all_written=True)
    process.begin()
    process.keep(b'"three"')

    view = supervisor.view()

    assert view is not None
    assert (view.members, view.results, view.begun, view.written) == (MEMBERS, [b"1", b"", b'"three"'], 3, 2)


def test_what_the_supervisor_has_taken_does_not_begin(process: Batch, supervisor: Batch) -> None:
    assert process.begin()
    view = supervisor.view()
    assert view is not None

    place = supervisor.take(view.number)
    supervisor.give(view.number, place)

    assert place == 1
    assert not process.begin()
    assert process.place_given == 1


def test_a_batch_that_was_taken_late_leaves_the_next_one(process: Batch, supervisor: Batch) -> None:
    view = supervisor.view()
    assert view is not None

    process.open(MEMBERS, 2.0)
    supervisor.give(view.number, supervisor.take(view.number))

    assert process.begin()
    assert process.place_given is None


def test_a_result_without_room_is_not_kept_nor_one_behind_it(process: Batch, supervisor: Batch) -> None:
    process.begin()
    assert process.keep(b"1")
    process.begin()

    assert not process.keep(b"2" * 100_000)
    process.begin()
    assert not process.keep(b"3")

    view = supervisor.view()
    assert view is not None
    assert view.results == [b"1"]


def test_a_list_without_room_is_no_batch(process: Batch, supervisor: Batch) -> None:
    assert not process.open([Member("t" * 1000, "a", "q", "work", 1)] * 100, 1.0)

    assert supervisor.view() is None


def test_no_attempt_begins_that_is_given_back_however_often_both_want_it(memory: SharedMemory) -> None:
    """The process begins attempts as fast as it can while the supervisor takes what is left."""
    ready, over = multiprocessing.Event(), multiprocessing.Event()
    process = multiprocessing.get_context("fork").Process(target=begin_all, args=(memory, ready, over))
    process.start()
    supervisor, marks = memory.block(0).batch, memory.block(0).head
    assert ready.wait(60)
    taken = 0
    until_mono = time.monotonic() + 2
    while time.monotonic() < until_mono:
        view = supervisor.view()
        if view is not None and view.begun:
            place = supervisor.take(view.number)
            supervisor.give(view.number, place)
            taken += 1
    over.set()
    process.join(60)

    assert process.exitcode == 0
    assert taken > 10
    assert marks.failed == 0, "attempts began that were given back"
    assert marks.done > 0, "no attempt was taken in time"


def begin_all(memory: SharedMemory, ready: Event, over: Event) -> None:
    """Counts in `failed` the batches of which an attempt began that was given back, and in `done` those that the
    supervisor has cut short."""
    block = memory.block(0)
    ready.set()
    while not over.is_set():
        block.batch.open(MEMBERS * 8, 1.0)
        begun = 0
        while begun < 8 * len(MEMBERS) and block.batch.begin():
            begun += 1
        if begun < 8 * len(MEMBERS):
            until_mono = time.monotonic() + 1
            while block.batch.place_given is None and time.monotonic() < until_mono:
                pass
            place = block.batch.place_given
            block.add(1, place is None or place < begun, 0)
