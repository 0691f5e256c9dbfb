"""The audit: who submitted, stopped, retried, removed, changed or was shown what, from where and when.

The script that makes a change writes its entry, so each change has one and a refused one has none. Submissions, changes
of tasks, and what admins do with keys and webhooks have a capped stream each: a caller that may only submit and stop
tasks can't push out what admins did. `audit_pages` reads the streams.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from taskpool import keys
from taskpool.access.apikey import Scope
from taskpool.access.rights import OPTIONS, RIGHTS, Effect
from taskpool.calls import Call
from taskpool.errors import FieldError, NotAllowed
from taskpool.types import TaskSpec


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
    """Who does something: `key` is a key's id (None: none was asked for), `project` what its new tasks belong to.
    `scopes`, and the `types` and `queues` whose tasks it may start and stop, are its key's (None: any)."""

    key: str | None
    name: str
    project: str | None
    address: str
    types: Collection[str] | None = None
    queues: Collection[str] | None = None
    scopes: Collection[Scope] | None = None

    @property
    def is_bound(self) -> bool:
        """Whether there are types or queues whose tasks it may not start and stop."""
        return self.types is not None or self.queues is not None

    def bounds(self) -> bytes:
        """Its types and queues as `add.lua` takes them, ``{"types":{name:1},"queues":{name:1}}``; empty: any."""
        if not self.is_bound:
            return b""
        names = {"types": self.types, "queues": self.queues}
        return _encode({of: dict.fromkeys(each, 1) for of, each in names.items() if each is not None})

    def may(self, effect: Effect) -> bool:
        """Whether it has the scope for this effect."""
        return self.scopes is None or RIGHTS[effect].scope in self.scopes or Scope.ADMIN in self.scopes

    def check_options(self, spec: TaskSpec, start: str = "") -> None:
        """Return if it may use the type, the queue (if it names one) and the options of a submission; `start` prefixes
        the faults' pointers. To be asked before the type is looked up: a caller learns nothing about a type that it may
        not use.

        Raises:
            NotAllowed
        """
        if not self.is_bound and (self.scopes is None or Scope.ADMIN in self.scopes):
            return
        faults = list(self._bound_faults(spec.type, spec.queue, start))
        for option, value, effect in OPTIONS:
            given = getattr(spec, option)
            if given and (value is None or value == given) and not self.may(effect):
                what = option if value is None else f"{option} {value}"
                text = f"the key {self.name!r} doesn't have the scope {RIGHTS[effect].scope.value}, which {what} needs"
                faults.append(FieldError(f"{start}/{option}", text))
        if faults:
            raise NotAllowed(faults)

    def check_task(self, type: str, queue: str, start: str = "") -> None:
        """Return if it may start and stop tasks of this type in this queue; `start` prefixes the faults' pointers.

        Raises:
            NotAllowed
        """
        if self.is_bound and (faults := list(self._bound_faults(type, queue, start))):
            raise NotAllowed(faults)

    def _bound_faults(self, type: str, queue: str | None, start: str) -> Iterator[FieldError]:
        for field, value, allowed in (("type", type, self.types), ("queue", queue, self.queues)):
            if allowed is not None and value is not None and value not in allowed:
                known = ", ".join(sorted(allowed))
                yield FieldError(f"{start}/{field}", f"the key {self.name!r} may use the {field}s {known}, not {value}")


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
