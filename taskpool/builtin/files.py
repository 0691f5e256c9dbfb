"""The files that built-in task types read: below the setting `files_root` alone, whatever links lead out of it."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from taskpool.errors import ConfigurationError

LARGEST_FILE_BYTES: Final = 32 * 1024 * 1024
MADE_UP: Final = frozenset(
    {"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "pstore", "bpf", "nsfs",
     "selinuxfs", "efivarfs", "binfmt_misc", "fusectl", "mqueue", "devpts"}
)  # fmt: skip
"""File systems without stored files: the kernel makes up what a program reads there."""


def check_root(root: Path) -> None:
    """Return if it is a directory that can be read.

    Raises:
        ConfigurationError: it isn't.
    """
    try:
        os.close(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(
            f"can't use the files root {root}: {reason}; TASKPOOL_FILES_ROOT names a directory for word_count; "
            "without it word_count reads no files"
        ) from None


def open_below(root: Path, path: str) -> BinaryIO:
    """Open a regular file that lies below `root` once every link is followed.

    Raises: PermissionError when it lies elsewhere, ValueError when it is too large or no file; OSError.
    """
    if "\0" in path:
        raise ValueError(f"{path!r} is no file")
    base = root.resolve()
    full = (base / path).resolve()
    if not full.is_relative_to(base):
        raise PermissionError(f"{path!r} isn't below files_root")
    try:
        descriptor = _walk(base, full.relative_to(base).parts)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(full)) from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST_FILE_BYTES and not _is_made_up(found.st_dev):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    is_large = stat.S_ISREG(found.st_mode) and found.st_size > LARGEST_FILE_BYTES
    raise ValueError(f"{path!r} is {f'larger than {LARGEST_FILE_BYTES:,} bytes' if is_large else 'no file'}")


def _walk(base: Path, parts: tuple[str, ...]) -> int:
    """Open what lies there, from directory to directory. A resolved path has no links in it, so one that is met was put
    there since: O_NOFOLLOW refuses it. O_NONBLOCK is for pipes."""
    *directories, name = parts or (".",)
    passing = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
    with ExitStack() as opened:
        at = os.open(base, passing)
        opened.callback(os.close, at)
        for each in directories:
            at = os.open(each, passing | os.O_NOFOLLOW, dir_fd=at)
            opened.callback(os.close, at)
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=at)


def _is_made_up(device: int) -> bool:
    """Whether the files of this device are no stored ones, such as those of /proc, which tell secrets of processes."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # not Linux
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    rows = [line.split(" ") for line in mounts]
    return any(row[2] == number and row[row.index("-") + 1] in MADE_UP for row in rows)
