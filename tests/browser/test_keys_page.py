"""The page of keys, and what a session may see: the first key shuts the API, so this file has an API of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import pytest
from playwright.sync_api import expect

from taskpool.access.api_key import PLAIN_SCOPES, Scope
from tests.browser.conftest import Faults, Site
from tests.browser.test_operate import answer, row
from tests.keys import make_key

KEY: Final = re.compile(r"tp_\w{12}_[\w-]{43}")


def make(page: Any, name: str, *scopes: str) -> str:
    """Makes a key in the page; its text."""
    page.get_by_role("button", name="New key…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("name", exact=False).first.fill(name)
    for scope in scopes:
        dialog.get_by_label(scope).check()
    dialog.get_by_role("button", name="Make 1 key").click()
    expect(dialog.locator(".command")).to_contain_text("tp_")
    return str(dialog.locator(".command code").inner_text())


def sign_in(page: Any, key: str) -> None:
    page.get_by_label("API key", exact=True).fill(key)
    page.get_by_role("button", name="Sign in").click()


def test_keys_are_made_rotated_and_revoked_and_a_session_sees_what_its_scopes_allow(
    page: Any, new_page: Any, site: Site, faults: Faults
) -> None:
    faults.expect("401 ", "403 ")
    page.goto("/#/keys")
    page.get_by_role("button", name="New key…").click()
    page.get_by_role("dialog").get_by_label("name", exact=False).first.fill("chief")
    page.get_by_role("button", name="Make 1 key").click()  # the first one is an admin's
    chief = page.get_by_role("dialog").locator(".command code").inner_text()
    assert KEY.fullmatch(chief)
    page.reload()
    sign_in(page, chief)

    reader = make(page, "reader", "tasks:read")
    page.get_by_role("button", name="I have copied it").click()
    assert reader not in page.content()
    expect(row(page, "reader")).to_contain_text("never")

    other = new_page()
    other.goto("/#/queues")
    sign_in(other, reader)
    expect(other.get_by_role("heading", name="Queues")).to_be_visible()
    expect(other.get_by_role("link", name="Keys")).to_have_count(0)
    expect(other.get_by_role("button", name=re.compile("Pause"))).to_have_count(0)
    other.goto("/#/types/act")
    expect(other.get_by_text("Served by")).to_be_visible()
    expect(other.get_by_role("button", name="Submit 1 act")).to_have_count(0)

    page.get_by_role("button", name="Rotate… reader").click()
    page.get_by_role("button", name="Rotate 1 key").click()
    expect(page.get_by_role("dialog")).to_contain_text("good until")
    page.get_by_role("button", name="I have copied it").click()
    page.get_by_role("button", name="Revoke… reader").click()
    answer(page, "Revoke 1 key")
    expect(row(page, "reader")).to_have_count(0)
    expect(other.get_by_label("API key", exact=True)).to_be_visible(timeout=30_000)

    page.goto("/#/audit")
    expect(row(page, "key.revoked")).to_contain_text("chief")


@pytest.mark.parametrize(("project", "scopes"), [("shop", PLAIN_SCOPES), (None, (Scope.READ,))])
def test_a_key_asks_for_nothing_that_it_may_not_see(
    new_page: Any, site: Site, faults: Faults, project: str | None, scopes: Sequence[Scope]
) -> None:
    """Each refused request would be a fault of the test: the page must not even try."""
    key = make_key(site.redis_url, "limited", *scopes, project=project)
    page = new_page()
    faults.expect("401 .*/session", "401 .*/(queues|workers|pools|stats)")  # before the login
    page.goto("/#/queues")
    sign_in(page, key)

    for path in ("queues", "queues/default", "workers", "types", "types/act", "schedules", "workflows", "failures",
                 "webhooks", "keys", "audit"):  # fmt: skip
        page.goto(f"/#/{path}")
        page.wait_for_selector("main h1")
        page.wait_for_load_state("networkidle")

    expect(page.get_by_role("heading", name="Audit")).to_be_visible()
