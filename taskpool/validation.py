"""Names, numbers and declared fields: what is valid, and the texts about what isn't. Nothing here raises.

`Field` is what a declaration in `types` says about a field. `declared` reads the fields of a class, `value_faults`
checks a value with its declaration.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from functools import cache, partial
from itertools import islice
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin, get_type_hints

import msgspec

BUILTIN_TYPES: Final = {
    "echo": "taskpool.tasks.builtin",
    "long_task": "taskpool.tasks.builtin",
    "word_count": "taskpool.tasks.builtin",
    "word_merge": "taskpool.tasks.builtin",
    "http_request": "taskpool.tasks.builtin",
}
"""The task types that come along, each with its module."""
TYPE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
TAG: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
UNIQUE_KEY: Final = re.compile(r"[!-~]{1,128}")
UNIQUE_KEY_TAKES: Final = "1 to 128 ASCII characters without spaces"
QUEUE_TAKES: Final = "the name of a queue: 1 to 64 letters, digits, '_', '-' or '.' (ASCII)"

PATH_PREFIX_FORM: Final = "a path like /jobs or /a/b: letters, digits, '_', '-', '.' and '~' (ASCII) between slashes"
LONGEST_PATH_PREFIX: Final = 255
_PATH_PREFIX: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is a text that UTF-8 can hold, as Redis gets it: one without half a surrogate pair."""
    return isinstance(value, str) and (value.isascii() or not _SURROGATE.search(value))


def type_name_fault(name: object) -> str | None:
    """What is wrong with a task type's name; None when it is fine."""
    if isinstance(name, str) and TYPE_NAME.fullmatch(name):
        return None
    return (
        f"{name!r} can't be the name of a task type: 1 to 64 letters, digits, '_', '-' or '.', a letter first (ASCII)"
    )


def queue_name_fault(name: object) -> str | None:
    """What is wrong with a queue's name; None when it is fine."""
    if isinstance(name, str) and QUEUE_NAME.fullmatch(name):
        return None
    return f"{name!r} can't be {QUEUE_TAKES}"


_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::[0-9]{1,5})?|([0-9a-f:.]+)")
"""A name or an address, perhaps with a port; one of IPv6 in brackets, or without them and without a port."""


def names_this_machine(address: str) -> bool:
    """Whether only this machine itself can reach an address: ``localhost``, ``127.0.0.1:8080``, ``[::1]:8080``."""
    found = _HOST.fullmatch(address.lower())
    if found is None:
        return False
    host = found[1] or found[2] or found[3]
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def path_prefix(text: str) -> str:
    """The prefix of URL paths that `text` names, such as `/jobs` or `/a/b`, without a slash at its end; `/` is none.

    Raises:
        ValueError: it isn't one; the text says what is accepted.
    """
    prefix = text.removesuffix("/")
    if len(text) <= LONGEST_PATH_PREFIX and _PATH_PREFIX.fullmatch(prefix) and (prefix or text in ("", "/")):
        return prefix
    shown = text if len(text) <= 80 else text[:80] + "..."
    raise ValueError(f"{shown!r} is not {PATH_PREFIX_FORM}")


def new_id() -> str:
    """A new task's id: 20 characters that sort by the millisecond (42 bits, good until 2109), then 58 random bits."""
    number = time.time_ns() // 1_000_000 << 58 | int.from_bytes(os.urandom(8)) >> 6
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(90, -1, -10)])


LEAST_S: Final = 0.001
LONGEST_S: Final = 10 * 366 * 86_400
"""The longest span that anything here takes: ten years."""
LONGEST_GRACE_S: Final = 86_400
"""The longest that a task may be given to stop by itself."""


def accepted(least_s: float = 0, most_s: float = LONGEST_S) -> str:
    """What a span may be, in words."""
    return f"a number of seconds from {least_s:g} to {most_s:.12g}"


def is_seconds(value: object, least_s: float = 0, most_s: float = LONGEST_S) -> bool:
    """Whether it is a number in this range: no NaN, no text, no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least_s <= value <= most_s


def seconds_fault(value: object, least_s: float = 0, most_s: float = LONGEST_S) -> str | None:
    """What is wrong with a span; None when it is fine."""
    return None if is_seconds(value, least_s, most_s) else f"must be {accepted(least_s, most_s)}, not {_shown(value)}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits has no text
        return "so many"
    return text if len(text) <= 80 else text[:79] + "…"


LONGEST: Final = 64
MOST_KNOWN: Final = 500


class Guesses:
    """Guesses for the wrong names of one request. Only the first few get one: the client chooses how many names it
    sends, and a guess compares a name with all known ones, letter by letter."""

    def __init__(self, most: int = 5) -> None:
        self._left = most

    def near(self, name: str, known: Iterable[str], *, n: int = 1, cutoff: float = 0.6) -> list[str] | None:
        """The `n` most similar known names, best first; None when there were enough guesses already."""
        if not self._left:
            return None
        self._left -= 1
        if len(name) > LONGEST:
            return []
        return difflib.get_close_matches(name, islice(known, MOST_KNOWN), n=n, cutoff=cutoff)


@dataclass(frozen=True, slots=True)
class Field:
    """What is known about a field besides its type and its default. It is part of the field's annotation.

    The checks, the OpenAPI document, the flags of `taskpool submit` and the tables in the docs are derived from it.
    """

    description: str = ""
    """One or more sentences. Names of other fields stand in backticks."""
    _: KW_ONLY
    default: str = ""
    """The default in words, where the value doesn't say it."""
    examples: Sequence[Any] = ()
    least: float | None = None
    most: float = LONGEST_S
    """The bounds of a number, or of the length of a list."""
    pattern: re.Pattern[str] | None = None
    """What the text, or each text of the list, has to match completely."""
    takes: str = ""
    """The pattern in words."""
    choices: Sequence[str] = ()
    """The only texts that the list may hold."""
    is_url: bool = False
    """The URL of a webhook; settings decide which ones are allowed."""
    excludes: str = ""
    """The option that can't be given together with this one."""
    needs: str = ""
    """The option without which this one can't be given."""
    flag: str = ""
    """The flag of `taskpool submit`, if it doesn't follow from the name (`Declared.flag`)."""
    metavar: str = ""
    """The word for the value in the help of that flag."""
    stored: str = ""
    """The field of the task's hash that holds the option and nothing else: a text as it is, anything else as JSON.

    Other options are stored by code of their own.
    """
    is_joined: bool = False
    """Whether the hash holds the list as one text with commas."""


class Declared(NamedTuple):
    """A field of a struct or dataclass with all that is known about it.

    `type` is its type without None; `default` is NODEFAULT for a field that is required or has a default factory.
    """

    name: str
    type: Any
    default: Any
    about: Field
    is_list: bool
    fault: Callable[[Any], str | None]
    """What is wrong with a value that is no list. It may have any type: programs may pass what annotations forbid."""

    @property
    def flag(self) -> str:
        """The flag of `taskpool submit` that sets it."""
        return self.about.flag or "--" + self.name.removesuffix("_s").replace("_", "-")


@cache
def declared(kind: Any) -> tuple[Declared, ...]:
    """The fields of a struct or a dataclass, those that the class itself declares first."""
    hints = get_type_hints(kind, include_extras=True)
    if issubclass(kind, msgspec.Struct):
        defaults = {each.name: each.default for each in msgspec.structs.fields(kind)}
    else:
        plain = {each.name: each.default for each in dataclasses.fields(kind)}
        defaults = {name: msgspec.NODEFAULT if each is dataclasses.MISSING else each for name, each in plain.items()}
    names = dict.fromkeys(name for cls in kind.__mro__ for name in vars(cls).get("__annotations__", ()))
    return tuple([_declared(name, hints[name], defaults[name]) for name in names if name in defaults])


def default_in_words(field: Declared) -> str:
    """What a field is if it isn't given, as help and docs show it; empty if there is nothing to say."""
    if field.about.default or field.default in (None, msgspec.NODEFAULT):
        return field.about.default
    return f"`{field.default if isinstance(field.default, str) else msgspec.json.encode(field.default).decode()}`"


def _declared(name: str, annotation: Any, default: Any) -> Declared:
    bare, about = annotation, Field()
    if get_origin(bare) is Annotated:
        bare, *marks = get_args(bare)
        about = next((mark for mark in marks if isinstance(mark, Field)), about)
    if get_origin(bare) in (UnionType, Union):
        forms = [each for each in get_args(bare) if each is not NoneType]
        bare = forms[0] if len(forms) == 1 else bare
    return Declared(name, bare, default, about, get_origin(bare) in (tuple, Sequence), _check_of(bare, about))


EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2999, 12, 31, tzinfo=UTC)


def value_faults(field: Declared, value: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with the value of a field, each fault with its JSON Pointer below the field."""
    if field.is_list:
        yield from _list_faults(field.about, value)
    elif fault := field.fault(value):
        yield "", fault


def _check_of(kind: Any, about: Field) -> Callable[[Any], str | None]:
    """The check for values of this type."""
    least, most = about.least or 0, about.most
    if kind is float:
        return partial(seconds_fault, least_s=least, most_s=most)
    if kind is int:
        return partial(_whole_fault, least, most)
    if kind is datetime:
        return _time_fault
    if get_origin(kind) is Literal:
        return partial(_choice_fault, get_args(kind))
    return partial(_text_fault, about) if kind is str else lambda value: None


def _whole_fault(least: float, most: float, value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return None
    return f"must be a whole number from {least} to {most}, not {_shown(value)}"


def _time_fault(value: Any) -> str | None:
    if not isinstance(value, datetime) or value.tzinfo is None:
        return "must be a time with a time zone"
    return None if EARLIEST <= value <= LATEST else f"must be a time from {EARLIEST.year} to {LATEST.year}"


def _choice_fault(choices: Sequence[Any], value: Any) -> str | None:
    return None if value in choices else f"must be {' or '.join(map(repr, choices))}, not {_shown(value)}"


def _text_fault(about: Field, value: Any) -> str | None:
    if isinstance(value, str) and (about.pattern is None or about.pattern.fullmatch(value)):
        return None
    return f"must be {about.takes or 'a text'}, not {_shown(value)}"


def _list_faults(about: Field, values: Any) -> Iterator[tuple[str, str]]:
    least, most = about.least or 0, about.most
    if not isinstance(values, Sequence) or isinstance(values, str) or not least <= len(values) <= most:
        yield "", f"must be a list of {least} to {most:,}" if least else f"must be a list of at most {most:,}"
        return
    for at, value in enumerate(values):
        if about.choices and value not in about.choices:
            yield f"/{at}", f"must be one of {', '.join(about.choices)}"
        elif about.pattern and not (isinstance(value, str) and about.pattern.fullmatch(value)):
            yield f"/{at}", f"must be {about.takes}"
