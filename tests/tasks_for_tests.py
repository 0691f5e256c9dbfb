"""Task types for the system tests: the payload chooses what happens, files say what has happened."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from taskpool import SoftTimeout, Task, TaskContext, TaskStopped, task

STEP_S = 0.01


class Act(Task):
    """Does what `do` names; each attempt adds a line "pid attempt" to the file `note` once it is ready for a signal."""

    type = "act"

    class Payload:
        do: str = "ok"
        note: str = ""
        seconds: float = 600
        until: str = ""

    def run(self, ctx: TaskContext) -> Any:
        if self.payload.do not in ("tidy", "yield_to_stop", "ignore"):
            self._note(ctx)
        return getattr(self, self.payload.do)(ctx)

    def ok(self, ctx: TaskContext) -> dict[str, Any]:
        return {"attempt": ctx.attempt, "pid": os.getpid()}

    def fail(self, ctx: TaskContext) -> None:
        raise ValueError("as asked")

    def fail_once(self, ctx: TaskContext) -> str:
        if ctx.attempt == 1:
            raise ValueError("the first time")
        return "the second time"

    def die(self, ctx: TaskContext) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self, ctx: TaskContext) -> None:
        os._exit(7)

    def fork_and_return(self, ctx: TaskContext) -> int:
        return fork_and_return()

    def fork_and_raise(self, ctx: TaskContext) -> int:
        """The child leaves with an exception."""
        child = os.fork()
        if not child:
            raise ValueError("in the child")
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def fork_and_exit(self, ctx: TaskContext) -> int:
        return fork_and_exit()

    def hang(self, ctx: TaskContext) -> str:
        """Sleeps, and can be interrupted."""
        self._wait()
        return "slept"

    def work(self, ctx: TaskContext) -> str:
        """Writes a line every few milliseconds until `until` is there, and ignores every interrupt: "works", the
        attempt's number, the time by a clock that all processes share, the process and the task."""
        while not (self.payload.until and Path(self.payload.until).exists()):
            try:
                write_line(self.payload.note, f"works {ctx.attempt} {time.monotonic()} {os.getpid()} {ctx.id}")
                time.sleep(STEP_S)
            except (TaskStopped, SoftTimeout):
                pass
        return "worked"

    def hold(self, ctx: TaskContext) -> None:
        """Has a process in a session of its own write the lines of `work`, and holds the interpreter lock."""
        code = (
            "import sys, time, os\n"
            "while True:\n"
            "    line = f'works {sys.argv[2]} {time.monotonic()} {os.getpid()} {sys.argv[3]}\\n'\n"
            "    with open(sys.argv[1], 'a') as file: file.write(line)\n"
            "    time.sleep(0.01)\n"
        )
        if ctx.attempt > 1:
            write_line(self.payload.note, f"works {ctx.attempt} {time.monotonic()} {os.getpid()} {ctx.id}")
            return
        arguments = [sys.executable, "-S", "-c", code, self.payload.note, str(ctx.attempt), ctx.id]
        subprocess.Popen(arguments, start_new_session=True)
        sum(range(10**13))  # one call into C: no other thread of the process runs meanwhile

    def hang_once(self, ctx: TaskContext) -> str:
        """Hangs in its first process, returns in any other."""
        if len(Path(self.payload.note).read_text().splitlines()) == 1:
            self._wait()
        return "the second time"

    def tidy(self, ctx: TaskContext) -> None:
        """Writes a line on its way out."""
        try:
            self._note(ctx)
            self._wait()
        finally:
            write_line(self.payload.note, "tidied")

    def yield_to_stop(self, ctx: TaskContext) -> str:
        """Ends well when it's stopped."""
        try:
            self._note(ctx)
            self._wait()
        except TaskStopped:
            return f"cancelled: {ctx.cancelled}"
        return "slept"

    def ignore(self, ctx: TaskContext) -> None:
        """Swallows every interrupt."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        line = f"{os.getpid()} {ctx.attempt}"
        while True:
            try:
                write_line(self.payload.note, line)
                self._wait()
            except (TaskStopped, SoftTimeout):
                line = "ignored"

    def spawn(self, ctx: TaskContext) -> None:
        """Starts a process that ignores SIGTERM, and hangs."""
        self._spawn()
        self._wait()

    def spawn_apart(self, ctx: TaskContext) -> None:
        """Starts a process in a session of its own, and hangs."""
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        write_line(self.payload.note, f"spawned {child.pid}")
        self._wait()

    def spawn_and_ignore(self, ctx: TaskContext) -> None:
        self._spawn()
        self.ignore(ctx)

    def multiprocess(self, ctx: TaskContext) -> int | None:
        """Has a process of its own and terminates it."""
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        process.start()
        process.terminate()
        process.join()
        return process.exitcode

    def cooperate(self, ctx: TaskContext) -> None:
        """Looks whether it's to stop; nothing else tells it when it runs in a thread."""
        while True:
            ctx.raise_if_cancelled()
            time.sleep(STEP_S)

    def thread(self, ctx: TaskContext) -> None:
        """Leaves a thread running that nothing can interrupt."""
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        self._wait()

    def report(self, ctx: TaskContext) -> None:
        for done in range(101):
            ctx.progress(done, 100, note=f"step {done}")
            ctx.log(f"line {done}")

    def report_until(self, ctx: TaskContext) -> str:
        """Reports when it may end."""
        self._wait()
        ctx.progress(1, 2)
        ctx.log("late")
        return "reported"

    def report_and_hang(self, ctx: TaskContext) -> None:
        ctx.progress(1, 2)
        ctx.log("one line")
        self._wait()

    def report_on(self, ctx: TaskContext) -> int:
        """Reports all the time, until it may end: how often it has."""
        done = 0
        while not Path(self.payload.until).exists():
            done += 1
            ctx.progress(done, note=f"step {done}")
            time.sleep(STEP_S)
        return done

    def parents(self, ctx: TaskContext) -> dict[str, Any]:
        return dict(ctx.parents)

    def not_json(self, ctx: TaskContext) -> object:
        return object()

    def where(self, ctx: TaskContext) -> dict[str, int]:
        return {"pid": os.getpid(), "group": os.getpgrp(), "parent": os.getppid()}

    def _note(self, ctx: TaskContext) -> None:
        write_line(self.payload.note, f"{os.getpid()} {ctx.attempt}")

    def _wait(self) -> None:
        deadline = time.monotonic() + self.payload.seconds
        while time.monotonic() < deadline and not (self.payload.until and os.path.exists(self.payload.until)):
            time.sleep(STEP_S)

    def _spawn(self) -> None:
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        write_line(self.payload.note, f"spawned {child.pid}")


@task("act_async")
async def act_async(ctx: TaskContext, do: str = "ok", note: str = "", seconds: float = 600, until: str = "") -> Any:
    """The same for the event loop."""
    write_line(note, f"{os.getpid()} {ctx.attempt}")
    if do == "hog":
        while True:
            pass
    if do == "fork_and_exit":
        return fork_and_exit()
    if do == "fork_and_return":
        return fork_and_return()
    try:
        deadline = time.monotonic() + (0 if do == "ok" else seconds)
        while time.monotonic() < deadline and not (until and os.path.exists(until)):
            await asyncio.sleep(STEP_S)
    finally:
        write_line(note, "left")
    return {"attempt": ctx.attempt, "pid": os.getpid()}


@task("mark")
def mark(ctx: TaskContext, note: str, do: str = "", until: str = "") -> str:
    """Takes no time, unless it waits, or holds the interpreter lock, until `until` is there. Its line is its id."""
    write_line(note, ctx.id)
    if do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "fail":
        raise ValueError("as asked")
    while do == "wait" and not os.path.exists(until):
        time.sleep(STEP_S)
    while do == "grip" and not os.path.exists(until):
        ctypes.PyDLL(None).usleep(200_000)
    if do == "talk":
        print("said", ctx.id)
    return ctx.id * (1000 if do == "much" else 1)


@task("elsewhere", queue="elsewhere")
def elsewhere(n: int = 0) -> int:
    """Goes to another queue."""
    return n + 1


def fork_and_return() -> int:
    """The child comes back from here as well; its exit status."""
    child = os.fork()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0


def fork_and_exit() -> int:
    """The child leaves as programs do; its exit status."""
    child = os.fork()
    if not child:
        sys.exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_line(path: str, line: str) -> None:
    """Adds a line to a file in one write; nothing without a path."""
    if path:
        with open(path, "a") as file:
            file.write(line + "\n")
