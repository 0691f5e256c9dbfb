"""The API overrides protocols of uvicorn that aren't public: each member that it uses exists and is unchanged."""

from __future__ import annotations

import ast
import asyncio
import inspect
import zlib
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import Server, ServerState

from api import connections, routing, server
from api.connections import Connections, LimitedProtocol
from api.http import body
from api.server import LimitedSocket
from taskpool.settings import Settings

COPIED = {
    HttpToolsProtocol.data_received: 1232120897,
    HttpToolsProtocol.on_headers_complete: 1652550485,
    HttpToolsProtocol.on_body: 2226630759,
    HttpToolsProtocol.on_message_complete: 1222657557,
    HttpToolsProtocol.on_response_complete: 876082119,
    HttpToolsProtocol.connection_lost: 2159918548,
    HttpToolsProtocol.shutdown: 4078802573,
    HttpToolsProtocol.handle_websocket_upgrade: 4066497923,
    RequestResponseCycle.send: 656727699,
    RequestResponseCycle.receive: 3918394130,
    WebSocketsSansIOProtocol.data_received: 1487265961,
    WebSocketsSansIOProtocol.receive: 832386135,
    WebSocketsSansIOProtocol.send: 3416825369,
    WebSocketsSansIOProtocol.handle_cont: 1761167902,
    WebSocketsSansIOProtocol.handle_ping: 2626167531,
    WebSocketsSansIOProtocol.shutdown: 475079528,
    Server.shutdown: 215549664,
}
"""Functions that ours replace or depend on in detail, with the checksum of their source."""


def members_used(module: Any, of: str) -> set[str]:
    """The names that the code of a module reads from an expression like `self` or `cycle`."""
    tree = ast.parse(Path(module.__file__ or "").read_text())
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == of}


def connection() -> LimitedProtocol:
    config = uvicorn.Config(Starlette(), lifespan="off", log_config=None)
    protocol = LimitedProtocol(
        config=config, server_state=ServerState(), app_state={}, registry=Connections(Settings())
    )
    protocol.on_message_begin()
    return protocol


def a_cycle() -> RequestResponseCycle:
    given = dict.fromkeys(inspect.signature(RequestResponseCycle).parameters)
    return RequestResponseCycle(**given)  # type: ignore[arg-type]


def missing(owner: Any, names: set[str]) -> list[str]:
    return sorted(name for name in names if not hasattr(owner, name))


async def test_uvicorn_has_every_member_of_a_request_that_is_used() -> None:
    used = {
        RequestResponseCycle: members_used(connections, "cycle")
        | members_used(connections, "self.cycle")
        | members_used(connections, "self._answered")
        | members_used(routing, "cycle")
        | members_used(body, "cycle"),
        FlowControl: members_used(connections, "self.flow") | members_used(routing, "cycle.flow"),
        ServerState: members_used(connections, "self.server_state"),
    }
    instances = {
        RequestResponseCycle: a_cycle(),
        FlowControl: FlowControl(asyncio.Transport()),
        ServerState: ServerState(),
    }

    for kind, names in used.items():
        assert names
        gone = missing(instances[kind], names)
        assert not gone, f"uvicorn {uvicorn.__version__} has no {kind.__name__}.{gone}: see api/connections.py"


async def test_uvicorn_has_every_member_of_a_connection_that_is_used() -> None:
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(Starlette(), lifespan="off", log_config=None, ws=LimitedSocket)
    config.load()
    socket = LimitedSocket(config, ServerState(), {}, _loop=loop)
    socket.connection_made(asyncio.Transport())

    for owner, module in ((connection(), connections), (socket, server)):
        own = {name for kind in type(owner).__mro__ for name in vars(kind)} | vars(owner).keys()
        tree = ast.parse(Path(module.__file__ or "").read_text())
        (code,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == type(owner).__name__]
        used = {
            node.attr
            for node in ast.walk(code)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()")
        }
        gone = sorted(used - own)
        assert not gone, (
            f"uvicorn {uvicorn.__version__} has no {type(owner).__bases__[0].__name__}.{gone}: see {module}"
        )


@pytest.mark.parametrize("function", COPIED, ids=lambda function: function.__qualname__)
def test_a_function_of_uvicorn_that_ours_follow_is_unchanged(function: Any) -> None:
    checksum = zlib.crc32(inspect.getsource(function).encode())

    assert checksum == COPIED[function], (
        f"uvicorn {uvicorn.__version__} has changed {function.__qualname__}: compare it with what api/connections.py, "
        f"api/server.py and api/routing.py do in its place, then write {checksum} here"
    )
