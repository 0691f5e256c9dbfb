"""taskpool check: which stored tasks would break with a new build, and what pools do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from taskpool import Registry, TaskPool
from taskpool.cli.__main__ import main
from taskpool.errors import ConfigurationError
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.operations.insight.check import STARTABLE, check_tasks, refusal_of
from taskpool.redis import keys, scripts
from taskpool.types import Exit, TaskStatus
from taskpool.types.insight import CheckReport
from tests.states import FAILURE, World
from tests.support import eventually
from tests.worker_pool import WorkerPool

S = TaskStatus
NEW = str(Path(__file__).with_name("tasks_for_check.py"))
OLD = {"width": 7}
BOTH = {"width": 7, "height": 8}


@pytest.fixture
def stored(world: World) -> World:
    """What an old build has stored: tasks in each status, some of which the new build can read."""
    world.add("failed", type="resize", payload=OLD)
    world.run(scripts.finish(world.claim(), S.FAILED, error="e", failure=FAILURE))
    world.add("good", type="resize", payload=BOTH)
    world.add("bad", type="resize", payload=OLD)
    world.add("later", type="resize", payload=OLD, delay_s=500)
    world.add("child", type="resize", payload={"width": "x"}, depends_on=["good"])
    world.add("asked", type="resize", payload={}, confirm=True)
    world.add("gone", type="removed", payload={})
    world.add("elsewhere", type="removed", payload={}, queue="other")
    return world


def report_of(world: World, **options: Any) -> CheckReport:
    return world.store.carry_out(check_tasks(Registry([NEW]), **options))


def test_all_that_would_break_is_listed_with_its_place(stored: World) -> None:
    report = report_of(stored)

    assert (report.checked, report.broken) == (8, 7)
    assert report.types == {"resize": 5, "removed": 2}
    found = {each.id: each for each in report.tasks}
    assert found.keys() == {"failed", "bad", "later", "child", "asked", "gone", "elsewhere"}
    assert (found["bad"].reason, found["bad"].status) == ("invalid_payload", S.QUEUED)
    assert "/payload/height" in found["bad"].detail
    assert (found["gone"].reason, found["gone"].detail) == ("unknown_task", "this build has no such task type")


def test_queues_and_statuses_can_be_chosen(stored: World) -> None:
    assert {each.id for each in report_of(stored, queues=["other"]).tasks} == {"elsewhere"}
    assert "failed" not in {each.id for each in report_of(stored, statuses=STARTABLE).tasks}


def test_nothing_is_changed(stored: World) -> None:
    before = stored.snapshot()

    report_of(stored)

    assert stored.since(before) == {}


def test_many_tasks_are_counted_and_some_listed(world: World) -> None:
    for number in range(250):
        world.add(f"a{number:03}", type="removed")

    report = report_of(world)

    assert (report.checked, report.broken, len(report.tasks)) == (250, 250, 100)


def test_other_programs_jobs_are_left_out(world: World) -> None:
    world.redis.hset("rq:job:alien", mapping={"data": b"\x80\x05pickle", "status": "queued", "origin": "default"})
    world.redis.sadd("rq:queues", "rq:queue:default")
    world.redis.rpush("rq:queue:default", "alien")

    assert report_of(world).checked == 0


def test_a_pool_checks_with_its_registry(stored: World) -> None:
    with TaskPool(stored.url, registry=Registry([NEW])) as pool:
        assert pool.check_tasks(queues=["other"]).broken == 1
    with TaskPool(stored.url) as pool, pytest.raises(ConfigurationError):
        pool.check_tasks()


def check(world: World, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["check", "--redis-url", world.url, "--tasks", NEW, *arguments])


def test_the_command_ends_with_a_status_for_pipelines(stored: World) -> None:
    broken = check(stored)

    assert broken.exit_code == Exit.FAILED
    assert "7 tasks checked, 6 would break." in broken.stdout  # not that of a queue which it doesn't serve
    assert json.loads(check(stored, "--json").stdout)["types"] == {"resize": 5, "removed": 1}
    assert "failed" not in [line.split()[0] for line in check(stored, "--no-failed").stdout.splitlines()]

    fine = check(stored, "--queues", "mails")

    assert (fine.exit_code, fine.stdout) == (Exit.DONE, "0 tasks checked, 0 would break.\n")


def test_a_pool_that_may_refuse_does_not_start_while_tasks_would_break(stored: World, tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError) as refused,
        WorkerPool(stored.url, tmp_path / "log", tasks=NEW, payload_check="refuse"),
    ):
        pass

    assert "would break with this build" in (tmp_path / "log").read_text(), refused.value


def test_a_pool_leaves_what_it_cannot_read_to_one_with_another_build(world: World, tmp_path: Path) -> None:
    info = PoolInfo(id="old", host="h", pid=1, queues=("default",), types=("resize",), workers=(), build="b1")
    world.run(publish(info, [], ttl_s=3600))
    world.add("bad", type="resize", payload=OLD)
    with WorkerPool(world.url, tmp_path / "log", tasks=NEW, payload_check="leave", build="b2"):
        eventually(lambda: world.get("bad").snoozes)
        assert world.get("bad").attempt == 0

        world.redis.delete(keys.POOL + "old")
        world.redis.zrem(keys.POOLS, "old")
        world.make_due("bad")
        eventually(lambda: world.get("bad").status is S.FAILED)

    assert world.get("bad").reason == "invalid_payload"


def test_why_a_pool_does_not_start_is_one_sentence(stored: World) -> None:
    text = refusal_of(report_of(stored, statuses=STARTABLE))

    assert text.startswith("6 tasks that wait would break with this build: resize (4), removed (2). The first one is ")
