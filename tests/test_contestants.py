"""Contestants of the benchmarks: BullMQ does every task that it gets, and one that isn't installed is left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.contestants import EnqueuesElsewhere, NotInstalled, contestant, installed
from benchmarks.contestants.bullmq import Queue, install
from benchmarks.measure import Meter, check_results
from benchmarks.processes import running

LOCK = "package-lock.json"


@pytest.fixture(params=["bullmq", "bullmq_one"])
def queue(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Queue]:
    """BullMQ on an empty Redis. Skips the test where it can't be installed."""
    try:
        made = contestant(request.param, redis_url)
    except NotInstalled as reason:
        pytest.skip(str(reason))
    assert isinstance(made, Queue)
    with closing(made):
        yield made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a lock file. The only programs on PATH are those that the test puts there."""
    (tmp_path / LOCK).write_text("{}")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def provide(folder: Path, npm: str) -> None:
    """Put `npm` with these shell commands into the folder, and a `node` that does nothing."""
    for name, commands in (("npm", npm), ("node", "")):
        (folder / name).write_text(f"#!/bin/sh\n{commands}\n")
        (folder / name).chmod(0o755)


def test_bullmq_does_every_task_and_keeps_the_results(queue: Queue, redis_url: str) -> None:
    assert isinstance(queue, EnqueuesElsewhere)
    handles = [queue.enqueue(0), *queue.enqueue_each([1, 2]), *queue.enqueue_many(range(3, 1_500))]
    before = queue.completed(), queue.result(handles[0])

    with running(queue.commands(2)) as workers:
        end = Meter(queue, workers, redis_url).mark(len(handles))

    assert before == (0, None)
    assert end.done == queue.completed() == 1_500
    check_results(queue, handles)


def test_a_contestant_that_is_not_installed_is_left_out_with_a_note(
    folder: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = installed(["bullmq", "lua"], redis_url)

    assert list(found) == ["lua"]
    assert capsys.readouterr().err.startswith("bullmq is left out: it needs Node.js and npm")
    found["lua"].close()


def test_a_benchmark_without_contestants_ends(folder: Path, redis_url: str) -> None:
    with pytest.raises(SystemExit, match="no contestant is installed"):
        installed(["bullmq"], redis_url)


def test_when_npm_fails_the_message_is_what_it_wrote(folder: Path) -> None:
    provide(folder, npm="echo npm error code ECONNREFUSED >&2; exit 1")

    with pytest.raises(NotInstalled, match=r"`npm ci` failed in /.*: npm error code ECONNREFUSED"):
        install(folder)

    assert not (folder / "node_modules").exists()


def test_packages_are_installed_once_and_again_when_the_lock_file_has_changed(folder: Path) -> None:
    provide(folder, npm='/bin/mkdir -p node_modules && echo "$1" >> calls')

    install(folder)
    install(folder)
    once = (folder / "calls").read_text()
    (folder / LOCK).write_text('{"packages": {}}')
    install(folder)

    assert once == "ci\n"
    assert (folder / "calls").read_text() == "ci\nci\n"
