"""The two services that the commands use: Redis itself, or the HTTP API of `--server`, with the same methods.

On Redis, the audit names the user of this machine. `taskpool keys` and `taskpool audit` start the embedded Redis for a
moment if it isn't running, so that the first key can be created.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, Unpack

from taskpool.access import keyring
from taskpool.access.api_key import KeySpec
from taskpool.access.audit import Actor, AuditFilter, read_audit
from taskpool.cli.options import CONNECTION, load_settings
from taskpool.cli.output import Failure
from taskpool.client import operations as client_keys
from taskpool.client.operations import AuditPart
from taskpool.errors import ConfigurationError
from taskpool.operations.documents import KeyDocument, audit_document, key_document
from taskpool.pool import TaskPool
from taskpool.redis.store import Store
from taskpool.runner import kill_task, retry_task
from taskpool.settings import Settings, resolve_redis_url
from taskpool.tasks.log_lines import LogLine
from taskpool.types import Exit, Page, QueuedTask, QueueInfo, TaskOptions, TaskRecord, TaskSpec, TypeInfo, WorkerInfo

if TYPE_CHECKING:  # httpx is imported only for a command that asks the API
    from taskpool.client.client import Client


def person() -> Actor:
    """The user who runs this command."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = "?"
    return Actor(None, f"taskpool ({user})", None, socket.gethostname())


class PersonsPool(TaskPool):
    """A pool that changes tasks in the name of this user."""

    def add_spec(self, spec: TaskSpec) -> TaskRecord:
        """As a pool does."""
        submitted = self.store.carry_out(self.submitting(spec, by=person()))
        return self.get(submitted.receipts[0].id)

    def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord:
        """As a pool does."""
        return self.store.carry_out(kill_task(id, grace_s=grace_s, force=force, by=person()))

    def retry_task(self, id: str) -> TaskRecord:
        """As a pool does."""
        return self.store.carry_out(retry_task(id, person()))


SERVICE: Final = (*CONNECTION, "server", "api_key")
"""The settings of every command that talks to either."""

RETRIES: Final = 3
"""About a second: a person is waiting."""


class Added(Protocol):
    """A task that was added."""

    @property
    def id(self) -> str:
        """Its id."""


class Service(Protocol):
    """The part of `TaskPool` that commands need, which `Client` has too."""

    def add_task(self, type: str, payload: Any = None, **options: Unpack[TaskOptions]) -> Added: ...

    def get(self, id: str) -> TaskRecord: ...

    def follow(self, id: str, *, timeout_s: float | None = None) -> Iterator[TaskRecord]: ...

    def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord: ...

    def retry_task(self, id: str) -> TaskRecord: ...

    def logs(self, id: str, *, cursor: str | None = None, limit: int = 100) -> Page[LogLine]: ...

    def follow_log(self, id: str, *, cursor: str | None = None) -> Iterator[LogLine]: ...

    def get_queue(self, name: str = "default", *, cursor: str | None = None, limit: int = 100) -> Page[QueuedTask]: ...

    def queues(self) -> Sequence[QueueInfo]: ...

    def types(self) -> Sequence[TypeInfo]: ...

    def workers(self) -> Sequence[WorkerInfo]: ...

    def worker_warnings(self) -> Sequence[str]: ...


@contextmanager
def open_service(flags: Mapping[str, Any]) -> Iterator[Service]:
    """A connection to the API of these flags, else to their Redis: a given one, or that of a running `taskpool up`.

    Raises:
        ConfigurationError: a setting is wrong, or nothing runs in the data directory.
        RedisUnavailable: Redis can't be reached.
    """
    settings = load_settings(flags)
    if is_server_meant(settings, flags):
        from taskpool.client.client import Client

        with Client(settings.server or "", settings.api_key, retries=RETRIES) as client:
            yield client
        return

    with PersonsPool(resolve_redis_url(settings), settings=settings) as pool:
        yield pool


def is_server_meant(settings: Settings, flags: Mapping[str, Any]) -> bool:
    """Whether it is the API. A flag goes before a variable, whichever of the two ways it names.

    Raises:
        Failure: both were given as flags.
    """
    redis_flags = [name for name in CONNECTION if flags.get(name) is not None]
    if flags.get("server") is None:
        return settings.server is not None and not redis_flags
    if redis_flags:
        raise Failure("--server and --redis-url or --data-dir exclude each other", Exit.USAGE)
    return True


class Keeper(Protocol):
    """Keeps the keys and the audit."""

    def create(self, spec: KeySpec) -> KeyDocument: ...

    def listed(self) -> Sequence[KeyDocument]: ...

    def rotate(self, id: str, grace_s: float) -> KeyDocument: ...

    def revoke(self, id: str) -> None: ...

    def audit(self, wanted: AuditFilter, cursor: str | None, limit: int) -> AuditPart: ...


class RedisKeeper:
    """Keys and audit in Redis, changed in the name of the user who runs the command."""

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
            from taskpool.client.client import Client

            client = Client(settings.server or "", settings.api_key, retries=RETRIES)
            yield ServerKeeper(stack.enter_context(client))
        else:
            yield RedisKeeper(_open_store(settings, stack))


def _open_store(settings: Settings, stack: ExitStack) -> Store:
    try:
        url = resolve_redis_url(settings)
    except ConfigurationError:  # no `taskpool up` runs there: the first key may have to be there before one does
        from taskpool.redis.embedded import EmbeddedRedis

        url = stack.enter_context(EmbeddedRedis(settings.data_dir, binary=settings.redis_server)).url
    store = Store(url)
    stack.callback(store.close)
    return store
