"""What others have written, at its worst, on every page: each value of each answer of the API is replaced by one that
is hostile, very long or very large."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any, Final

import pytest

from taskpool.text import _UNSEEN
from tests.browser.conftest import Site, playwright, registered_pages
from tests.browser.pages import PARAMETERS
from tests.support import ROOT

HOSTILE: Final = (
    "<img src=x onerror=alert(1)>\u202eevil\x00\u200b\x1b[31m ' \" & javascript:alert(1) {{7*7}} \ud83d\ude00"
)
LONG: Final = "w" * 3000
KEPT: Final = frozenset(
    ("status", "severity", "outcome", "state", "on", "kind", "action", "link", "type", "format", "$ref", "pattern",
     "next_cursor", "decision", "default", "start", "fingerprint", "scopes", "seq", "id", "points", "step_s")
)  # fmt: skip
"""Words of the API, which no program or person chooses, and places."""
TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT.*Z")


def worst(value: Any) -> Any:
    """A text with more behind it, which can't be broken into lines; a number that JavaScript can't hold."""
    if isinstance(value, str):
        return value + HOSTILE + LONG
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return 9_007_199_254_740_993 if is_whole else value


def changed(value: Any, key: str = "") -> Any:
    """A document, each value of which is changed, and each name that somebody has chosen."""
    if isinstance(value, dict):
        is_chosen = key in ("builds", "types", "queues", "workers", "payload")
        return {(worst(name) if is_chosen else name): changed(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [changed(each, "" if isinstance(each, dict) else key) for each in value]
    if key in KEPT or (isinstance(value, str) and TIME.fullmatch(value)):
        return value
    return worst(value)


def intercept(page: Any) -> None:
    """Changes what the API answers to this page from now on."""

    def answer(route: Any) -> None:
        request = route.request
        is_data = request.resource_type == "fetch" and "event-stream" not in request.headers.get("accept", "")
        if not is_data or re.search(r"/(session|openapi.json)$", request.url):
            route.continue_()
            return
        with suppress(playwright.Error):  # the page was left meanwhile
            response = route.fetch()
            if response.ok and "json" in response.headers.get("content-type", ""):
                route.fulfill(response=response, body=json.dumps(changed(json.loads(response.text()))))
            else:
                route.fulfill(response=response)

    page.route("**/*", answer)


SHOWN: Final = """async () => {
  const { isVisible } = await import(new URL('parts/visible.js', document.querySelector('script').src));
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) if (!isVisible(walker.currentNode.data)) found.push(walker.currentNode.data);
  for (const element of document.querySelectorAll('[title], [aria-label], [placeholder]'))
    for (const name of ['title', 'aria-label', 'placeholder'])
      if (!isVisible(element.getAttribute(name) ?? '')) found.push(`${name}: ${element.getAttribute(name)}`);
  return found;
}"""
"""Texts of the page with characters that can't be seen, or that turn text around."""


TOO_WIDE: Final = """() => document.documentElement.scrollWidth <= innerWidth ? [] :
  [...document.querySelectorAll('main *')]
    .filter((each) => each.getBoundingClientRect().right > innerWidth)
    .filter((each) => !each.closest('.scroll, .graph, .log-box, pre, .values'))
    .map((each) => `${each.parentElement.className} > ${each.localName}.${each.className}`)"""
"""What makes the page wider than the screen."""


@pytest.mark.parametrize("path", registered_pages())
def test_a_page_shows_any_value_as_text(path: str, site: Site, page: Any) -> None:
    site.workers.result()
    before, _, parameter = path.partition(":")
    place = before + PARAMETERS[path](site) if parameter else path
    intercept(page)

    page.goto(f"/#/{place}")
    page.wait_for_selector("main h1")
    page.wait_for_selector(".loaded[aria-busy=false]")

    assert page.get_by_text("This page has a fault").count() == 0
    assert page.locator("main img, main script, main iframe").count() == 0
    assert page.evaluate(SHOWN) == []
    assert page.locator("a[href^='javascript:']").count() == 0
    page.set_viewport_size({"width": 320, "height": 600})
    assert page.evaluate(TOO_WIDE) == []


def test_the_page_names_the_same_hidden_characters_as_the_terminal() -> None:
    source = (ROOT / "dashboard" / "parts" / "visible.js").read_text()
    (written,) = re.findall(r"^  /\[(.*)\]/gu;$", source, re.MULTILINE)
    in_python = re.sub(r"\\u\{([0-9a-f]+)\}", lambda found: chr(int(found[1], 16)), written)
    in_python = re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), in_python)
    in_python = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), in_python).replace("\\0", "\0")

    assert in_python == _UNSEEN
