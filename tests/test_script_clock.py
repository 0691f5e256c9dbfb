"""The clock in prelude.lua: Redis's time as RQ writes times, right in every year there will be."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from random import Random

from redis import Redis

PRELUDE = (files("taskpool.redis") / "lua" / "shared" / "prelude.lua").read_text("utf-8")
(CLOCK,) = re.findall(r"^local function clock\(\)$.*?^end$", PRELUDE, re.MULTILINE | re.DOTALL)
SCRIPT = f"""
{CLOCK.replace("redis.call('TIME')", "time_of_the_test")}
local reply = {{}}
for at = 1, #ARGV, 2 do
  time_of_the_test[1], time_of_the_test[2] = ARGV[at], ARGV[at + 1]
  local ms, stamp = clock()
  reply[#reply + 1] = string.format('%.0f', ms)
  reply[#reply + 1] = stamp
end
return reply
"""


def stamps(redis: Redis, moments: list[datetime]) -> list[tuple[int, str]]:
    """What the clock says at these moments: milliseconds and text."""
    arguments = [part for moment in moments for part in (round_down(moment), moment.microsecond)]
    reply = redis.eval("local time_of_the_test = {}\n" + SCRIPT, 0, *arguments)
    return [(int(ms), stamp.decode()) for ms, stamp in zip(reply[::2], reply[1::2], strict=True)]


def round_down(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)


def expected(moment: datetime) -> tuple[int, str]:
    millis = moment.microsecond // 1000
    return round_down(moment) * 1000 + millis, moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{millis:03d}Z"


def test_every_day_of_leap_years_and_others_is_written_right(redis: Redis) -> None:
    days = [
        datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=day)
        for year in (1970, 2000, 2023, 2024, 2026, 2027, 2028, 2038, 2100, 2400)
        for day in range(366)
    ]

    assert stamps(redis, days) == [expected(day) for day in days]


def test_every_part_of_a_day_is_written_right(redis: Redis) -> None:
    chance = Random(1)
    start = datetime(1970, 1, 1, tzinfo=UTC)
    moments = [start + timedelta(microseconds=chance.randrange(1000 * 366 * 86_400 * 10**6)) for _ in range(3000)]
    edges = [datetime(2026, 12, 31, 23, 59, 59, micros, UTC) for micros in (0, 999, 1000, 999_000, 999_999)]

    assert stamps(redis, moments + edges) == [expected(moment) for moment in moments + edges]
