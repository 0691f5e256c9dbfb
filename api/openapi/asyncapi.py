"""The AsyncAPI 3 document of the WebSocket, made from the types of its messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from taskpool.text import own_version

from ..events.websocket import CLOSE_CODES, MAX_MESSAGE_BYTES, MESSAGES, MOST_BAD_MESSAGES, MOST_SUBSCRIPTIONS, REQUESTS
from .document import SECURITY

Object = dict[str, Any]

_INFO: Final = (
    "Events of tasks and workflows as they happen. A client subscribes to tasks, workflows or filters. Each"
    " subscription first receives the current state, then every event exactly once and in order, even if the server"
    " loses Redis for a while.\n\n"
    f"A socket has at most {MOST_SUBSCRIPTIONS} subscriptions, and a message at most {MAX_MESSAGE_BYTES} bytes. The"
    f" server answers an invalid message with `error`, and closes the socket after {MOST_BAD_MESSAGES} of them. It"
    " sends WebSocket pings every 20 seconds and closes a socket that doesn't answer.\n\nServer-Sent Events have the"
    " same events: see `/openapi.json`."
)


def describe_socket(host: str, *, secure: bool, prefix: str = "") -> Object:
    """The document for a client that reached this server as `host`, below the path `prefix`."""
    schemas, components = _schemas([*REQUESTS, *MESSAGES])
    messages = {
        kind.__name__: {
            "name": kind.__struct_config__.tag,
            "title": kind.__name__,
            "summary": " ".join((kind.__doc__ or "").split()),
            "contentType": "application/json",
            "payload": schema,
        }
        for kind, schema in zip([*REQUESTS, *MESSAGES], schemas, strict=True)
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Taskpool", "version": own_version(), "description": _INFO, "license": {"name": "MIT"}},
        "defaultContentType": "application/json",
        "servers": {
            "this": {
                "host": host,
                "protocol": "wss" if secure else "ws",
                **({"pathname": prefix} if prefix else {}),
                "description": "A key is needed unless the server runs without keys. Browsers use a ticket.",
                "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in _SECURITY],
            }
        },
        "channels": {
            "events": {
                "address": "/ws",
                "description": "Closed by the server with "
                + "; ".join(f"{code}: {reason}" for code, reason in CLOSE_CODES.values() if reason)
                + ".",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
            }
        },
        "operations": {
            "ask": _operation("receive", "Messages from clients.", REQUESTS),
            "tell": _operation("send", "Messages to clients.", MESSAGES),
        },
        "components": {"schemas": components, "messages": messages, "securitySchemes": _SECURITY},
    }


_SECURITY: Final = {
    "bearer": {key: value for key, value in SECURITY["bearer"].items() if key != "bearerFormat"},
    "ticket": SECURITY["ticket"] | {"type": "httpApiKey"},
}


def _operation(action: str, summary: str, kinds: Sequence[Any]) -> Object:
    return {
        "action": action,
        "channel": {"$ref": "#/channels/events"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/events/messages/{kind.__name__}"} for kind in kinds],
    }


def _schemas(kinds: Sequence[Any]) -> tuple[Sequence[Object], Object]:
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return list(schemas), dict(sorted(components.items()))
