"""A master, its replica and three sentinels as real processes: something to fail over."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from benchmarks.ports import free_port
from taskpool.redis.embedded import find_redis_server
from tests.support import eventually
from tests.tls import TlsFront

SERVICE = "tasks"
DOWN_AFTER_MS = 2000  # on a busy machine, a living server may not answer for half a second


class Server:
    """One redis-server on a port of this machine."""

    def __init__(self, binary: str, directory: Path, *arguments: str, port: int | None = None) -> None:
        directory.mkdir(exist_ok=True)
        self.port = port or free_port()
        self.command = [binary, *arguments, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory),
                        "--logfile", str(directory / "log"), "--save", "", "--appendonly", "no"]  # fmt: skip
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.admin: Any = Redis(port=self.port, socket_timeout=5)
        try:
            eventually(self._answers)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        self.admin.close()
        self.process.kill()
        self.process.wait()

    def role(self) -> str:
        return str(self.admin.info("replication")["role"])

    def _answers(self) -> bool:
        with suppress(RedisError):
            return bool(self.admin.ping())
        return False


class Sentinels:
    """The whole of it. `url` asks the sentinels; `master` and `replica` are what they were at the start.

    With a certificate (of 127.0.0.1) and its key each of them has a front that speaks TLS and is announced instead.
    """

    def __init__(
        self,
        directory: Path,
        redis_binary: str | None,
        *,
        certificate: Path | None = None,
        server_binary: str | None = None,
    ) -> None:
        """`server_binary`: what the two servers run, if it is another one than the sentinels."""
        binary = redis_binary or find_redis_server()
        servers = server_binary or binary
        self.processes: list[Server] = []
        self.fronts: dict[int, TlsFront] = {}
        try:
            self.master = self._add(Server(servers, directory / "master"))
            if certificate:
                ports = (self.master.port, *(free_port() for _ in range(4)))
                self.fronts = {port: TlsFront(port, certificate) for port in ports}
            self._master_port = self.announced(self.master.port)
            replica_port, *sentinel_ports = list(self.fronts)[1:] or [free_port() for _ in range(4)]
            replicaof = ("--replicaof", "127.0.0.1", str(self._master_port), "--repl-diskless-sync-delay", "0")
            announced = ("--replica-announce-port", str(self.announced(replica_port)))
            self.replica = self._add(Server(servers, directory / "replica", *replicaof, *announced, port=replica_port))
            eventually(lambda: self.replica.admin.info("replication")["master_link_status"] == "up")
            self.sentinels = [self._add(self._sentinel(binary, directory, port)) for port in sentinel_ports]
            eventually(lambda: all(self._sees_all(sentinel) for sentinel in self.sentinels))
        except BaseException:
            self.stop()
            raise
        hosts = ",".join(f"127.0.0.1:{self.announced(sentinel.port)}" for sentinel in self.sentinels)
        self.url = f"redis{'s' if certificate else ''}+sentinel://{hosts}/{SERVICE}"

    def announced(self, port: int) -> int:
        """The port by which clients come to the server that listens on `port`."""
        return self.fronts[port].port if self.fronts else port

    def stop(self) -> None:
        for server in reversed(self.processes):
            server.kill()
        for front in self.fronts.values():
            front.close()

    def _add(self, server: Server) -> Server:
        self.processes.append(server)
        return server

    def _sentinel(self, binary: str, directory: Path, port: int) -> Server:
        directory = directory / f"sentinel{port}"
        directory.mkdir()
        config = directory / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\nlogfile {directory / 'log'}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self._master_port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        server = Server.__new__(Server)
        server.port, server.command = port, [binary, str(config), "--sentinel"]
        server.start()
        return server

    @staticmethod
    def _sees_all(sentinel: Server) -> bool:
        seen = sentinel.admin.sentinel_master(SERVICE)
        return (seen["num-other-sentinels"], seen["num-slaves"]) == (2, 1)
