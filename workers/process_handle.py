"""One worker process as the supervisor knows it: its memory, its process group, and why it was killed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from enum import StrEnum

from . import process_group
from .fork_client import Nursery
from .shared_memory import Block, LaneState, Request, Run

log = logging.getLogger("workers")


class Verdict(StrEnum):
    """Why the supervisor ended an attempt; what it died of by itself is a crash."""

    TIMEOUT = "timeout"
    STOPPED = "stopped"
    GIVEN_BACK = "given_back"
    LEASE_LOST = "lease_lost"


class Child:
    """A running worker process. `pid` is also the id of its process group."""

    def __init__(self, name: str, pid: int, block: Block, nursery: Nursery, queues: tuple[str, ...]) -> None:
        self.name, self.pid, self.block, self.nursery, self.queues = name, pid, block, nursery, queues
        self.started_mono = time.monotonic()
        self.verdicts: dict[str, Verdict] = {}
        """By attempt id. When one is there, attempts without one are bystanders: they are given back."""
        self.asked_for_stacks: set[str] = set()
        """Attempt ids."""
        self.ended = asyncio.Event()
        self.is_draining = False

    def runs(self) -> list[Run]:
        """What it runs now."""
        return self.block.runs()

    def is_running(self, run: Run) -> bool:
        """True while the user's code of this very attempt goes on."""
        now = self.block.run(run.lane)
        return not self.ended.is_set() and now is not None and now.run == run.run and now.state is LaneState.RUNNING

    def drain(self) -> None:
        """Has it claim nothing more and end when its tasks have ended."""
        self.is_draining = True
        self.block.ask_to_drain()

    def ask(self, run: Run, request: Request) -> None:
        """Asks it to end one attempt by itself."""
        self.block.ask(run, request)
        self.nudge()

    def nudge(self) -> None:
        """Has it look at what it was asked."""
        if not self.ended.is_set():
            try:
                os.kill(self.pid, signal.SIGUSR1)
            except ProcessLookupError:
                pass

    def ask_for_stacks(self, run: Run) -> None:
        """Has it write down where its threads are, because of this attempt; `stacks.WRITE_S` later it has."""
        self.asked_for_stacks.add(run.attempt_id)
        if not self.ended.is_set():
            try:
                os.kill(self.pid, process_group.ASK)
            except ProcessLookupError:
                pass

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process and all it started."""
        if not self.ended.is_set():
            process_group.signal_group(self.pid, number)

    def note_fenced(self) -> None:
        """Reads whose attempts its guardian killed it for."""
        for run in self.runs():
            if self.block.asked(run) is Request.FENCED:
                self.verdicts.setdefault(run.attempt_id, Verdict.LEASE_LOST)
                log.warning(
                    "task %s: its lease can't be renewed, and the supervisor didn't act in time: its guardian killed"
                    " the process group %d (on_lost_lease is kill)", run.id, self.pid,
                )  # fmt: skip

    def kill(self, verdict: Verdict, run: Run | None = None) -> None:
        """Kills it for the sake of one attempt, or of all it runs."""
        for doomed in self.runs() if run is None else [run]:
            self.verdicts.setdefault(doomed.attempt_id, verdict)
        self.signal(signal.SIGKILL)
