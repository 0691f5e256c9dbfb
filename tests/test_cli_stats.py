"""`taskpool stats`: a table for people, JSON for programs, through Redis and through the API."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from taskpool import Registry
from taskpool.cli.__main__ import main
from taskpool.cli.operate.stats import BARS, WIDTH, sparkline
from taskpool.redis import scripts
from tests.cli_ways import Reached

COUNTS = {
    "tasks|done|resize|images|b1": 30,
    "tasks|failed|resize|images|b2": 1,
    "tasks|done|echo|default|b1": 2,
    "run_bucket|resize|images|0.5|b1": 30,
}


@pytest.fixture
def pool(redis_url: str, way: list[str]) -> Iterator[Reached]:
    with Reached(redis_url, way, Registry()) as pool:
        pool.store.run(scripts.count(COUNTS))
        yield pool


def rows(pool: Reached, *arguments: str) -> list[list[str]]:
    ran = CliRunner().invoke(main, ["stats", *arguments, *pool.way])
    assert ran.exit_code == 0, ran.output
    return [line.split() for line in ran.stdout.splitlines()]


def test_the_table_has_a_row_for_each_type_and_one_for_all(pool: Reached) -> None:
    _, resize, echo, whole = rows(pool)

    assert resize[:4] == ["resize", "0", "30", "1"]
    assert echo[:4] == ["echo", "0", "2", "0"]
    assert whole[:4] == ["all", "0", "32", "1"]
    assert whole[-1].strip(BARS[0]) == BARS[-1]


def test_rows_can_be_queues_or_builds_and_the_tasks_those_of_one_type(pool: Reached) -> None:
    assert [row[0] for row in rows(pool, "--by", "queue")[1:]] == ["images", "default", "all"]
    assert [row[:3] for row in rows(pool, "--by", "build", "--type", "echo", "--range", "90d")[1:]] == [
        ["b1", "0", "2"],
        ["all", "0", "2"],
    ]


def test_programs_get_json(pool: Reached) -> None:
    ran = CliRunner().invoke(main, ["stats", "--queue", "images", "--range", "7d", "--json", *pool.way])

    document = json.loads(ran.stdout)
    assert (document["points"], sum(document["series"][0]["done"])) == (168, 30)


def test_a_wrong_range_is_a_wrong_call(pool: Reached) -> None:
    ran = CliRunner().invoke(main, ["stats", "--range", "2h", *pool.way])

    assert (ran.exit_code, ran.exception is None or isinstance(ran.exception, SystemExit)) == (2, True)
    assert "--range" in ran.output


@pytest.mark.parametrize(("values", "bars"), [([], ""), ([0, 0], "▁▁"), ([0, 1, 7], "▁▂█"), ([1] * 60, "█" * WIDTH)])
def test_a_sparkline_has_a_bar_for_each_group_of_values(values: list[int], bars: str) -> None:
    assert sparkline(values) == bars
