"""The HTTP API for programs that await: `AsyncClient`.

Methods have the names of the methods of `AsyncTaskPool` that do the same, and return the same values. Each runs one
operation, which is a value: see `operations` and `follow`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import httpx

from taskpool.client import follow as client_follow
from taskpool.client import operations, values
from taskpool.client.http import FAILURES, AsyncConnections, AsyncLink, Server
from taskpool.client.operations import fetch
from taskpool.client.request import (
    RETRIES,
    TIMEOUT_S,
    About,
    Answer,
    Emit,
    Lost,
    Plan,
    Read,
    Request,
    Retrying,
    Send,
    Sleep,
    sending,
)
from taskpool.lifecycle import HoldsConnections
from taskpool.operations.specs import AddTask, spec_given
from taskpool.tasks.log_lines import LogLine
from taskpool.types import (
    Event,
    Page,
    QueuedTask,
    QueueInfo,
    Receipt,
    TaskRecord,
    TaskSpec,
    TaskStatus,
    TypeInfo,
    WorkerInfo,
)

T = TypeVar("T")


class AsyncClient(HoldsConnections):
    """Submit, watch and control tasks through the HTTP API at `url`.

        async with AsyncClient("http://localhost:8080", api_key) as client:
            task = await client.add_task("resize", {"url": "https://example.org/a.png"}, queue="images")
            ended = await client.wait(task.id, timeout_s=60)
            print(ended.result)

    Any number of coroutines can use one client at once. One client serves any number of event loops, one after the
    other or at the same time in several threads. Each loop has its own connections, opened by its first call and closed
    when the loop shuts down. To leave `follow`, `events` or `follow_log` early, close them with `contextlib.aclosing`.
    Needs asyncio.

    `timeout_s` is how long each answer may take. When no answer comes, or one that says "later", a request that can be
    repeated safely is sent again, up to `retries` times within 30 s. A submission has its own idempotency key, so it is
    stored once.

    Besides the exceptions listed at each method, every method raises ApiUnavailable when no answer comes,
    RedisUnavailable when the API can't reach its Redis, Unauthorized and NotAllowed for the API key, and ApiError for
    any other answer.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
    ) -> None:
        """Raises: ConfigurationError, when the URL or the key is invalid."""
        self._connections = AsyncConnections(Server(url, api_key, timeout_s))
        self._retrying = Retrying(retries)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of this event loop; other loops keep theirs. The next call opens new ones."""
        await self._connections.close()

    if TYPE_CHECKING:
        add_task: AddTask[Coroutine[Any, Any, Receipt]]
    else:

        async def add_task(self, *given: Any, **named: Any) -> Receipt:
            """Submit a task; returns its id and status. See `AddTask` for what may be given."""
            return await self.send(operations.add_task(spec_given(given, named)))

    async def add_tasks(self, specs: Sequence[TaskSpec]) -> list[Receipt]:
        """Submit up to 1,000 tasks in one request: all are stored or none. Ids and statuses in order.

        Raises:
            InvalidTask: pointers start with the task's index, ``/3/payload/width``.
            UniqueConflict, QueueFull: as `add_task`.
        """
        return await self.send(operations.add_tasks(specs)) if specs else []

    async def get(self, id: str) -> TaskRecord:
        """The task as it is now.

        Raises:
            TaskNotFound
        """
        return await self.send(operations.get(id))

    async def wait(self, id: str, *, timeout_s: float | None = None) -> TaskRecord:
        """The task once it has ended, successfully or not: see `status`, `result`, `error`. None waits without limit.

        Once the wait has begun, it continues after an outage of the API.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`; `record` is its current state.
            InvalidTask: `timeout_s` isn't a number of seconds up to ten years.
        """
        return await self._run(client_follow.follow(id, timeout_s, client_follow.WAITING, self._retrying))

    def follow(self, id: str, *, timeout_s: float | None = None) -> AsyncGenerator[TaskRecord]:
        """The task as it is now, again twice a second, and a last time when it has ended.

        Once it has begun, it continues after an outage of the API.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`.
            InvalidTask: `timeout_s` isn't a number of seconds up to ten years.
        """
        return self._values(client_follow.follow(id, timeout_s, client_follow.WATCHING, self._retrying))

    def events(self, id: str, *, after: str | None = None) -> AsyncGenerator[Event]:
        """Every event of a task until it has ended, once each. It continues after an outage of the API.

        Without `after`, the first one is called `snapshot`, and its data is the task's document. With `after` (the
        `stream` of an event), the first one is the event after that. A snapshot also comes in the place of events that
        the API no longer has.

        Raises:
            TaskNotFound
        """
        return self._values(client_follow.events(id, after, self._retrying))

    async def get_queue(
        self, name: str = "default", *, cursor: str | None = None, limit: int = 100
    ) -> Page[QueuedTask]:
        """A page of a queue at one moment, in dispatch order, with position and wait."""
        path = f"/queues/{quote(name, safe='')}"
        return await self.send(fetch(path, values.queued, cursor=cursor, limit=limit))

    async def list_tasks(
        self,
        *,
        status: TaskStatus | None = None,
        queue: str | None = None,
        type: str | None = None,
        tag: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[TaskRecord]:
        """Tasks that match, newest first. A page may be short: continue with `next_cursor` until it is None."""
        return await self.send(
            fetch("/tasks", values.records, status=status, queue=queue, type=type, tag=tag, cursor=cursor, limit=limit)
        )

    async def remove_task(self, id: str) -> TaskStatus | None:
        """Cancel a task that hasn't started (returns CANCELED), or delete one that has ended (returns None).

        Raises:
            TaskNotFound
            TaskConflict: it is running; use `kill_task`.
        """
        return await self.send(operations.remove_task(id))

    async def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord:
        """Stop a task: cancel it if it hasn't started; else ask it to stop, and kill it after `grace_s` (`force`: at
        once).

        Raises:
            TaskNotFound
            InvalidTask: `grace_s` isn't a number of seconds from 0 to a day.
        """
        return await self._run(operations.kill_task(id, grace_s=grace_s, force=force, retrying=self._retrying))

    async def retry_task(self, id: str) -> TaskRecord:
        """Queue a failed, stopped or canceled task again.

        Raises:
            TaskNotFound
            TaskConflict: any other status, or a task it depends on isn't done.
        """
        return await self.send(operations.retry_task(id))

    async def queues(self) -> list[QueueInfo]:
        """Every queue with its counts."""
        return await self._run(operations.queues(self._retrying))

    async def types(self) -> list[TypeInfo]:
        """Every known task type, with the pools that serve it."""
        return await self.send(fetch("/types", values.types))

    async def workers(self) -> list[WorkerInfo]:
        """Every registered worker process."""
        return await self.send(fetch("/workers", values.workers))

    async def worker_warnings(self) -> list[str]:
        """Problems with the RQ programs that share queues with the workers, one sentence each."""
        return await self.send(fetch("/workers", values.worker_warnings))

    async def logs(self, id: str, *, cursor: str | None = None, limit: int = 100) -> Page[LogLine]:
        """A page of a task's log, the oldest line first. Until the task has ended, there is always a next cursor.

        Raises:
            TaskNotFound
            InvalidTask: the cursor isn't one of this listing.
        """
        path = f"{operations.task_path(id)}/logs"
        return await self.send(fetch(path, values.lines, about=About(id), cursor=cursor, limit=limit))

    def follow_log(self, id: str, *, cursor: str | None = None) -> AsyncGenerator[LogLine]:
        """Every line of a task's log, once, including new ones, until the task has ended.

        It continues after an outage of the API.

        Raises:
            TaskNotFound
            InvalidTask: the cursor isn't one of `logs`.
        """
        return self._values(client_follow.follow_log(id, cursor, self._retrying))

    async def send(self, request: Request[T]) -> T:
        """The value of a request of `taskpool.client.operations`, which is sent again where that is safe."""
        return await self._run(sending(request, self._retrying))

    async def _run(self, plan: Plan[T]) -> T:
        """The value of a plan."""
        result: T
        async for value in self._values(_emitting(plan)):
            result = value
        return result

    def _values(self, plan: Plan[object]) -> AsyncGenerator[Any]:
        """The values that a plan emits."""
        return _AsyncRunner(self._connections).run(plan)


def _emitting(plan: Plan[object]) -> Plan[None]:
    """The same plan, which also emits what it returns, last."""
    yield Emit((yield from plan))


class _AsyncRunner:
    """Carries out one plan."""

    def __init__(self, connections: AsyncConnections) -> None:
        self._connections = connections
        self._link: AsyncLink | None = None
        self._stream: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def run(self, plan: Plan[object]) -> AsyncGenerator[Any]:
        """The values that the plan emits."""
        reply: Any = None
        try:
            while True:
                step = plan.send(reply)
                reply = None
                match step:
                    case Emit():
                        yield step.value
                    case Sleep():
                        await asyncio.sleep(step.seconds)
                    case Read():
                        reply = await self._read()
                    case Send():
                        reply = await self._send(step.request)
        except StopIteration:
            return
        finally:
            await self._close()

    async def _send(self, request: Request[Any]) -> Answer | Lost:
        await self._close()
        connections, server = self._connections, self._connections.server
        link = connections.take()
        try:
            response = await link.client.send(server.request(link.client, request), stream=True)
            link.note(response)
            if request.streams and response.status_code == httpx.codes.OK:
                self._link, self._stream, self._pieces = link, response, response.aiter_bytes()
                return Answer(response.status_code, response.headers)
            try:
                answer = Answer(response.status_code, response.headers, await response.aread())
            finally:
                await response.aclose()
        except BaseException as error:
            connections.drop(link)
            if isinstance(error, FAILURES):
                return server.lost(error)
            raise
        connections.give_back(link)
        return answer

    async def _read(self) -> bytes | None:
        try:
            return None if self._pieces is None else await anext(self._pieces, None)
        except FAILURES:
            return None

    async def _close(self) -> None:
        """Close the stream, unless it belongs to the parent of this process."""
        link, stream = self._link, self._stream
        self._link = self._stream = None
        if link is not None and stream is not None and link.pid == os.getpid():
            await stream.aclose()
            self._connections.give_back(link)
