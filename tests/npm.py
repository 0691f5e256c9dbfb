"""Packages of npm that tests use: exactly those of a lock file, installed once on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def node_modules(folder: Path) -> Path:
    """Where the packages of the package-lock.json in `folder` are. Skips the test without npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm: install Node.js 20 or later; on Debian: apt-get install nodejs npm")
    key = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()[:16]
    home = Path(tempfile.gettempdir()) / f"taskpool-{folder.name.replace('_', '-')}-{os.getuid()}-{key}"
    if not home.is_dir():
        made = Path(tempfile.mkdtemp(dir=home.parent))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(folder / name, made)
        run(made, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        try:
            made.rename(home)
        except OSError:  # another run was first
            shutil.rmtree(made)
    return home / "node_modules"


def run(folder: Path, *command: str, **env: str) -> str:
    """The output of a command in `folder`; fails with everything that it wrote."""
    environment = {**os.environ, "CI": "true", **env}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
