"""The messages that this service sends, in the OpenAPI document: as `webhooks`, and as `callbacks` of submissions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from api.openapi.operation import Operation
from api.openapi.schemas import Schemas
from api.submission import Batch
from taskpool.types import TaskSpec
from taskpool.webhooks.endpoint import TOLD
from taskpool.webhooks.message import TEST_EVENT, TYPE_PREFIX, Message

Object = dict[str, Any]

CALLBACK_URLS: Final = {
    TaskSpec: "{$request.body#/callback_url}",
    Batch: "{$request.body#/tasks/0/callback_url}",
}
"""Where the body of a submission has the address; in a batch every task has its own."""

HEADERS: Final[dict[str, tuple[str, Object]]] = {
    "webhook-id": ("The same however often the message is sent: what was seen before needs no look.", {}),
    "webhook-timestamp": ("When it is sent, in seconds since 1970. Refuse what is older than a few minutes.", {}),
    "webhook-signature": (
        "`v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`; one for each secret while one replaces another.",
        {"pattern": "^v1,[A-Za-z0-9+/]+=*( v1,[A-Za-z0-9+/]+=*)*$"},
    ),
}
"""What a message is signed with, after Standard Webhooks."""

ANSWERS: Final = {
    "2XX": "It was heard.",
    "410": "Send no more: the message isn't tried again, and a standing endpoint is disabled.",
    "default": "It is tried again later, for days; `Retry-After` is minded. Redirects aren't followed.",
}

_SENT: Final = (
    "Sent by worker processes, at least once, signed after [Standard Webhooks](https://standardwebhooks.com)."
)


def webhooks(schemas: Schemas) -> Object:
    """The messages to standing endpoints."""
    summary = "A step of a task that a standing endpoint wants to hear of"
    return {"task": {"post": _message("hear_of_task", summary, (*TOLD, TEST_EVENT), schemas)}}


def callbacks(operation: Operation, schemas: Schemas) -> Object:
    """The messages that an operation brings about: those to the callbacks of what it submits."""
    where = CALLBACK_URLS.get(operation.body)
    if where is None:
        return {}
    message = _message(
        f"hear_of_{operation.id}", "A step of the task that its callback wants to hear of", TOLD, schemas
    )
    return {"step": {where: {"post": message}}}


def _message(id: str, summary: str, events: Sequence[str], schemas: Schemas) -> Object:
    required = list(Message.__struct_fields__)
    types = {"type": {"enum": [TYPE_PREFIX + event for event in events]}}
    return {
        "operationId": id,
        "tags": ["webhooks"],
        "summary": summary,
        "description": _SENT,
        "security": [],
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": True,
                "description": text,
                "schema": {"type": "string", **limits},
            }
            for name, (text, limits) in HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"allOf": [schemas.of(Message)], "properties": types, "required": required}
                }
            },
        },
        "responses": {
            status: {"description": text, **({"headers": _RETRY_AFTER} if status == "default" else {})}
            for status, text in ANSWERS.items()
        },
    }


_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds, or a date: not before then.", "schema": {"type": "string"}}
}
