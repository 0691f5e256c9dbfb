"""Looks at records for criteria that no index has: reads just the fields that a filter needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from taskpool.operations.records import part_if_there
from taskpool.redis.calls import Call
from taskpool.types import TaskRecord
from taskpool.types.control import CRITERIA, Filter

_NEEDED: Final = ("status", "stop_ms", "asked_ms", "created_at", "origin", "type")
"""The fields of the hash that are read for every filter. A hash without `created_at` is no task."""
_READ: Final = {
    "tag": ("tags",),
    "project": ("project",),
    "submitted_by": ("submitted_by",),
    "workflow": ("workflow",),
    "node": ("node",),
    "parent": ("dependency_ids", "edges"),
    "added_by": ("added_by",),
    "worker": ("worker_name",),
    "fingerprint": ("fingerprint",),
    "error": ("error",),
    "text": ("error",),
    "attempts": ("attempt",),
    "min_duration": ("started_at", "ended_at"),
}
"""By criterion: the fields of the hash that it needs besides those."""


def part_of(id: str, wanted: Filter, *more: str) -> Call[TaskRecord | None]:
    """Read as much of a task as the filter needs, and these further fields of its hash; None if there is none."""
    return part_if_there(id, fields_for(wanted, *more))


def fields_for(wanted: Filter, *more: str) -> Sequence[str]:
    """The fields of the hash that a filter needs."""
    return [*dict.fromkeys((*_NEEDED, *(field for name in wanted.given for field in _READ.get(name, ())), *more))]


assert {*_READ} <= {*CRITERIA}
