"""Loads the scripts beside this file: each with the prelude in front and every `KEY.name` replaced from keys.py.

A script is named by the hash of its text, so that two versions deployed side by side never overwrite each other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from taskpool import keys
from taskpool.calls import Call, Part

T = TypeVar("T")


class Script:
    """One script: its text, with the `parts` it needs before it, and the command that runs it by hash."""

    def __init__(self, name: str, *parts: str) -> None:
        folder = files(__name__)
        text = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in ("prelude", *parts, name))
        self.text = re.sub(r"\bKEY\.([a-z_]+)", _constant, text).encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def call(
        self, arguments: Sequence[Part], read: Callable[[Any], T], *, keys: Sequence[str] = (), again: bool = False
    ) -> Call[T]:
        """The call that runs it."""
        return Call(("EVALSHA", self.sha, len(keys), *keys, *arguments), read, self.text, again=again)


def _constant(match: re.Match[str]) -> str:
    value = getattr(keys, match[1].upper())
    return str(value) if isinstance(value, int) else f"'{value}'"
