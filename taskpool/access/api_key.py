"""API keys as values: their text `tp_<id>_<secret>`, who their holder is, and what each operation needs of a key.

Only the SHA-256 of a secret is kept: a secret has 256 random bits, so no slow hash is needed. An operation is judged by
its effects on tasks, not by its name: a submission that replaces another task cancels that one. docs/security.md shows
the tables. For a key with a project, tasks of other projects don't exist.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import partial
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from taskpool.errors import FieldError, InvalidKey
from taskpool.types import OpenEnum
from taskpool.validation import QUEUE_NAME, QUEUE_TAKES, TYPE_NAME, TYPE_TAKES, Field, faults_of

ID_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_LENGTH: Final = 12
SECRET_BYTES: Final = 32
ROTATION_GRACE_S: Final = 600  # how long the secret before a rotation stays valid, unless the caller says otherwise
MOST_NAMES: Final = 100
MOST_A_MINUTE: Final = 1_000_000_000
TOKEN: Final = re.compile(r"tp_([0-9a-z]{12})_([A-Za-z0-9_-]{43})")
KEY_ID: Final = re.compile(r"[0-9a-z]{12}")
PROJECT: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
PROJECT_TAKES: Final = "1 to 64 letters, digits, '_', '-' or '.'"
NAME: Final = re.compile(r"\S(.*\S)?")
NAME_TAKES: Final = "1 to 64 printable characters, without space around them"


class Scope(OpenEnum):
    """What a caller may do. `admin` includes the others."""

    READ = "tasks:read"
    WRITE = "tasks:write"
    STOP = "tasks:stop"
    CONFIRM = "tasks:confirm"
    ADMIN = "admin"


ALL_SCOPES: Final = frozenset(Scope)
PLAIN_SCOPES: Final = (Scope.READ, Scope.WRITE, Scope.STOP)


_Names = Sequence[str] | None
_names = partial(Field, default="any", least=1, most=MOST_NAMES, metavar="NAME")


class KeySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new key is to be."""

    name: Annotated[str, Field("A name for people.", pattern=NAME, most=64, takes=NAME_TAKES, examples=["a service"])]
    scopes: Annotated[
        Sequence[Scope],
        Field(
            "What the key allows.",
            default="all but tasks:confirm and admin",
            least=1,
            most=MOST_NAMES,
            choices=tuple(Scope),
        ),
    ] = PLAIN_SCOPES
    project: Annotated[
        str | None,
        Field("The only project whose tasks it can see.", default="all", pattern=PROJECT, takes=PROJECT_TAKES),
    ] = None
    types: Annotated[
        _Names, _names("The only task types that it can start and stop.", pattern=TYPE_NAME, takes=TYPE_TAKES)
    ] = None
    queues: Annotated[
        _Names, _names("The only queues in which it can start and stop tasks.", pattern=QUEUE_NAME, takes=QUEUE_TAKES)
    ] = None
    expires_in_s: Annotated[
        int | None, Field("When the key expires, in seconds from now.", default="never", least=1)
    ] = None
    rate_limit: Annotated[
        int | None,
        Field(
            "Requests per minute; 0 for any number.",
            default="the server's limit for each key",
            least=0,
            most=MOST_A_MINUTE,
        ),
    ] = None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key as it is kept. `hash` and `old_hash`, good until `old_until_ms`, are of its secrets. Times are Redis's."""

    id: Annotated[str, Field(examples=["k3v0h5m8t2qa"])]
    name: str
    scopes: tuple[Scope, ...]
    created_ms: int
    hash: str
    project: Annotated[str | None, Field("it sees the tasks of this project alone")] = None
    types: Annotated[tuple[str, ...] | None, Field("the types whose tasks it may start and stop, if not any")] = None
    queues: Annotated[tuple[str, ...] | None, Field("the queues whose tasks it may start and stop, if not any")] = None
    expires_ms: int | None = None
    rate_limit: Annotated[int | None, Field("requests a minute, if not as the setting says", least=0)] = None
    rotated_ms: int | None = None
    old_hash: str = ""
    old_until_ms: int = 0

    def lives(self, now_ms: float) -> bool:
        """Whether it hasn't expired."""
        return self.expires_ms is None or now_ms < self.expires_ms

    def takes(self, digest: str, now_ms: float) -> bool:
        """Whether this is the digest of its secret, or of the one before while that is good. It may have expired."""
        is_new = hmac.compare_digest(self.hash, digest)
        is_old = hmac.compare_digest(self.old_hash, digest)
        return is_new or (is_old and now_ms < self.old_until_ms)


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_key(spec: KeySpec, now_ms: int) -> tuple[ApiKey, str]:
    """A new key, and its text. Raises: InvalidKey (with a JSON Pointer for each fault)."""
    if faults := [FieldError(pointer, fault) for pointer, fault in _faults(spec)]:
        raise InvalidKey(faults)
    id = "".join(secrets.choice(ID_ALPHABET) for _ in range(ID_LENGTH))
    text, digest = _new_secret(id)
    given = msgspec.structs.asdict(spec)
    lifetime_s = given.pop("expires_in_s")
    given |= {name: tuple(dict.fromkeys(given[name])) for name in ("types", "queues") if given[name] is not None}
    given |= {"scopes": tuple(scope for scope in Scope if scope in spec.scopes)}
    expires_ms = None if lifetime_s is None else now_ms + lifetime_s * 1000
    return ApiKey(**given, id=id, created_ms=now_ms, hash=digest, expires_ms=expires_ms), text


def rotated(key: ApiKey, grace_s: float, now_ms: int) -> tuple[ApiKey, str]:
    """The key with a new secret, and its new text; the secret that it had is good for `grace_s` more."""
    text, digest = _new_secret(key.id)
    old_until_ms = now_ms + round(grace_s * 1000)
    return replace(key, hash=digest, old_hash=key.hash, old_until_ms=old_until_ms, rotated_ms=now_ms), text


def _new_secret(id: str) -> tuple[str, str]:
    secret = secrets.token_urlsafe(SECRET_BYTES)
    return f"tp_{id}_{secret}", digest_of(secret)


def _faults(spec: KeySpec) -> Iterator[tuple[str, str]]:
    yield from faults_of(KeySpec, msgspec.structs.asdict(spec))
    if NAME.fullmatch(spec.name) and not spec.name.isprintable():
        yield "/name", f"must be {NAME_TAKES}"
    bound = [name for name in ("project", "types", "queues") if getattr(spec, name) is not None]
    if Scope.ADMIN in spec.scopes and bound:
        text = "a key with the scope admin can make keys without such a bound, so it can't have one itself"
        yield f"/{bound[0]}", text


class Effect(StrEnum):
    """What an operation does to a task."""

    READ = "reads"
    """Shows more of it than its id and status: to the caller, to a URL that the caller chooses, or to a task of it."""
    START = "starts"
    """Makes it run: a new task, or an ended one again."""
    STOP = "stops"
    """Cancels it, stops it, or removes its record."""
    CONFIRM = "confirms"
    """Confirms or rejects it, or answers what it asks."""


class Right(NamedTuple):
    """What a key needs for an effect. `is_bound`: its `types` and `queues` must have the affected task's."""

    scope: Scope
    is_bound: bool


RIGHTS: Final = {
    Effect.READ: Right(Scope.READ, is_bound=False),
    Effect.START: Right(Scope.WRITE, is_bound=True),
    Effect.STOP: Right(Scope.STOP, is_bound=True),
    Effect.CONFIRM: Right(Scope.CONFIRM, is_bound=True),
}


class OptionEffect(NamedTuple):
    """What an option of a submission does to tasks beside the submitted one, if it is given (with this value)."""

    option: str
    value: str | None
    effect: Effect


OPTIONS: Final = (
    OptionEffect("depends_on", None, Effect.READ),  # the submitted task reads the results of its parents
    OptionEffect("callback_url", None, Effect.READ),  # messages have the result of the task
    OptionEffect("on_conflict", "return", Effect.READ),  # the answer names the task that holds the unique key
    OptionEffect("on_conflict", "replace", Effect.STOP),  # cancels the task that holds the unique key
)
