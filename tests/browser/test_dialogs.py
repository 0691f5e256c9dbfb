"""Dialogs while something else happens: the task changes, the page changes, someone leaves."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import expect

from taskpool.operations.control.pauses import paused
from taskpool.redis.store import Store
from tests.browser.conftest import Faults, Site


def held(page: Any, url: str) -> list[Any]:
    """Holds back what is asked of this URL, until the test answers it."""
    routes: list[Any] = []

    def hold(route: Any) -> None:
        routes.append(route)

    page.route(url, hold)
    return routes


def test_back_closes_a_preview_so_that_nothing_else_than_what_it_shows_is_removed(page: Any, site: Site) -> None:
    for _ in range(3):
        site.workers.result("fail")
    site.workers.result("ok")
    page.goto("/#/tasks")
    page.get_by_label("Select all shown").wait_for()
    page.goto("/#/tasks?status=failed")
    expect(page.locator("tbody tr")).to_have_count(3)
    page.get_by_label("Select all shown").check()
    page.get_by_role("button", name="Select all 3 that match").click()
    page.get_by_role("button", name="Remove…").click()
    expect(page.get_by_role("dialog").get_by_text("These are")).to_be_visible()

    page.go_back()

    expect(page).to_have_url(re.compile("#/tasks$"))
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("region", name="Selected tasks")).to_have_count(0)


def test_what_is_asked_about_a_task_ends_when_its_page_is_left(page: Any, site: Site) -> None:
    task = site.workers.result("fail")
    page.goto("/#/tasks")
    page.goto(f"/#/tasks/{task.id}")
    page.get_by_role("button", name="Retry…").click()
    expect(page.get_by_role("dialog")).to_be_visible()

    page.go_back()

    expect(page.get_by_role("dialog")).to_have_count(0)
    assert site.pool.get(task.id).status == "failed"


def test_a_task_that_another_person_has_retried_meanwhile_is_not_removed(page: Any, site: Site, faults: Faults) -> None:
    task = site.workers.result("fail", queue="default")
    page.goto(f"/#/tasks/{task.id}")
    page.get_by_role("button", name="Remove…").click()
    site.pool.pause_queue("default")
    site.pool.retry_task(task.id)

    page.get_by_role("dialog").get_by_role("button", name="Remove it").click()

    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("hasn't ended yet")
    assert site.pool.get(task.id).status == "queued"
    site.pool.resume_queue("default")


def test_what_has_ended_or_was_retried_already_is_said_and_not_done_twice(
    page: Any, site: Site, faults: Faults
) -> None:
    faults.expect("409 ")
    task = site.workers.result("fail")
    page.goto(f"/#/tasks/{task.id}")
    page.get_by_role("button", name="Retry…").click()
    site.pool.pause_queue("default")
    site.pool.retry_task(task.id)

    page.get_by_role("dialog").get_by_role("button", name="Retry it").click()

    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("queued")
    site.pool.resume_queue("default")


def test_what_becomes_of_an_action_is_said_after_its_dialog_was_closed(page: Any, site: Site, faults: Faults) -> None:
    faults.expect("409 ")
    task = site.workers.result("fail")
    page.goto(f"/#/tasks/{task.id}")
    asked = held(page, "**/retry")
    page.get_by_role("button", name="Retry…").click()
    with page.expect_request("**/retry"):
        page.get_by_role("dialog").get_by_role("button", name="Retry it").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)

    (route,) = asked
    route.fulfill(status=409, json={"type": "/task-conflict", "status": 409, "title": "Conflict", "detail": "too late"})

    expect(page.locator("#toasts")).to_contain_text("Too late.")


def test_a_press_that_ends_beside_a_dialog_keeps_it_and_what_was_typed(page: Any, site: Site) -> None:
    task = site.workers.result()
    page.goto(f"/#/tasks/{task.id}")
    page.get_by_role("button", name="Edit and resubmit…").click()
    field = page.get_by_role("dialog").get_by_label("Submission")
    field.fill("what was typed")
    box = field.bounding_box()

    page.mouse.move(box["x"] + 20, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(5, 5)
    page.mouse.up()

    expect(field).to_have_value("what was typed")
    page.mouse.click(5, 5)
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_name_of_dots_leads_to_no_other_path(page: Any, site: Site) -> None:
    """Browsers leave out such parts of a path: /queues/../pause would pause everything."""
    site.workers.submit(queue="..")
    page.goto("/#/queues")
    page.get_by_role("button", name="Pause ..", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Pause", exact=True).click()

    expect(page.get_by_role("dialog").get_by_role("alert")).to_be_visible()
    store = Store(site.redis_url)
    assert not store.carry_out(paused())
    store.close()
    for kind in ("queues", "tasks", "types", "schedules", "workflows", "failures", "webhooks"):
        page.goto(f"/#/{kind}/..")
        page.wait_for_selector("main h1, .empty, .banner")
        expect(page.get_by_text("This page has a fault")).to_have_count(0)
