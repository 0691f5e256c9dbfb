"""What rq-dashboard refuses with our settings: other hosts, other pages' requests, addresses of what can't exist."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from redis import Redis
from rq import Queue

from benchmarks.ports import free_port
from taskpool import TaskPool, rq_dashboard
from taskpool.redis.embedded import RedisServer
from taskpool.tasks.registry import Registry
from tests.rq_processes import SETTINGS, Dashboard, dashboard
from tests.support import PATIENCE_S

INJECTION = "x');window.ran=1;//</script><script>window.ran=1</script>"
NAMES = {"RQ_DASHBOARD_TRUSTED_HOSTS": "jobs.example.org, Other.example.org"}


@pytest.fixture(scope="module")
def pages(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """rq-dashboard as the compose file runs it, with a user and two names of its own."""
    options = (*SETTINGS, "--username", "ann", "--password", "secret")
    with dashboard(redis_server.url, tmp_path_factory.mktemp("dashboard"), options, NAMES) as pages:
        yield pages


@pytest.fixture
def port(pages: Dashboard) -> int:
    """Where it listens."""
    assert pages.client.base_url.port is not None
    return pages.client.base_url.port


@pytest.fixture
def queued(redis_url: str) -> str:
    """A task in the queue `default`: its id."""
    with TaskPool(redis_url, registry=Registry(builtins=True)) as pool:
        return pool.add_task("echo", {"message": 1}).id


CHANGES = [
    "job/{id}/delete",
    "job/{id}/requeue",
    "requeue/default",
    "queue/default/queued/empty",
    "queue/default/compact",
]


def test_it_answers_to_names_of_this_machine_and_to_those_it_is_given(pages: Dashboard, port: int) -> None:
    good = ["localhost", "LocalHost", "127.0.0.1", "[::1]", "jobs.example.org", "other.example.org:443"]
    bad = [
        "evil.example.org",
        f"evil.example.org:{port}",
        "127.0.0.1.evil.example.org",
        "localhost.evil.example.org",
        "[::1].evil.example.org",
        "localhost:80:80",
        "localhost:evil",
        "localhost@evil.example.org",
        "evil.example.org/localhost",
        "10.0.0.1",
        "jobs.example.org.",
        "",
    ]

    def answer(host: str, path: str) -> int:
        return pages.client.get(path, headers={"Host": host}).status_code

    for path in ("/", "/static/js/underscore-umd-min.js", "/0/data/queues.json", "/nothing"):
        fine = {answer(host, path) for host in (*good, f"localhost:{port}")}
        assert fine == ({404} if path == "/nothing" else {200})
        assert {answer(host, path) for host in bad} == {421}
    assert "RQ_DASHBOARD_TRUSTED_HOSTS" in pages.client.get("/", headers={"Host": "evil.example.org"}).text


def test_a_request_without_a_host_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")

        assert connection.makefile("rb").readline().split()[1] == b"421"


@pytest.mark.parametrize("change", CHANGES)
def test_only_a_post_of_its_own_pages_changes_anything(
    change: str, pages: Dashboard, port: int, queued: str, redis: Redis
) -> None:
    path = "/" + change.format(id=queued)
    before = redis.dump(f"rq:job:{queued}"), redis.dump("rq:queue:default")
    foreign = [
        {"Origin": "http://evil.example.org"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{port}"},  # the request names 127.0.0.1
        {"Origin": "http://127.0.0.1"},
        {"Origin": f"http://127.0.0.1:{port}.evil.example.org"},
        {"Origin": f"http://evil@127.0.0.1:{port}"},
        {"Referer": "http://evil.example.org/page"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": f"http://127.0.0.1:{port}"},
        {"Sec-Fetch-Site": "none"},
    ]

    refused = [pages.client.post(path, headers=headers).status_code for headers in foreign]
    others = {method: pages.client.request(method, path).status_code for method in ("GET", "HEAD", "PUT", "DELETE")}

    assert refused == [403] * len(foreign)
    assert set(others.values()) <= {404, 405}
    assert (redis.dump(f"rq:job:{queued}"), redis.dump("rq:queue:default")) == before
    own = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}
    assert pages.client.post(path, headers=own).status_code == (409 if "requeue" in path and queued in path else 200)


def test_the_name_of_a_queue_is_one_that_can_exist(pages: Dashboard, redis: Redis) -> None:
    addresses = ["/0/view/jobs/{}/queued/8/asc/1", "/0/data/jobs/{}/queued/8/asc/1.json"]
    changes = ["/requeue/{}", "/queue/{}/queued/empty", "/queue/{}/compact"]
    names = [INJECTION.replace("/", ""), "a b", "'", '"', "\\", "é", "x" * 65, "\u2028", "a\nb", "a:b", "<b>"]

    for name in names:
        read = {pages.client.get(address.format(quote(name))).status_code for address in addresses}
        changed = {pages.client.post(change.format(quote(name))).status_code for change in changes}
        assert (read, changed) == ({404}, {404}), name
    for name in ("default", "not.yet-there_1"):
        assert {pages.client.get(address.format(name)).status_code for address in addresses} == {200}


def test_a_queue_that_rq_made_has_its_page_whatever_its_name(pages: Dashboard, redis: Redis) -> None:
    name = INJECTION.replace("/", "")
    Queue(name, connection=redis).enqueue("os.getpid")

    page = pages.client.get(f"/0/view/jobs/{quote(name)}/queued/8/asc/1").text
    queues = pages.client.get("/0/data/queues.json").text

    assert "window.ran" in page
    assert "<script>window" not in page
    assert "');window" not in page
    assert "<" not in queues


def test_other_parts_of_an_address_are_checked_too(pages: Dashboard, redis: Redis) -> None:
    for list_of in ("/0/view/jobs/default/{}", "/0/data/jobs/default/{}.json"):
        for wrong in (
            "nothing/8/asc/1",
            "queued/8/up/1",
            "queued/0/asc/1",
            "queued/1001/asc/1",
            "queued/8/asc/0",
            "queued/-8/asc/1",
            "queued/8/asc/99999999999999999999",
            "queued/eight/asc/1",
        ):
            assert pages.client.get(list_of.format(wrong)).status_code == 404, wrong
    for path in (
        "/1/view/queues",
        "/99999999999999999999/data/queues.json",
        "/0/view/job/nothing",
        "/0/data/job/%3Cb%3E.json",
    ):
        assert pages.client.get(path).status_code == 404
    assert pages.client.post("/job/nothing/requeue").status_code == 404
    assert pages.client.post("/queue/default/nothing/empty").status_code == 404


def test_strangers_are_refused_before_anything_is_looked_up(pages: Dashboard, port: int) -> None:
    paths = ["/", "/0/view/jobs/default/queued/8/asc/1", "/0/view/jobs/a%20b/queued/8/asc/1", "/0/view/job/nothing"]

    answers = {httpx.get(f"http://127.0.0.1:{port}{path}").status_code for path in paths}

    assert answers == {401}


def test_every_answer_has_the_headers_for_browsers(pages: Dashboard, port: int) -> None:
    answers = [pages.client.get(path) for path in ("/", "/static/css/main.css", "/0/data/queues.json", "/nothing")]
    answers += [httpx.get(f"http://127.0.0.1:{port}/"), pages.client.get("/", headers={"Host": "evil.example.org"})]

    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "'unsafe-inline'" not in policy
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
    assert len({answer.headers["Content-Security-Policy"] for answer in answers}) == len(answers)  # each its own nonce


@pytest.mark.long(about_s=10)
def test_a_connection_that_sends_nothing_is_closed(port: int) -> None:
    assert rq_dashboard.IDLE_S <= 60
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(rq_dashboard.IDLE_S + 30)

        assert connection.recv(1) == b""


def test_a_redis_that_is_away_is_reported(tmp_path: Path, redis_binary: str | None) -> None:
    server = RedisServer(tmp_path, binary=redis_binary)
    server.start()
    with dashboard(server.url, tmp_path) as pages:
        server.stop()

        answers = [pages.client.get(path) for path in ("/0/data/queues.json", "/0/view/workers", "/0/view/job/nothing")]

    assert [answer.status_code for answer in answers] == [503] * 3
    assert {answer.headers["Retry-After"] for answer in answers} == {"5"}


@pytest.mark.parametrize(
    ("env", "fault"),
    [
        ({"RQ_DASHBOARD_PASSWORD": "secret"}, "--username"),  # it would not be asked for
        ({"RQ_DASHBOARD_TRUSTED_HOSTS": "jobs.example.org,https://other.example.org"}, "'https://other.example.org'"),
        ({"RQ_DASHBOARD_TRUSTED_HOSTS": "jobs.example.org:8080"}, "without a port"),
    ],
)
def test_a_setting_that_would_not_protect_is_refused(env: dict[str, str], fault: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rq_dashboard", *SETTINGS, "--bind", "127.0.0.1", "--port", str(free_port())]

    run = subprocess.run(
        command,
        env={**os.environ, **env},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert run.returncode == 2
    assert fault in run.stderr
