"""The audit: who submitted, stopped, retried, removed, changed or was shown what, from where and when.

The script that makes a change writes its entry, so each change has one and a refused one has none. Submissions, changes
of tasks, and what admins do with keys and webhooks have a capped stream each: a caller that may only submit and stop
tasks can't push out what admins did. `audit_pages` reads the streams.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from taskpool import keys
from taskpool.calls import Call
from taskpool.errors import FieldError, NotAllowed


class What(StrEnum):
    """The kinds of entries."""

    TASK_SUBMITTED = "task.submitted"
    TASK_STOPPED = "task.stopped"
    TASK_CANCELED = "task.canceled"
    TASK_REMOVED = "task.removed"
    TASK_RETRIED = "task.retried"
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_CHANGED = "webhook.changed"
    WEBHOOK_ROTATED = "webhook.rotated"
    WEBHOOK_REMOVED = "webhook.removed"
    WEBHOOK_SECRET_READ = "webhook.secret_read"
    DELIVERY_REPLAYED = "delivery.replayed"


class Actor(msgspec.Struct, frozen=True, gc=False):
    """Who does something: `key` is a key's id (None: none was asked for), `project` what its new tasks belong to, and
    `types` and `queues` are what it may submit tasks to (None: any)."""

    key: str | None
    name: str
    project: str | None
    address: str
    types: Collection[str] | None = None
    queues: Collection[str] | None = None

    def check_use(self, type: str, queue: str, start: str = "") -> None:
        """Return when it may have a task of this type in this queue; `start` prefixes the faults' pointers.

        Raises:
            NotAllowed
        """
        faults = []
        if self.types is not None and type not in self.types:
            known = ", ".join(sorted(self.types))
            faults.append(FieldError(start + "/type", f"the key {self.name!r} may use the types {known}, not {type}"))
        if self.queues is not None and queue not in self.queues:
            known = ", ".join(sorted(self.queues))
            faults.append(
                FieldError(start + "/queue", f"the key {self.name!r} may use the queues {known}, not {queue}")
            )
        if faults:
            raise NotAllowed(faults)


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change. `what` is a word such as ``task.stopped``; `about` is the id of what was changed, of the first and
    `last` of `count` tasks in a batch."""

    what: str
    about: str
    key: str | None = None
    name: str = ""
    project: str | None = None
    address: str = ""
    count: int = 1
    last: str | None = None


@dataclass(frozen=True, slots=True)
class Audited:
    """An entry and when it was made, in ms by Redis's clock."""

    at_ms: int
    entry: AuditEntry


_encode = msgspec.json.Encoder().encode


def entry(by: Actor | None, what: str, about: str, *, count: int = 1, last: str | None = None) -> bytes:
    """The entry as scripts take it; empty, which stands for none, when nobody's name is known."""
    if by is None:
        return b""
    return _encode(
        AuditEntry(
            what=what,
            about=about,
            key=by.key,
            name=by.name,
            project=by.project,
            address=by.address,
            count=count,
            last=last,
        )
    )


def note(entry: bytes) -> Call[None]:
    """Append an entry about something that changes nothing, such as a secret that is shown."""
    command = ("XADD", keys.AUDIT, "MAXLEN", "~", keys.AUDIT_MAXLEN, "*", "e", entry)
    return Call(command, lambda _: None, again=True)
