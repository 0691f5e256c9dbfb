"""Small programs as processes of their own, so that what forks or ends isn't the process of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent
LIMIT_S = 120


def run_program(source: str, *arguments: str, **environment: str) -> str:
    """What the program prints. It must end by itself, with the status 0, and leave nothing open behind."""
    warnings = ("-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning")
    ended = subprocess.run(
        [sys.executable, *warnings, "-c", dedent(source), *arguments],
        cwd=ROOT, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert ended.stderr == ""
    assert ended.returncode == 0
    return ended.stdout
