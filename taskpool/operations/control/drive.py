"""Carries out operations on many tasks in bounded steps: the caller that started one does, or housekeeping if it dies.

An operation first *finds* its tasks: it walks through the tasks that match and keeps their ids in a list. Then it
*acts* on the list. Each task is changed by the script that changes a single one, which also counts it and names the
operation in the record of the task: so a step that is made again after a crash changes and counts nothing twice.
`operation_note.lua` writes down each step. Programs take an operation with a lease; each of these scripts refuses a
program that no longer has it with ``lost``.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from taskpool.access.audit import entry
from taskpool.errors import InvalidTask
from taskpool.operations.control.bulk import Chosen, Finder, actor_of, described, spec_of, starter_of
from taskpool.operations.listing import walk_of
from taskpool.operations.status import release_dependents
from taskpool.redis import bulk_scripts, keys, rq_job, scripts
from taskpool.redis.calls import Call, Plan, as_it_is, one, tell_unreadable, texts, tolerant
from taskpool.redis.replies import ReplyFault
from taskpool.redis.scripts import Work
from taskpool.types import RQ_STATUS, TaskStatus
from taskpool.types.control import UNDOABLE, OperationStatus
from taskpool.validation import TASK_ID

MOST_AT_ONCE: Final = 20
LEAST_AT_ONCE: Final = 12
LONG_S: Final = 0.003
"""How many tasks a step changes at most, and at least. If a step takes longer than LONG_S, the next one changes fewer:
where each task has a call of its own, Redis serves no other client until all are made. A script that changes several
tasks limits its time itself (`keys.TAKE_US`)."""
OLDEST_FIRST: Final = frozenset({"retry", "move", "run_now", "undo"})
"""What these queue keeps its order. The others begin with the newest: a task comes before those that it depends on."""
GRACE_S: Final = 10.0
RELEASE_STEPS: Final = 5
MOST_PARENTS: Final = 100
"""How many tasks are restored at most before one that depends on them."""
STOP_TRIES: Final = 5
"""How often a task that begins just when it is to be canceled is asked to stop instead."""
UNREADABLE: Final = "unreadable"
LOST: Final = "lost"
AT_ONCE: Final = 20
"""Operations that a round of housekeeping looks at."""


def new_driver() -> str:
    """A name for a program that goes on with operations."""
    return secrets.token_hex(6)


def drive(id: str, driver: str, most_s: float) -> Plan[bool]:
    """Go on with an operation for about `most_s` seconds; whether there is more for this program to do."""
    taken = yield from one(bulk_scripts.take(id, driver))
    if taken.word != "ok":
        return False
    due_mono = time.monotonic() + most_s
    run = _Run(id, driver, taken.hash)
    while not run.is_over and time.monotonic() < due_mono:
        yield from run.step()
    return not run.is_over


def look_after_operations(driver: str, most_s: float) -> Plan[bool]:
    """Go on with operations that no other program has; whether there may be more to do."""
    ids = yield from one(tolerant(Call(("SRANDMEMBER", keys.OPERATIONS_RUNNING, AT_ONCE), texts, again=True), []))
    more = False
    for id in ids:
        try:
            more = (yield from drive(id, driver, most_s / len(ids))) or more
        except ReplyFault as fault:  # its key is damaged: it must not keep the others back
            tell_unreadable(f"operation {id!r}", fault)
            yield from one(Call(("SREM", keys.OPERATIONS_RUNNING, id), int, again=True))
    return more


class _Run:
    """What one program does for an operation that it has taken."""

    def __init__(self, id: str, driver: str, h: Mapping[bytes, bytes]) -> None:
        self.id, self._driver, self._h = id, driver, h
        self._action = rq_job.text_of(h.get(b"action")) or ""
        self._undoes = rq_job.text_of(h.get(b"undoes"))
        self._steps = rq_job.number_of(h.get(b"steps"), 0)
        self._chosen = rq_job.number_of(h.get(b"chosen"), 0)
        self._acted = rq_job.number_of(h.get(b"acted"), 0)
        self._is_acting = h.get(b"phase") == b"act"
        self._finder: Finder | None = None
        self._change: Callable[[Sequence[str]], Plan[list[str]]] | None = None
        self._at_once = MOST_AT_ONCE // 2
        self.is_over = False

    def step(self) -> Plan[None]:
        """One step of it."""
        try:
            if self._is_acting:
                yield from self._act()
            elif self._undoes is not None:
                yield from self._count()
            else:
                yield from self._find()
        except (
            InvalidTask,
            msgspec.MsgspecError,
            KeyError,
            ValueError,
            ReplyFault,
        ) as error:  # another program, or release, wrote it, or something that it needs
            yield from self._note(set={"error": f"it can't be read: {error}"[:200]}, status=OperationStatus.FAILED)

    def _find(self) -> Plan[None]:
        noted: dict[str, str] = {}
        if self._finder is None:
            action, wanted = spec_of(self._h)
            chosen = Chosen(action, actor_of(self._h), include_nonretryable=b"nonretryable" in self._h)
            walk = yield from walk_of(wanted, rq_job.text_of(self._h.get(b"position")))
            self._finder = Finder(walk, chosen)
            if b"size" not in self._h:
                noted["size"] = str((yield from walk.size()))
        found = yield from self._finder.step()
        self._is_acting = self._finder.is_over
        if not (noted or found.looked_at or self._is_acting):
            return
        noted |= {"phase": "act"} if self._is_acting else {"position": self._finder.cursor}
        self._chosen += len(found.ids)
        added = {
            "looked_at": found.looked_at,
            "matched": len(found.ids) + found.skipped.total(),
            "chosen": len(found.ids),
        }
        yield from self._note(set=noted, add=added | _skips(found.skipped), found=found.ids)

    def _count(self) -> Plan[None]:
        """The tasks of an operation that is undone are known."""
        key = f"{keys.OPERATION}{self._undoes}{keys.OPERATION_TASKS}"
        self._chosen = yield from one(Call(("LLEN", key), int, again=True))
        self._is_acting = True
        yield from self._note(set={"phase": "act"}, add={"matched": self._chosen, "chosen": self._chosen})

    def _act(self) -> Plan[None]:
        if self._acted >= self._chosen:
            undo_s = keys.UNDO_S if self._action in UNDOABLE else None
            yield from self._note(status=OperationStatus.DONE, undo_s=undo_s)
            self.is_over = True
            return
        ids = yield from self._next()
        change = self._change or (yield from self._changing())
        self._change = change
        began_mono = time.monotonic()
        words = (yield from change(ids)) if ids else []
        if LOST in words:
            self.is_over = True
            return
        took_s = time.monotonic() - began_mono
        self._at_once = max(LEAST_AT_ONCE, min(MOST_AT_ONCE, len(ids) // 2 if took_s > LONG_S else self._at_once + 1))
        skipped = Counter([_reason(word) for word in words if word not in ("ok", "children")])
        count = len(ids) or self._chosen - self._acted  # none is left: the list has expired
        self._acted += count
        added = {"acted": count}
        if count > len(ids):
            skipped["gone"] += count - len(ids)
        yield from self._note(add=added | _skips(skipped))

    def _next(self) -> Plan[list[str]]:
        first, last = self._acted, self._acted + self._at_once - 1
        if self._action not in OLDEST_FIRST:
            return (yield from one(bulk_scripts.tasks_of(self.id, first, last)))
        part = yield from one(bulk_scripts.tasks_of(self._undoes or self.id, -last - 1, -first - 1))
        return part[::-1]

    def _changing(self) -> Plan[Callable[[Sequence[str]], Plan[list[str]]]]:
        """What it does to tasks."""
        work, undoes = Work(self.id, self._driver), self._undoes or ""
        action = self._action
        if undoes:
            read = Call(("HGET", keys.OPERATION + undoes, "action"), as_it_is, again=True)
            action = "undo " + (rq_job.text_of((yield from one(read))) or "")
        queue = rq_job.text_of(self._h.get(b"queue")) or ""
        one_each: dict[str, Callable[[str], Call[str]]] = {
            "retry": lambda id: scripts.revive(id, work=work),
            "remove": lambda id: scripts.purge(id, work=work),
            "run_now": lambda id: bulk_scripts.run_now(id, work),
            "undo cancel": lambda id: bulk_scripts.uncancel(id, undoes, work),
            "undo remove": lambda id: bulk_scripts.unpurge(id, undoes, work),
        }
        cancel = _Many(lambda ids, hints: bulk_scripts.cancel_many(ids, work, hints))
        if action == "cancel":
            return cancel.change
        if action == "move":
            return _Many(lambda ids, hints: bulk_scripts.move_many(ids, queue, work, hints)).change
        if action == "stop":
            return lambda ids: _stop(ids, work, cancel)
        call = one_each[action]
        if action == "undo cancel":
            return lambda ids: _restore(call, ids)
        return lambda ids: _each(call, ids, again=action == "remove")

    def _note(
        self,
        *,
        set: Mapping[str, str] | None = None,
        add: Mapping[str, int] | None = None,
        found: Sequence[str] = (),
        status: str | None = None,
        undo_s: int | None = None,
    ) -> Plan[None]:
        audited = b"" if status is None else self._entry(status)
        note = bulk_scripts.note(
            self.id,
            self._driver,
            self._steps,
            set=set,
            add=add,
            found=found,
            status=status,
            undo_s=undo_s,
            audited=audited,
        )
        self._steps += 1
        self.is_over = (yield from one(note)) != "ok" or status is not None

    def _entry(self, status: str) -> bytes:
        """What the audit says at its end; nothing if it isn't known who started it."""
        return entry(starter_of(self._h), "operation.ended", self.id, comment=f"{status}: {described(self._h)}")


def _each(call: Callable[[str], Call[str]], ids: Sequence[str], *, again: bool) -> Plan[list[str]]:
    """Change tasks, and release those that wait for them; `again`: change a task then that was refused because of
    those."""
    words: list[str] = yield [tolerant(call(id), UNREADABLE) for id in ids]
    for at, (id, word) in enumerate(zip(ids, words, strict=True)):
        if word == "children":
            yield from release_dependents(id, RELEASE_STEPS)
            if again:
                second = yield from one(tolerant(call(id), UNREADABLE))
                words[at] = "needed" if second == "children" else second
    return words


def _restore(call: Callable[[str], Call[str]], ids: Sequence[str]) -> Plan[list[str]]:
    """Take cancelations back: of the tasks that a task depends on first."""
    words = yield from _each(call, ids, again=False)
    for at, id in enumerate(ids):
        chain, tried = [id], {id}
        while words[at].startswith("dependency ") and len(tried) < MOST_PARENTS:
            (word,) = yield from _each(call, chain[-1:], again=False)
            parent = word.split()[1] if word.startswith("dependency ") else ""
            if parent and parent not in tried and TASK_ID.fullmatch(parent):
                chain.append(parent)
                tried.add(parent)
                continue
            chain.pop()
            if not chain:
                words[at] = word
                break
    return words


class _Many:
    """Changes several tasks with one call of a script, which may leave the last of them to the next call."""

    def __init__(self, call: Callable[[Sequence[str], str], Call[bulk_scripts.Many]]) -> None:
        self._call, self._hints = call, bulk_scripts.NO_HINTS

    def change(self, ids: Sequence[str]) -> Plan[list[str]]:
        """Change these tasks, and release those that wait for them."""
        words: list[str] = []
        while len(words) < len(ids):
            rest = ids[len(words) :]
            done = yield from one(self._call(rest, self._hints))
            for id, word in zip(rest, done.words, strict=False):
                if word == "children":
                    yield from release_dependents(id, RELEASE_STEPS)
            words += done.words
            self._hints = done.hints
        return words


def _stop(ids: Sequence[str], work: Work, cancel: _Many) -> Plan[list[str]]:
    """Ask running tasks to stop, and cancel those that haven't started."""
    words: dict[str, str] = {}
    left = list(ids)
    for _ in range(STOP_TRIES):
        calls = [tolerant(scripts.stop(id, grace_s=GRACE_S, force=False, work=work), UNREADABLE) for id in left]
        words |= zip(left, (yield calls), strict=True)
        waiting = [id for id in left if words[id] in keys.RQ_SET["cancelable"]]
        if waiting:
            words |= zip(waiting, (yield from cancel.change(waiting)), strict=True)
        left = [id for id in waiting if words[id] == RQ_STATUS[TaskStatus.IN_PROGRESS]]  # they have begun meanwhile
        if not left:
            break
    return [words[id] for id in ids]


def _skips(skipped: Mapping[str, int]) -> dict[str, int]:
    """The fields that count skipped tasks."""
    return {f"skip:{why}": count for why, count in skipped.items()}


_REASONS: Final = {"unique": "unique_key"}
_WORDS: Final = frozenset(
    {"gone", "secrets", "needed", "foreign", "taken", "same", "other", "exists", "dependency", UNREADABLE}
)


def _reason(word: str) -> str:
    """Why a task was skipped, by the answer of its script."""
    first = word.partition(" ")[0]
    first = _REASONS.get(first, first)
    return first if first in _WORDS or first in _REASONS.values() else rq_job.status_of(first).value
