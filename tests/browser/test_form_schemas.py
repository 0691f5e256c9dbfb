"""The form with every kind of schema, also with those that no task type of ours has."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from playwright.sync_api import expect

SHOW: Final = """async (text) => {
  const part = (name) => import(new URL(`parts/${name}.js`, document.querySelector('script').src));
  const { html, render, useState } = await part('preact');
  const { JsonBeside, SchemaForm, started } = await part('form');
  const { parseJson, writeJson } = await part('exact');
  const schema = parseJson(text);
  function Tried() {
    const [value, set] = useState(() => started(schema));
    window.written = () => writeJson(value ?? null);
    return html`<form aria-label="Tried"><${SchemaForm} schema=${schema} value=${value} onChange=${set} />
      <${JsonBeside} schema=${schema} value=${value} onChange=${set} /></form>`;
  }
  render(html`<${Tried} />`, document.querySelector('main').appendChild(document.createElement('div')));
}"""
BIG: Final = 9007199254740993


@pytest.fixture
def tried(page: Any) -> Callable[[Any], Any]:
    """Shows the form of a schema. `page.evaluate("written()")` is its value."""

    def show(schema: Any) -> Any:
        page.goto("/")
        page.wait_for_selector("main h1")
        page.evaluate(SHOW, json.dumps(schema))
        return page.get_by_role("form", name="Tried")

    return show


def value(page: Any) -> Any:
    return json.loads(page.evaluate("written()"))


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


NAMES: Final = (
    "constructor",
    "__proto__",
    "toString",
    "hasOwnProperty",
    "a b",
    "a_b",
    "a%20b",
    "a/b~c",
    "",
    "ключ",
    "<b>",
)


def test_a_member_may_have_any_name(tried: Callable[[Any], Any], page: Any) -> None:
    form = tried({"type": "object", "properties": {name: {"type": "string"} for name in NAMES}})
    fields = form.locator(".form input")
    assert [field.input_value() for field in fields.all()] == [""] * len(NAMES)
    assert len(set(fields.evaluate_all("all => all.map(each => each.id)"))) == len(NAMES)

    for number, field in enumerate(fields.all()):
        field.fill(f"v{number}")

    assert value(page) == {name: f"v{number}" for number, name in enumerate(NAMES)}


def test_known_values_keep_their_digits_and_are_compared_as_values(tried: Callable[[Any], Any], page: Any) -> None:
    form = tried(
        object_of(
            one={"enum": [BIG, BIG + 2, None, {"a": 1}], "default": BIG + 2},
            some={"type": "array", "items": {"enum": [BIG, "x"]}},
            number={"type": "integer", "default": BIG},
        )
    )

    assert form.get_by_label("one").locator("option").all_inner_texts() == [
        f"default: {BIG + 2}", str(BIG), str(BIG + 2), "null", '{"a":1}',
    ]  # fmt: skip
    expect(form.get_by_text(f"Default: {BIG}.")).to_be_visible()
    form.get_by_label("one").select_option(label=str(BIG))
    form.get_by_label(str(BIG)).check()
    assert value(page) == {"one": BIG, "some": [BIG]}
    form.get_by_label("The same as JSON").fill('{"some": [9007199254740993, "x"], "one": {"a": 1}}')
    expect(form.get_by_label(str(BIG))).to_be_checked()
    form.get_by_label(str(BIG)).uncheck()
    expect(form.get_by_label("one")).to_have_value("3")
    assert value(page) == {"some": ["x"], "one": {"a": 1}}


def test_a_number_is_a_number_wherever_one_is_allowed(tried: Callable[[Any], Any], page: Any) -> None:
    form = tried(
        object_of(
            a={"anyOf": [{"type": "integer", "minimum": 5}, {"type": "integer", "maximum": -5}]},
            b={"oneOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]},
            c={"type": ["number", "null"]},
            d={},
        )
    )
    for name, text in (("a", "7"), ("b", "1.50"), ("c", "1e400"), ("d", "1.0")):
        form.get_by_label(name, exact=True).fill(text)

    assert page.evaluate("written()") == '{"a":7,"b":1.50,"c":1e400,"d":1.0}'


def test_what_must_be_there_may_be_empty(tried: Callable[[Any], Any], page: Any) -> None:
    inner = object_of(rows={"type": "array", "items": {"type": "string"}}) | {"required": ["rows"]}
    form = tried(
        object_of(
            inner=inner,
            more={"type": "object", "additionalProperties": {"type": "string"}},
            picked={"type": "array", "items": {"enum": ["a", "b"]}},
            free={"type": "array", "items": {"type": "string"}},
        )
        | {"required": ["inner", "more", "picked"]}
    )
    begun = {"inner": {"rows": []}, "more": {}, "picked": []}
    assert value(page) == begun

    form.get_by_role("button", name="Add to rows").click()
    form.get_by_role("button", name="Remove rows 1").click()
    form.get_by_label("a", exact=True).check()
    form.get_by_label("a", exact=True).uncheck()

    assert value(page) == begun


ANY: Final = [True, {}, {"type": "object"}, {"type": "object", "additionalProperties": True}]


@pytest.mark.parametrize("schema", ANY)
def test_a_schema_that_says_nothing_takes_any_json(schema: Any, tried: Callable[[Any], Any], page: Any) -> None:
    form = tried(schema)

    form.get_by_label("payload").fill('{"a": [1, null]}')

    assert value(page) == {"a": [1, None]}


ITSELF: Final = {"$ref": "#/$defs/T"}
ODD: Final = [
    False,
    {"$ref": "#/$defs/T", "$defs": {"T": {"type": "array", "items": ITSELF}}},
    {"$ref": "#/$defs/T", "$defs": {"T": ITSELF}},
    {"$ref": "#/$defs/T", "$defs": {"T": {"anyOf": [{"type": "array", "items": ITSELF}, {"type": "string"}]}}},
    {"$ref": "#/$defs/T", "$defs": {"T": {"type": "object", "properties": {"next": ITSELF}, "required": ["next"]}}},
    {"$ref": "#/$defs/T", "$defs": {"T": {"type": "object", "additionalProperties": ITSELF}}},
    {"$ref": "#/$defs/constructor"},
    {"$ref": "https://example.org/schema"},
    object_of(a={"prefixItems": [{"type": "integer"}], "type": "array", "items": False}, b={"const": None}, c=True),
    object_of(a={"type": "string", "pattern": "(", "format": "date-time", "minLength": BIG, "examples": [1]}),
    object_of(a={"enum": []}, b={"type": []}, c={"anyOf": []}, d={"allOf": [{"type": "string"}, {"maxLength": 3}]}),
    object_of(a={"if": {}, "then": {}, "not": {}, "dependentRequired": {}, "patternProperties": {"^x": {}}}),
    object_of() | {"additionalProperties": False},
    {"type": "string", "writeOnly": True},
    {"type": "array", "items": {"type": "object", "properties": {"key": {"type": "string", "writeOnly": True}}}},
    {"type": "array", "items": True, "minItems": 1},
]


@pytest.mark.parametrize("schema", ODD)
def test_no_schema_breaks_the_form(schema: Any, tried: Callable[[Any], Any], page: Any) -> None:
    form = tried(schema)

    expect(form.get_by_label("The same as JSON")).to_be_visible()
    form.get_by_label("The same as JSON").fill('{"a": [{"key": 1}], "b": null, "next": {"next": {}}}')
    form.get_by_label("The same as JSON").fill("[[[]]]")
    assert page.locator(".form *").count() < 200
