"""A shop: a report each night, imports that a person approves, and receipts.

taskpool up --tasks examples/shop
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit
from urllib.request import url2pathname

from taskpool import Confirm, Cron, TaskContext, TaskPool, task


class Row(TypedDict):
    """A line of the file of a supplier."""

    article: str
    price: str


@task("nightly_report", schedule=Cron("0 2 * * *", tz="Europe/Berlin"))
def nightly_report(ctx: TaskContext) -> str:
    """Write the report of the day; at 02:00 in Berlin, summer and winter."""
    return f"report of {ctx.occurrence:%Y-%m-%d %H:%M} UTC"


@task("import_row")
def import_row(row: Row) -> int:
    """Import one row; returns the price in cents."""
    return round(float(row["price"]) * 100)


@task("import_csv", max_attempts=3, backoff_s=1)
def import_csv(ctx: TaskContext, url: str) -> None:
    """Import each row of a file as a task of its own, and sum it up when all have ended."""
    rows = ctx.map("rows", (import_row.spec(row=row) for row in read(url)))
    ctx.add("summary", import_summary.spec(url=url), after=rows.any())


@task("import_summary")
def import_summary(ctx: TaskContext, url: str) -> str:
    """Say how many rows failed."""
    bad = [outcome.error for outcome in ctx.outcomes["rows"] if not outcome.ok]
    ctx.add_task(send_receipt.spec(to="shop@example.org", failed=len(bad)))
    return f"{len(bad)} failed"


@task("send_receipt")
def send_receipt(to: str, failed: int) -> str:
    """Tell somebody about an import."""
    return f"to {to}: {failed} rows failed"


def read(url: str) -> Iterator[Row]:
    """The rows of a CSV file at a file: URL."""
    with Path(url2pathname(urlsplit(url).path)).open(newline="") as file:
        for row in csv.DictReader(file):
            yield Row(article=row["article"], price=row["price"])


def start_import(pool: TaskPool, url: str) -> str:
    """Import a file once somebody has approved it; the id of the workflow."""
    with pool.workflow("import") as w:
        w.add("import", import_csv.spec(url=url), confirm=Confirm(f"Import {url}?", timeout="3d"))
    return w.id
