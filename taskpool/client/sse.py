"""Reads a stream of Server-Sent Events as it arrives, after the WHATWG's rules (HTML, 9.2.6)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_END_OF_LINE: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"


class Message(NamedTuple):
    """One message: its event's name, its data (lines joined with line feeds), and the last id told so far."""

    event: str
    data: str
    id: str


class EventStream:
    """The messages in the pieces of one stream. `last_id` is that of the message it goes on from."""

    def __init__(self, last_id: str = "") -> None:
        self._rest = b""
        self._ended_with_cr = False
        self._is_first_line = True
        self._id = last_id
        self._event = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[Message]:
        """The messages that the next piece completes."""
        messages = []
        for line in self._lines(piece):
            if line:
                self._field(line.decode("utf-8", "replace"))
                continue
            if self._data:
                messages.append(Message(self._event or "message", "\n".join(self._data), self._id))
            self._event, self._data = "", []
        return messages

    def _lines(self, piece: bytes) -> list[bytes]:
        if not piece:
            return []
        if self._ended_with_cr:  # an LF that follows is a part of that end of a line
            piece = piece.removeprefix(b"\n")
        self._ended_with_cr = piece.endswith(b"\r")
        *lines, self._rest = _END_OF_LINE.split(self._rest + piece)
        if lines and self._is_first_line:
            self._is_first_line = False
            lines[0] = lines[0].removeprefix(_BOM)
        return lines

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
