"""Names, numbers and declared fields: what is valid, and the texts about what isn't. Nothing here raises.

`Field` is what a declaration in `types` says about a field. `declared` reads the fields of a class, `value_faults`
checks a value with its declaration.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import ipaddress
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from functools import cache, partial
from itertools import islice
from struct import unpack
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeGuard,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

BUILTIN_TYPES: Final = dict.fromkeys(
    ("echo", "long_task", "word_count", "word_merge", "http_request"), "taskpool.tasks.builtin"
)
"""The task types that come along, each with its module."""
TYPE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
TAG: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
UNIQUE_KEY: Final = re.compile(r"[!-~]{1,128}")
UNIQUE_KEY_TAKES: Final = "1 to 128 ASCII characters without spaces"
TYPE_TAKES: Final = "the name of a task type: 1 to 64 letters, digits, '_', '-' or '.', a letter first (ASCII)"
TAG_TAKES: Final = "a tag: 1 to 64 letters, digits, '_', '-', '.' or ':'"
QUEUE_TAKES: Final = "the name of a queue: 1 to 64 letters, digits, '_', '-' or '.' (ASCII)"

PATH_PREFIX_FORM: Final = "a path like /jobs or /a/b: letters, digits, '_', '-', '.' and '~' (ASCII) between slashes"
LONGEST_PATH_PREFIX: Final = 255
_PATH_PREFIX: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
_NEW_ID: Final = re.compile(f"[{_ALPHABET}]{{20}}")
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]


def shortened(text: str, most: int = 80) -> str:
    """The text with at most `most` characters. A client may send one of any length."""
    return text if len(text) <= most else text[: most - 1] + "…"


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is a text that UTF-8 can hold, as Redis gets it: one without half a surrogate pair."""
    return isinstance(value, str) and (value.isascii() or not _SURROGATE.search(value))


def _name_fault(pattern: re.Pattern[str], takes: str, name: object) -> str | None:
    return None if isinstance(name, str) and pattern.fullmatch(name) else f"{name!r} can't be {takes}"


type_name_fault = partial(_name_fault, TYPE_NAME, TYPE_TAKES)
queue_name_fault = partial(_name_fault, QUEUE_NAME, QUEUE_TAKES)
"""What is wrong with a name; None when it is fine."""

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
    Raises: ValueError, whose text says what is accepted."""
    prefix = text.removesuffix("/")
    if len(text) <= LONGEST_PATH_PREFIX and _PATH_PREFIX.fullmatch(prefix) and (prefix or text in ("", "/")):
        return prefix
    raise ValueError(f"{shortened(text)!r} is not {PATH_PREFIX_FORM}")


def new_id() -> str:
    """A new task's id: 20 characters that sort by the millisecond (42 bits, good until 2109), then 58 random bits."""
    return _id(_time_bits() | int.from_bytes(os.urandom(8)) >> 6)


def new_ids(count: int) -> list[str]:
    """New ids of one millisecond, in order."""
    start = _time_bits()
    return [_id(start | random >> 6) for random in sorted(unpack(f">{count}Q", os.urandom(8 * count)))]


def _time_bits() -> int:
    """The time as the first bits of a new id."""
    return time.time_ns() // 1_000_000 << 58


def derived_id(of: str, what: bytes) -> str:
    """The id of a task that comes from another task or from a workflow: always the same for the same `what`. It begins
    with the time in the id `of`, so that it is listed beside that one; the rest is a hash (60 bits)."""
    hashed = _id(int.from_bytes(hashlib.blake2b(b"%s\0%s" % (of.encode(), what), digest_size=13).digest()) >> 4)
    start = derived_start(of)
    return start + hashed[len(start) :]


def derived_start(of: str) -> str:
    """With what each `derived_id` of this id begins; empty if it isn't in our form, as that of a job of plain RQ."""
    return of[:8] if _NEW_ID.fullmatch(of) else ""


def id_at(ms: int) -> str:
    """The first id of that time (in ms since 1970), for `derived_id`."""
    return _id(ms << 58)


def _id(number: int) -> str:
    """An id of 20 characters for a number of 100 bits."""
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(90, -1, -10)])


LEAST_S: Final = 0.001
LONGEST_S: Final = 10 * 366 * 86_400  # the longest span that anything here takes: ten years
LONGEST_GRACE_S: Final = 86_400  # the longest that a task may be given to stop by itself


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
        return shortened(repr(value))
    except ValueError:  # an integer of thousands of digits has no text
        return "so many"


if TYPE_CHECKING:
    Duration = float | str | timedelta
    Moment = datetime | str
else:  # the forms that JSON has
    Duration, Moment = float | str, datetime
"""What programs give as a duration (see `seconds_of`) and as a time (see `time_of`)."""

_UNITS: Final = {"w": (604_800, 2), "d": (86_400, 3), "h": (3600, 4), "m": (60, 6), "s": (1, 7), "ms": (0.001, 10)}
"""The units of durations in seconds, and the most digits of their numbers: what a text can say is below LONGEST_S."""


def _number(digits: int, unit: str = "") -> str:
    return rf"([0-9]{{1,{digits}}}(?:\.[0-9]{{1,9}})?){unit}"


DURATION: Final = re.compile(
    rf"(?=[0-9])(?:{_number(8)}|{''.join(f'(?:{_number(most, unit)})?' for unit, (_, most) in _UNITS.items())})"
)
"""A duration as a text: a number of seconds, or numbers with units, the largest unit first."""


def seconds_of(value: object, least_s: float = 0, most_s: float = LONGEST_S) -> float:
    """The seconds of a duration: a number of seconds, a `timedelta`, or a text like "90", "5m", "1h30m", "2d", "500ms".
    Raises: ValueError, whose text says what is accepted."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(value, str) and (found := DURATION.fullmatch(value)):
        numbers = zip((1, *(unit_s for unit_s, _ in _UNITS.values())), found.groups(), strict=True)
        seconds = round(sum(unit_s * float(number) for unit_s, number in numbers if number), 9)
    if isinstance(seconds, int | float) and is_seconds(seconds, least_s, most_s):
        return seconds
    raise ValueError(
        f"must be a duration from {_in_units(least_s)} to {_in_units(most_s)}: {_FORMS}, not {_shown(value)}"
    )


_FORMS: Final = "a number of seconds, or a text like '5m', '1h30m', '2d' or '500ms'"


def _in_units(seconds: float) -> str:
    """A number of seconds in the largest unit of which it is a whole number, as `seconds_of` reads it."""
    units = ((unit, unit_s) for unit, (unit_s, _) in _UNITS.items())
    unit, unit_s = next((each for each in units if seconds >= each[1] and seconds % each[1] == 0), ("s", 1))
    return f"{seconds / unit_s:.12g}{unit}"


def _duration_fault(least_s: float, most_s: float, value: object) -> str | None:
    try:
        seconds_of(value, least_s, most_s)
    except ValueError as error:
        return str(error)
    return None


def time_of(text: str) -> datetime:
    """The time that a text names, with its zone: an ISO 8601 time, local if it has no zone, or a time of day like
    "02:00", which is the next such local time. Raises: ValueError, OverflowError."""
    try:
        at = time_of_day.fromisoformat(text) if ":" in text[:3] else None
    except ValueError:
        at = None
    if at is None or at.tzinfo is not None:
        return datetime.fromisoformat(text).astimezone()
    now = datetime.now().astimezone()
    days = [datetime.combine(now.date() + timedelta(days=after), at) for after in (0, 1)]
    # A time may come twice on the day on which daylight saving time ends.
    moments = [day.replace(fold=fold).astimezone() for day in days for fold in (0, 1)]
    return next(each for each in moments if each > now)


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
        return [] if len(name) > 64 else difflib.get_close_matches(name, islice(known, 500), n=n, cutoff=cutoff)

    def hint(self, name: str, known: Collection[str]) -> str:
        """The end of a text about an unknown name: a guess, or all known names."""
        if not known:
            return "; there are none"
        near = self.near(name, known)
        if near is None:
            return ""
        return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


@dataclass(frozen=True, slots=True)
class Field:
    """What is known about a field besides its type and its default. It is part of the field's annotation.

    The checks, the OpenAPI document, the flags of `taskpool submit` and the tables in the docs are derived from it."""

    description: str = ""  # one or more sentences; names of other fields stand in backticks
    _: KW_ONLY
    default: str = ""  # the default in words, where the value doesn't say it
    examples: Sequence[Any] = ()
    least: float | None = None  # the bounds of a number, or of the length of a list
    most: float = LONGEST_S  # also of the length of a text
    pattern: re.Pattern[str] | None = None  # what the text, or each text of the list, has to match completely
    takes: str = ""  # the pattern in words
    choices: Sequence[str] = ()  # the only texts that the list may hold
    each: Callable[[Any], Iterator[tuple[str, str]]] | None = None
    """What is wrong with an item of the list, with the JSON Pointers below it, if its items are more than texts."""
    is_url: bool = False  # the URL of a webhook; settings decide which ones are allowed
    excludes: Sequence[str] = ()  # the options that can't be given together with this one
    needs: str = ""  # the option without which this one can't be given
    flag: str = ""  # the flag of `taskpool submit`, if it doesn't follow from the name (`Declared.flag`)
    metavar: str = ""  # the word for the value in the help of that flag
    stored: str = ""
    """The field of the task's hash that holds the option alone: a text as it is, anything else as JSON. Other options
    are stored by code of their own."""
    is_joined: bool = False  # whether the hash holds the list as one text with commas


class Declared(NamedTuple):
    """A field of a struct or dataclass with all that is known about it.

    `type` is its type without None and UNSET. `default` is NODEFAULT for a field that is required or has a default
    factory."""

    name: str
    type: Any
    default: Any
    about: Field
    is_list: bool
    fault: Callable[[Any], str | None]
    """What is wrong with a value that is no list. It may have any type: programs may pass what annotations forbid."""

    @property
    def flag(self) -> str:
        """The flag of commands that sets it: without the unit, and in the singular for a list, which repeats it."""
        return self.about.flag or "--" + self.name.removesuffix("s" if self.is_list else "_s").replace("_", "-")


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
        forms = [each for each in get_args(bare) if each not in (NoneType, msgspec.UnsetType)]
        objects = [form for form in forms if isinstance(form, type) and issubclass(form, msgspec.Struct)]
        bare = (
            forms[0] if len(forms) == 1 else objects[0] if objects else Duration if {*forms} == {float, str} else bare
        )
    return Declared(name, bare, default, about, get_origin(bare) in (tuple, Sequence), _check_of(bare, about))


EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2999, 12, 31, tzinfo=UTC)


def value_faults(field: Declared, value: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with the value of a field, each fault with its JSON Pointer below the field."""
    if field.is_list:
        yield from _list_faults(field.about, value)
    elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
        yield from _object_faults(field, value)
    elif fault := field.fault(value):
        yield "", fault


def faults_of(kind: Any, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the given fields of a struct, each fault with its JSON Pointer. None is nothing given."""
    for field in declared(kind):
        if given.get(field.name) is not None:
            for below, fault in value_faults(field, given[field.name]):
                yield f"/{field.name}{below}", fault


def _object_faults(field: Declared, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, field.type):
        yield from faults_of(field.type, msgspec.structs.asdict(value))
    else:
        yield "", f"must be {field.about.takes or 'an object'}, not {_shown(value)}"


def _check_of(kind: Any, about: Field) -> Callable[[Any], str | None]:
    """The check for values of this type."""
    least, most = about.least or 0, about.most
    if kind is float:
        return partial(seconds_fault, least_s=least, most_s=most)
    if kind == Duration:
        return partial(_duration_fault, least, most)
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
        return "must be a time with a time zone, or a text like '02:00', the next such local time"
    return None if EARLIEST <= value <= LATEST else f"must be a time from {EARLIEST.year} to {LATEST.year}"


def _choice_fault(choices: Sequence[Any], value: Any) -> str | None:
    return None if value in choices else f"must be {' or '.join(map(repr, choices))}, not {_shown(value)}"


def _text_fault(about: Field, value: Any) -> str | None:
    if is_text(value) and len(value) <= about.most and (not about.pattern or about.pattern.fullmatch(value)):
        return None
    return f"must be {about.takes or 'a text'}, not {_shown(value)}"


def _list_faults(about: Field, values: Any) -> Iterator[tuple[str, str]]:
    least, most = about.least or 0, about.most
    if not isinstance(values, Sequence) or isinstance(values, str) or not least <= len(values) <= most:
        bounds = f"{least} to {most:,}" if least else f"at most {most:,}"
        yield "", f"must be a list of {bounds} items"
        return
    for at, value in enumerate(values):
        if about.each:
            yield from ((f"/{at}{below}", fault) for below, fault in about.each(value))
        elif about.choices and value not in about.choices:
            yield f"/{at}", f"must be one of {', '.join(about.choices)}"
        elif about.pattern and not (is_text(value) and about.pattern.fullmatch(value)):
            yield f"/{at}", f"must be {about.takes}"
