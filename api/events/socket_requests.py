"""What a client says over the WebSocket, read: a request, or the message that answers what isn't one."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from api.events.socket_messages import REQUESTS, ErrorMessage, Request, Sub, Subscribe
from api.problems import shortened
from taskpool.errors import FieldError
from taskpool.openenum import refuse_unknown
from taskpool.payload.faults import field_errors

_decoder: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_OPS: Final = {kind.__struct_config__.tag: kind for kind in REQUESTS}


def read_request(text: str | None) -> Request | ErrorMessage:
    """The request that a message is (None: it was bytes), or the error that names the subscription and the place at
    fault, as far as they can be told."""
    try:
        if text is None:
            raise msgspec.DecodeError("messages are text, not bytes")
        request = _decoder.decode(text)
        if isinstance(request, Subscribe) and request.filter is not None:
            refuse_unknown(request.filter.status, ".filter.status")
        return request
    except msgspec.ValidationError as error:
        return _refusal(text or "", error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return ErrorMessage(kind="invalid-json", detail=shortened(str(error)))


def _refusal(text: str, error: msgspec.ValidationError) -> ErrorMessage:
    said = _said(text)
    op = said.get("op")
    if "op" in said and (not isinstance(op, str) or op not in _OPS):
        fault = FieldError("/op", f"must be one of {', '.join(map(repr, _OPS))}")
    else:
        (fault,) = field_errors(error, "", _OPS.get(op, Any))
    return ErrorMessage(
        kind="invalid-message",
        detail=shortened(f"{fault.pointer or 'the message'}: {fault.detail}"),
        pointer=shortened(fault.pointer),
        sub=_name(said.get("sub")),
    )


def _said(text: str) -> dict[str, Any]:
    """The message as it stands, without a look at what it should be; empty when it is no object."""
    try:
        said = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):  # what is behind the fault
        return {}
    return said if isinstance(said, dict) else {}


def _name(given: Any) -> str | None:
    try:
        return msgspec.convert(given, Sub)
    except msgspec.ValidationError:
        return None
