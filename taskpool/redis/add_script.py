"""Adds tasks to Redis: a task as it is stored, the call of `add.lua`, and what it answers.

`BatchedAdds` stores the plain submissions that arrive in one turn of an event loop with one call. Much of what a call
costs Redis, it then costs once. Each submission is still stored or refused by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from taskpool.errors import TaskpoolError
from taskpool.redis import keys, rq_job
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, Part, Script
from taskpool.redis.rq_job import status_of
from taskpool.types import OnLostLease, RunningTask, TaskStatus, Unique
from taskpool.types.dependency import Edge

DEFAULT_ATTEMPTS: Final = 1
ONCE_KEPT_S: Final = 86_400
UNKNOWN_ROOM_S: Final = 10.0
LONGEST_ROOM_S: Final = 60.0
NONE: Final[Mapping[int, str]] = MappingProxyType({})
NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})

_add: Final = Script("add")
_encode: Final = msgspec.json.Encoder().encode


# --- a task as it is stored -------------------------------------------------------------------------------------------


class Shared(msgspec.Struct, frozen=True, gc=False):
    """What tasks of one type with the same options, submitted with the same API key, share."""

    type: str
    queue: str
    failure_ttl_s: int
    fields: tuple[Part, ...]
    """Fields of the task's hash, flat."""
    recorded: Mapping[str, Any]
    """Fields of the task's record."""


@lru_cache(maxsize=4096, typed=True)
def share(  # noqa: PLR0917 - names would cost time, and this is asked for every submission
    type: str,
    queue: str,
    timeout_s: float,
    result_ttl_s: int,
    failure_ttl_s: int,
    max_attempts: int,
    backoff_s: float | None,
    backoff_max_s: float | None,
    on_lost_lease: OnLostLease,
    submitted_by: str | None,
) -> Shared:
    """What tasks with these options share. `submitted_by` is the name of an API key."""
    fields: list[Part] = [*rq_job.template(queue, timeout_s, result_ttl_s, failure_ttl_s), "type", type]
    backoff_s, backoff_max_s = _milliseconds(backoff_s), _milliseconds(backoff_max_s)
    if max_attempts != DEFAULT_ATTEMPTS:
        fields += ("max_attempts", max_attempts)
    if backoff_s is not None or backoff_max_s is not None:
        fields += ("backoff", backoff_text(backoff_s, backoff_max_s))
    if on_lost_lease != "continue":
        fields += ("on_lost_lease", on_lost_lease)
    if submitted_by is not None:
        fields += ("submitted_by", submitted_by)
    return Shared(
        type,
        queue,
        failure_ttl_s,
        tuple(fields),
        {
            "type": type,
            "queue": queue,
            "timeout_s": timeout_s,
            "result_ttl_s": result_ttl_s,
            "failure_ttl_s": failure_ttl_s,
            "max_attempts": max_attempts,
            "backoff_s": backoff_s,
            "backoff_max_s": backoff_max_s,
            "on_lost_lease": on_lost_lease,
            "submitted_by": submitted_by,
        },
    )


def backoff_text(first_s: float | None, longest_s: float | None) -> str:
    """A back-off as the task's hash holds it, in ms: ``first,longest``, each empty when it is None."""
    return ",".join(["" if each_s is None else str(round(each_s * 1000)) for each_s in (first_s, longest_s)])


def _milliseconds(seconds: float | None) -> float | None:
    """Seconds, as exact as they are stored."""
    return None if seconds is None else round(seconds * 1000) / 1000


def key_of(ref: str) -> str:
    """The key of what a task depends on: the record of a task, or the hash of a workflow."""
    workflow, colon, _ = ref.partition(":")
    return keys.WORKFLOW + workflow if colon else keys.JOB + ref


def _texts(parts: Sequence[Part]) -> list[str]:
    return [part.decode() if isinstance(part, bytes) else str(part) for part in parts]


class Caps(NamedTuple):
    """How many different queues, tags and keys one project may use; 0: any number."""

    queues: int = 0
    tags: int = 0
    unique_keys: int = 0
    idempotency_keys: int = 0


NO_CAPS: Final = Caps()


class NewTask(msgspec.Struct, frozen=True, gc=False):
    """A validated submission. Times in ms. `fields` are the fields of the hash that only this task has, flat, besides
    `data` (RQ's) and `description`."""

    id: str
    shared: Shared
    data: bytes
    description: str
    payload: Any
    """As the record shows it: JSON values, with masks for secrets."""
    recorded: Mapping[str, Any] = NO_OPTIONS
    """Its options that the record shows as they were submitted."""
    front: bool = False
    run_ms: int | None = None
    delay_ms: int | None = None
    expires_ms: int | None = None
    tags: Sequence[str] = ()
    parents: Sequence[str] = ()
    """The tasks that must be done."""
    edges: Sequence[Edge] = ()
    """All else that it waits for."""
    fields: Sequence[Part] = ()
    secrets: bytes = b""
    secret_ttl_s: int | None = None
    callback_events: Sequence[str] = ()
    unique: Unique | None = None
    project: str | None = None
    max_depth: int = 0
    """Most tasks that its queue may hold; 0: any number. The first task of a call decides for all."""
    caps: Caps = NO_CAPS
    """The caps of its project. The first task of a call decides for all."""
    is_plain: bool = False
    """Whether it has nothing but id, payload and what it shares."""
    confirm: bool = False
    """Whether a person has to confirm it."""


_OPTIONS: Final = (
    *("front", "run_ms", "delay_ms", "expires_ms", "tags", "parents", "edges", "project", "secret_ttl_s", "confirm"),
)
"""The fields of `NewTask` that `add.lua` reads as they are."""


def _options(task: NewTask) -> dict[str, Any]:
    """What a task has besides what it shares, as `add.lua` reads it."""
    if task.is_plain:
        return {}
    options = {name: value for name in _OPTIONS if (value := getattr(task, name))}
    edges = task.edges
    if task.confirm:  # a pool of the release before must not release it: it would queue it without asking
        edges = [*map(Edge, options.pop("parents", ())), *edges]
    if edges:
        options["edges"] = [edge._asdict() for edge in edges]
    options["fields"] = _texts(task.fields)
    if task.secrets:
        options["secrets"] = task.secrets.decode()
    if task.callback_events:
        options["callback_events"] = f",{','.join(task.callback_events)},"
    if task.unique is not None:
        options["unique"] = {"name": task.unique.name, "on_conflict": task.unique.on_conflict}
        if task.unique.held_ms is not None:
            options["unique"]["held_ms"] = task.unique.held_ms
        if task.unique.replaceable:
            options["unique"]["replaceable"] = msgspec.Raw(task.unique.replaceable)
    return options


# --- the call ---------------------------------------------------------------------------------------------------------


class Once(NamedTuple):
    """An idempotency key: a call that carries it is carried out once, and gets the same answer when it comes again
    within `kept_s`. `fingerprint` (a word) tells whether the call asks for the same."""

    digest: str
    fingerprint: str
    kept_s: float = ONCE_KEPT_S

    @classmethod
    def of(cls, scope: str, key: str, asked: bytes) -> Once:
        """That of a caller's key; `scope` says whose it is, `asked` what for."""
        digest = hashlib.blake2b(f"{scope}\0{key}".encode(), digest_size=16).hexdigest()
        return cls(digest, hashlib.blake2b(asked, digest_size=16).hexdigest())

    def asked(self) -> dict[str, Any]:
        """The key as scripts read it."""
        return {"key": self.digest, "fingerprint": self.fingerprint, "kept_ms": round(self.kept_s * 1000)}


class FullQueue(NamedTuple):
    """A queue that holds `held` tasks, and has no room for `coming` more. `head_waited_s`: None if that isn't known."""

    name: str
    held: int
    coming: int
    most: int
    head_waited_s: float | None

    def room_in_s(self) -> float:
        """When there may be room: a queue that holds L tasks, and whose head has waited W seconds, lets L go in W."""
        if self.head_waited_s is None or not self.held:
            return UNKNOWN_ROOM_S
        missing = self.held + self.coming - self.most
        return min(max(self.head_waited_s / self.held * missing, 1.0), LONGEST_ROOM_S)


class Capped(NamedTuple):
    """A cap that a call would have exceeded: its field in `Caps`, its project ("": no project), and the cap."""

    kind: str
    project: str
    most: int


class Added(msgspec.Struct, frozen=True, gc=False):
    """What `add` answered: RQ's status of each task and when, as RQ writes times; or why it stored none.

    `existing` has the ids of tasks that were there already, by index. `replayed` has all ids when an earlier call with
    the same idempotency key was carried out instead.
    """

    stamp: str = ""
    statuses: tuple[str, ...] = ()
    unknown_dependency: str | None = None
    existing: Mapping[int, str] = NONE
    replayed: tuple[str, ...] = ()
    conflict: tuple[int, str, str] | None = None
    """The index of the task whose unique key is held, the id of the holder, and the holder's status."""
    unreplaceable: int | None = None
    """The index of the task whose unique key is held by a task that the caller may not replace."""
    full: FullQueue | None = None
    capped: Capped | None = None
    is_other: bool = False
    """The idempotency key was used for something else."""
    broken_guard: str = ""
    """``lost``: the attempt that adds the tasks no longer holds its lease. ``stale``: the schedule has changed."""
    overlap: tuple[str, bool] | None = None
    """The run before of its schedule, which hasn't ended, and whether that waits for another one itself."""


Guard = Mapping[str, Mapping[str, Any]]
"""What must hold when tasks are added: the name of one of the GUARDS in `add.lua`, and what it is given."""


def attempt_guard(running: RunningTask) -> Guard:
    """The guard of tasks that this attempt adds: it must hold its lease. Their ids are the same in each attempt, and
    what an earlier one has added isn't added again."""
    return {"attempt": {"id": running.id, "attempt_id": running.attempt_id}}


def add(
    tasks: Sequence[NewTask], once: Once | None = None, audited: bytes = b"", *, guard: Guard | None = None
) -> Call[Added]:
    """Add tasks, all or none; with `once`, only if no call with the same key did; with a `guard`, only while what it
    says holds. `audited`: entries of the audit, one a line."""
    first = tasks[0]
    arguments: list[Part] = [b"", _caps_document(first.caps), audited, len(tasks)]
    kind, is_plain = first.shared, once is None and guard is None
    for task in tasks:
        arguments += (task.id, task.data, task.description)
        is_plain = is_plain and task.is_plain and task.shared is kind
    if is_plain:
        arguments += (kind.type, kind.queue, kind.failure_ttl_s, first.max_depth, *kind.fields)
    else:
        arguments[0] = _encode(_call(tasks, arguments, once) | ({} if guard is None else {"guard": guard}))
    return _add.call(arguments, partial(_read, most=first.max_depth, once=once))


def chunk_of(tasks: Sequence[NewTask]) -> bytes:
    """The chunk of a workflow with these tasks, as `workflow_stage.lua` keeps it for `add_chunk`."""
    arguments: list[Part] = [b"", b"", b"", len(tasks)]
    for task in tasks:
        arguments += (task.id, task.data, task.description)
    arguments[0] = _encode(_call(tasks, arguments, None))
    return _encode(_texts(arguments))


def add_chunk(workflow: str) -> Call[bool]:
    """Add the tasks of the next chunk of a workflow; whether more chunks follow. Sent twice, it adds the next one."""
    asked = _encode({"workflow": workflow})
    return _add.call((asked,), lambda reply: bool(reply[0] == b"more"))


def _call(tasks: Sequence[NewTask], arguments: list[Part], once: Once | None) -> dict[str, Any]:
    """The call as `add.lua` reads it. Appends the hash fields of each kind of tasks to the arguments."""
    kinds, places = [], dict[int, int]()
    for task in tasks:
        kind = task.shared
        if id(kind) not in places:
            first = len(arguments) + 1
            arguments += kind.fields
            kinds.append(
                {
                    "type": kind.type,
                    "queue": kind.queue,
                    "failure_ttl_s": kind.failure_ttl_s,
                    "first": first,
                    "last": len(arguments),
                }
            )
            places[id(kind)] = len(kinds)
    call: dict[str, Any] = {
        "kinds": kinds,
        "tasks": [{"kind": places[id(task.shared)], **_options(task)} for task in tasks],
        "most": tasks[0].max_depth,
    }
    if once is not None:
        call["once"] = once.asked()
    return call


@lru_cache(maxsize=16)
def _caps_document(caps: Caps) -> bytes:
    return b"" if caps == NO_CAPS else _encode(caps._asdict())


def read_refusal(reply: list[Any], most: int) -> Added:
    """Why a script that adds tasks has added none, as `add.lua` says it."""
    return _read(reply, most, None)


def _read(reply: list[Any], most: int, once: Once | None) -> Added:
    if reply[0] in (b"ok", b"exists"):
        tasks = reply[2:]
        statuses = tuple([each.decode() if type(each) is bytes else each[1].decode() for each in tasks])
        existing = {at: each[0].decode() for at, each in enumerate(tasks) if type(each) is list}
        return Added(reply[1].decode(), statuses, existing=existing)
    match reply:
        case [b"replayed", kept] if once is not None:
            return read_replayed(kept, once)
        case [b"conflict", place, holder, status]:
            return Added(conflict=(place - 1, holder.decode(), status.decode()))
        case [b"unreplaceable", place]:
            return Added(unreplaceable=place - 1)
        case [b"full", stamp, queue, held, coming, since]:
            return Added(full=FullQueue(queue.decode(), held, coming, most, _seconds_between(since, stamp)))
        case [b"capped", kind, project, cap]:
            return Added(capped=Capped(kind.decode(), project.decode(), cap))
        case [b"overlap", before, waits]:
            return Added(overlap=(before.decode(), waits != b""))
        case [broken]:
            return Added(broken_guard=broken.decode())
    return Added(unknown_dependency=reply[1].decode())


def _seconds_between(since: bytes, now: bytes) -> float | None:
    """None when the first is no time of ours, or none at all."""
    try:
        return (datetime.fromisoformat(now.decode()) - datetime.fromisoformat(since.decode())).total_seconds()
    except (ValueError, TypeError):
        return None


def added_before(once: Once) -> Call[Added | None]:
    """What the call with this key was answered; None when there was none, or it asked for something else."""

    def read(kept: bytes | None) -> Added | None:
        added = None if kept is None else read_replayed(kept, once)
        return None if added is None or added.is_other else added

    return Call(("GET", keys.ONCE + once.digest), read, again=True)


def read_replayed(kept: bytes, once: Once) -> Added:
    """What `add.lua` keeps for an idempotency key: fingerprint, time, and ``id:status`` of each task, with ``=`` before
    a task that was there already. Of a workflow its id alone, with the status ``workflow``."""
    fingerprint, stamp, answers = kept.decode().split(" ")
    if fingerprint != once.fingerprint:
        return Added(is_other=True)
    tasks = [answer.split(":") for answer in answers.split(",")]
    existing = {at: id[1:] for at, (id, _) in enumerate(tasks) if id[0] == "="}
    ids, statuses = zip(*[(id.removeprefix("="), status) for id, status in tasks], strict=True)
    return Added(stamp, statuses, existing=existing, replayed=ids)


def accepted_status(word: str) -> TaskStatus:
    """The status for a word in `Added.statuses`. A task whose record is gone (the call was sent again after its end)
    was accepted as queued."""
    return TaskStatus.QUEUED if word in ("queued", "gone") else status_of(word)


# --- many submissions in one call -------------------------------------------------------------------------------------

MOST: Final = 32
"""Tasks in one call. More would save little, and Redis serves no other client during a call."""


class _Submission(NamedTuple):
    task: NewTask
    audited: bytes
    added: asyncio.Future[Added]


class BatchedAdds:
    """Stores plain tasks for all coroutines of an event loop, in the order in which they came."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._waiting: list[_Submission] = []
        self._sent: set[asyncio.Task[None]] = set()

    async def add(self, task: NewTask, audited: bytes) -> Added:
        """As the function `add` for this one task, which must be plain.

        Raises:
            RedisUnavailable
        """
        loop = asyncio.get_running_loop()
        added: asyncio.Future[Added] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append(_Submission(task, audited, added))
        return await added

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for at in range(0, len(waiting), MOST):
            sent = asyncio.create_task(self._store_all(waiting[at : at + MOST]))
            self._sent.add(sent)
            sent.add_done_callback(self._sent.discard)

    async def _store_all(self, submissions: list[_Submission]) -> None:
        tasks = [each.task for each in submissions]
        audited = b"\n".join([each.audited for each in submissions])
        try:
            added = await self._store.run(add(tasks, audited=audited))
        except asyncio.CancelledError:  # the program cancels every task: the callers must not wait for ever
            for each in submissions:
                each.added.cancel()
            raise
        except TaskpoolError as error:
            for each in submissions:
                if not each.added.done():  # else the caller has left
                    each.added.set_exception(error)
            return
        if len(submissions) > 1 and not added.statuses:  # there is no room for all; for some there may be
            await asyncio.gather(*[self._store_all([each]) for each in submissions])
            return
        for each, status in zip(submissions, added.statuses or ("",), strict=True):
            if not each.added.done():
                each.added.set_result(Added(added.stamp, (status,)) if status else added)
