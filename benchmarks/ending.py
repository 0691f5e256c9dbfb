"""How a benchmark ends: by itself, by Ctrl-C, by SIGTERM or with its terminal, and nothing that it started stays."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

import psutil

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
KILL_TIMEOUT_S: Final = 10.0
AGAIN_S: Final = 0.02


class Told(BaseException):
    """Raised wherever a signal that asks this process to end finds it. No SystemExit: who loads modules catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ends_with_us() -> Iterator[None]:
    """SIGTERM and SIGHUP leave the block as Ctrl-C does, and then the process, with the status that a shell gives.

    What the block itself didn't come to end, because a signal found it between a start and its `try`, or a second
    signal found it cleaning up, is killed.
    """
    others = set(psutil.Process().children(recursive=True))
    # Under nohup a hang-up stays ignored.
    handlers = {each: handler for each in SIGNALS if (handler := signal.getsignal(each)) is signal.SIG_DFL}
    hook = sys.unraisablehook
    sys.unraisablehook = _again
    for each in handlers:
        signal.signal(each, _leave)
    try:
        yield
    except Told as told:
        raise SystemExit(128 + told.number) from None
    finally:
        for each in handlers:
            signal.signal(each, signal.SIG_IGN)  # the end is near already
        _kill([each for each in psutil.Process().children(recursive=True) if each not in others])
        for each, handler in handlers.items():
            signal.signal(each, handler)
        sys.unraisablehook = hook


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise Told(number)


def _again(lost: UnraisableHookArgs) -> None:
    """What a signal raised in a destructor goes no further: let it come again."""
    if isinstance(lost.exc_value, Told):
        threading.Timer(AGAIN_S, os.kill, (os.getpid(), lost.exc_value.number)).start()
    else:
        sys.__unraisablehook__(lost)


def _kill(left: list[psutil.Process]) -> None:
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=KILL_TIMEOUT_S)
