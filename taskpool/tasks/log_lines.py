"""A task's log as lines: what one line is, and how what a task writes becomes numbered lines, within limits.

Knows neither Redis nor processes. Of an attempt that writes more than its limits allow the first lines are kept, and
the last: between them stands a line that says how many are missing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Annotated, Final

import msgspec

from taskpool.tasks.context import clean
from taskpool.types import Document, LogLimits
from taskpool.validation import Field

TAIL_SHARE: Final = 10
"""A tenth of the limits is for the last lines."""


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
    """The log of one attempt on its way out. Any thread may write; one at a time takes.

    `mask` is applied to each line before anything else sees it. What it masks takes `reach` characters at most, so the
    last ones of a long line that goes on are held back: they may be the first half of it. `spool` is told of every line
    at once, also of those that aren't kept, and under the number 0 of one that hasn't ended yet: what it keeps outlives
    the process.
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
        self._lock = threading.RLock()  # a signal handler or a finalizer may write while we do
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
        """Whether lines are there to be taken."""
        return bool(self._head)

    def write(self, stream: str, text: str, source: str = "") -> None:
        """Take a part of a stream: lines end where it says so. What comes through one `source` is in order."""
        with self._lock:
            *whole, rest = (self._open.get((stream, source), "") + text).split("\n")
            # An interrupt may come between any two of our steps: a line that isn't ended yet is then told once more.
            self._add_all(stream, whole, shown_line)
            rest = shown_part(rest)
            size = self._limits.line_chars
            if len(rest) > size + self._reach:
                rest = self._masked(rest)
                end = (len(rest) - self._reach - 1) // size * size
                for start in range(0, end, size):
                    self._keep(stream, rest[start : start + size], continues=True)
                rest = rest[max(end, 0) :]
            self._open[stream, source] = rest
            if rest and self._spool is not None:
                self._spool(0, encode(self._line(stream, self._masked(rest))))

    def add(self, stream: str, text: str, *, level: str | None = None, logger: str | None = None) -> None:
        """Take a message of one line or several."""
        with self._lock:
            self._add_all(stream, text.removesuffix("\n").split("\n"), _without_return, level, logger)

    def end(self) -> None:
        """Take what is still open as lines, and let the last ones follow the first ones. Nothing is written after."""
        with self._lock:
            for (stream, _), rest in self._open.items():
                if rest:
                    self._add(stream, rest)
            self._open.clear()
            if self._tail is not None:
                self._head.extend(self._tail)
                self._tail.clear()

    def peek(self, most_lines: int, most_bytes: int) -> tuple[int, list[bytes]]:
        """The next lines to be sent, whose numbers follow each other, and the number of the first; `drop` them then."""
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

    def _add_all(
        self,
        stream: str,
        lines: Sequence[str],
        tidy: Callable[[str], str],
        level: str | None = None,
        logger: str | None = None,
    ) -> None:
        at, surplus = 0, len(lines) - self._tail_lines
        while at < len(lines):
            if at < surplus and self._tail is not None:  # nobody will see them: a flood costs no more than its end
                self._count += surplus - at
                at = surplus
            self._add(stream, tidy(lines[at]), level, logger)
            at += 1

    def _add(self, stream: str, text: str, level: str | None = None, logger: str | None = None) -> None:
        *pieces, last = self._pieces(text)
        for piece in pieces:
            self._keep(stream, piece, level, logger, continues=True)
        self._keep(stream, last, level, logger)

    def _pieces(self, text: str) -> Sequence[str]:
        size = self._limits.line_chars
        text = self._masked(text)
        if len(text) <= size:
            return (text,)
        return [text[start : start + size] for start in range(0, max(len(text), 1), size)]

    def _masked(self, text: str) -> str:
        return text if self._mask is None else self._mask(text)

    def _keep(
        self, stream: str, text: str, level: str | None = None, logger: str | None = None, *, continues: bool = False
    ) -> None:
        encoded = encode(self._line(stream, text, level, logger, continues=continues))
        number = self._count = self._count + 1  # first: a number may be missing, but never be there twice
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

    def _line(
        self, stream: str, text: str, level: str | None = None, logger: str | None = None, *, continues: bool = False
    ) -> LogLine:
        return LogLine(
            at_ms=time.time_ns() // 1_000_000,
            text=text,
            attempt=self._attempt,
            stream=stream,
            level=level,
            logger=logger,
            continues=continues,
        )


def note(text: str, attempt: int) -> LogLine:
    """A line about the log itself."""
    return LogLine(at_ms=time.time_ns() // 1_000_000, text=text, attempt=attempt, stream="taskpool")


def encode(line: LogLine) -> bytes:
    """The line as it is stored: JSON, in which what UTF-8 can't hold is replaced."""
    try:
        return encode_line(line)
    except UnicodeEncodeError:
        level, logger = [None if part is None else clean(part) for part in (line.level, line.logger)]
        return encode_line(msgspec.structs.replace(line, text=clean(line.text), level=level, logger=logger))


def plain_text(lines: Iterable[LogLine]) -> str:
    """Lines as they were written, one below the other; what was split is whole again."""
    return "".join([line.text if line.continues else line.text + "\n" for line in lines])


def shown_part(text: str) -> str:
    """What of a line is left to be seen when parts of it were written over, as progress bars do."""
    if "\r" not in text:
        return text
    end = "\r" if text.endswith("\r") else ""  # the line feed that makes it the end of a line may still come
    return text.removesuffix("\r").rpartition("\r")[2] + end


def shown_line(line: str) -> str:
    """What is seen of a line that has ended: of what a carriage return wrote over, the last."""
    return shown_part(line.removesuffix("\r"))


def _without_return(line: str) -> str:
    return line.removesuffix("\r")
