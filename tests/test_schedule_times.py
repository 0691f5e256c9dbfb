"""When schedules run: cron expressions through changes of daylight saving time, intervals, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpool.tasks.schedule import (
    ALIASES,
    At,
    Cron,
    Every,
    Times,
    Timing,
    clock_changes,
    jitter_ms,
    times_of,
    timing_faults,
)
from taskpool.types import utc

BERLIN = "Europe/Berlin"
HOUR_MS = 3_600_000


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)


def runs(times: Times, after: str, until: str) -> list[str]:
    """The occurrences after a time, in UTC."""
    found = []
    for each in times.from_on(ms(after)):
        if each >= ms(until):
            break
        found.append(utc(each).strftime("%dT%H:%M"))
    return found


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 2 * * *", ["25T00:00", "26T01:00"]),  # once, at the first 02:00
        ("30 2 * * *", ["25T00:30", "26T01:30"]),
        ("*/30 2 * * *", ["25T00:00", "25T00:30", "25T01:00", "25T01:30", "26T01:00", "26T01:30"]),
        ("0 1-3 * * *", ["24T23:00", "25T00:00", "25T02:00", "26T00:00", "26T01:00", "26T02:00"]),
    ],
)
def test_in_autumn_a_time_of_day_runs_once_and_a_step_runs_in_both_hours(expression: str, expected: list[str]) -> None:
    assert runs(Cron(expression, BERLIN), "2026-10-24T12:00Z", "2026-10-26T12:00Z") == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 2 * * *", ["28T01:00", "29T01:00", "30T00:00"]),  # at 03:00, the end of the gap
        ("30 2 * * *", ["28T01:30", "29T01:00", "30T00:30"]),
        ("0,30 2 * * *", ["28T01:00", "28T01:30", "29T01:00", "30T00:00", "30T00:30"]),  # once, not twice
        ("0 2,3 * * *", ["28T01:00", "28T02:00", "29T01:00", "30T00:00", "30T01:00"]),
        ("*/30 2 * * *", ["28T01:00", "28T01:30", "30T00:00", "30T00:30"]),  # the hour doesn't exist
    ],
)
def test_in_spring_a_time_of_day_moves_to_the_end_of_the_gap_and_a_step_is_left_out(
    expression: str, expected: list[str]
) -> None:
    assert runs(Cron(expression, BERLIN), "2026-03-28T00:00Z", "2026-03-30T12:00Z") == expected


@pytest.mark.parametrize("started", ["2026-10-25T01:10Z", "2026-10-25T01:30Z", "2026-10-25T01:59:59Z"])
def test_in_the_repeated_hour_the_next_run_is_never_in_the_past(started: str) -> None:
    assert utc(Cron("30 2 * * *", BERLIN).after(ms(started)) or 0) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


@given(
    st.sampled_from(["0 2 * * *", "*/7 1-3 * * *", "30 2 * * SUN", "59 * * * *", "0 0 L * *", "15,45 2 25-31 3,10 *"]),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "America/Havana", "Asia/Beirut", "UTC"]),
    st.integers(ms("2026-01-01T00:00Z"), ms("2027-12-31T00:00Z")),
)
def test_each_run_is_strictly_later_than_the_one_before(expression: str, zone: str, start_ms: int) -> None:
    times = Cron(expression, zone)

    found = [start_ms, *islice(times.from_on(start_ms), 50)]

    assert all(later > earlier for earlier, later in pairwise(found))
    assert times.after(found[10] - 1) == found[10]  # wherever the search begins


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("0 9 * * MON-FRI", "2026-11-27T09:00"),
        ("0 9 1 JAN *", "2027-01-01T09:00"),
        ("0 0 L * *", "2026-11-30T00:00"),
        ("0 12 * * 5L", "2026-11-27T12:00"),
        ("0 12 * * MON#2", "2026-12-14T12:00"),
        ("0 0 13 * FRI", "2026-12-04T00:00"),  # either day is enough
        ("0 0 */31 * MON", "2027-02-01T00:00"),  # both days, because one begins with *
        ("0 0 29 2 *", "2028-02-29T00:00"),
        ("@weekly", "2026-11-29T00:00"),
        ("@Daily", "2026-11-28T00:00"),
    ],
)
def test_what_the_fields_take(expression: str, first: str) -> None:
    assert list(timing_faults(Timing(cron=expression))) == []
    assert utc(Cron(expression).after(ms("2026-11-27T00:00Z")) or 0) == datetime.fromisoformat(first + "Z")


@pytest.mark.parametrize("alias", ALIASES)
def test_each_short_name_has_words_and_a_next_run(alias: str) -> None:
    assert Cron(alias).words().endswith(" (UTC)")
    assert Cron(alias).after(0)


@pytest.mark.parametrize(
    ("timing", "pointer", "text"),
    [
        ({}, "", "give one of cron, every and at"),
        ({"cron": "0 2 * * *", "every": 60}, "/every", "give either cron or every, not both"),
        ({"cron": "* * * * * *"}, "/cron", "six fields"),
        ({"cron": "0 2 * *"}, "/cron", "must have five fields"),
        ({"cron": "0 0 LW * *"}, "/cron", "W, the nearest working day, isn't supported"),
        ({"cron": "0 0 15w * *"}, "/cron", "isn't supported"),
        ({"cron": "0 25 * * *"}, "/cron", "the hour '25' is invalid"),
        ({"cron": "0 2 * * MOON"}, "/cron", "the day of the week 'MOON' is invalid"),
        ({"cron": "0 0 30 2 *"}, "/cron", "never comes: the month '2' has no day '30'"),
        ({"cron": "@reboot"}, "/cron", "isn't one of @yearly"),
        ({"cron": ""}, "/cron", "must have five fields"),
        ({"cron": "1," * 150}, "/cron", "must be"),
        ({"cron": 5}, "/cron", "must be"),
        ({"cron": "0 2 * * *", "tz": "Europe/Berlni"}, "/tz", "did you mean 'Europe/Berlin'"),
        ({"cron": "0 2 * * *", "tz": "../../etc/passwd"}, "/tz", "must be the IANA name"),
        ({"cron": "0 2 * * *", "tz": "localtime"}, "/tz", "must be the IANA name"),
        ({"every": 60, "tz": "UTC"}, "/tz", "needs cron"),
        ({"cron": "0 2 * * *", "anchor": datetime(2026, 1, 1, tzinfo=UTC)}, "/anchor", "needs every"),
        ({"every": "0.5s"}, "/every", "must be a duration from 1s"),
        ({"every": "soon"}, "/every", "must be a duration"),
        ({"at": datetime(2026, 1, 1)}, "/at", "with a time zone"),
        ({"every": 10, "jitter": "11s"}, "/jitter", "10 seconds"),
        ({"cron": "* * * * *", "jitter": "2m"}, "/jitter", "minute"),
        ({"every": 10, "catch_up": "some"}, "/catch_up", "must be"),
        ({"every": 10, "catch_up_limit": 0}, "/catch_up_limit", "must be"),
        ({"every": 10, "overlap": "perhaps"}, "/overlap", "must be"),
    ],
)
def test_what_is_refused_with_its_place(timing: dict[str, Any], pointer: str, text: str) -> None:
    faults = {fault.pointer: fault.detail for fault in timing_faults(Timing(**timing))}

    assert text in faults[pointer]


def test_intervals_are_counted_from_their_anchor() -> None:
    quarters = Every("15m")
    mornings = Every("1d", anchor=datetime(2026, 1, 1, 6, tzinfo=UTC))

    assert runs(quarters, "2026-11-28T10:01Z", "2026-11-28T10:40Z") == ["28T10:15", "28T10:30"]
    assert runs(mornings, "2025-12-30T06:00Z", "2026-01-01T00:00Z") == ["31T06:00"]
    assert Every(1.5).after(1500) == 3000


def test_a_single_time_comes_once() -> None:
    once = At(datetime(2026, 12, 24, 18, tzinfo=UTC))

    assert list(once.from_on(0)) == [ms("2026-12-24T18:00Z")]
    assert once.after(ms("2026-12-24T18:00Z")) is None


@pytest.mark.parametrize(
    "times", [Cron("*/5 * * * *"), Cron("0 2 * * *", BERLIN), Cron("0 0 29 2 *"), Every("7m"), Cron("* 3 * * MON")]
)
@pytest.mark.parametrize("most", [1, 3, 100])
def test_the_last_occurrences_before_a_time_are_those_of_the_whole_list(times: Times, most: int) -> None:
    first_ms = times.after(ms("2026-10-01T00:00Z"))
    assert first_ms is not None
    until_ms = first_ms + 40 * 24 * HOUR_MS + 1

    found = times.last_of(first_ms, until_ms, most)

    assert list(found) == all_of(times, first_ms, until_ms)[-most:]


def all_of(times: Times, first_ms: int, until_ms: int) -> Sequence[int]:
    found = [first_ms]
    while (later := times.after(found[-1])) is not None and later <= until_ms:
        found.append(later)
    return found


def test_jitter_is_fixed_for_an_occurrence_and_spreads_schedules() -> None:
    timing = Timing(every=3600, jitter="1m")

    offsets = [jitter_ms(timing, f"s{number}", 0) for number in range(200)]

    assert offsets == [jitter_ms(timing, f"s{number}", 0) for number in range(200)]
    assert all(0 <= offset < 60_000 for offset in offsets)
    assert max(offsets) - min(offsets) > 45_000
    assert jitter_ms(Timing(every=3600), "s", 0) == 0


@pytest.mark.parametrize(
    ("expression", "autumn", "spring"),
    [
        ("0 2 * * *", "1 run in the hours that come twice (02:00 CEST)", "02:00 doesn't exist, so it runs at 03:00"),
        ("*/30 2 * * *", "4 runs in the hours that come twice", "02:00, 02:30 don't exist, so there is no run then"),
        ("0 * * * *", "2 runs in the hours that come twice (02:00 CEST, 02:00 CET)", "so there is no run then"),
    ],
)
def test_the_preview_tells_what_happens_when_the_clock_changes(expression: str, autumn: str, spring: str) -> None:
    back, forward = clock_changes(Cron(expression, BERLIN).timing(), ms("2026-10-01T00:00Z"))

    assert back.startswith("2026-10-25, when the clock goes from 03:00 to 02:00")
    assert autumn in back
    assert forward.startswith("2027-03-28, when the clock goes from 02:00 to 03:00")
    assert spring in forward


def test_a_schedule_that_has_no_run_then_has_no_such_note() -> None:
    assert clock_changes(Cron("0 5 * * *", BERLIN).timing(), 0) == []
    assert clock_changes(Cron("0 2 * * *").timing(), 0) == []
    assert clock_changes(Every(60).timing(), 0) == ()


@pytest.mark.parametrize(
    "times",
    [Cron("0 2 * * *", BERLIN, overlap="skip"), Every("30s", catch_up="none"), At(datetime(2026, 1, 1, tzinfo=UTC))],
)
def test_what_is_stored_of_them_makes_them_again(times: Times) -> None:
    assert times_of(times.timing()) == times


def test_they_are_said_in_words() -> None:
    assert Cron("0 2 * * *", BERLIN).words() == "At 02:00 every day (Europe/Berlin)"
    assert Every("90s").words() == "Every 90 seconds"
    assert Every("1h").words() == "Every hour"
    assert At(datetime(2026, 12, 24, 18, tzinfo=UTC)).words() == "Once, at 2026-12-24T18:00:00Z"
