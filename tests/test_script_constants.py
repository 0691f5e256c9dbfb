"""Scripts take every status word and every time to live from Python, so that each is written once."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from taskpool.redis import calls, keys
from taskpool.types import EVENT_OF, RQ_STATUS, STATUSES, TaskStatus

FOLDER = files(calls.__package__ or "") / "lua"
SCRIPTS = {
    each.name: each.read_text("utf-8")
    for folder in (FOLDER, FOLDER / "shared")
    for each in folder.iterdir()
    if each.name.endswith(".lua")
}
WORDS = {*STATUSES, *RQ_STATUS.values(), *EVENT_OF.values()}
TIMES = {
    str(value) for name, value in vars(keys).items() if name.endswith("_S") and isinstance(value, int) and value > 60
}


def code_of(script: str) -> str:
    """A script without its comments."""
    return re.sub(r"--.*", "", SCRIPTS[script])


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_no_script_contains_a_status_word(script: str) -> None:
    code = code_of(script)

    quoted = {text for pair in re.findall(r"'([^']*)'|\"([^\"]*)\"", code) for text in pair if text}
    in_sets = set(re.findall(r"\b(\w+) = true", code))

    assert {word for text in quoted | in_sets for word in re.split(r"[^a-z_]+", text)} & WORDS <= allowed(quoted)


def allowed(quoted: set[str]) -> set[str]:
    """Words of sentences for people."""
    return {word for text in quoted if " " in text for word in text.replace(":", " ").split()}


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_no_script_contains_a_time_to_live(script: str) -> None:
    code = code_of(script)

    of_expiries = [line for line in code.splitlines() if re.search(r"EXPIRE|'P?EX'|retain\(|ttl", line)]
    numbers = re.findall(r"(?<![\w.\[%])\d+(?![\w\]])", "\n".join(of_expiries))

    assert {number for number in numbers if int(number) > 2} <= {"1000"}  # ms in a second
    if script != "prelude.lua":  # its clock counts with the seconds of a day
        assert not set(re.findall(r"\b\d+\b", code)) & TIMES


def test_every_constant_that_a_script_names_exists() -> None:
    for script in SCRIPTS:
        for namespace, name in re.findall(r"\b(KEY|STATUS|RQ|EVENT|RQ_SET)\.([a-z_]+)", code_of(script)):
            assert name in keys.SCRIPT_CONSTANTS[namespace], (script, namespace, name)


def test_scripts_can_name_every_status() -> None:
    for status in TaskStatus:
        constants = {space: keys.SCRIPT_CONSTANTS[space][status.value] for space in ("STATUS", "RQ", "EVENT")}

        assert constants == {"STATUS": status.value, "RQ": RQ_STATUS[status], "EVENT": EVENT_OF[status]}
