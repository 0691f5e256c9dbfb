"""When a process group is gone: the moment nothing of it lives, whoever collects what is left."""

from __future__ import annotations

import signal
import subprocess

import psutil

from tests.support import eventually
from workers import processgroup


def test_a_group_lives_as_long_as_a_process_of_it_whoever_led_it() -> None:
    command = ["sh", "-c", "sleep 60 & echo $!"]
    leader = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    sleeper = int(leader.stdout.readline())
    leader.wait()
    leader.stdout.close()

    assert processgroup.is_alive(leader.pid)

    processgroup.signal_group(leader.pid, signal.SIGKILL)
    eventually(lambda: not processgroup.is_alive(leader.pid))
    eventually(lambda: not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == psutil.STATUS_ZOMBIE)


def test_a_zombie_that_nobody_collects_is_not_alive() -> None:
    zombie = subprocess.Popen(["true"], start_new_session=True)
    eventually(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE)

    alive = processgroup.is_alive(zombie.pid)

    zombie.wait()
    assert not alive
