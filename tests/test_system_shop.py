"""examples/shop with worker processes on a real Redis: ten thousand rows are one workflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskpool import TaskSpec, TaskStatus
from tests.support import PATIENCE_S
from tests.worker_pool import WorkerPool

SHOP = str(Path(__file__).parent.parent / "examples" / "shop")
ROWS = 10_000


@pytest.mark.long(about_s=20)
def test_an_import_of_ten_thousand_rows(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text("article,price\n" + "".join(f"a{n},{'free' if n == 777 else n}\n" for n in range(ROWS)))
    with WorkerPool(redis_url, tmp_path / "log", tasks=SHOP, workers=2) as workers:
        pool = workers.pool
        with pool.workflow("import") as w:
            w.add("import", TaskSpec(type="import_csv", payload={"url": file.as_uri()}), confirm=True)
        (node,) = pool.get_workflow(w.id).nodes
        assert node.status == "waiting_confirmation"

        pool.confirm(node.id or "")
        record = pool.wait_workflow(w.id, timeout_s=120)

        assert (record.status, record.total) == ("done", ROWS + 2)
        assert record.counts == {"done": ROWS + 1, "failed": 1}
        assert {each.name: each.size for each in record.nodes} == {"import": None, "rows": ROWS, "summary": None}
        (summary,) = pool.list_tasks(workflow=w.id, node="summary").items
        assert summary.result == "1 failed"
        (receipt,) = pool.list_tasks(type="send_receipt").items
        assert pool.wait(receipt.id, timeout_s=PATIENCE_S).result == "to shop@example.org: 1 rows failed"
        (bad,) = pool.list_tasks(type="import_row", status=TaskStatus.FAILED).items
        assert bad.payload["row"] == {"article": "a777", "price": "free"}
