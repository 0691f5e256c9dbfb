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
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from taskpool.errors import FieldError, InvalidKey
from taskpool.types import OpenEnum
from taskpool.validation import LONGEST_S, queue_name_fault, type_name_fault

ID_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_LENGTH: Final = 12
SECRET_BYTES: Final = 32
ROTATION_GRACE_S: Final = 600
"""How long the secret before the last rotation stays valid, unless the caller says otherwise."""
MOST_NAMES: Final = 100
MOST_A_MINUTE: Final = 1_000_000_000

TOKEN: Final = re.compile(r"tp_([0-9a-z]{12})_([A-Za-z0-9_-]{43})")
KEY_ID: Final = re.compile(r"[0-9a-z]{12}")
PROJECT: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Scope(OpenEnum):
    """What a caller may do. `admin` includes the others."""

    READ = "tasks:read"
    WRITE = "tasks:write"
    STOP = "tasks:stop"
    ADMIN = "admin"


ALL_SCOPES: Final = frozenset(Scope)
PLAIN_SCOPES: Final = (Scope.READ, Scope.WRITE, Scope.STOP)


class KeySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new key is to be. None: in `project` it sees the tasks of all; in `types` and `queues` it may start and
    stop tasks of any; in `expires_in_s` it never expires; in `rate_limit` (requests a minute; 0: any number) it is
    limited as the setting says."""

    name: str
    scopes: Sequence[Scope] = PLAIN_SCOPES
    project: str | None = None
    types: Sequence[str] | None = None
    queues: Sequence[str] | None = None
    expires_in_s: int | None = None
    rate_limit: int | None = None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key as it is kept. `hash` and `old_hash`, good until `old_until_ms`, are of its secrets. Times are Redis's."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_ms: int
    hash: str
    project: str | None = None
    types: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    expires_ms: int | None = None
    rate_limit: int | None = None
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
    """A new key, and its text.

    Raises:
        InvalidKey: with a JSON Pointer for each fault.
    """
    faults = [FieldError(f"/{field}", detail) for field, detail in _faults(spec)]
    if faults:
        raise InvalidKey(faults)
    id = "".join(secrets.choice(ID_ALPHABET) for _ in range(ID_LENGTH))
    text, digest = _new_secret(id)
    key = ApiKey(
        id=id,
        name=spec.name,
        scopes=tuple(scope for scope in Scope if scope in spec.scopes),
        created_ms=now_ms,
        hash=digest,
        project=spec.project,
        types=None if spec.types is None else tuple(dict.fromkeys(spec.types)),
        queues=None if spec.queues is None else tuple(dict.fromkeys(spec.queues)),
        expires_ms=None if spec.expires_in_s is None else now_ms + spec.expires_in_s * 1000,
        rate_limit=spec.rate_limit,
    )
    return key, text


def rotated(key: ApiKey, grace_s: float, now_ms: int) -> tuple[ApiKey, str]:
    """The key with a new secret, and its new text; the secret that it had is good for `grace_s` more."""
    text, digest = _new_secret(key.id)
    old_until_ms = now_ms + round(grace_s * 1000)
    return replace(key, hash=digest, old_hash=key.hash, old_until_ms=old_until_ms, rotated_ms=now_ms), text


def _new_secret(id: str) -> tuple[str, str]:
    secret = secrets.token_urlsafe(SECRET_BYTES)
    return f"tp_{id}_{secret}", digest_of(secret)


def _scope_faults(scopes: Sequence[Scope]) -> Iterator[tuple[str, str]]:
    known = ", ".join(Scope)
    if not scopes:
        yield "scopes", f"must have at least one of {known}"
    for at, scope in enumerate(scopes):
        if scope not in tuple(Scope):
            yield f"scopes/{at}", f"must be one of {known}"


def _faults(spec: KeySpec) -> Iterator[tuple[str, str]]:
    if not 1 <= len(spec.name) <= 64 or not spec.name.isprintable() or spec.name != spec.name.strip():
        yield "name", "must be 1 to 64 printable characters, without space around them"
    yield from _scope_faults(spec.scopes)
    if spec.project is not None and not PROJECT.fullmatch(spec.project):
        yield "project", "must be 1 to 64 letters, digits, '_', '-' or '.'"
    bounds = {"project": spec.project, "types": spec.types, "queues": spec.queues}
    bound = [name for name, value in bounds.items() if value is not None]
    if Scope.ADMIN in spec.scopes and bound:
        yield bound[0], "a key with the scope admin can make keys without such a bound, so it can't have one itself"
    for name, fault_of in (("types", type_name_fault), ("queues", queue_name_fault)):
        values = bounds[name]
        if values is not None and not 1 <= len(values) <= MOST_NAMES:
            yield name, f"must have 1 to {MOST_NAMES} names; leave it out for any"
            continue
        for at, value in enumerate(values or ()):
            if fault := fault_of(value):
                yield f"{name}/{at}", fault
    if spec.expires_in_s is not None and not 1 <= spec.expires_in_s <= LONGEST_S:
        yield "expires_in_s", f"must be a whole number of seconds from 1 to {LONGEST_S}"
    if spec.rate_limit is not None and not 0 <= spec.rate_limit <= MOST_A_MINUTE:
        yield "rate_limit", f"must be a whole number of requests a minute from 0 (any number) to {MOST_A_MINUTE:,}"


class Effect(StrEnum):
    """What an operation does to a task."""

    READ = "reads"
    """Shows more of it than its id and status: to the caller, to a URL that the caller chooses, or to a task of it."""
    START = "starts"
    """Makes it run: a new task, or an ended one again."""
    STOP = "stops"
    """Cancels it, stops it, or removes its record."""


class Right(NamedTuple):
    """What a key needs for an effect. `is_bound`: its `types` and `queues` must have the affected task's."""

    scope: Scope
    is_bound: bool


RIGHTS: Final = {
    Effect.READ: Right(Scope.READ, is_bound=False),
    Effect.START: Right(Scope.WRITE, is_bound=True),
    Effect.STOP: Right(Scope.STOP, is_bound=True),
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
