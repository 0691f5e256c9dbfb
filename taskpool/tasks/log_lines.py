"""The log of a task: what a line is, and how the output of a task becomes numbered lines, within limits.

If an attempt writes more than its limits allow, its first and its last lines are kept, and a line between them says
that some are missing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Annotated, Final

import msgspec
from msgspec.structs import replace

from taskpool.tasks.context import clean
from taskpool.types import Document, LogLimits
from taskpool.validation import Field

TAIL_SHARE: Final = 10
"""The last lines get a tenth of the limits."""


class LogLine(Document, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a task's log. `id` is its place in the log."""

    at_ms: Annotated[int, Field("When it was written, by the worker's clock.")]
    attempt: Annotated[int, Field("The attempt that wrote it.", least=0)] = 0
    stream: Annotated[
        str,
        Field(
            "`log` (`ctx.log`), `stdout`, `stderr`, `logging`, or `taskpool` for remarks about the log itself.",
            examples=["stdout"],
        ),
    ] = "log"
    level: Annotated[str | None, Field("The level of a `logging` record.", examples=["warning"])] = None
    logger: Annotated[str | None, Field("The logger of a `logging` record.", examples=["app.images"])] = None
    text: Annotated[str, Field("The text as it was written, including colours.")]
    continues: Annotated[bool, Field("The line was too long; the next line of the stream continues it.")] = False
    id: str = ""


encode_line = msgspec.json.Encoder().encode
decode_line = msgspec.json.Decoder(LogLine).decode
_Numbered = tuple[int, bytes]


class Lines:
    """The log of one attempt on its way out. Any thread may write; only one reads.

    `mask` is applied to each line first. A masked value takes `reach` characters at most, so the last `reach`
    characters of a long line that continues are kept back: they may be the first half of a value. `spool`, which
    outlives the process, gets each line at once, also those that aren't kept. Number 0 is a line that hasn't ended yet.
    """

    def __init__(
        self,
        attempt: int,
        limits: LogLimits,
        *,
        mask: Callable[[str], str] | None = None,
        reach: int = 0,
        spool: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self._attempt, self._limits, self._mask, self._reach, self._spool = attempt, limits, mask, reach, spool
        self._lock = threading.RLock()  # a signal handler or a finalizer may write inside of a write
        self._count = 0
        self._head: deque[_Numbered] = deque()
        self._room_lines = limits.lines - limits.lines // TAIL_SHARE
        self._room_bytes = limits.bytes - limits.bytes // TAIL_SHARE
        self._tail: deque[_Numbered] | None = None
        self._tail_lines = max(limits.lines // TAIL_SHARE, 1)
        self._tail_bytes = 0
        self._open: dict[tuple[str, str], str] = {}
        """By stream and source, the line that hasn't ended yet."""

    def __bool__(self) -> bool:
        """Whether there are lines to send."""
        return bool(self._head)

    def write(self, stream: str, text: str, source: str = "") -> None:
        """Add a part of a stream, which contains the ends of lines. Parts from one `source` are in order."""
        origin = self._origin(stream)
        with self._lock:
            *ended, rest = (self._open.get((stream, source), "") + text).split("\n")
            # An interrupt may come between any two steps. A line that hasn't ended is then added once more.
            self._add_all(origin, ended, shown_line)
            rest = shown_part(rest)
            if len(rest) > self._limits.line_chars + self._reach:
                rest = self._keep_parts(origin, self._masked(rest), self._reach)
            self._open[stream, source] = rest
            if rest and self._spool is not None:
                self._spool(0, encode(replace(origin, at_ms=_now_ms(), text=self._masked(rest))))

    def add(self, stream: str, text: str, *, level: str | None = None, logger: str | None = None) -> None:
        """Add a message of one or more lines."""
        with self._lock:
            self._add_all(self._origin(stream, level, logger), text.removesuffix("\n").split("\n"), _without_return)

    def end(self) -> None:
        """End all open lines, and append the last lines to the first ones. Nothing is written afterwards."""
        with self._lock:
            for (stream, _), rest in self._open.items():
                if rest:
                    self._add(self._origin(stream), rest)
            self._open.clear()
            if self._tail is not None:
                self._head.extend(self._tail)
                self._tail.clear()

    def peek(self, most_lines: int, most_bytes: int) -> tuple[int, list[bytes]]:
        """The number of the next line, and lines to send from there, numbered without gaps. Call `drop` afterwards."""
        lines: list[bytes] = []
        first = size = 0
        with self._lock:
            head = list(islice(self._head, most_lines))
        for number, line in head:
            if lines and (number != first + len(lines) or size + len(line) > most_bytes):
                break
            first = first or number
            size += len(line)
            lines.append(line)
        return first, lines

    def drop(self, up_to: int) -> None:
        """Forget the lines up to this number: they have arrived."""
        while self._head and self._head[0][0] <= up_to:
            self._head.popleft()

    def _add_all(self, origin: LogLine, lines: Sequence[str], tidy: Callable[[str], str]) -> None:
        at, surplus = 0, len(lines) - self._tail_lines
        while at < len(lines):
            if at < surplus and self._tail is not None:  # these lines would be dropped: a flood costs only its end
                self._count += surplus - at
                at = surplus
            self._add(origin, tidy(lines[at]))
            at += 1

    def _add(self, origin: LogLine, text: str) -> None:
        self._keep(origin, self._keep_parts(origin, self._masked(text)))

    def _keep_parts(self, origin: LogLine, text: str, kept_back: int = 0) -> str:
        """Keep a long line in parts, and return its last part and at least the last `kept_back` characters."""
        size = self._limits.line_chars
        end = max((len(text) - kept_back - 1) // size * size, 0)
        for start in range(0, end, size):
            self._keep(origin, text[start : start + size], continues=True)
        return text[end:]

    def _masked(self, text: str) -> str:
        return text if self._mask is None else self._mask(text)

    def _keep(self, origin: LogLine, text: str, *, continues: bool = False) -> None:
        encoded = encode(replace(origin, at_ms=_now_ms(), text=text, continues=continues))
        number = self._count = self._count + 1  # first: a number may be skipped, but never used twice
        if self._spool is not None:
            self._spool(number, encoded)
        if self._tail is None:
            if self._room_lines > 1 and self._room_bytes >= len(encoded):
                self._room_lines -= 1
                self._room_bytes -= len(encoded)
                self._head.append((number, encoded))
                return
            self._tail = deque()
            full = f"the log is full: of what attempt {self._attempt} writes from here on, only the end is kept"
            self._head.append((number, encode_line(note(full, self._attempt))))
            number = self._count = number + 1
        self._tail.append((number, encoded))
        self._tail_bytes += len(encoded)
        while len(self._tail) > self._tail_lines or (
            self._tail_bytes > self._limits.bytes // TAIL_SHARE and len(self._tail) > 1
        ):
            self._tail_bytes -= len(self._tail.popleft()[1])

    def _origin(self, stream: str, level: str | None = None, logger: str | None = None) -> LogLine:
        """A line without text, which says where lines come from."""
        return LogLine(at_ms=0, text="", attempt=self._attempt, stream=stream, level=level, logger=logger)


def note(text: str, attempt: int) -> LogLine:
    """A line about the log itself."""
    return LogLine(at_ms=_now_ms(), text=text, attempt=attempt, stream="taskpool")


def encode(line: LogLine) -> bytes:
    """The line as stored JSON. Characters that UTF-8 can't hold are replaced."""
    try:
        return encode_line(line)
    except UnicodeEncodeError:
        parts = {"text": line.text, "level": line.level, "logger": line.logger}
        return encode_line(replace(line, **{name: part and clean(part) for name, part in parts.items()}))


def plain_text(lines: Iterable[LogLine]) -> str:
    """The text of lines as it was written; the parts of a long line are joined."""
    return "".join([line.text if line.continues else line.text + "\n" for line in lines])


def shown_part(text: str) -> str:
    """The visible part of a line in which carriage returns wrote over text, as progress bars do."""
    if "\r" not in text:
        return text
    end = "\r" if text.endswith("\r") else ""  # a line feed may follow, which makes it the end of a line
    return text.removesuffix("\r").rpartition("\r")[2] + end


def shown_line(line: str) -> str:
    """The visible part of a line that has ended: the text after the last carriage return."""
    return shown_part(line.removesuffix("\r"))


def _without_return(line: str) -> str:
    return line.removesuffix("\r")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
