"""The lock files: every dependency pinned by hash, none of them from a named place, and all agreeing."""

from __future__ import annotations

import tomllib
from itertools import chain
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parent.parent
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: Final = {
    "requirements.lock": ("dashboard",),
    "requirements-testing.lock": ("dashboard", "testing"),
    "requirements-dev.lock": ("dashboard", "testing", "bench", "dev"),
}


def pins(lock: str) -> dict[str, tuple[Requirement, int]]:
    """What a lock pins, by name, with how many hashes it may have."""
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.lstrip().startswith("#")]
    entries = [entry.split() for entry in "\n".join(lines).replace("\\\n", " ").splitlines()]
    found = {}
    for words in entries:
        hashes = [word for word in words if word.startswith("--hash=sha256:")]
        pinned = Requirement(" ".join(word for word in words if word not in hashes))
        found[pinned.name] = pinned, len(hashes)
    return found


def wanted(lock: str) -> list[Requirement]:
    extras = chain.from_iterable(PROJECT["optional-dependencies"][extra] for extra in EXTRAS[lock])
    return [Requirement(text) for text in (*PROJECT["dependencies"], *extras) if not text.startswith("taskpool-jobs[")]


@pytest.mark.parametrize("lock", EXTRAS)
def test_every_pin_is_one_version_with_hashes(lock: str) -> None:
    for pinned, hashes in pins(lock).values():
        assert [specifier.operator for specifier in pinned.specifier] == ["=="], pinned
        assert hashes, pinned


@pytest.mark.parametrize("lock", EXTRAS)
def test_no_place_to_load_from_is_named(lock: str) -> None:
    text = (ROOT / lock).read_text()

    assert "://" not in text
    assert "index-url" not in text


@pytest.mark.parametrize("lock", EXTRAS)
def test_it_has_what_the_project_asks_for(lock: str) -> None:
    pinned = pins(lock)

    for asked in wanted(lock):
        found, _ = pinned[asked.name]
        assert all(asked.specifier.contains(specifier.version) for specifier in found.specifier), f"{found} for {asked}"
        assert found.marker is None or asked.marker is not None, f"{found} isn't for all whom {asked} is for"


def test_a_larger_lock_pins_what_a_smaller_one_does() -> None:
    service, testing, dev = ({(name, str(pin.specifier)) for name, (pin, _) in pins(lock).items()} for lock in EXTRAS)

    assert service < testing < dev
