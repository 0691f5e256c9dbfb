"""What a process counts: increments by type and queue, each taken once."""

from __future__ import annotations

from taskpool.redis.keys import field_name, split_name
from workers.process.reports import Stats


def test_one_attempt_is_counted_in_each_metric() -> None:
    stats = Stats("w", "b1")

    stats.record("resize", "images", "done", wait_ms=40, run_s=0.3)

    assert stats.take() == {
        "tasks|done|resize|images|b1": 1,
        "wait_bucket|resize|images|0.05|b1": 1,
        "run_bucket|resize|images|0.5|b1": 1,
        "wait_us_sum|resize|images|b1": 40_000,
        "run_us_sum|resize|images|b1": 300_000,
    }


def test_a_bucket_holds_its_upper_end_and_the_last_one_everything_above() -> None:
    stats = Stats("w", "b1")

    stats.record("t", "q", "done", wait_ms=5, run_s=3600.001)

    deltas = stats.take()
    assert deltas["wait_bucket|t|q|0.005|b1"] == 1
    assert deltas["run_bucket|t|q|+Inf|b1"] == 1


def test_increments_are_taken_once() -> None:
    stats = Stats("w", "b1")
    stats.record("t", "q", "failed", wait_ms=0, run_s=0)

    stats.take()
    stats.start_again()

    assert stats.take() == {}
    assert (stats.done, stats.failed, stats.working_us) == (0, 0, 0)


def test_rq_is_shown_what_was_done_and_what_failed_and_nothing_else_as_either() -> None:
    stats = Stats("w", "b1")

    for outcome in ("done", "done", "failed", "stopped", "retried", "snoozed", "asked", "lost"):
        stats.record("t", "q", outcome, wait_ms=0, run_s=1)

    assert (stats.done, stats.failed, stats.working_us) == (2, 2, 8_000_000)


def test_a_report_that_is_not_confirmed_is_sent_again_as_it_was() -> None:
    stats = Stats("w", "b1")
    stats.record("t", "q", "done", wait_ms=0, run_s=1)
    (first,) = stats.report()

    stats.record("t", "q", "failed", wait_ms=0, run_s=1)
    (again,) = stats.report()
    again.read(b"ok")
    (second,) = stats.report()

    assert again.command == first.command
    assert again.again
    assert "tasks|failed|t|q|b1" in second.command
    assert "tasks|done|t|q|b1" not in second.command
    second.read(b"ok")
    assert stats.report() == []


def test_any_label_survives_the_field_name() -> None:
    labels = ("a|b", "100%", "%7C", "")

    assert split_name(field_name("tasks", *labels)) == ("tasks", *labels)
