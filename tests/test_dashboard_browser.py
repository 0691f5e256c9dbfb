"""rq-dashboard in a real browser: its pages and buttons work under our policy, and no other page can use them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest
from redis import Redis
from rq import Queue

from benchmarks.ports import free_port
from taskpool import TaskPool
from taskpool.redis.embedded import RedisServer
from taskpool.tasks.registry import Registry
from taskpool.types import TaskStatus
from tests.chromium import INSTALL, Page, browser, find_chromium
from tests.rq_processes import TASKS, dashboard, is_gone
from tests.support import eventually

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=f"Chromium isn't installed; {INSTALL}")

WATCH = """
window.faults = [];
document.addEventListener('securitypolicyviolation', (event) => {
  faults.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample} ${event.lineNumber}`);
});
addEventListener('error', (event) => faults.push(event.message || `not loaded: ${event.target.outerHTML}`), true);
window.alert = () => faults.push('alert');
"""
"""Notes what the policy blocked, what failed, and script that got in."""

S = TaskStatus


class Site:
    """rq-dashboard in the browser."""

    def __init__(self, page: Page, port: int) -> None:
        self.page, self.port, self.base = page, port, f"http://127.0.0.1:{port}"

    def open(self, path: str) -> None:
        """Open one of its pages, and wait until it has shown its data."""
        self.page.open(self.base + path)
        eventually(lambda: self.page.look("!document.querySelector('[data-role=loading-placeholder]')"))

    def jobs(self, registry: str, queue: str = "default") -> None:
        """Open a list of jobs."""
        self.open(f"/0/view/jobs/{quote(queue)}/{registry}/8/asc/1")

    def press(self, selector: str, *, confirm: bool = False) -> None:
        """Click a button; `confirm`: and Yes in the dialogue that it opens."""
        eventually(lambda: self.page.look(f"!!document.querySelector({selector!r})?.offsetParent"))
        self.page.run(f"document.querySelector({selector!r}).click()")
        if confirm:  # while the dialogue fades in, it can't be closed
            modal = "$('#confirmation-modal')"
            eventually(lambda: self.page.look(f"{modal}.is('.show') && !{modal}.data('bs.modal')._isTransitioning"))
            self.page.run("document.querySelector('#confirmation-modal-yes').click()")

    def text(self) -> str:
        """What the page shows."""
        text: str = self.page.run("document.body?.innerText ?? ''")
        return text

    def shows(self, text: str) -> None:
        """Wait until the page shows a text."""
        try:
            eventually(lambda: text in self.text())
        except AssertionError:
            raise AssertionError(f"{text!r} isn't in {self.text()!r}; faults: {self.faults()}") from None

    def faults(self) -> list[str]:
        """What went wrong in the page since it was opened."""
        faults: list[str] = self.page.run("faults")
        return faults


@pytest.fixture(scope="module")
def site(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """rq-dashboard, and a browser that knows two more names of this machine."""
    directory = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        pages = stack.enter_context(dashboard(redis_server.url, directory))
        names = "--host-resolver-rules=MAP *.example.org 127.0.0.1"
        page = stack.enter_context(browser(directory / "browser", names))
        page.prepare(WATCH)
        yield Site(page, pages.client.base_url.port or 0)


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    """A pool that runs the tasks of these tests in this process."""
    with TaskPool(redis_url, registry=Registry([TASKS], builtins=True)) as pool:
        yield pool


def failed(pool: TaskPool) -> str:
    """A task that has failed: its id."""
    id = pool.add_task("read", {"path": "/no/such/file"}).id
    running = pool.run_task(["default"], worker="ann", attempt_id="attempt1")
    assert running is not None
    pool.execute_task(running)
    return id


def test_every_page_shows_its_data_and_nothing_is_blocked(site: Site, pool: TaskPool) -> None:
    id = failed(pool)
    pool.add_task("echo", {"message": "<img src=x onerror=alert(1)>"}, queue="images")

    for path, shown in {
        "/": "images",
        "/0/view/workers": "No workers",
        "/0/view/jobs": "No jobs.",
        "/0/view/jobs/images/queued/8/asc/1": "<img src=x",
        "/0/view/jobs/default/failed/8/dsc/1": "FileNotFoundError",
        f"/0/view/job/{id}": "FileNotFoundError",
    }.items():
        site.open(path)

        site.shows(shown)
        assert site.faults() == []
    site.jobs("queued", "images")
    styles = site.page.run("['#empty-btn', '#compact-btn'].map(e => getComputedStyle(document.querySelector(e)).float)")
    assert styles == ["right", "right"]


def test_every_button_does_what_it_says(site: Site, pool: TaskPool) -> None:
    ids = [failed(pool) for _ in range(7)]

    site.jobs("failed")
    site.press(f"[data-job-id='{ids[0]}'] [data-role=requeue-job-btn]")
    eventually(lambda: pool.get(ids[0]).status is S.QUEUED)
    site.press(f"[data-job-id='{ids[1]}'] [data-role=delete-job-btn]", confirm=True)
    eventually(lambda: is_gone(pool, ids[1]))
    assert site.faults() == []

    site.open(f"/0/view/job/{ids[2]}")
    site.press("#requeue-job-btn")
    eventually(lambda: pool.get(ids[2]).status is S.QUEUED)
    assert site.faults() == []

    site.open(f"/0/view/job/{ids[3]}")
    site.press("#delete-job-btn", confirm=True)
    eventually(lambda: is_gone(pool, ids[3]))
    site.shows("registered queues")

    site.jobs("failed")
    site.press("#requeue-all-btn", confirm=True)
    eventually(lambda: {pool.get(id).status for id in ids[4:]} == {S.QUEUED})
    assert site.faults() == []

    site.jobs("queued")
    site.press("#compact-btn", confirm=True)
    eventually(lambda: site.page.look("!document.querySelector('.modal-backdrop')"))
    assert len(pool.get_queue("default").items) == 5
    site.press("#empty-btn", confirm=True)
    eventually(lambda: pool.get_queue("default").items == ())
    site.shows("No jobs.")
    assert site.faults() == []


def test_choosing_another_queue_registry_order_or_length_opens_that_list(site: Site, pool: TaskPool) -> None:
    pool.add_task("echo", {"message": 1}, queue="images")
    for control, value, expected in [
        ("queue", "images", "/0/view/jobs/images/queued/8/asc/1"),
        ("registry", "failed", "/0/view/jobs/default/failed/8/asc/1"),
        ("sort-order", "dsc", "/0/view/jobs/default/queued/8/dsc/1"),
        ("per-page", "20", "/0/view/jobs/default/queued/20/asc/1"),
    ]:
        site.jobs("queued")
        site.page.run(f"$('#select-{control}').val('{value}').change().length")

        eventually(lambda path=expected: site.page.look("location.pathname") == path)  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["');alert(1);('", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>"]
)
def test_no_queue_name_runs_script(name: str, site: Site, redis: Redis) -> None:
    Queue(name, connection=redis).enqueue("os.getpid")  # as a program that uses RQ may call one

    site.open("/")
    site.shows(name)
    assert site.faults() == []
    site.page.open(f"{site.base}/0/view/jobs/{quote(name)}/queued/8/asc/1")
    if "/" not in name:  # rq-dashboard has no address for such a queue
        site.shows("os.getpid")
        site.page.run("$('#select-queue').click().mouseleave().length")
        assert site.page.run("$('#select-queue').val()") == name
    assert site.faults() == []


def test_script_that_got_into_a_page_does_not_run(site: Site, redis: Redis) -> None:
    site.open("/")

    site.page.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(1)><b style=\"color:red\">')"
    )
    site.page.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'alert(2)'}))")

    eventually(lambda: len(site.faults()) >= 3)
    assert "alert" not in site.faults()


def test_a_page_of_another_origin_changes_nothing_reads_nothing_and_frames_nothing(
    site: Site, pool: TaskPool, tmp_path: Path
) -> None:
    id = pool.add_task("echo", {"message": 1}).id
    (tmp_path / "index.html").write_text(
        f"""<iframe name="inside"></iframe><iframe id="framed" src="{site.base}/"></iframe>
        <form method="post" target="inside" action="{site.base}/job/{id}/delete"></form>"""
    )
    other = ThreadingHTTPServer(("127.0.0.1", free_port()), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    Thread(target=other.serve_forever).start()
    try:
        for host in ("127.0.0.1", "localhost", "evil.example.org"):
            site.page.open(f"http://{host}:{other.server_port}/")
            asked = site.page.run(
                f"""(async () => {{
                    const seen = [];
                    for (const [path, method] of [
                        ["/job/{id}/delete", "POST"], ["/queue/default/queued/empty", "POST"],
                        ["/requeue/default", "POST"], ["/requeue/default", "GET"],
                    ]) seen.push((await fetch("{site.base}" + path, {{method, mode: "no-cors"}})
                        .then((answer) => answer.type, () => "blocked")));
                    document.forms[0].submit();
                    await new Promise((loaded) => document.querySelector("[name=inside]").onload = loaded);
                    seen.push(await fetch("{site.base}/0/data/queues.json").then(() => "read", () => "blocked"));
                    let framed = "not shown";
                    try {{ framed = document.querySelector("#framed").contentDocument === null; }} catch {{ }}
                    seen.push(framed);
                    return seen;
                }})()"""
            )

            assert asked[4:] == ["blocked", True]
            assert "read" not in asked
        site.page.open(f"http://evil.example.org:{site.port}/")  # a name that was made to point here
        assert "RQ_DASHBOARD_TRUSTED_HOSTS" in site.text()
    finally:
        other.shutdown()
        other.server_close()

    assert pool.get(id).status is S.QUEUED
    assert [item.record.id for item in pool.get_queue("default").items] == [id]
