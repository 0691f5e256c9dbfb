"""One worker process as the supervisor sees it: its memory, its process group, and why it was killed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import suppress
from enum import StrEnum

from . import process_group
from .fork_client import ForkClient
from .shared_memory import Block, LaneState, Request, Run

log = logging.getLogger("workers")


class Verdict(StrEnum):
    """Why the supervisor ended an attempt. Without a verdict, the end of its process is a crash."""

    TIMEOUT = "timeout"
    STOPPED = "stopped"
    GIVEN_BACK = "given_back"
    LEASE_LOST = "lease_lost"


class ProcessHandle:
    """A worker process. `pid` is also the id of its process group."""

    def __init__(self, name: str, pid: int, block: Block, fork_client: ForkClient, queues: tuple[str, ...]) -> None:
        self.name, self.pid, self.block, self.fork_client, self.queues = name, pid, block, fork_client, queues
        self.verdicts: dict[str, Verdict] = {}
        """By attempt id. If there are any, attempts without one weren't the reason for the kill."""
        self.asked_for_stacks: set[str] = set()
        """Attempt ids."""
        self.ended = asyncio.Event()
        self.is_draining = self.is_dismissed = False

    def runs(self) -> list[Run]:
        """The attempts it runs now."""
        return self.block.runs()

    def is_running(self, run: Run) -> bool:
        """Whether the task's code of this very attempt goes on."""
        now = self.block.run(run.lane)
        return not self.ended.is_set() and now is not None and now.run == run.run and now.state is LaneState.RUNNING

    def drain(self) -> None:
        """Has it claim nothing more and end when its tasks have ended."""
        self.is_draining = True
        self.block.head.drain = 1

    def dismiss(self) -> None:
        """Drains it, and it isn't replaced."""
        if not self.is_draining:
            self.is_dismissed = True
            self.drain()

    def ask(self, run: Run, request: Request) -> None:
        """Asks it to end one attempt by itself."""
        self.block.ask(run, request)
        self.wake()

    def wake(self) -> None:
        """Has it read its requests."""
        self._signal(signal.SIGUSR1)

    def ask_for_stacks(self, run: Run) -> None:
        """Has it dump the stacks of its threads because of this attempt, within `process_group.WRITE_S`."""
        self.asked_for_stacks.add(run.attempt_id)
        self._signal(process_group.STACKS_SIGNAL)

    def _signal(self, number: signal.Signals) -> None:
        if not self.ended.is_set():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to the process and everything it started."""
        if not self.ended.is_set():
            process_group.signal_group(self.pid, number)

    def kill(self, verdict: Verdict, run: Run | None = None) -> None:
        """Kills it because of one attempt, or of all it runs."""
        for doomed in self.runs() if run is None else [run]:
            self.verdicts.setdefault(doomed.attempt_id, verdict)
        self.signal_group(signal.SIGKILL)

    def note_fenced(self) -> None:
        """Notes the attempts because of which its guardian killed it."""
        for run in self.runs():
            if self.block.asked(run) is Request.FENCED:
                self.verdicts.setdefault(run.attempt_id, Verdict.LEASE_LOST)
                log.warning(
                    "task %s: its lease can't be renewed, and the supervisor didn't act in time: its guardian killed"
                    " the process group %d (on_lost_lease is kill)", run.id, self.pid,
                )  # fmt: skip
