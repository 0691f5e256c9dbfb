"""Checks values and texts that others send: what JSON can't hold, what a terminal may show, what is secret.

- NaN, infinities and deep nesting are found in the JSON text that msgspec wrote, which is faster than in the value.
- Texts from tasks, clients and Redis are printed without anything that a terminal takes for a command.
- `Masker` finds values in texts, also where they are escaped or packed, and masks them; `Secrets` are the secret values
  of one payload.
"""

from __future__ import annotations

import base64
import copy
import html
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from itertools import accumulate
from typing import Annotated, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

# --- NaN and infinities --------------------------------------------------------------------------------------

_PLAIN: Final = frozenset({str, int, bool, type(None)})
_PLAIN_KEYS: Final = frozenset({str, int})


def may_hide_nan(encoded: bytes) -> bool:
    """Whether the value that msgspec encoded may contain NaN or an infinity: null for such a float, "nan", "inf" or
    "-inf" for a key, "NaN" or "Infinity" for a Decimal. Looking for one letter first is much faster."""
    return (
        b"null" in encoded
        or (b"N" in encoded and b"NaN" in encoded)
        or (b"I" in encoded and b"Infinity" in encoded)
        or b'nan":' in encoded
        or b'inf":' in encoded
    )


def is_plain_and_finite(value: Any) -> bool:
    """Whether a value consists only of Python's own JSON types and has no NaN or infinity. False for any other type: it
    may contain such a number where this function doesn't look."""
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind in _PLAIN:
        return True
    if kind is dict:
        return _PLAIN_KEYS.issuperset(map(type, value)) and all(map(is_plain_and_finite, value.values()))
    return (kind is list or kind is tuple) and all(map(is_plain_and_finite, value))


def refuse_nan(value: Any, encoded: bytes) -> None:
    """Raise ValueError for a JSON value with NaN or an infinity. `encoded` is what msgspec made of it."""
    if may_hide_nan(encoded) and not is_plain_and_finite(value):
        raise ValueError("NaN and Infinity are not JSON")


# --- depth ---------------------------------------------------------------------------------------------------

PEELED: Final = 4

_AS_LISTS: Final = bytes.maketrans(b"{}", b"[]")
_AS_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")  # each bracket as a signed byte: one level down, one level up
_NO_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b'[]{}"')))


def is_deeper_than(levels: int, encoded: bytes) -> bool:
    """Whether more than `levels` arrays and objects are nested in each other. The JSON isn't parsed: a parser may
    overflow its stack."""
    if len(encoded) <= 2 * levels:  # too few brackets
        return False
    if b"\\" in encoded:
        encoded = encoded.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = encoded.translate(_AS_LISTS, _NO_BRACKETS).replace(b'""', b"")
    if b'"' in brackets:  # a text has brackets
        brackets = b"".join(brackets.split(b'"')[::2])
    peeled = min(levels, PEELED)
    for _ in range(peeled):  # each round removes the innermost level of all branches: of most JSON, nothing is left
        brackets = brackets.replace(b"[]", b"")
    steps = memoryview(brackets.translate(_AS_STEPS)).cast("b")
    return max(accumulate(steps), default=0) > levels - peeled


# --- printable text ------------------------------------------------------------------------------------------
#
# Control characters (C0, C1, DEL), characters that change the direction of writing, invisible ones and line separators
# are shown as escapes such as `\x1b` or `\u202e`. (The joiners U+200C and U+200D stay: scripts and emoji need them.)
# Colours may stay. Every other well-formed control sequence (CSI) is left out. Commands that carry data to a terminal
# (titles, clipboards, links) are shown.

_UNSEEN: Final = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
"""All characters that are never printed as they are, without the tab and the line feed."""

_NUMBER: Final = r"[0-9]{1,3}"
_COLOUR: Final = (
    rf"(?:0?[0-4]|2[2-4]|3[0-79]|4[0-79]|9[0-7]|10[0-7]|[34]8;5;{_NUMBER}|[34]8;2;{_NUMBER};{_NUMBER};{_NUMBER})"
)
_COLOURS: Final = rf"\x1b\[(?:{_COLOUR}(?:;{_COLOUR}){{0,7}})?m"
"""Colours, bold, dim, italic and underlined text; nothing that hides text or makes it blink."""
_SEQUENCE: Final = r"\x1b\[[0-?]{0,32}[ -/]{0,4}[@-~]"

_to_escape: Final = re.compile(f"[{_UNSEEN}]")
_in_lines: Final = re.compile(f"({_COLOURS})|({_SEQUENCE})|[{_UNSEEN}]")
_in_a_line: Final = re.compile(f"({_COLOURS})|({_SEQUENCE})|[{_UNSEEN}\n]")
_in_a_cell: Final = re.compile(f"({_COLOURS})|({_SEQUENCE})|[{_UNSEEN}\n\t]")
_ends_plain: Final = re.compile(r"(?:\A|\x1b\[0*m)[^\x1b]*\Z").search

RESET: Final = "\x1b[0m"


def printable(text: str) -> str:
    """The text as a part of one line, without colours."""
    return text if _is_plain(text) else _in_a_cell.sub(_without_colour, text)


def printable_lines(text: str) -> str:
    """The text, of one line or several, without colours."""
    return text if _is_plain(text) else _in_lines.sub(_without_colour, text)


def coloured(line: str) -> str:
    """The text as one line with its colours, which end with it."""
    if _is_plain(line):
        return line
    line = _in_a_line.sub(_with_colour, line)
    return line if _ends_plain(line) else line + RESET


def indented(text: str, indent: str = "    ") -> str:
    """The text with all lines after the first one indented, which shows that they belong to it."""
    return text.replace("\n", "\n" + indent)


def json_text(encoded: str) -> str:
    """The same JSON, with characters that are never printed as escapes."""
    return encoded if _is_plain(encoded) else _to_escape.sub(_json_escape, encoded)


LOG_FORMATS: Final = ("text", "json", "auto")
"""Lines for people, one JSON object a line, or `auto`: lines with colours on a terminal, and JSON elsewhere."""
_LEVEL_COLOURS: Final = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_OWN_ATTRIBUTES: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class LogFormatter(logging.Formatter):
    """Formats log records for terminals. Only the first line of a record doesn't begin with four spaces, whatever its
    message contains."""

    def format(self, record: logging.LogRecord) -> str:
        return indented(printable_lines(super().format(record)))


class ColourFormatter(LogFormatter):
    """The same with a colour for each level."""

    def format(self, record: logging.LogRecord) -> str:
        return with_level_colour(super().format(record), record.levelname)


class JsonFormatter(logging.Formatter):
    """Formats each log record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        return log_json(record)


def log_formatter(kind: str, text_format: str, *, is_terminal: bool) -> logging.Formatter:
    """The formatter for a word of LOG_FORMATS."""
    if is_json_log(kind, is_terminal=is_terminal):
        return JsonFormatter()
    return LogFormatter(text_format) if kind == "text" else ColourFormatter(text_format)


def is_json_log(kind: str, *, is_terminal: bool) -> bool:
    """Whether the log is JSON, for a word of LOG_FORMATS."""
    return kind == "json" or (kind == "auto" and not is_terminal)


def with_level_colour(text: str, level: str) -> str:
    """The text of a log record with its level in a colour."""
    colour = _LEVEL_COLOURS.get(level)
    return text if colour is None else text.replace(level, f"\x1b[{colour}m{level}{RESET}", 1)


def log_json(record: logging.LogRecord, hide: Callable[[str], str] = str, **about: Any) -> str:
    """A log record as JSON: when, level, logger and message, and what it is `about`; its exception, and what was given
    as `extra`. `hide` masks secrets in the texts."""
    document = {"level": record.levelname.lower(), "logger": record.name, "message": hide(record.getMessage()), **about}
    if record.exc_info and record.exc_info[0] is not None:
        document["exception"] = hide(logging.Formatter().formatException(record.exc_info))
    for name, value in vars(record).items():
        if name not in _OWN_ATTRIBUTES and name not in document:
            is_plain = value is None or type(value) in (bool, int, float)
            document[name] = value if is_plain else hide(str(value))
    return json_line(record.created, document)


def json_line(at_s: float, document: dict[str, Any]) -> str:
    """A line of a log in JSON, with its time."""
    at = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    document = {"time": at} | document
    try:
        encoded = msgspec.json.encode(document)
    except UnicodeEncodeError:  # half a surrogate pair, which a file name may have
        texts = {name: each.encode("utf-8", "replace").decode() for name, each in document.items() if type(each) is str}
        encoded = msgspec.json.encode(document | texts)
    return json_text(encoded.decode())


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _without_colour(found: re.Match[str]) -> str:
    return "" if found[1] else _with_colour(found)


def _with_colour(found: re.Match[str]) -> str:
    colours, sequence = found.groups()
    if colours or sequence:
        return colours or ""
    return found[0].encode("unicode_escape").decode()


def _json_escape(found: re.Match[str]) -> str:
    units: Any = found[0].encode("utf-16-be", "surrogatepass")
    return "".join([f"\\u{high << 8 | low:04x}" for high, low in zip(units[::2], units[1::2], strict=True)])


# --- masking -------------------------------------------------------------------------------------------------
#
# A text is searched as it is, and with its escapes undone: those of JSON and of a repr, of URLs, HTML and shells, up to
# three of them around one another. Packed values (base64, hex) are searched as packed text: in base64 a value looks
# different after 0, 1 and 2 other bytes, as `user:password` has them.

MASK: Final = "***"  # replaces a secret value

LEAST: Final = 4  # shorter values aren't searched for in texts: they would be found everywhere
LEAST_LINE: Final = 8  # the same for one line of a value of several lines
DEEPEST: Final = 3
MANY_FORMS: Final = 64
"""Above this number, forms are looked up by their first letters, which costs about the same for any number."""
LONGEST_REACH: Final = 1 << 14

_SIMPLE: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b", "0": "\0"}
_BASE64: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")


class _Escapes(NamedTuple):
    """One way of escaping."""

    mark: str  # each escape begins with it
    pattern: re.Pattern[str]
    meaning: Callable[[re.Match[str]], str]


def _bytes(mark: str) -> str:
    """A pattern of escaped bytes: all bytes of one UTF-8 character, else a single byte."""
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
"""The escapes of web forms: a space is a plus sign. Only for values with spaces."""


class Masker:
    """Masks values. `texts` are their texts and numbers."""

    def __init__(self, texts: Iterable[str]) -> None:
        values = {value for text in texts for value in _values(text)}
        self._forms: dict[str, tuple[bool, bool]] = {}
        """By form: whether the base64 character before it, or after it, contains a part of the value."""
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
        """How many characters one value may take in a text. An incomplete text may end inside of one."""

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
        """The places of forms in a text."""
        candidates: Iterable[str] = self._forms
        if self._by_start:
            starts = {text[at : at + LEAST] for at in range(len(text) - LEAST + 1)} & self._by_start.keys()
            candidates = [form for start in starts for form in self._by_start[start]]
        for form in candidates:
            start = text.find(form)
            while start >= 0:
                stop = start + len(form)
                before, behind = self._forms[form]
                yield start - (before and text[start - 1 : start] in _BASE64), self._end(text, stop) if behind else stop
                start = text.find(form, stop)

    def _end(self, text: str, stop: int) -> int:
        stop += text[stop : stop + 1] in _BASE64
        return stop + len(text[stop : stop + 2]) - len(text[stop : stop + 2].lstrip("="))

    def _escaped(self, text: str) -> Iterator[tuple[int, int]]:
        """The places of forms that are found when the escapes of the text are undone, in any order."""
        views: dict[str, Callable[[int], int]] = {text: lambda place: place}
        """Each unescaped text, and the function from its places to those of the original text."""
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
    """The function from a place in an unescaped text to the original one. Computed on first use."""
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
    """The values to search for: the text, and each of its lines if it has several."""
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
    for quotes in ("'", '"'):  # SQL and CSV double a quote inside quotes
        yield value.replace(quotes, quotes * 2)


def _base64(value: str) -> Iterator[tuple[str, tuple[bool, bool]]]:
    """The base64 characters that depend only on the value, after 0, 1 and 2 other bytes (modulo 3)."""
    for text in {value, json.dumps(value)[1:-1], quote(value.encode("utf-8", "surrogatepass"), safe="")}:
        raw = text.encode("utf-8", "surrogatepass")
        for before in range(3):
            first, before_first = -(-before * 8 // 6), before * 8 % 6 > 0
            last, behind_last = (before + len(raw)) * 8 // 6, (before + len(raw)) * 8 % 6 > 0
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                yield encode(bytes(before) + raw).decode()[first:last], (before_first, behind_last)


# --- the secrets of a payload --------------------------------------------------------------------------------

T = TypeVar("T")

Secret = Annotated[T, msgspec.Meta(extra_json_schema={"writeOnly": True})]
"""Marks a field of a payload as secret: `token: Secret[str]`. Only the task sees the value, as a plain `str`."""

Path = Sequence[str | int]

_decode = msgspec.json.Decoder().decode


class SecretsGone(Exception):
    """Raised when a task starts whose secret values are no longer stored."""


class Secrets:
    """The secret values of one payload, each with its path in it. None means that they are no longer stored."""

    def __init__(self, places: Sequence[tuple[Path, Any]] | None) -> None:
        self._places = places
        self._masker: Masker | None = None

    @classmethod
    def restore(cls, stored: bytes) -> Secrets:
        """The reverse of `stored`. Empty when Redis no longer has them."""
        return cls(_decode(stored) if stored else None)

    def stored(self) -> bytes:
        """The form in which Redis stores them. Raises: ValueError when one of them is not JSON."""
        encoded = msgspec.json.encode(self._places)
        refuse_nan([value for _, value in self._places or ()], encoded)
        return encoded

    def put_into(self, payload: Any) -> Any:
        """A copy of the masked payload with the values in their places.
        Raises: SecretsGone; LookupError or TypeError, if the payload is damaged and has no such place."""
        if self._places is None:
            raise SecretsGone("its secret fields are no longer kept (TASKPOOL_SECRET_TTL_S): submit it again")
        payload = [copy.deepcopy(payload)]
        for path, value in self._places:
            *steps, last = (0, *path)
            place: Any = payload
            for step in steps:
                place = place[step]
            place[last] = value
        return payload[0]

    @property
    def masker(self) -> Masker:
        """Masks the values. Made on first use."""
        if self._masker is None:
            self._masker = Masker(leaf for _, value in self._places or () for leaf in _leaves(value))
        return self._masker

    def hide(self, text: str) -> str:
        """The text with every value masked, also where it is escaped or packed."""
        return self.masker.hide(text)

    def hide_in(self, value: Any) -> Any:
        """The JSON value with all secrets masked, in texts and as numbers."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, dict):
            return {self.hide(name): self.hide_in(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide_in(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool) and self.hide(str(value)) == MASK:
            return MASK
        return value

    def __repr__(self) -> str:
        return f"<{len(self._places or ())} secrets>"


def hidden(text: str, secrets: Secrets | None) -> str:
    """The text with these secrets masked, if there are any. For everything that a task writes and others may read."""
    return text if secrets is None else secrets.hide(text)


def _leaves(value: Any) -> Iterator[str]:
    """The texts and numbers in a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def seconds_until(retry_after: str) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date; None if it is neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after.strip()[:9])
    try:
        at = parsedate_to_datetime(retry_after)
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def own_version() -> str:
    """The version of the installed package. Its name isn't `taskpool`: that name is taken on PyPI."""
    return version("taskpool-jobs")
