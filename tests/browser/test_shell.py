"""The frame of the page: links, Back, the keyboard, the help, what is not found."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import expect

from taskpool.types import TaskStatus
from tests.browser.conftest import Faults
from tests.support import ROOT


def test_the_page_knows_every_status() -> None:
    source = (ROOT / "dashboard" / "parts" / "status.js").read_text()
    style = (ROOT / "dashboard" / "parts" / "style.css").read_text()
    table = source.partition("STATUSES = {")[2].partition("};")[0]

    assert re.findall(r"^  (\w+): \{", table, re.MULTILINE) == [status.value for status in TaskStatus]
    assert all(f".{status} {{ color: var(--{status}); }}" in style for status in TaskStatus)


def test_the_graph_of_a_workflow_counts_every_status() -> None:
    source = (ROOT / "dashboard" / "parts" / "graph.js").read_text()
    (worst,) = re.findall(r"^const WORST = \[(.*)\];$", source, re.MULTILINE)

    assert set(re.findall(r'"(\w+)"', worst)) == {*TaskStatus, "removed"}


def test_links_and_keys_lead_to_pages_and_back_returns(page: Any) -> None:
    page.goto("/")
    expect(page.get_by_role("heading", name="Home")).to_be_visible()

    page.get_by_role("link", name="Queues").click()
    expect(page).to_have_title("Queues · Taskpool")
    page.keyboard.press("g")
    page.keyboard.press("h")
    expect(page).to_have_title("Home · Taskpool")
    page.go_back()

    expect(page.get_by_role("heading", name="Queues")).to_be_visible()


def test_the_help_names_the_keys_and_can_switch_them_off(page: Any) -> None:
    page.goto("/")
    page.wait_for_selector("main h1")

    page.keyboard.press("?")
    page.get_by_label("Switch shortcuts off").check()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("?")

    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_page_that_cannot_be_loaded_says_so_and_the_others_still_work(page: Any, faults: Faults) -> None:
    faults.expect("net::ERR_FAILED .*/keys.js$")
    page.route("**/pages/keys.js", lambda route: route.abort())
    page.goto("/")

    page.get_by_role("link", name="Keys").click()
    expect(page.get_by_role("button", name="Load it again")).to_be_visible()
    page.get_by_role("link", name="Audit").click()

    expect(page.get_by_role("heading", name="Audit")).to_be_visible()


def test_a_place_that_does_not_exist_says_so(page: Any) -> None:
    page.goto("/#/no/such%20page")

    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
