"""Schedules that are declared in code: who makes, changes and withdraws them, and when they run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis

from taskpool import Cron, Every, Registry, TaskPool, TaskSpec, task
from taskpool.cli.__main__ import main
from taskpool.errors import ConfigurationError, ScheduleConflict, ScheduleNotFound
from taskpool.operations.catalog import PoolInfo, publish, retire
from taskpool.operations.flow.declared import Declarations, declare, declares
from taskpool.operations.flow.schedule_values import ScheduleStatus
from taskpool.tasks.schedule import DeclaredSchedule, Times
from taskpool.tasks.task import Task
from taskpool.testing import InlinePool
from tests.support import eventually
from tests.worker_pool import WorkerPool

DAILY, HOURLY = Cron("0 2 * * *", tz="Europe/Berlin"), Every("1h")


@task("report")
def report(n: int = 0) -> None: ...


def module(*schedules: tuple[str, Times], place: str = "jobs.py:7", name: str = "jobs") -> Declarations:
    return {name: [DeclaredSchedule(each, times.timing(), "default", place) for each, times in schedules]}


class Fleet(TaskPool):
    """Worker pools that live side by side, each with what its modules declare."""

    def __init__(self, redis_url: str, registry: Registry) -> None:
        super().__init__(redis_url, registry=registry)
        self._loaded: dict[str, Declarations] = {}
        self._ids = itertools.count()

    def start(self, modules: Declarations) -> str:
        """Starts a pool that has loaded these modules; its id."""
        id = f"p{next(self._ids)}"
        self._loaded[id] = modules
        self.rounds()
        return id

    def stop(self, id: str) -> None:
        del self._loaded[id]
        self.store.carry_out(retire(id))

    def rounds(self) -> list[str]:
        """Each pool makes two rounds, in turn; what is in the way."""
        live = []
        for id, modules in self._loaded.items():
            live.append(PoolInfo(id=id, host="h", pid=1, queues=(), types=(), workers=(), declares=declares(modules)))
            self.store.run(publish(live[-1], [], ttl_s=60))
        return [
            warning
            for _ in range(2)
            for modules in self._loaded.values()
            for warning in self.store.carry_out(declare(modules, live))
        ]

    def names(self) -> list[str]:
        return [each.name for each in self.list_schedules().items]


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    registry = Registry()
    registry.add(report)
    with Fleet(redis_url, registry) as fleet:
        yield fleet


def test_a_pool_makes_what_its_modules_declare(fleet: Fleet) -> None:
    fleet.start(module(("report", DAILY)))

    record = fleet.get_schedule("report")
    assert (record.cron, record.tz, record.task, record.declared_at) == (
        "0 2 * * *",
        "Europe/Berlin",
        {"type": "report", "payload": {}},
        "jobs.py:7",
    )
    assert record.status is ScheduleStatus.ACTIVE
    fleet.rounds()
    assert fleet.get_schedule("report").updated_at == record.updated_at


def test_the_newest_deployment_wins_and_an_old_pool_that_starts_again_changes_nothing(fleet: Fleet) -> None:
    old, new = module(("report", DAILY)), module(("report", HOURLY), place="jobs.py:9")
    first = fleet.start(old)

    second = fleet.start(new)
    assert fleet.get_schedule("report").words == "Every hour"
    fleet.stop(first)
    third = fleet.start(old)
    assert (fleet.get_schedule("report").words, fleet.get_schedule("report").declared_at) == ("Every hour", "jobs.py:9")

    fleet.stop(second)  # the new deployment is taken back
    fleet.rounds()
    assert fleet.get_schedule("report").words.startswith("At 02:00")
    fleet.stop(third)


def test_a_moved_line_is_no_new_declaration(fleet: Fleet) -> None:
    fleet.start(module(("report", DAILY)))
    fleet.start(module(("report", HOURLY)))

    fleet.start(module(("report", DAILY), place="jobs.py:99"))

    assert fleet.get_schedule("report").words == "Every hour"


def test_only_a_pool_that_has_loaded_the_module_withdraws_a_schedule(fleet: Fleet) -> None:
    first = fleet.start(module(("report", DAILY)))

    fleet.start(module(("other", DAILY), name="elsewhere"))
    fleet.stop(first)
    fleet.rounds()
    assert fleet.names() == ["other", "report"]
    assert fleet.get_schedule("report").status is ScheduleStatus.UNDECLARED

    fleet.start(module())
    assert fleet.names() == ["other"]
    fleet.start(module(("report", DAILY)))  # an old pool starts again
    assert fleet.names() == ["other"]


def test_a_pause_survives_deployments_and_other_changes_are_refused_with_the_place(fleet: Fleet) -> None:
    fleet.start(module(("report", DAILY)))
    fleet.pause_schedule("report")

    fleet.start(module(("report", HOURLY)))

    paused = fleet.get_schedule("report")
    assert (paused.status, paused.words) == (ScheduleStatus.PAUSED, "Every hour")
    with pytest.raises(ScheduleConflict, match=r"declared at jobs\.py:7"):
        fleet.set_schedule("report", DAILY, TaskSpec(type="report"))
    with pytest.raises(ScheduleConflict, match=r"declared at jobs\.py:7"):
        fleet.remove_schedule("report")
    assert fleet.resume_schedule("report").status is ScheduleStatus.ACTIVE
    assert fleet.run_schedule("report").id


def test_the_command_line_says_that_one_without_a_live_declarer_does_not_run(fleet: Fleet, redis_url: str) -> None:
    pool = fleet.start(module(("report", DAILY)))
    while_live = CliRunner().invoke(main, ["schedule", "next", "report", "--redis-url", redis_url])
    fleet.stop(pool)

    shown = CliRunner().invoke(main, ["schedule", "next", "report", "--redis-url", redis_url])

    assert while_live.output.endswith("Declared at jobs.py:7\n")
    assert shown.output.endswith("Declared at jobs.py:7; no live worker pool declares it, so it doesn't run\n")


def test_one_without_a_live_declarer_can_be_removed_by_hand(fleet: Fleet) -> None:
    fleet.stop(fleet.start(module(("report", DAILY))))

    fleet.remove_schedule("report")

    with pytest.raises(ScheduleNotFound):
        fleet.get_schedule("report")


def test_one_that_was_made_by_hand_is_left_alone(fleet: Fleet) -> None:
    fleet.set_schedule("report", HOURLY, TaskSpec(type="report", payload={"n": 3}))
    fleet.start(module(("report", DAILY)))

    (warning,) = set(fleet.rounds())

    assert warning == "the schedule 'report', declared at jobs.py:7, was made by hand as well; remove that one"
    assert fleet.get_schedule("report").task["payload"] == {"n": 3}


def test_a_schedule_that_two_modules_declare_is_reported(fleet: Fleet) -> None:
    fleet.start(module(("report", DAILY)))
    fleet.start(module(("report", HOURLY), name="jobs2", place="jobs2.py:1"))

    assert set(fleet.rounds()) == {"the schedule 'report' is declared twice: at jobs.py:7 and at jobs2.py:1"}
    assert fleet.get_schedule("report").words.startswith("At 02:00")


def test_of_many_declarations_those_of_live_pools_and_the_newest_are_known(fleet: Fleet, redis_url: str) -> None:
    fleet.start(module(("report", Every(100))))
    for seconds in range(200, 230):
        fleet.stop(fleet.start(module(("report", Every(seconds)))))

    with Redis.from_url(redis_url) as redis:
        assert redis.hlen("taskpool:declaring:jobs") <= 21
    fleet.rounds()
    assert fleet.get_schedule("report").every == 100


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ('Cron("0 25 * * *")', "schedule: cron: the hour '25' is invalid"),
        ('"0 2 * * *"', "schedule must be a Cron, an Every or an At"),
        ('Cron("0 2 * * *")', "each field needs a default"),
    ],
)
def test_a_faulty_declaration_is_refused_when_its_module_is_loaded(tmp_path: Path, schedule: str, text: str) -> None:
    file = tmp_path / "faulty_jobs.py"
    file.write_text(
        f"from taskpool import Cron, task\n\n\n@task('faulty', schedule={schedule})\ndef faulty(n: int) -> None: ...\n"
    )

    with pytest.raises(ConfigurationError) as refused:
        Registry([str(file)])

    assert text in str(refused.value)
    assert "faulty_jobs.py:4" in str(refused.value)


def test_a_registry_knows_the_schedules_of_each_module(tmp_path: Path) -> None:
    (tmp_path / "with_jobs.py").write_text(
        "from taskpool import Every, task\n\n\n@task('a', schedule=Every(5), queue='q')\ndef a() -> None: ...\n"
    )
    (tmp_path / "without_jobs.py").write_text("from taskpool import task\n\n\n@task('b')\ndef b() -> None: ...\n")

    found = Registry([str(tmp_path / "with_jobs.py"), str(tmp_path / "without_jobs.py")], builtins=True).schedules()

    assert found["without_jobs"] == []
    ((name, timing, queue, place),) = found["with_jobs"]
    assert (name, timing.every, queue) == ("a", 5, "q")
    assert place.endswith("with_jobs.py:4")


runs: list[datetime | None] = []


class Nightly(Task):
    type = "nightly"
    schedule = DAILY

    def run(self, ctx: object) -> None:
        runs.append(ctx.occurrence)  # type: ignore[attr-defined]


def test_an_inline_pool_fires_them_as_time_passes_through_both_changes_of_the_clock() -> None:
    for start, expected in (
        (datetime(2026, 10, 24, 12, tzinfo=UTC), [(25, 0), (26, 1)]),
        (datetime(2027, 3, 27, 12, tzinfo=UTC), [(28, 1), (29, 0)]),
    ):
        runs.clear()
        with InlinePool(Nightly, now=start) as pool:
            records = [*pool.advance(hours=24), *pool.advance(hours=24)]

        assert [(run.day, run.hour) for run in runs if run] == expected
        assert [record.schedule for record in records] == ["nightly", "nightly"]
        assert [record.occurrence for record in records] == runs


def test_an_inline_pool_fires_more_than_one_schedule_in_order() -> None:
    with InlinePool(report, now=datetime(2026, 1, 1, tzinfo=UTC)) as pool:
        pool.set_schedule("a", Every("40m"), TaskSpec(type="report", payload={"n": 1}))
        pool.set_schedule("b", Every("1h", overlap="skip"), TaskSpec(type="report", payload={"n": 2}))
        records = pool.advance("2h")

        assert [record.schedule for record in records] in (
            ["a", "b", "a", "a", "b"],
            ["a", "b", "a", "b", "a"],
        )
        assert pool.now - datetime(2026, 1, 1, tzinfo=UTC) < timedelta(hours=2, seconds=5)


@pytest.mark.processes
@pytest.mark.long(about_s=8)
def test_a_real_pool_declares_fires_and_withdraws(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "declared_jobs.py"
    code = "from taskpool import Every, task\n\n\n@task('tick', schedule=Every(1))\ndef tick() -> None: ...\n"
    file.write_text(code)
    with TaskPool(redis_url) as pool:
        with WorkerPool(redis_url, tmp_path / "log", tasks=file):
            eventually(lambda: any(each.status == "done" for each in pool.list_tasks(type="tick").items))
            assert pool.get_schedule("tick").status is ScheduleStatus.ACTIVE
        file.write_text(code.replace(", schedule=Every(1)", ""))
        with WorkerPool(redis_url, tmp_path / "log2", tasks=file):
            eventually(lambda: not pool.list_schedules().items)
