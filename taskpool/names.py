"""What task types, queues, tags and tasks are called: the names go into Redis keys and URLs as they are."""

from __future__ import annotations

import ipaddress
import os
import re
import time
from typing import Final, TypeGuard

from taskpool.errors import FieldError, InvalidTask

BUILTIN_TYPES: Final = {
    "echo": "taskpool.builtin.simple",
    "long_task": "taskpool.builtin.simple",
    "word_count": "taskpool.builtin.words",
    "word_merge": "taskpool.builtin.words",
    "http_request": "taskpool.builtin.http",
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


def check_text(parameter: str, value: object) -> None:
    """Return if what was given as `parameter` may be a name.

    Raises:
        InvalidTask: it is no text.
    """
    if not is_text(value):
        fault = f"must be a name, not {value!r}"
        raise InvalidTask(f"/{parameter}: {fault}", [FieldError(f"/{parameter}", fault)])


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
