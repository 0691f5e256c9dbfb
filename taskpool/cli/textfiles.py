"""Which files below a directory are text that is worth reading: what `taskpool demo` counts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GENERATED: Final = (".lock", ".min.js", ".svg")
"""Files that hold more hashes and numbers than words."""

LARGEST_BYTES: Final = 512 * 1024
"""Above this a file is data rather than text, and the counts of its words may be too large for a result."""

SKIPPED_DIRECTORIES: Final = frozenset(
    {".git", ".hg", ".svn", ".taskpool", ".venv", "venv", ".tox", ".nox", "node_modules", "__pycache__", ".cache",
     ".eggs", ".idea", ".hypothesis"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TextFiles:
    """The files found, in order; how many others were no text or too large; how many were beyond the limit."""

    paths: tuple[Path, ...]
    skipped: int
    beyond: int


def find_text_files(root: Path, *, limit: int) -> TextFiles:
    """The text files below `root` (or `root` itself), sorted by path; at most `limit` of them."""
    paths: list[Path] = []
    skipped = beyond = 0
    for path in _files(root):
        if not _is_text(path):
            skipped += 1
        elif len(paths) >= limit:
            beyond += 1
        else:
            paths.append(path)
    return TextFiles(tuple(paths), skipped, beyond)


def _files(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not _is_skipped(Path(directory, name)))
        yield from (Path(directory, file) for file in sorted(files))


def _is_skipped(directory: Path) -> bool:
    name = directory.name
    return name in SKIPPED_DIRECTORIES or name.endswith(("_cache", ".egg-info")) or (directory / "pyvenv.cfg").exists()


def _is_text(path: Path) -> bool:
    """Whether it's a readable file, no link, not too large, written rather than generated, and all UTF-8."""
    try:
        if (
            path.name.endswith(GENERATED)
            or path.is_symlink()
            or not path.is_file()
            or path.stat().st_size > LARGEST_BYTES
        ):
            return False
        return "\0" not in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # gone, not ours to read, or no text
        return False
