"""The proxies of deploy/proxy as processes, with their files as they are but for addresses, certificates and times."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.ports import free_port
from tests.support import PATIENCE_S, eventually

SAMPLES: Final = Path(__file__).parent.parent / "deploy" / "proxy"
ROOT_HOST: Final = "taskpool.example.org"
PREFIX_HOST: Final = "www.example.org"
PREFIX: Final = "/jobs"
NAMES: Final = f"DNS:{ROOT_HOST},DNS:{PREFIX_HOST}"
"""What the proxies' certificate is for."""


class Place:
    """Where a proxy runs: the folder of its files, its port, the API's port, its certificate."""

    def __init__(self, folder: Path, upstream: int, certificate: Path) -> None:
        self.folder, self.upstream, self.certificate = folder, upstream, certificate
        self.port = free_port()


def _sample(name: str, changes: Mapping[str, str]) -> str:
    text = (SAMPLES / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new)
    return text


def _nginx(place: Place) -> list[str]:
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{place.port} ssl",
        "127.0.0.1:8080": f"127.0.0.1:{place.upstream}",
        "/etc/ssl/certs/example.org.pem": str(place.certificate),
        "/etc/ssl/private/example.org.key": str(place.certificate),
        "75s": "5s",
    }
    (place.folder / "taskpool.conf").write_text(_sample("nginx.conf", changes))
    paths = " ".join(
        f"{kind}_temp_path {place.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (place.folder / "nginx.conf").write_text(
        f"daemon off; {user} pid {place.folder}/pid; worker_processes 1; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {paths} include {place.folder}/taskpool.conf; }}\n"
    )
    return ["nginx", "-e", "stderr", "-p", str(place.folder), "-c", str(place.folder / "nginx.conf")]


def _caddy(place: Place) -> list[str]:
    changes = {
        "127.0.0.1:8080": f"127.0.0.1:{place.upstream}",
        **{
            f"\n{host} {{": f"\n{host}:{place.port} {{\n\tbind 127.0.0.1\n\ttls {place.certificate} {place.certificate}"
            for host in (ROOT_HOST, PREFIX_HOST)
        },
    }
    options = "{\n\tadmin off\n\tauto_https disable_redirects\n\tservers {\n\t\tprotocols h1 h2\n\t}\n}\n"
    file = place.folder / "Caddyfile"
    file.write_text(options + _sample("Caddyfile", changes))
    return ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]


def _haproxy(place: Place) -> list[str]:
    changes = {
        "bind :443 ssl": f"bind 127.0.0.1:{place.port} ssl",
        "127.0.0.1:8080": f"127.0.0.1:{place.upstream}",
        "/etc/haproxy/certs/example.org.pem": str(place.certificate),
        "75s": "5s",
        "inter 1s": "inter 100ms",
    }
    file = place.folder / "haproxy.cfg"
    file.write_text(_sample("haproxy.cfg", changes))
    return ["haproxy", "-db", "-f", str(file)]


PROXIES: Final[Mapping[str, Callable[[Place], list[str]]]] = {"nginx": _nginx, "caddy": _caddy, "haproxy": _haproxy}


def find(program: str) -> str | None:
    """Where a proxy is; Debian keeps nginx and haproxy where only root's PATH leads."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


@contextmanager
def running(name: str, place: Place) -> Iterator[int]:
    """A proxy until the block ends: its port."""
    place.folder.mkdir()
    command = PROXIES[name](place)
    program = find(command[0])
    assert program is not None
    home = {"HOME": str(place.folder), "XDG_DATA_HOME": str(place.folder), "XDG_CONFIG_HOME": str(place.folder)}
    log = place.folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, *command[1:]], env=os.environ | home, stdout=output, stderr=output)
    try:
        eventually(lambda: _listens(place.port, process, log))
        yield place.port
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True
