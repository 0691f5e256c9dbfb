"""GET /stats and /types/{name}/durations: the history over HTTP."""

from __future__ import annotations

from taskpool.redis import scripts
from tests.api_client import api
from tests.states import World

FIELDS = {
    "tasks|done|resize|images|b1": 3,
    "tasks|failed|resize|images|b2": 1,
    "tasks|done|echo|default|b1": 2,
    "wait_bucket|resize|images|0.1|b1": 4,
    "run_bucket|resize|images|0.5|b1": 3,
    "run_bucket|resize|images|+Inf|b2": 1,
    "wait_us_sum|resize|images|b1": 200_000,
    "run_us_sum|resize|images|b1": 1_000_000,
}


async def test_what_was_counted_is_in_the_last_point(redis_url: str, world: World) -> None:
    world.run(scripts.count(FIELDS))
    world.add("a", type="echo")
    async with api(redis_url) as client:
        for range, points, step_s in (("1h", 60, 60), ("24h", 1440, 60), ("7d", 168, 3600), ("90d", 90, 86400)):
            answer = (await client.get("/stats", params={"range": range})).json()

            assert (answer["points"], answer["step_s"], answer["is_partial"]) == (points, step_s, True)
            (series,) = answer["series"]
            overall = series.pop("durations")
            assert {len(values) for values in series.values()} == {points}
            assert overall.keys() == {"wait_p50_ms", "wait_p95_ms", "run_p50_ms", "run_p95_ms"}
            assert 250 < overall["run_p50_ms"] < 500  # of 5 attempts in two types
            assert [sum(series[name][-2:]) for name in ("submitted", "done", "failed", "crashed")] == [1, 5, 1, 0]
            assert series["wait_p50_ms"][0] is None
            assert any(series["wait_p50_ms"][-2:])


async def test_series_are_those_of_types_queues_or_builds(redis_url: str, world: World) -> None:
    world.run(scripts.count(FIELDS))
    async with api(redis_url) as client:

        async def done(**query: str) -> dict[str | None, int]:
            series = (await client.get("/stats", params=query)).json()["series"]
            return {each.get(query.get("by", "")): sum(each["done"]) for each in series}

        assert await done(by="type") == {"resize": 3, "echo": 2}
        assert await done(by="queue") == {"images": 3, "default": 2}
        assert await done(by="build") == {"b1": 5, "b2": 0}
        assert await done(by="build", type="echo") == {"b1": 2}
        assert await done(queue="images") == {None: 3}
        assert await done(type="nothing") == {None: 0}


async def test_a_type_has_durations(redis_url: str, world: World) -> None:
    world.run(scripts.count(FIELDS))
    async with api(redis_url) as client:
        resize = (await client.get("/types/resize/durations")).json()
        unknown = (await client.get("/types/nothing/durations")).json()

    assert resize["count"] == 4
    assert 250 < resize["p50_ms"] < 500
    assert resize["p99_ms"] == 3_600_000
    assert [0.5, 3] in resize["buckets"]
    assert resize["buckets"][-1] == [None, 1]
    assert (unknown["count"], unknown["p50_ms"]) == (0, None)


async def test_what_is_asked_for_must_exist(redis_url: str) -> None:
    async with api(redis_url) as client:
        for query in ("range=2h", "by=worker", "type=", "wrong=1"):
            answer = await client.get(f"/stats?{query}")

            assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (400, "invalid-query")
