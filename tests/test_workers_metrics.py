"""What a process counts: increments by type and queue, each taken once."""

from __future__ import annotations

from taskpool.redis.keys import field_name, split_name
from workers.metrics import Stats


def test_one_attempt_is_counted_in_each_metric() -> None:
    stats = Stats()

    stats.record("resize", "images", "done", wait_ms=40, run_s=0.3)

    assert stats.take() == {
        "tasks|done|resize|images": 1,
        "wait_bucket|resize|images|0.05": 1,
        "run_bucket|resize|images|0.5": 1,
        "wait_us_sum|resize|images": 40_000,
        "run_us_sum|resize|images": 300_000,
    }


def test_a_bucket_holds_its_upper_end_and_the_last_one_everything_above() -> None:
    stats = Stats()

    stats.record("t", "q", "done", wait_ms=5, run_s=300.001)

    deltas = stats.take()
    assert deltas["wait_bucket|t|q|0.005"] == 1
    assert deltas["run_bucket|t|q|+Inf"] == 1


def test_increments_are_taken_once() -> None:
    stats = Stats()
    stats.record("t", "q", "failed", wait_ms=0, run_s=0)

    stats.take()

    assert stats.take() == {}
    assert (stats.done, stats.failed, stats.working_us) == (0, 0, 0)


def test_only_done_counts_as_successful_for_rq() -> None:
    stats = Stats()

    for outcome in ("done", "done", "failed", "stopped", "retried"):
        stats.record("t", "q", outcome, wait_ms=0, run_s=1)

    assert (stats.done, stats.failed, stats.working_us) == (2, 3, 5_000_000)


def test_any_label_survives_the_field_name() -> None:
    labels = ("a|b", "100%", "%7C", "")

    assert split_name(field_name("tasks", *labels)) == ("tasks", *labels)
