"""`taskpool new` writes files that work as they are."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from taskpool.cli.__main__ import main
from taskpool.types import Exit


def new(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["new", *arguments])


def test_the_command_it_names_runs_the_new_test_and_it_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "pytest"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))  # the command names the pytest of this environment
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider -W error")

    result = new("thumbnails", "--dir", str(tmp_path))

    assert result.exit_code == Exit.DONE
    named = result.stdout.split("Now: ")[1].splitlines()[0]
    checked = subprocess.run(named, shell=True, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_is_written_satisfies_linter_and_type_checker(tmp_path: Path) -> None:
    new("thumbnails", "--dir", str(tmp_path))

    for tool in (["ruff", "check"], ["ruff", "format", "--check", "--line-length", "120"]):
        checked = subprocess.run(
            [sys.executable, "-m", *tool], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout


def test_it_says_what_to_do_next(tmp_path: Path) -> None:
    result = new("thumbnails", "--dir", str(tmp_path / "new"))

    assert f" up --tasks {tmp_path}/new/thumbnails.py --reload" in result.stdout


def test_it_says_what_the_test_needs_where_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fakeredis" else find_spec(name))

    assert 'needs: pip install "taskpool-jobs[testing]"' in new("thumbnails", "--dir", str(tmp_path)).stdout


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    existing = tmp_path / "test_thumbnails.py"
    existing.write_text("mine")

    result = new("thumbnails", "--dir", str(tmp_path))

    assert result.exit_code == Exit.USAGE
    assert result.stderr == f"Error: {existing} exists already; nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["test_thumbnails.py"]
    assert existing.read_text() == "mine"


def test_a_file_that_a_package_beside_it_would_hide_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "thumbnails"
    package.mkdir()
    (package / "__init__.py").touch()

    result = new("thumbnails", "--dir", str(tmp_path))

    assert result.exit_code == Exit.USAGE
    assert result.stderr.startswith(f"Error: {package} is a package")
    assert list(tmp_path.iterdir()) == [package]


@pytest.mark.parametrize("name", ["no-dash", "class", "9lives", "größe", "", "json", "taskpool", "test_x"])
def test_a_name_that_python_or_pytest_cannot_use_is_refused(name: str, tmp_path: Path) -> None:
    result = new(name, "--dir", str(tmp_path))

    assert result.exit_code == Exit.USAGE
    assert list(tmp_path.iterdir()) == []
