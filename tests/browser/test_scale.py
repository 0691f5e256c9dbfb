"""Pages with very much to show stay small: rows, cards and boxes are limited, and the rest waits behind a button."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest
from playwright.sync_api import expect

from taskpool.types import TaskRecord
from tests.browser.conftest import Site

MANY: Final = 1000
MOST_ELEMENTS: Final = 5000


def instead(page: Any, url: str, key: str, change: Callable[[dict[str, Any], int], dict[str, Any]], n: int) -> None:
    """Answers with `n` items like the first one, each changed by its number."""

    def answer(route: Any) -> None:
        response = route.fetch()
        document = response.json()
        items = [change(document[key][0], number) for number in range(n)]
        route.fulfill(response=response, body=json.dumps({**document, key: items}))

    page.route(re.compile(url), answer)


def elements(page: Any) -> int:
    return int(page.evaluate("document.querySelectorAll('main *').length"))


def test_a_thousand_types_are_shown_two_hundred_at_a_time(page: Any, site: Site) -> None:
    instead(page, r"/types$", "types", lambda type, n: {**type, "name": f"type{n:04}"}, MANY)
    page.goto("/#/types")

    expect(page.locator("tbody tr")).to_have_count(200)
    page.get_by_role("button", name="200 more of 800").click()
    expect(page.locator("tbody tr")).to_have_count(400)


def test_three_hundred_pools_are_shown_some_at_a_time(page: Any, site: Site) -> None:
    instead(page, r"/pools$", "pools", lambda pool, n: {**pool, "name": f"pool{n:03}"}, 300)
    page.goto("/#/workers")

    expect(page.get_by_role("button", name="30 more of 270 pools")).to_be_visible()
    assert elements(page) < MOST_ELEMENTS


def chain(length: int) -> list[dict[str, Any]]:
    return [
        {"name": f"n{at}", "rank": at, "after": [{"name": f"n{at - 1}", "on": "success"}] if at else []}
        for at in range(length)
    ]


def net(length: int, width: int = 100) -> list[dict[str, Any]]:
    """Each node waits for three of the rank before."""
    return [
        {
            "name": f"n{at}",
            "rank": at // width,
            "after": [
                {"name": f"n{(at // width - 1) * width + at * step % width}", "on": "success"}
                for step in (1, 3, 7)
                if at >= width
            ],
        }
        for at in range(length)
    ]


@pytest.mark.parametrize("nodes", [chain(300), chain(10_000), net(10_000)], ids=["chain", "long chain", "net"])
def test_a_graph_of_any_form_becomes_a_few_boxes(nodes: Sequence[dict[str, Any]], page: Any) -> None:
    page.goto("/")
    page.wait_for_selector("main h1")

    made = page.evaluate(
        """async (nodes) => {
          const { boxesOf } = await import(new URL('parts/graph.js', document.querySelector('script').src));
          const boxes = boxesOf(nodes);
          return { count: boxes.length, size: boxes.reduce((sum, box) => sum + box.size, 0),
                   keys: new Set(boxes.map(({ key }) => key)).size,
                   longest: Math.max(...boxes.map(({ key }) => key.length)) };
        }""",
        nodes,
    )

    assert made["count"] == made["keys"] <= 200
    assert made["size"] == len(nodes)
    assert made["longest"] < 10_000


def shown(page: Any, site: Site, payload: Any) -> TaskRecord:
    record = site.pool.wait(site.pool.add_task("echo", {"message": payload}).id, timeout_s=30)
    page.goto(f"/#/tasks/{record.id}")
    page.get_by_role("group", name="payload").wait_for()
    return record


VALUES: Final = {
    "lists in a list": [[number] * 100 for number in range(500)],
    "hidden characters": "\u200b\u202e" * 20_000,
    "a long text": "x" * 200_000,
    "a long name": {"x" * 200_000: 1},
    "many members": {f"name {number}": number for number in range(10_000)},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_large_payload_is_folded_and_can_be_unfolded(value: Any, page: Any, site: Site) -> None:
    shown(page, site, value)
    assert elements(page) < MOST_ELEMENTS

    tree = page.get_by_role("group", name="payload")
    for name in (re.compile("^all .* characters"), re.compile(" more$"), re.compile("^▸")):
        if tree.get_by_role("button", name=name).count():
            tree.get_by_role("button", name=name).first.click()

    assert elements(page) < 2 * MOST_ELEMENTS
    page.goto("/#/tasks?type=echo")
    page.locator("tbody tr").first.wait_for()
    assert len(page.locator("tbody tr").first.inner_text()) < 2000
