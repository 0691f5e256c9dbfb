"""The page of keys, and sessions: the first key shuts the API, so this file has an installation of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pytest
from playwright.sync_api import expect
from redis import Redis

from taskpool.access.api_key import PLAIN_SCOPES, Scope
from tests.api_client import api_process
from tests.browser.conftest import Faults, Site
from tests.browser.test_operate import answer, row
from tests.keys import make_key, revoke_key

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


# --- sessions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same API behind keys, under a path prefix."""
    key = make_key(site.redis_url, "first", Scope.ADMIN)
    log = tmp_path_factory.mktemp("locked") / "log"
    with api_process(site.redis_url, log, TASKPOOL_ROOT_PATH="/jobs") as (_, url):
        yield f"{url}/jobs"
    revoke_key(site.redis_url, key)


def sign_in_at(page: Any, url: str, key: str) -> None:
    page.goto(url)
    sign_in(page, key)


def test_a_key_signs_in_for_good_and_signing_out_ends_it(
    locked: str,
    new_page: Callable[..., Any],
    site: Site,
    shoot: Callable[[Any, str], None],
    scan: Callable[[Any], None],
) -> None:
    page = new_page()
    key = make_key(site.redis_url, "ann", Scope.ADMIN)
    page.goto(locked)
    page.wait_for_selector("h1")
    scan(page)
    shoot(page, "login")

    sign_in_at(page, f"{locked}/#/queues", key)
    expect(page.get_by_role("heading", name="Queues")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Queues")).to_be_visible()
    assert page.evaluate("document.cookie") == ""
    assert key not in page.evaluate("JSON.stringify([localStorage, sessionStorage])")
    (cookie,) = page.context.cookies()
    assert (cookie["path"], cookie["httpOnly"], cookie["sameSite"]) == ("/jobs", True, "Strict")
    page.get_by_role("button", name="Sign out").click()

    expect(page.get_by_label("API key")).to_be_visible()
    assert page.context.cookies() == []


def test_a_wrong_key_is_refused_with_a_sentence(locked: str, new_page: Callable[..., Any], faults: Faults) -> None:
    faults.expect(r"^401 .*/session$")
    page = new_page()

    sign_in_at(page, locked, "tp_wrong")

    expect(page.get_by_role("alert")).to_contain_text("API key")


def test_a_revoked_key_ends_the_session(locked: str, new_page: Callable[..., Any], site: Site, faults: Faults) -> None:
    page = new_page()
    key = make_key(site.redis_url, "soon gone", Scope.READ)
    sign_in_at(page, f"{locked}/#/queues", key)
    expect(page.get_by_role("heading", name="Queues")).to_be_visible()
    faults.expect("^401 ")

    revoke_key(site.redis_url, key)

    expect(page.get_by_label("API key")).to_be_visible(timeout=30_000)


def test_a_key_that_may_only_read_says_so_and_one_of_a_project_sees_no_cluster(
    locked: str, new_page: Callable[..., Any], site: Site
) -> None:
    page = new_page()
    sign_in_at(page, locked, make_key(site.redis_url, "reader", Scope.READ))
    expect(page.get_by_text("read-only")).to_be_visible()
    expect(page.get_by_text("● live")).to_be_visible()
    pages = page.get_by_role("navigation", name="Pages")
    expect(pages.get_by_role("link", name="Failures")).to_be_visible()

    page = new_page()
    sign_in_at(page, locked, make_key(site.redis_url, "tenant", Scope.READ, project="shop"))

    expect(page.get_by_text("This key sees the project shop")).to_be_visible()
    pages = page.get_by_role("navigation", name="Pages")
    expect(pages.get_by_role("link", name="Queues")).to_be_visible()
    expect(pages.get_by_role("link", name="Failures")).to_have_count(0)
    expect(pages.get_by_role("link", name="Workers")).to_have_count(0)


def test_with_a_full_redis_a_key_works_until_the_tab_is_closed(
    locked: str, new_page: Callable[..., Any], site: Site
) -> None:
    page = new_page()
    key = make_key(site.redis_url, "kept", Scope.READ)
    with Redis.from_url(site.redis_url) as redis:
        redis.config_set("maxmemory", 1)
        try:
            sign_in_at(page, locked, key)
            expect(page.get_by_text("until you close this tab")).to_be_visible()
            expect(page.get_by_text("● live")).to_be_visible()
        finally:
            redis.config_set("maxmemory", 0)
    page.reload()

    expect(page.get_by_label("API key")).to_be_visible()


def test_another_site_can_use_neither_the_session_nor_a_frame(
    locked: str, new_page: Callable[..., Any], site: Site, faults: Faults
) -> None:
    faults.expect(".")  # all that this page does is refused
    page = new_page()
    sign_in_at(page, locked, make_key(site.redis_url, "victim", Scope.ADMIN))
    expect(page.get_by_role("heading", name="Home")).to_be_visible()
    evil = page.context.new_page()
    evil.goto(site.url.replace("127.0.0.1", "localhost") + "/docs")  # another site for the browser

    found = evil.evaluate(
        """async (url) => {
          const send = (path, how) =>
            fetch(url + path, { credentials: 'include', ...how }).then((got) => got.status, () => 'blocked');
          const headers = { 'content-type': 'application/json' };
          return [
            await send('/queues', {}),
            await send('/keys', { method: 'POST', body: '{"name": "mine"}', headers }),
            await send('/session', { method: 'DELETE' }),
          ];
        }""",
        locked,
    )

    assert found == ["blocked", "blocked", "blocked"]
    page.reload()
    expect(page.get_by_role("heading", name="Home")).to_be_visible()
    with Redis.from_url(site.redis_url) as redis:
        assert not any(b'"mine"' in document for document in redis.hvals("taskpool:keys"))
