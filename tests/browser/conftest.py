"""A browser, and what it looks at: Redis, an API and a worker pool.

They take seconds to start, so the files in `SHARE_SITE` share them: there, a test names what it makes by names that no
other test has. Every other file has an installation of its own.

Every test fails on a violation of the page's policy, an error in the console, an uncaught exception and a failed
request, also after its own assertions hold. `faults.expect` names the failures that a test is about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from taskpool import TaskPool
from tests.api_client import api_process
from tests.chromium import INSTALL, find_chromium
from tests.support import ROOT
from tests.worker_pool import WorkerPool, pool_with_redis

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright isn't installed: scripts/environment dev")

WAIT_MS: Final = 60_000
TASKS: Final = tuple(str(ROOT / "tests" / each) for each in ("tasks_for_tests.py", "browser/tasks_for_page.py"))
AXE: Final = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
SHARE_SITE: Final = (
    "test_form", "test_home", "test_operate", "test_pages", "test_parts", "test_shell", "test_task", "test_tasks",
)  # fmt: skip
"""The files whose tests need no empty Redis."""
DESKTOP: Final = {"width": 1280, "height": 800}
PHONE: Final = {"width": 375, "height": 740}
WATCH: Final = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@dataclass
class Site:
    """A page that is served, and what is behind it."""

    url: str
    pool: TaskPool
    workers: WorkerPool
    redis_url: str


@dataclass
class Faults:
    """What went wrong in the page. `expect` allows what fits a pattern, from now on and before."""

    found: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def expect(self, *patterns: str) -> None:
        """Allow faults in which one of these regular expressions is found, like ` 401 ` of a failed request."""
        self.expected.extend(patterns)

    def unexpected(self) -> list[str]:
        """All others."""
        return [each for each in self.found if not any(re.search(pattern, each) for pattern in self.expected)]

    def watch(self, page: Any) -> None:
        """Note what goes wrong in a page from now on."""
        page.on("console", self._said)
        page.on("pageerror", lambda error: self._note(f"exception: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._answered)

    def _said(self, message: Any) -> None:
        # "Failed to load resource" is the browser's own word for what `_answered` notes.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self._note(message.text)

    def _answered(self, answer: Any) -> None:
        if answer.status >= 400:
            self._note(f"{answer.status} {answer.url}")

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left, or doesn't want the answer any more
            self._note(f"{request.failure} {request.url}")

    def _note(self, text: str) -> None:
        self.found.append(text)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium. Playwright's event loop runs as long as it lives, so it ends with the folder: other tests have some."""
    program = find_chromium()
    if program is None:
        pytest.skip(f"Chromium isn't installed; {INSTALL}")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=program,
            args=["--disable-gpu", "--disable-dev-shm-usage"],
            chromium_sandbox=False,
            timeout=WAIT_MS,
        )
        playwright.expect.set_options(timeout=WAIT_MS)
        yield started
        started.close()


@contextmanager
def started_site(folder: Path, redis_binary: str | None, **settings: Any) -> Iterator[Site]:
    """Redis, two worker processes and an API. Webhooks may go to this machine."""
    with ExitStack() as stack:
        workers = stack.enter_context(
            pool_with_redis(folder, redis_binary, workers=2, webhook_allow="127.0.0.1", **settings)
        )
        redis_url = workers.pool.redis_url
        _, url = stack.enter_context(api_process(redis_url, folder / "api.log", TASKPOOL_WEBHOOK_ALLOW="127.0.0.1"))
        yield Site(url, workers.pool, workers, redis_url)


@pytest.fixture(scope="package")
def shared_site(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Site]:
    """The installation of the files in `SHARE_SITE`."""
    with started_site(tmp_path_factory.mktemp("site"), redis_binary, tasks=",".join(TASKS)) as site:
        yield site


@pytest.fixture(scope="module")
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None
) -> Iterator[Site]:
    """What the tests of a file look at. Its workers run both files of tasks."""
    if request.path.stem in SHARE_SITE:
        yield request.getfixturevalue("shared_site")
        return
    with started_site(tmp_path_factory.mktemp("site"), redis_binary, tasks=",".join(TASKS)) as site:
        yield site


@pytest.fixture
def faults() -> Iterator[Faults]:
    """What went wrong; the test fails if it wasn't expected."""
    faults = Faults()
    yield faults
    assert faults.unexpected() == []


@pytest.fixture
def new_page(browser: Any, site: Site, faults: Faults) -> Iterator[Callable[..., Any]]:
    """Makes a page, each like a browser of its own; the arguments are those of Playwright's `new_context`."""
    with ExitStack() as stack:

        def new(**options: Any) -> Any:
            context = browser.new_context(**{"base_url": site.url, "viewport": DESKTOP, **options})
            stack.callback(context.close)
            context.add_init_script(WATCH)
            context.set_default_timeout(WAIT_MS)
            page = context.new_page()
            faults.watch(page)
            return page

        yield new


@pytest.fixture
def page(new_page: Callable[..., Any]) -> Any:
    """A page that shows nothing yet: `page.goto("/#/tasks")`."""
    return new_page()


@pytest.fixture
def scan() -> Callable[[Any], None]:
    """Asserts that axe finds no violation in what a page shows, in light and dark."""

    def scan(page: Any) -> None:
        page.evaluate(AXE)  # not as a script element: the policy refuses that
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
            told = [
                f"{scheme}: {each['id']}: {node['html']} {node['failureSummary']}"
                for each in found
                for node in each["nodes"]
            ]
            assert told == []

    return scan


@pytest.fixture
def shoot(screenshots: Path | None) -> Callable[[Any, str], None]:
    """Leaves pictures of a page, if they are wanted: light, dark, and on a phone."""

    def shoot(page: Any, name: str) -> None:
        if screenshots is None:
            return
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=screenshots / f"{name}-{scheme}.png")
        page.set_viewport_size(PHONE)
        page.emulate_media(color_scheme="light")
        page.screenshot(path=screenshots / f"{name}-phone.png", full_page=True)
        page.set_viewport_size(DESKTOP)

    return shoot


def registered_pages() -> list[str]:
    """The paths of all pages, from the registry."""
    return re.findall(r'{ path: "([^"]*)"', (ROOT / "dashboard" / "pages" / "index.js").read_text())
