"""/metrics: what the cluster counted, in the formats of Prometheus and OpenMetrics."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse
from redis import Redis

from api.events.metrics import Followers
from api.routes.metrics import MOST_QUEUES, Scrape, exposition
from taskpool.redis import keys as names
from taskpool.redis.keys import COUNTERS
from taskpool.types import QueueInfo, WorkerInfo
from tests.api_client import api, api_process, publish_types
from tests.event_clients import SocketClient, StreamClient
from tests.states import World
from tests.support import until

FOLLOWERS = Followers({"events": 3, "websocket": 1}, [5, 0, 2, *[0] * 15, 1], 4000.5, 7, {"slow": 1, "trimmed": 2})


def scrape(counters: dict[str, int], *, queues: Any = (), workers: Any = ()) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its label values."""
    text, media_type = exposition(Scrape(counters, queues, workers), "")
    assert media_type.startswith("text/plain")
    families = parse(text.decode())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def worker(state: str) -> WorkerInfo:
    return WorkerInfo(
        name="w", host="h", pid=1, state=state, queues=(), pool=None, current=(), done=0, failed=0, working_s=0,
        started_at=None, last_heartbeat=None,
    )  # fmt: skip


def test_attempts_are_counted_by_type_queue_and_outcome() -> None:
    samples = scrape(
        {
            names.field_name(names.TASKS, "done", "echo", "q"): 5,
            names.field_name(names.TASKS, "failed", 'a|b"%\n', "q"): 1,
        }
    )

    assert samples["taskpool_tasks_total", "done", "q", "echo"] == 5
    assert samples["taskpool_tasks_total", "failed", "q", 'a|b"%\n'] == 1


async def test_findings_are_counted_by_rule(redis_url: str) -> None:
    Redis.from_url(redis_url).set("rq:suspended", "1")
    publish_types(redis_url)
    async with api(redis_url) as client:
        await client.post("/tasks", json={"type": "echo", "payload": {"message": 1}, "queue": "nobody"})
        lines = [
            line for line in (await client.get("/metrics")).text.splitlines() if line.startswith("taskpool_findings{")
        ]

    assert {'taskpool_findings{rule="suspended",severity="warning"} 1.0'} <= {*lines}
    assert all(line.count(",") == 1 for line in lines)


def test_buckets_add_up_to_a_histogram() -> None:
    labels = ("echo", "q")
    samples = scrape(
        {
            names.field_name(names.WAIT_BUCKET, *labels, "0.005"): 2,
            names.field_name(names.WAIT_BUCKET, *labels, "1"): 3,
            names.field_name(names.WAIT_BUCKET, *labels, "+Inf"): 1,
            names.field_name(names.WAIT_US_SUM, *labels): 2_500_000,
        }
    )

    buckets = [value for key, value in samples.items() if key[0] == "taskpool_task_wait_seconds_bucket"]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[2], buckets[-1]) == (0, 2, 6)
    assert samples["taskpool_task_wait_seconds_count", "q", "echo"] == 6
    assert samples["taskpool_task_wait_seconds_sum", "q", "echo"] == 2.5


def test_queues_and_workers_are_gauges() -> None:
    queue = QueueInfo(
        name="q", queued=7, in_progress=2, scheduled=1, waiting=3, done=0, failed=0, canceled=0, oldest_s=1.5
    )

    samples = scrape({}, queues=[queue], workers=[worker("busy"), worker("busy"), worker("idle")])

    assert samples["taskpool_queue_depth", "q"] == 7
    assert samples["taskpool_queue_in_progress", "q"] == 2
    assert samples["taskpool_queue_oldest_seconds", "q"] == 1.5
    assert samples["taskpool_workers", "busy"] == 2
    assert samples["taskpool_workers", "suspended"] == 0


async def test_what_is_paused_and_the_states_of_pools_are_gauges(redis_url: str) -> None:
    publish_types(redis_url)
    async with api(redis_url) as client:
        await client.post("/queues/default/pause")
        await client.post("/pause")
        await client.post("/pools/pool-1/drain")
        lines = (await client.get("/metrics")).text.splitlines()

    expected = (
        'taskpool_queue_paused{queue="default"} 1.0',
        "taskpool_paused 1.0",
        'taskpool_pools{state="draining"} 1.0',
    )
    assert {*expected, 'taskpool_pools{state="gone"} 0.0'} <= {*lines}


@pytest.mark.parametrize("field", ["", "tasks", "tasks|done", "wait_bucket", "wait_bucket|a", "something|else", "|||"])
def test_counters_of_another_version_do_no_harm(field: str) -> None:
    samples = scrape({field: 1, names.field_name(names.TASKS, "done", "echo", "q"): 5})

    assert samples["taskpool_tasks_total", "done", "q", "echo"] == 5


def test_the_lag_of_events_is_a_histogram_without_labels() -> None:
    text, _ = exposition(Scrape({}, followers=FOLLOWERS), "")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse(text.decode())
        for sample in family.samples
        if family.name.startswith("taskpool_api_")
    }

    buckets = [value for (name, *_), value in samples.items() if name == "taskpool_api_event_lag_seconds_bucket"]
    assert buckets == [5, 5, *[7] * 16, 8]
    assert samples["taskpool_api_event_lag_seconds_count",] == 8
    assert samples["taskpool_api_event_lag_seconds_sum",] == 4000.5
    assert samples["taskpool_api_events_dropped_total",] == 7
    assert samples["taskpool_api_resyncs_total", "trimmed"] == 2
    assert samples["taskpool_api_streams", "events"] == 3


async def test_clients_that_follow_are_counted_by_kind_until_they_leave(
    redis_url: str, world: World, tmp_path: Path
) -> None:
    running = world.start("a")

    def figures(url: str) -> dict[str, float]:
        text = httpx.get(f"{url}/metrics", timeout=30).text
        return {name: float(value) for name, value in re.findall(r"^taskpool_api_(\S+) (\S+)$", text, re.MULTILINE)}

    def streams(url: str) -> dict[str, float]:
        found = {name: value for name, value in figures(url).items() if name.startswith("streams")}
        return {name.split('"')[1]: value for name, value in found.items()}

    with api_process(redis_url, tmp_path / "log") as (_, url):
        before = streams(url)
        paths = ("/tasks/a/events", "/events", "/tasks/a/logs?follow=1&format=events", "/live")
        clients = [await StreamClient.follow(url, path) for path in paths]
        socket = await SocketClient.follow(url, task="a")
        await until(lambda: "live" in socket.notices and "snapshot" in clients[0].notices)
        during = streams(url)
        world.finish(running)
        await until(lambda: socket.steps and clients[0].steps and clients[1].steps)
        lags = figures(url)
        for client in (*clients, socket):
            await client.end()
        await until(lambda: not any(streams(url).values()))

    assert before == dict.fromkeys(("events", "log", "live", "websocket"), 0)
    assert during == {"events": 2, "log": 1, "live": 1, "websocket": 1}
    assert lags["event_lag_seconds_count"] == lags['event_lag_seconds_bucket{le="3600"}'] == 1
    assert 0 <= lags["event_lag_seconds_sum"] < 3600


async def test_one_scrape_has_the_whole_cluster(redis_url: str, redis: Redis) -> None:
    publish_types(redis_url)
    redis.hset(COUNTERS, names.field_name(names.TASKS, "done", "echo", "default"), 9)
    async with api(redis_url) as client:
        await client.post("/tasks", json={"type": "echo", "payload": {"message": 1}})

        plain = await client.get("/metrics")
        open_metrics = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})

    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert 'taskpool_tasks_total{outcome="done",queue="default",type="echo"} 9.0' in plain.text
    assert 'taskpool_queue_depth{queue="default"} 1.0' in plain.text
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")


async def test_the_busiest_queues_have_lines_of_their_own_and_the_others_one_together(
    redis_url: str, redis: Redis
) -> None:
    count = 1300
    pipeline = redis.pipeline()
    pipeline.sadd("rq:queues", "rq:queue:(other)", *[f"rq:queue:q{n}" for n in range(count)])
    for n in range(count):
        pipeline.rpush(f"rq:queue:q{n}", *[f"t{n}"] * (1 + n % 3))
    pipeline.zadd("rq:wip:q0", {f"x{n}": 1 for n in range(50)})
    pipeline.zadd("rq:scheduled:q1", {f"x{n}": 1 for n in range(40)})
    pipeline.zadd("rq:deferred:q3", {"x": 1})
    pipeline.hset("rq:job:t0", "enqueued_at", "2026-01-01T00:00:00.000Z")
    pipeline.set("rq:scheduled:q5", "no registry")
    pipeline.execute()

    async with api(redis_url) as client:
        families = list(parse((await client.get("/metrics")).text))

    def values(name: str) -> dict[str, float]:
        (family,) = [each for each in families if each.name == name]
        return {sample.labels["queue"]: sample.value for sample in family.samples}

    depth = values("taskpool_queue_depth")
    assert len(depth) == MOST_QUEUES + 1
    assert (depth["q0"], depth["q1"]) == (1, 2)
    assert sum(depth.values()) == sum(1 + n % 3 for n in range(count))
    assert values("taskpool_queue_in_progress")["q0"] == 50
    assert values("taskpool_queue_scheduled")["q1"] == 40
    assert sum(values("taskpool_queue_waiting").values()) == 1
    assert values("taskpool_queue_oldest_seconds")["q0"] > 0


async def test_few_queues_have_a_line_each(redis_url: str, redis: Redis) -> None:
    redis.sadd("rq:queues", *[f"rq:queue:q{n}" for n in range(MOST_QUEUES)])
    async with api(redis_url) as client:
        text = (await client.get("/metrics")).text

    assert text.count("taskpool_queue_depth{") == MOST_QUEUES
    assert "(other)" not in text


def many(types: int) -> dict[str, int]:
    """The totals of so many types, as after some hours."""
    fields: dict[str, int] = {}
    for number in range(types):
        labels = (f"type-{number}", "default")
        fields[names.field_name(names.SUBMITTED, *labels)] = 1000
        for outcome in ("done", "failed", "retried"):
            fields[names.field_name(names.TASKS, outcome, *labels)] = 100
        for metric in (names.WAIT_BUCKET, names.RUN_BUCKET):
            fields |= {names.field_name(metric, *labels, bound): 7 for bound in names.BUCKET_LABELS[:8]}
        fields |= {names.field_name(metric, *labels): 12345 for metric in (names.WAIT_US_SUM, names.RUN_US_SUM)}
    return fields


async def test_a_scrape_with_a_thousand_types_keeps_no_other_request_waiting(redis_url: str, redis: Redis) -> None:
    held: Any = many(1000)
    redis.hset(COUNTERS, mapping=held)  # tests/loop_watch.py fails the test if it does
    async with api(redis_url) as client:
        text = (await client.get("/metrics")).text

    assert text.count("taskpool_tasks_submitted_total{") == 1000
    assert text.count("taskpool_task_run_seconds_bucket{") == 1000 * len(names.BUCKET_LABELS)


def test_both_formats_say_the_same() -> None:
    odd = {names.field_name(names.RUN_BUCKET, 'a|b"\\%\n', "q", "+Inf"): 1}
    state = Scrape(many(2) | odd, followers=FOLLOWERS)

    def samples(families: Any) -> dict[tuple[str, ...], float]:
        return {
            (each.name, *sorted(each.labels.values())): each.value for family in families for each in family.samples
        }

    parse_typed: Any = parse_open
    plain = samples(parse(exposition(state, "")[0].decode()))
    open_metrics = samples(parse_typed(exposition(state, "application/openmetrics-text; version=1.0.0")[0].decode()))

    canonical = {(name, *(f"{float(each)}" if each[0].isdigit() else each for each in labels)): value
                 for (name, *labels), value in plain.items()}  # fmt: skip
    assert open_metrics in (plain, canonical)
    assert plain["taskpool_task_run_seconds_count", 'a|b"\\%\n', "q"] == 1


def test_promtool_finds_nothing_wrong_with_the_metrics() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool isn't installed; it is in Debian's package `prometheus`")
    queue = QueueInfo(name="q", queued=7, in_progress=2, scheduled=1, waiting=3, done=0, failed=0, canceled=0)
    counters = many(2) | {"webhooks|dead": 3}
    text, _ = exposition(Scrape(counters, [queue], [worker("busy")], followers=FOLLOWERS), "")

    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
