"""What can be chosen of a standing endpoint, and what is wrong with a choice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from taskpool.access.apikey import PROJECT
from taskpool.errors import FieldError
from taskpool.names import TAG, queue_name_fault, type_name_fault
from taskpool.types import TaskStatus
from taskpool.webhooks.endpoint import events_faults
from taskpool.webhooks.signature import secret_fault
from taskpool.webhooks.target import Allowed, parse_target

MOST_NAMES: Final = 50
LONGEST_DESCRIPTION: Final = 500
FILTERS: Final = ("types", "queues", "tags", "statuses")


class WebhookFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be changed of an endpoint; what isn't given stays as it is."""

    url: str | UnsetType = UNSET
    events: list[str] | UnsetType = UNSET
    types: list[str] | UnsetType = UNSET
    queues: list[str] | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    statuses: list[str] | UnsetType = UNSET
    description: str | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        """The fields that are there."""
        pairs = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return {name: value for name, value in pairs if value is not UNSET}


class NewWebhook(WebhookFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new endpoint is to be. What isn't given has its default; a secret is made."""

    url: str
    project: str | UnsetType = UNSET
    secret: str | UnsetType = UNSET


def field_faults(given: dict[str, Any], allowed: Allowed) -> Iterator[FieldError]:
    """What can't be, in what was given; the types of the values are right already."""
    if "url" in given:
        try:
            parse_target(given["url"], allowed)
        except ValueError as error:
            yield FieldError("/url", str(error))
    if "events" in given:
        yield from (FieldError(f"/{field}", detail) for field, detail in events_faults("events", given["events"]))
    if len(given.get("description", "")) > LONGEST_DESCRIPTION:
        yield FieldError("/description", f"must have at most {LONGEST_DESCRIPTION} characters")
    if "secret" in given and (fault := secret_fault(given["secret"])):
        yield FieldError("/secret", fault)
    if "project" in given and not PROJECT.fullmatch(given["project"]):
        yield FieldError("/project", "must be 1 to 64 letters, digits, '_', '-' or '.'")
    for field in FILTERS:
        yield from _name_faults(field, given.get(field, ()))


def _name_faults(field: str, names: Sequence[str]) -> Iterator[FieldError]:
    if len(names) > MOST_NAMES:
        yield FieldError(f"/{field}", f"must be a list of at most {MOST_NAMES}")
        return
    statuses = [status.value for status in TaskStatus]
    for at, name in enumerate(names):
        fault = {
            "types": type_name_fault(name),
            "queues": queue_name_fault(name),
            "tags": None if re.fullmatch(TAG, name) else "must be a tag: 1 to 64 letters, digits, '_', '-', '.' or ':'",
            "statuses": None if name in statuses else f"must be one of {', '.join(statuses)}",
        }[field]
        if fault:
            yield FieldError(f"/{field}/{at}", fault)
