"""The Redis of a soak: one append-only server behind a proxy, or a master with a replica and sentinels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.exceptions import RedisError

from benchmarks.chaos.waiting import await_true
from taskpool.redis.embedded import RedisServer
from tests.sentinels import SERVICE, Sentinels, Server
from tests.shifted_clock import ShiftedClock

NEVER_MS: Final = 3_600_000
PAUSE_MS: Final = 120_000
"""Longer than any failover: what the old master took in between would be lost."""


class SingleRedis:
    """One server with an append-only file."""

    def __init__(self, directory: Path, binary: str | None) -> None:
        self.server = RedisServer(directory, binary=binary, config={"appendonly": "yes", "appendfsync": "everysec"})
        self.server.start()

    @property
    def url(self) -> str:
        return self.server.url

    @contextmanager
    def connected(self) -> Iterator[Redis]:
        """A connection to it, past the bad network."""
        with Redis.from_url(self.url, socket_timeout=5) as redis:
            yield redis

    def close(self) -> None:
        self.server.stop()


class SentinelRedis:
    """A master, its replica and three sentinels. The clocks of the two servers can be stepped.

    A failover loses what the replica has not received, which is documented. So each failover here waits first until
    the replica has everything, while the master takes no writes: then nothing may be lost.
    """

    def __init__(self, directory: Path, binary: str | None) -> None:
        self.clock = ShiftedClock(directory / "clock", binary)
        self._sentinels = Sentinels(directory, binary, server_binary=self.clock.binary)
        self.url = self._sentinels.url
        self._master, self._replica = self._sentinels.master, self._sentinels.replica
        for sentinel in self._sentinels.sentinels:
            # On a busy machine they would take a living master for dead. Two masters lose writes.
            sentinel.admin.execute_command("SENTINEL", "SET", SERVICE, "down-after-milliseconds", NEVER_MS)

    @contextmanager
    def connected(self) -> Iterator[Redis]:
        """A connection to the present master."""
        with Redis(port=self._master.port, socket_timeout=5) as redis:
            yield redis

    def fail_over(self) -> None:
        """The master dies; the replica takes its place; the old master comes back as its replica."""
        old, new = self._master, self._replica
        self._catch_up(old, new)
        old.kill()
        self._promote(new)
        old.command = [*_without_master(old.command), "--replicaof", "127.0.0.1", str(new.port)]
        old.start()
        self._swap()

    def switch_over(self) -> None:
        """Tells the sentinels to make the replica the master; both live on."""
        old, new = self._master, self._replica
        self._catch_up(old, new)
        self._promote(new)
        # The sentinels would demote it, too, but not while they can't publish there, because of the pause.
        old.admin.execute_command("REPLICAOF", "127.0.0.1", str(new.port))
        for kind in ("normal", "pubsub"):
            old.admin.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        old.admin.execute_command("CLIENT", "UNPAUSE")
        self._swap()

    def close(self) -> None:
        self._sentinels.stop()

    def _promote(self, new: Server) -> None:
        """Tells the sentinels to make it the master."""

        def is_under_way() -> bool:
            try:
                self._sentinels.sentinels[0].admin.execute_command("SENTINEL", "FAILOVER", SERVICE)
            except RedisError:  # it still looks after the last failover, or hasn't heard of the replica lately
                return _role(new) == "master"
            return True

        await_true("the sentinels' consent", is_under_way)
        await_true("the new master", lambda: _role(new) == "master")

    def _swap(self) -> None:
        self._master, self._replica = self._replica, self._master
        self._await_replica()

    def _catch_up(self, master: Server, replica: Server) -> None:
        master.admin.execute_command("CLIENT", "PAUSE", PAUSE_MS, "WRITE")

        def is_equal() -> bool:
            with suppress(RedisError):
                have: Any = replica.admin.info("replication")
                wanted: Any = master.admin.info("replication")
                return bool(
                    have["master_link_status"] == "up" and have["slave_repl_offset"] >= wanted["master_repl_offset"]
                )
            return False

        await_true("the replica has everything", is_equal)

    def _await_replica(self) -> None:
        replica = self._replica

        def is_up() -> bool:
            with suppress(RedisError):
                return bool(replica.admin.info("replication")["master_link_status"] == "up")
            return False

        await_true("the replica", is_up)


def _role(server: Server) -> str:
    with suppress(RedisError):
        return server.role()
    return ""


def _without_master(command: list[str]) -> list[str]:
    if "--replicaof" not in command:
        return command
    at = command.index("--replicaof")
    return [*command[:at], *command[at + 3 :]]
