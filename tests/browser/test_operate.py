"""The pages for operators, in a real browser: queues, workers, types and their form, schedules, workflows, webhooks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from playwright.sync_api import expect

from taskpool import Every, NodeSpec, TaskSpec, WorkflowSpec
from tests.browser.conftest import Faults, Site
from tests.receiver import Receiver, receiver
from tests.support import PATIENCE_S, eventually

EVIL: Final = "<img src=x onerror=alert(1)>"


@pytest.fixture
def target(site: Site) -> Iterator[Receiver]:
    """What webhooks are sent to. They are removed when it is gone."""
    with receiver() as found:
        yield found
        for each in httpx.get(f"{site.url}/webhooks").json()["webhooks"]:
            httpx.delete(f"{site.url}/webhooks/{each['id']}")


def act(do: str, **payload: Any) -> TaskSpec:
    return TaskSpec(type="act", payload={"do": do, **payload})


def answer(page: Any, button: str) -> None:
    """Says yes in the dialog."""
    page.get_by_role("dialog").get_by_role("button", name=button, exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def row(page: Any, text: str) -> Any:
    return page.get_by_role("row").filter(has_text=text)


def test_a_fault_is_shown_at_its_field_and_the_corrected_task_runs(page: Any, faults: Faults) -> None:
    faults.expect("422 ")
    page.goto("/#/types/act")
    page.get_by_label("do").fill("ok")
    page.get_by_label("seconds").fill("soon")

    page.get_by_role("button", name="Submit 1 act").click()
    field = page.get_by_label("seconds")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    expect(page.locator(".field", has=field).locator(".fault")).to_contain_text("number")

    field.fill("1.0")
    expect(page.get_by_label("The payload as JSON")).to_have_value(re.compile(r'"seconds": 1\.0'))
    page.get_by_role("button", name="Submit 1 act").click()
    expect(page.locator(".sent")).to_contain_text("done")


def test_the_json_beside_the_form_is_the_same_payload_with_all_digits(page: Any, site: Site) -> None:
    page.goto("/#/types/echo")
    json = page.get_by_label("The payload as JSON")
    json.fill('{"message": {"big": 12345678901234567890, "text": "hi"}}')

    expect(page.get_by_label("message", exact=False).first).to_have_value(re.compile("12345678901234567890"))
    page.get_by_role("button", name="Submit 1 echo").click()
    expect(page.locator(".sent")).to_contain_text("done")

    id = page.locator(".sent code").inner_text()
    assert site.pool.get(id).result == {"big": 12345678901234567890, "text": "hi"}


def test_an_option_of_a_submission_has_a_form_too_and_its_fault_opens_it(page: Any, site: Site, faults: Faults) -> None:
    faults.expect("422 ")
    page.goto("/#/types/act")
    page.get_by_text("Options: queue, delay").click()
    page.get_by_label("queue", exact=True).fill("not a queue")
    page.get_by_role("button", name="Submit 1 act").click()
    expect(page.get_by_label("queue", exact=True)).to_have_attribute("aria-invalid", "true")

    page.get_by_label("queue", exact=True).fill("nobody-serves-this")
    page.get_by_role("button", name="Submit 1 act").click()

    expect(page.locator(".sent")).to_contain_text("queued")
    assert site.pool.get(page.locator(".sent code").inner_text()).queue == "nobody-serves-this"


def test_a_queue_is_paused_with_a_reason_and_resumed(page: Any, site: Site) -> None:
    site.workers.result()
    page.goto("/#/queues")

    page.get_by_role("button", name="Pause default", exact=True).click()
    page.get_by_label("Why, for the others").fill(EVIL)
    answer(page, "Pause")
    expect(row(page, "default")).to_contain_text("‖ paused")
    expect(row(page, "default")).to_contain_text(EVIL)
    id = site.workers.submit().id
    expect(row(page, "default").get_by_role("link", name="1", exact=True)).to_be_visible()

    row(page, "default").get_by_role("link", name="default").click()
    page.get_by_role("button", name="Resume default").click()
    expect(page.get_by_role("dialog")).to_contain_text("1 task waits")
    answer(page, "Resume")

    assert site.pool.wait(id, timeout_s=PATIENCE_S).status == "done"
    expect(page.get_by_role("button", name="Pause default")).to_be_visible()


def test_a_queue_that_nobody_serves_says_how_to_start_a_worker(page: Any, site: Site) -> None:
    site.workers.submit(queue="reports")
    page.goto("/#/queues")
    expect(row(page, "reports")).to_contain_text("no worker serves it")

    row(page, "reports").get_by_role("link", name="reports").click()

    expect(page.locator(".banner.critical")).to_contain_text("No worker serves this queue: 1 task waits")
    expect(page.locator(".command")).to_contain_text("taskpool worker --queues reports")


def test_what_a_process_runs_is_shown_and_stopped(page: Any, site: Site, tmp_path: Path) -> None:
    id = site.workers.submit("hang", note=tmp_path / "note").id
    page.goto("/#/workers")
    running = page.get_by_role("row").filter(has=page.get_by_role("link", name="act", exact=True))
    expect(running.locator("time").first).to_have_text(re.compile(r"^0:\d\d$"))

    running.get_by_role("button", name="Stop").click()
    answer(page, "Stop 1 task")

    assert site.pool.wait(id, timeout_s=PATIENCE_S).status == "stopped"
    expect(running).to_have_count(0)


def test_a_pool_is_paused_and_resumed(page: Any, site: Site) -> None:
    (name,) = {worker.pool for worker in site.pool.workers() if worker.pool}
    page.goto("/#/workers")

    page.get_by_role("button", name=f"Pause {name}").click()
    answer(page, "Pause")
    expect(page.get_by_role("region", name=f"Pool {name}")).to_contain_text("‖ paused")
    page.get_by_role("button", name=f"Resume {name}").click()
    answer(page, "Resume")

    expect(page.get_by_role("region", name=f"Pool {name}")).to_contain_text("● running")
    assert site.workers.result().status == "done"


def test_a_schedule_runs_now_and_is_paused(page: Any, site: Site) -> None:
    site.pool.set_schedule("yearly", Every("300d"), act("ok"))
    page.goto("/#/schedules")
    expect(row(page, "yearly")).to_contain_text("Every 300 days")
    expect(row(page, "yearly")).to_contain_text("none yet")

    row(page, "yearly").get_by_role("button", name="Run now yearly").click()
    answer(page, "Run now")
    expect(page.locator("#toasts")).to_contain_text("Submitted")
    page.locator("#toasts").get_by_role("button", name="Open").click()
    expect(page).to_have_url(re.compile("#/tasks/"))
    assert site.pool.wait(page.url.rpartition("/")[2], timeout_s=PATIENCE_S).status == "done"

    page.goto("/#/schedules/yearly")
    expect(page.locator("ol.runs li")).to_have_count(10)
    page.get_by_role("button", name="Pause yearly").click()
    answer(page, "Pause")
    expect(page.locator(".banner.warning")).to_contain_text("It doesn't run: it was paused")
    site.pool.remove_schedule("yearly")


def test_a_workflow_is_watched_to_its_end_and_what_failed_is_named(page: Any, site: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    spec = WorkflowSpec(
        name="import",
        nodes=[
            NodeSpec(name="fetch", task=act("work", until=str(gate), note=str(tmp_path / "note"))),
            NodeSpec(name="rows", map=[act("ok")] * 3, after=["fetch"]),
            NodeSpec(name="bad", task=act("fail"), after=["fetch"]),
            NodeSpec(name="end", task=act("ok"), after=["rows", "bad"]),
        ],
    )
    record = site.pool.add_workflow(spec)
    page.goto(f"/#/workflows/{record.id}")
    box = page.locator("svg a.box")
    expect(box).to_have_count(4)
    expect(box.filter(has_text="fetch")).to_have_class(re.compile("in_progress"))
    columns = box.locator("rect:last-of-type").evaluate_all("all => all.map(each => each.getAttribute('x'))")
    assert columns == ["0", "240", "240", "480"]

    gate.touch()
    expect(box.filter(has_text="rows")).to_have_class(re.compile("done"))
    expect(box.filter(has_text="bad")).to_have_class(re.compile("failed"))
    expect(row(page, "as asked")).to_contain_text("bad")

    page.get_by_role("link", name="List", exact=True).click()
    expect(row(page, "3 tasks")).to_contain_text("3 tasks: 3 done")
    page.get_by_role("button", name="Remove").click()
    answer(page, "Remove 6 tasks")
    expect(page).to_have_url(re.compile("#/workflows$"))


def test_a_large_workflow_becomes_boxes_with_counts_and_a_running_one_is_stopped(page: Any, site: Site) -> None:
    nodes = [NodeSpec(name="first", task=act("hang", note="/dev/null"))]
    nodes += [NodeSpec(name=f"part{at}", task=act("ok"), after=["first"]) for at in range(300)]
    record = site.pool.add_workflow(WorkflowSpec(name="large", nodes=nodes))
    page.goto(f"/#/workflows/{record.id}")
    expect(page.locator("svg a.box")).to_have_count(2)
    expect(page.locator("svg a.box").last).to_contain_text("300: 300 waiting")

    page.get_by_role("button", name="Stop").click()
    answer(page, "Stop 301 tasks")
    expect(page.locator("svg a.box").last).to_contain_text("300: 300 canceled")

    page.locator("svg a.box").last.click()
    expect(page.get_by_role("row")).to_have_count(201)


def test_a_delivery_is_shown_and_replayed(page: Any, site: Site, target: Receiver) -> None:
    page.goto("/#/webhooks")
    page.get_by_role("button", name="New endpoint…").click()
    page.get_by_label("url").fill(target.url("/billing"))
    page.get_by_label("description").fill(EVIL)
    page.get_by_role("button", name="Make 1 endpoint").click()
    expect(page.get_by_role("dialog")).to_contain_text("whsec_")
    page.get_by_role("button", name="Done").click()
    site.workers.result()
    eventually(lambda: target.at("/billing"))

    page.get_by_role("link", name=EVIL).click()
    expect(row(page, "task.done")).to_contain_text("delivered")
    page.get_by_role("button", name=re.compile("^Again…")).click()
    answer(page, "Send 1 again")

    eventually(lambda: len(target.at("/billing")) == 2)
    assert len({each.id for each in target.at("/billing")}) == 1
    page.get_by_role("button", name=re.compile("^Show ")).click()
    expect(page.get_by_role("group", name="The message")).to_contain_text("taskpool.task.done")


def test_only_allowed_actions_are_shown_and_pages_fit_a_phone(
    page: Any, site: Site, scan: Callable[[Any], None]
) -> None:
    page.goto("/#/types/act")
    page.get_by_text("Options: queue, delay").click()
    expect(page.get_by_label("queue", exact=True)).to_be_visible()
    scan(page)

    page.set_viewport_size({"width": 320, "height": 640})

    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_failures_are_grouped_and_retried_step_by_step(page: Any, site: Site) -> None:
    for _ in range(3):
        site.workers.result("fail")
    page.goto("/#/failures")
    group = row(page, "ValueError").filter(has_text="as asked")
    expect(group).to_contain_text("tasks_for_tests.py")

    group.get_by_role("link", name="ValueError").click()
    expect(page.get_by_role("heading", name="ValueError")).to_be_visible()
    expect(page.locator("main")).to_contain_text("as asked")
    page.get_by_role("button", name="Retry 1, then 10, then all…").click()
    expect(page.get_by_role("dialog")).to_contain_text("step by step")
    answer(page, "Retry 1, then 10, then all")

    expect(page.get_by_role("status").filter(has_text="The retry has stopped")).to_contain_text("1 failed again")
