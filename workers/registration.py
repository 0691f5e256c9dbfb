"""Each worker process as RQ knows it: registered, with its state and counts, obeying RQ's commands.

A `PoolWorker` lives in the supervisor and stands for one process. It replaces RQ's work loop by ours and keeps
RQ's own code for registration and for reading commands. Data is JSON, never pickle.

The pool's workers as Redis knows them: entered when a process starts, settled and removed when it has ended.
"""

from __future__ import annotations

import asyncio
import logging
import signal
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

from taskpool.errors import RedisFull, RedisUnavailable
from taskpool.redis import address, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.keys import SUSPENDED
from taskpool.redis.replies import Meaning, ReplyFault, meaning_of
from taskpool.tasks.context import seconds_of
from taskpool.types import LogLimits

from .duties import CommandChannel, Outage, insist
from .fork_client import Ending
from .process_handle import Child
from .recovery import LastWords, Remains, attempts_of, await_end, settle
from .shared_memory import Counters, Run
from .stops import Stops

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


log = logging.getLogger("workers")


class Roster:
    """`on_change` is called when a process was entered, `on_dismiss` when RQ tells one to shut down, `on_soon` with the
    seconds until a task is due that was just scheduled."""

    def __init__(
        self,
        pool: str,
        redis_url: str,
        store: AsyncStore,
        registrar: Registrar,
        *,
        stops: Stops,
        outage: Outage,
        max_crashes: int,
        limits: LogLimits,
        on_change: Callable[[], None],
        on_dismiss: Callable[[Child], None],
        on_soon: Callable[[float], None],
    ) -> None:
        self._pool, self._store, self._registrar = pool, store, registrar
        self._stops, self._outage = stops, outage
        self._max_crashes, self._limits = max_crashes, limits
        self._on_change, self._on_dismiss = on_change, on_dismiss
        self._members: dict[str, tuple[Child, PoolWorker]] = {}
        self._work: set[asyncio.Task[None]] = set()
        self.commands = CommandChannel(redis_url, self._obey, on_soon)

    def entered(self) -> list[PoolWorker]:
        """The workers that stand in RQ's registry."""
        return [worker for _, worker in self._members.values() if worker.birth_date is not None]

    def add(self, child: Child) -> None:
        """Enters a new process, as soon as Redis is there."""
        worker = PoolWorker(
            child.name,
            child.queues,
            pid=child.pid,
            connection=self._registrar.connection,
            pool=self._pool,
            runs=child.runs,
            counters=child.block.counters,
            on_stop_job=self._stop_at_once,
            on_kill=lambda: child.signal(signal.SIGKILL),
            on_shutdown=lambda: self._on_dismiss(child),
        )
        self._members[child.name] = child, worker
        self._listen()
        self._spawn(self._enter(child, worker))

    def bury(self, child: Child, ending: Ending) -> None:
        """Settles what an ended process held and removes it, as soon as Redis is there."""
        self._spawn(self._bury(child, Remains.of(child, ending), LastWords(child, ending)))

    async def settled(self, timeout_s: float) -> bool:
        """Waits until all that was begun here is done; False: it wasn't within the time."""
        if not self._work:
            return True
        _, pending = await asyncio.wait(self._work, timeout=timeout_s)
        return not pending

    async def _enter(self, child: Child, worker: PoolWorker) -> None:
        async def enter() -> None:
            if not child.ended.is_set():
                await asyncio.to_thread(self._registrar.enter, worker)

        await insist(enter, self._outage)
        self._on_change()

    async def _bury(self, child: Child, remains: Remains, words: LastWords) -> None:
        async def look() -> None:
            with suppress(RedisFull, ReplyFault):  # then they are lost; what becomes of the attempts isn't
                await self._store.carry_out(words.send(self._limits))
            for id, attempt_id in await self._store.run(attempts_of(child.name)):
                try:
                    await self._store.carry_out(settle(remains, id, attempt_id, max_crashes=self._max_crashes))
                except ReplyFault as fault:  # a damaged record; the others are settled all the same
                    log.error("what task %s ran in worker %s can't be settled: %s", id, child.name, fault)

        await await_end(child)
        for wait_s in remains.looks_s:
            await asyncio.sleep(wait_s)
            await insist(look, self._outage)
        _, worker = self._members.pop(child.name)
        self._listen()
        await insist(lambda: asyncio.to_thread(self._registrar.leave, worker), self._outage)
        self._on_change()

    def _obey(self, name: str, command: Mapping[str, Any]) -> None:
        """Carries out what was said on a worker's channel."""
        if name not in self._members:
            return
        child, worker = self._members[name]
        if command.get("command") != "taskpool-stop":
            worker.obey(command)
            return
        attempt_id, grace_s = str(command.get("attempt_id")), seconds_of(command.get("grace_s")) or 0.0
        self._stops.stop_attempt(child, attempt_id, grace_s=grace_s, force=bool(command.get("force")))

    def _stop_at_once(self, id: str) -> None:
        """RQ's stop-job: noted on the record like any other stop; the message that follows carries it out."""

        async def ask() -> None:
            await self._store.run(scripts.stop(id, grace_s=0, force=True))

        self._spawn(insist(ask, self._outage))

    def _listen(self) -> None:
        self.commands.listen_to(frozenset(self._members))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
