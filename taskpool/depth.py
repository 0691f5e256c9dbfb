"""How deep JSON is nested, told from its text, without reading it: a reader has a stack of its own to lose."""

from __future__ import annotations

from itertools import accumulate
from typing import Final

PEELED: Final = 4
MANY: Final = 4096

_AS_LISTS: Final = bytes.maketrans(b"{}", b"[]")
_AS_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")
"""Each bracket as a signed byte: one level down, one level up."""
_NO_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b'[]{}"')))


def is_deeper_than(levels: int, encoded: bytes) -> bool:
    """Whether more than `levels` arrays and objects are nested in each other.

    Brackets outside of texts are counted. The loop peels one level off all branches in each round, which for most JSON
    leaves nothing after a few.
    """
    if len(encoded) <= 2 * levels:  # too few brackets
        return False
    if b"\\" in encoded:
        encoded = encoded.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = encoded.translate(_AS_LISTS, _NO_BRACKETS).replace(b'""', b"")
    if b'"' in brackets:  # a text has brackets
        brackets = b"".join(brackets.split(b'"')[::2])
    for peeled in range(levels):
        if not brackets:
            return False
        if peeled == PEELED and len(brackets) > MANY:  # deep everywhere: from here on it is quicker to count
            steps = memoryview(brackets.translate(_AS_STEPS)).cast("b")
            return max(accumulate(steps)) > levels - peeled
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)
