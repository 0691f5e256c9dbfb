"""Home and the session: figures move, findings lead somewhere, and a key opens what it may."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import expect
from redis import Redis

from api.auth.caller import Caller
from taskpool import TaskSpec
from taskpool.access.api_key import Scope
from tests.api_client import api_process
from tests.browser.conftest import Faults, Site
from tests.keys import make_key, revoke_key


def tile(page: Any, label: str) -> Any:
    return page.get_by_role("list", name="Figures of now").get_by_role("listitem").filter(has_text=label)


def test_figures_and_plots_move_as_tasks_end(page: Any, site: Site) -> None:
    page.goto("/")
    expect(page.get_by_text("● live")).to_be_visible()
    expect(tile(page, "busy")).to_contain_text("0/2")
    before = page.get_by_role("region", name="Ended").locator("b").first.inner_text()

    for _ in range(30):
        site.workers.submit()

    expect(tile(page, "ended")).not_to_contain_text("0/s")
    ended = page.get_by_role("region", name="Ended").locator("b").first
    expect(ended).not_to_have_text(before, timeout=120_000)  # a minute is shown when half of it is over


def test_a_finding_and_a_waiting_queue_lead_to_the_queue(page: Any, site: Site) -> None:
    site.pool.add_task("act", {"do": "ok"}, queue="reports")
    page.goto("/")

    waits = page.get_by_role("region", name="Who waits longest")
    reports = waits.get_by_role("link", name="reports")
    expect(reports).to_have_attribute("href", "#/queues/reports", timeout=30_000)  # the API keeps what it has read
    finding = page.get_by_role("list", name="Findings").get_by_role("listitem").filter(has_text="reports")
    expect(finding.get_by_role("link")).to_have_attribute("href", "#/queues/reports", timeout=30_000)


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


# --- sessions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same API behind keys, under a path prefix."""
    key = make_key(site.redis_url, "first", Scope.ADMIN)
    log = tmp_path_factory.mktemp("locked") / "log"
    with api_process(site.redis_url, log, TASKPOOL_ROOT_PATH="/jobs") as (_, url):
        yield f"{url}/jobs"
    revoke_key(site.redis_url, key)


def sign_in(page: Any, url: str, key: str) -> None:
    page.goto(url)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()


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

    sign_in(page, f"{locked}/#/queues", key)
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

    sign_in(page, locked, "tp_wrong")

    expect(page.get_by_role("alert")).to_contain_text("API key")


def test_a_revoked_key_ends_the_session(locked: str, new_page: Callable[..., Any], site: Site, faults: Faults) -> None:
    page = new_page()
    key = make_key(site.redis_url, "soon gone", Scope.READ)
    sign_in(page, f"{locked}/#/queues", key)
    expect(page.get_by_role("heading", name="Queues")).to_be_visible()
    faults.expect("^401 ")

    revoke_key(site.redis_url, key)

    expect(page.get_by_label("API key")).to_be_visible(timeout=30_000)


def test_a_key_that_may_only_read_says_so_and_one_of_a_project_sees_no_cluster(
    locked: str, new_page: Callable[..., Any], site: Site
) -> None:
    page = new_page()
    sign_in(page, locked, make_key(site.redis_url, "reader", Scope.READ))
    expect(page.get_by_text("read-only")).to_be_visible()
    expect(page.get_by_text("● live")).to_be_visible()
    pages = page.get_by_role("navigation", name="Pages")
    expect(pages.get_by_role("link", name="Failures")).to_be_visible()

    page = new_page()
    sign_in(page, locked, make_key(site.redis_url, "tenant", Scope.READ, project="shop"))

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
            sign_in(page, locked, key)
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
    sign_in(page, locked, make_key(site.redis_url, "victim", Scope.ADMIN))
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
