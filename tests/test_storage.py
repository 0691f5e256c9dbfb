"""What fills Redis, by task type: over HTTP, in Python and with `taskpool storage`."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from taskpool import TaskPool
from taskpool.access.api_key import Scope
from taskpool.cli.__main__ import main
from taskpool.operations.insight import storage
from taskpool.redis import scripts
from taskpool.types.fleet import TypeStorage
from tests.api_client import api
from tests.keys import bearer, make_key
from tests.states import World, new_task


def fill(world: World) -> None:
    """Ten large tasks, and twenty small ones."""
    world.run(
        scripts.add([new_task(f"l{at}", type="large", payload={"text": os.urandom(5000).hex()}) for at in range(10)])
    )
    world.run(scripts.add([new_task(f"s{at}", type="small") for at in range(20)]))


def test_the_types_that_use_most_memory_come_first(world: World) -> None:
    fill(world)

    large, small = world.store.carry_out(storage.storage())

    assert (large.type, large.tasks, small.type, small.tasks) == ("large", 10, "small", 20)
    assert large.bytes is not None
    assert 10 * 5000 < large.bytes < 10 * 50_000
    assert small.bytes is not None
    assert 0 < small.bytes < large.bytes


def test_types_with_few_records_are_only_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SAMPLED", 1)
    fill(world)

    found = world.store.carry_out(storage.storage())

    assert [(each.type, each.bytes is None) for each in found] == [("small", False), ("large", True)]


def test_a_record_that_is_gone_counts_nothing(world: World) -> None:
    world.add("a", type="work")
    world.redis.delete("rq:job:a")

    assert world.store.carry_out(storage.storage()) == [TypeStorage(type="work", tasks=1, bytes=0)]


async def test_the_api_and_the_command_show_the_same(world: World) -> None:
    fill(world)
    with TaskPool(world.url) as pool:
        expected = pool.storage()

    shown = CliRunner().invoke(main, ["storage", "--redis-url", world.url], catch_exceptions=False)
    async with api(world.url) as client:
        document = (await client.get("/storage")).json()

    assert [(each["type"], each["tasks"], each["bytes"]) for each in document["types"]] == [
        (each.type, each.tasks, each.bytes) for each in expected
    ]
    assert [line.split()[:2] for line in shown.output.splitlines()[1:]] == [["large", "10"], ["small", "20"]]


async def test_a_key_of_a_project_may_not_see_what_others_keep(world: World) -> None:
    key = make_key(world.url, "reader", Scope.READ, project="shop")
    async with api(world.url) as client:
        assert (await client.get("/storage", headers=bearer(key))).status_code == 403
