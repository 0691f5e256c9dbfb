"""What tasks and Redis say reaches an operator's terminal as text: no command passes on what a terminal obeys."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace
from redis import Redis
from rich.console import Console

from taskpool import Registry, task
from taskpool.cli.__main__ import main
from taskpool.cli.tasks import task_bar
from taskpool.operations.catalog import PoolInfo, publish
from tests.cli_ways import Reached

EVIL = (
    "\x1b]52;c;aGk=\x07\x1b]0;title\x1b\\\x1bP+q\x1b\\\x1b_G\x1b\\\x1b^p\x1b\\\x1b[2J\x1b[1;1H\x9b2J\x9d0;t\x9c\b\b\r\x07"
    "\x85\u2028\u2029\u202eabc\u2066\u200b\ufeff\x1b[8mhidden\x1b[31mred\n2026-11-29 12:00:00,000 INFO forged"
)
FORGED = "2026-11-29 12:00:00,000 INFO forged"


@task("evil")
def evil(text: str, fails: bool = True) -> str:
    if fails:
        raise ValueError(text)
    return text


evil.__doc__ = f"It is {EVIL}"


@pytest.fixture
def pool(redis_url: str, redis: Redis, way: list[str]) -> Iterator[Reached]:
    """A pool; all that Redis holds beside its tasks has such names as well."""
    registry = Registry()
    registry.add(evil)
    me = PoolInfo(id="p1", host=EVIL, pid=1, queues=("default",), types=("evil",), workers=())
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    worker = {"birth": now, "last_heartbeat": now, "queues": EVIL, "pid": "1", "hostname": EVIL, "state": EVIL}
    redis.sadd("rq:workers", f"rq:worker:{EVIL}")
    redis.hset(f"rq:worker:{EVIL}", mapping=worker)  # type: ignore[arg-type]
    redis.sadd("rq:queues", f"rq:queue:{EVIL}")
    with Reached(redis_url, way, registry) as pool:
        pool.store.run(publish(me, [each.info() for each in registry], ttl_s=60))
        yield pool


def run(pool: Reached, *arguments: str) -> Result:
    """What a command prints on a terminal, once it is seen to be text and colours."""
    result = CliRunner().invoke(main, [*arguments, *pool.way], color=True)
    for text in (result.stdout, result.stderr):
        plain = re.sub(r"\x1b\[[0-9;]{0,40}m", "", text)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2060-\u2069\u200b\ufeff]", plain), (
            arguments,
            text,
        )
        assert not re.search(r"\x1b\[(?:\d+;)*8m", text)
        assert FORGED not in plain.split("\n"), (arguments, text)
    return result


def test_what_tasks_and_redis_say_is_text_in_every_command(pool: Reached, redis: Redis) -> None:
    id, done = [pool.add_task("evil", {"text": EVIL, "fails": fails}).id for fails in (True, False)]
    waits = pool.add_task("evil", {"text": EVIL}, delay_s=1000).id
    running = pool.run_task(["default"], worker="w", attempt_id="a1")
    assert running is not None
    redis.hset(f"rq:job:{id}", "progress", json.dumps({"done": 1, "total": 2, "note": EVIL}))
    redis.hset(f"rq:job:{id}", "worker_name", EVIL)
    pool.log_task(running, [(1_795_435_200_123, EVIL.replace("\n", ""))])

    assert "\\u202eabc" in run(pool, "get", id).stdout
    run(pool, "watch", id, "--timeout", "0.1")
    pool.execute_task(running)
    running = pool.run_task(["default"], worker="w", attempt_id="a2")
    assert running is not None
    pool.execute_task(running)

    failed = run(pool, "get", id)
    assert "\\x1b]52;c;aGk=\\x07" in failed.stdout
    assert re.search(rf"^ +{FORGED}\b", failed.stdout, re.M)
    assert json.loads(run(pool, "watch", done).stdout) == EVIL
    assert json.loads(run(pool, "get", done, "--json").stdout)["payload"]["text"] == EVIL
    assert "\x1b[31mred" in run(pool, "logs", id).stdout
    assert json.loads(run(pool, "logs", id, "--json").stdout)["text"] == EVIL.replace("\n", "")
    for command in (
        ("get", waits), ("watch", id), ("logs", id, "--times"), ("queue",), ("queue", "--json"), ("queue", "default"),
        ("types",), ("types", "--json"), ("workers",), ("workers", "--json"), ("audit",),
        ("pause", "a", "--why", f"x{EVIL}"), ("pause", "--pool", "p1", "--why", f"x{EVIL}"), ("pools",),
        ("pools", "--json"), ("stats",), ("stats", "--json"), ("queue",), ("resume", "a"), ("resume", "--pool", "p1"),
        ("pools", "--json"), ("queue",), ("resume", "a"), ("resume", "--pool", "p1"),
        ("pause", "default", "--why", f"x{EVIL}"), ("why", waits), ("why", waits, "--json"), ("why", id),
    ):  # fmt: skip
        run(pool, *command)
    for arguments in (
        ("stop", EVIL), ("get", EVIL), ("queue", EVIL), ("logs", EVIL), ("retry", EVIL), ("watch", EVIL),
        ("submit", EVIL), ("submit", "evil", f"{EVIL}=1"), ("submit", "evil", "--queue", EVIL, "text=a"),
        ("keys", "revoke", EVIL), ("audit", "--key", EVIL), ("audit", "--what", EVIL),
        ("pause", EVIL), ("pause", "--pool", EVIL), ("resume", EVIL), ("drain", EVIL), ("why", EVIL), ("stack", EVIL),
    ):  # fmt: skip
        run(pool, *arguments)


def test_names_of_keys_are_text(redis_url: str, redis: Redis) -> None:
    pool = Reached(redis_url, ["--redis-url", redis_url], Registry())
    created = run(pool, "keys", "create", "ops", "--scope", "admin")
    id = created.stdout.split("_")[1]
    stored = redis.hget("taskpool:keys", id)
    assert isinstance(stored, bytes)
    redis.hset("taskpool:keys", id, json.dumps({**json.loads(stored), "name": EVIL, "project": EVIL}))

    assert "\\x1b]52" in run(pool, "keys", "list").stdout
    assert json.loads(run(pool, "keys", "list", "--json").stdout)["keys"][0]["name"] == EVIL


def test_a_bar_of_progress_has_no_note_that_a_terminal_obeys(redis_url: str) -> None:
    registry = Registry()
    registry.add(evil)
    out = Console(file=io.StringIO(), force_terminal=True, width=400, highlight=False, markup=False, emoji=False)
    with Reached(redis_url, [], registry) as pool, task_bar(out) as show:
        record = pool.add_task("evil", {"text": "a"})
        show(replace(record, progress={"done": 1, "total": 2, "note": EVIL}))

    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b]52" in text
    assert not re.search("\x1b\\]|\x1bP|\x1b_|[\x07\x85\x9b\x9d\u2028\u202e]", text)
