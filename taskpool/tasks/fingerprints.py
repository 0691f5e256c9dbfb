"""The fingerprint of a failure: what two failures have in common that have the same cause.

For an exception it is a hash of the exception's type and of the innermost place in the user's own code: file and
function, but not the line, which moves with each deployment. For other failures it is a hash of the reason and of the
task's type, which `failures.lua` computes: only Redis knows the type of a task whose process is gone.
"""

from __future__ import annotations

import os
import sysconfig
from types import FrameType, TracebackType
from typing import Final, NamedTuple

from taskpool.text import printable

LENGTH: Final = 12
LONGEST: Final = 200
MOST_FRAMES: Final = 20_000
_INSTALLED: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_LIBRARIES: Final = (*{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")}, "<frozen ")
_OURS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Place(NamedTuple):
    """Where an exception was raised: `shown` is for people (``images.py:41 in resize``); `key` stays the same when the
    line moves or the code is deployed to another folder."""

    shown: str
    key: str


def fingerprint_of(kind: str, where: str) -> str:
    """The fingerprint of a failure of this kind: 12 hexadecimal digits. `failures.lua` computes the same."""
    number = 0
    for byte in f"{kind}\n{where}".encode("utf-8", "replace"):
        number = (number * 33 + byte) % 2**47
    return f"{number:0{LENGTH}x}"


def place_of(trace: TracebackType | None) -> Place | None:
    """The innermost frame of the user's code in a traceback that begins with the task's own frame; None without frames.

    The user's code is what isn't installed as a library, and all of the package that the task itself is in.
    """
    found: TracebackType | None = None
    package = "" if trace is None else _package_of(trace.tb_frame)
    for _ in range(MOST_FRAMES):
        if trace is None:
            break
        if found is None or _is_of_user(trace.tb_frame, package):
            found = trace
        trace = trace.tb_next
    if found is None:
        return None
    code = found.tb_frame.f_code
    file = printable(os.path.basename(code.co_filename))
    folder = os.path.basename(os.path.dirname(code.co_filename))
    shown = f"{file}:{found.tb_lineno} in {printable(code.co_name)}"
    return Place(shown[:LONGEST], f"{folder}/{file} {code.co_qualname}")


def _is_of_user(frame: FrameType, package: str) -> bool:
    return not is_library(frame.f_code.co_filename) or (package != "" and _package_of(frame) == package)


def is_library(file: str) -> bool:
    """Whether a source file is one of Python, of this package, or of an installed one."""
    return file.startswith((*_LIBRARIES, _OURS)) or any(part in file for part in _INSTALLED)


def _package_of(frame: FrameType) -> str:
    """The top-level package of a frame's module."""
    name = dict.get(frame.f_globals, "__name__")
    return name.partition(".")[0] if type(name) is str else ""
