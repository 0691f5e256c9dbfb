"""A task that fails until a file is there."""

from __future__ import annotations

import json
from pathlib import Path

from taskpool import task


@task("read")
def read(path: str) -> int:
    return parsed(Path(path).read_text())


def parsed(text: str) -> int:
    number: int = json.loads(text)["number"]
    return number
