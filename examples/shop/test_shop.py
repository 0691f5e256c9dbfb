"""The shop, without Redis and without worker processes: all of it runs in the test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import shop
from shop import import_csv, import_row, import_summary, nightly_report, send_receipt, start_import

from taskpool import TaskRecord, TaskStatus, WorkflowRecord
from taskpool.testing import InlinePool


@pytest.fixture
def pool() -> Iterator[InlinePool]:
    with InlinePool(nightly_report, import_csv, import_row, import_summary, send_receipt) as pool:
        yield pool


def file_of(directory: Path, prices: Sequence[str]) -> str:
    """The URL of a supplier's file with these prices."""
    path = directory / "prices.csv"
    path.write_text("article,price\n" + "".join(f"a{n},{price}\n" for n, price in enumerate(prices)))
    return path.as_uri()


def of_type(pool: InlinePool, type: str) -> list[TaskRecord]:
    """The tasks of a type, the oldest first."""
    return list(pool.list_tasks(type=type, limit=200).items)[::-1]


def node_of(record: WorkflowRecord, name: str) -> str:
    """The id of the task of a node."""
    return next(node.id or "" for node in record.nodes if node.name == name)


# The report


def nights(start: datetime, days: int) -> list[str]:
    """When the reports of these days were due, by their own words."""
    with InlinePool(nightly_report, now=start) as pool:
        return [str(record.result).removeprefix("report of ") for record in pool.advance(days=days)]


def test_the_report_runs_once_each_night_when_the_clocks_go_forward() -> None:
    assert nights(datetime(2026, 3, 27, 12, tzinfo=UTC), days=3) == [
        "2026-03-28 01:00 UTC",  # 02:00 in winter
        "2026-03-29 01:00 UTC",  # 02:00 doesn't exist: 03:00 in summer
        "2026-03-30 00:00 UTC",  # 02:00 in summer
    ]


def test_the_report_runs_once_each_night_when_the_clocks_go_back() -> None:
    assert nights(datetime(2026, 10, 23, 12, tzinfo=UTC), days=3) == [
        "2026-10-24 00:00 UTC",  # 02:00 in summer
        "2026-10-25 00:00 UTC",  # 02:00 comes twice: the first time
        "2026-10-26 01:00 UTC",  # 02:00 in winter
    ]


def test_the_report_of_a_night_without_workers_is_caught_up() -> None:
    with InlinePool(nightly_report, now=datetime(2026, 6, 1, 12, tzinfo=UTC)) as pool:
        pool.advance(hours=40, workers=False)  # two nights
        assert of_type(pool, "nightly_report") == []

        assert [record.result for record in pool.advance()] == ["report of 2026-06-03 00:00 UTC"]


# The import


def test_an_import_waits_for_approval(pool: InlinePool, tmp_path: Path) -> None:
    id = start_import(pool, file_of(tmp_path, ["1.50"]))

    pool.advance(hours=1)

    (node,) = pool.get_workflow(id).nodes
    assert node.status == "waiting_confirmation"
    assert of_type(pool, "import_row") == []


def test_a_bad_row_fails_alone_and_the_summary_sees_it(pool: InlinePool, tmp_path: Path) -> None:
    prices = [*(f"{n}.99" for n in range(200)), "free", "1.50"]
    id = start_import(pool, file_of(tmp_path, prices))

    pool.confirm(node_of(pool.get_workflow(id), "import"), comment="looks right")
    record = pool.wait_workflow(id)

    assert (record.status, record.total) == ("done", 204)
    assert record.counts == {"done": 203, "failed": 1}
    assert [(node.name, node.size) for node in record.nodes] == [("import", None), ("rows", 202), ("summary", None)]
    (bad,) = pool.list_tasks(workflow=id, node="rows", status=TaskStatus.FAILED).items
    assert (bad.payload["row"]["article"], bad.error) == (
        "a200",
        "ValueError: could not convert string to float: 'free'",
    )
    assert pool.get(node_of(record, "summary")).result == "1 failed"
    pool.run_all()
    assert [task.result for task in of_type(pool, "send_receipt")] == ["to shop@example.org: 1 rows failed"]


def test_a_rejected_import_imports_nothing(pool: InlinePool, tmp_path: Path) -> None:
    id = start_import(pool, file_of(tmp_path, ["1.50"]))

    pool.reject(node_of(pool.get_workflow(id), "import"), comment="wrong file")
    record = pool.wait_workflow(id)

    assert record.counts == {"canceled": 1}
    assert of_type(pool, "import_row") == []


def test_an_import_that_no_one_approves_is_rejected_after_three_days(pool: InlinePool, tmp_path: Path) -> None:
    id = start_import(pool, file_of(tmp_path, ["1.50"]))

    pool.advance(days=3, minutes=1)

    assert pool.get_workflow(id).counts == {"canceled": 1}


def test_a_second_attempt_adds_nothing_twice(pool: InlinePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = start_import(pool, file_of(tmp_path, ["1.50", "2.50"]))
    pool.confirm(node_of(pool.get_workflow(id), "import"))
    reads = []

    def read(url: str) -> Iterator[shop.Row]:
        reads.append(url)
        yield shop.Row(article="a0", price="1.50")
        if len(reads) == 1:
            raise OSError("the connection was lost")
        yield shop.Row(article="a1", price="2.50")

    monkeypatch.setattr(shop, "read", read)
    record = pool.wait_workflow(id)

    assert len(reads) == 2
    assert (record.status, record.counts) == ("done", {"done": 4})


def test_a_stopped_import_goes_no_further(pool: InlinePool, tmp_path: Path) -> None:
    id = start_import(pool, file_of(tmp_path, ["1.50"] * 20))
    pool.confirm(node_of(pool.get_workflow(id), "import"))
    for _ in range(6):
        pool.run_next()

    record = pool.stop_workflow(id)
    pool.run_all()

    assert (record.status, record.counts) == ("stopped", {"done": 6, "canceled": 16})
    assert of_type(pool, "send_receipt") == []


# Receipts


def test_a_receipt_is_sent_later(pool: InlinePool) -> None:
    receipt = pool.add_task(send_receipt.spec(to="a@example.org", failed=0), delay="5m")

    pool.advance(minutes=4)
    before = pool.get(receipt.id).status
    pool.advance(minutes=2)

    assert (before, pool.get(receipt.id).result) == ("scheduled", "to a@example.org: 0 rows failed")


def test_the_functions_are_plain_functions() -> None:
    assert import_row(shop.Row(article="a", price="1.50")) == 150
    assert send_receipt("a@example.org", 2) == "to a@example.org: 2 rows failed"
