"""docker-compose.yml in real containers: it starts, is closed in, scales, and survives what happens to containers.

`.ci/run` runs this on its own, with TASKPOOL_TEST_CONTAINERS=1: it builds images first.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.ports import free_port
from tests.compose import ROOT, in_bytes
from tests.conftest import TEST_CONTAINERS
from tests.containers import PROJECT, Deployment, NoContainers, Podman, check_package_index
from tests.support import PATIENCE_S, eventually

pytestmark = pytest.mark.skipif(not TEST_CONTAINERS, reason="images are built with TASKPOOL_TEST_CONTAINERS=1 only")

WORKERS = 2  # of a container
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The service with two worker containers, which run the image of deploy/image."""
    try:
        podman = Podman()
        podman.provide_bases()
        check_package_index()
    except NoContainers as no:
        pytest.skip(f"no containers here: {no}")
    podman.build(ROOT, "localhost/taskpool")
    podman.build(ROOT / "deploy/image", "localhost/thumbnails")
    env = {
        "API_ADDRESS": f"127.0.0.1:{free_port()}",
        "DASHBOARD_PORT": str(free_port()),
        "TASKPOOL_WORKERS": str(WORKERS),
        "TASKPOOL_BUILTINS": "echo,long_task",
    }
    stack = Deployment(podman, tmp_path_factory.mktemp("compose"), env)
    stack.down()  # what an interrupted run has left
    try:
        stack.up("--scale", "worker=2")
        for container in stack.containers():
            stack.await_health(container)
        yield stack
    finally:
        stack.down()


@pytest.fixture
def api(stack: Deployment) -> Iterator[httpx.Client]:
    """A client of the API at its published port; all services are up."""
    published = stack.services["api"]["ports"][0].rpartition(":")[0]
    with httpx.Client(base_url=f"http://{published}", timeout=PATIENCE_S) as client:
        yield client


def submit(api: httpx.Client, type: str, **payload: Any) -> str:
    """Submit a task; its id."""
    answer = api.post("/tasks", json={"type": type, "payload": payload})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(api: httpx.Client, id: str) -> dict[str, Any]:
    """The task once it has ended."""

    def look() -> dict[str, Any] | None:
        task: dict[str, Any] = api.get(f"/tasks/{id}", params={"wait": 20}).json()
        return task if "ended_at" in task else None

    return eventually(look)


def running(api: httpx.Client, ids: list[str]) -> list[dict[str, Any]]:
    """The tasks once all of them run."""

    def look() -> list[dict[str, Any]] | None:
        tasks = [api.get(f"/tasks/{id}").json() for id in ids]
        return tasks if all(task["status"] == "in_progress" for task in tasks) else None

    return eventually(look)


def host(podman_name: str, stack: Deployment) -> str:
    """The host name inside a container, with which its workers' names begin."""
    return stack.run(podman_name, "hostname").strip()


def test_every_container_is_hardened_and_bounded(stack: Deployment) -> None:
    containers = stack.containers()
    services = [stack.service(container) for container in containers]

    assert sorted(services) == ["api", "redis", "rq-dashboard", "worker", "worker"]
    for container, name in zip(containers, services, strict=True):
        service, found = stack.services[name], stack.podman.inspect(container)
        limits = found["HostConfig"]
        assert found["Config"]["User"] == service["user"]
        assert found["EffectiveCaps"] in ([], None)
        assert limits["ReadonlyRootfs"] is True
        assert limits["Memory"] == in_bytes(service["mem_limit"])
        assert limits["PidsLimit"] == int(service["pids_limit"])
        assert limits["LogConfig"]["Type"] == "json-file"
        assert limits["LogConfig"]["Size"] == "10MB"
        status = dict(line.split(":\t") for line in stack.run(container, "cat", "/proc/self/status").splitlines())
        assert {status[caps] for caps in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert status["Uid"].split() == [service["user"].partition(":")[0]] * 4
        write = "for folder in / /opt /opt/packages /srv /usr/bin /etc /tmp; do touch $folder/new && echo $folder; done"
        assert stack.run(container, "sh", "-c", f"{write}; true").split() == ["/tmp"]
        room = int(stack.run(container, "df", "--output=size", "-B1", "/tmp").split()[1])
        assert room == in_bytes(service["tmpfs"][0].partition("size=")[2].partition(",")[0])


def test_workers_reach_redis_and_not_the_dashboard(stack: Deployment) -> None:
    (worker, *_) = stack.containers("worker")
    (redis,) = stack.containers("redis")

    def looks_up(name: str) -> bool:
        return stack.podman.succeeds("exec", worker, "python", "-c", f"import socket; socket.gethostbyname({name!r})")

    assert looks_up("redis")
    assert not looks_up("rq-dashboard")
    assert stack.podman("port", redis).strip() == ""
    networks = {name: stack.podman.inspect(f"{PROJECT}_{name}") for name in ("data", "dashboard-data", "outside")}
    assert {name: network["internal"] for name, network in networks.items()} == {
        "data": True,
        "dashboard-data": True,
        "outside": False,
    }


def test_the_dashboard_answers_on_this_machine_under_its_name(stack: Deployment) -> None:
    port = stack.services["rq-dashboard"]["ports"][0].split(":")[1]

    assert httpx.get(f"http://127.0.0.1:{port}/0/data/queues.json").status_code == 200
    assert httpx.get(f"http://127.0.0.1:{port}/", headers={"Host": "evil.example.org"}).status_code == 421


def test_tasks_run_in_both_worker_containers(stack: Deployment, api: httpx.Client) -> None:
    ids = [submit(api, "long_task", duration_s=1) for _ in range(2 * WORKERS)]

    tasks = [ended(api, id) for id in ids]

    assert {task["status"] for task in tasks} == {"done"}
    hosts = {host(container, stack) for container in stack.containers("worker")}
    assert {name for name in hosts for task in tasks if name in task["worker"]} == hosts


def test_an_image_of_ones_own_has_the_package_that_its_task_needs(stack: Deployment, api: httpx.Client) -> None:
    done = ended(api, submit(api, "thumbnail", image=PIXEL))

    assert (done["status"], done["result"]["width"]) == ("done", 1)
    assert base64.b64decode(done["result"]["image"]).startswith(b"\x89PNG")


def test_an_image_of_ones_own_can_not_change_the_service(stack: Deployment, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM taskpool\nRUN pip install 'click<8.2' && python -c 'import click' \\\n"
        "    && ! touch /opt/taskpool/new && ! rm /opt/taskpool/bin/taskpool\n"
    )

    stack.podman.build(tmp_path, "localhost/taskpool-changed")

    script = "import sys; print(*sys.path)"
    path = stack.podman("run", "--rm", "--network=none", "taskpool-changed", "/opt/taskpool/bin/python", "-c", script)
    service, packages = (path.index(f"/opt/{name}/lib") for name in ("taskpool", "packages"))
    assert service < packages
    assert "taskpool" in stack.podman("run", "--rm", "--network=none", "taskpool-changed", "taskpool", "--version")


def test_the_tasks_of_a_killed_worker_container_end_in_another_one(stack: Deployment, api: httpx.Client) -> None:
    ids = [submit(api, "long_task", duration_s=4) for _ in range(2 * WORKERS)]
    victim = stack.containers("worker")[0]
    name = host(victim, stack)
    lost = [task["id"] for task in running(api, ids) if name in task["worker"]]

    stack.podman("kill", victim)

    tasks = {id: ended(api, id) for id in ids}
    assert {task["status"] for task in tasks.values()} == {"done"}
    assert {id for id, task in tasks.items() if task["attempt"] == 2} == set(lost)
    assert not any(name in task["worker"] for id, task in tasks.items() if id in lost)
    stack.podman("start", victim)
    stack.await_health(victim)


def test_a_worker_container_that_is_stopped_ends_its_tasks_first(stack: Deployment, api: httpx.Client) -> None:
    ids = [submit(api, "long_task", duration_s=4) for _ in range(2 * WORKERS)]
    running(api, ids)
    stopped = stack.containers("worker")[1]

    status = stack.stop(stopped)

    assert status == 0
    assert [(task["status"], task["attempt"]) for task in (ended(api, id) for id in ids)] == [("done", 1)] * len(ids)
    stack.podman("start", stopped)
    stack.await_health(stopped)


def test_the_service_goes_on_after_redis_was_restarted(stack: Deployment, api: httpx.Client) -> None:
    (redis,) = stack.containers("redis")
    before = submit(api, "echo", message="before")
    ended(api, before)
    later = api.post("/tasks", json={"type": "echo", "payload": {"message": "later"}, "delay_s": 5}).json()["id"]

    assert stack.stop(redis) == 0
    assert api.get("/readyz").status_code == 503
    assert api.get(f"/tasks/{before}").status_code == 503
    stack.podman("start", redis)
    stack.await_health(redis)

    eventually(lambda: api.get("/readyz").status_code == 200)  # podman's name server is slow after a restart
    assert api.get(f"/tasks/{before}").json()["result"] == "before"
    assert ended(api, later)["result"] == "later"
    assert ended(api, submit(api, "echo", message="after"))["result"] == "after"
    for container in stack.containers():
        stack.await_health(container)


def test_every_container_stops_in_order(stack: Deployment) -> None:
    statuses: dict[str, int] = {}
    for service in ("worker", "api", "redis"):  # those that need Redis first, as `docker compose stop` does
        containers = stack.containers(service)
        with ThreadPoolExecutor() as pool:
            statuses.update(zip(containers, pool.map(stack.stop, containers), strict=True))

    assert len(statuses) == 4
    assert set(statuses.values()) == {0}, statuses
