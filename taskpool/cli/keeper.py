"""Where `taskpool keys` and `taskpool audit` find what they show and change: Redis itself, or the API of `--server`.

Redis itself, so that the first key can be made: where the embedded one doesn't run, it is started for the moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from taskpool.access import keyring
from taskpool.access.apikey import KeySpec
from taskpool.access.audit_pages import AuditFilter, read_audit
from taskpool.access.document import KeyDocument, audit_document, key_document
from taskpool.cli.options import load_settings
from taskpool.cli.person import person
from taskpool.cli.service import RETRIES, is_server_meant
from taskpool.client import keys as client_keys
from taskpool.client.client import Client
from taskpool.client.keys import AuditPart
from taskpool.embedded import EmbeddedRedis
from taskpool.errors import ConfigurationError
from taskpool.settings import Settings, resolve_redis_url
from taskpool.store import Store


class Keeper(Protocol):
    """Keeps the keys and the audit."""

    def create(self, spec: KeySpec) -> KeyDocument: ...

    def listed(self) -> Sequence[KeyDocument]: ...

    def rotate(self, id: str, grace_s: float) -> KeyDocument: ...

    def revoke(self, id: str) -> None: ...

    def audit(self, wanted: AuditFilter, cursor: str | None, limit: int) -> AuditPart: ...


class RedisKeeper:
    """In the name of whoever runs the command."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, spec: KeySpec) -> KeyDocument:
        """A new key, with its text."""
        key, text = self._store.carry_out(keyring.create(spec, person()))
        return key_document(key, text=text)

    def listed(self) -> Sequence[KeyDocument]:
        """All keys."""
        return [key_document(each.key, each.used_ms) for each in self._store.carry_out(keyring.listed())]

    def rotate(self, id: str, grace_s: float) -> KeyDocument:
        """The key, with its new text."""
        key, text = self._store.carry_out(keyring.rotate(id, person(), grace_s=grace_s))
        return key_document(key, text=text)

    def revoke(self, id: str) -> None:
        """It opens nothing any more."""
        self._store.carry_out(keyring.revoke(id, person()))

    def audit(self, wanted: AuditFilter, cursor: str | None, limit: int) -> AuditPart:
        """A page, newest first."""
        page = self._store.carry_out(read_audit(wanted, cursor=cursor, limit=limit))
        return AuditPart([audit_document(each) for each in page.items], page.next_cursor)


class ServerKeeper:
    """In the name of the API key."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, spec: KeySpec) -> KeyDocument:
        """A new key, with its text."""
        return self._client.send(client_keys.create(spec))

    def listed(self) -> Sequence[KeyDocument]:
        """All keys."""
        return self._client.send(client_keys.listed())

    def rotate(self, id: str, grace_s: float) -> KeyDocument:
        """The key, with its new text."""
        return self._client.send(client_keys.rotate(id, grace_s))

    def revoke(self, id: str) -> None:
        """It opens nothing any more."""
        self._client.send(client_keys.revoke(id))

    def audit(self, wanted: AuditFilter, cursor: str | None, limit: int) -> AuditPart:
        """A page, newest first."""
        return self._client.send(client_keys.audit(wanted, cursor, limit))


@contextmanager
def open_keeper(flags: Mapping[str, Any]) -> Iterator[Keeper]:
    """The one of these flags.

    Raises:
        ConfigurationError: a setting is wrong.
        RedisUnavailable: Redis can't be reached.
    """
    settings = load_settings(flags)
    with ExitStack() as stack:
        if is_server_meant(settings, flags):
            client = Client(settings.server or "", settings.api_key, retries=RETRIES)
            yield ServerKeeper(stack.enter_context(client))
        else:
            yield RedisKeeper(_open_store(settings, stack))


def _open_store(settings: Settings, stack: ExitStack) -> Store:
    try:
        url = resolve_redis_url(settings)
    except ConfigurationError:  # no `taskpool up` runs there: the first key may have to be there before one does
        url = stack.enter_context(EmbeddedRedis(settings.data_dir, binary=settings.redis_server)).url
    store = Store(url)
    stack.callback(store.close)
    return store
