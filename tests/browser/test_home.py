"""Home: figures move, and findings lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import expect

from api.auth.caller import Caller
from taskpool import TaskRecord, TaskSpec
from tests.browser.conftest import WAIT_MS, Site
from tests.support import PATIENCE_S, eventually


def tile(page: Any, label: str) -> Any:
    return page.get_by_role("list", name="Figures of now").get_by_role("listitem").filter(has_text=label)


def test_figures_and_plots_move_as_tasks_end(page: Any, site: Site) -> None:
    page.goto("/")
    expect(page.get_by_text("● live")).to_be_visible()
    expect(tile(page, "busy")).to_contain_text("0/2")
    ended = page.get_by_role("region", name="Ended").locator("b").first
    before = ended.inner_text()
    tasks: list[TaskRecord] = []

    def moves() -> bool:
        tasks.append(site.workers.submit())  # it shows the last seconds, so more come until it is seen
        return re.match("0/s|–", tile(page, "ended").inner_text()) is None

    eventually(moves)
    for task in tasks:
        site.pool.wait(task.id, timeout_s=PATIENCE_S)
    expect(ended).not_to_have_text(before, timeout=2 * WAIT_MS)  # a minute is shown when half of the next one is over


def test_a_finding_and_a_waiting_queue_lead_to_the_queue(page: Any, site: Site) -> None:
    site.pool.add_task("act", {"do": "ok"}, queue="parcels")
    page.goto("/")

    waits = page.get_by_role("region", name="Who waits longest")
    expect(waits.get_by_role("link", name="parcels")).to_have_attribute("href", "#/queues/parcels")
    finding = page.get_by_role("list", name="Findings").get_by_role("listitem").filter(has_text="parcels")
    expect(finding.get_by_role("link")).to_have_attribute("href", "#/queues/parcels")


def test_who_waits_longest_is_shown_by_queue_type_key_and_project(
    page: Any, site: Site, shoot: Callable[[Any, str], None], scan: Callable[[Any], None]
) -> None:
    spec = TaskSpec(type="act", payload={"do": "ok"}, queue="letters")
    site.pool.submit(spec, by=Caller("0" * 12, "a service", "shop", ""))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.partition("/waits")[2]))
    page.goto("/#/?range=24h")
    waits = page.get_by_role("region", name="Who waits longest")
    tabs = waits.get_by_role("navigation", name="By")
    expect(waits.get_by_role("link", name="letters")).to_be_visible(timeout=30_000)
    assert {query for query in asked if query} == {"?by=queue"}

    tabs.get_by_role("link", name="Type").click()
    expect(page).to_have_url(re.compile(r"#/\?range=24h&by=type$"))
    expect(tabs.get_by_role("link", name="Type")).to_have_attribute("aria-current", "page")
    expect(waits.get_by_role("link", name="act")).to_have_attribute("href", "#/tasks?status=queued&type=act")
    scan(page)
    shoot(page, "home-waits")
    tabs.get_by_role("link", name="Project").click()
    expect(waits.get_by_role("link", name="shop")).to_have_attribute("href", "#/tasks?status=queued&project=shop")
    tabs.get_by_role("link", name="Key").click()
    service = waits.get_by_role("link", name="a service")
    expect(service).to_have_attribute("href", "#/tasks?status=queued&submitted_by=a+service")
    expect(waits.get_by_role("row").filter(has_text="a service")).to_contain_text("letters")
    page.go_back()
    expect(waits.get_by_role("columnheader", name="Project")).to_be_visible()
    page.go_back()
    expect(waits.get_by_role("columnheader", name="Type")).to_be_visible()

    tabs.get_by_role("link", name="Key").click()
    service.click()
    expect(page.get_by_label("Search tasks")).to_have_value('status:queued submitted_by:"a service"')
    expect(page.locator("tr[data-id]")).to_have_count(1)


def test_a_range_is_a_place_and_a_plot_has_a_table(page: Any) -> None:
    page.goto("/")
    page.get_by_role("link", name="24h").click()
    expect(page).to_have_url(re.compile(r"#/\?range=24h$"))

    region = page.get_by_role("region", name="Failed")
    region.get_by_role("button", name="Table").click()

    expect(region.get_by_role("columnheader", name="crashed")).to_be_visible()


def test_the_theme_can_be_chosen_and_stays(page: Any) -> None:
    page.emulate_media(color_scheme="light")
    page.goto("/")
    page.get_by_role("button", name="Light or dark").click()
    page.reload()

    page.wait_for_selector("main h1")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(15, 19, 23)"
