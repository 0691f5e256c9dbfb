"""Clients that are generated from the OpenAPI document of a running API compile, and do what it says."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from taskpool.redis.embedded import RedisServer
from tests.api_client import api_process
from tests.npm import node_modules, run
from tests.worker_pool import WorkerPool

pytestmark = pytest.mark.long(about_s=60)

FOLDER = Path(__file__).with_name("openapi_clients")
TASKS = str(Path(__file__).with_name("tasks_for_clients.py"))
EXPECTED = {
    "results": [{"street": "Lane", "colour": "blue", "size": 1, "width": 80, "back": None}, 3, 2, 1,
                [{"mailbox": "me", "host": "localhost"}, "blue"]],
    "statuses": ["done", "done", "done", "done", "done"],
    "listed": True,
}  # fmt: skip


def check(printed: str) -> None:
    """A client got what it should. Its stop may come before the last task has started: then that is canceled."""
    found = json.loads(printed)
    assert found["statuses"].pop() in ("stopped", "canceled")
    assert found == EXPECTED


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[str]:
    """An API with workers behind it."""
    folder = tmp_path_factory.mktemp("instance")
    server = RedisServer(folder, binary=redis_binary)
    server.start()
    try:
        with (
            WorkerPool(server.url, folder / "workers", tasks=TASKS, workers=2),
            api_process(server.url, folder / "api") as (_, url),
        ):
            yield url
    finally:
        server.stop()


@pytest.fixture(scope="module")
def clients(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the document, the scripts, and the packages of npm."""
    folder = tmp_path_factory.mktemp("clients") / "here"
    shutil.copytree(FOLDER, folder)
    (folder / "openapi.json").write_text(httpx.get(f"{url}/openapi.json").text)
    (folder / "node_modules").symlink_to(node_modules(FOLDER))
    return folder


def npx(folder: Path, *command: str) -> str:
    return run(folder, str(folder / "node_modules/.bin" / command[0]), *command[1:], REDOCLY_TELEMETRY="off")


def test_the_clients_of_typescript_generators_compile_and_work(url: str, clients: Path) -> None:
    with ThreadPoolExecutor() as threads:
        types = threads.submit(npx, clients, "openapi-typescript", "openapi.json", "-o", "types.ts")
        npx(clients, "openapi-ts", "-f", "openapi-ts.config.mjs")
        types.result()

    npx(clients, "tsc", "-p", ".")

    for script in ("with_openapi_typescript", "with_hey_api"):
        check(run(clients, "node", f"built/{script}.js", url))


def test_the_python_client_is_whole_and_works(url: str, clients: Path) -> None:
    (clients / "config.yml").write_text("post_hooks: []\n")

    generated = run(
        clients, sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--meta", "none",
        "--output-path", "taskpool_client", "--config", "config.yml",
    )  # fmt: skip

    assert "warning" not in generated.lower()
    check(run(clients, sys.executable, "with_openapi_python_client.py", url, PYTHONPATH=str(clients)))


def test_linters_find_no_error_in_the_document(clients: Path) -> None:
    with ThreadPoolExecutor() as threads:
        redocly = threads.submit(npx, clients, "redocly", "lint", "openapi.json", "--format", "summary")
        npx(clients, "spectral", "lint", "-r", "spectral.json", "openapi.json", "--fail-severity", "error")
        redocly.result()
