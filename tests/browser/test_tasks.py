"""The page Tasks, with real workers: search, Back, rows that stay, selection, actions on many, the keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskpool.types import TaskSpec, TaskStatus
from tests.browser.conftest import Site
from tests.support import PATIENCE_S, eventually

S = TaskStatus


def add(site: Site, count: int = 1, type: str = "page.write", payload: Any = None, **options: Any) -> list[str]:
    """Submits tasks and waits for their end, unless they are scheduled."""
    ids = [site.pool.add_task(type, payload or {}, **options).id for _ in range(count)]
    if "delay_s" not in options:
        for id in ids:
            site.pool.wait(id, timeout_s=PATIENCE_S)
    return ids


def rows(page: Any) -> list[str]:
    """The ids of the tasks that are shown."""
    found: list[str] = page.locator("tr[data-id]").evaluate_all("(rows) => rows.map((row) => row.dataset.id)")
    return found


def shows(page: Any, ids: list[str]) -> None:
    eventually(lambda: sorted(rows(page)) == sorted(ids))


def test_a_search_is_the_address_and_back_undoes_it(page: Any, site: Site) -> None:
    failed = add(site, 2, "page.break", tags=["search"])
    done = add(site, 1, tags=["search"])
    page.goto("/#/tasks?tag=search")
    shows(page, failed + done)

    field = page.get_by_label("Search tasks")
    assert field.input_value() == "tag:search"
    page.keyboard.press("/")
    field.fill("tag:search status:failed")
    field.press("Enter")
    shows(page, failed)
    assert page.url.endswith("#/tasks?status=failed&tag=search")
    page.get_by_role("link", name=re.compile("^done")).click()
    shows(page, done)
    page.go_back()
    shows(page, failed)
    page.go_back()
    shows(page, failed + done)
    assert field.input_value() == "tag:search"
    field.fill(failed[0])
    field.press("Enter")
    shows(page, failed[:1])
    field.fill('tag:search "enclosed in DOUBLE quotes"')  # a text of the error
    field.press("Enter")
    shows(page, failed)
    field.fill("tag:search type:nothing")
    field.press("Enter")
    page.get_by_text("No task matches").wait_for()
    page.get_by_role("link", name="Any type").click()
    shows(page, failed + done)


def test_words_and_values_are_completed_by_keyboard(page: Any, site: Site) -> None:
    failed = add(site, 1, "page.break", tags=["complete"])
    page.goto("/#/tasks?tag=complete")
    shows(page, failed)
    page.keyboard.press("/")

    field = page.get_by_label("Search tasks")
    field.press("End")
    field.press_sequentially(" ty")
    page.get_by_role("option", name=re.compile("^type:")).wait_for()
    field.press("ArrowDown")
    field.press("Enter")
    field.press_sequentially("page.b")
    page.get_by_role("option", name="page.break").wait_for()
    field.press("ArrowDown")
    field.press("Enter")

    eventually(lambda: page.url.endswith("#/tasks?type=page.break&tag=complete"))
    shows(page, failed)


def test_home_searches_too(page: Any, site: Site) -> None:
    failed = add(site, 1, "page.break", tags=["home"])
    page.goto("/")
    page.get_by_label("Search tasks").wait_for()
    page.keyboard.press("/")
    page.get_by_label("Search tasks").press_sequentially("tag:home")
    page.keyboard.press("Enter")

    shows(page, failed)


def test_a_search_that_cannot_be_read_says_why_and_changes_nothing(page: Any, site: Site) -> None:
    page.goto("/#/tasks?tag=none")
    field = page.get_by_label("Search tasks")
    field.fill("tag:none status:")
    field.press("Enter")

    page.get_by_text("status: needs a value, such as status:failed.").wait_for()
    assert page.url.endswith("#/tasks?tag=none")


def test_rows_stay_until_newer_ones_are_wanted_and_one_that_fits_no_more_is_dimmed(page: Any, site: Site) -> None:
    (later,) = add(site, 1, tags=["steady"], delay_s=3600)
    page.goto("/#/tasks?tag=steady&status=scheduled")
    shows(page, [later])

    (newer,) = add(site, 1, tags=["steady"], delay_s=3600)
    page.get_by_role("button", name="1 newer one · show").wait_for()
    assert rows(page) == [later]
    page.keyboard.press("n")
    shows(page, [newer, later])
    site.pool.remove_task(later)
    page.locator(f"tr.gone[data-id={later}]").wait_for()
    assert rows(page) == [newer, later]


def test_failures_are_selected_by_keyboard_and_retried(page: Any, site: Site, tmp_path: Path) -> None:
    mend = tmp_path / "mend"
    failed = add(site, 3, "page.break", {"mend": str(mend)}, tags=["mend"])
    mend.touch()
    page.goto("/#/tasks?tag=mend&status=failed")
    shows(page, failed)

    for key in ("j", "x", "j", "j", "X"):
        page.keyboard.press(key)
    page.get_by_text("3 selected").wait_for()
    page.keyboard.press("r")
    page.get_by_role("button", name="Retry 3 tasks").click()

    page.get_by_text("Retried 3 tasks.").wait_for()
    for id in failed:
        assert site.pool.wait(id, timeout_s=PATIENCE_S).status is S.DONE


def test_the_keyboard_opens_a_row_and_back_returns(page: Any, site: Site) -> None:
    ids = add(site, 2, tags=["walk"])
    page.goto("/#/tasks?tag=walk")
    shows(page, ids)

    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.locator(".task-line", has_text="done").wait_for()
    assert page.url.endswith(f"#/tasks/{rows_before(ids)[1]}")
    page.keyboard.press("g")
    page.keyboard.press("t")
    page.get_by_label("Search tasks").wait_for()
    page.go_back()
    page.locator(".task-line", has_text="done").wait_for()


def rows_before(ids: list[str]) -> list[str]:
    """As the list has them: the newest first."""
    return sorted(ids, reverse=True)


def test_more_tasks_than_a_page_are_read_page_by_page(page: Any, site: Site) -> None:
    site.pool.add_tasks([TaskSpec(type="page.write", payload={}, tags=["many"], delay_s=3600)] * 120)
    page.goto("/#/tasks?tag=many")

    for shown in (50, 100):
        page.locator("tr[data-id]").nth(shown - 1).wait_for()
        assert len(rows(page)) == shown
        page.get_by_role("button", name="50 more").click()
    page.locator("tr[data-id]").nth(119).wait_for()
    assert len({*rows(page)}) == 120
    page.get_by_role("button", name="50 more").wait_for(state="detached")


def test_what_a_read_only_key_may_not_do_is_not_shown(page: Any, site: Site) -> None:
    (id,) = add(site, 1, "page.break", tags=["read"])
    session = {"name": "eve", "scopes": ["tasks:read"], "project": None, "needs_key": True, "read_only": True}
    page.route("**/session", lambda route: route.fulfill(json=session))
    page.goto("/#/tasks?tag=read")
    shows(page, [id])

    assert page.get_by_role("checkbox").count() == 0
    page.get_by_role("link", name=re.compile("JSONDecodeError")).click()
    page.locator(".error-text").wait_for()
    buttons = page.locator(".actions").locator("button:visible, summary:visible").all_inner_texts()
    assert buttons == ["Copy as"]
    page.keyboard.press("r")
    assert page.get_by_role("dialog").count() == 0


def test_axe_finds_nothing_while_something_is_selected_and_completed(
    page: Any, site: Site, scan: Callable[[Any], None]
) -> None:
    add(site, 2, "page.break", tags=["axe"])
    page.goto("/#/tasks?tag=axe&status=failed")
    page.get_by_role("checkbox", name="Select all shown").check()
    page.get_by_text("2 selected").wait_for()
    scan(page)
    page.get_by_label("Search tasks").press_sequentially(" ")
    page.get_by_role("listbox").wait_for()
    scan(page)
    page.set_viewport_size({"width": 320, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_all_that_match_are_retried_with_a_preview_and_progress(page: Any, site: Site, tmp_path: Path) -> None:
    mend = tmp_path / "mend"
    failed = add(site, 3, "page.break", {"mend": str(mend)}, tags=["bulk"])
    mend.touch()
    page.goto("/#/tasks?tag=bulk&status=failed")
    shows(page, failed)

    page.get_by_role("checkbox", name="Select all shown").check()
    page.get_by_role("button", name="Select all 3 that match").click()
    page.get_by_role("button", name="Retry…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("JSONDecodeError").first.wait_for()  # a sample
    dialog.get_by_role("button", name="Retry 3 tasks").click()

    page.get_by_text("Retried 3 tasks").wait_for()
    for id in failed:
        assert site.pool.wait(id, timeout_s=PATIENCE_S).status is S.DONE
    page.goto("/#/queues")
    page.goto("/#/tasks")
    page.get_by_text("Retried 3 tasks").wait_for()  # it outlives the page


def test_what_was_canceled_by_mistake_is_restored(page: Any, site: Site) -> None:
    ids = add(site, 3, tags=["undo"], delay_s=3600)
    page.goto("/#/tasks?tag=undo")
    shows(page, ids)

    page.get_by_role("checkbox", name="Select all shown").check()
    page.get_by_role("button", name="Select all 3 that match").click()
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel 3 tasks").click()
    page.get_by_text("Canceled 3 tasks").wait_for()
    assert {site.pool.get(id).status for id in ids} == {S.CANCELED}
    page.locator(".operation", has_text="tag:undo").get_by_role("button", name=re.compile("Undo")).click()

    page.get_by_text("Restored 3 tasks").wait_for()
    assert {site.pool.get(id).status for id in ids} == {S.SCHEDULED}
    page.locator("tr", has_text="scheduled").nth(2).wait_for()


def test_over_a_thousand_removals_must_be_typed(page: Any, site: Site) -> None:
    preview = {"count": 1540, "is_exact": True, "sample": [], "left_out": {}}
    page.route(
        "**/operations",
        lambda route: route.fulfill(json=preview) if route.request.method == "POST" else route.continue_(),
    )
    ids = add(site, 1, tags=["typed"])
    page.goto("/#/tasks?tag=typed")
    shows(page, ids)
    page.get_by_role("checkbox", name="Select all shown").check()
    page.get_by_role("button", name="Select all 1 that match").click()
    page.get_by_role("button", name="Remove…").click()

    button = page.get_by_role("dialog").get_by_role("button", name="Remove 1,540 tasks")
    button.wait_for()
    assert button.is_disabled()
    page.get_by_label("Type 1,540 to confirm").fill("154")
    assert button.is_disabled()
    page.get_by_label("Type 1,540 to confirm").fill("1540")
    assert button.is_enabled()
