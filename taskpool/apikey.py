"""API keys as values: who a caller of the API is, and what it may do."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    """What a caller may do. `admin` includes the others."""

    READ = "tasks:read"
    WRITE = "tasks:write"
    STOP = "tasks:stop"
    ADMIN = "admin"


ALL_SCOPES: Final = frozenset(Scope)
