"""What task types and queues may be called: the names go into Redis keys and URLs as they are."""

from __future__ import annotations

import re
from typing import Final

TYPE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


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
