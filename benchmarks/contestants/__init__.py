"""What a benchmark asks of each contestant: put a task in, say how to start its workers, count and read results.

Each stands in the module of its name and is imported only when it takes part. A peer that isn't installed is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, Final, Protocol, runtime_checkable

from benchmarks.processes import Command

NAMES: Final = ("taskpool", "rq", "dramatiq", "dramatiq_tuned", "huey", "bullmq", "bullmq_one", "lua")


class Contestant(Protocol):
    """One queue system on one Redis. A handle is whatever `result` needs to find a task again."""

    speed: float
    """Roughly, tasks a second with two processes: how many tasks a run gives it to last some seconds."""

    def enqueue(self, n: int) -> Any:
        """Put in one task with the payload `{"n": n}`, as a program does it; its handle."""

    def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        """Put in one task a number, in the quickest way the system has; their handles."""

    def commands(self, processes: int) -> list[Command]:
        """What to start for `processes` worker processes of one task at a time each."""

    def completed(self) -> int:
        """How many results are stored, at a cost that doesn't grow with them."""

    def result(self, handle: Any) -> dict[str, int] | None:
        """The stored result of a task; None when there is none yet."""

    def close(self) -> None:
        """Give back the connections."""


@runtime_checkable
class EnqueuesElsewhere(Protocol):
    """A contestant that puts tasks in with another program. To ask it for each task would be measured as well."""

    def enqueue_each(self, numbers: Sequence[int]) -> list[Any]:
        """Put in one task a number, each as `enqueue` does it, with one request to that program; their handles."""


class NotInstalled(Exception):
    """A contestant can't take part; the message says why."""


def contestant(name: str, redis_url: str) -> Contestant:
    """The contestant of that name, on the Redis at `redis_url`.

    Raises:
        NotInstalled: it isn't installed.
    """
    try:
        module = import_module(f"benchmarks.contestants.{name}")
    except ImportError as missing:
        raise NotInstalled(f"{missing}; the extra `bench` installs it") from missing
    made: Contestant = module.Queue(redis_url)
    return made


def installed(names: Iterable[str], redis_url: str) -> dict[str, Contestant]:
    """Those of the contestants that are installed, by name. The others are left out, with a note on standard error.

    Raises:
        SystemExit: none is installed.
    """
    found: dict[str, Contestant] = {}
    for name in names:
        try:
            found[name] = contestant(name, redis_url)
        except NotInstalled as reason:
            print(f"{name} is left out: {reason}", file=sys.stderr)
    if not found:
        raise SystemExit("no contestant is installed")
    return found


def database(redis_url: str, number: int) -> str:
    """The URL of another database of the same Redis."""
    return f"{redis_url}?db={number}"
