"""Which files the demo counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskpool.cli.textfiles import LARGEST_BYTES, find_text_files


def names(root: Path, *, limit: int = 100) -> list[str]:
    return [str(path.relative_to(root)) for path in find_text_files(root, limit=limit).paths]


def write(root: Path, name: str, content: str | bytes = "words\n") -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_every_text_file_below_is_found_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.py", ".github/ci.yml", "empty", "umlaut.txt"):
        write(tmp_path, name, "Wörter\n" if name == "umlaut.txt" else "words\n")

    assert names(tmp_path) == ["b.txt", "empty", "umlaut.txt", ".github/ci.yml", "a/z.md", "a/b/c.py"]


@pytest.mark.parametrize(
    "directory",
    [".git", ".venv", "node_modules", ".taskpool", "__pycache__", ".mypy_cache", ".pytest_cache", "x.egg-info"],
)
def test_what_tools_leave_behind_is_skipped(directory: str, tmp_path: Path) -> None:
    write(tmp_path, f"deep/{directory}/file.txt")
    write(tmp_path, "mine.txt")

    assert names(tmp_path) == ["mine.txt"]


def test_an_environment_by_any_name_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, "env311/pyvenv.cfg")
    write(tmp_path, "env311/lib/module.py")

    assert names(tmp_path) == []


def test_binaries_links_and_huge_files_are_skipped_and_counted(tmp_path: Path) -> None:
    text = write(tmp_path, "text.txt")
    write(tmp_path, "nul.bin", b"abc" * 10_000 + b"\0def")
    write(tmp_path, "latin1.txt", b"caf\xe9 au lait")
    write(tmp_path, "huge.txt", b"a" * (LARGEST_BYTES + 1))
    (tmp_path / "link.txt").symlink_to(text)
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "gone")

    found = find_text_files(tmp_path, limit=100)

    assert found.paths == (text,)
    assert found.skipped == 5


def test_a_file_that_ends_within_a_character_is_no_text(tmp_path: Path) -> None:
    write(tmp_path, "cut.txt", "ö".encode()[:1])

    assert names(tmp_path) == []


def test_the_limit_leaves_the_rest_and_says_how_many(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path, f"{number}.txt")

    found = find_text_files(tmp_path, limit=3)

    assert [path.name for path in found.paths] == ["0.txt", "1.txt", "2.txt"]
    assert found.beyond == 2


def test_a_single_file_is_a_root_too(tmp_path: Path) -> None:
    file = write(tmp_path, "one.txt")

    assert find_text_files(file, limit=10).paths == (file,)
