"""What the page says is true: with a wrong clock, with numbers that JavaScript can't hold, after a lost stream."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import expect

from taskpool import Every, TaskSpec
from tests.browser.conftest import Faults, Site
from tests.browser.test_dialogs import held
from tests.browser.test_operate import act, row

BIG = 12345678901234567890


@pytest.mark.parametrize("ahead", [timedelta(minutes=10), timedelta(minutes=-10), timedelta(days=1)])
def test_the_clock_of_the_browser_may_be_wrong(new_page: Any, site: Site, ahead: timedelta) -> None:
    site.pool.set_schedule("often", Every("5m"), act("ok"))
    task = site.workers.result()
    page = new_page()
    page.clock.install(time=datetime.now(UTC) + ahead)

    page.goto(f"/#/tasks/{task.id}")
    expect(page.locator(".task-line time")).to_have_text(re.compile("^(now|[0-9]+ s ago)$"))
    page.goto("/#/schedules/often")
    expect(page.locator("ol.runs li").first).to_contain_text(re.compile("in [0-9] min|in [0-9]+ s"))
    expect(page.get_by_text("late")).to_have_count(0)


def test_the_list_shows_all_digits(page: Any, site: Site) -> None:
    task = site.pool.add_task("echo", {"message": BIG})
    site.pool.wait(task.id, timeout_s=30)
    page.goto("/#/tasks?type=echo")

    expect(page.locator("tbody tr")).to_contain_text(f"message={BIG}")


def test_a_silent_stream_is_not_taken_for_a_live_one(new_page: Any, site: Site) -> None:
    """After a laptop slept, or with a cable pulled out, nobody closes the connection."""
    page = new_page()
    page.clock.install()
    page.add_init_script("""
      const answers = fetch;
      window.fetch = async (url, ...how) => {
        const answer = await answers(url, ...how);
        if (!String(url).includes('/live') || window.isMended) return answer;
        const reader = answer.body.getReader();
        let sent = 0;
        const body = new ReadableStream({ async pull(to) {
          if (sent++ > 1) return new Promise(() => {});
          to.enqueue((await reader.read()).value);
        }, cancel() { reader.cancel(); } });
        return new Response(body, answer);
      };
    """)
    page.goto("/")
    expect(page.get_by_text("● live")).to_be_visible()

    page.clock.fast_forward(30_000)

    expect(page.get_by_text("● not live")).to_be_visible()
    page.evaluate("window.isMended = true")
    page.clock.fast_forward(30_000)
    expect(page.get_by_text("● live")).to_be_visible()


def test_a_page_that_was_left_asks_for_nothing_any_more(page: Any, site: Site) -> None:
    """Also if an action of it ends later."""
    site.workers.result()
    page.goto("/#/queues/default")
    asked = held(page, "**/pause")
    page.get_by_role("button", name="Pause default").click()
    with page.expect_request("**/pause"):
        page.get_by_role("dialog").get_by_role("button", name="Pause", exact=True).click()
    page.goto("/#/types")
    expect(page.get_by_role("heading", name="Types")).to_be_visible()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))

    with page.expect_response(re.compile("/types$")):
        asked[0].fulfill(status=200, json={})

    assert [url for url in requests if "/queues/" in url] == []


@pytest.mark.parametrize("range", ["constructor", "__proto__", "2y"])
def test_a_range_that_does_not_exist_is_the_usual_one(page: Any, site: Site, range: str) -> None:
    page.goto(f"/#/?range={range}")

    expect(page.get_by_role("link", name="1h")).to_have_attribute("aria-current", "true")


def test_a_zone_that_the_browser_does_not_know_is_shown_in_utc(page: Any, site: Site) -> None:
    site.pool.set_schedule("often", Every("5m"), TaskSpec(type="act"))

    def answer(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=json.dumps(response.json() | {"tz": "Mars/Olympus"}))

    page.route("**/schedules/often", answer)
    page.goto("/#/schedules/often")

    expect(page.locator("ol.runs li").first).to_contain_text("UTC")


def test_a_page_with_a_fault_does_not_stay_in_the_way(page: Any, site: Site, faults: Faults) -> None:
    faults.expect("TypeError", "exception")
    task = site.workers.result()
    page.route("**/tasks/broken", lambda route: route.fulfill(status=200, json={"id": None, "status": 1}))
    page.goto("/#/tasks/broken")
    expect(page.get_by_text("This page has a fault")).to_be_visible()

    page.goto(f"/#/tasks/{task.id}")

    expect(page.get_by_role("heading", name="Facts")).to_be_visible()
    assert row(page, "attempt 1")
