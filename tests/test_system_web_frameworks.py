"""The programs of docs/web-frameworks.md under real servers: every request gets the answer to its own question."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from redis import Redis

from benchmarks.ports import free_port
from taskpool.redis.embedded import RedisServer
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "web-frameworks.md").read_text("utf-8")
CLIENTS = 8
REQUESTS = 6

SITE = """
import django
from django.conf import settings

settings.configure(
    SECRET_KEY="x", ALLOWED_HOSTS=["*"], ROOT_URLCONF="site_urls", INSTALLED_APPS=["shop"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite", "OPTIONS": {"timeout": 30}}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField", LOGGING_CONFIG=None,
)
django.setup()

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

wsgi, asgi = get_wsgi_application(), get_asgi_application()
"""

URLS = """
from django.urls import path
from shop import views

urlpatterns = [
    path("greetings", views.create), path("greetings/<id>", views.result),
    path("async/greetings", views.async_create), path("async/greetings/<id>", views.async_result),
]
"""


class Site:
    """The page's programs in a directory, and a Redis and workers for them."""

    def __init__(self, directory: Path, workers: WorkerPool) -> None:
        self.directory, self.workers = directory, workers
        self.redis_url = workers.pool.redis_url

    @contextmanager
    def served(self, *command: str, tracebacks: int = 0) -> Iterator[str]:
        """The URL of this server while the block runs; it logs so many tracebacks."""
        port = free_port()
        log = self.directory / "server.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *[part.format(port=port) for part in command]],
                cwd=self.directory, env=self.environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: answers(url, process, log))
            yield url
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
        assert log.read_text().count("Traceback (most") == tracebacks, log.read_text()

    def environment(self) -> dict[str, str]:
        return {**os.environ, "TASKPOOL_REDIS_URL": self.redis_url, "PYTHONPATH": f"{self.directory}:{ROOT}"}

    def python(self, source: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", source],
            cwd=self.directory, env=self.environment(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert ended.stderr == ""
        return ended.stdout

    def connections(self) -> int:
        """How many connections the program has that is served."""
        with Redis.from_url(self.redis_url) as redis:
            return sum(each["name"] in ("taskpool", "taskpool-wait") for each in redis.client_list())


def answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        httpx.get(f"{url}/nothing", trust_env=False)
    except httpx.TransportError:
        return False
    return True


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(code)
    (directory / "shop" / "__init__.py").touch()
    (directory / "site_server.py").write_text(SITE)
    (directory / "site_urls.py").write_text(URLS)
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary=redis_binary)
    server.start()
    try:
        with WorkerPool(server.url, directory / "workers.log", tasks=directory / "tasks.py", workers=2) as workers:
            site = Site(directory, workers)
            migrate = "import site_server; from django.core.management import call_command as c; "
            site.python(migrate + "c('migrate', run_syncdb=True, verbosity=0)")
            yield site
    finally:
        server.stop()


def everybody_is_answered(url: str, path: str) -> None:
    """Several clients at once: each submits, and reads its own results."""

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE_S) as client:
            for request in range(REQUESTS):
                name = f"client {number}, request {request}"
                submitted = client.post(path, params={"name": name})
                assert submitted.status_code == 202, submitted.text
                document = submitted.json()
                id = document.get("task") or document["id"]
                found = client.get(f"{path}/{id}", params={"wait_s": 30})
                assert found.status_code == 200, found.text
                assert (found.json()["id"], found.json()["result"]) == (id, f"hello, {name}")

    with ThreadPoolExecutor(CLIENTS) as executor:
        for asking in [executor.submit(ask, number) for number in range(CLIENTS)]:
            asking.result(120)


UVICORN = ("uvicorn", "--port", "{port}", "--log-level", "warning")
GUNICORN = ("gunicorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning", "--workers", "2")


@pytest.mark.parametrize(
    ("command", "paths"),
    [
        ((*UVICORN, "fastapi_app:app"), ("/greetings", "/threads/greetings")),
        ((*GUNICORN, "--threads", "8", "--preload", "flask_app:app"), ("/greetings",)),
        ((*GUNICORN, "--preload", "site_server:wsgi"), ("/greetings", "/async/greetings")),
        ((*GUNICORN, "--threads", "4", "site_server:wsgi"), ("/greetings", "/async/greetings")),
        ((*UVICORN, "--lifespan", "off", "site_server:asgi"), ("/greetings", "/async/greetings")),
    ],
    ids=["FastAPI", "Flask, preloaded, threads", "Django, preloaded", "Django, threads", "Django, ASGI"],
)
def test_each_request_gets_its_own_answer(command: tuple[str, ...], paths: tuple[str, ...], site: Site) -> None:
    own = site.connections()

    with site.served(*command) as url:
        for path in paths:
            everybody_is_answered(url, path)
        assert site.connections() - own <= 2 * 2 * CLIENTS

    eventually(lambda: site.connections() <= own)


def test_a_task_that_is_unknown_or_has_not_ended_is_no_server_error(site: Site) -> None:
    later = site.workers.pool.add_task("greet", {"name": "Ada"}, delay_s=3600)

    with site.served(*UVICORN, "fastapi_app:app") as url, httpx.Client(base_url=url, trust_env=False) as client:
        for path in ("/greetings", "/threads/greetings"):
            assert client.get(f"{path}/{'a' * 20}").status_code == 404
        found = client.get(f"/greetings/{later.id}", params={"wait_s": 0})
        assert (found.status_code, found.json()["status"]) == (200, "scheduled")
    with site.served(*GUNICORN, "flask_app:app") as url:
        assert httpx.get(f"{url}/greetings/{'a' * 20}", trust_env=False).status_code == 404


def test_a_preloaded_program_that_used_its_pools_before_the_fork_is_answered_right(site: Site) -> None:
    (site.directory / "used_before.py").write_text(
        "import asyncio\n"
        "from flask_app import app, greet, pool\n"
        "from site_server import wsgi\n"
        "from shop.views import async_pool\n"
        "assert pool.wait(pool.add_task(greet, name='x').id, timeout_s=30).result == 'hello, x'\n"
        "asyncio.run(async_pool.add_task(greet, name='x'))\n"
    )

    with site.served(*GUNICORN, "--threads", "8", "--preload", "used_before:app") as url:
        everybody_is_answered(url, "/greetings")
    with site.served(*GUNICORN, "--preload", "used_before:wsgi") as url:
        everybody_is_answered(url, "/async/greetings")


def newest(site: Site) -> set[str]:
    """The ids of the newest tasks."""
    return {task.id for task in site.workers.pool.list_tasks(limit=100).items}


def test_a_transaction_that_is_rolled_back_submits_nothing(site: Site) -> None:
    before = newest(site)

    with site.served(*GUNICORN, "site_server:wsgi", tracebacks=1) as url:
        refused = httpx.post(f"{url}/greetings", params={"name": ""}, trust_env=False)
        accepted = httpx.post(f"{url}/greetings", params={"name": "Ada"}, trust_env=False)

    assert (refused.status_code, accepted.status_code) == (500, 202)
    assert newest(site) - before == {accepted.json()["task"]}
    task = site.workers.pool.wait(accepted.json()["task"], timeout_s=PATIENCE_S)
    assert (task.payload, task.result) == ({"name": "Ada"}, "hello, Ada")


def test_a_pool_of_a_module_works_in_forked_worker_processes(site: Site) -> None:
    printed = site.python(
        "import multiprocessing\n"
        "import celery_module\n"
        "celery_module.work('first')\n"
        "with multiprocessing.get_context('fork').Pool(4) as processes:\n"
        "    print(processes.map(celery_module.work, [str(n) for n in range(40)]))\n"
    )

    assert printed == f"{[f'hello, {n}' for n in range(40)]}\n"
