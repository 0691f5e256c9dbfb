"""Opens each page of the registry with something to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx

from taskpool import Every, NodeSpec, TaskSpec, WorkflowSpec
from tests.browser.conftest import Site
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
    "queues/:name": lambda site: site.workers.submit(queue="papers").queue,
    "types/:name": lambda site: "act",
    "schedules/:name": lambda site: site.pool.set_schedule("often", Every("1h"), TaskSpec(type="act")).name,
    "workflows/:id": lambda site: site.pool.add_workflow(WorkflowSpec(name="import", nodes=GRAPH)).id,
    "webhooks/:id": lambda site: httpx.post(f"{site.url}/webhooks", json={"url": "https://hooks.example/in"}).json()[
        "id"
    ],
}
"""For each page with a parameter: makes what it shows, and gives the parameter."""


def open_page(page: Any, path: str, site: Site) -> None:
    """Opens a page of the registry, and waits until it shows its data."""
    before, _, parameter = path.partition(":")
    page.goto("/#/" + (before + PARAMETERS[path](site) if parameter else path))
    page.wait_for_selector("main h1")
    page.wait_for_selector("main .loaded")
    eventually(lambda: page.locator("main .loaded[aria-busy=true]").count() == 0)
