"""The files that built-in task types read: below the setting `files_root` alone, whatever links lead out of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from taskpool.errors import ConfigurationError

LARGEST_FILE_BYTES: Final = 32 * 1024 * 1024


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
            f"can't use the files root {root}: {reason}; TASKPOOL_FILES_ROOT names a directory for word_count, "
            "and --no-builtins does without"
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
    # No link is left in a resolved path, so O_NOFOLLOW refuses one put there since; O_NONBLOCK is for pipes.
    descriptor = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST_FILE_BYTES:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    what = f"larger than {LARGEST_FILE_BYTES:,} bytes" if stat.S_ISREG(found.st_mode) else "no file"
    raise ValueError(f"{path!r} is {what}")
