"""The API keys in Redis: create, list, find, rotate, revoke. Each change is audited.

A change replaces a key's document only if that is still the one that was read, so two changes at once can't undo each
other.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from taskpool.access.api_key import KEY_ID, ROTATION_GRACE_S, ApiKey, KeySpec, Scope, new_key, rotated
from taskpool.access.audit import Actor, entry
from taskpool.errors import FieldError, InvalidKey, KeyNotFound, TaskpoolError
from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, Script, hash_of, one, readable, redis_ms, tell_unreadable, texts, tolerant
from taskpool.redis.rq_job import number_of

RACES: Final = 5
UNREADABLE_NAME: Final = "(its record can't be read)"
BUSY: Final = "the key {} is being changed by others all the time; try again"
NO_ADMIN: Final = (
    "the first key must have the scope admin and never expire: from then on the API asks for keys, and only an admin "
    "can make more; `taskpool keys create`, where it reaches Redis itself, can make any"
)

_change, _used = Script("key_change"), Script("key_used")
_decode = msgspec.json.Decoder(ApiKey).decode


class Listed(NamedTuple):
    """A key, and when it was last used, to about a minute (None: never)."""

    key: ApiKey
    used_ms: int | None


def any_key() -> Call[bool]:
    """Whether there is any key, even an expired one: then the API asks for keys."""
    return Call(("EXISTS", keys.API_KEYS), lambda reply: reply == 1, again=True)


def find(id: str) -> tuple[Call[ApiKey | None], Call[int]]:
    """The key of this id, and the time in ms: to be sent together."""
    reading = Call(("HGET", keys.API_KEYS, id), lambda reply: reply and _decode(reply), again=True)
    return tolerant(reading, None), redis_ms()


def ids() -> Call[frozenset[str]]:
    """The ids of all keys."""
    return tolerant(Call(("HKEYS", keys.API_KEYS), lambda reply: frozenset(texts(reply)), again=True), frozenset())


def note_use(id: str) -> Call[str]:
    """Note that a key was used now: ``ok`` or ``gone``."""
    return _used.word(id)


def create(spec: KeySpec, by: Actor, *, admin_first: bool = False) -> Plan[tuple[ApiKey, str]]:
    """Make a key; the key and its text, which nothing shows again. With `admin_first` the first key must have the scope
    admin and never expire: without such a key, the API could make no other. Raises: InvalidKey."""
    now_ms = yield from one(redis_ms())
    key, text = new_key(spec, now_ms)
    is_admin = Scope.ADMIN in key.scopes
    not_first = admin_first and not (is_admin and key.expires_ms is None)
    audited = entry(by, "key.created", key.id)
    changing = _change.word(key.id, b"", msgspec.json.encode(key), audited, "1" if not_first else "")
    if (yield from one(changing)) == "first":
        raise InvalidKey([FieldError("/expires_in_s" if is_admin else "/scopes", NO_ADMIN)])
    return key, text


def listed() -> Plan[list[Listed]]:
    """All keys, the oldest first."""
    documents, used = yield (
        tolerant(Call(("HGETALL", keys.API_KEYS), hash_of, again=True), {}),
        tolerant(Call(("HGETALL", keys.API_KEYS_USED), hash_of, again=True), {}),
    )
    found = list(readable(documents.items(), _decode, "API key").values())
    found.sort(key=lambda key: (key.created_ms, key.id))
    return [Listed(key, number_of(used.get(key.id.encode()))) for key in found]


def rotate(id: str, by: Actor, *, grace_s: float = ROTATION_GRACE_S) -> Plan[tuple[ApiKey, str]]:
    """Give a key a new secret; the key and its new text. The secret it had stays good for `grace_s`; one from before
    that, which an earlier rotation left good, doesn't. Raises: KeyNotFound."""
    for _ in range(RACES):
        document, now_ms = yield (_raw(id), redis_ms())
        try:
            known = _known(id, document)
        except msgspec.MsgspecError as error:
            tell_unreadable(f"API key {id!r}", error)
            raise KeyNotFound(id) from None
        key, text = rotated(known, grace_s, now_ms)
        changing = _change.word(id, document, msgspec.json.encode(key), entry(by, "key.rotated", id), "")
        if (yield from one(changing)) == "ok":
            return key, text
    raise TaskpoolError(BUSY.format(id))


def revoke(id: str, by: Actor) -> Plan[ApiKey]:
    """Take a key back for good; as it was. Raises: KeyNotFound."""
    for _ in range(RACES):
        document = yield from one(_raw(id))
        try:
            key = _known(id, document)
        except msgspec.MsgspecError:  # what can't be read can be taken back all the same
            key = ApiKey(id=id, name=UNREADABLE_NAME, scopes=(), created_ms=0, hash="")
        if (yield from one(_change.word(id, document, b"", entry(by, "key.revoked", id), ""))) == "ok":
            return key
    raise TaskpoolError(BUSY.format(id))


def _raw(id: str) -> Call[bytes]:
    return tolerant(Call(("HGET", keys.API_KEYS, id), lambda reply: reply or b"", again=True), b"")


def _known(id: str, document: bytes) -> ApiKey:
    if not document or not KEY_ID.fullmatch(id):
        raise KeyNotFound(id[:200])
    return _decode(document)
