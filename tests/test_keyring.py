"""API keys in Redis: only hashes of secrets, changes that can't undo each other, each of them in the audit."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from taskpool.access import keyring
from taskpool.access.api_key import TOKEN, ApiKey, KeySpec, Scope, digest_of
from taskpool.access.audit import read_audit
from taskpool.errors import InvalidKey, KeyNotFound
from taskpool.redis.embedded import RedisServer
from taskpool.redis.store import Store
from tests.keys import ME
from tests.states import World


def create(world: World, name: str = "k", **options: Any) -> tuple[ApiKey, str]:
    return world.store.carry_out(keyring.create(KeySpec(name=name, **options), ME))


def accepts(world: World, text: str, *, later_ms: int = 0) -> bool:
    found = TOKEN.fullmatch(text)
    assert found is not None
    key, now_ms = world.store.run_many(keyring.find(found[1]))
    return key is not None and key.takes(digest_of(found[2]), now_ms + later_ms)


def entries(world: World) -> list[tuple[str, str, str]]:
    page = world.store.carry_out(read_audit())
    return [(each.entry.what, each.entry.about, each.entry.name) for each in page.items]


def test_a_new_key_is_found_by_its_id_and_opens_by_its_secret(world: World) -> None:
    key, text = create(world, scopes=[Scope.READ], project="shop", types=["echo"], queues=["a"], expires_in_s=60)

    found, _ = world.store.run_many(keyring.find(key.id))

    assert found == key
    assert (key.scopes, key.project, key.types, key.queues) == ((Scope.READ,), "shop", ("echo",), ("a",))
    assert key.expires_ms == key.created_ms + 60_000
    assert accepts(world, text)
    assert not accepts(world, text[:-1] + ("A" if text[-1] != "A" else "B"))


def test_redis_never_sees_a_secret(world: World, redis_url: str) -> None:
    with Redis.from_url(redis_url) as spy, spy.monitor() as monitor:
        key, text = create(world)
        _, newer = world.store.carry_out(keyring.rotate(key.id, ME))
        world.run(keyring.note_use(key.id))
        world.redis.echo("over")
        seen: list[str] = []
        while not seen or "over" not in seen[-1]:
            seen.append(str(monitor.next_command()["command"]))

    stored = repr(world.snapshot()) + "".join(seen)
    assert digest_of(TOKEN.fullmatch(newer)[2]) in stored  # type: ignore[index]
    for secret in (text.split("_", 2)[2], newer.split("_", 2)[2]):
        assert secret not in stored


def test_after_a_rotation_both_secrets_open_until_the_grace_is_over(world: World) -> None:
    key, old = create(world)

    rotated, new = world.store.carry_out(keyring.rotate(key.id, ME, grace_s=60))

    assert rotated.id == key.id
    assert accepts(world, new)
    assert accepts(world, old)
    assert accepts(world, new, later_ms=61_000)
    assert not accepts(world, old, later_ms=61_000)


def test_without_a_grace_the_old_secret_is_worth_nothing_at_once(world: World) -> None:
    key, old = create(world)

    _, new = world.store.carry_out(keyring.rotate(key.id, ME, grace_s=0))

    assert (accepts(world, old), accepts(world, new)) == (False, True)


def test_a_second_rotation_ends_what_the_first_left_good(world: World) -> None:
    key, first = create(world)
    _, second = world.store.carry_out(keyring.rotate(key.id, ME))

    _, third = world.store.carry_out(keyring.rotate(key.id, ME))

    assert [accepts(world, text) for text in (first, second, third)] == [False, True, True]


def test_a_revoked_key_is_gone_but_for_the_audit(world: World) -> None:
    key, text = create(world)
    world.run(keyring.note_use(key.id))

    world.store.carry_out(keyring.revoke(key.id, ME))

    assert not accepts(world, text)
    assert world.run(keyring.note_use(key.id)) == "gone"
    assert {name.partition(" ")[0] for name in world.snapshot()} == {"taskpool:audit"}


def test_whether_a_key_is_the_first_is_decided_when_it_is_stored(world: World) -> None:
    making = keyring.create(KeySpec(name="k"), ME, admin_first=True)
    change = making.send(world.store.run_many(next(making)))

    assert world.store.run_many(change) == ["first"]
    assert world.snapshot() == {}

    create(world, scopes=[Scope.ADMIN])
    assert world.store.run_many(change) == ["ok"]


def test_a_first_key_made_over_http_does_not_expire(world: World) -> None:
    spec = KeySpec(name="k", scopes=[Scope.ADMIN], expires_in_s=60)

    with pytest.raises(InvalidKey, match="never expire"):
        world.store.carry_out(keyring.create(spec, ME, admin_first=True))
    assert world.snapshot() == {}

    create(world, scopes=[Scope.ADMIN])
    world.store.carry_out(keyring.create(spec, ME, admin_first=True))


def test_a_rotation_that_read_a_key_before_its_revocation_does_not_bring_it_back(world: World) -> None:
    key, _ = create(world)
    rotating = keyring.rotate(key.id, ME)
    change = rotating.send(world.store.run_many(next(rotating)))
    world.store.carry_out(keyring.revoke(key.id, ME))

    assert world.store.run_many(change) == ["changed"]

    assert world.store.carry_out(keyring.listed()) == []


@pytest.mark.parametrize("id", ["000000000000", "", "a b", "x" * 300])
def test_what_is_no_key_can_be_neither_rotated_nor_revoked(world: World, id: str) -> None:
    for plan in (keyring.rotate(id, ME), keyring.revoke(id, ME)):
        with pytest.raises(KeyNotFound):
            world.store.carry_out(plan)

    assert world.snapshot() == {}


def test_the_list_has_the_oldest_first_and_when_each_was_used(world: World) -> None:
    first, _ = create(world, "first")
    second, _ = create(world, "second")
    world.run(keyring.note_use(second.id))

    found = world.store.carry_out(keyring.listed())

    assert [each.key for each in found] == sorted([first, second], key=lambda key: (key.created_ms, key.id))
    assert {each.key.name: each.used_ms is not None for each in found} == {"first": False, "second": True}


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "x" * 65}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"name": " a"}, "/name"),
        ({"scopes": []}, "/scopes"),
        ({"project": "a b"}, "/project"),
        ({"project": ""}, "/project"),
        ({"scopes": [Scope.ADMIN], "project": "shop"}, "/project"),
        ({"scopes": [Scope.ADMIN], "queues": ["a"]}, "/queues"),
        ({"types": []}, "/types"),
        ({"types": ["a b"]}, "/types/0"),
        ({"queues": ["a", "b:c"]}, "/queues/1"),
        ({"queues": [f"q{n}" for n in range(101)]}, "/queues"),
        ({"expires_in_s": 0}, "/expires_in_s"),
    ],
)
def test_what_cannot_be_a_key_is_refused_by_its_field(world: World, options: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidKey) as raised:
        create(world, **options)

    assert [fault.pointer for fault in raised.value.errors] == [pointer]
    assert world.snapshot() == {}


def test_every_change_is_in_the_audit_once(world: World) -> None:
    key, _ = create(world)
    world.store.carry_out(keyring.rotate(key.id, ME))
    world.store.carry_out(keyring.revoke(key.id, ME))

    assert entries(world) == [(f"key.{what}", key.id, "a test") for what in ("revoked", "rotated", "created")]


def test_a_change_that_is_sent_again_is_made_and_audited_once(world: World) -> None:
    key, _ = create(world)
    revoking = keyring.revoke(key.id, ME)
    change = revoking.send(world.store.run_many(next(revoking)))

    answers = [world.store.run_many(change), world.store.run_many(change)]

    assert answers == [["ok"], ["ok"]]
    assert [what for what, _, _ in entries(world)] == ["key.revoked", "key.created"]


def test_a_full_redis_lets_keys_be_revoked(tmp_path: Any, redis_binary: str | None) -> None:
    server = RedisServer(tmp_path, binary=redis_binary)
    server.start()
    store = Store(server.url)
    try:
        key, _ = store.carry_out(keyring.create(KeySpec(name="k"), ME))
        with Redis.from_url(server.url) as redis:
            redis.config_set("maxmemory", 1)
            redis.config_set("maxmemory-policy", "noeviction")

        store.carry_out(keyring.revoke(key.id, ME))

        assert store.carry_out(keyring.listed()) == []
    finally:
        store.close()
        server.stop()
