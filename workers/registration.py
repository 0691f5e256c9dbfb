"""The pool's worker processes as RQ knows them: registered when they start, removed when they have ended, obeying RQ's
commands. Registration uses RQ's own code, so that RQ's tools show and stop our workers like any other.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from rq import worker_registration
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker, WorkerStatus

from taskpool.errors import RedisFull, RedisUnavailable
from taskpool.operations.control import stacks as stacks_asked
from taskpool.redis import address, pause_scripts, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.keys import SUSPENDED, SWITCHES
from taskpool.redis.replies import Meaning, ReplyFault, meaning_of
from taskpool.settings import Settings, resolve_redis_url
from taskpool.tasks.context import seconds_of
from taskpool.types.fleet import Stack

from . import process_group, stacks
from .attempts import Stops
from .duties import BackgroundTasks, CommandChannel, Outage, insist, log
from .fork_client import Ending, ProcessHandle
from .recovery import EndedProcess, attempts_held_in_redis

KEEP_S: Final = 60
"""How long RQ shows a worker whose supervisor has gone silent."""
SOCKET_TIMEOUT_S: Final = 5.0
MOST_STACKS: Final = 8
"""How many stacks of running tasks are taken at once; further requests get no answer."""


def connect(redis_url: str) -> Redis:
    """RQ's own connection of a supervisor. Nothing blocks on it longer than SOCKET_TIMEOUT_S."""
    return address.connect(redis_url, socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=SOCKET_TIMEOUT_S)


class PoolWorker(BaseWorker):
    """RQ's view of one worker process of the pool. It lives in the supervisor."""

    def __init__(self, process: ProcessHandle, pool: str, connection: Redis) -> None:
        # prepare_for_work=False: it would rename the shared connection and ask the server for its address.
        super().__init__(
            list(process.queues), name=process.name, connection=connection, serializer=JSONSerializer,
            worker_ttl=KEEP_S, prepare_for_work=False,
        )  # fmt: skip
        self.hostname, self.pid = socket.gethostname(), process.pid
        self.process, self.pool = process, pool
        self.log = logging.getLogger("workers.rq")
        self.has_left = False

    def _set_connection(self, connection: Redis) -> Redis:
        """RQ would raise its socket timeout to minutes: a half-open connection would stay unnoticed."""
        return connection

    def serialize(self) -> dict[Any, Any]:
        """RQ's fields of the worker's hash, and ours."""
        head = self.process.block.head
        return {
            **super().serialize(),
            "pool": self.pool,
            "build": self.process.fork_client.loaded.build,
            "state": WorkerStatus.BUSY if self.process.runs() else WorkerStatus.IDLE,
            "successful_job_count": head.done,
            "failed_job_count": head.failed,
            "total_working_time": head.working_us / 1e6,
            "memory_bytes": self.process.memory_bytes(),
        }


class WorkerRegistry:
    """RQ's registry of workers, read and written by RQ's code. It blocks: call it from a thread. It does one thing at a
    time: a renewal at the same time as a removal would bring the worker back. Raises, in all methods: RedisUnavailable.
    """

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._lock = threading.Lock()

    def add(self, worker: PoolWorker) -> None:
        """Registers a new worker, unless it has left meanwhile. It may be repeated, unlike RQ's `register_birth`."""
        worker.birth_date = datetime.now(UTC)
        self.renew((worker,))

    def renew(self, workers: Sequence[PoolWorker]) -> None:
        """Renews the entries of workers that haven't left, also if Redis has lost them. States follow `rq suspend`, and
        the pauses of everything and of the pool."""
        with self._lock, _errors_translated(), self.connection.pipeline(transaction=False) as pipeline:
            suspended = bool(self.connection.exists(SUSPENDED)) or self._are_paused(workers)
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
                # Without memory the fields stay as they were, and the expiry of the entries is renewed all the same.
                if isinstance(reply, Exception) and not isinstance(reply, OutOfMemoryError):
                    raise reply

    def _are_paused(self, workers: Sequence[PoolWorker]) -> bool:
        fields = [pause_scripts.ALL, *[pause_scripts.POOL + worker.pool for worker in workers[:1]]]
        return any(self.connection.hmget(SWITCHES, fields))

    def remove(self, worker: PoolWorker) -> None:
        """Removes a worker that has ended."""
        with self._lock, _errors_translated():
            worker.has_left = True
            with suppress(OutOfMemoryError):  # then its entry expires within KEEP_S
                worker.register_death()  # type: ignore[no-untyped-call]

    def clean(self, queues: Iterable[str]) -> None:
        """Removes workers of these queues whose entries have expired, because their supervisors died."""
        with _errors_translated():
            for name in queues:
                queue = Queue(name, connection=self.connection, serializer=JSONSerializer)
                worker_registration.clean_worker_registry(queue)


@contextmanager
def _errors_translated() -> Iterator[None]:
    """Raises redis-py's errors as ours."""
    try:
        yield
    except (RedisError, OSError) as error:  # OSError for example without file descriptors
        if isinstance(error, ResponseError) and meaning_of(str(error)) is Meaning.FAULT:
            raise ReplyFault(f"Redis answered: {error}") from error
        raise RedisUnavailable(f"Redis: {error}") from error


class Registration:
    """Registers each process when it starts. When it has ended, recovers its attempts and removes it. `on_change` is
    called when a process was registered or removed, `on_soon` with the seconds until a task is due, `on_drain` when the
    pool is to drain."""

    def __init__(
        self,
        pool: str,
        settings: Settings,
        store: AsyncStore,
        registry: WorkerRegistry,
        *,
        stops: Stops,
        outage: Outage,
        on_change: Callable[[], None],
        on_soon: Callable[[float], None],
        on_drain: Callable[[], None],
    ) -> None:
        self._pool, self._store, self._registry = pool, store, registry
        self._stops, self._outage = stops, outage
        self._max_crashes, self._limits = settings.max_crashes, settings.log_limits
        self._on_change, self._on_drain = on_change, on_drain
        self._workers: dict[str, PoolWorker] = {}
        self._tasks = BackgroundTasks()
        self._stacks_told = set[asyncio.Task[None]]()
        self.commands = CommandChannel(resolve_redis_url(settings), self._obey, on_soon)

    def workers(self) -> list[PoolWorker]:
        """The workers in RQ's registry."""
        return [worker for worker in self._workers.values() if worker.birth_date is not None]

    def add(self, process: ProcessHandle) -> None:
        """Registers a new process, as soon as Redis is there."""
        worker = self._workers[process.name] = PoolWorker(process, self._pool, self._registry.connection)
        self._tasks.spawn(self._add(worker))

    def remove(self, process: ProcessHandle, ending: Ending) -> None:
        """Recovers the attempts of a process that has ended and removes it, as soon as Redis is there."""
        self._tasks.spawn(self._remove(EndedProcess(process, ending)))

    async def is_finished(self, timeout_s: float) -> bool:
        """Waits until everything that was started here is done. False: it took longer."""
        return not self._tasks.running or not (await asyncio.wait(self._tasks.running, timeout=timeout_s))[1]

    async def _add(self, worker: PoolWorker) -> None:
        async def add() -> None:
            if not worker.process.ended.is_set():
                await asyncio.to_thread(self._registry.add, worker)

        await self.commands.add(worker.name)  # who sees it in RQ's registry can send it commands
        await insist(add, self._outage)
        self._on_change()

    async def _remove(self, ended: EndedProcess) -> None:
        process = ended.process

        async def recover() -> None:
            with suppress(RedisFull, ReplyFault):  # then the lines are lost; the attempts are recovered all the same
                await self._store.carry_out(ended.send_log_lines(self._limits))
            for id, attempt_id in await self._store.run(attempts_held_in_redis(process.name)):
                try:
                    await self._store.carry_out(ended.recover_attempt(id, attempt_id, max_crashes=self._max_crashes))
                except ReplyFault as fault:  # a damaged record must not keep the other attempts back
                    log.error("what task %s ran in worker %s can't be settled: %s", id, process.name, fault)

        while not await process_group.end_group(process.pid):
            log.error(
                "process group %d of worker %s doesn't die: its tasks stay as they are", process.pid, process.name
            )
        for wait_s in ended.looks_s:
            await asyncio.sleep(wait_s)
            await insist(recover, self._outage)
        worker = self._workers.pop(process.name)
        await self.commands.remove(worker.name)
        await insist(lambda: asyncio.to_thread(self._registry.remove, worker), self._outage)
        self._on_change()

    # --- commands -----------------------------------------------------------------------------------------------------

    def _obey(self, name: str, command: Mapping[str, Any]) -> None:
        """Carries out a command from a worker's channel, or from the pool's. Unknown ones are ignored, as RQ does. RQ's
        own handler isn't used: on a shutdown it signals its whole process, and it knows one task per worker."""
        if name == self._pool and command.get("command") == "taskpool-drain":
            self._on_drain()
        if name not in self._workers:
            return
        process = self._workers[name].process
        match command.get("command"):
            case "taskpool-stop":
                attempt_id, grace_s = str(command.get("attempt_id")), seconds_of(command.get("grace_s")) or 0.0
                self._stops.stop_attempt(process, attempt_id, grace_s=grace_s, force=bool(command.get("force")))
            case stacks_asked.COMMAND:
                if len(self._stacks_told) < MOST_STACKS:
                    task = self._tasks.spawn(self._tell_stack(process, command))
                    self._stacks_told.add(task)
                    task.add_done_callback(self._stacks_told.discard)
            case "shutdown":
                process.dismiss()
            case "kill-horse":  # the process is killed, and its attempts count as crashed
                process.signal_group(signal.SIGKILL)
            case "stop-job":
                self._stop_tasks(run.id for run in process.runs() if run.id == command.get("job_id"))
            case "stop-execution":  # an execution id is our attempt id
                self._stop_tasks(run.id for run in process.runs() if run.attempt_id == command.get("execution_id"))

    async def _tell_stack(self, process: ProcessHandle, command: Mapping[str, Any]) -> None:
        """Answers where the attempt of this command is. Without an answer the caller gives up."""
        wanted, token = command.get("attempt_id"), str(command.get("token"))
        run = next((run for run in process.runs() if run.attempt_id == wanted), None)
        if run is None or not token.isalnum():
            return
        with suppress(TimeoutError, RedisUnavailable, ReplyFault):
            text = await process.take_stacks(run)
            frames = stacks.frames_of(text)
            if frames and process.is_running(run):
                stack = Stack(id=run.id, taken_at=datetime.now(UTC), frames=tuple(frames), text=text)
                await self._store.run(stacks_asked.answer(token, stack))

    def _stop_tasks(self, ids: Iterable[str]) -> None:
        """Notes the stops on the records; the messages that follow carry them out."""
        for id in ids:
            stop = scripts.stop(id, grace_s=0, force=True)
            self._tasks.spawn(insist(partial(self._store.run, stop), self._outage))
