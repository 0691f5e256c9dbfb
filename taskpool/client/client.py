"""The HTTP API for programs that block: `Client`. (`async_client` has the one for programs that await.)

Methods have the names of those of `TaskPool` that mean the same, and return the same values. Each names an operation
and runs it; what it does stands in `operations` and `follow`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from taskpool.client import follow as client_follow
from taskpool.client import operations
from taskpool.client.http import Connections, Runner, Server
from taskpool.client.request import RETRIES, TIMEOUT_S, Plan, Request, Retrying, sending
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


class Client(HoldsConnections):
    """Submit, watch and steer tasks through the HTTP API at `url`.

        with Client("http://localhost:8080", api_key) as client:
            task = client.add_task("resize", {"url": "https://example.org/a.png"}, queue="images")
            print(client.wait(task.id, timeout_s=60).result)

    Threads may share one. Made before a fork, it works in parent and child, each with its own connections.

    `timeout_s` is how long each answer may take. What can safely be sent again is, up to `retries` times within 30 s,
    when no answer comes or one that says "later"; a submission carries its own idempotency key, so it is stored once.

    Besides what is said there, every method raises ApiUnavailable when no answer comes, RedisUnavailable when the API
    can't reach its Redis, Unauthorized and NotAllowed for the API key, and ApiError for any other answer.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout_s: float = TIMEOUT_S, retries: int = RETRIES
    ) -> None:
        """Raises: ConfigurationError, when the URL or the key can't be one."""
        self._connections = Connections(Server(url, api_key, timeout_s))
        self._retrying = Retrying(retries)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._connections.close()

    if TYPE_CHECKING:
        add_task: AddTask[Receipt]
    else:

        def add_task(self, *given: Any, **named: Any) -> Receipt:
            """Submit a task; returns its id and status. See `AddTask` for what may be given."""
            return self.send(operations.add_task(spec_given(given, named)))

    def add_tasks(self, specs: Sequence[TaskSpec]) -> list[Receipt]:
        """Submit up to 1,000 tasks in one request: all are stored or none. Ids and statuses in order.

        Raises:
            InvalidTask: pointers start with the task's index, ``/3/payload/width``.
            UniqueConflict, QueueFull: as `add_task`.
        """
        return self.send(operations.add_tasks(specs)) if specs else []

    def get(self, id: str) -> TaskRecord:
        """The task as it is now.

        Raises:
            TaskNotFound
        """
        return self.send(operations.get(id))

    def wait(self, id: str, *, timeout_s: float | None = None) -> TaskRecord:
        """The task once it has ended, well or not: look at `status`, `result`, `error`. None waits for ever.

        A wait that has begun outlives an API that is away, if it comes back in time.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`; `record` is how it stands.
            InvalidTask: `timeout_s` is no number of seconds, or more than ten years of them.
        """
        return self._run(client_follow.follow(id, timeout_s, client_follow.WAITING, self._retrying))

    def follow(self, id: str, *, timeout_s: float | None = None) -> Iterator[TaskRecord]:
        """The task as it is now, again twice a second, and last when it has ended. Outlives as `wait`.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`.
            InvalidTask: `timeout_s` is no number of seconds, or more than ten years of them.
        """
        return self._tell(client_follow.follow(id, timeout_s, client_follow.WATCHING, self._retrying))

    def events(self, id: str, *, after: str | None = None) -> Iterator[Event]:
        """Every event of a task until it has ended, each once, also when the API was away meanwhile.

        First comes one called `snapshot`, whose data is the task's document; or, with `after` (the `stream` of an
        event), what came since then. Where the API has forgotten events, there is another snapshot.

        Raises:
            TaskNotFound
        """
        return self._tell(client_follow.events(id, after, self._retrying))

    def get_queue(self, name: str = "default", *, cursor: str | None = None, limit: int = 100) -> Page[QueuedTask]:
        """A part of a queue as it is at one moment, in dispatch order, with position and wait."""
        return self.send(operations.get_queue(name, cursor, limit))

    def list_tasks(
        self,
        *,
        status: TaskStatus | None = None,
        queue: str | None = None,
        type: str | None = None,
        tag: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[TaskRecord]:
        """Tasks that fit, newest first. A page may be short: go on with `next_cursor` until it is None."""
        return self.send(
            operations.list_tasks(status=status, queue=queue, type=type, tag=tag, cursor=cursor, limit=limit)
        )

    def remove_task(self, id: str) -> TaskStatus | None:
        """Cancel a task that hasn't started (CANCELED), purge one that has ended (None).

        Raises:
            TaskNotFound
            TaskConflict: it is running; use `kill_task`.
        """
        return self.send(operations.remove_task(id))

    def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord:
        """Stop a task: cancel it before it starts; else ask it to stop, and kill it after `grace_s` (`force`: at once).

        Raises:
            TaskNotFound
            InvalidTask: `grace_s` is no number of seconds from 0 to a day.
        """
        return self._run(operations.kill_task(id, grace_s=grace_s, force=force, retrying=self._retrying))

    def retry_task(self, id: str) -> TaskRecord:
        """Queue a failed, stopped or canceled task again.

        Raises:
            TaskNotFound
            TaskConflict: any other status, or a task it depends on isn't done.
        """
        return self.send(operations.retry_task(id))

    def queues(self) -> list[QueueInfo]:
        """Every queue with its counts."""
        return self._run(operations.queues(self._retrying))

    def types(self) -> list[TypeInfo]:
        """Every known task type, with the pools that serve it."""
        return self.send(operations.types())

    def workers(self) -> list[WorkerInfo]:
        """Every registered worker process."""
        return self.send(operations.workers())

    def worker_warnings(self) -> list[str]:
        """What is wrong with the RQ programs that share queues with the workers, each in a sentence."""
        return self.send(operations.worker_warnings())

    def logs(self, id: str, *, cursor: str | None = None, limit: int = 100) -> Page[LogLine]:
        """A page of a task's log, the oldest line first. While the task hasn't ended there is always a next cursor.

        Raises:
            TaskNotFound
            InvalidTask: the cursor isn't one of this listing.
        """
        return self.send(operations.logs(id, cursor, limit))

    def follow_log(self, id: str, *, cursor: str | None = None) -> Iterator[LogLine]:
        """Every line of a task's log, those to come as well, each once, until the task has ended. Outlives as `wait`.

        Raises:
            TaskNotFound
            InvalidTask: the cursor isn't one of `logs`.
        """
        return self._tell(client_follow.follow_log(id, cursor, self._retrying))

    def send(self, request: Request[T]) -> T:
        """What a request of `client_operations` or `client_keys` is answered; it is sent again where that is safe."""
        return self._run(sending(request, self._retrying))

    def _run(self, plan: Plan[T]) -> T:
        return Runner(self._connections).result(plan)

    def _tell(self, plan: Plan[object]) -> Iterator[Any]:
        return Runner(self._connections).told(plan)
