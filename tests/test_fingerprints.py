"""The fingerprint of an exception: the same for the same cause, wherever the code is deployed and its lines move."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from taskpool import NonRetryable
from taskpool.tasks.fingerprints import Place, fingerprint_of, place_of
from tests.test_attempt import attempt

SOURCE = """
def task(what):
    {padding}
    return inner(what)

def inner(what):
    if what == "key":
        return {{}}["width"]
    if what == "library":
        import json
        return json.loads("no json")
    raise ValueError(what)
"""


def loaded(folder: Path, *, padding: str = "pass", name: str = "shop.images") -> Callable[[str], Any]:
    """The function `task` of a module file in a folder."""
    file = folder / "images.py"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(SOURCE.format(padding=padding))
    space: dict[str, Any] = {"__name__": name}
    exec(compile(file.read_text(), str(file), "exec"), space)
    return space["task"]  # type: ignore[no-any-return]


def place(task: Callable[[str], Any], what: str) -> Place:
    try:
        task(what)
    except Exception as error:
        trace: TracebackType | None = error.__traceback__
        assert trace is not None
        found = place_of(trace.tb_next)  # below this frame
        assert found is not None
        return found
    raise AssertionError("nothing was raised")


def test_the_place_is_the_innermost_one_in_the_users_code(tmp_path: Path) -> None:
    task = loaded(tmp_path / "shop")

    assert place(task, "key") == Place("images.py:8 in inner", "shop/images.py inner")
    assert place(task, "library") == Place("images.py:11 in inner", "shop/images.py inner")  # not in json


def test_neither_the_line_nor_the_folder_above_counts(tmp_path: Path) -> None:
    here = place(loaded(tmp_path / "here" / "shop"), "key")
    there = place(loaded(tmp_path / "there" / "shop", padding="pass\n    pass\n    pass"), "key")

    assert here.shown != there.shown
    assert here.key == there.key


def test_code_that_is_installed_counts_if_the_task_is_in_that_package(tmp_path: Path) -> None:
    installed = loaded(tmp_path / "site-packages" / "shop")

    assert place(installed, "key").key == "shop/images.py inner"


@pytest.mark.parametrize("name", [None, 7, ["shop"]])
def test_a_module_may_have_any_name(tmp_path: Path, name: Any) -> None:
    assert place(loaded(tmp_path / "shop", name=name), "key").shown == "images.py:8 in inner"


def test_there_may_be_no_frame() -> None:
    assert place_of(None) is None


def recursive(depth: int) -> int:
    return recursive(depth + 1) + 1


def test_a_recursion_without_end_has_one_fingerprint() -> None:
    first, second = attempt(recursive, {"depth": 0}), attempt(recursive, {"depth": 7})

    assert first.failure["fingerprint"] == second.failure["fingerprint"]
    assert first.failure["place"].endswith(" in recursive")


def fail(how: str) -> None:
    if how == "key":
        raise KeyError(how)
    if how == "group":
        try:
            raise ValueError("a")
        except ValueError as error:
            raise ExceptionGroup("all", [error]) from None
    if how == "final":
        raise NonRetryable("no")
    json.loads("no json")


def test_exceptions_of_different_types_have_different_fingerprints() -> None:
    found = {how: attempt(fail, {"how": how}).failure for how in ("key", "group", "final", "library")}

    assert len({each["fingerprint"] for each in found.values()}) == 4
    assert found["library"]["place"].endswith(" in fail")
    assert found["group"]["exception"] == "ValueError"  # that in the group
    assert all(len(each["fingerprint"]) == 12 for each in found.values())


def refuse(text: str) -> None:
    raise ValueError(text)


def test_the_message_does_not_count() -> None:
    assert len({attempt(refuse, {"text": text}).failure["fingerprint"] for text in ("a", "b" * 1000)}) == 1


def test_any_text_has_a_fingerprint() -> None:
    assert fingerprint_of("\ud800", "x") == fingerprint_of("?", "x")
