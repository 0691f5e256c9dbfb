"""An operation as a value: a `Call` is one Redis command and how to read its reply; a `Plan` is several, in steps.

The blocking and the async store both run them, so that no operation is written twice. `Script` makes the calls of the
Lua scripts in the folder lua/.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from taskpool.errors import FieldError, InvalidTask
from taskpool.redis.linker import linked

log = logging.getLogger("taskpool")

T = TypeVar("T")

Part = str | bytes | int | float


class Call(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One command and the function that turns Redis's raw reply into a value (or raises for it)."""

    command: Sequence[Part]
    read: Callable[[Any], T]
    script: bytes | None = None
    """The text of the script an EVALSHA names: sent instead when Redis doesn't know it (any more)."""
    blocks_s: float = 0.0
    """How long the command itself may block, on top of the usual time for a reply."""
    again: bool = False
    """Sending it twice is as good as once: after a lost connection it may be repeated."""
    reads_faults: bool = False
    """`read` takes Redis's error as well, if that says that the call itself fails, as with a key of another kind."""


Plan = Generator[Sequence[Call[Any]], list[Any], T]
"""Steps of calls: each yield sends its calls in one round trip, and gets their values back or raises what sending them
raised. An empty step sends nothing: in an event loop it lets other coroutines run, which a plan owes them every
SLICE_S."""

SLICE_S: Final = 0.005


def collected(items: Iterable[T]) -> Plan[list[T]]:
    """All items of an iterator that takes long for each, with empty steps in between and at the end."""
    found: list[T] = []
    due_mono = time.monotonic() + SLICE_S
    for item in items:
        found.append(item)
        if time.monotonic() >= due_mono:
            yield ()
            due_mono = time.monotonic() + SLICE_S
    yield ()
    return found


def one(call: Call[T]) -> Plan[T]:
    """A plan of a single call."""
    (value,) = yield (call,)
    return value  # type: ignore[no-any-return]


MOST_REPORTED: Final = 100
TEXT_MOST: Final = 200
UNREADABLE: Final = (ArithmeticError, LookupError, TypeError, ValueError, RecursionError, msgspec.MsgspecError)
"""What `read` raises at a reply that no release of ours wrote."""

reported: Final[deque[str]] = deque(maxlen=MOST_REPORTED)


def tolerant(call: Call[T], otherwise: T) -> Call[T]:
    """The same call for one of many records, with the value `otherwise` for one that can't be read: another program may
    have written anything there. The log says it once."""

    def read(reply: Any) -> T:
        if not isinstance(reply, Exception):  # hiredis.ReplyError, which clients of the HTTP API don't import
            try:
                return call.read(reply)
            except UNREADABLE as error:
                reply = error
        tell_unreadable(_named(call), reply)
        return otherwise

    return msgspec.structs.replace(call, read=read, reads_faults=True)


def readable(pairs: Iterable[tuple[Any, bytes]], decode: Callable[[bytes], T], what: str) -> dict[Any, T]:
    """The documents among the values of a hash, by field, without those that can't be read. The log says it once."""
    found = {}
    for name, document in pairs:
        try:
            found[name] = decode(document)
        except UNREADABLE as error:
            tell_unreadable(f"{what} {name!r}", error)
    return found


def tell_unreadable(what: str, why: object) -> None:
    """Log once that something in Redis is skipped."""
    if what not in reported:
        reported.append(what)
        log.warning("%s in Redis can't be read, so it is skipped: %s", what[:TEXT_MOST], str(why)[:TEXT_MOST])


def _named(call: Call[Any]) -> str:
    """The key that a call reads, for people; of a script what it is about."""
    parts = [part if isinstance(part, str) else repr(part) for part in call.command[:5]]
    return " ".join(parts[3:]) if call.script else parts[1] if len(parts) > 1 else parts[0]


def as_it_is(reply: T) -> T:
    """A reply as it is."""
    return reply


def texts(reply: Sequence[bytes]) -> list[str]:
    """Names and ids. Other programs may have written any bytes; what isn't UTF-8 is no name of ours."""
    return [part.decode(errors="replace") for part in reply]


def names(reply: Sequence[bytes]) -> list[str]:
    """The texts in a reply, without what isn't UTF-8."""
    return [text for text in texts(reply) if "\ufffd" not in text]


def hash_of(reply: Sequence[bytes] | dict[bytes, bytes]) -> Mapping[bytes, bytes]:
    """A hash as RESP 2 (a flat list of fields and values) or RESP 3 has it."""
    if isinstance(reply, dict):  # not Mapping: every read of a task comes here, and asking an ABC is slow
        return reply
    parts = iter(reply)
    return dict(zip(parts, parts, strict=True))


def times_of(scored: Sequence[bytes]) -> dict[str, int]:
    """The times in ms in a sorted set, by name: the reply of a command `WITHSCORES`. Without numbers that are no time:
    another program may have written any."""
    pairs = zip(texts(scored[::2]), map(float, scored[1::2]), strict=True)
    return {name: int(ms) for name, ms in pairs if 0 <= ms <= MOST}


def redis_ms() -> Call[int]:
    """Redis's time in ms since 1970."""
    return Call(("TIME",), lambda reply: int(reply[0]) * 1000 + int(reply[1]) // 1000, again=True)


class Script:
    """One Lua script: its text, and the command that runs it by hash.

    It is named by its hash, so that two versions that are deployed side by side never replace each other.
    """

    def __init__(self, name: str) -> None:
        self.text = linked(name).encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def call(
        self, arguments: Sequence[Part], read: Callable[[Any], T], *, keys: Sequence[str] = (), again: bool = True
    ) -> Call[T]:
        """The call that runs it; `again`: it may be sent twice."""
        return Call(("EVALSHA", self.sha, len(keys), *keys, *arguments), read, self.text, again=again)

    def word(self, *arguments: Part, again: bool = True) -> Call[str]:
        """The same of a script that answers with one word."""
        return self.call(arguments, bytes.decode, again=again)


MOST: Final = 1 << 53


def encode_cursor(*parts: Any) -> str:
    """A cursor of these JSON values."""
    return base64.urlsafe_b64encode(msgspec.json.encode(parts)).decode().rstrip("=")


def decode_cursor(cursor: str, kinds: Sequence[type]) -> list[Any]:
    """What `encode_cursor` was given; whole numbers are 0 or more.

    Raises:
        InvalidTask: it isn't a cursor of these kinds of values.
    """
    if not isinstance(cursor, str):
        raise wrong_cursor()
    try:
        parts = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError, msgspec.MsgspecError):
        parts = None
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        raise wrong_cursor()
    if any(isinstance(part, int) and not 0 <= part <= MOST for part in parts):
        raise wrong_cursor()
    return parts


def page_length(limit: object, longest: int) -> int:
    """How many a page holds at most: `limit`, but no more than `longest`.

    Raises:
        InvalidTask: `limit` is no whole number of 1 or more.
    """
    if isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1:
        return min(limit, longest)
    text = f"must be a whole number of 1 or more, not {limit!r}"
    raise InvalidTask(f"/limit: {text}", [FieldError("/limit", text)])


def wrong_cursor() -> InvalidTask:
    """The error for a cursor that no listing of ours has given out."""
    text = "not a cursor of this listing: take next_cursor of the page before, as it is"
    return InvalidTask(f"/cursor: {text}", [FieldError("/cursor", text)])
