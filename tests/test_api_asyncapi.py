"""The AsyncAPI document: every message there is, under the names that AsyncAPI 3 has."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from starlette.routing import WebSocketRoute

from api.app import create_app
from api.events.websocket import MESSAGES, REQUESTS, ClientMessage, ServerMessage
from api.openapi.asyncapi import describe_socket
from taskpool.settings import Settings

NAMES = {
    "document": ("asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components"),
    "info": ("title", "version", "description", "termsOfService", "contact", "license", "tags", "externalDocs"),
    "server": (
        *("host", "protocol", "protocolVersion", "pathname", "description", "title", "summary", "variables"),
        *("security", "tags", "externalDocs", "bindings"),
    ),
    "channel": (
        *("address", "messages", "title", "summary", "description", "servers", "parameters"),
        *("tags", "externalDocs", "bindings"),
    ),
    "operation": (
        *("action", "channel", "title", "summary", "description", "security", "tags", "externalDocs", "bindings"),
        *("traits", "messages", "reply"),
    ),
    "message": (
        *("headers", "payload", "correlationId", "contentType", "name", "title", "summary", "description", "tags"),
        *("externalDocs", "bindings", "examples", "traits"),
    ),
}
"""The fields of AsyncAPI 3.0's objects, as far as we have any of them."""


@pytest.fixture(scope="module")
def document() -> Any:
    return msgspec.json.decode(msgspec.json.encode(describe_socket("localhost", secure=False)))


def test_the_document_has_the_names_of_asyncapi_and_no_others(document: Any) -> None:
    parts = [("document", document), ("info", document["info"])]
    parts += [("server", each) for each in document["servers"].values()]
    parts += [("channel", each) for each in document["channels"].values()]
    parts += [("operation", each) for each in document["operations"].values()]
    parts += [("message", each) for each in document["components"]["messages"].values()]

    assert [(kind, part.keys() - set(NAMES[kind])) for kind, part in parts if part.keys() - set(NAMES[kind])] == []
    assert document["info"].keys() >= {"title", "version"}
    assert all(each.keys() >= {"host", "protocol"} for each in document["servers"].values())
    assert all(each.keys() >= {"action", "channel"} for each in document["operations"].values())


def test_every_message_that_is_read_or_written_is_described(document: Any) -> None:
    assert set(REQUESTS) == set(ClientMessage.__subclasses__())
    assert set(MESSAGES) == set(ServerMessage.__subclasses__())
    for operation, kinds in (("ask", REQUESTS), ("tell", MESSAGES)):
        referred = [each["$ref"].rpartition("/")[2] for each in document["operations"][operation]["messages"]]
        assert referred == [kind.__name__ for kind in kinds]
    for kind in (*REQUESTS, *MESSAGES):
        described = document["components"]["messages"][kind.__name__]
        fields = document["components"]["schemas"][kind.__name__]["properties"]
        assert described["name"] == kind.__struct_config__.tag
        assert fields.keys() == {"op", *kind.__struct_fields__}


def test_its_channel_is_the_socket(document: Any) -> None:
    routes = create_app(Settings(redis_url="redis://nowhere")).routes

    assert [channel["address"] for channel in document["channels"].values()] == [
        route.path for route in routes if isinstance(route, WebSocketRoute)
    ]
