"""A master that takes no writes because its replica is frozen (`min-replicas-to-write`): nothing is lost, all waits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import ResponseError

from benchmarks.ports import free_port
from taskpool import TaskPool, TaskStatus
from taskpool.redis.embedded import RedisServer
from tests.api_client import api_process
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines, started

ECHO = {"type": "echo", "payload": {"message": "hi"}}
LEASE_S = 2.0


class Pair:
    """A master that asks for one replica, and that replica."""

    def __init__(self, directory: Path, binary: str | None, stack: ExitStack) -> None:
        port = free_port()
        common = {"bind": "127.0.0.1", "repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
        asks = {"min-replicas-to-write": "1", "min-replicas-max-lag": "2"}
        self.master = self._start(directory / "m", binary, stack, {**common, **asks, "port": str(port)})
        self.replica = self._start(directory / "r", binary, stack, common)
        with Redis.from_url(self.replica.url) as replica:
            replica.replicaof("127.0.0.1", port)
        self.admin: Any = stack.enter_context(Redis.from_url(self.master.url))
        eventually(self.takes_writes)

    @staticmethod
    def _start(directory: Path, binary: str | None, stack: ExitStack, config: dict[str, str]) -> RedisServer:
        directory.mkdir()
        server = RedisServer(directory, binary=binary, config=config)
        server.start()
        stack.callback(server.stop)
        return server

    def takes_writes(self) -> bool:
        try:
            self.admin.delete("nothing")
        except ResponseError:
            return False
        return True

    def freeze(self, stack: ExitStack) -> None:
        """Freezes the replica, and waits until the master notices."""
        self._signal(signal.SIGSTOP)
        stack.callback(self._signal, signal.SIGCONT)
        eventually(lambda: not self.takes_writes())

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)
        eventually(self.takes_writes)

    def _signal(self, number: signal.Signals) -> None:
        if self.replica.pid is not None:
            os.kill(self.replica.pid, number)


@pytest.fixture
def pair(tmp_path: Path, redis_binary: str | None) -> Iterator[tuple[Pair, ExitStack]]:
    with ExitStack() as stack:
        yield Pair(tmp_path, redis_binary, stack), stack


@pytest.mark.parametrize("slots", [1, 4])
def test_a_frozen_replica_costs_no_outcome_and_no_second_run(
    pair: tuple[Pair, ExitStack], tmp_path: Path, slots: int
) -> None:
    servers, stack = pair
    with (
        WorkerPool(servers.master.url, tmp_path / "log", lease_s=LEASE_S, slots=slots) as workers,
        WorkerPool(servers.master.url, tmp_path / "idle", lease_s=LEASE_S, env={"TASKPOOL_QUEUES": "other"}),
        api_process(servers.master.url, tmp_path / "api") as (_, url),
        httpx.Client(base_url=url, timeout=PATIENCE_S) as client,
        TaskPool(servers.master.url) as direct,
    ):
        ending = workers.submit("hang", note=tmp_path / "ending", until=tmp_path / "go", max_attempts=1)
        started(tmp_path / "ending")

        servers.freeze(stack)
        refused_at = time.monotonic()
        (tmp_path / "go").touch()
        answers = [client.post("/tasks", json=ECHO), client.get("/readyz")]
        read = client.get(f"/tasks/{ending.id}")
        eventually(lambda: time.monotonic() - refused_at > 2 * LEASE_S)  # every lease has ended by then
        servers.thaw()
        record = direct.wait(ending.id, timeout_s=PATIENCE_S)

        assert [answer.status_code for answer in answers] == [503, 503]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        assert (answers[1].json()["reads"], answers[1].json()["writes"], read.status_code) == (True, False, 200)
        assert (record.status, record.result, record.attempt, record.crashes) == (TaskStatus.DONE, "slept", 1, 0)
        assert len(lines(tmp_path / "ending")) == 1
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert workers.result().status is TaskStatus.DONE
        assert "Traceback" not in workers.log.read_text() + (tmp_path / "api").read_text()
