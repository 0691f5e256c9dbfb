"""The blocking classes are generated from the async ones, and the generated files are up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
GENERATED = ("taskpool/pool.py", "taskpool/client/client.py", "taskpool/redis/store.py")


def test_the_generated_files_are_up_to_date() -> None:
    command = [sys.executable, "scripts/generate", "--check"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr


def test_the_first_line_of_each_generated_file_names_its_source() -> None:
    for path in GENERATED:
        first, _, _ = (ROOT / path).read_text().partition("\n")
        folder, _, name = path.rpartition("/")
        assert first == f"# Generated from {folder}/async_{name} by scripts/generate. Don't edit this file."
