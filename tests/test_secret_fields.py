"""Which values a schema marks as secret, and how texts are masked."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any
from urllib.parse import quote_plus

import msgspec
import pytest
from pydantic import BaseModel, SecretStr

from taskpool import Registry, Secret, Task, TaskContext, task
from taskpool.tasks.payload import secret_fields
from taskpool.tasks.payload.secret_fields import SecretFields, expanded
from taskpool.tasks.task_type import task_type
from taskpool.text import MASK, Secrets, SecretsGone


@dataclasses.dataclass
class Account:
    host: str
    password: Secret[str]
    spare: Account | None = None


class Card(msgspec.Struct, tag=True):
    pin: Secret[int]


class Cash(msgspec.Struct, tag=True):
    amount: int


class Login(BaseModel):
    user: str
    token: SecretStr
    old: SecretStr | None = None


@task("many")
def many(  # noqa: PLR0917
    plain: str,
    one: Secret[str],
    some: list[Secret[str]],
    named: dict[str, Secret[int]],
    accounts: list[Account],
    pay: Card | Cash,
    pair: tuple[int, Secret[str]],
    pydantic: Login,
    foreign: SecretStr | None = None,
    whole: Secret[dict[str, Any]] | None = None,
    maybe: Secret[str] | None = None,
    **others: Secret[str],
) -> None:
    pass


ODD = "can'ary/ä\n1"
SENT = {
    "plain": "p",
    "one": "first",
    "some": ["a", "b"],
    "named": {"x": 1},
    "accounts": [{"host": "h", "password": "pw", "spare": {"host": "i", "password": "pw2"}}],
    "pay": {"type": "Card", "pin": 1234},
    "pair": [1, "two"],
    "pydantic": {"user": "u", "token": "t", "old": None},
    "foreign": "f",
    "whole": {"k": [1]},
    "more": "m",
}
SHOWN = {
    "plain": "p",
    "one": MASK,
    "some": [MASK, MASK],
    "named": {"x": MASK},
    "accounts": [{"host": "h", "password": MASK, "spare": {"host": "i", "password": MASK}}],
    "pay": {"type": "Card", "pin": MASK},
    "pair": [1, MASK],
    "pydantic": {"user": "u", "token": MASK, "old": None},
    "foreign": MASK,
    "whole": MASK,
    "more": MASK,
}


def secrets_of(*values: Any) -> Secrets:
    return Secrets([((at,), value) for at, value in enumerate(values)])


def test_secret_values_are_taken_out_wherever_the_schema_has_them_and_put_back() -> None:
    sent = json.loads(json.dumps(SENT))

    shown, secrets = task_type(many).secret_fields.split(sent)

    assert shown == SHOWN
    assert sent == SENT
    assert secrets is not None
    assert Secrets.restore(secrets.stored()).put_into(shown) == SENT
    assert shown == SHOWN
    task_type(many).decode(SENT)


def test_a_payload_that_does_not_fit_hides_what_it_can() -> None:
    fields = task_type(many).secret_fields

    others: tuple[Any, ...] = ("text", 3, None, [])

    shown, _ = fields.split({"one": {"deep": "x"}, "some": "text", "named": [1], "accounts": [3, {"password": [1]}]})

    assert shown == {"one": MASK, "some": "text", "named": [1], "accounts": [3, {"password": MASK}]}
    assert [fields.split(payload) for payload in others] == [
        ("text", None),
        (3, None),
        (None, None),
        ([], None),
    ]


def test_schemas_of_others_are_understood() -> None:
    schema = {
        "type": "object",
        "properties": {"a/b": {"$ref": "#/definitions/x~1y"}, "c": {"oneOf": [{"type": "null"}, {"writeOnly": True}]}},
        "patternProperties": {"^s_": {"writeOnly": True}},
        "definitions": {"x/y": {"allOf": [{"properties": {"in": {"writeOnly": True}}}]}},
        "if": {"properties": {"w": {"writeOnly": True}}},
    }

    shown, _ = SecretFields(schema).split({"a/b": {"in": 1, "out": 2}, "c": 3, "s_1": 4, "w": 6})

    assert shown == {"a/b": {"in": MASK, "out": 2}, "c": MASK, "s_1": MASK, "w": MASK}
    assert SecretFields({"patternProperties": {"(?<n>js)": {"writeOnly": True}}}).split({"x": 1})[0] == {"x": MASK}
    assert not SecretFields({"type": "object", "properties": {"writeOnly": {"type": "string"}}})


def test_the_schema_below_a_pattern_is_searched_once_for_all_members(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = 0

    def counted(*given: Any) -> Any:
        nonlocal searched
        searched += 1
        return expanded(*given)

    monkeypatch.setattr(secret_fields, "expanded", counted)
    fields = SecretFields({"patternProperties": {"^k": {"properties": {"s": {"writeOnly": True}}}}})

    shown, _ = fields.split({f"k{n}": {"s": "secret"} for n in range(1000)})

    assert shown == {f"k{n}": {"s": MASK} for n in range(1000)}
    assert searched < 100


def test_no_builtin_type_has_secret_fields() -> None:
    assert not any(each.secret_fields for each in Registry(builtins=True))


def test_defaults_that_are_secret_are_not_published() -> None:
    @task("with_defaults")
    def with_defaults(
        key: Secret[str] = "in-the-source",
        inside: Account = Account("h", "in-the-source"),  # noqa: B008
        plain: str = "shown",
        nothing: Secret[str] | None = None,
    ) -> None:
        pass

    published = task_type(with_defaults)

    assert "in-the-source" not in json.dumps(published.schema)
    assert published.schema["properties"]["plain"]["default"] == "shown"
    assert published.schema["properties"]["nothing"]["default"] is None
    assert published.decode({})["key"] == "in-the-source"


def test_the_repr_of_a_class_payload_shows_no_secret() -> None:
    class Sign(Task):
        type = "sign"

        class Payload:
            text: str
            key: Secret[str]
            account: Account | None = None

        def run(self, ctx: TaskContext) -> None:
            pass

    payload = task_type(Sign).decode({"text": "t", "key": "canary", "account": {"host": "h", "password": "canary"}})

    assert repr(payload) == "Payload(text='t', key='***', account='***')"
    assert payload.key == "canary"


@pytest.mark.parametrize(
    "text",
    [
        f"is {ODD} here",
        f"ValueError: {ODD!r}",
        f"text {ODD!a}",
        json.dumps({"name": ODD}),
        f"https://host/?t={quote_plus(ODD)}&x",
        f"Authorization: {base64.b64encode(ODD.encode()).decode()}",
        f"sent {ODD.encode()!r}",
    ],
)
def test_a_value_is_found_in_the_forms_that_texts_give_it(text: str) -> None:
    hidden = secrets_of(ODD).hide(text)

    assert MASK in hidden
    assert "ary" not in hidden
    assert hidden.startswith(text[:3])


def test_longer_values_go_first_and_short_ones_are_left() -> None:
    secrets = secrets_of("token", "token-and-more", "abc", 7, 123456, True, None, ["inner-one"], {"k": "inner-two"})

    hidden = secrets.hide("token-and-more token abc 7 123456 True None inner-one inner-two")

    assert hidden == "*** *** abc 7 *** True None *** ***"


def test_each_line_of_a_text_of_several_is_found() -> None:
    secrets = secrets_of("-----BEGIN KEY-----\nMIIEowIBAAKCAQ\n}\n")

    assert secrets.hide("at MIIEowIBAAKCAQ: }") == "at ***: }"


def test_a_json_value_is_masked_with_its_names_and_numbers() -> None:
    value = {"canary": ["a canary", 123456, 1234567, True, None, 1.5], "n": {"x": "y"}}

    assert secrets_of("canary", 123456).hide_in(value) == {
        MASK: ["a ***", MASK, 1234567, True, None, 1.5],
        "n": {"x": "y"},
    }


def test_secrets_do_not_show_themselves() -> None:
    assert "canary" not in repr(secrets_of("canary"))
    assert "canary" not in str(secrets_of("canary"))


def test_secrets_that_are_gone_say_so_instead_of_a_payload_with_masks() -> None:
    with pytest.raises(SecretsGone, match="submit it again"):
        Secrets.restore(b"").put_into({"a": MASK})


def test_values_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        secrets_of({"x": float("nan")}).stored()
