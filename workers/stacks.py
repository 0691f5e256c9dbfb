"""Where running tasks are: written by the process of a task, read by its supervisor.

The interpreter writes the stacks of all threads when it gets a signal, also while code outside Python blocks it. Of a
task on an event loop these show only what the loop does at that moment; so a process with many tasks writes the chain
of coroutines of the one that is asked for, too, as soon as its loop turns.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import IO, Any, Final

from taskpool.tasks.fingerprints import is_library
from taskpool.types.fleet import StackFrame

OF_TASK: Final = "Stack of the task"
MOST_FRAMES: Final = 100
_HERE: Final = str(Path(__file__).parent) + os.sep
_FRAME: Final = re.compile(r'  File "(.+)", line (\d+) in (.+)')


def write_stack(file: IO[Any], code: asyncio.Task[Any] | None, thread_id: int | None) -> None:
    """Writes where code is that runs in a thread, or else on the event loop, in the form of the interpreter."""
    places = _of_thread(thread_id) if thread_id is not None else () if code is None else _of_coroutine(code.get_coro())
    lines = [
        f'  File "{code.co_filename}", line {line} in {code.co_name}\n' for code, line in islice(places, MOST_FRAMES)
    ]
    with suppress(OSError):  # the supervisor answers with the stacks of all threads
        os.write(file.fileno(), f"{OF_TASK} (most recent call first):\n{''.join(lines)}\n".encode("utf-8", "replace"))


def _of_thread(thread_id: int) -> Iterator[tuple[CodeType, int]]:
    """The frames of a thread, the innermost first."""
    frame = sys._current_frames().get(thread_id)
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def _of_coroutine(awaited: Any) -> Iterator[tuple[CodeType, int]]:
    """The frames of a coroutine and of what it awaits, the innermost first."""
    found: list[tuple[CodeType, int]] = []
    while awaited is not None and len(found) < 10 * MOST_FRAMES:
        frame = next((f for name in ("cr_frame", "gi_frame", "ag_frame") if (f := getattr(awaited, name, None))), None)
        if frame is not None:
            found.append((frame.f_code, frame.f_lineno))
        awaited = next(
            (a for name in ("cr_await", "gi_yieldfrom", "ag_await") if (a := getattr(awaited, name, None))), None
        )
    yield from reversed(found)


def frames_of(text: str) -> list[StackFrame]:
    """The frames of the task in what was written, the innermost last: those of its own stack, else of the main thread,
    which the interpreter writes last. None if nothing was written."""
    sections = [section for section in re.split(r"\n(?=\S)", text.strip()) if _FRAME.search(section)]
    own = [section for section in sections if section.startswith(OF_TASK)]
    if not sections:
        return []
    frames = [
        StackFrame(
            file=file, line=int(line), function=function, is_user=not (is_library(file) or file.startswith(_HERE))
        )
        for file, line, function in _FRAME.findall((own or sections)[-1])
    ]
    return frames[::-1]
