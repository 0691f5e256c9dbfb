"""Safe by default: whether the API may open its door on an address at all, decided before it listens."""

from __future__ import annotations

from taskpool.access import keyring
from taskpool.errors import ConfigurationError
from taskpool.redis.store import Store
from taskpool.settings import Settings, resolve_redis_url
from taskpool.validation import names_this_machine

MAKE_ONE = "`taskpool keys create NAME --scope admin`"


def check_door(settings: Settings) -> str:
    """Who will be let in, in words for the log.

    Raises:
        ConfigurationError: others can reach it, and nobody would be asked for a key.
        RedisUnavailable
    """
    if settings.auth == "off":
        return "and asking nobody for a key (TASKPOOL_AUTH=off): whoever reaches it may do everything"
    store = Store(resolve_redis_url(settings))
    try:
        has_keys = store.run(keyring.any_key())
    finally:
        store.close()
    if has_keys:
        return "for those who have a key"
    address = settings.public_address or settings.host
    if not names_this_machine(address):
        raise ConfigurationError(
            f"others can reach {address}, and there is no API key yet: make the first with {MAKE_ONE}; "
            "or set TASKPOOL_HOST=127.0.0.1 to serve this machine alone, or TASKPOOL_AUTH=off to let everybody in"
        )
    return f"for this machine alone, without keys; {MAKE_ONE} makes the first"
