"""Process groups: when one is gone, how processes ended, and how whole families are killed."""

from __future__ import annotations

import signal
import subprocess

import psutil
import pytest

from tests.support import PATIENCE_S, eventually, is_running
from workers import process_group


def test_a_group_is_alive_while_any_of_its_processes_is() -> None:
    command = ["sh", "-c", "sleep 60 & echo $!"]
    leader = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    sleeper = int(leader.stdout.readline())
    leader.wait()
    leader.stdout.close()

    assert process_group.is_group_alive(leader.pid)

    process_group.signal_group(leader.pid, signal.SIGKILL)
    eventually(lambda: not process_group.is_group_alive(leader.pid))
    eventually(lambda: not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == psutil.STATUS_ZOMBIE)


def test_a_group_of_zombies_is_not_alive() -> None:
    zombie = subprocess.Popen(["true"], start_new_session=True)
    eventually(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE)

    alive = process_group.is_group_alive(zombie.pid)

    zombie.wait()
    assert not alive


def dead(*command: str) -> subprocess.Popen[bytes]:
    """A process that has ended, and that its parent hasn't collected."""
    process = subprocess.Popen(command, start_new_session=True)
    eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    return process


def test_the_exit_status_of_a_zombie_is_known() -> None:
    killed, failed, fine = dead("sh", "-c", "kill -9 $$"), dead("sh", "-c", "exit 3"), dead("true")

    found = [process_group.exit_status(process.pid) for process in (killed, failed, fine)]
    for process in (killed, failed, fine):
        process.wait()

    assert found == [signal.SIGKILL, 3 << 8, None]  # the kernel shows 0 as well when it won't tell
    assert process_group.exit_status(killed.pid) is None


def test_a_stopped_process_is_distinguished_from_one_that_runs() -> None:
    process = subprocess.Popen(["sleep", "60"])

    before = process_group.is_stopped(process.pid)
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: process_group.is_stopped(process.pid))
    process.kill()
    process.wait()

    assert not before
    assert not process_group.is_stopped(process.pid)


def test_a_family_is_killed_with_processes_that_left_its_group() -> None:
    leader = subprocess.Popen(
        ["sh", "-c", "setsid sleep 60 & echo $!; sleep 60"], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    apart = int(leader.stdout.readline())
    eventually(lambda: psutil.Process(apart).name() == "sleep")

    process_group.kill_family(leader.pid)

    assert leader.wait() == -signal.SIGKILL
    leader.stdout.close()
    eventually(lambda: not is_running(apart))


def test_a_family_that_takes_long_to_find_is_killed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "ORPHANS_S", -1.0)
    leader = subprocess.Popen(["sleep", "60"], start_new_session=True)

    process_group.kill_family(leader.pid)

    assert leader.wait(PATIENCE_S) == -signal.SIGKILL


def test_orphans_of_a_frozen_process_are_killed_and_its_other_children_spared() -> None:
    parent = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; sleep 61 & echo $!; wait"], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    orphan, spared = int(parent.stdout.readline()), int(parent.stdout.readline())
    parent.send_signal(signal.SIGSTOP)

    process_group.end_orphans(parent.pid, spare={spared})

    assert (is_running(orphan), is_running(spared)) == (False, True)
    process_group.kill_family(spared)
    parent.kill()
    parent.wait()
    parent.stdout.close()
