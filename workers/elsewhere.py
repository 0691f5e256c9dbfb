"""Tasks whose type this pool doesn't know though another one serves it: they go back, for that one to take.

It happens while a new version is rolled out, and where a pool was started without some of the task files.
"""

from __future__ import annotations

import logging
from typing import Final

from taskpool.attempt import Outcome
from taskpool.catalogue import is_served
from taskpool.errors import RedisUnavailable
from taskpool.retry import backoff_s
from taskpool.store import AsyncStore, ReplyFault, Store
from taskpool.types import RunningTask, TaskStatus

log = logging.getLogger("workers")

FIRST_S: Final = 1.0
LONGEST_S: Final = 30.0
"""The longest waits before it is taken again, at first and later on: it may be this pool that takes it."""


class Elsewhere:
    """Says what becomes of tasks that can't run here: they run again, which costs them no attempt; or they fail, as
    `refused` says, when no pool has served their type for `type_grace_s`."""

    def __init__(self, *, type_grace_s: float) -> None:
        self._type_grace_s = type_grace_s
        self._named: set[str] = set()

    def outcome(self, running: RunningTask, refused: Outcome, store: Store) -> Outcome:
        """What becomes of this one."""
        try:
            served = store.carry_out(is_served(running.type, within_s=self._type_grace_s))
        except (RedisUnavailable, ReplyFault):
            served = True  # as far as anybody knows
        return self._put_back(running, refused) if served else refused

    async def outcome_async(self, running: RunningTask, refused: Outcome, store: AsyncStore) -> Outcome:
        """The same, awaited."""
        try:
            served = await store.carry_out(is_served(running.type, within_s=self._type_grace_s))
        except (RedisUnavailable, ReplyFault):
            served = True
        return self._put_back(running, refused) if served else refused

    def _put_back(self, running: RunningTask, refused: Outcome) -> Outcome:
        if running.type not in self._named:  # once is enough: there may be thousands of them
            self._named.add(running.type)
            what = "worker %s: the task type %r isn't known here; its tasks are left to the pools that serve it"
            log.warning(what, running.worker, running.type)
        delay_s = backoff_s(running.snoozes + 1, first_s=FIRST_S, longest_s=LONGEST_S)
        error = f"{refused.error}: left to another one"
        return Outcome(TaskStatus.SCHEDULED, error=error, failure=refused.failure, delay_s=delay_s, counts=False)
