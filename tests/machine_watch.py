"""All of Redis in one round trip, compared with what a model says it must hold; and every new event, as it comes."""

from __future__ import annotations

import json
from typing import Any, Final

from taskpool.types import RETRYABLE, TRANSITIONS, TaskStatus
from tests.model_state import State

S = TaskStatus
REPORTS: Final = frozenset({"progress", "log", "stopping"})

DUMP: Final = """
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local type, value = redis.call('TYPE', key).ok, ''
  if type == 'hash' then value = redis.call('HGETALL', key)
  elseif type == 'list' then value = redis.call('LRANGE', key, 0, -1)
  elseif type == 'set' then value = redis.call('SMEMBERS', key); table.sort(value)
  elseif type == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif type == 'stream' then value = redis.call('XLEN', key) end
  all[#all + 1] = {key, type, value, redis.call('TTL', key) >= 0 and 1 or 0}
end
return {all, redis.call('XRANGE', 'taskpool:events', '(' .. ARGV[1], '+')}
"""


class Watch:
    """Looks at Redis after each step. `held` is what it held at the last look, by key."""

    def __init__(self, redis: Any) -> None:
        self._dump = redis.register_script(DUMP)
        self._raw: dict[bytes, Any] = {}
        self._before: dict[bytes, Any] = {}
        self._last_event = "0-0"
        self._seqs: dict[str, int] = {}
        self._statuses: dict[str, TaskStatus] = {}
        self._moved_by_rq: set[str] = set()
        self._events: list[dict[str, Any]] = []
        self._expected: dict[str, Any] = {}
        self.held: dict[str, Any] = {}

    def look(self) -> dict[str, Any]:
        """Everything in Redis, by key; what has happened since it was compared is kept until then."""
        entries, events = self._dump(args=[self._last_event])
        self._raw = {key: rest for key, *rest in entries}
        if events:
            self._last_event = events[-1][0].decode()
        self._events += [json.loads(fields[1]) for _, fields in events]
        # Counts, groups and removed records aren't in the model, but a call that is refused or repeated must not change
        # them.
        self.held = {
            key.decode(): _shown(key.decode(), kind, value)
            for key, kind, value, _ in entries
            if not key.startswith((b"taskpool:stats:", b"taskpool:failure", b"taskpool:trash:"))
        }
        return self.held

    def take_as_it_is(self) -> None:
        """What a test itself has changed is not to be wondered at."""
        self.look()
        self._before = self._raw

    def note_move_by_rq(self, id: str) -> None:
        """RQ's own tools change a status without a number and an event."""
        self._moved_by_rq.add(id)

    def compare(self, model: State, *, may_change: bool = False) -> None:
        """Compare all of Redis with the model. Where that stood still, nothing in Redis may have changed;
        unless it `may_change` what the model doesn't know."""
        self.look()
        expected = model.structure()
        may_change |= expected != self._expected
        self._expected = expected
        seen = {key: value for key, value in self.held.items() if key != "taskpool:events"}
        # A type without tasks stays among those in use for the rest of the minute.
        types = "taskpool:types:used"
        if expected.get(types, set()) <= seen.get(types, set()):
            seen |= {types: expected.get(types)}
        wrong = {key: (seen.get(key), expected.get(key)) for key in seen.keys() | expected.keys()
                 if seen.get(key) != expected.get(key)}  # fmt: skip
        assert not wrong, f"in Redis, and as the model says: {wrong}"
        if not may_change:
            assert self._raw == self._before, "a call that was refused, or repeated, changed something"
        self._before = self._raw
        while self._events:
            self._check(self._events.pop(0))
        for id, task in model.tasks.items():
            assert self._seqs[id] == task.seq
        self._moved_by_rq &= {id for id, task in model.tasks.items() if task.seq == self._seqs[id]}

    def _check(self, event: dict[str, Any]) -> None:
        """Numbered without a gap, and legal."""
        id, seq, status = event["id"], event["seq"], TaskStatus(event["status"])
        if seq == 1:  # new, or stored once more after all of it was removed
            self._seqs[id], self._statuses[id] = 1, status
            return
        before = self._statuses[id]
        assert seq == self._seqs[id] + 1, event
        is_legal = (
            status in TRANSITIONS[before]
            or (status is before and event["event"] in REPORTS)
            or (before in RETRYABLE and event.get("retried_by") == "hand")
            or (before is S.CANCELED and event.get("restored_by") == "hand")
            or id in self._moved_by_rq
        )
        assert is_legal, (before, event)
        self._seqs[id], self._statuses[id] = seq, status
        self._moved_by_rq.discard(id)


def _shown(key: str, kind: bytes, value: Any) -> Any:
    match kind:
        case b"hash":
            fields = {
                name.decode(): text.decode("utf-8", "replace")
                for name, text in zip(value[::2], value[1::2], strict=True)
            }
            return _task(fields) if key.startswith("rq:job:") else {"job_id": fields["job_id"]}
        case b"list":
            return [each.decode() for each in value]
        case b"set":
            return {each.decode() for each in value}
        case b"zset":
            return {each.decode() for each in value[::2]}
    return kind.decode()


def _task(fields: dict[str, str]) -> dict[str, Any]:
    stop = "" if "stop_ms" not in fields else "force" if fields["stop_force"] == "1" else "stop"
    texts = {name: fields.get(name, "") for name in ("status", "seq", "attempt_id", "canceled_by")}
    numbers = {name: fields.get(name, "0") for name in ("attempt", "crashes", "snoozes")}
    history = [json.loads(line)["outcome"] for line in fields.get("history", "").splitlines()]
    decision = json.loads(fields.get("confirmation", "{}")).get("decision", "")
    confirm = ["unconfirmed" in fields, "asked_ms" in fields, "question" in fields, decision]
    answers = [json.loads(line)["how"] for line in fields.get("answers", "").splitlines()]
    return {**texts, **numbers, "stop": stop, "history": history, "confirm": confirm, "answers": answers}
