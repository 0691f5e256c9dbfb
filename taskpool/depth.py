"""How deep JSON is nested, told from its text, without reading it: a reader has a stack of its own to lose."""

from __future__ import annotations

from typing import Final

_AS_LISTS: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b'[]{}"')))


def is_deeper_than(levels: int, encoded: bytes) -> bool:
    """Whether more than `levels` arrays and objects are nested in each other.

    Brackets outside of texts are counted. The loop peels one level off all branches in each round.
    """
    if len(encoded) <= 2 * levels:  # too few brackets
        return False
    if b"\\" in encoded:
        encoded = encoded.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = encoded.translate(_AS_LISTS, _NO_BRACKETS).replace(b'""', b"")
    if b'"' in brackets:  # a text has brackets
        brackets = b"".join(brackets.split(b'"')[::2])
    for _ in range(levels):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)
