"""`taskpool top`: what it shows, and what its keys do."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner
from redis import Redis
from rich.console import Console

from taskpool import Registry, TaskStatus
from taskpool.cli.__main__ import main
from taskpool.cli.operate.top import Screen, View, _shares, draw
from taskpool.errors import RedisUnavailable
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.tasks.attempt import Outcome
from taskpool.types import Exit
from tests.cli_ways import Reached
from tests.support import eventually

S = TaskStatus
EVIL = "\x1b]52;c;aGk=\x07x"


@pytest.fixture
def pool(redis_url: str) -> Iterator[Reached]:
    with announced(redis_url, []) as pool:
        yield pool


@contextmanager
def announced(redis_url: str, way: list[str]) -> Iterator[Reached]:
    registry = Registry(builtins=True)
    me = PoolInfo(
        id="p1", host="here", pid=1, queues=("default",), types=tuple(registry.names()), workers=("p1.1",), slots=2
    )
    with Reached(redis_url, way, registry) as pool:
        pool.store.run(publish(me, [each.info() for each in registry], ttl_s=600))
        yield pool


def run_one(pool: Reached, status: TaskStatus | None = None, **outcome: Any) -> str:
    """Starts a task, and ends it if a status is given."""
    id = pool.add_task("echo", {"message": "hi"}).id
    running = pool.run_task(["default"], worker="p1.1", attempt_id=f"a{id}")
    assert running is not None
    redis: Any = Redis.from_url(pool.redis_url)
    redis.sadd("rq:workers", "rq:worker:p1.1")
    redis.hset("rq:worker:p1.1", mapping={"birth": "2026-11-23T12:00:00.0Z", "state": "busy", "queues": "default"})
    redis.close()
    if status is not None:
        pool.update_status(running, Outcome(status, **outcome))
    return id


def shown(screen: Screen, height: int = 40, *, is_live: bool = True) -> str:
    console = Console(width=150, height=height, record=True, file=io.StringIO(), highlight=False, markup=False)
    console.print(draw(screen, height, is_live=is_live))
    return console.export_text()


def test_it_shows_totals_queues_workers_and_failures(pool: Reached) -> None:
    failed = run_one(pool, S.FAILED, error=f"ValueError: {EVIL}\nmore")
    running = run_one(pool)
    pool.add_task("echo", {"message": "hi"}, queue="images")
    pool.pause_queue("images", why="the disk is full")
    screen = Screen(pool)
    screen.look()

    text = shown(screen)

    assert "1 queued  1 running" in text
    assert "1 of 2 slots busy  1 pool" in text
    assert re.search(r"images +1 +0 .*by a program: the disk is full", text)
    assert re.search(rf"p1\.1 +busy .* echo +{running}", text)
    assert re.search(rf"{failed} +echo +default .*ValueError: \\x1b\]52", text)
    assert "more" not in text
    assert "\x1b" not in text
    assert "q quit" in text
    assert "q quit" not in shown(screen, is_live=False)


def test_keys_pause_stop_and_retry_after_a_confirmation(pool: Reached) -> None:
    failed = run_one(pool, S.FAILED, error="no luck")
    running = run_one(pool)
    screen = Screen(pool)
    screen.look()

    screen.press("p")
    assert screen.asked is not None
    screen.press("n")
    assert screen.notice == "Nothing was done."
    assert pool.queues()[0].paused is None
    screen.press("s")
    assert screen.notice == "s is for workers: Tab."
    for key in ("p", "y"):
        screen.press(key)
    assert pool.queues()[0].paused is not None
    assert "PAUSED" in shown(screen)
    for key in ("p", "y"):
        screen.press(key)
    assert pool.queues()[0].paused is None

    for key in ("next", "s", "y"):
        screen.press(key)
    assert pool.get(running).status is S.STOPPING
    for key in ("next", "r", "y"):
        screen.press(key)
    assert pool.get(failed).status is S.QUEUED
    assert screen.notice == "It is queued."
    for key in ("r", "before", "down", "q"):
        screen.press(key)
    assert (screen.pane, screen.is_over) == ("workers", True)


def test_a_row_stays_chosen_when_others_come_and_an_error_is_told(pool: Reached, monkeypatch: Any) -> None:
    for queue in ("b", "c"):
        pool.add_task("echo", {"message": "hi"}, queue=queue)
    screen = Screen(pool)
    screen.look()
    screen.press("down")
    for _ in range(2):
        pool.add_task("echo", {"message": "hi"}, queue="a")
    screen.look()
    assert screen.chosen["queues"] == "c"
    assert screen.view.rows()["queues"][screen.index("queues", screen.view.rows()["queues"])].key == "c"

    def refuse(*_: Any, **__: Any) -> Any:
        raise RedisUnavailable("Redis is away")

    monkeypatch.setattr(pool, "queues", refuse)
    screen.look()
    assert "Redis is away" in shown(screen)
    assert "c  " in shown(screen), "what was seen stays"


@pytest.mark.parametrize("height", [1, 10, 24, 60])
def test_lists_share_the_height(height: int) -> None:
    assert shown(Screen(None, View()), height)  # type: ignore[arg-type]
    shares = _shares({"a": 100, "b": 2, "c": 5}, height)

    assert sum(shares.values()) <= max(height, 9)
    assert min(shares.values()) >= 3
    assert height < 20 or shares["a"] > shares["c"] >= 5


def test_without_a_terminal_it_prints_once(redis_url: str, way: list[str]) -> None:
    with announced(redis_url, way) as pool:
        result = CliRunner().invoke(main, ["top", *pool.way])

    assert result.exit_code == Exit.DONE, result.stderr
    assert "no queue has held a task yet" in result.stdout


def test_on_a_terminal_it_draws_reads_keys_and_leaves_everything_as_it_was(pool: Reached, redis_url: str) -> None:
    pool.add_task("echo", {"message": "hi"})
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(
            sys.executable, [sys.executable, "-m", "taskpool.cli", "top", "--interval", "0.2", "--redis-url", redis_url]
        )
    before = termios.tcgetattr(fd)
    seen = bytearray()

    def has(text: bytes) -> bool:
        if select.select([fd], [], [], 0.01)[0]:
            seen.extend(os.read(fd, 65536))
        return text in seen

    eventually(lambda: has(b"q quit"))
    os.write(fd, b"p")
    eventually(lambda: has(b"Pause the queue default?"))
    os.write(fd, b"y")
    eventually(lambda: has(b"It is paused."))
    assert pool.queues()[0].paused is not None
    os.write(fd, b"q")
    eventually(lambda: has(b"\x1b[?1049l"))  # the screen that was there before

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert termios.tcgetattr(fd)[3] == before[3]
    os.close(fd)
