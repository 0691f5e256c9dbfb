"""Objects whose methods misbehave, as a task may return or report them. Each test gets new ones."""

from __future__ import annotations

import asyncio
import enum
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from taskpool import NonRetryable, Retry, Snooze, SoftTimeout, TaskStopped

DEEP = 5000


class Int(int):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__

    def __index__(self) -> int:
        raise ValueError("no index")


class Float(float):
    def __float__(self) -> float:
        raise ValueError("no float")

    def is_integer(self) -> bool:
        raise ValueError


class Index:
    """A number as numpy's are."""

    def __index__(self) -> int:
        return 7


class Str(str):
    def __str__(self) -> str:
        raise ValueError("no text")

    def encode(self, *arguments: Any, **named: Any) -> bytes:
        raise ValueError("no bytes")

    def __getitem__(self, key: Any) -> str:
        raise ValueError("no part")

    def __len__(self) -> int:
        raise ValueError("no length")

    def removesuffix(self, *arguments: Any) -> str:
        raise ValueError

    split = partition = rpartition = replace = removeprefix = removesuffix  # type: ignore[assignment]


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Leaves:
    """Ends programs when it is looked at."""

    def __str__(self) -> str:
        raise SystemExit(5)

    __repr__ = __float__ = __index__ = __str__

    def __getattr__(self, name: str) -> Any:
        raise SystemExit(6)


class Liar:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise KeyError("no class")

    def __getattribute__(self, name: str) -> Any:
        raise KeyError(name)

    def __bool__(self) -> bool:
        raise KeyError("neither")

    def __eq__(self, other: object) -> bool:
        raise KeyError("never")

    __hash__ = None  # type: ignore[assignment]


class OddDict(dict[Any, Any]):
    def __len__(self) -> int:
        raise ValueError

    def items(self) -> Any:
        raise ValueError


class Color(enum.Enum):
    RED = object()


@dataclass
class Point:
    x: Any
    y: Any = float("nan")


class Failing(Exception):
    """Everything of it fails."""

    def __str__(self) -> str:
        raise SystemExit(7)

    __repr__ = __str__

    def __getattribute__(self, name: str) -> Any:
        raise KeyError(name)


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ValueError(f"no {name}")

    def __repr__(cls) -> str:
        raise ValueError("no class")

    def __instancecheck__(cls, instance: object) -> bool:
        raise ValueError


class Nameless(Exception, metaclass=Meta):
    pass


class LongName(Exception):
    pass


LongName.__name__ = "N" * 100_000
LongName.__qualname__ = "Q" * 100_000 + "\ud800"


class Busy(Retry):
    def __init__(self) -> None:
        pass


class Later(Snooze):
    def __init__(self) -> None:
        pass


class After(Retry):
    def __init__(self, after_s: Any) -> None:
        self.after_s = after_s


class SnoozeAfter(Snooze):
    def __init__(self, after_s: Any) -> None:
        self.after_s = after_s


class RaisingAfter(Retry):
    def __init__(self) -> None:
        pass

    @property
    def after_s(self) -> Any:  # type: ignore[override]
        raise SystemExit("no time")


class Notes(Exception):
    def __init__(self) -> None:
        self.__notes__ = Mute()  # type: ignore[assignment]


class Causes(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise ValueError("no cause")

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise ValueError("no traceback")

    def with_traceback(self, trace: Any) -> Any:
        raise ValueError("never")


def cyclic() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__, first.__context__ = second, first, first
    return first


def chain(length: int = DEEP) -> BaseException:
    error: BaseException = ValueError("the first")
    for number in range(length):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    return error


def nested_groups(inner: Exception, depth: int = DEEP) -> BaseException:
    error = inner
    for _ in range(depth):
        error = ExceptionGroup("group", [error, ValueError("beside")])
    return error


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def endless() -> Iterator[int]:
    while True:
        yield 1


def changing() -> Any:
    values: dict[Any, Any] = {}

    class Adds:
        def __str__(self) -> str:
            values[len(values)] = 1
            return "more"

    values["adds"] = Adds()
    return values


VALUES: dict[str, Callable[[], Any]] = {
    "a fraction": lambda: Fraction(1, 2),
    "a decimal": lambda: Decimal("0.25"),
    "decimal NaN": lambda: Decimal("sNaN"),
    "decimal infinity": lambda: Decimal("Infinity"),
    "a bool": lambda: True,
    "an int's child": lambda: Int(3),
    "a float's child": lambda: Float(3.5),
    "an index": Index,
    "a huge int": lambda: 10**5000,
    "an int beyond 64 bits": lambda: 1 << 70,
    "a complex": lambda: 1j,
    "NaN": lambda: float("nan"),
    "negative": lambda: -1,
    "half a surrogate pair": lambda: "half \ud800",
    "a str's child": lambda: Str("text"),
    "a long text": lambda: "x" * 3_000_000,
    "bytes": lambda: b"\xff",
    "mute": Mute,
    "leaves": Leaves,
    "a liar": Liar,
    "an odd dict": lambda: OddDict(a=1),
    "an enum": lambda: Color.RED,
    "a dataclass with NaN": lambda: Point(1),
    "a dataclass of mutes": lambda: Point(Mute(), Leaves()),
    "a deep list": lambda: nested(DEEP),
    "a list 980 deep": lambda: nested(980),
    "endless": endless,
    "changing": changing,
    "a set of texts": lambda: {"\ud800"},
    "other keys": lambda: {(1, 2): 3, None: 1},
    "a class": lambda: Nameless,
    "a coroutine": lambda: asyncio.sleep(0),
    "an exception": Failing,
    "a list of large texts": lambda: ["y" * 20_000] * 100,
    "none": lambda: None,
}

ERRORS: dict[str, Callable[[], Any]] = {
    "failing": Failing,
    "nameless": Nameless,
    "a long name": LongName,
    "with odd notes": Notes,
    "with an odd cause": Causes,
    "cyclic": cyclic,
    "a long chain": chain,
    "groups": lambda: nested_groups(ValueError("inner")),
    "groups with a stop": lambda: BaseExceptionGroup("g", [nested_groups(ValueError("i")), TaskStopped()]),
    "a wide group": lambda: ExceptionGroup("wide", [ValueError(n) for n in range(20_000)]),
    "a long text": lambda: ValueError("x" * 5_000_000),
    "mute": lambda: ValueError(Mute()),
    "leaving": lambda: ValueError(Leaves()),
    "half a surrogate pair": lambda: ValueError("\ud800"),
    "a syntax error": lambda: SyntaxError("odd", ("file", "line", Mute(), b"text")),  # type: ignore[arg-type]
    "an exit with an odd code": lambda: SystemExit(Mute()),
    "an exit with a huge code": lambda: SystemExit(10**5000),
    "an interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "stop iteration": lambda: StopIteration(5),
    "stop async iteration": StopAsyncIteration,
    "cancelled": asyncio.CancelledError,
    "a stop of its own": TaskStopped,
    "a timeout of its own": SoftTimeout,
    "no exception": lambda: None,
    "not an exception": lambda: 5,
    "busy": Busy,
    "later": Later,
    "after nothing": lambda: After(None),
    "after NaN": lambda: After(float("nan")),
    "after a text": lambda: After("soon"),
    "after a negative": lambda: After(-3),
    "after for ever": lambda: After(1e300),
    "after a decimal": lambda: After(Decimal("0.25")),
    "after a mute": lambda: After(Mute()),
    "after a liar": lambda: After(Liar()),
    "after raising": RaisingAfter,
    "snooze after NaN": lambda: SnoozeAfter(float("nan")),
    "snooze after a text": lambda: SnoozeAfter("soon"),
    "snooze after a fraction": lambda: SnoozeAfter(Fraction(1, 4)),
    "not again": lambda: NonRetryable(Mute()),
}

SIGNALS = (signal.SIGALRM, signal.SIGUSR1)


def spin(seconds: float) -> None:
    """Go on in the interpreter."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass
