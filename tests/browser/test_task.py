"""A task's page, with real workers: its life, its log, what can be done with it, and that nothing of it is HTML."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskpool.types import TaskStatus
from tests.browser.conftest import Faults, Site
from tests.browser.tasks_for_page import INERT
from tests.support import PATIENCE_S, eventually


@pytest.fixture
def add(site: Site) -> Callable[..., str]:
    """Submits a task, and returns its id."""
    return lambda type, payload=None, **options: site.pool.add_task(type, payload or {}, **options).id


def run(site: Site, id: str, status: TaskStatus = TaskStatus.DONE) -> None:
    assert site.pool.wait(id, timeout_s=PATIENCE_S).status is status


def test_a_task_is_watched_until_its_end_and_its_numbers_stay_as_they_were_written(
    page: Any, add: Callable[..., str], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    page.goto(f"/#/tasks/{add('page.write', {'until': str(gate), 'lines': 3})}")

    page.get_by_text("1 of 4, 25%").wait_for()
    page.locator(".log-line", has_text="still there").first.wait_for()
    page.evaluate("window.kept = 1")
    gate.touch()

    page.locator(".task-line", has_text="done").wait_for()
    result = page.get_by_label("Result", exact=True)
    assert "12345678901234567890" in result.inner_text()
    assert "1.0" in result.inner_text()
    assert page.evaluate("window.kept") == 1  # nothing was loaded anew


def test_a_running_task_is_stopped_after_a_question(
    page: Any, site: Site, add: Callable[..., str], tmp_path: Path
) -> None:
    id = add("page.write", {"until": str(tmp_path / "never")})
    page.goto(f"/#/tasks/{id}")

    page.get_by_role("button", name="Stop…").click()
    page.get_by_role("button", name="Cancel", exact=True).click()
    assert site.pool.get(id).status is TaskStatus.IN_PROGRESS
    page.keyboard.press("s")
    page.get_by_role("button", name="Stop it").click()

    page.locator(".task-line", has_text="stopped").wait_for()
    assert site.pool.get(id).status is TaskStatus.STOPPED
    assert page.get_by_role("button", name="Stop…").count() == 0


def test_a_failure_shows_the_users_frame_first_and_a_retry_mends_it(
    page: Any, site: Site, add: Callable[..., str], tmp_path: Path
) -> None:
    mend = tmp_path / "mend"
    id = add("page.break", {"mend": str(mend)})
    run(site, id, TaskStatus.FAILED)
    page.goto(f"/#/tasks/{id}")

    first = page.locator(".stack-frame").first
    first.wait_for()
    assert "tasks_for_page.py" in first.inner_text()
    assert "json.loads(text)" in first.inner_text()
    folded = page.locator(".folded summary")
    assert "frames of libraries" in folded.inner_text()
    assert not page.locator(".folded .stack-frame").first.is_visible()
    assert page.locator(".span-attempt").count() == 2
    mend.touch()
    page.get_by_role("button", name="Retry…").click()
    page.get_by_role("button", name="Retry it").click()

    page.locator(".task-line", has_text="done").wait_for()
    page.get_by_label("Result", exact=True).get_by_text("mended").wait_for()


def test_a_crash_tells_all_that_is_known_of_the_process(page: Any, site: Site, add: Callable[..., str]) -> None:
    id = add("page.die")
    run(site, id, TaskStatus.FAILED)
    page.goto(f"/#/tasks/{id}")

    facts = page.locator(".error-card .facts")
    facts.get_by_text("SIGKILL", exact=True).wait_for()
    page.locator(".dossier summary", has_text="log").click()
    page.locator(".dossier").get_by_text("going down").wait_for()
    assert page.locator(".span-attempt.is-failed").count() >= 1


def test_a_menu_is_used_by_keyboard(new_page: Callable[..., Any], site: Site, add: Callable[..., str]) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    id = add("page.write")
    run(site, id)
    page.goto(f"/#/tasks/{id}")
    page.locator(".task-line", has_text="done").wait_for()

    page.keyboard.press("c")
    page.get_by_text("Copied the id.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == id
    page.get_by_text("Copy as").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("Copied as curl.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("curl ")
    page.get_by_text("Copy as").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="pytest", exact=True).wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="pytest", exact=True).wait_for(state="hidden")


def test_what_a_task_contains_is_never_html_and_hidden_characters_are_named(
    page: Any, site: Site, add: Callable[..., str]
) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"script of a task has run: {dialog.message}"))
    id = add("page.hostile", {"text": INERT})
    run(site, id, TaskStatus.FAILED)
    page.goto(f"/#/tasks/{id}")

    page.locator(".log-line", has_text=INERT).wait_for()
    assert page.locator(".error-text").inner_text() == f"NonRetryable: {INERT} U+202E reversed"
    line = page.locator(".log-line").first.inner_text()
    assert "U+202E reversed BEL bell" in line
    assert "title" not in line  # it would have named the terminal's window
    assert page.locator(".log-text .ansi-fg-1").inner_text() == INERT
    assert INERT in page.locator(".progress").inner_text()
    assert page.locator("img").count() == 0
    page.goto("/#/tasks?" + f"text={INERT}".replace(" ", "%20"))
    page.get_by_label("Search tasks").wait_for()
    assert page.locator("img").count() == 0


def test_a_task_that_waits_says_why_to_the_root(page: Any, add: Callable[..., str], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    parent = add("page.write", {"until": str(gate)})
    child = add("page.write", depends_on=[parent])
    page.goto(f"/#/tasks/{child}")

    why = page.locator(".why")
    why.get_by_text("It runs in the worker process").wait_for()  # why the parent hasn't ended
    why.get_by_role("link", name=f"…{parent[-8:]}").click()
    relatives = page.get_by_role("region", name="Parents and children")
    relatives.get_by_role("link", name=f"…{child[-8:]}").click()
    page.locator(".task-line", has_text="waiting").wait_for()
    gate.touch()

    page.locator(".task-line", has_text="done").wait_for()
    assert why.count() == 0


def test_a_task_shows_what_it_has_added_and_an_added_one_what_has_added_it(
    page: Any, site: Site, add: Callable[..., str], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    parent = add("page.add", {"until": str(gate)})
    page.goto(f"/#/tasks/{parent}")
    relatives = page.get_by_role("region", name="Parents and children")
    relatives.get_by_role("heading", name="What it has added").wait_for()  # while it runs
    gate.touch()
    page.locator(".task-line", has_text="done").wait_for()
    children = site.pool.get(parent).result

    for child in children:
        relatives.get_by_role("link", name=f"…{child[-8:]}").wait_for()
    relatives.get_by_role("link", name=f"…{children[1][-8:]}").click()

    relatives.get_by_text("Added by").wait_for()
    assert relatives.get_by_role("heading", name="What it has added").count() == 0
    relatives.get_by_role("link", name=f"…{parent[-8:]}").click()
    page.locator(".task-head", has_text="page.add").wait_for()
    page.goto(f"/#/tasks?added_by={parent}")
    page.locator(f'tr[data-id="{children[0]}"]').wait_for()
    assert page.locator("tr[data-id]").count() == 2
    assert page.get_by_label("Search tasks").input_value() == f"added_by:{parent}"


def test_a_running_task_shows_where_it_is(page: Any, site: Site, add: Callable[..., str], tmp_path: Path) -> None:
    id = add("page.write", {"until": str(tmp_path / "never")})
    page.goto(f"/#/tasks/{id}")

    page.get_by_role("button", name="Show its stack").click()
    frame = page.locator(".stack-frame.is-first")
    frame.wait_for()
    assert "tasks_for_page.py" in frame.inner_text()
    assert "in write" in frame.inner_text()
    with page.expect_response(lambda response: response.url.endswith(f"/tasks/{id}/stack") and response.ok):
        page.get_by_role("button", name="Again").click()
    frame.wait_for()
    site.pool.kill_task(id, force=True)


def test_a_log_is_followed_and_searched(page: Any, add: Callable[..., str], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    page.goto(f"/#/tasks/{add('page.write', {'until': str(gate), 'lines': 200})}")
    page.locator(".log-line", has_text="still there, ").first.wait_for()  # it follows: the first lines are out of sight

    assert page.get_by_label("Follow").is_checked()
    page.get_by_label("Find in the log").fill("LINE 7 of")
    page.locator("mark", has_text="line 7").wait_for()
    assert not page.get_by_label("Follow").is_checked()
    found = page.locator(".log").get_by_role("status")
    assert found.first.inner_text() == "1 of 1"
    page.get_by_label("Find in the log").fill("line 1")
    page.locator(".log").get_by_text("1 of 111").wait_for()
    page.get_by_label("Find in the log").press("Enter")
    page.locator(".log").get_by_text("2 of 111").wait_for()
    gate.touch()
    page.locator(".task-line", has_text="done").wait_for()
    page.get_by_label("Follow").wait_for(state="detached")  # there is nothing to follow


def test_a_person_confirms_a_task_and_answers_another(page: Any, site: Site, add: Callable[..., str]) -> None:
    waiting = add("page.write", confirm="Import 10,000 rows?")
    asking = add("page.ask")
    page.goto(f"/#/tasks/{waiting}")

    page.get_by_text("Import 10,000 rows?").wait_for()
    page.get_by_label("Comment").fill("as discussed")
    page.get_by_role("button", name="Confirm", exact=True).click()
    page.locator(".task-line", has_text="done").wait_for()
    confirmation = site.pool.get(waiting).confirmation
    assert confirmation is not None
    assert confirmation.comment == "as discussed"
    page.goto(f"/#/tasks/{asking}")
    page.get_by_text(f"Delete 3,120 rows? {INERT}").wait_for()
    page.get_by_role("button", name="Yes").click()

    page.locator(".task-line", has_text="done").wait_for()
    assert site.pool.get(asking).result == "deleted"


def test_a_question_has_a_form_and_a_wrong_answer_is_told_at_its_field(
    page: Any, site: Site, add: Callable[..., str], faults: Faults
) -> None:
    faults.expect("^422 ")
    id = add("page.choose")
    page.goto(f"/#/tasks/{id}")

    page.get_by_label("table").fill("users")
    page.get_by_label("rows").fill("many")
    page.get_by_role("button", name="Answer", exact=True).click()
    page.locator(".ask .fault").first.wait_for()
    page.get_by_label("rows").fill("12345678901234567890")
    page.get_by_role("button", name="Answer", exact=True).click()

    page.locator(".task-line", has_text="done").wait_for()
    assert site.pool.get(id).result == {"table": "users", "rows": 12345678901234567890}


def test_a_task_is_copied_as_programs_and_submitted_again_with_another_payload(
    new_page: Callable[..., Any], site: Site, add: Callable[..., str], faults: Faults
) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    id = add("page.write", {"lines": 2}, tags=["it's"[:2]])
    run(site, id)
    page.goto(f"/#/tasks/{id}")

    copied = {}
    for name in ("curl", "Python", "pytest", "JSON"):
        page.get_by_text("Copy as").click()
        page.get_by_role("button", name=name, exact=True).click()
        copied[name] = page.evaluate("navigator.clipboard.readText()")
    assert f"'{site.url}/tasks'" in copied["curl"]
    compile(copied["Python"], "copied", "exec")
    compile(copied["pytest"], "copied", "exec")
    assert json.loads(copied["JSON"])["id"] == id
    page.get_by_role("button", name="Edit and resubmit…").click()
    field = page.get_by_label("Submission")
    field.fill('{"type": "page.write", "payload": {"lines": "many"}}')
    page.get_by_role("button", name="Submit", exact=True).click()
    page.get_by_role("alert").wait_for()
    faults.expect("^422 ")
    field.fill('{"type": "page.write", "payload": {"lines": 5}}')
    page.get_by_role("button", name="Submit", exact=True).click()

    page.locator(".log-line", has_text="line 4 of 5").wait_for()
    assert id not in page.url


def test_a_task_that_is_gone_says_so(page: Any, faults: Faults) -> None:
    faults.expect("^404 ")
    page.goto("/#/tasks/d217r8m2n3aolstf2ch5")

    page.get_by_text("There is no such task").wait_for()


@pytest.mark.parametrize("kind", ["failed", "running", "asking", "done"])
def test_axe_finds_nothing_and_320_px_are_enough(
    kind: str, page: Any, site: Site, scan: Callable[[Any], None], shoot: Callable[[Any, str], None]
) -> None:
    payload = {"until": "never"} if kind == "running" else {}
    type = {"failed": "page.break", "asking": "page.ask"}.get(kind, "page.write")
    id = site.pool.add_task(type, payload).id
    if kind in ("failed", "done"):
        run(site, id, TaskStatus.FAILED if kind == "failed" else TaskStatus.DONE)
    page.goto(f"/#/tasks/{id}")
    eventually(lambda: page.locator(".task-line").count() == 1)
    page.locator(".log-line, .log .note").first.wait_for()
    shoot(page, f"task-{kind}")

    scan(page)
    page.set_viewport_size({"width": 320, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    if kind == "running":
        site.pool.kill_task(id, force=True)
