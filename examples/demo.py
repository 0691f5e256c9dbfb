"""Counts the words of the text files below a directory: one task for each file, and one that adds up their results.

    .venv/bin/python examples/demo.py docs
    .venv/bin/python examples/demo.py docs --url http://127.0.0.1:8080    # a Taskpool that may read these files

Without --url it starts a Taskpool of its own with `taskpool up` in a temporary directory, and stops it at the end.
The task types `word_count` and `word_merge` are built in; see taskpool/tasks/builtin.py.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import track

from taskpool import Client, TaskpoolError, TaskSpec, TaskStatus

MOST_FILES = 5000
BATCH = 500
"""Tasks in one request: a body has at most 256 KiB."""
LARGEST_BYTES = 512 * 1024
SKIPPED = {"node_modules", "venv", "__pycache__"}


def main() -> int | str:
    """Runs the demo; the exit status, or an error's text."""
    parser = argparse.ArgumentParser(description="Count the words of text files, one task for each file.")
    parser.add_argument("path", nargs="?", type=Path, default=Path(), help="a directory or a file (default: .)")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many words to show (default: 10)")
    parser.add_argument("--url", help="a Taskpool that runs, and whose workers may read PATH (see --files-root)")
    parser.add_argument("--workers", default="2", metavar="N", help="worker processes of the demo's own Taskpool")
    given = parser.parse_args()
    root = given.path.resolve()
    files = list(islice(text_files(root), MOST_FILES))
    if not files:
        print(f"Error: there is no text file below {root}", file=sys.stderr)
        return 2
    print(f"{len(files):,} text files below {root}")
    try:
        if given.url:
            count(given.url, files, given.top)
        else:
            with own_taskpool(root, given.workers) as url:
                count(url, files, given.top)
    except TaskpoolError as error:
        return f"Error: {error}"
    except KeyboardInterrupt:
        return 130
    return 0


def text_files(root: Path) -> Iterator[Path]:
    """The UTF-8 files below `root`, or `root` itself; without hidden directories and those that tools make."""
    if root.is_file():
        yield root
    for directory, names, found in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in SKIPPED)
        yield from (path for name in sorted(found) if is_text(path := Path(directory, name)))


def is_text(path: Path) -> bool:
    """Whether it is a readable UTF-8 file of moderate size, and no link."""
    try:
        small = path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST_BYTES
        return small and "\0" not in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


@contextmanager
def own_taskpool(root: Path, workers: str) -> Iterator[str]:
    """Runs `taskpool up` until the block ends; the URL of its API."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKPOOL_")}
    with tempfile.TemporaryDirectory(prefix="taskpool-demo-") as directory, Path(directory, "log").open("w") as log:
        readable = str(root if root.is_dir() else root.parent)
        process = subprocess.Popen(
            [sys.executable, "-m", "taskpool.cli", "up", "--port", port, "--data-dir", directory,
             "--files-root", readable, "--workers", workers, "--grace-s", "0"],
            env=environment, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            while not is_ready(url):
                if process.poll() is not None:
                    raise TaskpoolError(f"`taskpool up` ended: {Path(log.name).read_text()}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait()


def is_ready(url: str) -> bool:
    """Whether the Taskpool there takes tasks and runs them."""
    try:
        return httpx.get(f"{url}/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def count(url: str, files: Sequence[Path], top: int) -> None:
    """Counts the words of the files with the Taskpool at `url`, and prints the most frequent ones."""
    tag, began = f"demo-{secrets.token_hex(3)}", time.monotonic()
    with Client(url) as client:
        specs = [TaskSpec(type="word_count", payload={"path": str(file)}, tags=[tag]) for file in files]
        batches = [client.add_tasks(specs[at : at + BATCH]) for at in range(0, len(specs), BATCH)]
        ids = [task.id for batch in batches for task in batch]
        merge = client.add_task("word_merge", tags=[tag], depends_on=ids)
        steps = [*ids[:: max(len(ids) // 50, 1)], merge.id]  # tasks start in the order of their submission
        for id in track(steps, "Counting", disable=not Console().is_terminal):
            merged = client.wait(id)
        if merged.status is not TaskStatus.DONE:
            failed = client.list_tasks(tag=tag, type="word_count", status=TaskStatus.FAILED, limit=1).items
            raise TaskpoolError(failed[0].error or "" if failed else f"the merge is {merged.status}: {merged.error}")
    result, took_s = merged.result, time.monotonic() - began
    print(f"\n{'word':20} {'times':>9}")
    for word, times in list(result["counts"].items())[:top]:
        print(f"{word:20} {times:9,}")
    print(f"{result['words']:,} words, {result['distinct']:,} different ones")
    print(f"{len(ids) + 1:,} tasks in {took_s:.2f} s, {(len(ids) + 1) / took_s:,.0f} tasks a second: {url}")


if __name__ == "__main__":
    sys.exit(main())
