"""Safe by default, as processes: where the API starts without a key, and its error where it doesn't."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from taskpool.access.api_key import Scope
from tests.api_client import ROOT, api_process, environment
from tests.instances import taskpool
from tests.keys import bearer, make_key
from tests.support import PATIENCE_S

ELSEWHERE = {"TASKPOOL_PUBLIC_ADDRESS": "0.0.0.0:8080"}


def refusal(redis_url: str, **variables: str) -> tuple[int, str]:
    """The exit status and the words of an API that doesn't start."""
    done = subprocess.run(
        [sys.executable, "-m", "taskpool_api"],
        env=environment(redis_url, **variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("variables", [{"TASKPOOL_HOST": "0.0.0.0"}, ELSEWHERE])
def test_where_others_reach_it_it_does_not_start_without_a_key(redis_url: str, variables: dict[str, str]) -> None:
    status, said = refusal(redis_url, **variables)

    assert status == 2
    assert said.count("\n") == 1
    for way in ("taskpool keys create", "TASKPOOL_HOST=127.0.0.1", "TASKPOOL_AUTH=off"):
        assert way in said


def test_with_a_key_it_starts_there_and_asks_for_it(redis_url: str, tmp_path: Path) -> None:
    text = make_key(redis_url)

    with api_process(redis_url, tmp_path / "log", **ELSEWHERE) as (_, url):
        answers = [httpx.get(url + "/tasks"), httpx.get(url + "/tasks", headers=bearer(text))]

    assert [answer.status_code for answer in answers] == [401, 200]
    assert "for holders of a key" in (tmp_path / "log").read_text()


def test_it_needs_no_key_where_authentication_is_switched_off(redis_url: str, tmp_path: Path) -> None:
    make_key(redis_url)

    with api_process(redis_url, tmp_path / "log", TASKPOOL_AUTH="off", **ELSEWHERE) as (_, url):
        answer = httpx.get(url + "/tasks", headers={"host": "tasks.example.org"})

    assert answer.status_code == 200
    assert "without keys (TASKPOOL_AUTH=off)" in (tmp_path / "log").read_text()


def test_on_this_machine_it_is_open_and_logs_that(redis_url: str, tmp_path: Path) -> None:
    with api_process(redis_url, tmp_path / "log") as (_, url):
        answer = httpx.get(url + "/tasks")

    assert answer.status_code == 200
    assert "for this machine only, without keys" in (tmp_path / "log").read_text()


def test_the_log_shows_neither_keys_nor_tickets(redis_url: str, tmp_path: Path) -> None:
    text = make_key(redis_url, "a", Scope.ADMIN)

    with api_process(redis_url, tmp_path / "log", TASKPOOL_LOG_LEVEL="debug") as (_, url):
        ticket = httpx.post(url + "/tickets", headers=bearer(text)).json()["ticket"]
        for path in ("/tasks", "/nowhere", f"/tasks?ticket={ticket}"):
            httpx.get(url + path, headers=bearer(text))
        socket = f"{url.replace('http', 'ws')}/ws?ticket={ticket}"
        with connect(socket, proxy=None):
            pass
        with pytest.raises(InvalidStatus):
            connect(socket, proxy=None)

    log = (tmp_path / "log").read_text()
    assert "listening on" in log
    assert [secret for secret in (ticket, text.split("_", 2)[2]) if secret in log] == []
    assert "ERROR" not in log


@pytest.mark.parametrize(("trusted", "shown"), [("127.0.0.0/8", "203.0.113.7"), ("", "127.0.0.1")])
def test_the_audit_has_the_address_that_a_trusted_proxy_forwards(
    redis_url: str, tmp_path: Path, trusted: str, shown: str
) -> None:
    admin = bearer(make_key(redis_url, "a", Scope.ADMIN))

    with api_process(redis_url, tmp_path / "log", TASKPOOL_TRUSTED_PROXIES=trusted) as (_, url):
        forwarded = {"x-forwarded-for": "198.51.100.1, 203.0.113.7"}  # the first is what the client said itself
        httpx.post(url + "/keys", json={"name": "b"}, headers={**admin, **forwarded})
        (entry,) = httpx.get(url + "/audit?limit=1", headers=admin).json()["entries"]

    assert entry["by"]["address"] == shown


def test_the_first_key_can_be_made_before_anything_runs(tmp_path: Path) -> None:
    made = taskpool(tmp_path, "keys", "create", "ops", "--scope", "admin")
    listed = taskpool(tmp_path, "keys", "list")
    revoked = taskpool(tmp_path, "keys", "revoke", made.stdout.split("_")[1])
    audit = taskpool(tmp_path, "audit")

    assert (made.returncode, made.stdout.startswith("tp_"), made.stdout.count("\n")) == (0, True, 1)
    assert "only time it is shown" in made.stderr
    assert "ops" in listed.stdout
    assert made.stdout.strip().split("_", 2)[2] not in listed.stdout + audit.stdout
    assert "is revoked" in revoked.stdout
    assert ["key.revoked" in line for line in audit.stdout.splitlines()[1:]] == [True, False]
