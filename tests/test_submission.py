"""From a TaskSpec to what is stored: what is refused, where the defaults come from, and RQ's fields."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from taskpool.errors import InvalidTask
from taskpool.operations.submit import Defaults, prepare
from taskpool.redis import keys, rq_job
from taskpool.redis.scripts import NewTask
from taskpool.types import MOST_PARENTS, MOST_TAGS, TaskSpec, TypeInfo
from taskpool.validation import TASK_ID, derived_id, new_id

INFO = TypeInfo(name="work", queue="work_queue", schema={}, timeout_s=30, max_attempts=4, result_ttl_s=70)
PLAIN = TypeInfo(name="work", queue="default", schema={})
DEFAULTS = Defaults(timeout_s=600, result_ttl_s=1000, failure_ttl_s=2000, max_attempts=2)


def prepared(info: TypeInfo = INFO, **options: Any) -> NewTask:
    spec = TaskSpec(**{"type": "work", "payload": {"n": 1}, **options})
    return prepare(spec, spec.payload, info, DEFAULTS)


def fields(task: NewTask) -> dict[Any, Any]:
    flat = (*task.shared.fields, "data", task.data, "description", task.description, *task.fields)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def test_an_id_is_one_that_rq_and_our_keys_take() -> None:
    assert TASK_ID.fullmatch(new_id())
    assert len(new_id()) <= 36


def test_ids_sort_by_time() -> None:
    ids = []
    for _ in range(3):
        ids.append(new_id())
        now_ms = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == now_ms:
            pass

    assert ids == sorted(ids)


def test_ids_do_not_repeat() -> None:
    assert len({new_id() for _ in range(10_000)}) == 10_000


def test_a_derived_id_is_always_the_same_and_listed_beside_the_one_it_comes_from() -> None:
    of = new_id()

    found = {derived_id(of, what) for what in (b"", b"a", b"b", b"a") for _ in range(2)}

    assert len(found) == 3
    assert all(TASK_ID.fullmatch(id) and len(id) == 20 and id[:8] == of[:8] for id in found)
    assert derived_id(new_id(), b"a") != derived_id(of, b"a")


def test_of_an_id_that_another_program_made_it_is_only_a_hash() -> None:
    assert derived_id("job-1", b"a") == derived_id("job-1", b"a") != derived_id("job-2", b"a")
    assert len(derived_id("job-1", b"a")) == 20


def test_what_a_submission_does_not_say_its_type_says() -> None:
    record = prepared().shared.recorded

    assert (record["queue"], record["timeout_s"], record["max_attempts"]) == ("work_queue", 30, 4)
    assert (record["result_ttl_s"], record["failure_ttl_s"]) == (70, 2000)


def test_what_neither_says_the_settings_say() -> None:
    record = prepared(TypeInfo(name="work", queue="default", schema={})).shared.recorded

    assert (record["queue"], record["timeout_s"], record["result_ttl_s"], record["failure_ttl_s"]) == (
        "default",
        600,
        1000,
        2000,
    )


def test_what_a_submission_says_goes_first() -> None:
    record = prepared(queue="q", timeout_s=1.5, max_attempts=9, result_ttl_s=8, failure_ttl_s=7).shared.recorded

    assert (record["queue"], record["timeout_s"], record["max_attempts"]) == ("q", 1.5, 9)
    assert (record["result_ttl_s"], record["failure_ttl_s"]) == (8, 7)


@pytest.mark.parametrize(
    "options",
    [
        {"queue": "default", "timeout_s": 600, "result_ttl_s": 1000, "failure_ttl_s": 2000},
        {"queue": "q", "timeout_s": 1, "result_ttl_s": 1, "failure_ttl_s": 3_000_000},
    ],
)
def test_the_hash_is_what_rq_would_save_of_such_a_job(options: dict[str, Any]) -> None:
    task = prepared(PLAIN, **options)
    job = Job.create(
        keys.ENTRY_POINT,
        args=("work", {"n": 1}),
        serializer=JSONSerializer,
        origin=options["queue"],
        timeout=options["timeout_s"],
        result_ttl=options["result_ttl_s"],
        failure_ttl=options["failure_ttl_s"],
        connection=object(),  # type: ignore[arg-type]  # nothing here connects
    )

    rqs = {name: value for name, value in job.to_dict(include_meta=False).items() if value not in ("", None)}
    ours = fields(task)
    assert rqs.keys() - ours.keys() == {"created_at", "status"}  # which add.lua writes
    assert ours.keys() - rqs.keys() == {"type"}
    for name in rqs.keys() & ours.keys() - {"data", "description"}:
        assert ours[name] == rqs[name], name


def test_rq_is_asked_once_however_many_options_callers_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared()
    monkeypatch.setattr(Job, "create", None)

    tasks = [prepared(timeout_s=1 + number / 8, result_ttl_s=number + 1) for number in range(20)]

    assert len({fields(task)["result_ttl"] for task in tasks}) == 20


def test_only_what_differs_from_the_usual_is_stored() -> None:
    usual = prepared(PLAIN, max_attempts=1)

    assert not {"tags", "max_attempts", "dependency_ids", "timeout_ms"} & fields(usual).keys()


def test_a_time_limit_in_fractions_is_kept_and_rounded_up_for_rq() -> None:
    task = prepared(timeout_s=1.25)

    assert (fields(task)["timeout"], fields(task)["timeout_ms"]) == (2, 1250)


def test_tags_and_parents_are_kept_once_in_order() -> None:
    task = prepared(tags=["b", "a", "b"], depends_on=["y", "x", "y"])

    assert (task.tags, task.parents) == (("b", "a"), ("y", "x"))
    assert fields(task)["tags"] == "b,a"


def test_delays_and_times_are_milliseconds() -> None:
    berlin = timezone(timedelta(hours=1))

    task = prepared(run_at=datetime(2026, 11, 23, 1, 0, 0, 500_000, berlin), expires_in_s=0.25)

    assert task.run_ms == datetime(2026, 11, 23, 0, 0, 0, 500_000, UTC).timestamp() * 1000
    assert (task.expires_ms, task.delay_ms) == (250, None)
    assert prepared(delay_s=1.5).delay_ms == 1500


@pytest.mark.parametrize(
    ("options", "pointers"),
    [
        ({"queue": ""}, ["/queue"]),
        ({"callback_url": "http://127.0.0.1/"}, ["/callback_url"]),
        ({"callback_url": 5}, ["/callback_url"]),
        ({"callback_url": "https://u:p@a.example"}, ["/callback_url"]),
        ({"callback_events": ["done"]}, ["/callback_events"]),
        ({"callback_url": "https://a.example", "callback_events": []}, ["/callback_events"]),
        ({"callback_url": "https://a.example", "callback_events": "done"}, ["/callback_events"]),
        ({"callback_url": "https://a.example", "callback_events": ["done", "log"]}, ["/callback_events/1"]),
        (
            {"callback_url": "https://a.example", "callback_events": ["end", []]},
            ["/callback_events/0", "/callback_events/1"],
        ),
        ({"queue": "a b"}, ["/queue"]),
        ({"queue": "a:b"}, ["/queue"]),
        ({"queue": "x" * 65}, ["/queue"]),
        ({"queue": 5}, ["/queue"]),
        ({"delay_s": -1}, ["/delay_s"]),
        ({"delay_s": float("nan")}, ["/delay_s"]),
        ({"delay_s": float("inf")}, ["/delay_s"]),
        ({"delay_s": True}, ["/delay_s"]),
        ({"delay_s": "5"}, ["/delay_s"]),
        ({"delay_s": 1e10}, ["/delay_s"]),
        ({"run_at": datetime(2026, 1, 1)}, ["/run_at"]),
        ({"run_at": "tomorrow"}, ["/run_at"]),
        ({"delay": "soon"}, ["/delay"]),
        ({"run_at": datetime(9999, 1, 1, tzinfo=UTC)}, ["/run_at"]),
        ({"run_at": datetime(2026, 1, 1, tzinfo=UTC), "delay_s": 1}, ["/run_at"]),
        ({"timeout_s": 0}, ["/timeout_s"]),
        ({"timeout_s": -5}, ["/timeout_s"]),
        ({"expires_in_s": 0}, ["/expires_in_s"]),
        ({"result_ttl_s": 0}, ["/result_ttl_s"]),
        ({"result_ttl_s": 1.5}, ["/result_ttl_s"]),
        ({"failure_ttl_s": -1}, ["/failure_ttl_s"]),
        ({"failure_ttl_s": True}, ["/failure_ttl_s"]),
        ({"max_attempts": 0}, ["/max_attempts"]),
        ({"max_attempts": 1001}, ["/max_attempts"]),
        ({"tags": "abc"}, ["/tags"]),
        ({"tags": 5}, ["/tags"]),
        ({"tags": ["ok", "a,b", "", "x" * 65, 7, "é"]}, ["/tags/1", "/tags/2", "/tags/3", "/tags/4", "/tags/5"]),
        ({"tags": [f"t{n}" for n in range(MOST_TAGS + 1)]}, ["/tags"]),
        ({"depends_on": "abc"}, ["/depends_on"]),
        ({"depends_on": ["a", "a b", "a:b", "a\n", None]}, [f"/depends_on/{n}" for n in (1, 2, 3, 4)]),
        ({"depends_on": ["a"] * (MOST_PARENTS + 1)}, ["/depends_on"]),
        ({"queue": "!", "timeout_s": 0, "tags": ["!"]}, ["/queue", "/timeout_s", "/tags/0"]),
    ],
)
def test_what_cannot_be_is_refused_with_a_pointer_for_each_fault(options: dict[str, Any], pointers: list[str]) -> None:
    spec = TaskSpec(type="work", **options)

    with pytest.raises(InvalidTask) as refused:
        prepare(spec, {}, INFO, DEFAULTS, "/3")

    assert [fault.pointer for fault in refused.value.errors] == [f"/3{pointer}" for pointer in pointers]
    assert all(fault.detail for fault in refused.value.errors)
    assert str(refused.value).startswith(f"/3{pointers[0]}: ")


@pytest.mark.parametrize("name", ["default", "A", "a-b_c.d", "0", "x" * 64])
def test_a_queue_may_be_called(name: str) -> None:
    assert prepared(queue=name).shared.queue == name


def test_the_description_reads_like_the_call() -> None:
    assert fields(prepared(payload={"width": 80, "url": "x"}))["description"] == "work(width=80, url='x')"


def test_a_long_description_is_cut_to_a_line() -> None:
    for payload in ({"text": "x" * 500}, {"text": "y\n" * 50_000}, list(range(10_000))):
        text = fields(prepared(payload=payload))["description"]
        assert len(text) <= rq_job.DESCRIPTION_LENGTH
        assert "\n" not in text
