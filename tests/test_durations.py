"""Durations and times as people write them: in Python, over HTTP, in the client and on the command line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from taskpool import InvalidTask, Registry, TaskPool, TaskSpec
from taskpool.cli.__main__ import main
from taskpool.client.values import submission
from taskpool.types import Exit, TaskStatus
from taskpool.validation import DURATION, LONGEST_S, seconds_of, time_of
from tests.api_client import publish_types


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    publish_types(redis_url)
    with TaskPool(redis_url, registry=Registry(builtins=True)) as pool:
        yield pool


@pytest.fixture
def berlin() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        (1.5, 1.5),
        ("90", 90),
        ("1.5", 1.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("500ms", 0.5),
        ("1m500ms", 60.5),
        ("1.5h", 5400),
        ("0.1s", 0.1),
        ("1w2d3h4m5s6ms", 788_645.006),
        (timedelta(hours=1, milliseconds=1), 3600.001),
    ],
)
def test_a_duration_is_a_number_a_text_with_units_or_a_timedelta(value: Any, seconds: float) -> None:
    assert seconds_of(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            " ",
            "m",
            "5 m",
            "5 minutes",
            "1m1h",
            "5m5m",
            "-5m",
            "+5m",
            "1e3",
            "1h30",
            ".5m",
            "5M",
            "٥m",
            "PT5M",
            "nan",
            "inf",
        ),
        *(-1, True, None, [], b"5m", float("nan"), float("inf"), 10**400, "9" * 400, "11000d", "999999999999w"),
        timedelta(days=-1),
        timedelta.max,
    ],
)
def test_what_is_no_duration_is_refused_with_the_forms_and_the_limits(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^must be a duration from 0s to 3660d: a number of seconds, or a text like '5m'"
    ):
        seconds_of(value)


def test_a_text_can_say_no_more_than_any_duration_may_be() -> None:
    digits = {"w": 2, "d": 3, "h": 4, "m": 6, "s": 7, "ms": 10}
    largest = "".join(f"{'9' * most}.999999999{unit}" for unit, most in digits.items())

    assert seconds_of(largest) < LONGEST_S
    assert seconds_of("99999999") < LONGEST_S


@given(st.from_regex(DURATION, fullmatch=True))
@settings(max_examples=200, database=None, derandomize=True)
def test_what_fits_the_published_pattern_is_a_duration(text: str) -> None:
    assert 0 <= seconds_of(text) < LONGEST_S


def test_the_limits_of_a_duration_are_those_of_its_place() -> None:
    assert seconds_of("1ms", 0.001, 60) == 0.001
    with pytest.raises(ValueError, match=r"^must be a duration from 1ms to 1m: .*, not '2m'$"):
        seconds_of("2m", 0.001, 60)


@pytest.mark.usefixtures("berlin")
def test_a_time_of_day_is_the_next_such_local_time() -> None:
    now = datetime.now().astimezone()

    for text in ("02:00", "14:30:15", "00:00"):
        at = time_of(text)

        assert now < at <= now + timedelta(hours=25)
        assert f"{at:%H:%M:%S}".startswith(text)
        assert time_of(at.isoformat()) == at


@pytest.mark.parametrize("text", ["", "2", "25:00", "tomorrow", "02:00Z", "9999-12-31T23:59:59-23:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        time_of(text)


@pytest.mark.parametrize("delay", [90, "90", "1m30s", timedelta(seconds=90)])
def test_a_delay_in_any_form_is_the_same_option(pool: TaskPool, delay: Any) -> None:
    task = pool.add_task("echo", {"message": 1}, delay=delay)

    assert task.run_at is not None
    assert task.created_at is not None
    assert task.status is TaskStatus.SCHEDULED
    assert (task.run_at - task.created_at).total_seconds() == 90
    assert TaskSpec(type="echo", delay=delay) == TaskSpec(type="echo", delay_s=90)
    assert submission(TaskSpec(type="echo", delay=delay)).endswith((b'"delay_s":90}', b'"delay_s":90.0}'))


def test_a_task_may_start_at_a_local_time(pool: TaskPool) -> None:
    task = pool.add_task("echo", {"message": 1}, run_at="02:00")

    assert task.run_at == time_of("02:00")
    assert b'"run_at":"2' in submission(TaskSpec(type="echo", run_at="02:00"))


def test_a_start_given_with_the_call_replaces_that_of_the_spec(pool: TaskPool) -> None:
    spec = TaskSpec(type="echo", payload={"message": 1}, delay="5m")
    at = datetime(2199, 1, 1, tzinfo=UTC)

    assert pool.add_task(spec, run_at=at).run_at == at
    sooner = pool.add_task(TaskSpec(type="echo", payload={"message": 1}, run_at=at), delay="1h").run_at
    assert sooner is not None
    assert sooner < at
    assert pool.add_task(spec, delay_s=0).run_at is None


@pytest.mark.parametrize(
    ("options", "pointer", "text"),
    [
        ({"delay": "soon"}, "/delay", "must be a duration from 0s to 3660d"),
        ({"delay": timedelta(days=-1)}, "/delay", "must be a duration from 0s to 3660d"),
        ({"delay": "5m", "delay_s": 5}, "/delay_s", "give either delay or delay_s, not both"),
        ({"delay": "5m", "run_at": "02:00"}, "/run_at", "give either delay or run_at, not both"),
        ({"run_at": "tomorrow"}, "/run_at", "or a text like '02:00', the next such local time"),
    ],
)
def test_a_wrong_start_is_refused_with_its_place(
    pool: TaskPool, options: dict[str, Any], pointer: str, text: str
) -> None:
    with pytest.raises(InvalidTask) as refused:
        pool.add_task("echo", {"message": 1}, **options)

    (fault,) = refused.value.errors
    assert fault.pointer == pointer
    assert text in fault.detail


@pytest.mark.parametrize(
    "flags", [["--delay", "5m"], ["--delay", "300"], ["--at", "02:00"], ["--delay", "5m", "--expires-in", "1h"]]
)
def test_the_command_line_takes_human_times(pool: TaskPool, flags: list[str]) -> None:
    command = ["submit", "echo", "message=1", *flags, "--redis-url", pool.redis_url]

    result = CliRunner().invoke(main, command)

    task = pool.get(result.stdout.strip())
    assert task.created_at is not None
    assert task.run_at is not None
    if "--delay" in flags:
        assert (task.run_at - task.created_at).total_seconds() == 300
    if "--expires-in" in flags:
        assert task.expires_at is not None
        assert (task.expires_at - task.created_at).total_seconds() == 3600


@pytest.mark.parametrize("flags", [["--delay", "soon"], ["--at", "25:00"], ["--timeout", "5 minutes"]])
def test_the_command_line_refuses_what_is_no_time(pool: TaskPool, flags: list[str]) -> None:
    command = ["submit", "echo", "message=1", *flags, "--redis-url", pool.redis_url]

    result = CliRunner().invoke(main, command)

    assert result.exit_code == Exit.USAGE
    assert flags[0] in result.stderr
    assert flags[1] in result.stderr


def test_wait_takes_a_duration(pool: TaskPool) -> None:
    command = ["submit", "--wait", "10ms", "echo", "message=1", "--redis-url", pool.redis_url]

    assert CliRunner().invoke(main, command).exit_code == Exit.TIMED_OUT
