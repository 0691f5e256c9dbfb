"""Which types there are, by what pools announced: who may be submitted, what fits, and how old the news may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from msgspec import structs

from taskpool.errors import InvalidPayload, UnknownType
from taskpool.operations import catalog
from taskpool.operations.catalog import Catalogue, PoolInfo
from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan
from taskpool.types import TypeInfo
from tests.states import World

SCHEMA = {
    "type": "object",
    "properties": {
        "width": {"type": "integer", "minimum": 1},
        "sizes": {"type": "array", "items": {"type": "number"}},
        "at": {"type": "string", "format": "date-time"},
        "a/b~c": {"type": "string"},
    },
    "required": ["width"],
    "additionalProperties": False,
}
RESIZE = TypeInfo(name="resize", queue="images", schema=SCHEMA, description="Make it small.", timeout_s=5)
ECHO = TypeInfo(name="echo", queue="default", schema={})
POOL = PoolInfo(id="p1", host="h", pid=7, queues=("default",), types=("echo", "resize"), workers=("w1",))


def publish(world: World, *types: TypeInfo, pool: PoolInfo = POOL, ttl_s: int = 100) -> None:
    world.run(catalog.publish(pool, types, ttl_s=ttl_s))


def carry_out(world: World, plan: Plan[Any]) -> Any:
    return world.store.carry_out(plan)


def round_trips(world: World, plan: Plan[Any]) -> int:
    """How often a plan asks Redis."""
    count = 0
    try:
        calls = next(plan)
        while True:
            count += 1
            calls = plan.send(world.store.run_many(calls))
    except StopIteration:
        return count


# --- who serves what -----------------------------------------------------------------------------------------


def test_types_are_listed_by_name_with_the_pools_that_serve_them(world: World) -> None:
    publish(world, RESIZE, ECHO)
    publish(world, ECHO, pool=replace(POOL, id="p2", types=("echo",)))

    echo, resize = carry_out(world, catalog.types())

    assert (echo.name, sorted(echo.served_by)) == ("echo", ["p1", "p2"])
    assert structs.replace(resize, last_seen_ms=None) == structs.replace(RESIZE, served_by=("p1",))
    assert abs(resize.last_seen_ms / 1000 - world.redis.time()[0]) < 10


def test_live_pools_are_listed_as_they_announced_themselves(world: World) -> None:
    publish(world, pool=POOL)

    assert carry_out(world, catalog.pools()) == [POOL]


def test_nothing_is_listed_where_nothing_was_announced(world: World) -> None:
    assert carry_out(world, catalog.pools()) == []
    assert carry_out(world, catalog.types()) == []


def test_a_pool_that_retired_serves_nothing_and_its_types_stay_known(world: World) -> None:
    publish(world, RESIZE)

    carry_out(world, catalog.retire("p1"))

    assert carry_out(world, catalog.pools()) == []
    assert [each.served_by for each in carry_out(world, catalog.types())] == [()]
    assert not world.redis.exists(keys.POOL + "p1", keys.POOLS)


def test_a_pool_that_fell_silent_serves_nothing(world: World) -> None:
    publish(world, RESIZE)
    world.redis.delete(keys.POOL + "p1")  # as its expiry does

    assert carry_out(world, catalog.pools()) == []
    assert [each.served_by for each in carry_out(world, catalog.types())] == [()]


def test_unknown_fields_of_a_newer_version_are_ignored(world: World) -> None:
    publish(world, ECHO)
    newer = {"name": "echo", "queue": "default", "schema": {}, "from_the_future": 1}
    world.redis.hset(keys.TYPES, "echo", msgspec.json.encode(newer))

    assert carry_out(world, Catalogue(type_grace_s=100).find(["echo"]))["echo"].name == "echo"


# --- a reader's copy -----------------------------------------------------------------------------------------


def test_known_types_are_found(world: World) -> None:
    publish(world, RESIZE, ECHO)

    assert carry_out(world, Catalogue(type_grace_s=100).find(["echo", "resize"])) == {"echo": ECHO, "resize": RESIZE}


def test_what_was_read_a_moment_ago_is_not_read_again(world: World) -> None:
    publish(world, ECHO, RESIZE)
    copy = Catalogue(type_grace_s=100)

    assert [round_trips(world, copy.find(["echo"])) for _ in range(3)] == [1, 0, 0]
    assert round_trips(world, copy.find(["resize", "echo"])) == 0


def test_a_type_announced_after_the_last_look_is_found_at_once(world: World) -> None:
    publish(world, ECHO)
    copy = Catalogue(type_grace_s=100)
    carry_out(world, copy.find(["echo"]))
    publish(world, RESIZE)

    assert carry_out(world, copy.find(["resize"])) == {"resize": RESIZE}


def test_an_old_copy_is_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(world, ECHO)
    copy = Catalogue(type_grace_s=100)
    carry_out(world, copy.find(["echo"]))
    publish(world, structs.replace(ECHO, queue="elsewhere"))
    monkeypatch.setattr(catalog, "FRESH_S", 0)

    assert carry_out(world, copy.find(["echo"]))["echo"].queue == "elsewhere"


def test_a_payload_is_checked_with_the_schema_of_the_latest_copy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "FRESH_S", 0)
    publish(world, ECHO)
    copy = Catalogue(type_grace_s=100)
    carry_out(world, copy.find(["echo"]))
    copy.check("echo", {"anything": 1})
    publish(world, structs.replace(ECHO, schema={"type": "string"}))
    carry_out(world, copy.find(["echo"]))

    with pytest.raises(InvalidPayload):
        copy.check("echo", {"anything": 1})


def test_an_unknown_type_names_its_likes_best_first(world: World) -> None:
    publish(world, RESIZE, ECHO, structs.replace(ECHO, name="resize_all"))

    with pytest.raises(UnknownType) as unknown:
        carry_out(world, Catalogue(type_grace_s=100).find(["echo", "resiz"]))

    assert (unknown.value.type, unknown.value.near) == ("resiz", ("resize", "resize_all"))
    assert unknown.value.last_served_ms is None
    assert [fault.pointer for fault in unknown.value.errors] == ["/type"]


def test_a_type_that_no_worker_has_served_for_long_is_refused_as_known(world: World) -> None:
    publish(world, ECHO)
    world.redis.zadd(keys.TYPES_SEEN, {"echo": world.redis.time()[0] * 1000 - 101_000})

    with pytest.raises(UnknownType, match="no live worker serves it") as unknown:
        carry_out(world, Catalogue(type_grace_s=100).find(["echo"]))

    assert unknown.value.last_served_ms is not None


def test_a_type_stays_good_for_a_while_after_its_last_pool_went(world: World) -> None:
    publish(world, ECHO)
    carry_out(world, catalog.retire("p1"))
    world.redis.zadd(keys.TYPES_SEEN, {"echo": world.redis.time()[0] * 1000 - 50_000})

    assert carry_out(world, Catalogue(type_grace_s=100).find(["echo"]))


def test_the_grace_is_measured_by_redis_whatever_this_hosts_clock_says(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(world, ECHO)
    monkeypatch.setattr("time.time", lambda: 0.0)

    assert carry_out(world, Catalogue(type_grace_s=100).find(["echo"]))


# --- what fits -----------------------------------------------------------------------------------------------


@pytest.fixture
def copy(world: World) -> Catalogue:
    """A reader's copy that knows `resize`."""
    publish(world, RESIZE)
    copy = Catalogue(type_grace_s=100)
    carry_out(world, copy.find(["resize"]))
    return copy


@pytest.mark.parametrize("payload", [{"width": 1}, {"width": 5, "sizes": [1, 2.5], "at": "2026-01-01T00:00:00Z"}])
def test_a_payload_that_fits_is_let_through(copy: Catalogue, payload: Any) -> None:
    copy.check("resize", payload)


@pytest.mark.parametrize(
    ("payload", "pointers"),
    [
        ({}, ["/width"]),
        ({"width": 0}, ["/width"]),
        ({"width": "5"}, ["/width"]),
        ({"width": 1, "heigth": 2, "depth": 3}, ["/depth", "/heigth"]),
        ({"width": 1, "sizes": [1, "2", None]}, ["/sizes/1", "/sizes/2"]),
        ({"width": 1, "a/b~c": 5}, ["/a~1b~0c"]),
        ({"width": 1, "at": "yesterday"}, ["/at"]),
        ({"sizes": "no", "at": "no"}, ["/at", "/sizes", "/width"]),
        ([], [""]),
        (None, [""]),
        ("text", [""]),
    ],
)
def test_each_fault_of_a_payload_has_its_pointer(copy: Catalogue, payload: Any, pointers: list[str]) -> None:
    with pytest.raises(InvalidPayload) as refused:
        copy.check("resize", payload, "/3/payload")

    found = sorted(fault.pointer for fault in refused.value.errors)
    assert found == [f"/3/payload{pointer}" for pointer in pointers]
    assert all(fault.detail for fault in refused.value.errors)


def test_no_more_than_twenty_faults_are_reported(copy: Catalogue) -> None:
    with pytest.raises(InvalidPayload) as refused:
        copy.check("resize", {"width": 1, "sizes": ["x"] * 100})

    assert len(refused.value.errors) == 20


def test_a_fault_of_a_large_value_has_a_short_text(copy: Catalogue) -> None:
    with pytest.raises(InvalidPayload) as refused:
        copy.check("resize", {"width": "x" * 100_000})

    assert len(refused.value.errors[0].detail) < 300


MANY: dict[str, Any] = {"width": 1, "sizes": [1] * 5000}


@pytest.mark.parametrize(
    ("payload", "pointers"),
    [
        ({**MANY, "sizes": [1] * 3333 + ["x"] + [1] * 3333}, ["/sizes/3333"]),
        ({**MANY, "sizes": ["x"] * 60_000}, [f"/sizes/{at}" for at in range(20)]),
        ({**MANY, "width": 0}, ["/width"]),
        ({**MANY, "width": None, "heigth": 2}, ["/heigth", "/width"]),
        ({"sizes": [1] * 5000}, ["/width"]),
        ({"width": 1} | {f"f{at:05}": 0 for at in range(20_000)}, [f"/f{at:05}" for at in range(20)]),
        ({f"f{at:05}": 0 for at in range(20_000)} | {"width": 1}, [f"/f{at:05}" for at in range(20)]),
        ({"width": 1, "sizes": [1] * 50_000 + ["x"]}, [""]),
        ([1] * 20_000, [""]),
    ],
)
def test_some_faults_are_reported_of_a_payload_too_large_to_find_all(
    copy: Catalogue, payload: Any, pointers: list[str]
) -> None:
    with pytest.raises(InvalidPayload) as refused:
        copy.check("resize", payload, "")

    found = sorted([fault.pointer for fault in refused.value.errors], key=lambda each: (len(each), each))
    assert found == sorted(pointers, key=lambda each: (len(each), each))


def test_something_that_json_cannot_hold_is_a_fault(copy: Catalogue) -> None:
    with pytest.raises(InvalidPayload):
        copy.check("resize", {"width": object()})


def test_a_schema_that_the_reader_cannot_use_is_no_fault_of_the_payload(world: World) -> None:
    publish(
        world,
        structs.replace(ECHO, schema={"type": "object", "properties": {"a": {"type": "string", "pattern": "^a\\Z"}}}),
    )
    copy = Catalogue(type_grace_s=100)

    assert carry_out(world, copy.find(["echo"]))
    copy.check("echo", {"a": "b"})


def test_a_call_of_the_catalogue_may_be_repeated() -> None:
    call = catalog.publish(POOL, [ECHO], ttl_s=5)

    assert isinstance(call, Call)
    assert call.again
