"""docker-compose.yml: each service is hardened, each command and variable is a real one, and together they work."""

from __future__ import annotations

import importlib.metadata
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from rq_dashboard.cli import run as rq_dashboard

from taskpool.cli.__main__ import main
from taskpool.redis.embedded import ServerVersion
from taskpool.rq_dashboard import HOSTS_VARIABLE
from taskpool.settings import PREFIX, SETTING_FIELDS, Settings
from tests.compose import ROOT, Stack, in_bytes, read_file, read_services, seconds, words
from tests.support import PATIENCE_S

SERVICES = read_services({})
OURS = [name for name, service in SERVICES.items() if service["image"] == "taskpool"]


def option_names(command: click.Command) -> set[str]:
    return {name for option in command.params for name in option.opts}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened(name: str) -> None:
    service = SERVICES[name]

    assert service["user"].split(":")[0].isdigit()
    assert service["user"].split(":")[0] != "0"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & service.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_takes_of_the_host_is_bounded(name: str) -> None:
    service = SERVICES[name]
    (tmpfs,) = service["tmpfs"]
    size = re.search(r"^/tmp:.*\bsize=(\w+)", tmpfs)

    assert size is not None
    assert in_bytes(size[1]) <= in_bytes(service["mem_limit"]) / 4  # it counts as memory
    assert 0 < int(service["pids_limit"]) <= 4096
    assert service["logging"]["driver"] == "json-file"
    assert in_bytes(service["logging"]["options"]["max-size"]) * int(service["logging"]["options"]["max-file"]) < 2**27


def test_every_image_is_pinned_by_its_version() -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    images = {service["image"] for service in SERVICES.values()} - {"taskpool"}

    assert len(set(bases)) == 1
    for image in (*bases, *images):
        assert re.fullmatch(r"([a-z]+:\d+\.\d+\.\d+-[a-z-]+|(prom|grafana)/[a-z]+:v?\d+\.\d+\.\d+)", image), image


def test_the_version_of_redis_has_no_known_holes() -> None:
    version = SERVICES["redis"]["image"].partition(":")[2].partition("-")[0]

    assert ServerVersion("Redis", version).security_warning is None


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_as_the_user_of_the_image(name: str) -> None:
    user = re.search(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)

    assert user is not None
    assert SERVICES[name]["user"] == user[1]
    assert SERVICES[name]["build"] == "."


def test_the_image_has_the_locked_dependencies_and_nothing_else() -> None:
    installs = re.findall(r"pip install (.*)", (ROOT / "Dockerfile").read_text())

    assert installs == [
        "--require-hashes --requirement requirements.lock",
        "--no-index --no-deps --no-build-isolation .",
    ]


def test_the_image_gets_the_sources_alone() -> None:
    everything, *kept = (ROOT / ".dockerignore").read_text().split()

    assert everything == "*"
    assert {"!api", "!taskpool", "!workers", "!pyproject.toml", "!requirements.lock"} <= set(kept)


def test_what_is_published_listens_on_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {
        "api": ["127.0.0.1:8080:8080"],
        "rq-dashboard": ["127.0.0.1:9181:9181"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_redis_is_reached_by_the_services_alone_and_keeps_its_data() -> None:
    redis = SERVICES["redis"]
    command = words(redis["command"])

    assert all(read_file()["networks"][network] == {"internal": True} for network in redis["networks"])
    assert "ports" not in redis
    assert redis["volumes"] == ["redis-data:/data"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert in_bytes(command[command.index("--maxmemory") + 1]) <= in_bytes(redis["mem_limit"]) / 2


def test_monitoring_is_started_on_request_alone() -> None:
    assert {name for name, service in SERVICES.items() if service.get("profiles")} == {"prometheus", "grafana"}
    for name in ("prometheus", "grafana"):
        assert SERVICES[name]["profiles"] == ["monitoring"]
        assert not {"data", "dashboard-data"} & set(SERVICES[name]["networks"]), "they need no Redis"


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there_and_what_is_written_is_a_declared_volume(name: str) -> None:
    declared = read_file()["volumes"]

    for volume in SERVICES[name].get("volumes", ()):
        source, place, *mode = volume.split(":")
        assert place.startswith("/")
        if source.startswith("./"):
            assert mode == ["ro"]
            # The users' own tasks; Docker makes an empty folder.
            assert (ROOT / source).exists() or source == "./tasks"
        else:
            assert (mode, source in declared) == ([], True)


def test_every_declared_volume_keeps_the_data_of_one_service() -> None:
    used = [volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]

    assert sorted(each for each in used if not each.startswith("./")) == sorted(read_file()["volumes"])


def test_no_worker_is_in_a_network_of_rq_dashboard() -> None:
    assert not set(SERVICES["rq-dashboard"]["networks"]) & set(SERVICES["worker"]["networks"])
    assert set(SERVICES["rq-dashboard"]["networks"]) & set(SERVICES["redis"]["networks"])
    assert {name for service in SERVICES.values() for name in service["networks"]} == read_file()["networks"].keys()


@pytest.mark.parametrize("name", OURS)
def test_our_services_wait_for_redis_to_answer(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_the_worker_can_be_scaled_and_has_the_time_to_drain() -> None:
    worker = SERVICES["worker"]

    assert not {"container_name", "ports", "hostname"} & worker.keys()
    assert seconds(worker["stop_grace_period"]) > float(worker["environment"]["TASKPOOL_GRACE_S"]) + 10


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_command_of_ours_is_a_real_one(name: str) -> None:
    program, subcommand, *arguments = words(SERVICES[name]["command"])
    scripts = importlib.metadata.entry_points(group="console_scripts", name=program)

    assert [script.value for script in scripts] == ["taskpool.cli:main"]
    assert subcommand in main.commands
    assert {word for word in arguments if word.startswith("--")} <= option_names(main.commands[subcommand])


def test_the_dashboards_command_is_a_real_one_and_reads_json() -> None:
    program, *arguments = words(SERVICES["rq-dashboard"]["command"])

    assert importlib.metadata.entry_points(group="console_scripts", name=program)
    assert {word for word in arguments if word.startswith("-")} <= option_names(rq_dashboard)
    assert "-j" in arguments


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_environment_of_ours_is_valid_settings(name: str) -> None:
    settings = Settings.load(SERVICES[name]["environment"])

    assert settings.redis_url == "redis://redis:6379/0"


def test_the_dashboards_environment_is_its_own_options() -> None:
    known = {f"RQ_DASHBOARD_{option.name}".upper() for option in rq_dashboard.params} | {HOSTS_VARIABLE}

    assert SERVICES["rq-dashboard"]["environment"].keys() <= known


def test_the_variables_that_look_like_settings_are_settings() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))

    assert {name for name in used if name.startswith(PREFIX)} <= {row.env for row in SETTING_FIELDS}
    assert {name for name in used if not name.startswith(PREFIX)} == {
        "API_ADDRESS",
        "DASHBOARD_PORT",
        "RQ_DASHBOARD_USERNAME",
        "RQ_DASHBOARD_PASSWORD",
        HOSTS_VARIABLE,
        *("REDIS_MAXMEMORY", "REDIS_MEMORY", "API_MEMORY", "WORKER_MEMORY", "WORKER_PIDS", "WORKER_TMP"),
        *("METRICS_KEY", "PROMETHEUS_MEMORY", "PROMETHEUS_PORT", "GRAFANA_PORT"),
    }


@pytest.fixture
def stack(tmp_path: Path, redis_binary: str | None) -> Iterator[Stack]:
    env = {
        "TASKPOOL_WORKERS": "1",
        "TASKPOOL_BUILTINS": "echo",
        "RQ_DASHBOARD_USERNAME": "ann",
        "RQ_DASHBOARD_PASSWORD": "secret",
    }
    stack = Stack(tmp_path, read_services(env), redis_binary)
    yield stack
    stack.close()


def test_the_services_run_a_task_together_and_the_dashboard_shows_it(stack: Stack) -> None:
    stack.start("redis")
    stack.await_health("redis")
    for service, name in [("worker", "worker-1"), ("worker", "worker-2"), ("api", None), ("rq-dashboard", None)]:
        stack.start(service, name)
    for service in ("api", "worker", "rq-dashboard"):
        stack.await_health(service)

    with httpx.Client(base_url=f"http://127.0.0.1:{stack.ports['api', 8080]}", timeout=PATIENCE_S) as api:
        accepted = api.post("/tasks", json={"type": "echo", "payload": {"message": "hello"}})
        task_id = accepted.json()["id"]
        ended = api.get(f"/tasks/{task_id}", params={"wait": 30}).json()

    assert accepted.status_code == 202
    assert (ended["status"], ended["result"]) == ("done", "hello")

    address = f"http://127.0.0.1:{stack.ports['rq-dashboard', 9181]}"
    with httpx.Client(base_url=address, auth=("ann", "secret"), timeout=PATIENCE_S, follow_redirects=True) as dashboard:
        page = dashboard.get("/0/view/queues")
        queues: list[dict[str, Any]] = dashboard.get("/0/data/queues.json").json()["queues"]
        finished = dashboard.get("/0/data/jobs/default/finished/8/asc/1.json").json()

        assert httpx.get(f"{address}/0/view/queues", follow_redirects=True).status_code == 401

    assert page.status_code == 200
    assert "default" in {queue["name"] for queue in queues}
    assert task_id in {job["id"] for job in finished["jobs"]}


@pytest.mark.parametrize("service", ["api", "worker"])
def test_docker_stop_ends_a_service_in_order(service: str, stack: Stack) -> None:
    stack.start("redis")
    stack.await_health("redis")
    stack.start(service)
    stack.await_health(service)

    stack.processes[service].send_signal(signal.SIGTERM)

    grace_s = seconds(stack.services[service]["stop_grace_period"])
    assert stack.processes[service].wait(grace_s) == 0, stack.log(service)
