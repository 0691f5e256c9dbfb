"""Every page of the registry: it shows something, follows the policy, is accessible, and fits a phone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
import pytest

from taskpool import Every, NodeSpec, TaskSpec, WorkflowSpec
from tests.browser.conftest import Site, registered_pages
from tests.support import eventually

GRAPH: Final = [
    NodeSpec(name="rows", map=[TaskSpec(type="act")] * 3),
    NodeSpec(name="sum", task=TaskSpec(type="act"), after=["rows"]),
]


def fingerprint(site: Site) -> str:
    """That of a failure."""
    site.workers.result("fail")
    groups = eventually(lambda: httpx.get(f"{site.url}/failures").json()["groups"])
    return str(groups[0]["fingerprint"])


PARAMETERS: Final[Mapping[str, Callable[[Site], str]]] = {
    "tasks/:id": lambda site: site.workers.result().id,
    "failures/:fingerprint": fingerprint,
    "queues/:name": lambda site: site.workers.submit(queue="reports").queue,
    "types/:name": lambda site: "act",
    "schedules/:name": lambda site: site.pool.set_schedule("often", Every("1h"), TaskSpec(type="act")).name,
    "workflows/:id": lambda site: site.pool.add_workflow(WorkflowSpec(name="import", nodes=GRAPH)).id,
    "webhooks/:id": lambda site: httpx.post(f"{site.url}/webhooks", json={"url": "https://hooks.example/in"}).json()[
        "id"
    ],
}
"""For each page with a parameter: makes what it shows, and gives the parameter."""


@pytest.mark.parametrize("path", registered_pages())
def test_a_page_is_accessible_and_fits_a_phone(
    path: str, site: Site, page: Any, scan: Callable[[Any], None], shoot: Callable[[Any, str], None]
) -> None:
    site.workers.result()
    before, _, parameter = path.partition(":")
    page.goto("/#/" + (before + PARAMETERS[path](site) if parameter else path))

    page.wait_for_selector("main h1")
    page.wait_for_selector(".loaded[aria-busy=false]")

    scan(page)
    shoot(page, path.replace("/:", "-") or "home")
    page.set_viewport_size({"width": 320, "height": 600})
    wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wider <= 0
