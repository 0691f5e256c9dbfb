"""Who submits: over HTTP and with the Python client, single tasks and batches, and steers some of what it submitted.

Every submission stands in the ledger with what became of it. `unknown`: the connection was lost or the service said
that it is away, so the tasks may exist or not; a batch exists whole or not at all. However often it was sent, each of
its tasks exists once. `existing` and `conflict`: another task holds its unique key, so nothing was stored.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from benchmarks.chaos.plan import SHARED_QUEUE, Plan
from taskpool import TaskPool, TaskSpec
from taskpool.errors import InvalidTask, RedisUnavailable, TaskpoolError, UniqueConflict

TIMEOUT_S: Final = 4.0
RECENT: Final = 40
SOON_PURGED_S: Final = 5
INSISTS: Final = 0.3
"""How many of the submissions over HTTP have an idempotency key, and are sent again until they are answered."""
RESENDS: Final = 5
RESEND_S: Final = 0.5
REPEATS: Final = 0.3
"""How many of those that were answered are sent once more, where the profile has that."""
UNIQUE_KEYS: Final = 4
KEPT_S: Final = 3600
BURSTS: Final = 0.04
IN_BURST: Final = 30
UNKNOWN: Final = 0
"""The status of an answer that never came."""


@dataclass(slots=True)
class Submission:
    """Tasks submitted together. `ids` is empty unless it was accepted; `word` is accepted, existing, conflict, unknown
    or refused. `holder` is the task that holds the unique key of one that exists or conflicts."""

    numbers: tuple[int, ...]
    batch: str
    specs: tuple[dict[str, Any], ...]
    at_ms: float
    word: str = "unknown"
    ids: tuple[str, ...] = ()
    detail: str = ""
    status: int = UNKNOWN
    """Of the answer over HTTP; 0: none came, or it went another way."""
    holder: str = ""
    answered_ms: float = 0.0
    repeated: str = ""
    """What was wrong with the answer when it was sent once more."""


@dataclass(slots=True)
class WorkflowSubmission:
    """A workflow whose first task adds so many rows. `word` as of a submission."""

    batch: str
    rows: int
    word: str = "unknown"
    id: str = ""
    detail: str = ""


@dataclass(slots=True)
class Ledger:
    """All that was submitted, and all that was asked for afterwards."""

    submissions: list[Submission] = field(default_factory=list)
    workflows: list[WorkflowSubmission] = field(default_factory=list)
    steered: list[tuple[float, str, str, int]] = field(default_factory=list)
    """When (ms), what (stop, remove, retry), of which task, and the status of the answer (0: none came)."""

    def accepted(self) -> dict[str, dict[str, Any]]:
        """The spec of every accepted task by its id."""
        return {
            id: spec
            for submission in tuple(self.submissions)
            for id, spec in zip(submission.ids, submission.specs, strict=False)
        }

    def asked(self, what: str) -> set[str]:
        """The tasks of which that was asked, unless the answer was that it isn't done."""
        return {id for _, kind, id, status in self.steered if kind == what and not 400 <= status < 500}


class Client(threading.Thread):
    """Submits at random times until it is told to end. Seeded; what it meets isn't."""

    def __init__(self, plan: Plan, ledger: Ledger, name: str, rate: float) -> None:
        super().__init__(name=f"chaos-{name}", daemon=True)
        self._ledger, self._prefix, self._rate = ledger, name, rate
        self._random = random.Random(f"{plan.seed} {name}")
        self._random_adds = random.Random(f"{plan.seed} {name} adds")
        self._random_people = random.Random(f"{plan.seed} {name} people")
        self._random_edges = random.Random(f"{plan.seed} {name} edges")
        self._random_bursts = random.Random(f"{plan.seed} {name} bursts")
        self._plan, self._profile = plan, plan.profile
        self._number = 0
        self.ending = threading.Event()
        self.fault: Exception | None = None
        """What ended it early: a fault of its own."""

    def run(self) -> None:
        try:
            while not self.ending.wait(self._random.expovariate(self._rate)):
                self._submit()
                self._steer()
        except Exception as fault:  # the thread's outermost loop: the thread that joins it raises this
            self.fault = fault

    def _submit(self) -> None:
        many = self._random.randint(2, 6) if self._random.random() < 0.15 else 1
        recent = [
            (id, spec)
            for submission in self._ledger.submissions[-RECENT:]
            for id, spec in zip(submission.ids, submission.specs, strict=False)
        ]
        batch = f"{self._prefix}-{self._number}"
        numbers, specs = [], []
        for _ in range(many):
            self._number += 1
            numbers.append(self._number)
            specs.append(self._spec(f"{self._prefix}-{self._number}", self._number, batch, recent))
        if many == 1:
            self._contend(specs[0])
        submission = Submission(tuple(numbers), batch, tuple(specs), time.time() * 1000)
        self._ledger.submissions.append(submission)
        self.send(submission)
        if self._random_bursts.random() < BURSTS:
            self._submit_burst()

    def _submit_burst(self) -> None:
        """Quick tasks, which a worker process claims and ends several at once."""
        batch, queue = f"{self._prefix}-{self._number}-burst", self._random_bursts.choice(("fast", "slow", "bulk"))
        numbers = tuple(range(self._number + 1, self._number + 1 + IN_BURST))
        self._number += IN_BURST
        specs = tuple(
            {
                "type": "chaos",
                "payload": {"n": n, "batch": batch, "seconds": 0.0},
                "queue": queue,
                "result_ttl_s": KEPT_S,
            }
            for n in numbers
        )
        submission = Submission(numbers, batch, specs, time.time() * 1000)
        self._ledger.submissions.append(submission)
        self.send(submission)

    def send(self, submission: Submission) -> None:
        """Submits it and notes what became of it."""
        raise NotImplementedError

    def _steer(self) -> None:
        """Now and then stops, removes or retries one of the last tasks."""

    def _contend(self, spec: dict[str, Any]) -> None:
        """Now and then it wants one of a few unique keys. Its record is kept, so that it is known who held which."""
        if not self._profile.unique_keys or self._random.random() > 0.3:
            return
        spec["unique_key"] = spec["payload"]["key"] = f"shared-{self._random.randrange(UNIQUE_KEYS)}"
        spec["on_conflict"] = self._random.choice(("reject", "return", "replace"))
        spec["unique_until"] = self._random.choice(("start", "done", "done"))
        spec["result_ttl_s"] = KEPT_S
        spec["type"] = "chaos"

    def _spec(self, name: str, number: int, batch: str, recent: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        pick = self._random.random
        payload: dict[str, Any] = {"n": number, "batch": batch, "seconds": round(self._seconds(), 3)}
        spec: dict[str, Any] = {
            "type": "chaos_async" if pick() < 0.25 else "chaos",
            "payload": payload,
            "queue": self._random.choice(("fast", "slow", "bulk")),
            "tags": [f"by-{self._prefix}"],
            "result_ttl_s": SOON_PURGED_S if pick() < 0.2 else KEPT_S,
        }
        if self._profile.rq_worker and pick() < 0.15:  # what RQ's worker can do as ours do
            return {**spec, "type": "chaos", "queue": SHARED_QUEUE, "result_ttl_s": KEPT_S}
        if pick() < 0.2:
            spec["delay_s"] = round(self._random.uniform(0.1, 5), 3)
        if pick() < 0.2:
            spec["max_attempts"] = self._random.randint(2, 3)
            payload["fails"] = self._random.randint(1, 3)
        elif spec["type"] == "chaos" and pick() < 0.15:
            payload["do"] = self._random.choice(("die", "talk", "talk", "stubborn"))
        if recent and pick() < 0.15:
            parents = [id for id, parent in recent if parent["queue"] != SHARED_QUEUE]
            chosen = sorted(set(self._random.choices(parents, k=2))) if parents else []
            spec["depends_on"] = [self._edge(id) for id in chosen]
            payload["parents"] = [id for id in spec["depends_on"] if isinstance(id, str)]
        if pick() < 0.05:
            spec["expires_in_s"] = 3
        if pick() < 0.05:
            spec["timeout_s"] = 1.0
        if pick() < 0.1:
            spec["unique_key"] = name
        if spec["type"] == "chaos" and pick() < 0.1:
            payload["word"] = str(number)
        if self._profile.snoozes and spec["type"] == "chaos" and not payload.get("fails") and pick() < 0.2:
            payload["snoozes"] = self._random.randint(1, 3)
        self._involve_people(spec)
        if not self._profile.older and pick() < 0.15:
            spec["on_lost_lease"] = "kill"
        if not self._profile.older and spec["type"] == "chaos" and self._random_adds.random() < 0.15:
            payload["adds"] = self._random_adds.randint(1, 4)
        return spec

    def _edge(self, id: str) -> str | dict[str, str]:
        """The success of a parent, or another end of it; the release before knows only the first."""
        if self._profile.older or self._random_edges.random() < 0.5:
            return id
        return {"id": id, "on": self._random_edges.choice(("any", "any", "failure"))}

    def _involve_people(self, spec: dict[str, Any]) -> None:
        """Now and then somebody has to confirm it, or it asks."""
        if not self._profile.people:
            return
        if self._random_people.random() < 0.1:
            timeout_s = round(self._random_people.uniform(0.2, 3), 3)
            spec["confirm"] = {
                "timeout": timeout_s,
                "default": self._random_people.choice(("confirm", "confirm", "reject")),
            }
        if spec["type"] == "chaos" and self._random_people.random() < 0.1:
            spec["payload"]["asks"] = self._random_people.randint(1, 2)

    def _seconds(self) -> float:
        """Most tasks are short; some outlive a lease."""
        kind = self._random.random()
        if kind < 0.6:
            return self._random.uniform(0, 0.05)
        return self._random.uniform(0.1, 1) if kind < 1 - self._plan.slow else self._random.uniform(2, 5)


def edges(spec: dict[str, Any]) -> dict[str, str]:
    """What a task depends on, and how that must end."""
    items = [{"id": each, "on": "success"} if isinstance(each, str) else each for each in spec.get("depends_on", ())]
    return {each["id"]: each["on"] for each in items}


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the APIs are, and where the ends of some tasks are reported (None: of none)."""

    api_urls: tuple[str, ...]
    callback_url: str | None


class HttpClient(Client):
    """Over the APIs, each request to one of them."""

    def __init__(self, plan: Plan, ledger: Ledger, name: str, rate: float, doors: Doors) -> None:
        super().__init__(plan, ledger, name, rate)
        self._urls, self._callback_url = doors.api_urls, doors.callback_url
        self._http = httpx.Client(timeout=TIMEOUT_S, trust_env=False)

    def run(self) -> None:
        super().run()
        self._http.close()

    def _spec(self, *arguments: Any) -> dict[str, Any]:
        spec = super()._spec(*arguments)
        if self._callback_url is not None and self._random.random() < 0.2:
            spec["callback_url"] = self._callback_url
        return spec

    def send(self, submission: Submission) -> None:
        specs = submission.specs
        path, body = ("/tasks", specs[0]) if len(specs) == 1 else ("/tasks/batch", {"tasks": specs})
        insists = self._random.random() < INSISTS
        headers = {"idempotency-key": submission.batch} if insists else {}
        for _ in range(RESENDS if insists else 1):
            submission.word = "unknown"
            self._post(submission, path, body, headers)
            if submission.word != "unknown":
                break
            time.sleep(RESEND_S)
        submission.answered_ms = time.time() * 1000
        if insists and self._profile.repeats and submission.word == "accepted" and self._random.random() < REPEATS:
            self._repeat(submission, path, body, headers)

    def _url(self, path: str) -> str:
        return self._random.choice(self._urls) + path

    def _post(self, submission: Submission, path: str, body: Any, headers: dict[str, str]) -> None:
        try:
            answer = self._http.post(self._url(path), json=body, headers=headers)
        except httpx.TransportError as error:
            submission.detail = repr(error)
            return
        submission.status = answer.status_code
        if answer.status_code == 202:
            submission.ids = _ids(answer)
            submission.word = "accepted"
        elif answer.status_code == 200:
            submission.word, submission.holder = "existing", _ids(answer)[0]
        elif answer.status_code == 409 and answer.json()["type"].endswith("unique-conflict"):
            submission.word, submission.holder = "conflict", answer.json()["task"].rpartition("/")[2]
        else:
            submission.word = "unknown" if answer.status_code >= 500 else "refused"
            submission.detail = answer.text

    def _repeat(self, submission: Submission, path: str, body: Any, headers: dict[str, str]) -> None:
        """The same once more: the answer is the first one, whatever became of its tasks."""
        try:
            answer = self._http.post(self._url(path), json=body, headers=headers)
        except httpx.TransportError:
            return
        if answer.status_code == 503:
            return
        if answer.status_code != 202 or _ids(answer) != submission.ids:
            submission.repeated = f"answered {answer.status_code} {answer.text} after {submission.ids}"

    def _decide(self) -> None:
        """Decides about one of the tasks that wait for a person. An answer that doesn't come changes nothing here."""
        with suppress(httpx.TransportError):
            listed = self._http.get(self._url("/tasks"), params={"status": "waiting_confirmation", "limit": 5})
            waiting = listed.json().get("tasks") if listed.status_code == 200 else None
            if not waiting:
                return
            task = self._random_people.choice(waiting)
            if "question" in task:
                body = {"answer": True, "question": task["question"]["name"]}
                self._http.post(self._url(f"/tasks/{task['id']}/answer"), json=body)
            else:
                decision = self._random_people.choice(("confirm", "confirm", "reject"))
                self._http.post(self._url(f"/tasks/{task['id']}/{decision}"))

    def _steer(self) -> None:
        if self._profile.people and self._random_people.random() < self._plan.steers:
            self._decide()
        if self._random.random() > self._plan.steers:
            return
        recent = [
            (id, spec["payload"]["seconds"])
            for submission in self._ledger.submissions[-RECENT:]
            for id, spec in zip(submission.ids, submission.specs, strict=False)  # not accepted: no ids
            if spec["queue"] != SHARED_QUEUE
        ]
        if not recent:
            return
        what = self._random.choice(("stop", "stop", "remove", "retry"))
        # What may still be running is more worth stopping.
        weights = [0.1 + seconds if what == "stop" else 1 for _, seconds in recent]
        ((id, _),) = self._random.choices(recent, weights)
        try:
            if what == "remove":
                status = self._http.delete(self._url(f"/tasks/{id}")).status_code
            elif what == "stop":
                how = {"grace_s": 0.3, "force": self._random.random() < 0.3}
                status = self._http.post(self._url(f"/tasks/{id}/stop"), json=how).status_code
            else:
                status = self._http.post(self._url(f"/tasks/{id}/retry")).status_code
        except httpx.TransportError:
            status = UNKNOWN
        self._ledger.steered.append((time.time() * 1000, what, id, status))


class PythonClient(Client):
    """With `TaskPool`, over a bad network too."""

    def __init__(self, plan: Plan, ledger: Ledger, rate: float, redis_url: str) -> None:
        super().__init__(plan, ledger, "python", rate)
        self._pool = TaskPool(redis_url)

    def run(self) -> None:
        super().run()
        self._pool.close()

    def send(self, submission: Submission) -> None:
        try:
            records = self._pool.add_tasks([TaskSpec(**spec) for spec in submission.specs])
        except RedisUnavailable as error:
            submission.detail = str(error)
        except UniqueConflict as error:
            submission.word, submission.holder = "conflict", error.id
        except (InvalidTask, TaskpoolError) as error:
            submission.word, submission.detail = "refused", f"{type(error).__name__}: {error}"
        else:
            if records[0].payload["batch"] != submission.batch:
                submission.word, submission.holder = "existing", records[0].id
            else:
                submission.word, submission.ids = "accepted", tuple(record.id for record in records)
        submission.answered_ms = time.time() * 1000


def _ids(answer: httpx.Response) -> tuple[str, ...]:
    document = answer.json()
    return tuple(task["id"] for task in document.get("tasks", [document]))
