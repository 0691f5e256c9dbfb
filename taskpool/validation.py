"""What task types, queues, tags and tasks are called: the names go into Redis keys and URLs as they are.

Spans of time that programs and people give, in seconds: which ones can be meant, and what is said of all others.

Which known names wrong ones may mean, for the texts of refusals.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import time
from collections.abc import Iterable
from itertools import islice
from typing import Final, TypeGuard

BUILTIN_TYPES: Final = {
    "echo": "taskpool.tasks.builtin",
    "long_task": "taskpool.tasks.builtin",
    "word_count": "taskpool.tasks.builtin",
    "word_merge": "taskpool.tasks.builtin",
    "http_request": "taskpool.tasks.builtin",
}
"""The task types that come along, each with its module."""
TYPE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
TAG: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

PATH_PREFIX_FORM: Final = "a path like /jobs or /a/b: letters, digits, '_', '-', '.' and '~' (ASCII) between slashes"
LONGEST_PATH_PREFIX: Final = 255
_PATH_PREFIX: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is a text that UTF-8 can hold, as Redis gets it: one without half a surrogate pair."""
    return isinstance(value, str) and (value.isascii() or not _SURROGATE.search(value))


def type_name_fault(name: object) -> str | None:
    """What is wrong with a task type's name; None when it is fine."""
    if isinstance(name, str) and TYPE_NAME.fullmatch(name):
        return None
    return (
        f"{name!r} can't be the name of a task type: 1 to 64 letters, digits, '_', '-' or '.', a letter first (ASCII)"
    )


def queue_name_fault(name: object) -> str | None:
    """What is wrong with a queue's name; None when it is fine."""
    if isinstance(name, str) and QUEUE_NAME.fullmatch(name):
        return None
    return f"{name!r} can't be the name of a queue: 1 to 64 letters, digits, '_', '-' or '.' (ASCII)"


_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::[0-9]{1,5})?|([0-9a-f:.]+)")
"""A name or an address, perhaps with a port; one of IPv6 in brackets, or without them and without a port."""


def names_this_machine(address: str) -> bool:
    """Whether only this machine itself can reach an address: ``localhost``, ``127.0.0.1:8080``, ``[::1]:8080``."""
    found = _HOST.fullmatch(address.lower())
    if found is None:
        return False
    host = found[1] or found[2] or found[3]
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def path_prefix(text: str) -> str:
    """The prefix of URL paths that `text` names, such as `/jobs` or `/a/b`, without a slash at its end; `/` is none.

    Raises:
        ValueError: it isn't one; the text says what is accepted.
    """
    prefix = text.removesuffix("/")
    if len(text) <= LONGEST_PATH_PREFIX and _PATH_PREFIX.fullmatch(prefix) and (prefix or text in ("", "/")):
        return prefix
    shown = text if len(text) <= 80 else text[:80] + "..."
    raise ValueError(f"{shown!r} is not {PATH_PREFIX_FORM}")


def new_id() -> str:
    """A new task's id: 20 characters that sort by the millisecond (42 bits, good until 2109), then 58 random bits."""
    number = time.time_ns() // 1_000_000 << 58 | int.from_bytes(os.urandom(8)) >> 6
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(90, -1, -10)])


LONGEST_S: Final = 10 * 366 * 86_400
"""The longest span that anything here takes: ten years."""
LONGEST_GRACE_S: Final = 86_400
"""The longest that a task may be given to stop by itself."""


def accepted(least_s: float = 0, most_s: float = LONGEST_S) -> str:
    """What a span may be, in words."""
    return f"a number of seconds from {least_s:g} to {most_s:.12g}"


def is_seconds(value: object, least_s: float = 0, most_s: float = LONGEST_S) -> bool:
    """Whether it is a number in this range: no NaN, no text, no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least_s <= value <= most_s


def seconds_fault(value: object, least_s: float = 0, most_s: float = LONGEST_S) -> str | None:
    """What is wrong with a span; None when it is fine."""
    return None if is_seconds(value, least_s, most_s) else f"must be {accepted(least_s, most_s)}, not {_shown(value)}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits has no text
        return "so many"
    return text if len(text) <= 80 else text[:79] + "…"


LONGEST: Final = 64
MOST_KNOWN: Final = 500


class Guesses:
    """Guesses for the wrong names of one request: for the first few alone, because whoever sends them chooses how many
    there are, and a guess compares a name with all that are known, letter by letter."""

    def __init__(self, most: int = 5) -> None:
        self._left = most

    def near(self, name: str, known: Iterable[str], *, n: int = 1, cutoff: float = 0.6) -> list[str] | None:
        """The `n` most similar known names, best first; None when there were enough guesses already."""
        if not self._left:
            return None
        self._left -= 1
        if len(name) > LONGEST:
            return []
        return difflib.get_close_matches(name, islice(known, MOST_KNOWN), n=n, cutoff=cutoff)
