"""At every command of a task's life its worker process, its supervisor or the API is killed, or the connection cut.

A life: two tasks are submitted over HTTP, the second waits for the first; both are claimed, report, add a task and end.
Whatever happens at whichever command, both are done, an effect was completed, each has added one task, and nothing is
left over.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from taskpool import TaskPool, TaskRecord, TaskStatus
from taskpool.redis.embedded import RedisServer
from tests.api_client import api_process
from tests.proxy import Proxy, Trap, When
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import LEASE_S, WorkerPool, lines

pytestmark = pytest.mark.long(about_s=50)
S = TaskStatus
TASKS = str(Path(__file__).with_name("tasks_for_killpoints.py"))
SHORTEST_LIFE, LONGEST_LIFE = 8, 40
SHORTEST_SUBMISSION = 2
LONG_S, SHORT_S = LEASE_S, 3
"""The leases of pools that live, which a slow machine mustn't end, and of pools in which something is killed."""


class Site:
    """Redis, the proxy before it, an API and worker pools behind the proxy; what was killed is started anew."""

    def __init__(self, directory: Path, redis_binary: str | None) -> None:
        self.directory = directory
        self._binary = redis_binary
        self._open = ExitStack()
        self._numbers = itertools.count()

    def __enter__(self) -> Site:
        server = RedisServer(self.directory, binary=self._binary)
        server.start()
        self._open.callback(server.stop)
        self.proxy = Proxy(self.directory, server.socket_path)
        self._open.callback(self.proxy.close)
        self.redis: Any = self._open.enter_context(Redis.from_url(server.url))
        self.pool = self._open.enter_context(TaskPool(server.url))
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.trap = None
        self._open.close()

    def start_workers(self, slots: int = 1, lease_s: float = SHORT_S) -> WorkerPool:
        log = self.directory / f"workers-{next(self._numbers)}"
        workers = WorkerPool(self.proxy.url, log, tasks=TASKS, lease_s=lease_s, slots=slots)
        self._open.callback(workers.__exit__, None, None, None)
        return workers

    def start_api(self) -> None:
        log = self.directory / f"api-{next(self._numbers)}"
        self.api, self.url = self._open.enter_context(api_process(self.proxy.url, log))

    def disconnect_api(self) -> None:
        """Its next request opens a connection."""
        for client in self.redis.client_list():
            if is_api(client["name"]):
                self.redis.client_kill_filter(_id=client["id"])
        httpx.get(f"{self.url}/livez", timeout=PATIENCE_S)  # it needs no Redis: then the API has noticed

    def submit(self, payload: dict[str, str], **options: Any) -> str:
        """Submits a task until it is acknowledged, as a client does; starts the API anew when it died over it."""
        while True:
            try:
                answer = httpx.post(
                    f"{self.url}/tasks", json={"type": "live", "payload": payload, **options}, timeout=PATIENCE_S
                )
            except httpx.TransportError:
                assert self.api.wait(PATIENCE_S) != 0
                self.start_api()
                continue
            if answer.status_code != 503:
                assert answer.status_code == 202, answer.text
                id: str = answer.json()["id"]
                return id

    def retry(self, id: str) -> None:
        """Retries a task until that is acknowledged, or refused because it was carried out before."""
        while True:
            try:
                answer = httpx.post(f"{self.url}/tasks/{id}/retry", timeout=PATIENCE_S)
            except httpx.TransportError:
                assert self.api.wait(PATIENCE_S) != 0
                self.start_api()
                continue
            if answer.status_code != 503:
                assert answer.status_code in {200, 202, 409}, answer.text
                return


@dataclass(frozen=True)
class Life:
    """What was acknowledged of a life, and what it did."""

    parent: TaskRecord
    child: TaskRecord
    effects: list[str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), redis_binary) as site:
        yield site


def live(site: Site, directory: Path, meanwhile: Callable[[str], None] = lambda id: None) -> Life:
    """Goes through a life. `meanwhile` gets the id of the task that ends it, before its end is waited for."""
    note, gate = directory / "note", directory / "gate"
    parent = site.submit({"note": str(note), "until": str(gate)})
    child = site.submit({"note": str(note), "until": str(gate)}, depends_on=[parent, {"id": parent, "on": "any"}])
    gate.touch()
    meanwhile(child)
    return Life(site.pool.wait(parent, timeout_s=PATIENCE_S), site.pool.wait(child, timeout_s=PATIENCE_S), lines(note))


def live_again(site: Site, directory: Path) -> Life:
    """Goes through a life that begins with a retry: the parent was canceled, and the child because of it."""
    note, gate = directory / "note", directory / "gate"
    gate.touch()
    payload = {"note": str(note), "until": str(gate)}
    parent = site.pool.add_task("live", payload, delay_s=3600).id
    child = site.pool.add_task("live", payload, depends_on=[parent, {"id": parent, "on": "any"}]).id
    site.pool.kill_task(parent)
    assert site.pool.get(child).canceled_by == parent
    site.retry(parent)
    return Life(site.pool.wait(parent, timeout_s=PATIENCE_S), site.pool.wait(child, timeout_s=PATIENCE_S), lines(note))


def sweep(
    site: Site,
    directory: Path,
    run: Callable[[Path], Life],
    check: Callable[[Life], None],
    make_trap: Callable[[int], Trap],
    *,
    upkeep: Callable[[], None] = lambda: None,
) -> int:
    """One life for each of its commands, until a life ends before its trap closes; how many there were. `upkeep` is
    called until nothing of the life is left: its trap may close after its end."""

    def is_tidy() -> bool:
        upkeep()
        return not left_over(site.redis)

    for n in range(1, LONGEST_LIFE):
        trap = make_trap(n)
        place = directory / str(n)
        place.mkdir()
        site.proxy.trap = trap
        try:
            life = run(place)
            eventually(is_tidy)
        except AssertionError as error:
            raise AssertionError(f"{trap.when} command {n} of {trap.passed}: {error}") from error
        finally:
            site.proxy.trap = None
        assert (life.parent.status, life.child.status) == (S.DONE, S.DONE), trap.passed
        assert life.child.result == {"parents": 1}
        assert {life.parent.id, life.child.id} <= set(life.effects), trap.passed
        added = site.pool.list_tasks(type="echo", limit=500).items
        of_life = [record.payload["message"] for record in added if record.payload["message"] in life.effects]
        assert sorted(of_life) == sorted(set(life.effects)), trap.passed
        check(life)
        check_events(site.redis)
        site.redis.delete("taskpool:events")
        if not trap.closed.is_set():
            return n
    raise AssertionError(f"a life has no end: {trap.passed}")


def left_over(redis: Any) -> list[str]:
    """What must not be there once all tasks have ended: places where a task waits or runs, and what leads there."""
    kinds = ("queue:*", "wip:*", "scheduled:*", "deferred:*", "failed:*", "canceled:*", "execution:*")
    patterns = [*(f"rq:{kind}" for kind in kinds), "rq:worker:*:executions", "taskpool:attempts:*"]
    patterns += [
        "taskpool:followers:*",
        "taskpool:revivable:*",
        "taskpool:dependents:*",
        "taskpool:outbox",
        "taskpool:expiring",
        "taskpool:confirmations",
    ]
    found = [key.decode() for pattern in patterns for key in redis.scan_iter(pattern, count=10_000)]
    ended = {id.decode() for id in redis.zrange("rq:finished:default", 0, -1)}
    jobs = {key.decode().removeprefix("rq:job:") for key in redis.scan_iter("rq:job:*", count=10_000)}
    return found + sorted(ended ^ jobs)


def check_events(redis: Any) -> None:
    """Each task's events are numbered without a gap, and the last one says that it is done."""
    events_of = defaultdict(list)
    for _, fields in redis.xrange("taskpool:events"):
        event = json.loads(fields[b"e"])
        events_of[event["id"]].append(event)
    for events in events_of.values():
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert [event["status"] for event in events].index("done") == len(events) - 1


def is_worker(name: str) -> bool:
    """A worker process's connections: its own, which bears its name, and the one for its tasks' reports."""
    return name == "taskpool-reports" or name.rpartition(".")[2].isdigit()


def ran_once(life: Life) -> None:
    assert sorted(life.effects) == sorted([life.parent.id, life.child.id])
    assert (life.parent.attempt, life.child.attempt) == (1, 1)
    assert (life.parent.crashes, life.child.crashes) == (0, 0)


def at_most_one_more(life: Life) -> None:
    """A submission that wasn't acknowledged may have been stored: its task runs as well."""
    assert len(life.effects) <= 3
    assert (life.parent.attempt, life.child.attempt) == (1, 1)


def ran_twice_at_most(life: Life) -> None:
    assert life.parent.attempt + life.child.attempt <= 3
    assert len(life.effects) <= 3


def is_api(name: str) -> bool:
    return name == "taskpool"


@pytest.fixture(scope="module")
def api(site: Site) -> None:
    site.start_api()


@pytest.fixture(scope="module")
def workers(site: Site, request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    """A pool of one process, with the slots and the lease that a test says: with several slots it is another kind of
    process."""
    with site.start_workers(*getattr(request, "param", (1, LONG_S))) as workers:
        yield workers


@pytest.mark.usefixtures("api", "workers")
@pytest.mark.parametrize(
    ("workers", "when"), [((1, LONG_S), "before"), ((1, LONG_S), "after"), ((2, LONG_S), "after")], indirect=["workers"]
)
def test_a_connection_of_the_worker_is_cut_at_any_command(site: Site, tmp_path: Path, when: When) -> None:
    swept = sweep(site, tmp_path, lambda place: live(site, place), ran_once, lambda n: Trap(is_worker, when, n))

    assert swept > SHORTEST_LIFE


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("workers", [(1, SHORT_S), (2, SHORT_S)], indirect=True)
def test_the_worker_process_is_killed_at_any_command(site: Site, workers: WorkerPool, tmp_path: Path) -> None:
    def kill(name: str) -> None:
        for process in workers.descendants():
            if process.pid in pids:
                process.kill()

    def make_trap(n: int) -> Trap:
        pids[:] = eventually(workers.pids)
        return Trap(is_worker, "after", n, kill)

    pids: list[int] = []
    swept = sweep(site, tmp_path, lambda place: live(site, place), ran_twice_at_most, make_trap)

    assert swept > SHORTEST_LIFE


@pytest.mark.usefixtures("api", "workers")
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_connection_of_the_api_is_cut_at_any_command(site: Site, tmp_path: Path, when: When) -> None:
    def make_trap(n: int) -> Trap:
        site.disconnect_api()
        return Trap(is_api, when, n)

    swept = sweep(site, tmp_path, lambda place: live(site, place), ran_once, make_trap)

    assert swept > SHORTEST_SUBMISSION


@pytest.mark.usefixtures("api", "workers")
def test_the_api_is_killed_at_any_command_between_a_request_and_its_answer(site: Site, tmp_path: Path) -> None:
    def make_trap(n: int) -> Trap:
        site.api.kill()
        site.start_api()  # one that has read no task types yet
        return Trap(is_api, "after", n, lambda _: site.api.kill())

    swept = sweep(site, tmp_path, lambda place: live(site, place), at_most_one_more, make_trap)

    assert swept > SHORTEST_SUBMISSION


@pytest.mark.usefixtures("api", "workers")
@pytest.mark.parametrize("is_killed", [False, True])
def test_the_api_is_cut_off_or_killed_at_any_command_of_a_retry(site: Site, tmp_path: Path, is_killed: bool) -> None:
    def make_trap(n: int) -> Trap:
        if not is_killed:
            site.disconnect_api()
            return Trap(is_api, "after", n)
        site.api.kill()
        site.start_api()
        return Trap(is_api, "after", n, lambda _: site.api.kill())

    swept = sweep(site, tmp_path, lambda place: live_again(site, place), ran_once, make_trap)

    assert swept > SHORTEST_SUBMISSION


@pytest.mark.parametrize(
    ("workers", "is_killed"), [((1, LONG_S), False), ((1, SHORT_S), True)], indirect=["workers"], ids=["cut", "killed"]
)
def test_a_task_that_asks_is_answered_once_whichever_command_fails(
    site: Site, workers: WorkerPool, tmp_path: Path, is_killed: bool
) -> None:
    def kill(name: str) -> None:
        for process in workers.descendants():
            if process.pid in pids:
                process.kill()

    for n in range(1, LONGEST_LIFE):
        pids = eventually(workers.pids)
        trap = Trap(is_worker, "after", n, kill) if is_killed else Trap(is_worker, "after", n)
        site.proxy.trap = trap
        note = tmp_path / str(n)
        task = site.pool.add_task("asks", {"note": str(note)}, confirm="Begin?")
        site.pool.confirm(task.id)
        eventually(lambda: site.pool.get(task.id).question, 30)  # noqa: B023 - it is called here
        site.pool.answer(task.id, "yes", question="go")
        record = site.pool.wait(task.id, timeout_s=PATIENCE_S)
        site.proxy.trap = None

        assert (record.status, record.result) == (S.DONE, "asked, yes"), trap.passed
        assert [answer.answer for answer in record.answers] == ["yes"]
        assert len(lines(note)) == 1 if not is_killed else lines(note)
        assert is_killed or record.attempt == 1
        eventually(lambda: not left_over(site.redis))
        check_events(site.redis)
        site.redis.delete("taskpool:events")
        if not trap.closed.is_set():
            assert n > SHORTEST_LIFE
            return
    raise AssertionError(f"a life has no end: {trap.passed}")


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("workers", [(1, SHORT_S)], indirect=True)
def test_the_supervisor_is_killed_at_any_command(site: Site, workers: WorkerPool, tmp_path: Path) -> None:
    def make_trap(n: int) -> Trap:
        replace()
        victim = pools[-1].process
        traps.append(Trap(is_worker, "after", n, lambda _: victim.kill()))
        return traps[-1]

    def replace() -> None:
        """Starts a pool for the one that a trap has killed. A trap may close when its life has just ended."""
        if sum(trap.closed.is_set() for trap in traps) == len(pools):
            pools.append(site.start_workers())

    def meanwhile(id: str) -> None:
        eventually(lambda: traps[-1].closed.is_set() or site.pool.get(id).status is S.DONE)
        replace()

    traps: list[Trap] = []
    pools = [workers]
    swept = sweep(
        site, tmp_path, lambda place: live(site, place, meanwhile), ran_twice_at_most, make_trap, upkeep=replace
    )

    assert swept > SHORTEST_LIFE
