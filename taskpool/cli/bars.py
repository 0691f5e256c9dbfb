"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from taskpool.printable import printable

if TYPE_CHECKING:
    from taskpool.types import TaskRecord


class TaskBar:
    """One task's status, bar and note; a context manager whose value shows a record."""

    def __init__(self, out: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=out,
        )
        self._row = self._progress.add_task("", total=None, note="")

    def __enter__(self) -> Callable[[TaskRecord], None]:
        self._progress.start()
        return self.show

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, record: TaskRecord) -> None:
        """Draw what the record says; a task that is done fills the bar."""
        progress = record.progress or {}
        done, total = progress.get("done", 0), progress.get("total")
        if record.status.is_terminal:
            done, total = (1, 1) if record.status == "done" else (done, total or 1)
        self._progress.update(
            self._row,
            description=printable(f"{record.type} {record.status.value}"),
            completed=done,
            total=total,
            note=printable(str(progress.get("note") or "")),
        )


class CountBars:
    """How many files have been submitted and how many are counted; a context manager."""

    def __init__(self, out: Console, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=out,
            disable=not out.is_terminal,
        )
        self._submitted = self._progress.add_task("submitted", total=total)
        self._counted = self._progress.add_task("counted", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, submitted: int, counted: int) -> None:
        """Draw these numbers."""
        self._progress.update(self._submitted, completed=submitted)
        self._progress.update(self._counted, completed=counted)
