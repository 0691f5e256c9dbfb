"""What a person types as a payload, and what becomes of it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from taskpool.cli.options import read_json, read_pairs

SCHEMA: dict[str, Any] = {
    "$ref": "#/$defs/Resize",
    "$defs": {
        "Resize": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "width": {"type": "integer"},
                "label": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "size": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                "mode": {"$ref": "#/$defs/Mode"},
                "anything": {},
            },
        },
        "Mode": {"enum": ["1", "2"]},
    },
}


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("n=3", 3),
        ("n=3.5", 3.5),
        ("n=true", True),
        ("n=null", None),
        ("n=[1, 2]", [1, 2]),
        ('n={"a": 1}', {"a": 1}),
        ('n="3"', "3"),
        ("n=three", "three"),
        ("n=", ""),
        ("n=a=b", "a=b"),
        ("n=NaN", "NaN"),
        ("n=-Infinity", "-Infinity"),
    ],
)
def test_a_value_is_json_when_it_is_json_and_else_text(pair: str, value: Any) -> None:
    assert read_pairs([pair]) == {"n": value}


@pytest.mark.parametrize(
    ("pair", "payload"),
    [
        ("name=123", {"name": "123"}),
        ("name=true", {"name": "true"}),
        ("name=null", {"name": "null"}),
        ('name="quoted"', {"name": "quoted"}),
        ("width=80", {"width": 80}),
        ("width=wide", {"width": "wide"}),
        ("label=null", {"label": None}),
        ("label=7", {"label": "7"}),
        ("size=7", {"size": 7}),
        ("mode=1", {"mode": "1"}),
        ("anything=1", {"anything": 1}),
        ("unknown=1", {"unknown": 1}),
    ],
)
def test_a_field_that_the_schema_declares_as_text_stays_text(pair: str, payload: dict[str, Any]) -> None:
    assert read_pairs([pair], SCHEMA) == payload


def test_a_schema_that_leads_nowhere_changes_nothing() -> None:
    schema = {"properties": {"a": {"$ref": "#/$defs/Gone"}, "b": {"$ref": "#/properties/b"}}}

    assert read_pairs(["a=1", "b=2"], schema) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [(["n"], "'n' isn't key=value"), (["=3"], "'=3' isn't key=value"), (["n=1", "n=2"], "'n' is given twice")],
)
def test_a_pair_that_is_none_is_refused(pairs: list[str], complaint: str) -> None:
    with pytest.raises(click.BadParameter, match=complaint):
        read_pairs(pairs)


def test_json_is_read_from_the_text_a_file_or_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "payload.json"
    file.write_text('{"from": "file"}')
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"from": "stdin"}'))

    assert read_json('{"from": "text"}') == {"from": "text"}
    assert read_json(str(file)) == {"from": "file"}
    assert read_json("-") == {"from": "stdin"}


@pytest.mark.parametrize(
    ("content", "complaint"), [("{", "isn't JSON"), ('{"n": NaN}', "NaN isn't JSON"), ("\udcff", "isn't readable")]
)
def test_a_file_that_is_no_json_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "payload.json"
    file.write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(click.BadParameter, match=complaint):
        read_json(str(file))


@pytest.mark.parametrize("source", ["no such file", "{broken", "x" * 5000, "nul\0"])
def test_what_is_neither_json_nor_a_file_is_refused(source: str) -> None:
    with pytest.raises(click.BadParameter, match="neither JSON nor a readable file"):
        read_json(source)
