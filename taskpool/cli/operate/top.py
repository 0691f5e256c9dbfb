"""`taskpool top`: the whole service on one screen, live, with keys to pause a queue, stop a task and retry one.

rich draws it, which other commands use as well, and the keys are read from the terminal as they are pressed. So it
needs no extra, and works over SSH, with Redis and with `--server`.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from taskpool.cli.output import age, size, who_paused
from taskpool.cli.service import service_command
from taskpool.errors import TaskpoolError
from taskpool.text import printable
from taskpool.types import QueueInfo, TaskRecord, TaskStatus, WorkerInfo
from taskpool.types.fleet import PoolRecord, PoolState

if TYPE_CHECKING:  # rich is imported by the few commands that draw: it takes a tenth of a second
    from rich.console import Console, RenderableType

    from taskpool.cli.service import Service

EPILOG: Final = """\b
Keys:
  Tab, arrows   choose a list and a row
  p             pause or resume the queue
  s             stop the task of the worker
  r             retry the failed task
  q             quit

\b
Examples:
  taskpool top
  taskpool top --once > state.txt

Without a terminal it prints the state once.
"""

FAILURES: Final = 50
LEAST_ROWS: Final = 3
HEAD_ROWS: Final = 2
KEYS: Final[Mapping[bytes, str]] = {
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1bOA": "up", b"\x1bOB": "down", b"\t": "next", b"\x1b[Z": "before",
    b"k": "up", b"j": "down", b"\x1b[C": "next", b"\x1b[D": "before", b"\x03": "q",
}  # fmt: skip
HELP: Final = "Tab list  ↑↓ row  p pause/resume queue  s stop task  r retry task  q quit"
STATE_COLOURS: Final[Mapping[str, str]] = {"busy": "green", "suspended": "yellow", "gone": "red", "draining": "yellow"}


class Row(NamedTuple):
    """A row of a list: what it is about, its cells, and its colour."""

    key: str
    cells: Sequence[str]
    colour: str | None = None


@dataclass(frozen=True)
class View:
    """The service at one moment."""

    queues: Sequence[QueueInfo] = ()
    workers: Sequence[WorkerInfo] = ()
    pools: Sequence[PoolRecord] = ()
    failures: Sequence[TaskRecord] = ()
    last_minute: tuple[int, int, int] = (0, 0, 0)
    """How many tasks were submitted, done and failed."""

    @classmethod
    def of(cls, service: Service) -> View:
        """Read it. Raises: TaskpoolError."""
        series = service.stats("1h").series
        whole = series[0] if series else None
        counts = (whole.submitted, whole.done, whole.failed) if whole is not None else ((), (), ())
        submitted, done, failed = [each[-2] if len(each) > 1 else 0 for each in counts]
        return cls(
            queues=sorted(service.queues(), key=lambda each: (-each.queued - each.in_progress, each.name)),
            workers=sorted(service.workers(), key=lambda each: (each.task is None, each.name)),
            pools=service.pools(),
            failures=service.list_tasks(status=TaskStatus.FAILED, limit=FAILURES).items,
            last_minute=(submitted, done, failed),
        )

    def rows(self) -> Mapping[str, Sequence[Row]]:
        """The rows of each list."""
        now = datetime.now(UTC)
        return {
            "queues": [_queue_row(each) for each in self.queues],
            "workers": [_worker_row(each, now) for each in self.workers],
            "failures": [_failure_row(each, now) for each in self.failures],
        }

    def totals(self) -> str:
        """The whole in one line."""
        queued, running, scheduled, waiting = (
            sum(getattr(queue, count) for queue in self.queues)
            for count in ("queued", "in_progress", "scheduled", "waiting")
        )
        live = [pool for pool in self.pools if pool.state is not PoolState.GONE]
        slots, busy = sum(pool.processes * pool.slots for pool in live), sum(pool.busy for pool in live)
        submitted, done, failed = self.last_minute
        gone = len(self.pools) - len(live)
        return (
            f"{queued:,} queued  {running:,} running  {scheduled:,} scheduled  {waiting:,} waiting  |  last minute: "
            f"{submitted:,} submitted  {done:,} done  {failed:,} failed  |  {busy:,} of {slots:,} slots busy  "
            f"{len(live):,} pool{'' if len(live) == 1 else 's'}{f', {gone:,} gone' if gone else ''}"
        )


COLUMNS: Final[Mapping[str, Sequence[str]]] = {
    "queues": ("queue", ">queued", ">running", ">scheduled", ">waiting", ">failed", ">oldest", "paused"),
    "workers": ("worker", "state", ">done", ">failed", ">memory", ">for", "type", "task"),
    "failures": ("failed task", "type", "queue", ">ago", "error"),
}


def _queue_row(queue: QueueInfo) -> Row:
    counts = [f"{n:,}" for n in (queue.queued, queue.in_progress, queue.scheduled, queue.waiting, queue.failed)]
    paused = "" if queue.paused is None else who_paused(queue.paused)
    return Row(queue.name, (queue.name, *counts, age(queue.oldest_s), paused), "yellow" if queue.paused else None)


def _worker_row(worker: WorkerInfo, now: datetime) -> Row:
    memory = size(worker.memory_bytes)
    task = worker.task
    for_s = "" if task is None else age(max(now.timestamp() - task.since_ms / 1000, 0))
    more = f" +{len(worker.current) - 1}" if len(worker.current) > 1 else ""
    about = ("", "", "") if task is None else (for_s, task.type, task.id + more)
    cells = (worker.name, worker.state, f"{worker.done:,}", f"{worker.failed:,}", memory, *about)
    return Row(worker.name, cells, STATE_COLOURS.get(worker.state))


def _failure_row(record: TaskRecord, now: datetime) -> Row:
    ago = "" if record.ended_at is None else age((now - record.ended_at).total_seconds())
    return Row(record.id, (record.id, record.type, record.queue, ago, (record.error or "").partition("\n")[0]))


@dataclass
class Screen:
    """What is chosen on the screen, and what is about to be done."""

    service: Service
    view: View = field(default_factory=View)
    pane: str = "queues"
    chosen: dict[str, str] = field(default_factory=dict)
    """By list, the key of the row: a row stays chosen when others come and go."""
    notice: str = ""
    """The outcome of the last key, or why the service can't be read."""
    asked: tuple[str, Callable[[], str]] | None = None
    """A question, and what is done at y."""
    is_over: bool = False

    def look(self) -> None:
        """Reads the service again; what was seen stays while that fails."""
        try:
            self.view = View.of(self.service)
        except TaskpoolError as error:
            self.notice = str(error)

    def index(self, pane: str, rows: Sequence[Row]) -> int:
        """The chosen row of a list."""
        keys = [row.key for row in rows]
        return keys.index(self.chosen[pane]) if self.chosen.get(pane) in keys else 0

    def press(self, key: str) -> None:
        """Does what a key is for."""
        if self.asked is not None:
            (_, act), self.asked = self.asked, None
            self.notice = self._do(act) if key == "y" else "Nothing was done."
            return
        self.notice = ""
        panes = list(COLUMNS)
        rows = self.view.rows()[self.pane]
        at = self.index(self.pane, rows)
        match key:
            case "q":
                self.is_over = True
            case "next" | "before":
                self.pane = panes[(panes.index(self.pane) + (1 if key == "next" else -1)) % len(panes)]
            case "up" | "down" if rows:
                at = min(max(at + (1 if key == "down" else -1), 0), len(rows) - 1)
                self.chosen[self.pane] = rows[at].key
            case "p" | "s" | "r" if rows:
                self._ask(key, rows[at].key)

    def _ask(self, key: str, chosen: str) -> None:
        self.chosen[self.pane] = chosen
        service = self.service
        if key == "p" and self.pane == "queues":
            queue = next(each for each in self.view.queues if each.name == chosen)
            if queue.paused is None:
                self.asked = f"Pause the queue {chosen}?", lambda: _said(service.pause_queue(chosen), "It is paused.")
            else:
                self.asked = f"Resume the queue {chosen}?", lambda: _said(service.resume_queue(chosen), "It goes on.")
        elif key == "s" and self.pane == "workers":
            worker = next(each for each in self.view.workers if each.name == chosen)
            if worker.task is None:
                self.notice = "It runs nothing."
                return
            id = worker.task.id
            self.asked = f"Stop the task {id} ({worker.task.type})?", lambda: f"It is {service.kill_task(id).status}."
        elif key == "r" and self.pane == "failures":
            self.asked = f"Retry the task {chosen}?", lambda: f"It is {service.retry_task(chosen).status}."
        else:
            self.notice = {"p": "p is for queues", "s": "s is for workers", "r": "r is for failed tasks"}[
                key
            ] + ": Tab."

    def _do(self, act: Callable[[], str]) -> str:
        try:
            return act()
        except TaskpoolError as error:
            return str(error)
        finally:
            self.look()


def _said(_: object, text: str) -> str:
    return text


def draw(screen: Screen, height: int, *, is_live: bool = True) -> RenderableType:
    """The screen as rich shows it, at most `height` lines."""
    from rich.console import Group
    from rich.text import Text

    rows = screen.view.rows()
    room = max(height - HEAD_ROWS - 1 - 2 * len(rows), LEAST_ROWS * len(rows))
    shares = _shares({name: len(each) for name, each in rows.items()}, room)
    parts: list[RenderableType] = [Text(f"taskpool  {datetime.now():%H:%M:%S}", "bold"), Text(screen.view.totals())]
    for name, each in rows.items():
        at = screen.index(name, each)
        first = min(max(at - shares[name] + 1, 0), max(len(each) - shares[name], 0))
        shown = each[first : first + shares[name]]
        chosen = at - first if is_live and name == screen.pane else None
        parts += [Text(), _table(name, shown, chosen, len(each))]
    if is_live:
        line = f"{screen.asked[0]}  y / any other key" if screen.asked else screen.notice or HELP
        parts.append(Text(printable(line), "bold yellow" if screen.asked else "dim", no_wrap=True))
    return Group(*parts)


def _shares(wanted: Mapping[str, int], room: int) -> Mapping[str, int]:
    """How many rows each list gets: an equal share, and what others leave."""
    shares = dict.fromkeys(wanted, LEAST_ROWS)
    left = room - sum(shares.values())
    while left > 0 and (short := [name for name in wanted if wanted[name] > shares[name]]):
        for name in short[:left]:
            shares[name] += 1
        left -= len(short[:left])
    return shares


def _table(name: str, rows: Sequence[Row], chosen: int | None, count: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, expand=True, padding=(0, 1, 0, 0), header_style="bold reverse" if chosen is not None else "bold"
    )
    for at, column in enumerate(COLUMNS[name]):
        is_last = at == len(COLUMNS[name]) - 1
        title = column.removeprefix(">").upper() + (f" ({count:,})" if at == 0 else "")
        table.add_column(
            title,
            justify="right" if column.startswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=22 if at == 0 else 7,
            max_width=None if is_last else 40,
            ratio=1 if is_last else None,
        )
    for at, row in enumerate(rows):
        style = "reverse" if at == chosen else row.colour
        table.add_row(*[Text(printable(cell), no_wrap=True) for cell in row.cells], style=style)
    if not rows:
        nothing = {"queues": "no queue has held a task yet", "workers": "no worker runs", "failures": "nothing failed"}
        table.add_row(Text(nothing[name], "dim"))
    return table


@contextmanager
def keyboard(fd: int) -> Iterator[Callable[[float], str]]:
    """Reads keys one by one: the value takes how long to wait, and returns the key; '' if none came."""
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)

    def read(timeout_s: float) -> str:
        if not select.select([fd], [], [], max(timeout_s, 0))[0]:
            return ""
        pressed = os.read(fd, 16)
        return KEYS.get(pressed) or pressed[:1].decode("ascii", "replace") or "q"  # nothing: the terminal has gone

    try:
        yield read
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@service_command(short_help="Show the whole service on one screen, live.", epilog=EPILOG)
@click.option(
    "--interval", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, metavar="SECONDS",
    help="How often to look.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Print the state once.")
def top(service: Service, interval: float, *, once: bool) -> None:
    """Show the whole service on one screen: totals, queues, workers and what they run, failures; live, with keys."""
    from rich.console import Console

    screen = Screen(service)
    if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        screen.view = View.of(service)
        console = Console(highlight=False, markup=False, emoji=False)
        console.print(draw(screen, console.size.height, is_live=False))
        return
    _run(screen, Console(highlight=False, markup=False, emoji=False), interval)


def _run(screen: Screen, console: Console, interval_s: float) -> None:
    from rich.live import Live

    screen.view = View.of(screen.service)  # a mistake in an address ends the command
    with keyboard(sys.stdin.fileno()) as read, Live(console=console, screen=True, auto_refresh=False) as live:
        looked_mono = time.monotonic()
        while not screen.is_over:
            live.update(draw(screen, console.size.height), refresh=True)
            if key := read(looked_mono + interval_s - time.monotonic()):
                screen.press(key)
            if time.monotonic() >= looked_mono + interval_s:
                screen.look()
                looked_mono = time.monotonic()
