"""From a body to the core: which documents are submissions, and that all faults of one are listed at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from api.http.problems import MAX_SHOWN, Problem
from api.http.submission import MAX_BATCH, Retry, Stop, read_as, read_batch
from taskpool.types import TaskSpec

read_submission: Callable[..., TaskSpec] = partial(read_as, wanted=TaskSpec)
read_stop: Callable[..., Stop] = partial(read_as, wanted=Stop, kind="invalid-body")
read_retry: Callable[..., Retry] = partial(read_as, wanted=Retry, kind="invalid-body")


def faults(read: Any, document: Any) -> dict[str, str]:
    with pytest.raises(Problem) as refusal:
        read(document)
    assert refusal.value.kind == ("invalid-body" if read in (read_stop, read_retry) else "invalid-task")
    return {error["pointer"]: error["detail"] for error in refusal.value.errors}


def test_the_fields_are_handed_on_as_given() -> None:
    document = {
        "type": "resize",
        "payload": {"width": 80},
        "queue": "images",
        "run_at": "2026-11-23T12:00:00+02:00",
        "front": True,
        "tags": ["a", "b"],
        "timeout_s": 3,
        "max_attempts": 3,
        "depends_on": None,
    } | {"depends_on": []}

    spec = read_submission(document)

    assert spec.run_at == datetime(2026, 11, 23, 10, tzinfo=UTC)
    assert {name: getattr(spec, name) for name in document} == {**document, "run_at": spec.run_at}


def test_every_field_of_a_spec_may_be_submitted() -> None:
    document: dict[str, Any] = dict.fromkeys(TaskSpec.__struct_fields__) | {
        "type": "t", "payload": None, "front": False, "tags": [], "depends_on": [], "on_conflict": "reject",
    }  # fmt: skip

    assert read_submission(document) == TaskSpec(**{**document, "payload": {}})


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (5, {"": "must be an object"}),
        ([], {"": "must be an object"}),
        (None, {"": "must be an object"}),
        ({}, {"/type": "this field is required"}),
        ({"type": 5}, {"/type": "Expected `str`, got `int`"}),
        ({"type": None}, {"/type": "Expected `str`, got `null`"}),
        ({"type": "t", "front": 1}, {"/front": "Expected `bool`, got `int`"}),
        ({"type": "t", "max_attempts": 1.5}, {"/max_attempts": "Expected `int | null`, got `float`"}),
        ({"type": "t", "max_attempts": True}, {"/max_attempts": "Expected `int | null`, got `bool`"}),
        ({"type": "t", "delay_s": "5"}, {"/delay_s": "Expected `float | null`, got `str`"}),
        (
            {"type": "t", "run_at": "tomorrow"},
            {"/run_at": "must be a time as RFC 3339 writes it, like 2026-11-24T03:00:00Z"},
        ),
        ({"type": "t", "on_conflict": "drop"}, {"/on_conflict": "must be one of 'reject', 'replace', 'return'"}),
        ({"type": "t", "run_at": 1790000000}, {"/run_at": "Expected `datetime | null`, got `int`"}),
        ({"type": "t", "tags": "a"}, {"/tags": "Expected `array`, got `str`"}),
        ({"type": "t", "tags": ["a", 1]}, {"/tags/1": "Expected `str`, got `int`"}),
        ({"type": "t", "tag": ["a"]}, {"/tag": "unknown field; did you mean 'tags'?"}),
        ({"type": "t", "a/b~c": 1}, {"/a~1b~0c": f"unknown field; known: {', '.join(TaskSpec.__struct_fields__)}"}),
        (
            {"typ": "t", "delaay": 1, "front": "yes"},
            {
                "/typ": "unknown field; did you mean 'type'?",
                "/delaay": "unknown field; did you mean 'delay'?",
                "/front": "Expected `bool`, got `str`",
                "/type": "this field is required",
            },
        ),
    ],
)
def test_every_fault_of_a_submission_is_listed(document: Any, expected: dict[str, str]) -> None:
    assert faults(read_submission, document) == expected


def test_a_batch_keeps_its_order() -> None:
    specs = read_batch({"tasks": [{"type": "a"}, {"type": "b", "front": True}]})

    assert specs == [TaskSpec(type="a"), TaskSpec(type="b", front=True)]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([], {"": "must be an object"}),
        ({}, {"/tasks": "this field is required"}),
        ({"tasks": {}}, {"/tasks": "Expected `array`, got `object`"}),
        ({"tasks": []}, {"/tasks": "a batch has 1 to 1,000 tasks, not 0"}),
        ({"tasks": [{"type": "t"}] * (MAX_BATCH + 1)}, {"/tasks": "a batch has 1 to 1,000 tasks, not 1,001"}),
        ({"tasks": [{"type": "t"}], "queue": "q"}, {"/queue": "unknown field; known: tasks"}),
        (
            {"tasks": [{"type": "t"}, {"type": 1}, 5, {"type": "t", "tags": [1]}]},
            {
                "/tasks/1/type": "Expected `str`, got `int`",
                "/tasks/2": "must be an object",
                "/tasks/3/tags/0": "Expected `str`, got `int`",
            },
        ),
    ],
)
def test_every_fault_of_a_batch_is_listed_with_its_index(document: Any, expected: dict[str, str]) -> None:
    assert faults(read_batch, document) == expected


def test_of_very_many_faults_the_first_are_listed() -> None:
    assert len(faults(read_batch, {"tasks": [5] * MAX_BATCH})) == MAX_SHOWN


@pytest.mark.parametrize(
    ("read", "document"),
    [
        (read_submission, {f"tag{number}": 0 for number in range(14_000)}),
        (read_stop, {f"grace_{number}": 0 for number in range(14_000)}),
        (read_batch, {"tasks": [{"typ": "t", f"tag{number}": 1} for number in range(MAX_BATCH)]}),
    ],
)
def test_of_very_many_unknown_fields_the_first_are_guessed_at(
    read: Any, document: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed = []
    guess = difflib.get_close_matches

    def noting(name: str, *known: Any, **how: Any) -> list[str]:
        guessed.append(name)
        return guess(name, *known, **how)

    monkeypatch.setattr(difflib, "get_close_matches", noting)

    shown = faults(read, document)

    assert len(shown) == MAX_SHOWN
    assert len(guessed) == 5
    assert sum("did you mean" in detail for detail in shown.values()) == 5


def test_a_long_unknown_name_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difflib, "get_close_matches", None)

    (detail,) = faults(read_stop, {"grace_s" * 30_000: 1}).values()

    assert detail == "unknown field; known: grace_s, force"


def test_how_to_stop_has_defaults() -> None:
    assert read_stop({}) == Stop(grace_s=10, force=False)
    assert read_stop({"grace_s": 0, "force": True}) == Stop(grace_s=0, force=True)


def test_faults_of_stop_and_retry_are_listed() -> None:
    assert faults(read_stop, {"grace": 1}) == {"/grace": "unknown field; did you mean 'grace_s'?"}
    assert faults(read_stop, {"grace_s": "1"}) == {"/grace_s": "Expected `float`, got `str`"}
    assert faults(read_retry, {"delay_s": 1}) == {"/delay_s": "unknown field; there are none"}
