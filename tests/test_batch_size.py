"""How many tasks a worker process claims at once, by how long its last ones took."""

from __future__ import annotations

import pytest

from workers.process.batch_size import BATCH_S, GROWS_AFTER, MOST, QUICK_S, BatchSize


def size_after(*runs_s: float) -> int:
    size = BatchSize()
    for run_s in runs_s:
        size.note(run_s)
    return size.number


def test_a_process_begins_with_one_task_and_needs_many_quick_ones_to_claim_more() -> None:
    assert size_after() == 1
    assert size_after(*[0.0001] * (GROWS_AFTER - 1)) == 1
    assert size_after(*[0.0001] * GROWS_AFTER) == 2
    assert size_after(*[0.0001] * 1000) == MOST


def test_tasks_that_take_longer_are_claimed_one_at_a_time() -> None:
    assert size_after(*[QUICK_S * 1.01] * 1000) == 1


def test_two_slow_tasks_end_the_batches_and_one_makes_them_small() -> None:
    quick = [0.0001] * 1000

    assert size_after(*quick, 0.1) == MOST // 4
    assert size_after(*quick, 0.1, 0.1) == 1
    assert size_after(*quick, *[0.1, 0.0001] * 100) == 1


@pytest.mark.parametrize("run_s", [0.0002, 0.0005, 0.0009, QUICK_S])
def test_the_last_task_of_a_batch_waits_no_longer_than_it_may(run_s: float) -> None:
    assert 1 < size_after(*[run_s] * 1000) <= BATCH_S / run_s * 1.01 + 1
