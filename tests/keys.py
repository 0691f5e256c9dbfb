"""API keys for tests: made as the command line makes them, and shown as callers show them."""

from __future__ import annotations

from typing import Any, Final

from taskpool.access import keyring
from taskpool.access.api_key import PLAIN_SCOPES, KeySpec, Scope
from taskpool.access.audit import Actor
from taskpool.redis.store import Store

ME: Final = Actor(None, "a test", None, "here")


def make_key(redis_url: str, name: str = "k", *scopes: Scope, **options: Any) -> str:
    """The text of a new key; without scopes it may do all but what admins do."""
    store = Store(redis_url)
    spec = KeySpec(name=name, scopes=scopes or PLAIN_SCOPES, **options)
    _, text = store.carry_out(keyring.create(spec, ME))
    store.close()
    return text


def revoke_key(redis_url: str, text: str) -> None:
    """Take a key back."""
    store = Store(redis_url)
    store.carry_out(keyring.revoke(id_of(text), ME))
    store.close()


def id_of(text: str) -> str:
    """The id in a key's text."""
    return text.split("_")[1]


def bearer(text: str) -> dict[str, str]:
    """The header with which a caller shows a key."""
    return {"authorization": f"Bearer {text}"}
