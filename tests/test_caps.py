"""What a project may use of queues, tags, keys and webhooks is bounded; what is in use already always works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import httpx
import pytest
from msgspec.structs import replace

from api.app import create_app
from api.auth.caller import anonymous
from api.http.problems import Problem
from taskpool import CapReached, Registry, TaskPool, TaskSpec
from taskpool.access.api_key import Scope
from taskpool.redis import keys, scripts
from taskpool.redis.add_script import Added, Capped, Caps, NewTask, Once
from taskpool.settings import Settings
from tests.api_client import api, publish_types
from tests.keys import bearer, make_key
from tests.states import World, new_task

CAPS: Final = Caps(queues=2, tags=2, unique_keys=2, idempotency_keys=2)
ECHO: Final[Mapping[str, Any]] = {"type": "echo", "payload": {"message": "hi"}}
NEW_NAMES: Final[Mapping[str, Any]] = {
    "queues": lambda n: {"queue": f"q{n}"},
    "tags": lambda n: {"tags": [f"t{n}"]},
    "unique_keys": lambda n: {"unique_key": f"u{n}"},
}


def of_project(id: str, project: str = "p", caps: Caps = CAPS, **options: Any) -> NewTask:
    return replace(new_task(id, project=project, **options), caps=caps)


def add(world: World, *tasks: NewTask, once: Once | None = None) -> Added:
    return world.run(scripts.add(tasks, once))


@pytest.mark.parametrize("kind", NEW_NAMES)
def test_a_new_name_beyond_the_cap_is_refused_and_changes_nothing(world: World, kind: str) -> None:
    options = NEW_NAMES[kind]
    for n in range(2):
        assert add(world, of_project(f"a{n}", **options(n))).statuses == ("queued",)
    before = world.snapshot()

    assert add(world, of_project("b", **options(2))).capped == Capped(kind, "p", 2)
    batch = [
        of_project("c", **{**options(1), "unique_key": "other"} if kind != "unique_keys" else {}),
        of_project("d", **options(3)),
    ]
    assert add(world, *batch).capped == Capped(kind, "p", 2)
    assert world.since(before) == {}

    assert add(world, of_project("e", "another", **options(2))).statuses == ("queued",)
    if kind != "unique_keys":
        assert add(world, of_project("f", **options(1))).statuses == ("queued",)
    assert add(world, of_project("g", **options(2))).statuses == ("queued",) or kind == "unique_keys"


def test_a_batch_fits_as_a_whole_or_is_refused_as_a_whole(world: World) -> None:
    before = world.snapshot()

    refused = add(world, *[of_project(f"a{n}", queue=f"q{n}") for n in range(3)])

    assert refused.capped == Capped("queues", "p", 2)
    assert world.since(before) == {}
    assert add(world, *[of_project(f"b{n}", queue=f"q{n % 2}") for n in range(9)]).statuses == ("queued",) * 9


def test_each_way_of_waiting_counts_its_queue_and_a_task_that_is_there_does_not(world: World) -> None:
    add(world, of_project("a", queue="q1", delay_s=100, unique_key="u"))
    add(world, of_project("b", queue="q2", depends_on=["a"]))

    assert add(world, of_project("c", queue="q3", delay_s=100)).capped is not None
    assert add(world, of_project("d", queue="q3", depends_on=["a"])).capped is not None
    there = add(world, of_project("e", queue="q3", unique_key="u", on_conflict="return"))
    assert there.existing == {0: "a"}


@pytest.mark.parametrize("kind", NEW_NAMES)
def test_names_that_are_gone_make_room(world: World, kind: str) -> None:
    for n in range(2):
        add(world, of_project(f"a{n}", **NEW_NAMES[kind](n)))
    for n in range(2):
        world.cancel(f"a{n}")
        world.run(scripts.purge(f"a{n}"))
    world.redis.delete("rq:queues")  # as if they were forgotten

    for n in range(2, 4):
        assert add(world, of_project(f"b{n}", **NEW_NAMES[kind](n))).statuses == ("queued",)
    assert add(world, of_project("c", **NEW_NAMES[kind](4))).capped is not None
    assert world.redis.scard(f"taskpool:used:{kind}:p") == 2


def test_tasks_without_a_project_share_ten_times_as_much(world: World) -> None:
    most = 2 * keys.WITHOUT_PROJECT
    for n in range(most):
        assert add(world, replace(new_task(f"a{n}", queue=f"q{n}"), caps=CAPS)).statuses == ("queued",)

    assert add(world, replace(new_task("b", queue="more"), caps=CAPS)).capped == Capped("queues", "", most)
    assert add(world, of_project("c", queue="more")).statuses == ("queued",)
    assert add(world, replace(new_task("d", queue="more"), caps=CAPS)).statuses == ("queued",)


def test_idempotency_keys_are_counted_for_as_long_as_they_are_kept(world: World) -> None:
    def once(n: int) -> Once:
        return Once.of("project p", f"key-{n}", b"")

    for n in range(2):
        add(world, of_project(f"a{n}"), once=once(n))
    before = world.snapshot()

    assert add(world, of_project("b"), once=once(2)).capped == Capped("idempotency_keys", "p", 2)
    assert world.since(before) == {}
    assert add(world, of_project("c"), once=once(0)).replayed == ("a0",)
    assert add(world, of_project("d")).statuses == ("queued",)
    assert add(world, of_project("e", "another"), once=once(2)).statuses == ("queued",)
    assert 86_000 < world.redis.ttl("taskpool:once:count:p") <= 86_400

    world.redis.delete("taskpool:once:count:p")  # a day later
    assert add(world, of_project("f"), once=once(3)).statuses == ("queued",)


def test_zero_is_no_cap_and_a_used_name_costs_no_command_more(world: World) -> None:
    for n in range(30):
        assert add(world, of_project(f"a{n}", caps=Caps(), queue=f"q{n}", tags=[f"t{n}"])).statuses == ("queued",)
    assert world.redis.keys("taskpool:used:*") == []

    def commands(*tasks: NewTask) -> int:
        before = world.redis.info("commandstats")
        add(world, *tasks)
        after = world.redis.info("commandstats")
        return sum(
            after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after if name != "cmdstat_info"
        )

    plain = [replace(new_task(f"plain{n}"), caps=CAPS) for n in range(2)]
    commands(plain[0])  # the script is loaded
    assert commands(plain[1]) == 12
    assert commands(of_project("b", queue="q1")) == commands(of_project("c", caps=Caps(), queue="q1"))


def test_the_error_names_the_cap_and_its_setting(redis_url: str) -> None:
    settings = Settings(max_queues=1)
    with TaskPool(redis_url, registry=Registry(builtins=True), settings=settings) as pool:
        pool.add_tasks([TaskSpec(type="echo", payload={"message": 1}, queue=f"q{n}") for n in range(10)])

        with pytest.raises(CapReached, match="10 queues, as many as TASKPOOL_MAX_QUEUES allows") as refused:
            pool.add_task("echo", {"message": 1}, queue="more")

    assert (refused.value.setting, refused.value.most) == ("TASKPOOL_MAX_QUEUES", 10)


async def test_the_api_answers_403_with_the_cap_and_its_setting(redis_url: str) -> None:
    publish_types(redis_url)
    project = bearer(make_key(redis_url, project="p"))
    admin = bearer(make_key(redis_url, "root", Scope.ADMIN))
    async with api(redis_url, max_queues=1, max_idempotency_keys=1, max_webhooks=1) as client:

        async def refused(path: str, document: Mapping[str, Any], setting: str, **headers: str) -> httpx.Response:
            answer = await client.post(path, json=document, headers={**project, **headers})
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:taskpool:problem:cap-reached")
            assert (answer.json()["cap"], answer.json()["setting"]) == (1, setting)
            assert "'p'" in answer.json()["detail"]
            return answer

        hook = {"url": "https://a.example/", "project": "p"}
        assert (await client.post("/tasks", json=ECHO, headers=project | {"idempotency-key": "a"})).status_code == 202
        assert (await client.post("/webhooks", json=hook, headers=admin)).status_code == 201

        more = {**ECHO, "queue": "more"}
        await refused("/tasks", more, "TASKPOOL_MAX_QUEUES")
        await refused("/tasks/batch", {"tasks": [ECHO, more]}, "TASKPOOL_MAX_QUEUES")
        await refused("/tasks", ECHO, "TASKPOOL_MAX_IDEMPOTENCY_KEYS", **{"idempotency-key": "b"})
        await refused("/webhooks", hook, "TASKPOOL_MAX_WEBHOOKS", **admin)
        assert (await client.post("/tasks", json=ECHO, headers=project)).status_code == 202


async def test_one_caller_cannot_take_all_streams(redis_url: str) -> None:
    app = create_app(Settings(redis_url=redis_url, max_streams_per_key=2, max_streams_per_address=3))
    streams = app.state.streams
    greedy = replace(anonymous("192.0.2.1"), key="greedy")
    other = replace(greedy, key="other")
    async with app.router.lifespan_context(app):
        outlets = [streams.admit(greedy) for _ in range(2)]

        with pytest.raises(Problem, match=r"this key has 2 streams open .*TASKPOOL_MAX_STREAMS_PER_KEY") as refused:
            streams.admit(greedy)
        streams.admit(other)
        with pytest.raises(Problem, match=r"this address has 3 streams open .*TASKPOOL_MAX_STREAMS_PER_ADDRESS"):
            streams.admit(anonymous("192.0.2.1"))
        streams.admit(anonymous("192.0.2.2"))
        streams.release(outlets[0])
        streams.admit(greedy)

    answer = refused.value.response()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
