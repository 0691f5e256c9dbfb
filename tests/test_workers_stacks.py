"""The file into which a process dumps the stacks of its threads."""

from __future__ import annotations

import os
import signal

from workers import process_group
from workers.shared_memory import open_file


def in_a_fork(number: int, times: int) -> str:
    """What a process has written that sent itself a signal so many times."""
    with open_file("taskpool-stacks") as file:
        pid = os.fork()
        if pid == 0:
            process_group.write_stacks_to(file)
            for _ in range(times):
                os.kill(os.getpid(), number)
            os._exit(0)
        os.waitpid(pid, 0)
        return process_group.read_stacks(file)


def test_no_stacks_are_written_without_a_signal() -> None:
    assert in_a_fork(0, 1) == ""


def test_a_process_dumps_its_stacks_at_each_signal_and_goes_on() -> None:
    written = in_a_fork(process_group.STACKS_SIGNAL, 2)

    assert written.count("in in_a_fork") == 2


def test_the_end_of_long_stacks_is_kept() -> None:
    written = in_a_fork(process_group.STACKS_SIGNAL, 100)

    assert process_group.MOST_STACK_BYTES - 100 < len(written) <= process_group.MOST_STACK_BYTES
    assert written.splitlines()[-1].lstrip().startswith("File")


def test_a_fatal_error_dumps_the_stacks() -> None:
    assert "Fatal Python error: Aborted" in in_a_fork(signal.SIGABRT, 1)
