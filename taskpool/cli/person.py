"""Who runs a command on Redis itself: the audit names the user of this machine, as it names keys at the API."""

from __future__ import annotations

import getpass
import socket

from taskpool.access.audit import Actor
from taskpool.pool import TaskPool
from taskpool.runner import kill_task, retry_task
from taskpool.types import TaskRecord, TaskSpec


def person() -> Actor:
    """Whoever runs this command."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = "?"
    return Actor(None, f"taskpool ({user})", None, socket.gethostname())


class PersonsPool(TaskPool):
    """A pool that changes tasks in the name of that person."""

    def add_spec(self, spec: TaskSpec) -> TaskRecord:
        """As a pool does."""
        submitted = self.store.carry_out(self.submitting(spec, by=person()))
        return self.get(submitted.receipts[0].id)

    def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord:
        """As a pool does."""
        return self.store.carry_out(kill_task(id, grace_s=grace_s, force=force, by=person()))

    def retry_task(self, id: str) -> TaskRecord:
        """As a pool does."""
        return self.store.carry_out(retry_task(id, person()))
