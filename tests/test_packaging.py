"""The installed package: its names, its files, and that it lives beside packages of the user's with common names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.ports import free_port
from tests.support import PATIENCE_S, eventually

ROOT: Final = Path(__file__).parent.parent
SETUPTOOLS: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS: Final = {
    "taskpool": "taskpool",
    "taskpool_api": "api",
    "taskpool_dashboard": "dashboard",
    "taskpool_workers": "workers",
}
USER_PACKAGES: Final = ("api", "workers", "dashboard", "tests", "benchmarks")


def folder_of(package: str) -> Path:
    top, *below = package.split(".")
    return ROOT.joinpath(FOLDERS[top], *below)


def test_every_folder_with_code_is_a_listed_package() -> None:
    found = {
        ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }

    assert sorted(found) == sorted(SETUPTOOLS["packages"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in tracked.splitlines():  # not the tree itself: setuptools would leave its build folder there
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_brings_only_names_that_start_with_taskpool(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.partition("/")[0].partition("-")[0] for name in names} == {*FOLDERS, "taskpool_jobs"}


def test_the_wheel_has_every_file_that_the_folders_have(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    kept = {
        str(Path(package) / path.relative_to(ROOT / folder))
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == kept


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, and with the dependencies of this one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    ours = {*FOLDERS}
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.suffix != ".pth" and "editable" not in entry.name and not entry.name.startswith(tuple(ours)):
            (packages / entry.name).symlink_to(entry)
    into = [f"--python={home / 'bin' / 'python'}", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *into], check=True, timeout=120)
    return home / "bin" / "python"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of the user's, whose packages have the most common names."""
    for name in USER_PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "mailer.py").write_text(f"def send(to: str) -> str:\n    return f'{name} to {{to}}'\n")
    imports = "".join(f"from {name}.mailer import send as send_{name}\n" for name in USER_PACKAGES)
    calls = ", ".join(f"send_{name}(to)" for name in USER_PACKAGES)
    (tmp_path / "mytasks.py").write_text(
        f"from taskpool import task\n{imports}\n\n"
        f"@task('send')\ndef send(to: str) -> list[str]:\n    return [{calls}]\n"
    )
    return tmp_path


def request(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
        return json.load(answer)


def is_ready(url: str) -> bool:
    try:
        return bool(request(f"{url}/readyz"))
    except OSError:
        return False


@pytest.fixture(params=["from the current directory", "with PYTHONPATH"])
def service(request: pytest.FixtureRequest, python: Path, project: Path) -> Iterator[str]:
    """`taskpool up` of the installed package in the user's project; its URL."""
    port = free_port()
    outside = ("PYTHONPATH", "TASKPOOL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    if request.param == "with PYTHONPATH":
        environment["PYTHONPATH"] = "."
    command = [str(python.with_name("taskpool")), "up", "--tasks", "mytasks.py", "--workers", "1", "--port", str(port)]
    log, url = project / "up.log", f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        up = subprocess.Popen(command, cwd=project, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: up.poll() is not None or is_ready(url))
        assert up.poll() is None, log.read_text()
        yield url
    finally:
        up.send_signal(signal.SIGTERM)
        assert up.wait(PATIENCE_S) == 0, log.read_text()


@pytest.mark.long(about_s=15)
def test_task_files_import_packages_that_are_called_as_our_folders(service: str) -> None:
    accepted = request(f"{service}/tasks", {"type": "send", "payload": {"to": "ada"}})

    ended = eventually(lambda: (task := request(f"{service}/tasks/{accepted['id']}"))["status"] == "done" and task)
    assert ended["result"] == [f"{name} to ada" for name in USER_PACKAGES]
