"""Several tabs, several keys: each shows whose session it is and what that allows. The API needs a key."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import expect

from taskpool import Confirm
from taskpool.access.api_key import ALL_SCOPES, PLAIN_SCOPES, Scope
from tests.browser.conftest import Faults, Site
from tests.browser.test_keys_page import KEY, sign_in
from tests.keys import make_key


def test_the_first_key_stays_readable_until_it_was_copied(page: Any, faults: Faults) -> None:
    """It shuts the API for the page that has made it."""
    faults.expect("401 ")
    page.goto("/#/keys")
    page.get_by_role("button", name="New key…").click()
    page.get_by_role("dialog").get_by_label("name", exact=False).first.fill("chief")
    page.get_by_role("button", name="Make 1 key").click()
    secret = page.get_by_role("dialog").locator(".command code")
    expect(secret).to_have_text(KEY)

    page.get_by_label("API key", exact=True).wait_for(timeout=30_000)  # the login, behind the dialog
    page.mouse.click(5, 5)
    chief = secret.inner_text()
    page.get_by_role("button", name="I have copied it").click()
    sign_in(page, chief)

    expect(page.get_by_role("heading", name="Keys")).to_be_visible()


def test_tabs_of_a_browser_have_one_session(new_page: Any, site: Site, faults: Faults) -> None:
    faults.expect("401 ", "403 ")
    chief, reader = make_key(site.redis_url, "chief", Scope.ADMIN), make_key(site.redis_url, "reader", Scope.READ)
    one = new_page()
    one.goto("/#/queues")
    sign_in(one, chief)
    expect(one.get_by_role("link", name="Keys")).to_be_visible()
    other = one.context.new_page()
    other.goto("/#/queues")
    expect(other.get_by_role("link", name="Keys")).to_be_visible()

    other.get_by_role("button", name="Sign out").click()
    expect(one.get_by_label("API key", exact=True)).to_be_visible()
    sign_in(other, reader)

    expect(one.get_by_text("read-only")).to_be_visible()
    expect(one.get_by_role("link", name="Keys")).to_have_count(0)
    expect(one.get_by_role("button", name=re.compile("Pause"))).to_have_count(0)


def test_a_key_that_is_bound_has_no_button_for_what_it_may_not_change(
    new_page: Any, site: Site, faults: Faults
) -> None:
    key = make_key(site.redis_url, "bound", *PLAIN_SCOPES, queues=["theirs"])
    failed = site.workers.result("fail")
    theirs = site.workers.submit("fail", queue="theirs")
    page = new_page()
    faults.expect("401 ")
    page.goto(f"/#/tasks/{failed.id}")
    sign_in(page, key)

    expect(page.get_by_role("heading", name="Facts")).to_be_visible()
    expect(page.locator(".actions > button")).to_have_count(0)
    page.goto(f"/#/tasks/{theirs.id}")
    expect(page.locator(".actions").get_by_role("button", name="Cancel…")).to_be_visible()
    page.goto("/#/queues")
    expect(page.get_by_role("button", name="Pause theirs")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Pause"))).to_have_count(1)
    page.goto("/#/workers")
    expect(page.get_by_role("heading", name=re.compile("running"))).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Pause|Drain"))).to_have_count(0)
    page.goto("/#/types/act")
    page.get_by_role("button", name="Submit 1 act").click()
    expect(page.locator(".sent")).to_contain_text("queued")


def test_only_those_who_are_asked_can_answer(new_page: Any, site: Site, faults: Faults) -> None:
    faults.expect("401 ")
    asked = site.pool.add_task("act", {"do": "ok"}, confirm=Confirm("Go?", who=["boss"]))
    for name in ("boss", "clerk"):
        page = new_page()
        page.goto(f"/#/tasks/{asked.id}")
        sign_in(page, make_key(site.redis_url, name, *(ALL_SCOPES - {Scope.ADMIN})))
        expect(page.get_by_text("Go?")).to_be_visible()
        expect(page.get_by_role("button", name="Confirm", exact=True)).to_have_count(1 if name == "boss" else 0)
