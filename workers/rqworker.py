"""Each worker process as RQ knows it: registered, with its state and counts, obeying RQ's commands.

A `PoolWorker` lives in the supervisor and stands for one process. It replaces RQ's work loop by ours and keeps
RQ's own code for registration and for reading commands. Data is JSON, never pickle.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from rq import worker_registration
from rq.command import handle_command
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker, WorkerStatus

from taskpool.connection import address
from taskpool.connection.replies import Meaning, meaning_of
from taskpool.errors import RedisFull, RedisUnavailable
from taskpool.keys import SUSPENDED
from taskpool.store import ReplyFault
from workers.slots import Counters, Run

KEEP_S: Final = 60
"""How long RQ shows a worker whose supervisor has gone silent."""
SOCKET_TIMEOUT_S: Final = 5.0


def connect(redis_url: str) -> Redis:
    """RQ's own connection of a supervisor. Nothing blocks on it longer than SOCKET_TIMEOUT_S."""
    return address.connect(redis_url, socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=SOCKET_TIMEOUT_S)


class PoolWorker(BaseWorker):
    """One worker process of the pool. `runs` reads what it runs now, `counters` what it has done.

    `on_stop_job` (of a task id), `on_kill` and `on_shutdown` carry out RQ's commands.
    """

    def __init__(
        self,
        name: str,
        queues: Iterable[str],
        *,
        pid: int,
        connection: Redis,
        pool: str,
        runs: Callable[[], list[Run]],
        counters: Callable[[], Counters],
        on_stop_job: Callable[[str], None],
        on_kill: Callable[[], None],
        on_shutdown: Callable[[], None],
    ) -> None:
        # prepare_for_work=False: it would rename the shared connection and ask the server for its address.
        super().__init__(
            list(queues),
            name=name,
            connection=connection,
            serializer=JSONSerializer,
            worker_ttl=KEEP_S,
            prepare_for_work=False,
        )
        self.hostname = socket.gethostname()
        self.pid = pid
        self.pool = pool
        self.log = logging.getLogger("workers.rq")
        self.has_left = False
        self._runs, self._counters = runs, counters
        self._on_stop_job, self._on_kill, self._on_shutdown = on_stop_job, on_kill, on_shutdown

    def _set_connection(self, connection: Redis) -> Redis:
        """RQ would raise its socket timeout to minutes: a half-open connection would stay unnoticed."""
        return connection

    def serialize(self) -> dict[Any, Any]:
        """RQ's fields of the worker's hash, and ours."""
        counters, runs = self._counters(), self._runs()
        return {
            **super().serialize(),
            "pool": self.pool,
            "state": WorkerStatus.BUSY if runs else WorkerStatus.IDLE,
            "successful_job_count": counters.done,
            "failed_job_count": counters.failed,
            "total_working_time": counters.working_s,
        }

    # --- RQ's commands, as its `handle_command` calls them -------------------------------------------------

    def obey(self, payload: Mapping[str, Any]) -> None:
        """Carries out one command of RQ's. One it doesn't know is ignored, as RQ does."""
        match payload.get("command"):
            case "shutdown":  # RQ's handler would send SIGINT to the whole supervisor
                self._on_shutdown()
            case "stop-job":  # RQ's handler looks at one task of the worker, and ours may run several
                self._stop_where(lambda run: run.id == payload.get("job_id"))
            case _:
                handle_command(self, dict(payload))

    @property
    def horse_pid(self) -> int:
        """The process that runs the tasks, for RQ's `kill-horse`."""
        return self.pid or 0

    def get_current_job_id(self) -> str | None:
        """The task it runs; one of them, when there are several."""
        return next((run.id for run in self._runs()), None)

    def kill_horse(self, *_: Any) -> None:
        """RQ's `kill-horse`: the process is killed, and what it ran is settled as crashed."""
        self._on_kill()

    def request_stop_execution(self, execution_id: str) -> None:
        """RQ's `stop-execution`: an execution id is our attempt id."""
        self._stop_where(lambda run: run.attempt_id == execution_id)

    def _stop_where(self, is_meant: Callable[[Run], bool]) -> None:
        for run in self._runs():
            if is_meant(run):
                self._on_stop_job(run.id)


class Registrar:
    """Keeps the workers' entries in RQ's registry, all in one round trip. Blocks: call it from a thread.

    One thing at a time: a renewal beside a leave would bring the worker back.
    """

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._one_at_a_time = threading.Lock()

    def enter(self, worker: PoolWorker) -> None:
        """Registers a new worker; nothing when it has left meanwhile.

        Raises:
            RedisUnavailable: Redis is away.
        """
        if worker.birth_date is not None:  # tried before, and the answer was lost: RQ would refuse the name now
            self.renew((worker,))
            return
        with self._one_at_a_time, _as_unavailable():
            if worker.has_left:
                return
            worker.register_birth()  # type: ignore[no-untyped-call]

    def renew(self, workers: Iterable[PoolWorker]) -> None:
        """Renews all entries but of those that left, and makes them anew when Redis has lost them. States follow
        `rq suspend`.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with self._one_at_a_time, _as_unavailable(), self.connection.pipeline(transaction=False) as pipeline:
            suspended = bool(self.connection.exists(SUSPENDED))
            for worker in workers:
                if worker.has_left:
                    continue
                worker.heartbeat(KEEP_S, pipeline=pipeline)
                fields = worker.serialize()
                if suspended and fields["state"] == WorkerStatus.IDLE:
                    fields["state"] = WorkerStatus.SUSPENDED
                pipeline.hset(worker.key, mapping=fields)
                worker_registration.register(worker, pipeline)
            for reply in pipeline.execute(raise_on_error=False):
                # Without memory the fields stay as they were; what keeps the entries alive, their expiry, is renewed.
                if isinstance(reply, Exception) and not isinstance(reply, OutOfMemoryError):
                    raise reply

    def leave(self, worker: PoolWorker) -> None:
        """Removes a worker that has ended.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with self._one_at_a_time, _as_unavailable():
            worker.has_left = True
            with suppress(OutOfMemoryError):  # then its entry expires within KEEP_S
                worker.register_death()  # type: ignore[no-untyped-call]

    def clean(self, queues: Iterable[str]) -> None:
        """Forgets workers of these queues whose entries have expired: their supervisors renew them no more.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with _as_unavailable():
            for name in queues:
                worker_registration.clean_worker_registry(
                    Queue(name, connection=self.connection, serializer=JSONSerializer)
                )


class _as_unavailable:
    """redis-py's errors as ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OutOfMemoryError):
            raise RedisFull(f"Redis: {error}") from error
        if isinstance(error, ResponseError) and meaning_of(str(error)) is Meaning.FAULT:
            raise ReplyFault(f"Redis answered: {error}") from error
        if isinstance(error, RedisError | OSError):  # the second without file descriptors, for one
            raise RedisUnavailable(f"Redis: {error}") from error
