"""How to start each service, and what a request to it looks like."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from benchmarks.processes import Command, Workers
from benchmarks.tasks import increment
from taskpool.access import keyring
from taskpool.access.api_key import PLAIN_SCOPES, KeySpec
from taskpool.access.audit import Actor
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.redis.store import Store
from taskpool.tasks.registry import Registry

START_TIMEOUT_S: Final = 60.0
DAY_S: Final = 86_400


@dataclass(frozen=True)
class Service:
    """`start` gives the command for a port and a Redis; `share`: of the requests that the quick ones get.

    `submit` and `read` are the path and the body (None: GET) of a request; `read` is given an id. `headers` makes Redis
    ready for it, and gives what its requests have in their heads besides.
    """

    start: Callable[[int, str], Command]
    submit: tuple[str, Any]
    read: Callable[[str], str]
    accepted: bytes = b"202"
    id_field: str = "id"
    share: float = 1.0
    headers: Callable[[str], str] = lambda redis_url: ""


def uvicorn(app: str) -> Callable[[int, str], Command]:
    """One uvicorn process on uvloop and httptools, without an access log, as `python -m taskpool_api` runs it."""
    options = [
        "--host",
        "127.0.0.1",
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        "--no-access-log",
        "--no-proxy-headers",
        "--no-server-header",
        "--log-level",
        "error",
    ]

    def command(port: int, redis_url: str) -> Command:
        return Command(["-m", "uvicorn", app, "--port", str(port), *options], {"BENCHMARK_REDIS_URL": redis_url})

    return command


def ours(port: int, redis_url: str) -> Command:
    """`python -m taskpool_api`, with its defaults."""
    return Command(["-m", "taskpool_api"], {"TASKPOOL_REDIS_URL": redis_url, "TASKPOOL_PORT": str(port)})


def beside(redis_url: str) -> str:
    """Another database of the same Redis: where there is a key, everybody needs one."""
    return f"{redis_url}?db=1" if redis_url.startswith("unix") else f"{redis_url.rpartition('/')[0]}/1"


def ours_with_a_key(port: int, redis_url: str) -> Command:
    """The same where callers need a key."""
    return ours(port, beside(redis_url))


def make_key(redis_url: str) -> str:
    """The header of a caller that has one."""
    publish_task(beside(redis_url))
    store = Store(beside(redis_url))
    by = Actor(key=None, name="benchmark", project=None, address="")
    _, text = store.carry_out(keyring.create(KeySpec(name="benchmark", scopes=PLAIN_SCOPES), by))
    store.close()
    return f"Authorization: Bearer {text}\r\n"


def flower(port: int, redis_url: str) -> Command:
    """Flower, with its API open to anybody."""
    options = ["--address=127.0.0.1", f"--port={port}", "--logging=error"]
    environment = {"BENCHMARK_REDIS_URL": redis_url, "FLOWER_UNAUTHENTICATED_API": "true"}
    return Command(["-m", "celery", "-A", "benchmarks.web.celery_app", "flower", *options], environment)


TASK: Final = {"type": "increment", "payload": {"n": 1}}

SERVICES: Final = {
    "taskpool": Service(ours, ("/tasks", TASK), "/tasks/{}".format),
    "with_a_key": Service(ours_with_a_key, ("/tasks", TASK), "/tasks/{}".format, headers=make_key),
    "bare": Service(uvicorn("benchmarks.web.bare:app"), ("/tasks", TASK), "/tasks/{}".format),
    "fastapi_rq": Service(uvicorn("benchmarks.web.fastapi_rq:app"), ("/tasks", TASK), "/tasks/{}".format, share=0.2),
    "flower": Service(
        flower,
        ("/api/task/async-apply/increment", {"kwargs": {"n": 1}}),
        "/api/task/result/{}".format,
        accepted=b"200",
        id_field="task-id",
        share=0.2,
    ),
}


def request(method: str, path: str, body: Any = None, headers: str = "") -> bytes:
    """One request as it goes over the wire."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\nUser-Agent: benchmark\r\n"
    head += headers
    if content:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"\r\n" + content


def wait_until_they_answer(ports: Sequence[int], workers: Workers) -> None:
    """Raises ChildProcessError when a service isn't there in START_TIMEOUT_S."""
    deadline = time.monotonic() + START_TIMEOUT_S
    for port in ports:
        while True:
            workers.check_alive()
            try:
                httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
                break
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise ChildProcessError(f"nothing answers at port {port}:\n{workers.tail()}") from None
                time.sleep(0.05)


def publish_task(redis_url: str) -> None:
    """Announce the task type, as a worker pool would."""
    registry = Registry()
    registry.add(increment)
    pool = PoolInfo(id="benchmark", host="", pid=1, queues=("default",), types=("increment",), workers=())
    store = Store(redis_url)
    store.run(publish(pool, [task_type.info() for task_type in registry], ttl_s=DAY_S))
    store.close()
