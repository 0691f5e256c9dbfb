"""Tasks in every status, made by the real scripts, and the whole of Redis as one value for tests to compare.

Times are shown by their distance from now, to ten seconds ("now", "now+500 s"), so that two runs look alike.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from operator import itemgetter
from threading import Barrier
from typing import Any, Final, TypeVar

from msgspec.structs import replace
from redis import Redis

from taskpool.access.audit import Actor
from taskpool.operations.records import fetch
from taskpool.operations.submit import Defaults, prepare
from taskpool.redis import keys, scripts
from taskpool.redis.calls import Call
from taskpool.redis.scripts import NewTask
from taskpool.redis.store import Store
from taskpool.tasks.fingerprints import fingerprint_of
from taskpool.types import RunningTask, TaskRecord, TaskSpec, TaskStatus, TypeInfo

T = TypeVar("T")
S = TaskStatus
Snapshot = Mapping[str, Any]

LEASE_MS: Final = 100_000
RESULT_TTL_S: Final = 1000
FAILURE_TTL_S: Final = 2000
FAILURE: Final = {"reason": "exception", "message": "no luck"}
FINGERPRINT: Final = fingerprint_of("exception", "work")

A_MARK: Final = "the mark of a call"
"""What `snapshot` shows for one: each call has its own."""

_INFO: Final = TypeInfo(name="work", queue="default", schema={})
_DEFAULTS: Final = Defaults(
    timeout_s=600, result_ttl_s=RESULT_TTL_S, failure_ttl_s=FAILURE_TTL_S, webhook_allow=("127.0.0.0/8",)
)
_STAMP: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_TIME_S: Final = re.compile(r"\d{10}(\.\d+)?")
_TIME_MS: Final = re.compile(r"\d{13}(\.\d+)?")


class World:
    """One Redis with a store on it: what tests seed tasks with, and what they look at as a whole."""

    def __init__(self, redis: Redis, url: str) -> None:
        self.redis: Any = redis  # its stubs allow every reply to be of any type
        self.url = url
        self.store = Store(url)
        self.running: dict[str, RunningTask] = {}

    def run(self, call: Call[T]) -> T:
        """The value of a call."""
        return self.store.run(call)

    def get(self, id: str) -> TaskRecord:
        """The record of a task."""
        return self.run(fetch(id))

    def add(self, id: str, **options: Any) -> scripts.Added:
        """Add one task, with the options of `TaskSpec`."""
        return self.run(scripts.add([new_task(id, **options)]))

    def claim(self, *queues: str, worker: str = "w", attempt_id: str = "1", was_idle: bool = False) -> RunningTask:
        """Claim the next task, which there must be."""
        running = self.try_claim(*queues, worker=worker, attempt_id=attempt_id, was_idle=was_idle)
        assert running is not None
        self.running[running.id] = running
        return running

    def try_claim(
        self, *queues: str, worker: str = "w", attempt_id: str = "1", was_idle: bool = False
    ) -> RunningTask | None:
        """Claim the next task, if there is one."""
        queues = queues or ("default",)
        return self.run(
            scripts.claim(queues, worker=worker, attempt_id=attempt_id, lease_ms=LEASE_MS, was_idle=was_idle)
        )

    def start(self, id: str, *, attempt_id: str = "1", **options: Any) -> RunningTask:
        """Add one task and claim it, ahead of all others."""
        self.add(id, **{"front": True, **options})
        running = self.claim(options.get("queue", "default"), attempt_id=attempt_id)
        assert running.id == id
        return running

    def finish(self, running: RunningTask, status: TaskStatus = S.DONE) -> str:
        """End an attempt as done with the result 42, or in another way."""
        if status is S.DONE:
            turn = self.run(scripts.turn((), [scripts.Done(running, b"42")], worker=running.worker))
            word = turn.words[0]
            return self.run(scripts.finish(running, status, result=b"42")) if word == "other" else word
        failure = {**FAILURE, "reason": "stopped"} if status is S.STOPPED else FAILURE
        return self.run(scripts.finish(running, status, error="no luck", failure=failure, traceback="Trace"))

    def end(self, id: str, status: TaskStatus = S.DONE, **options: Any) -> None:
        """Add a task and bring it to its end."""
        assert self.finish(self.start(id, **options), status) == "ok"

    def cancel(self, id: str) -> str:
        """Cancel a task by hand."""
        return self.run(scripts.cancel(id, reason="canceled", error="by hand"))

    def expire_lease(self, id: str, attempt_id: str = "1", queue: str = "default") -> None:
        """Make an attempt's lease end in the past."""
        self.redis.zadd(f"rq:wip:{queue}", {f"{id}:{attempt_id}": 1})

    def make_due(self, id: str, queue: str = "default") -> None:
        """Make a scheduled task's time come."""
        self.redis.zadd(f"rq:scheduled:{queue}", {id: 1})

    def snapshot(self) -> Snapshot:
        """All of Redis: keys of hashes and sorted sets by member, streams by entry, expiries beside them; without the
        counts of minutes, which `counted` has, and the expiries of workers' attempts, which count when those die."""
        seconds, micros = self.redis.time()
        shown = sorted(_shown(self.redis, seconds + micros / 1e6), key=itemgetter(0))
        return {
            name: value
            for name, value in shown
            if not name.startswith("taskpool:stats:")
            and not (name.startswith(keys.ATTEMPTS) and name.endswith(" expires"))
        }

    def counted(self) -> dict[str, int]:
        """What was counted for the metrics and the history, by field with the build."""
        return counted(self.redis)

    def since(self, before: Snapshot) -> dict[str, Any]:
        """What has changed since a snapshot: the new values; None for what is gone."""
        after = self.snapshot()
        names = sorted(before.keys() | after.keys())
        return {name: after.get(name) for name in names if before.get(name) != after.get(name)}

    def end_minute(self) -> None:
        """Have the minute end in which tasks were submitted: then types without tasks leave the types in use."""
        self.redis.delete(*self.redis.keys(keys.STATS_SUBMITTED + "*"), keys.NOTHING)

    def events(self, id: str) -> list[tuple[int, str, str]]:
        """The number, the name and the status of each event of a task."""
        entries = [json.loads(fields[b"e"]) for _, fields in self.redis.xrange("taskpool:events")]
        return [(each["seq"], each["event"], each["status"]) for each in entries if each["id"] == id]


def counted(redis: Redis) -> dict[str, int]:
    """What was counted in the minutes that aren't closed, by field with the build."""
    totals: Counter[str] = Counter()
    for key in redis.scan_iter("taskpool:stats:*:[0-9]*", _type="hash"):
        prefix = "submitted|" if key.startswith(keys.STATS_SUBMITTED.encode()) else ""
        held: Any = redis.hgetall(key)
        totals.update({prefix + name.decode(): int(n) for name, n in held.items()})
    return dict(totals)


def ended(outcome: str, error: str | None = None, *, attempt: int = 1) -> dict[str, str]:
    """An attempt in a task's history, as a snapshot shows it."""
    entry = {"attempt": str(attempt), "worker": "w", "started_at": "now", "ended_at": "now", "outcome": outcome}
    return entry if error is None else entry | {"error": error}


def new_task(
    id: str, *, type: str = "work", payload: Any = None, project: str | None = None, **options: Any
) -> NewTask:
    """A task as `add` takes it, with an id of the test's choice."""
    by = None if project is None else Actor(None, "a test", project, "")
    spec = TaskSpec(type=type, payload={} if payload is None else payload, **options)
    return replace(prepare(spec, spec.payload, _INFO, _DEFAULTS, by=by), id=id)


def race(url: str, rounds: int, *moves: Callable[[int], Call[Any]]) -> list[list[Any]]:
    """Let several connections make their moves at one moment, round after round: the answers, by round and move."""
    start = Barrier(len(moves))

    def run(move: Callable[[int], Call[Any]]) -> list[Any]:
        store = Store(url)
        answers = []
        for number in range(rounds):
            start.wait(10)
            answers.append(store.run(move(number)))
        store.close()
        return answers

    with ThreadPoolExecutor(len(moves)) as threads:
        return [list(answers) for answers in zip(*threads.map(run, moves), strict=True)]


def _seed_waiting(world: World, id: str) -> None:
    world.add(f"{id}-parent", queue="parents")
    world.add(id, depends_on=[f"{id}-parent"])


def _seed_stopping(world: World, id: str) -> None:
    world.start(id)
    assert world.run(scripts.stop(id, grace_s=5, force=False)) == "ok"


def _seed_canceled(world: World, id: str) -> None:
    world.add(id)
    assert world.cancel(id) == "ok"


SEED: Final[Mapping[TaskStatus, Callable[[World, str], Any]]] = {
    S.QUEUED: lambda world, id: world.add(id),
    S.SCHEDULED: lambda world, id: world.add(id, delay_s=500),
    S.WAITING: _seed_waiting,
    S.WAITING_CONFIRMATION: lambda world, id: world.add(id, confirm="Go?"),
    S.IN_PROGRESS: lambda world, id: world.start(id),
    S.STOPPING: _seed_stopping,
    S.DONE: lambda world, id: world.end(id, S.DONE),
    S.FAILED: lambda world, id: world.end(id, S.FAILED),
    S.STOPPED: lambda world, id: world.end(id, S.STOPPED),
    S.CANCELED: _seed_canceled,
}
"""How to bring a new task into each status there is today."""

ENDED: Final = (S.DONE, S.FAILED, S.STOPPED, S.CANCELED)
WAITS: Final = (S.QUEUED, S.SCHEDULED, S.WAITING, S.WAITING_CONFIRMATION)
RUNS: Final = (S.IN_PROGRESS, S.STOPPING)


def _shown(client: Any, now_s: float) -> Iterator[tuple[str, Any]]:
    """Every value in Redis under a name: the key, and where it has parts, the part."""
    for raw in client.scan_iter(count=1000):
        key = raw.decode()
        if key.startswith(keys.FAILURE.rstrip(":")):
            continue  # groups of failures outlive their tasks: test_failures.py
        if (ttl_ms := client.pttl(raw)) >= 0:
            yield f"{key} expires", _moment(now_s + ttl_ms / 1000, now_s)
        match client.type(raw):
            case b"hash":
                for field, value in client.hgetall(raw).items():
                    missed = key.startswith(keys.UNSEEN) and value != b"unseen"
                    yield f"{key} {field.decode()}", "missed" if missed else _field(field, value, now_s)
            case b"zset":
                found = client.zrange(raw, 0, -1, withscores=True)
                yield from ((f"{key} {member.decode()}", _text(f"{score:.3f}", now_s)) for member, score in found)
            case b"list":
                yield key, [each.decode() for each in client.lrange(raw, 0, -1)]
            case b"set":
                yield key, {each.decode() for each in client.smembers(raw)}
            case b"stream":
                for number, (_, fields) in enumerate(client.xrange(raw), start=1):
                    entry = _entry(fields, now_s)
                    # An event is named by its task and its number there.
                    yield (
                        f"{key} {entry.pop('id')} {entry.pop('seq')}" if "event" in entry else f"{key} {number}",
                        entry,
                    )
            case _:
                yield key, _text(client.get(raw), now_s)


def _field(name: bytes, value: bytes, now_s: float) -> Any:
    if name == b"history":
        return [{part: _text(text, now_s) for part, text in json.loads(line).items()} for line in value.splitlines()]
    return A_MARK if name == b"by_call" else _text(value, now_s)


def _entry(fields: Mapping[bytes, bytes], now_s: float) -> dict[str, Any]:
    """One entry of a stream; what is one JSON document is that document."""
    entry = {name.decode(): _text(value, now_s) for name, value in fields.items()}
    if "exc_string" in entry:
        entry["exc_string"] = zlib.decompress(base64.b64decode(fields[b"exc_string"])).decode()
    if len(entry) > 1:
        return entry
    document: dict[str, Any] = json.loads(*fields.values())
    return document | ({"at_ms": _text(document["at_ms"], now_s)} if "event" in document else {})


def _text(value: bytes | str | float, now_s: float) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    if _STAMP.fullmatch(text):
        return _moment(datetime.fromisoformat(text).timestamp(), now_s)
    if _TIME_S.fullmatch(text):
        return _moment(float(text), now_s)
    if _TIME_MS.fullmatch(text):
        return _moment(float(text) / 1000, now_s)
    return text.removesuffix(".000")


def _moment(time_s: float, now_s: float) -> str:
    offset_s = 10 * round((time_s - now_s) / 10)
    return f"now{offset_s:+d} s" if offset_s else "now"
