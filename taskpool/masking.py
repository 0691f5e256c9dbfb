"""Finds values in texts in the forms that programs give them, and masks them: for secrets in logs, errors and results.

A text is searched as it is, and as it reads with its escapes undone: those of JSON and of a repr, of URLs, HTML and
shells, up to three of them around one another. What is packed (base64, hex) is searched as packed text: in base64 a
value looks different after 0, 1 and 2 other bytes, as `user:password` has them.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple
from urllib.parse import quote

MASK: Final = "***"
"""What stands in the place of a value."""

LEAST: Final = 4
"""A shorter value is not searched for in texts: it would be found everywhere, and hiding it would hide nothing."""
LEAST_LINE: Final = 8
"""The same for a line of a value of several lines."""

DEEPEST: Final = 3
MANY_FORMS: Final = 64
"""More are searched for by their first letters: a text costs about the same then, however many there are."""
LONGEST_REACH: Final = 1 << 14

_SIMPLE: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b", "0": "\0"}
_BASE64: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")


class _Escapes(NamedTuple):
    """One way of escaping: what every escape begins with, an escape, and the character that it stands for."""

    mark: str
    pattern: re.Pattern[str]
    meaning: Callable[[re.Match[str]], str]


def _bytes(mark: str) -> str:
    """A pattern of escaped bytes: those that are one character in UTF-8 together, else a single one."""
    more = f"{mark}[89abAB][0-9a-fA-F]"
    first = "|".join(
        f"{mark}{lead}[0-9a-fA-F]{more * count}" for lead, count in (("[cCdD]", 1), ("[eE]", 2), ("[fF]", 3))
    )
    return f"((?:{first})|{mark}[0-9a-fA-F]{{2}})"


def _character(bytes_: str, mark: str) -> str:
    raw = bytes.fromhex(bytes_.replace(mark, ""))
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _backslash(found: re.Match[str]) -> str:
    high, low, code, raw, other = found.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
    if code:
        number = int(code[1:], 16)
        return chr(number) if number < 0x110000 else found[0]
    return _character(raw, "\\x") if raw else _SIMPLE.get(other, other)


def _percent(found: re.Match[str]) -> str:
    return _character(found[1], "%") if found[1] else " "


_PERCENT: Final = _bytes("%")
_BACKSLASH: Final = (
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"
    "|" + _bytes(r"\\x") + r"|\\(.)"
)
_ESCAPES: Final = (
    _Escapes("\\", re.compile(_BACKSLASH, re.DOTALL), _backslash),
    _Escapes("%", re.compile(_PERCENT), _percent),
    _Escapes("&", re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});"),
             lambda found: html.unescape(found[0])),
    _Escapes("'\"'\"'", re.compile("'\"'\"'"), lambda found: "'"),  # shlex.quote
    _Escapes("\x1b", re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]"), lambda found: ""),  # colours, also within a value
)  # fmt: skip
_FORM_FIELD: Final = _Escapes("+", re.compile(_PERCENT + r"|\+"), _percent)
"""As web forms escape: a space is a plus sign. Only for values with spaces."""


class Masker:
    """Masks these values: `texts` are their texts and numbers."""

    __slots__ = ("_by_start", "_escapes", "_forms", "reach")

    def __init__(self, texts: Iterable[str]) -> None:
        values = {value for text in texts for value in _values(text)}
        self._forms: dict[str, tuple[bool, bool]] = {}
        """By form, whether a base64 character before it, or behind it, holds a part of the value as well."""
        for value in values:
            for form in _plain(value):
                self._forms.setdefault(form, (False, False))
            self._forms.update(_base64(value))
        self._by_start: dict[str, list[str]] = {}
        if len(self._forms) > MANY_FORMS:
            for form in self._forms:
                self._by_start.setdefault(form[:LEAST], []).append(form)
        self._escapes = (*_ESCAPES, _FORM_FIELD) if any(" " in value for value in values) else _ESCAPES
        self.reach = min(6 * max(map(len, values), default=0), LONGEST_REACH)
        """How many characters one value may take in a text: so much of what isn't complete may be the half of one."""

    def hide(self, text: str) -> str:
        """The text with every value masked."""
        found = [*self._hits(text), *self._escaped(text)]
        if not found:
            return text
        parts: list[str] = []
        end = 0
        for start, stop in sorted(found):
            if start >= end:
                parts += [text[end:start], MASK]
            end = max(end, stop)
        return "".join([*parts, text[end:]])

    def _hits(self, text: str) -> Iterator[tuple[int, int]]:
        """Where forms stand in a text."""
        for form in self._candidates(text):
            start = text.find(form)
            while start >= 0:
                stop = start + len(form)
                before, behind = self._forms[form]
                yield start - (before and text[start - 1 : start] in _BASE64), self._end(text, stop) if behind else stop
                start = text.find(form, stop)

    def _candidates(self, text: str) -> Iterable[str]:
        if not self._by_start:
            return self._forms
        starts = {text[at : at + LEAST] for at in range(len(text) - LEAST + 1)} & self._by_start.keys()
        return [form for start in starts for form in self._by_start[start]]

    def _end(self, text: str, stop: int) -> int:
        stop += text[stop : stop + 1] in _BASE64
        return stop + len(text[stop : stop + 2]) - len(text[stop : stop + 2].lstrip("="))

    def _escaped(self, text: str) -> Iterator[tuple[int, int]]:
        """Where forms stand in the text that are found once its escapes are undone, in whatever order."""
        views: dict[str, Callable[[int], int]] = {text: lambda place: place}
        """What the text means, and where each place of that is in the text."""
        newest = list(views)
        for _ in range(DEEPEST):
            newest, before = [], newest
            for view in before:
                for mark, pattern, meaning in self._escapes:
                    if mark not in view or (plain := pattern.sub(meaning, view)) in views:
                        continue
                    place = views[plain] = _places(view, pattern, meaning, views[view])
                    newest.append(plain)
                    yield from ((place(start), place(stop)) for start, stop in self._hits(plain))


def _places(
    text: str, pattern: re.Pattern[str], meaning: Callable[[re.Match[str]], str], origin: Callable[[int], int]
) -> Callable[[int], int]:
    """Leads from a place in what a text means to the place where that stands; most texts are never asked."""
    found: list[int] = []

    def place(at: int) -> int:
        if not found:
            last = 0
            for escape in pattern.finditer(text):
                found.extend(range(last, escape.start()))
                found.extend([escape.start()] * len(meaning(escape)))
                last = escape.end()
            found.extend(range(last, len(text) + 1))
        return origin(found[at])

    return place


def _values(text: str) -> Iterator[str]:
    """What to search for: the text, and each of its lines if it has several."""
    lines = text.splitlines()
    least = LEAST if len(lines) < 2 else LEAST_LINE
    for each in (text, text.strip(), *[line.strip() for line in lines if len(line.strip()) >= least]):
        if len(each) >= LEAST:
            yield each


def _plain(value: str) -> Iterator[str]:
    raw = value.encode("utf-8", "surrogatepass")
    yield value
    for digits in (raw.hex(), raw.hex(":"), raw.hex(" ")):
        yield from (digits, digits.upper())
    for quotes in ("'", '"'):  # SQL and CSV write a quote in quotes twice
        yield value.replace(quotes, quotes * 2)


def _base64(value: str) -> Iterator[tuple[str, tuple[bool, bool]]]:
    """The characters of base64 that depend on the value alone, after 0, 1 and 2 other bytes (modulo 3)."""
    for text in {value, json.dumps(value)[1:-1], quote(value.encode("utf-8", "surrogatepass"), safe="")}:
        raw = text.encode("utf-8", "surrogatepass")
        for before in range(3):
            first, before_first = -(-before * 8 // 6), before * 8 % 6 > 0
            last, behind_last = (before + len(raw)) * 8 // 6, (before + len(raw)) * 8 % 6 > 0
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                yield encode(bytes(before) + raw).decode()[first:last], (before_first, behind_last)
