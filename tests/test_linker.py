"""Each Lua script gets the shared functions that it uses, in an order in which they can be made, and no others."""

from __future__ import annotations

import re

import pytest

from taskpool.redis.linker import FOLDER, definitions, linked

SCRIPTS = sorted(file.name.removesuffix(".lua") for file in FOLDER.iterdir() if file.name.endswith(".lua"))


def made(text: str) -> list[str]:
    """The shared functions in a text, in their order."""
    defined = re.findall(r"^local (?:function )?(\w+)", text, re.MULTILINE)
    return [name for name in defined if name in definitions() and plain(definitions()[name].text) in text]


def plain(text: str) -> str:
    """The first line of a definition below its comment, without constants."""
    return next(line for line in text.splitlines() if not line.startswith("--"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_function_stands_behind_those_that_it_needs(script: str) -> None:
    names = made(linked(script))

    assert len(names) == len(set(names))
    for at, name in enumerate(names):
        assert set(definitions()[name].needs) <= set(names[:at]), name


def test_every_shared_function_is_used() -> None:
    assert {name for script in SCRIPTS for name in made(linked(script))} == definitions().keys()


def test_a_script_has_nothing_that_it_does_not_use() -> None:
    assert made(linked("probe")) == []
    assert made(linked("heartbeat")) == ["clock", "pass_when_full"]


def test_a_claim_makes_moves_only_when_it_needs_them() -> None:
    text = linked("turn")
    top, rarely, script = re.split(
        r"^(?=local function rarely|-- What a worker process does)", text, flags=re.MULTILINE
    )

    assert "moves" in made(rarely)
    assert "moves" not in made(top + script)


def test_a_plain_submission_makes_moves_only_when_it_needs_them() -> None:
    plain, _, rest = linked("add").partition("if not call then")

    assert "moves" not in made(plain)
    assert "moves" in made(rest)
