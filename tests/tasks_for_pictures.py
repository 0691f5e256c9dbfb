"""Task types of an online shop, for the pictures in the documentation (scripts/screenshots)."""

from __future__ import annotations

import logging
import time
from typing import Any

from taskpool import TaskContext, task

LOG = logging.getLogger("shop")


@task("mail.send", queue="mail")
def send(ctx: TaskContext, to: str, template: str = "receipt") -> str:
    """Send one mail from a template."""
    time.sleep(0.03)
    if to.endswith(".invalid"):
        raise ConnectionRefusedError(111, f"Connection refused by mx.{to.partition('@')[2]}:25")
    return f"250 2.0.0 queued for {to}"


@task("image.resize", queue="images", max_attempts=3, backoff_s=0.2)
def resize(ctx: TaskContext, url: str, width: int = 640) -> dict[str, Any]:
    """Resize an image for the shop."""
    time.sleep(0.08)
    return {"url": url.replace("/original/", f"/{width}/"), "width": width}


@task("invoice.render", max_attempts=3, backoff_s=0.6)
def render(ctx: TaskContext, order: int, customer: dict[str, Any]) -> str:
    """Render the invoice of an order as PDF."""
    print(f"\x1b[36mload\x1b[0m order {order}")
    time.sleep(0.15)
    print("\x1b[36mload\x1b[0m template invoice.typ, 3 fonts")
    LOG.info("render order %s for %s", order, customer["name"])
    time.sleep(0.3)
    if "vat_id" not in customer:
        LOG.warning("no tax rate is cached for %s", customer["country"])
    rate = tax_rate(customer)
    print(f"\x1b[32mwrite\x1b[0m invoices/{order}.pdf, {rate:.0%} tax")
    return f"s3://invoices/{order}.pdf"


def tax_rate(customer: dict[str, Any]) -> float:
    """The rate of a customer's country; with a tax id, none."""
    return 0.0 if customer["vat_id"] else {"DE": 0.19, "FR": 0.2}[customer["country"]]


@task("catalog.import", queue="catalog")
def import_(ctx: TaskContext, supplier: str, rows: int = 4800) -> int:
    """Import the price list of a supplier."""
    for done in range(0, rows, 40):
        ctx.progress(done, rows, note=f"{supplier}.csv")
        time.sleep(0.2)
    return rows


@task("search.index", queue="catalog")
def index(ctx: TaskContext, article: int) -> int:
    """Index one article for the search."""
    time.sleep(0.02)
    return article


@task("report.sales", queue="reports")
def sales(ctx: TaskContext, day: str) -> str:
    """Sum up the sales of a day."""
    return f"s3://reports/sales-{day}.parquet"
