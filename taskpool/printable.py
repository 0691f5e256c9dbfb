"""What may be printed of texts that tasks, clients or Redis have given us: nothing that a terminal takes for an order.

Text stays as it is. Control characters (C0, C1, DEL), characters that turn the direction of writing, invisible ones and
line separators are shown as escapes such as `\\x1b` or `\\u202e`. (The joiners U+200C and U+200D stay: scripts and
emoji need them.) Colours may stay; every other well-formed control sequence (CSI) is left out. Commands that carry data
to a terminal (titles, clipboards, links) are shown.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

_UNSEEN: Final = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
"""Everything but the tab and the line feed."""

_NUMBER: Final = r"[0-9]{1,3}"
_COLOUR: Final = (
    rf"(?:0?[0-4]|2[2-4]|3[0-79]|4[0-79]|9[0-7]|10[0-7]|[34]8;5;{_NUMBER}|[34]8;2;{_NUMBER};{_NUMBER};{_NUMBER})"
)
_COLOURS: Final = rf"\x1b\[(?:{_COLOUR}(?:;{_COLOUR}){{0,7}})?m"
"""Colours, bold, dim, italic and underlined; nothing that hides text or makes it blink."""
_SEQUENCE: Final = r"\x1b\[[0-?]{0,32}[ -/]{0,4}[@-~]"

_to_escape: Final = re.compile(f"[{_UNSEEN}]")
_in_lines: Final = re.compile(f"({_COLOURS})|({_SEQUENCE})|[{_UNSEEN}]")
_in_a_line: Final = re.compile(f"({_COLOURS})|({_SEQUENCE})|[{_UNSEEN}\n]")
_in_a_cell: Final = re.compile(f"({_COLOURS})|({_SEQUENCE})|[{_UNSEEN}\n\t]")
_ends_plain: Final = re.compile(r"(?:\A|\x1b\[0*m)[^\x1b]*\Z").search

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
RESET: Final = "\x1b[0m"


def printable(text: str) -> str:
    """The text as a part of one line, without colours."""
    return text if _is_plain(text) else _in_a_cell.sub(_without_colour, text)


def printable_lines(text: str) -> str:
    """The text, of one line or several, without colours."""
    return text if _is_plain(text) else _in_lines.sub(_without_colour, text)


def coloured(line: str) -> str:
    """The text as one line with its colours, none of which goes on after it."""
    if _is_plain(line):
        return line
    line = _in_a_line.sub(_shown, line)
    return line if _ends_plain(line) else line + RESET


def indented(text: str, indent: str = "    ") -> str:
    """The text with all lines but its first one indented: who sees them knows that they go on."""
    return text.replace("\n", "\n" + indent)


def json_text(encoded: str) -> str:
    """A JSON text in which what is never printed is escaped: it means the same."""
    return encoded if _is_plain(encoded) else _to_escape.sub(_json_escape, encoded)


class LogFormatter(logging.Formatter):
    """Formats records for logs that people read on terminals. A line that doesn't begin with four spaces is a record's
    first one, whatever is in its message."""

    def format(self, record: logging.LogRecord) -> str:
        """As always, made printable."""
        return indented(printable_lines(super().format(record)))


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _without_colour(found: re.Match[str]) -> str:
    return "" if found[1] or found[2] else _escape(found[0])


def _shown(found: re.Match[str]) -> str:
    if found[1]:
        return found[1]
    return "" if found[2] else _escape(found[0])


def _escape(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _json_escape(found: re.Match[str]) -> str:
    units: Any = found[0].encode("utf-16-be", "surrogatepass")
    return "".join([f"\\u{high << 8 | low:04x}" for high, low in zip(units[::2], units[1::2], strict=True)])
