"""What the chaos soak's checker finds in made-up evidence: each rule finds its fault, and nothing in a good run."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.answers import check_added, check_results, check_submissions, check_unique_keys
from benchmarks.chaos.cluster import RQ
from benchmarks.chaos.deliveries import check_followers, check_webhooks
from benchmarks.chaos.effects import check_effects
from benchmarks.chaos.evidence import Evidence, Finding
from benchmarks.chaos.followers import Told
from benchmarks.chaos.harm import Fault
from benchmarks.chaos.histories import check_histories
from benchmarks.chaos.load import Ledger, Submission
from benchmarks.chaos.mutants import MUTATIONS, mutate
from benchmarks.chaos.plan import Plan
from benchmarks.chaos.receiver import Message
from benchmarks.chaos.schedules import check_schedules
from benchmarks.chaos.witness import Effect
from taskpool.operations.flow.schedule_values import PastRun, ScheduleRecord, ScheduleStatus
from taskpool.types import Event, TaskRecord, TaskStatus, utc
from taskpool.webhooks.endpoint import new_secret, signed_headers

Check = Callable[[Evidence], Iterator[Finding]]
SECRET = new_secret()
SHORT = {"result_ttl_s": 5}
STATUS = {
    "queued": TaskStatus.QUEUED,
    "waiting": TaskStatus.WAITING,
    "started": TaskStatus.IN_PROGRESS,
    "stopping": TaskStatus.STOPPING,
    "crashed": TaskStatus.QUEUED,
    "lease_lost": TaskStatus.QUEUED,
    "snoozed": TaskStatus.SCHEDULED,
    "done": TaskStatus.DONE,
    "failed": TaskStatus.FAILED,
    "stopped": TaskStatus.STOPPED,
    "canceled": TaskStatus.CANCELED,
}


class Case:
    """Evidence in the making: one step after the other, 100 ms apart."""

    def __init__(self) -> None:
        self.ms = 0
        self.events: dict[str, list[Event]] = {}
        self.effects: dict[str, list[Effect]] = {}
        self.order: dict[tuple[str, int], int] = {}
        self.records: dict[str, TaskRecord] = {}
        self.ledger = Ledger()
        self.faults: list[Fault] = []
        self.messages: list[Message] = []
        self.told: dict[str, list[Told]] = {}

    def submit(self, id: str, *, word: str = "accepted", holder: str = "", **spec: Any) -> Submission:
        payload = {"n": 1, "batch": id, "seconds": 0, **spec.pop("payload", {})}
        submission = Submission(
            (1,), id, ({"type": "chaos", "queue": "q", "payload": payload, **SHORT, **spec},), self.ms, word,
            (id,) if word == "accepted" else (), holder=holder, answered_ms=self.ms + 10,
        )  # fmt: skip
        self.ledger.submissions.append(submission)
        return submission

    def event(self, id: str, *names: str, **data: Any) -> None:
        for name in names:
            self.ms += 100
            events = self.events.setdefault(id, [])
            started = sum(event.event == "started" for event in events)
            more = {"attempt": 1 + started} if name == "started" and "attempt" not in data else {}
            event = Event(
                id=id, seq=len(events) + 1, event=name, status=STATUS[name], at_ms=self.ms, data={**more, **data}
            )
            self.order[id, event.seq] = len(self.order)
            events.append(event)

    def effect(self, id: str, what: str, attempt: int = 1, pid: int = 7, **more: Any) -> None:
        self.ms += 100
        self.effects.setdefault(id, []).append(Effect(id, 1, attempt, what, "a", pid, self.ms, **more))

    def run(self, id: str, token: str = "", parents: Mapping[str, str] | None = None) -> None:
        """A whole life, without a fault."""
        self.event(id, "queued", "started")
        self.effect(id, "start")
        self.effect(id, "end", token=token, parents=parents or {})
        self.event(id, "done")

    def record(self, id: str, status: TaskStatus, result: Any = None) -> None:
        now = datetime.now(UTC)
        self.records[id] = TaskRecord(
            id=id, type="chaos", status=status, queue="q", payload={"n": 1, "batch": id}, created_at=now, result=result,
            seq=len(self.events[id]),
        )  # fmt: skip

    def message(self, id: str, seq: int, status: str, answer: int = 204, secret: str = SECRET) -> None:
        body = json.dumps({"id": f"{id}.{seq}", "data": {"id": id, "seq": seq, "status": status}}).encode()
        headers = signed_headers(f"msg_{id}_{seq}", 1, body, [secret])
        self.messages.append(Message(f"msg_{id}_{seq}", "1", headers["webhook-signature"], body, answer))

    def found(self, *checks: Check) -> list[str]:
        evidence = Evidence(
            plan=Plan(seed=1, seconds=60), ledger=self.ledger, events=self.events, effects=self.effects,
            faults=self.faults, records=self.records, growth={}, rolled_back=0, heal_s=0, order=self.order,
            messages=self.messages, secret=SECRET, told=self.told,
        )  # fmt: skip
        return [finding.kind for check in checks for finding in check(evidence)]


@pytest.fixture
def case() -> Case:
    return Case()


def test_nothing_is_found_in_a_good_run(case: Case) -> None:
    case.submit("p")
    case.run("p", "x")
    case.record("p", TaskStatus.DONE, {"token": "x"})
    case.submit("c", depends_on=["p"], payload={"parents": ["p"]}, callback_url="http://r")
    case.run("c", "y", {"p": "x"})
    case.record("c", TaskStatus.DONE, {"token": "y"})
    case.message("c", 3, "done", answer=500)
    case.message("c", 3, "done")
    case.told["stream"] = [Told("event", id, seq, "") for id in ("p", "c") for seq in (1, 2, 3)]

    everything = (
        check_histories, check_effects, check_submissions, check_added, check_unique_keys, check_results,
        check_webhooks, check_followers,
    )  # fmt: skip
    assert case.found(*everything) == []


@pytest.mark.parametrize(
    ("on", "end", "kinds"),
    [
        ("any", "failed", []),
        ("failure", "failed", []),
        ("failure", "done", ["order"]),
        ("success", "failed", ["order"]),
    ],
)
def test_a_task_that_starts_although_a_parent_ended_otherwise_is_found(
    case: Case, on: str, end: str, kinds: list[str]
) -> None:
    case.submit("p")
    case.event("p", "queued", "started", end)
    case.submit("c", depends_on=[{"id": "p", "on": on}])
    case.event("c", "waiting", "queued", "started")

    assert [kind for kind in case.found(check_effects) if kind == "order"] == kinds


def test_a_task_that_is_canceled_because_of_an_end_that_it_does_not_need_is_found(case: Case) -> None:
    case.submit("p")
    case.event("p", "queued", "started", "failed")
    case.submit("c", depends_on=[{"id": "p", "on": "any"}])
    case.event("c", "waiting")
    case.event("c", "canceled", reason="dependency_failed", dependency="p")

    assert "canceled" in case.found(check_effects)


@pytest.mark.parametrize(
    ("end", "data", "kinds"),
    [
        ("stopped", {}, ["stopped"]),
        ("stopped", {"reason": "lease_lost", "error": "lease lost: its worker can't be reached"}, []),
        ("stopped", {"reason": "lease_lost", "error": "its process was killed before the lease ended"}, ["stopped"]),
        ("failed", {"error": "as planned"}, ["gone"]),
        ("crashed", {"error": "its worker process ended"}, ["gone"]),
    ],
)
def test_an_attempt_that_ended_does_nothing_more_unless_its_end_is_presumed_whatever_faults_there_were(
    case: Case, end: str, data: dict[str, Any], kinds: list[str]
) -> None:
    case.submit("t", payload={"fails": 1})
    case.ledger.steered.append((0, "stop", "t", 202))
    case.faults = [
        Fault(kind, frozenset("a"), 0, 10_000, (7,)) for kind in ("freeze_pool", "kill_child", "outage", "black_hole")
    ]
    case.event("t", "queued", "started")
    case.effect("t", "start")
    case.event("t", end, **data)
    case.effect("t", "alive")

    assert case.found(check_effects) == kinds


def test_what_a_frozen_process_does_counts_for_the_attempt_that_it_began(case: Case) -> None:
    """The next attempt has the same number, because this one was given back."""
    case.submit("t")
    case.faults = [Fault("drain_pool", frozenset("a"), 0, 10_000)]
    case.event("t", "queued", "started")
    case.effect("t", "start")
    case.event("t", "queued")
    case.event("t", "started", attempt=1)
    case.effect("t", "start", pid=8)
    case.effect("t", "alive", pid=7)
    case.effect("t", "end", pid=8)
    case.event("t", "done")

    assert case.found(check_effects) == ["gone"]


def test_a_claim_that_has_not_begun_may_be_given_back(case: Case) -> None:
    case.submit("t")
    case.event("t", "queued", "started", "queued")
    case.event("t", "started", attempt=1)
    case.effect("t", "start")
    case.effect("t", "end")
    case.event("t", "done")

    assert case.found(check_effects) == []


def test_a_plain_rq_worker_may_run_a_task_that_was_given_back(case: Case) -> None:
    case.submit("t")
    case.event("t", "queued", "started", "queued")
    case.effects["t"] = [Effect("t", 1, 1, what, RQ, 9, case.ms + 100) for what in ("start", "end")]

    assert case.found(check_effects) == []


def test_an_attempt_that_has_begun_is_given_back_only_by_a_drain(case: Case) -> None:
    case.submit("t")
    case.faults = [Fault("refuse_all", frozenset("a"), 0, 10_000)]
    case.event("t", "queued", "started")
    case.effect("t", "start")
    case.effect("t", "end")
    case.event("t", "queued")
    case.event("t", "started", attempt=1)
    case.effect("t", "start")
    case.effect("t", "end")
    case.event("t", "done")

    assert case.found(check_effects) == ["once"]


@pytest.mark.parametrize(("status", "found"), [(18, []), (9, ["once"])])
def test_a_process_may_end_itself_when_it_continues_after_a_freeze(case: Case, status: int, found: list[str]) -> None:
    case.submit("t")
    case.faults = [Fault("freeze_child", frozenset("a"), 0, 10_000)]
    case.event("t", "queued", "started")
    case.effect("t", "start")
    case.event("t", "crashed", error=f"crashed: its worker process ended with exit status {status}")
    case.event("t", "started")
    case.effect("t", "start", 2, pid=8)
    case.effect("t", "end", 2, pid=8)
    case.event("t", "done")

    assert case.found(check_effects) == found


@pytest.mark.parametrize(("has_ended", "pid", "found"), [(True, 7, []), (True, 8, ["once"]), (False, 7, ["once"])])
def test_an_attempt_that_has_ended_is_given_back_if_its_process_dies_before_its_outcome_is_written(
    case: Case, has_ended: bool, pid: int, found: list[str]
) -> None:
    case.submit("a")
    case.event("a", "queued", "started")
    case.effect("a", "start")
    if has_ended:
        case.effect("a", "end")
    case.faults = [Fault("kill_fork_server", frozenset("a"), case.ms, case.ms + 50, (pid,))]
    case.event("a", "queued")
    case.event("a", "started", attempt=1)
    case.effect("a", "start", pid=9)
    case.effect("a", "end", pid=9)
    case.event("a", "done")

    assert case.found(check_effects) == found


def test_two_attempts_never_overlap_where_a_lost_lease_kills(case: Case) -> None:
    case.submit("t", on_lost_lease="kill")
    case.faults = [Fault("freeze_pool", frozenset("a"), 0, 10_000)]
    case.event("t", "queued", "started")
    case.effect("t", "start")
    case.event("t", "lease_lost", error="lease lost: its worker can't be reached")
    case.event("t", "started")
    case.effect("t", "start", 2, pid=8)
    case.effect("t", "alive", 1, pid=7)
    case.effect("t", "end", 2, pid=8)
    case.event("t", "done")

    assert case.found(check_effects) == ["overlap"]


def test_a_failure_that_was_not_meant_is_found(case: Case) -> None:
    case.submit("t")
    case.event("t", "queued", "started")
    case.effect("t", "start")
    case.event("t", "failed", error="ParentResultGone: ...")

    assert case.found(check_effects) == ["failed"]


def contend(case: Case, on_conflict: str = "reject", **more: Any) -> Submission:
    return case.submit(
        f"u{case.ms}", payload={"key": "k"}, unique_key="k", on_conflict=on_conflict, unique_until="done", **more
    )


def test_two_tasks_that_hold_one_key_are_found(case: Case) -> None:
    (first,) = contend(case).ids
    case.event(first, "queued", "started")
    (second,) = contend(case).ids
    case.event(second, "queued")
    case.event(first, "done")

    assert case.found(check_unique_keys) == ["unique"]


def test_one_task_after_the_other_may_hold_a_key(case: Case) -> None:
    (first,) = contend(case).ids
    case.event(first, "queued", "started", "done")
    (second,) = contend(case).ids
    case.event(second, "queued", "started", "done")

    assert case.found(check_unique_keys) == []


@pytest.mark.parametrize(
    ("on_conflict", "word", "kinds"),
    [
        ("reject", "conflict", []),
        ("return", "existing", []),
        ("return", "conflict", ["unique"]),
        ("reject", "existing", ["unique"]),
        ("replace", "conflict", ["unique"]),
    ],
)
def test_the_answer_about_a_holder_that_waits_is_the_one_that_was_asked_for(
    case: Case, on_conflict: str, word: str, kinds: list[str]
) -> None:
    (holder,) = contend(case).ids
    case.event(holder, "queued")
    contend(case, on_conflict, word=word, holder=holder)
    case.ms += 1000
    case.event(holder, "started", "done")

    assert case.found(check_unique_keys) == kinds


def test_a_refusal_because_of_a_task_that_has_ended_is_found(case: Case) -> None:
    (holder,) = contend(case).ids
    case.event(holder, "queued", "started", "done")
    case.ms += 1000
    contend(case, word="conflict", holder=holder)

    assert case.found(check_unique_keys) == ["unique"]


def test_a_refused_submission_that_was_stored_is_found(case: Case) -> None:
    submission = contend(case, word="conflict")
    case.event(submission.batch, "queued")
    case.record(submission.batch, TaskStatus.QUEUED)

    assert case.found(check_submissions) == ["answer"]


def test_another_answer_to_the_same_idempotent_submission_is_found(case: Case) -> None:
    case.submit("t").repeated = "answered 202 with another id"

    assert case.found(check_submissions) == ["repeated"]


def test_the_result_of_another_attempt_is_found(case: Case) -> None:
    case.submit("t")
    case.run("t", "x")
    case.record("t", TaskStatus.DONE, {"token": "y"})

    assert case.found(check_results) == ["result"]


@pytest.mark.parametrize("seen", [{}, {"p": "y"}])
def test_a_wrong_result_of_a_parent_is_found(case: Case, seen: dict[str, str]) -> None:
    case.submit("p")
    case.run("p", "x")
    case.submit("c", depends_on=["p"])
    case.run("c", "z", seen)

    assert case.found(check_results) == ["parents"]


@pytest.mark.parametrize(
    ("adds", "children", "found"), [(2, "ab", []), (2, "a", ["added"]), (1, "ab", ["added"]), (0, "a", ["added"])]
)
def test_tasks_that_a_task_added_twice_or_not_at_all_are_found(
    case: Case, adds: int, children: str, found: list[str]
) -> None:
    case.submit("p", payload={"adds": adds})
    case.run("p", "x")
    for child in children:
        case.event(child, "queued", "started")
        case.effect(child, "start", batch="p+")
        case.effect(child, "end")
        case.event(child, "done")

    assert case.found(check_added) == found


def test_webhooks_that_never_arrive_or_differ_are_found(case: Case) -> None:
    for id in ("a", "b", "c", "d"):
        case.submit(id, callback_url="http://r")
        case.run(id)
    case.message("a", 3, "done", answer=500)
    case.message("b", 3, "failed")
    case.message("c", 3, "done", secret="whsec_" + base64.b64encode(bytes(32)).decode())
    case.message("d", 3, "done")
    case.message("d", 2, "started")

    assert case.found(check_webhooks) == ["webhook"] * 4


@pytest.mark.parametrize(
    "told",
    [
        [Told("event", "t", 1), Told("event", "t", 3)],
        [Told("event", "t", 1), Told("event", "t", 2), Told("event", "t", 2), Told("event", "t", 3)],
        [Told("event", "t", 1), Told("event", "t", 2)],
        [Told("event", "t", 1), Told("resync"), Told("event", "t", 2), Told("event", "t", 3)],
    ],
)
def test_gaps_repetitions_and_a_missing_end_of_a_follower_are_found(case: Case, told: Sequence[Told]) -> None:
    case.submit("t")
    case.run("t")
    case.told["stream"] = list(told)

    assert case.found(check_followers) == ["gap"]


def test_attempts_that_are_given_back_or_snoozed_do_not_count(case: Case) -> None:
    case.submit("t")
    case.event("t", "queued", "started")
    case.event("t", "crashed", error="crashed: ...; it isn't known which, so none is charged")
    case.event("t", "started", attempt=1)
    case.event("t", "snoozed")
    case.event("t", "queued")
    case.event("t", "started", attempt=1)
    case.event("t", "done")

    assert case.found(check_histories) == []


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_text_that_a_mutation_changes_is_there(mutation: str, tmp_path: Path) -> None:
    assert mutate(mutation, tmp_path) == tmp_path


def of_schedule(*runs: tuple[int, str, int | None]) -> ScheduleRecord:
    """A schedule whose history has these runs: the second, the outcome, and until when they were missed."""
    history = [
        PastRun(
            occurrence=utc(s * 1000),
            at=utc(s * 1000),
            outcome=outcome,
            until=None if until is None else utc(until * 1000),
        )
        for s, outcome, until in runs
    ]
    status = ScheduleStatus.ACTIVE
    return ScheduleRecord(name="s", status=status, words="", task={}, history=tuple(reversed(history)))


@pytest.mark.parametrize(
    ("runs", "tasks", "count"),
    [
        ([(2, "submitted", None), (4, "submitted", None)], [2, 4], 0),
        ([(2, "submitted", None), (4, "missed", 10), (10, "submitted", None)], [2, 10], 0),
        ([(2, "submitted", None)], [2, 2], 1),
        ([(2, "submitted", None), (6, "submitted", None)], [2, 6], 1),
        ([(2, "submitted", None), (2, "submitted", None)], [2], 1),
        ([(2, "refused", None)], [], 1),
        ([], [], 1),
    ],
)
def test_runs_of_a_schedule_that_come_twice_or_get_lost_are_found(
    runs: list[tuple[int, str, int | None]], tasks: list[int], count: int
) -> None:
    records = {
        str(number): TaskRecord(
            id=str(number),
            type="chaos",
            status=TaskStatus.DONE,
            queue="fast",
            payload={},
            schedule="s",
            occurrence=utc(second * 1000),
        )
        for number, second in enumerate(tasks)
    }

    found = list(check_schedules({"s": of_schedule(*runs)}, (), records))

    assert [finding.kind for finding in found] == ["schedule"] * count
