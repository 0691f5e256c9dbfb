"""The mutation gate: a copy of the packages with one safeguard switched off, to show that the checker would find out.

Nothing of this is in the packages themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.chaos.cluster import PACKAGES, ROOT

Edit = tuple[str, str, str]
"""File, text, and what stands there instead."""

_HEARD = "if subscription.live:\n                # Without room, its client reads slowly"
_REFUSED = "isinstance(error, RedisRefused) and not error.is_known and error.at == at"
_PATIENT = "if ended.refusals >= MOST_REFUSALS:\n                    self._keep(ended, error)"
_UNFENCED = "if f[1] ~= attempt_id or f[2] ~= RQ.in_progress then"
_PARKED = """local id = redis.call('HGET', KEY.worker .. worker, 'popped:' .. queue)
    redis.call('HDEL', KEY.worker .. worker, 'popped:' .. queue)
    if not id then
      id = redis.call('LPOP', KEY.queue .. queue)
      if id then
        redis.call('HSET', KEY.worker .. worker, 'popped:' .. queue, id)
        ring(queue, 1)
        return false
      end
    end"""

MUTATIONS: Final[Mapping[str, Sequence[Edit]]] = {
    # Every write of an attempt that lost its lease goes through.
    "fence": [
        ("taskpool/redis/lua/finish.lua", _UNFENCED, "if false then"),
        (
            "taskpool/redis/lua/requeue.lua",
            _UNFENCED.replace("[1]", ".attempt_id").replace("[2]", ".status"),
            "if false then",
        ),
        ("taskpool/redis/lua/heartbeat.lua", _UNFENCED, "if false then"),
        (
            "taskpool/redis/lua/crash.lua",
            "f.status == RQ.in_progress, f.attempt_id == attempt_id",
            "f.status == RQ.in_progress, true",
        ),
    ],
    # A task leaves its queue in one step and is started in the next one, as with a plain BLPOP.
    "claim": [
        (
            "taskpool/redis/lua/turn.lua",
            "local id = not (paused and paused[queue]) and redis.call('LPOP', place)\n",
            f"{_PARKED}\n",
        )
    ],
    # Of what clients rely on: unique keys, idempotency keys, further attempts of webhooks.
    "clients": [
        ("taskpool/redis/lua/add.lua", "if unique then holder, status =", "if false then holder, status ="),
        ("taskpool/redis/lua/add.lua", "  if kept then", "  if false then"),
        ("workers/webhook_dispatcher.py", "if 200 <= status < 300:", "if 200 <= status < 600:"),
    ],
    # Followers aren't told of the events that they missed while the API's connection to Redis was cut.
    "catch_up": [("api/events/hub.py", _HEARD, _HEARD.replace("subscription.live:", "False:"))],
    # What Redis refuses with an error is dropped.
    "refused": [
        ("workers/process/worker_loop.py", _REFUSED, "True"),
        ("workers/process/worker_loop.py", _PATIENT, "ended.is_settled = True"),
    ],
    # What is only presumed is reported as if it had been seen.
    "presumed": [
        (
            "taskpool/redis/lua/crash.lua",
            "local presumed, reason = ARGV[8] ~= '', ARGV[10]",
            "local presumed, reason = ARGV[8] ~= '', 'crashed'",
        )
    ],
    # Nobody takes back what a dead host ran.
    "reaper": [("workers/housekeeping.py", "if self._clock.may_reap():", "if False:")],
}


def mutate(name: str, directory: Path) -> Path:
    """Copies the packages into `directory` with the mutation `name`, and returns it.

    Raises:
        ValueError: the text to change isn't there (any more), once.
    """
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("*.pyc.*")  # bytecode that is just being written
        shutil.copytree(ROOT / package, directory / package, ignore=ignored)  # with its bytecode, which still fits
    for file, text, instead in MUTATIONS[name]:
        path = directory / file
        source = path.read_text()
        if source.count(text) != 1:
            raise ValueError(f"{file} has {source.count(text)} times: {text}")
        path.write_text(source.replace(text, instead))
    return directory
