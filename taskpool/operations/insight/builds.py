"""Builds: the versions of the task modules that worker processes run, and since when each is known.

A pool names its build in TASKPOOL_BUILD. Otherwise the build is a hash of the source files of the task modules, so that
hosts with the same code have the same build.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from taskpool.redis import keys
from taskpool.redis.calls import Call, times_of, tolerant
from taskpool.text import own_version
from taskpool.types import utc
from taskpool.types.insight import Build

BUILD_DIGITS: Final = 7


def build_of(files: Iterable[str]) -> str:
    """The build of task modules with these source files: the first digits of a hash of their names (without folders)
    and contents. Without files, as with built-in types only, it is the version of Taskpool."""
    digest = hashlib.sha256()
    is_empty = True
    for file in sorted(map(Path, files), key=lambda file: (file.name, str(file))):
        with suppress(OSError):  # it was removed after it was loaded
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)}\n".encode() + content)
            is_empty = False
    return own_version() if is_empty else digest.hexdigest()[:BUILD_DIGITS]


def builds() -> Call[list[Build]]:
    """The known builds, the newest last: by when a pool with that build was first seen."""

    def read(reply: list[bytes]) -> list[Build]:
        return [Build(build=name, since=utc(ms)) for name, ms in times_of(reply).items()]

    return tolerant(Call(("ZRANGE", keys.BUILDS, 0, -1, "WITHSCORES"), read, again=True), [])
