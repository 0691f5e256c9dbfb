"""docker-compose.yml in real containers: podman and podman-compose, with a storage, networks and names of their own.

Base images that can't be pulled are made from Debian's packages under the same names, with Debian's Python and Redis:
then it is the recipe, the walls around the containers and their life that are tested, not those images.
Everything is kept in HOME, so that a second run is quick.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.compose import ROOT, check_command, read_services, seconds
from tests.support import PATIENCE_S, eventually

HOME: Final = Path(tempfile.gettempdir()) / "taskpool-containers"
PROJECT: Final = "taskpool-test"
LABEL: Final = f"label=io.podman.compose.project={PROJECT}"
PROGRAMS: Final = ("podman", "runc", "iptables", "mmdebstrap")
PACKAGES: Final = "podman runc catatonit netavark aardvark-dns iptables mmdebstrap"
STANDIN: Final = "localhost/taskpool-standin"
CERTIFICATES: Final = Path("/etc/ssl/certs")

CONTAINERS_CONF: Final = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{home}/run/libpod"
[network]
network_config_dir = "{home}/networks"
[containers]
default_ulimits = ["nofile=8192:8192", "nproc=8192:8192"]
"""
STORAGE_CONF: Final = """
[storage]
driver = "overlay"
graphroot = "{home}/storage"
runroot = "{home}/run/storage"
"""
REDIS_STANDIN: Final = f"""
FROM {STANDIN}
RUN mkdir -p /data && chown 999:999 /data
VOLUME /data
WORKDIR /data
ENTRYPOINT ["sh", "-c", "exec \\"$@\\" --protected-mode no", "sh"]
"""
"""As the official image has it: the folder of the data is the user's, and other containers may connect."""


class NoContainers(Exception):
    """Containers can't be run here; the text says why."""


class Failed(AssertionError):
    """A command failed; the text has its output."""


def _run(command: list[str], timeout_s: float, **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, **options
    )
    if done.returncode:
        raise Failed(f"{shlex.join(command)}: status {done.returncode}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}")
    return done.stdout


class Podman:
    """podman with a configuration of its own.

    Raises:
        NoContainers: it can't run here.
    """

    def __init__(self) -> None:
        path = f"{os.environ['PATH']}:/usr/sbin"
        missing = [program for program in PROGRAMS if not shutil.which(program, path=path)]
        if missing or os.getuid():
            raise NoContainers(
                f"this needs root and {', '.join(missing or PROGRAMS)}; on Debian: apt install {PACKAGES}"
            )
        HOME.mkdir(mode=0o700, exist_ok=True)
        (HOME / "networks").mkdir(exist_ok=True)
        if HOME.stat().st_uid != os.getuid():
            raise NoContainers(f"{HOME} belongs to somebody else")
        configuration = {"containers.conf": CONTAINERS_CONF, "storage.conf": STORAGE_CONF}
        for name, text in configuration.items():
            (HOME / name).write_text(text.format(home=HOME))
        self.env = {
            **os.environ,
            "PATH": path,
            "CONTAINERS_CONF": str(HOME / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(HOME / "storage.conf"),
        }

    def __call__(self, *arguments: str, timeout_s: float = 120) -> str:
        """What `podman ARGUMENTS` prints.

        Raises:
            Failed: its status isn't 0.
        """
        return _run(["podman", *arguments], timeout_s, env=self.env)

    def succeeds(self, *arguments: str) -> bool:
        """Whether its status is 0."""
        try:
            self(*arguments)
        except Failed:
            return False
        return True

    def inspect(self, name: str) -> dict[str, Any]:
        """What podman knows of a container, a network or a volume."""
        (found,) = json.loads(self("inspect", name))
        return dict(found)

    def build(self, folder: Path, tag: str, file: Path | None = None) -> None:
        """Build an image."""
        options = ["--isolation", "chroot", "--network", "host", "--quiet"]
        if CERTIFICATES.exists():  # of a proxy between here and the package index
            options += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
        self("build", *options, "--file", str(file or folder / "Dockerfile"), "--tag", tag, str(folder), timeout_s=900)

    def provide_bases(self) -> None:
        """The base images of the Dockerfile and the compose file: pulled, or stand-ins.

        Raises:
            NoContainers: neither is possible, or containers don't run here.
        """
        names = [*re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.M)]
        names.append(read_services({})["redis"]["image"])
        bases = [f"docker.io/library/{name}" for name in dict.fromkeys(names)]
        for base in bases:
            if not self.succeeds("image", "exists", base) and not self._pull(base):
                self._make_standin(base)
        limits = ("--read-only", "--cap-drop=ALL", "--init", "--memory=64m", "--pids-limit=64", "--tmpfs=/tmp:size=1m")
        try:
            self("run", "--rm", "--publish=127.0.0.1::80", *limits, bases[0], "true")
        except (Failed, subprocess.TimeoutExpired) as failed:
            raise NoContainers(f"podman can't run a container here: {failed}") from failed

    def _pull(self, name: str) -> bool:
        try:
            self("pull", "--quiet", name, timeout_s=120)
        except (Failed, subprocess.TimeoutExpired):
            return False
        return True

    def _make_standin(self, name: str) -> None:
        try:
            if not self.succeeds("image", "exists", STANDIN):
                _bootstrap(HOME / "standin.tar")
                path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
                self("import", "--quiet", "--change", path, str(HOME / "standin.tar"), STANDIN)
                (HOME / "standin.tar").unlink()
            if "redis" in name:
                (HOME / "Redisfile").write_text(REDIS_STANDIN)
                self.build(HOME, name, HOME / "Redisfile")
            else:
                self("tag", STANDIN, name)
        except (Failed, subprocess.TimeoutExpired) as failed:
            raise NoContainers(f"{name} can be neither pulled nor made from packages: {failed}") from failed


def _bootstrap(tar: Path) -> None:
    """A minimal Debian, this machine's release and mirror, with Python and Redis."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.M))
    sources = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"], 60)
    suites = [line.split() for line in sources.splitlines()]
    mirrors = [uri for uri, codename in suites if codename == release.get("VERSION_CODENAME") and "security" not in uri]
    if not mirrors:
        raise Failed("this isn't a Debian whose package lists are there (apt-get update)")
    left_out = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale")]
    packages = "python3,python3-venv,python-is-python3,ca-certificates,redis-server"
    options = ["--quiet", "--mode=root", "--variant=essential", f"--include={packages}", *left_out]
    _run(["mmdebstrap", *options, release["VERSION_CODENAME"], str(tar), mirrors[0]], 600)


def check_package_index() -> None:
    """Raises NoContainers: no packages can be installed into an image."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "pip"], 60)
    except Failed as failed:
        raise NoContainers(f"no packages can be installed into an image: {failed}") from failed


class Deployment:
    """The services of docker-compose.yml in containers, the workers with the image of deploy/image."""

    def __init__(self, podman: Podman, folder: Path, env: Mapping[str, str]) -> None:
        self.podman = podman
        self.services = read_services(env)
        self._folder, self._env = folder, {**podman.env, **env}
        (folder / "tasks").mkdir()  # it is mounted
        for file in (ROOT / "docker-compose.yml", ROOT / "deploy/image/compose.yml"):
            shutil.copy(file, folder)

    def up(self, *arguments: str) -> None:
        """`podman-compose up`, without building."""
        compose = [
            sys.executable,
            "-m",
            "podman_compose",
            "-p",
            PROJECT,
            "-f",
            "docker-compose.yml",
            "-f",
            "compose.yml",
        ]
        _run([*compose, "up", "-d", "--no-build", *arguments], 300, env=self._env, cwd=self._folder)

    def down(self) -> None:
        """Remove its containers, networks and volumes. (By label: podman-compose forgets those that it scaled.)"""
        for listed, removed in (
            (("ps", "-aq"), ("rm", "-f", "--depend", "-t", "2")),
            (("network", "ls", "-q"), ("network", "rm", "-f")),
            (("volume", "ls", "-q"), ("volume", "rm", "-f")),
        ):
            if found := self.podman(*listed, "--filter", LABEL).split():
                self.podman(*removed, *found)

    def containers(self, service: str | None = None) -> list[str]:
        """The names of the containers, of one service or all."""
        of_one = ("--filter", f"label=com.docker.compose.service={service}") if service else ()
        return sorted(self.podman("ps", "-a", "--filter", LABEL, *of_one, "--format", "{{.Names}}").split())

    def service(self, container: str) -> str:
        """The service that a container belongs to."""
        return container.removeprefix(f"{PROJECT}_").rpartition("_")[0]

    def run(self, container: str, *command: str) -> str:
        """What a command in a container prints.

        Raises:
            Failed: its status isn't 0.
        """
        return self.podman("exec", container, *command)

    def await_health(self, container: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the service's health check passes in a container."""
        command = check_command(self.services[self.service(container)])
        try:
            eventually(lambda: self.podman.succeeds("exec", container, *command), timeout_s)
        except AssertionError as late:
            raise AssertionError(f"{container}: {late}\n{self.podman('logs', '--tail', '50', container)}") from None

    def stop(self, container: str) -> int:
        """Stop a container as `docker compose stop` does; its exit status."""
        grace_s = seconds(self.services[self.service(container)].get("stop_grace_period", "10s"))
        self.podman("stop", "-t", str(grace_s), container, timeout_s=grace_s + 60)
        return int(self.podman.inspect(container)["State"]["ExitCode"])
