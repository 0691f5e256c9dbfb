"""The known task types: worker pools publish them in Redis, and submissions are checked against them.

A submission is checked against the published JSON Schema, so that the API imports no user code. A `Catalogue` keeps
what it read for a second; an unknown type makes it read again at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple

import jsonschema_rs
import msgspec
from jsonschema_rs import ValidationErrorKind as Kind
from msgspec.structs import replace

from taskpool.errors import FieldError, InvalidPayload, UnknownType
from taskpool.redis import calls, keys
from taskpool.redis.calls import Call, Plan, Script, as_it_is, one, readable, redis_ms, texts, times_of, tolerant
from taskpool.tasks.payload.faults import invalid_payload_of, pointer
from taskpool.tasks.payload.json_schema import validator_of
from taskpool.tasks.payload.secret_fields import SecretFields
from taskpool.types import TypeInfo
from taskpool.validation import BUILTIN_TYPES, Guesses, type_name_fault

Path = tuple[str | int, ...]

FRESH_S: Final = 1.0
MOST_FAULTS: Final = 20
DETAIL_LENGTH: Final = 200


_publish = Script("publish")
_type_info = msgspec.json.Decoder(TypeInfo).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolInfo:
    """A worker pool as it announces itself. `id` is unique to its life."""

    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    types: tuple[str, ...]
    workers: tuple[str, ...]
    slots: int = 1
    version: str = ""
    build: str = ""
    declares: Mapping[str, str] = field(default_factory=dict)
    """The modules that it has loaded, each with the digest of the schedules that the module declares."""
    started_ms: int | None = None
    memory_bytes: int | None = None
    is_draining: bool = False


pool_info_of: Final = msgspec.json.Decoder(PoolInfo).decode


def publish(pool: PoolInfo, types: Sequence[TypeInfo], *, ttl_s: int) -> Call[bool]:
    """Announce a pool and its types; whether it was asked to drain. It counts as gone when `ttl_s` pass without another
    announcement."""
    flat = [part for info in types for part in (info.name, msgspec.json.encode(info))]
    return _publish.call((pool.id, msgspec.json.encode(pool), ttl_s, pool.build, *flat), lambda word: word == b"drain")


def retire(pool_id: str) -> Plan[None]:
    """Take a pool's announcement back; its types stay known."""
    commands = (
        ("DEL", keys.POOL + pool_id, keys.POOL_KNOWN + pool_id),
        ("ZREM", keys.POOLS, pool_id),
        ("ZREM", keys.POOLS_KNOWN, pool_id),
        ("HDEL", keys.SWITCHES, f"pool:{pool_id}"),
    )
    yield [Call(command, int, again=True) for command in commands]


def pools() -> Plan[list[PoolInfo]]:
    """The live pools."""
    ids = yield from one(tolerant(Call(("ZRANGE", keys.POOLS, 0, -1), texts, again=True), []))
    if not ids:
        return []
    found = yield from one(Call(("MGET", *[keys.POOL + id for id in ids]), as_it_is, again=True))
    documents = [(id, document) for id, document in zip(ids, found, strict=True) if document is not None]
    return list(readable(documents, pool_info_of, "worker pool").values())


def types() -> Plan[list[TypeInfo]]:
    """Every known type by name, with the live pools that serve it and when it was last served."""
    known, seen, _ = yield _read()
    live = yield from pools()
    infos = []
    for name, info in sorted(readable(known.items(), _type_info, "task type").items()):
        served_by = tuple(pool.id for pool in live if name in pool.types)
        infos.append(replace(info, name=name, served_by=served_by, last_seen_ms=seen.get(name)))
    return infos


def is_served(name: str, *, within_s: float) -> Plan[bool]:
    """Whether a live pool has served a type within the last `within_s` seconds."""
    seen_ms, now_ms = yield (Call(("ZSCORE", keys.TYPES_SEEN, name), as_it_is, again=True), redis_ms())
    return seen_ms is not None and now_ms - float(seen_ms) <= within_s * 1000


def is_served_by_another(name: str, build: str) -> Plan[bool]:
    """Whether a live pool with another build serves a type."""
    live = yield from pools()
    return any(name in pool.types and pool.build != build and not pool.is_draining for pool in live)


class _Entry(NamedTuple):
    """What a type's document says, and what was made of it once."""

    document: bytes
    info: TypeInfo
    validator: jsonschema_rs.Validator | None
    secret_fields: SecretFields


class _Snapshot(NamedTuple):
    """The catalogue as it was read: threads see one whole or the next, never a mixture."""

    documents: Mapping[str, bytes]
    seen: Mapping[str, int]
    clock_offset_ms: float  # Redis's time minus our monotonic one


class Catalogue:
    """A reader's copy of the catalogue, at most a second old when it is asked. Threads and event loops may share it."""

    def __init__(self, *, type_grace_s: float) -> None:
        self._grace_ms = type_grace_s * 1000
        self._snapshot = _Snapshot({}, {}, 0.0)
        self._entries: dict[str, _Entry] = {}
        self._read_at = -FRESH_S  # mono

    def find(self, names: Sequence[str]) -> Plan[dict[str, TypeInfo]]:
        """The types of these names. Raises: UnknownType (one was never registered, or no live worker has served it for
        `type_grace_s`)."""
        snapshot = self._snapshot
        is_old = time.monotonic() - self._read_at >= FRESH_S
        if is_old or (yield from _exists([name for name in names if name not in snapshot.documents])):
            self._read_at = time.monotonic()  # at once: others needn't read it as well
            documents, seen, now_ms = yield _read()
            self._snapshot = snapshot = _Snapshot(documents, seen, now_ms - time.monotonic() * 1000)
        return {name: self._info(name, snapshot) for name in names}

    def check(self, name: str, payload: Any, start: str = "/payload") -> None:
        """Check a payload against the schema of a type that `find` found. Raises: InvalidPayload (at most 20 faults,
        each with a JSON Pointer below `start`)."""
        validator = self._entries[name].validator
        if validator is None:
            return
        try:
            if validator.is_valid(payload):
                return
            faults = list(islice(_faults(validator, payload, start), MOST_FAULTS))
        except ValueError as error:  # something JSON can't hold
            raise InvalidPayload(
                f"the payload of {name!r} is not JSON: {error}", [FieldError(start, str(error))]
            ) from None
        raise invalid_payload_of(name, faults)

    def secret_fields(self, name: str) -> SecretFields:
        """Which fields of the payload of a type that `find` found are secret."""
        return self._entries[name].secret_fields

    def _info(self, name: str, snapshot: _Snapshot) -> TypeInfo:
        document = snapshot.documents.get(name)
        if document is None:
            near = Guesses().near(name, snapshot.documents, n=3, cutoff=0.5) or ()
            raise UnknownType(name, near, is_builtin=name in BUILTIN_TYPES)
        last_seen_ms = snapshot.seen.get(name, 0)
        if time.monotonic() * 1000 + snapshot.clock_offset_ms - last_seen_ms > self._grace_ms:
            raise UnknownType(name, last_served_ms=last_seen_ms)
        entry = self._entries.get(name)
        if entry is None or entry.document != document:
            try:
                info = _type_info(document)
                fields = SecretFields(info.schema)
                validator = validator_of(info.schema, masks=bool(fields))
            except calls.UNREADABLE as error:
                calls.tell_unreadable(f"task type {name!r}", error)
                raise UnknownType(name) from None
            entry = self._entries[name] = _Entry(document, info, validator, fields)
        return entry.info


def _exists(names: Sequence[str]) -> Plan[bool]:
    """Whether there is any of these types: callers may name what doesn't exist, and to read all types takes long."""
    possible = [name for name in names if type_name_fault(name) is None]
    if not possible:
        return False
    found = yield from one(Call(("HMGET", keys.TYPES, *possible), as_it_is, again=True))
    return any(document is not None for document in found)


def _read() -> Sequence[Call[Any]]:
    def documents(reply: list[bytes]) -> dict[str, bytes]:
        return dict(zip(texts(reply[::2]), reply[1::2], strict=True))

    return (
        tolerant(Call(("HGETALL", keys.TYPES), documents, again=True), {}),
        tolerant(Call(("ZRANGE", keys.TYPES_SEEN, 0, -1, "WITHSCORES"), times_of, again=True), {}),
        redis_ms(),
    )


# --- what is wrong with a payload ---------------------------------------------------------------------------------

WINDOW: Final = 100  # how many items of each list and object of a large payload are checked at once
MOST_WINDOWS: Final = 100
MOST_VALUES: Final = 1000  # how many values are checked at once. A payload with more of them is large
_CERTAIN: Final = (Kind.AdditionalProperties, Kind.Type)  # faults of a value that are there whatever is left out of it
# Faults that may be there because something is left out of the value itself; of the rest, of anything in it.
_OWN: Final = (Kind.Required, Kind.MinItems, Kind.MinProperties)


def schema_faults(schema: Mapping[str, Any], value: Any, start: str) -> list[FieldError]:
    """What is wrong with a JSON value by a schema, each fault (20 at most) with its JSON Pointer below `start`. A
    schema that can't be used finds none."""
    validator = validator_of(schema)
    if validator is None or validator.is_valid(value):
        return []
    return list(islice(_faults(validator, value, start), MOST_FAULTS))


def _faults(validator: jsonschema_rs.Validator, payload: Any, start: str) -> Iterator[FieldError]:
    """What is wrong with a payload, at least one fault. A large one is checked in windows, because the validator finds
    all faults before it reports the first."""
    window = WINDOW if _is_large(payload) else MOST_VALUES
    for number in range(MOST_WINDOWS):
        excerpt = _Excerpt(payload, number * window, window)
        if not validator.is_valid(excerpt.value):
            found = list(_faults_of(validator, excerpt, start))
            if found:
                yield from found
                return
            break
        if excerpt.is_last:
            break
    yield FieldError(start, "doesn't fit the schema of its type, and is too large to tell the place")


def _is_large(value: Any) -> bool:
    count, left = 1, [value]
    while left and count <= MOST_VALUES:
        each = left.pop()
        if isinstance(each, dict | list):
            count += len(each)
            if count <= MOST_VALUES:
                left += each.values() if isinstance(each, dict) else each
    return count > MOST_VALUES


class _Excerpt:
    """A value with `window` items of each list and object from `start` on; shorter ones are whole. It has MOST_VALUES
    values at most."""

    def __init__(self, value: Any, start: int, window: int) -> None:
        self._start, self._window = start, window
        self._cut: dict[Path, int] = {}  # by the path of each shortened container, how many items are left out in front
        self._left = MOST_VALUES
        self.is_last = True
        self.value = self._part(value, ())

    def is_cut(self, path: Sequence[str | int], *, itself: bool) -> bool:
        """Whether something is left out of the value at `path`: with `itself` directly, else anywhere inside."""
        at = tuple(path)
        return at in self._cut if itself else any(cut[: len(at)] == at for cut in self._cut)

    def place(self, path: Sequence[str | int]) -> Path:
        """The path in the complete value."""
        starts = [self._cut.get(tuple(path[:at]), 0) for at in range(len(path))]
        return tuple(step + start if isinstance(step, int) else step for step, start in zip(path, starts, strict=True))

    def _part(self, value: Any, path: Path) -> Any:
        if not isinstance(value, dict | list):
            return value
        length = len(value)
        start = self._start if length > self._window else 0
        end = min(start + self._window, length, start + self._left)
        if start or end < length:
            self._cut[path] = start
            self.is_last = self.is_last and end >= length
        self._left -= max(end - start, 0)
        if isinstance(value, list):
            return [self._part(each, (*path, at)) for at, each in enumerate(value[start:end])]
        return {name: self._part(value[name], (*path, name)) for name in list(value)[start:end]}


def _faults_of(validator: jsonschema_rs.Validator, excerpt: _Excerpt, start: str) -> Iterator[FieldError]:
    """The violations that aren't there because of what is left out, as faults of fields: a missing or an unknown field
    has its own pointer."""
    for violation in validator.iter_errors(excerpt.value):
        kind = violation.kind
        if not isinstance(kind, _CERTAIN) and excerpt.is_cut(violation.instance_path, itself=isinstance(kind, _OWN)):
            continue
        path = excerpt.place(violation.instance_path)
        if isinstance(kind, Kind.Required):
            yield FieldError(pointer([*path, kind.property], start), "this field is required")
        elif isinstance(kind, Kind.AdditionalProperties):
            for name in kind.unexpected:
                yield FieldError(pointer([*path, name], start), "unknown field")
        else:
            yield FieldError(pointer(path, start), _shortened(violation.message))


def _shortened(text: str) -> str:
    """A message without the whole of a large value in it."""
    return text if len(text) <= DETAIL_LENGTH else f"{text[: DETAIL_LENGTH // 2]} … {text[-DETAIL_LENGTH // 2 :]}"
