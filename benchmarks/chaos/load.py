"""Who submits: over HTTP and with the Python client, single tasks and batches, and steers some of what it submitted.

Every submission stands in the ledger with what became of it. `unknown`: the connection was lost or the service said
that it is away, so the tasks may exist or not; a batch exists whole or not at all. However often it was sent, each of
its tasks exists once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from taskpool import TaskPool, TaskSpec
from taskpool.errors import InvalidTask, RedisUnavailable, TaskpoolError

TIMEOUT_S: Final = 4.0
RECENT: Final = 40
SOON_PURGED_S: Final = 5
INSISTS: Final = 0.3
"""How many of the submissions over HTTP have an idempotency key, and are sent again until they are answered."""
RESENDS: Final = 5
RESEND_S: Final = 0.5


@dataclass(slots=True)
class Submission:
    """Tasks submitted together. `ids` is empty unless it was accepted; `word` is accepted, unknown or refused."""

    numbers: tuple[int, ...]
    batch: str
    specs: tuple[dict[str, Any], ...]
    at_ms: float
    word: str = "unknown"
    ids: tuple[str, ...] = ()
    detail: str = ""
    status: int = 0
    """Of the answer over HTTP; 0: none came, or it went another way."""


@dataclass(slots=True)
class Ledger:
    """All that was submitted, and all that was asked for afterwards."""

    submissions: list[Submission] = field(default_factory=list)
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
        """The tasks of which that was asked, whatever the answer."""
        return {id for _, kind, id, _ in self.steered if kind == what}


class Client(threading.Thread):
    """Submits at random times until it is told to end. Seeded; what it meets isn't."""

    def __init__(self, ledger: Ledger, name: str, seed: int, rate: float) -> None:
        super().__init__(name=f"chaos-{name}", daemon=True)
        self._ledger, self._prefix, self._random, self._rate = ledger, name, random.Random(f"{seed} {name}"), rate
        self._number = 0
        self.ending = threading.Event()
        self.fault: Exception | None = None
        """What ended it early: a fault of its own."""

    def run(self) -> None:
        try:
            while not self.ending.wait(self._random.expovariate(self._rate)):
                self._submit()
                self._steer()
        except Exception as fault:  # the thread's outermost loop: whoever joins it raises this
            self.fault = fault

    def _submit(self) -> None:
        many = self._random.randint(2, 6) if self._random.random() < 0.15 else 1
        recent = [id for submission in self._ledger.submissions[-RECENT:] for id in submission.ids]
        batch = f"{self._prefix}-{self._number}"
        numbers, specs = [], []
        for _ in range(many):
            self._number += 1
            numbers.append(self._number)
            specs.append(self._spec(f"{self._prefix}{self._number}", self._number, batch, recent))
        submission = Submission(tuple(numbers), batch, tuple(specs), time.time() * 1000)
        self._ledger.submissions.append(submission)
        self.send(submission)

    def send(self, submission: Submission) -> None:
        """Submits it and notes what became of it."""
        raise NotImplementedError

    def _steer(self) -> None:
        """Now and then stops, removes or retries one of the last tasks."""

    def _spec(self, name: str, number: int, batch: str, recent: Sequence[str]) -> dict[str, Any]:
        pick = self._random.random
        payload: dict[str, Any] = {"n": number, "batch": batch, "seconds": round(self._seconds(), 3)}
        spec: dict[str, Any] = {
            "type": "chaos_async" if pick() < 0.25 else "chaos",
            "payload": payload,
            "queue": self._random.choice(("fast", "slow", "bulk")),
            "tags": [f"by-{self._prefix}"],
            "result_ttl_s": SOON_PURGED_S if pick() < 0.2 else 3600,
        }
        if pick() < 0.2:
            spec["delay_s"] = round(self._random.uniform(0.1, 5), 3)
        if pick() < 0.2:
            spec["max_attempts"] = self._random.randint(2, 3)
            payload["fails"] = self._random.randint(1, 3)
        elif spec["type"] == "chaos" and pick() < 0.15:
            payload["do"] = self._random.choice(("die", "talk", "talk", "stubborn"))
        if recent and pick() < 0.15:
            spec["depends_on"] = sorted(set(self._random.choices(recent, k=2)))
        if pick() < 0.05:
            spec["expires_in_s"] = 3
        if pick() < 0.05:
            spec["timeout_s"] = 1.0
        if pick() < 0.1:
            spec["unique_key"] = name
        if spec["type"] == "chaos" and pick() < 0.1:
            payload["word"] = str(number)
        return spec

    def _seconds(self) -> float:
        """Most tasks are short; some outlive a lease."""
        kind = self._random.random()
        if kind < 0.6:
            return self._random.uniform(0, 0.05)
        return self._random.uniform(0.1, 1) if kind < 0.92 else self._random.uniform(2, 5)


class HttpClient(Client):
    """Over the API."""

    def __init__(self, ledger: Ledger, seed: int, rate: float, api_url: str) -> None:
        super().__init__(ledger, "http", seed, rate)
        self._http = httpx.Client(base_url=api_url, timeout=TIMEOUT_S, trust_env=False)

    def run(self) -> None:
        super().run()
        self._http.close()

    def send(self, submission: Submission) -> None:
        specs = submission.specs
        path, body = ("/tasks", specs[0]) if len(specs) == 1 else ("/tasks/batch", {"tasks": specs})
        insists = self._random.random() < INSISTS
        headers = {"idempotency-key": submission.batch} if insists else {}
        for _ in range(RESENDS if insists else 1):
            submission.word = "unknown"
            self._post(submission, path, body, headers)
            if submission.word != "unknown":
                return
            time.sleep(RESEND_S)

    def _post(self, submission: Submission, path: str, body: Any, headers: dict[str, str]) -> None:
        try:
            answer = self._http.post(path, json=body, headers=headers)
        except httpx.TransportError as error:
            submission.detail = repr(error)
            return
        submission.status = answer.status_code
        if answer.status_code == 202:
            document = answer.json()
            submission.ids = tuple(task["id"] for task in document.get("tasks", [document]))
            submission.word = "accepted"
        else:
            submission.word = "unknown" if answer.status_code >= 500 else "refused"
            submission.detail = answer.text

    def _steer(self) -> None:
        if self._random.random() > 0.15:
            return
        recent = [
            (id, spec["payload"]["seconds"])
            for submission in self._ledger.submissions[-RECENT:]
            for id, spec in zip(submission.ids, submission.specs, strict=False)  # not accepted: no ids
        ]
        if not recent:
            return
        what = self._random.choice(("stop", "stop", "remove", "retry"))
        # What may still be running is more worth stopping.
        weights = [0.1 + seconds if what == "stop" else 1 for _, seconds in recent]
        ((id, _),) = self._random.choices(recent, weights)
        try:
            if what == "remove":
                status = self._http.delete(f"/tasks/{id}").status_code
            elif what == "stop":
                how = {"grace_s": 0.3, "force": self._random.random() < 0.3}
                status = self._http.post(f"/tasks/{id}/stop", json=how).status_code
            else:
                status = self._http.post(f"/tasks/{id}/retry").status_code
        except httpx.TransportError:
            status = 0
        self._ledger.steered.append((time.time() * 1000, what, id, status))


class PythonClient(Client):
    """With `TaskPool`, over a bad network too."""

    def __init__(self, ledger: Ledger, seed: int, rate: float, redis_url: str) -> None:
        super().__init__(ledger, "python", seed, rate)
        self._pool = TaskPool(redis_url)

    def run(self) -> None:
        super().run()
        self._pool.close()

    def send(self, submission: Submission) -> None:
        try:
            records = self._pool.add_tasks([TaskSpec(**spec) for spec in submission.specs])
        except RedisUnavailable as error:
            submission.detail = str(error)
        except (InvalidTask, TaskpoolError) as error:
            submission.word, submission.detail = "refused", f"{type(error).__name__}: {error}"
        else:
            submission.ids = tuple(record.id for record in records)
            submission.word = "accepted"
