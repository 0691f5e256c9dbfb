"""The form that is made from a JSON Schema: each kind of value, secrets, faults in depth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from playwright.sync_api import expect

from taskpool import Registry, Secret, task
from taskpool.operations.catalog import PoolInfo, publish
from tests.browser.conftest import Faults, Site

SECRET = "correct horse"


@dataclass
class Size:
    width: int
    height: int = 600


@task("resize", queue="images")
def resize(
    path: str,
    size: Size,
    *,
    mode: Literal["fit", "fill"] = "fit",
    tags: Sequence[str] = (),
    note: str | None = None,
    token: Secret[str] = "",
    extra: Mapping[str, int] | None = None,
    draft: bool = False,
) -> None:
    """Resize a picture."""


@pytest.fixture
def form(page: Any, site: Site) -> Any:
    """The page of a type with a payload of all kinds. Nobody runs it."""
    info = PoolInfo(id="eu-1", host="h", pid=1, queues=("images",), types=("resize",), workers=())
    site.pool.store.run(publish(info, [Registry().add(resize).info()], ttl_s=600))
    page.goto("/#/types/resize")
    return page.get_by_role("form", name="Submit one")


def fill(form: Any, **values: str) -> None:
    for name, value in values.items():
        form.get_by_label(re.compile(rf"^{name}\b")).first.fill(value)


def test_each_kind_of_value_has_its_field_and_what_is_left_empty_is_left_out(form: Any, page: Any, site: Site) -> None:
    fill(form, path="a.png", width="640", note="")
    form.get_by_label("mode").select_option(label="fill")
    form.get_by_label("draft").select_option(label="true")
    for number, tag in enumerate(("x", "y", "z"), 1):
        form.get_by_role("button", name="Add to tags").click()
        form.get_by_label(f"tags {number}", exact=True).fill(tag)
    form.get_by_role("button", name="Remove tags 2").click()
    form.get_by_label("New name in extra").fill("a/b")
    form.get_by_role("button", name="Add to extra").click()
    form.get_by_label("a/b", exact=True).fill("7")

    form.get_by_role("button", name="Submit 1 resize").click()

    id = page.locator(".sent code").inner_text()
    assert site.pool.get(id).payload == {
        "path": "a.png", "size": {"width": 640}, "mode": "fill", "draft": True, "tags": ["x", "z"], "extra": {"a/b": 7},
    }  # fmt: skip


def test_a_secret_is_hidden_in_the_form_and_in_its_json_and_stays_when_that_is_edited(
    form: Any, page: Any, site: Site
) -> None:
    fill(form, path="a.png", width="640", token=SECRET)
    json = form.get_by_label("The payload as JSON")
    assert form.get_by_label("token").get_attribute("type") == "password"
    assert '"token": "***"' in json.input_value()
    json.fill(json.input_value().replace("640", "641"))

    expect(form.get_by_label("width")).to_have_value("641")
    expect(form.get_by_label("token")).to_have_value(SECRET)
    form.get_by_role("button", name="Submit 1 resize").click()

    record = site.pool.get(page.locator(".sent code").inner_text())
    assert (record.payload["size"], record.payload["token"]) == ({"width": 641}, "***")
    assert SECRET not in page.content()


def test_faults_are_shown_in_the_depth_of_the_form(form: Any, page: Any, faults: Faults) -> None:
    faults.expect("422 ")
    form.get_by_label("The payload as JSON").fill(
        '{"size": {"width": "wide", "depth": 3}, "tags": ["a", 2], "other": 1}'
    )

    form.get_by_role("button", name="Submit 1 resize").click()

    path = form.get_by_label("path")
    expect(path).to_be_focused()
    expect(page.locator(".field", has=page.get_by_label("path")).locator(".fault")).to_contain_text("required")
    expect(form.get_by_label("width")).to_have_attribute("aria-invalid", "true")
    expect(form.get_by_label("tags 2", exact=True)).to_have_attribute("aria-invalid", "true")
    expect(form.locator(".fault").filter(has_text="other: unknown field")).to_be_visible()


def test_text_that_is_not_json_yet_changes_nothing(form: Any) -> None:
    fill(form, path="a.png")
    json = form.get_by_label("The payload as JSON")

    json.fill('{"path": "b.png"')

    expect(json).to_have_attribute("aria-invalid", "true")
    expect(form.get_by_label("path")).to_have_value("a.png")
    json.fill('{"path": "b.png"}')
    expect(json).not_to_have_attribute("aria-invalid", "true")
    expect(form.get_by_label("path")).to_have_value("b.png")
