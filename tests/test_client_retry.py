"""What a client sends again, when and for how long; its steps are carried out by hand, with a clock of their own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from taskpool import ApiError, ApiUnavailable, QueueFull, RedisUnavailable, TaskNotFound, TaskSpec, WaitTimeout
from taskpool.client import operations
from taskpool.client.operations import WAITING, WATCHING, events, follow, follow_log
from taskpool.client.request import Answer, Emit, Lost, Plan, Read, Request, Retrying, Send, Sleep, sending
from taskpool.errors import TaskpoolError

GET, DELETE = operations.get("t1"), operations.remove_task("t1")
POST = operations.add_task(TaskSpec(type="echo"))
TASK = {"id": "t1", "type": "echo", "status": "queued", "queue": "default", "payload": {}}
NEVER_SENT, CUT = Lost("connection refused", was_sent=False), Lost("connection reset", was_sent=True)
BAD_GATEWAY = Answer(502, {"content-type": "text/html"}, b"<h1>Bad gateway</h1>")


class Hand:
    """Carries out a plan: each request and each read gets the next of `replies`; sleeping moves the clock on."""

    def __init__(self, *replies: Any, chance: float = 0.0) -> None:
        self.now, self.steps = 1000.0, list[Any]()
        self.replies = iter(replies)
        self.retrying = Retrying(clock=lambda: self.now, chance=lambda: chance)

    def carry_out(self, plan: Plan[Any]) -> Any:
        reply = None
        while True:
            try:
                step = plan.send(reply)
            except StopIteration as end:
                return end.value
            self.steps.append(step)
            reply = next(self.replies) if isinstance(step, Send | Read) else None
            if isinstance(step, Sleep):
                self.now += step.seconds

    def send(self, request: Request[Any]) -> Any:
        return self.carry_out(sending(request, self.retrying))

    @property
    def sent(self) -> list[Request[Any]]:
        return [step.request for step in self.steps if isinstance(step, Send)]

    @property
    def slept(self) -> list[float]:
        return [step.seconds for step in self.steps if isinstance(step, Sleep)]

    @property
    def received(self) -> list[Any]:
        return [step.value for step in self.steps if isinstance(step, Emit)]


def answer(document: Any, status: int = 200) -> Answer:
    return Answer(status, {"content-type": "application/json"}, json.dumps(document).encode())


def problem(status: int, kind: str, retry_after: str = "", **members: Any) -> Answer:
    document = {"type": f"urn:taskpool:problem:{kind}", "title": "T", "status": status, "detail": "D", **members}
    headers = {"content-type": "application/problem+json", **({"retry-after": retry_after} if retry_after else {})}
    return Answer(status, headers, json.dumps(document).encode())


def ok(status: str = "queued", **members: Any) -> Answer:
    return answer({**TASK, "status": status, **members})


@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST /tasks"])
@pytest.mark.parametrize(
    "reply",
    [NEVER_SENT, CUT, BAD_GATEWAY, BAD_GATEWAY._replace(status=503), BAD_GATEWAY._replace(status=504),
     problem(503, "redis-unavailable", "1"), problem(503, "too-many-streams", "1"), problem(429, "queue-full", "1"),
     problem(429, "some-limit", "1")],
)  # fmt: skip
def test_what_is_as_good_twice_is_sent_again(request_: Request[Any], reply: Answer | Lost) -> None:
    hand = Hand(reply, reply, ok())

    assert hand.send(request_).id == "t1"

    assert hand.sent == [request_] * 3


@pytest.mark.parametrize(
    ("reply", "error"),
    [(CUT, ApiUnavailable), (BAD_GATEWAY, ApiError), (BAD_GATEWAY._replace(status=503), ApiError),
     (BAD_GATEWAY._replace(status=504), ApiError), (problem(503, "redis-unavailable", "1"), RedisUnavailable)],
)  # fmt: skip
@pytest.mark.parametrize("request_", [DELETE, operations.retry_task("t1")], ids=["remove", "retry"])
def test_what_may_have_happened_is_not_repeated(
    request_: Request[Any], reply: Answer | Lost, error: type[TaskpoolError]
) -> None:
    hand = Hand(reply)

    with pytest.raises(error):
        hand.send(request_)

    assert hand.sent == [request_]


@pytest.mark.parametrize(
    "reply", [NEVER_SENT, problem(503, "too-many-connections", "1"), problem(429, "some-limit", "1")]
)
def test_what_surely_did_not_happen_is_repeated(reply: Answer | Lost) -> None:
    hand = Hand(reply, Answer(204, {}))

    assert hand.send(DELETE) is None

    assert hand.sent == [DELETE, DELETE]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 409, 413, 422, 500, 501])
def test_what_would_be_answered_alike_is_not_repeated(status: int) -> None:
    hand = Hand(BAD_GATEWAY._replace(status=status))

    with pytest.raises(ApiError) as raised:
        hand.send(GET)

    assert (raised.value.status, len(hand.sent)) == (status, 1)


def test_it_comes_again_later_and_later_and_gives_up() -> None:
    hand = Hand(*[NEVER_SENT] * 7)

    with pytest.raises(ApiUnavailable, match="connection refused"):
        hand.send(GET)

    assert hand.slept == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0])


def test_clients_do_not_come_again_all_at_once() -> None:
    pauses = [Retrying(chance=lambda chance=chance: chance).pause_s(2) for chance in (0.0, 0.5, 1.0)]  # type: ignore[misc]

    assert pauses == pytest.approx([0.8, 0.6, 0.4])


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_it_retries_after_retry_after(chance: float) -> None:
    hand = Hand(problem(429, "queue-full", "7"), ok(), chance=chance)

    hand.send(POST)

    assert 7 <= hand.slept[0] <= 9


def test_a_date_is_a_time_to_come_again_too() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)

    with pytest.raises(ApiError) as raised:
        Hand(BAD_GATEWAY._replace(status=503, headers={"retry-after": at})).send(GET)

    assert 3000 < (raised.value.retry_after_s or 0) <= 3600


@pytest.mark.parametrize("received", ["soon", "", "-1", "Mon, 99 Foo"])
def test_nonsense_is_no_time(received: str) -> None:
    hand = Hand(problem(429, "some-limit", received), ok())

    hand.send(GET)

    assert hand.slept == pytest.approx([0.2])


def test_it_does_not_wait_for_a_time_that_is_too_far_away() -> None:
    hand = Hand(problem(429, "queue-full", "3600", queue="q", held=9))

    with pytest.raises(QueueFull) as raised:
        hand.send(POST)

    assert hand.slept == []
    assert (raised.value.retry_after_s, raised.value.queue, raised.value.held) == (3600, "q", 9)


def test_all_of_it_takes_no_longer_than_said() -> None:
    hand = Hand(*[problem(429, "some-limit", "9")] * 9)

    with pytest.raises(ApiError):
        hand.send(GET)

    assert sum(hand.slept) < 30


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"id": 1}', b"\xff"])
def test_an_answer_of_something_else_is_an_error(body: bytes) -> None:
    with pytest.raises(ApiError, match="isn't an answer of the Taskpool API"):
        Hand(Answer(200, {}, body)).send(GET)


def test_a_redirection_says_where_to() -> None:
    with pytest.raises(ApiError, match="it leads to https://new"):
        Hand(Answer(308, {"location": "https://new.example/"}, b"")).send(GET)


def test_a_wait_that_has_begun_outlives_any_number_of_failures() -> None:
    hand = Hand(
        ok(), *[NEVER_SENT] * 30, problem(503, "redis-unavailable", "2"), BAD_GATEWAY, CUT, ok("done", result=1)
    )

    assert hand.carry_out(follow("t1", None, WAITING, hand.retrying)).result == 1

    assert max(hand.slept) == 5


def test_a_wait_that_has_not_begun_gives_up() -> None:
    hand = Hand(*[NEVER_SENT] * 7)

    with pytest.raises(ApiUnavailable):
        hand.carry_out(follow("t1", None, WAITING, hand.retrying))


def test_a_wait_ends_in_time_also_when_the_api_is_away() -> None:
    hand = Hand(ok(), *[NEVER_SENT] * 10)

    with pytest.raises(ApiUnavailable):
        hand.carry_out(follow("t1", 10, WAITING, hand.retrying))

    assert hand.now <= 1010


def test_a_wait_does_not_outlive_its_task() -> None:
    hand = Hand(ok(), problem(404, "task-not-found"))

    with pytest.raises(TaskNotFound) as raised:
        hand.carry_out(follow("t1", None, WAITING, hand.retrying))

    assert raised.value.id == "t1"


def test_a_server_that_stops_and_answers_at_once_is_not_asked_without_a_pause() -> None:
    hand = Hand(*[ok()] * 8, ok("done"))

    hand.carry_out(follow("t1", None, WAITING, hand.retrying))

    assert len(hand.slept) == 8
    assert hand.slept[-1] == 5


def test_no_time_means_one_look() -> None:
    hand = Hand(ok())

    with pytest.raises(WaitTimeout):
        hand.carry_out(follow("t1", 0, WAITING, hand.retrying))

    assert [request.query for request in hand.sent] == [{}]


def test_a_wait_asks_soon_and_then_seldom_and_a_watch_at_once_and_often() -> None:
    for pace, looks in ((WAITING, ["1.000", "30.000"]), (WATCHING, [None, "0.500"])):
        hand = Hand(ok(), ok("done"))

        hand.carry_out(follow("t1", None, pace, hand.retrying))

        assert [request.query.get("wait") for request in hand.sent] == looks


def test_a_message_of_something_else_is_an_error() -> None:
    for received in (b"data: {}\n\n", b"event: snapshot\ndata: []\n\n", b"data: x\n\n"):
        hand = Hand(STREAM, received)

        with pytest.raises(ApiError, match="isn't an answer of the Taskpool API"):
            hand.carry_out(events("t1", None, hand.retrying))


def message(seq: int, event: str, status: str) -> bytes:
    document = {"id": "t1", "seq": seq, "event": event, "status": status, "at": "2026-11-23T12:00:00.250Z", "data": {}}
    return f"id: 100-{seq}\ndata: {json.dumps({**document, 'stream': f'100-{seq}'})}\n\n".encode()


def named(name: str, id: str, document: Any) -> bytes:
    return f"event: {name}\nid: {id}\ndata: {json.dumps(document)}\n\n".encode()


STREAM = Answer(200, {"content-type": "text/event-stream"})


def last_ids(requests: Iterable[Request[Any]]) -> list[str | None]:
    return [request.headers.get("last-event-id") for request in requests]


def test_events_go_on_behind_the_last_one_whole() -> None:
    first = named("snapshot", "100-1", {**TASK, "seq": 1}) + message(2, "started", "in_progress")
    hand = Hand(
        STREAM, first + message(3, "progress", "in_progress")[:30], None,  # cut in the middle of one
        NEVER_SENT, STREAM, None,  # away, then there for a moment
        STREAM, message(3, "progress", "in_progress"), message(4, "done", "done"),
    )  # fmt: skip

    hand.carry_out(events("t1", None, hand.retrying))

    assert last_ids(hand.sent) == [None, "100-2", "100-2", "100-2"]
    assert [(event.event, event.seq) for event in hand.received] == [
        ("snapshot", 1), ("started", 2), ("progress", 3), ("done", 4)
    ]  # fmt: skip
    assert hand.received[0].data["type"] == "echo"
    assert hand.received[-1].at_ms == 1_795_435_200_250


def test_forgotten_events_are_made_up_for_by_a_snapshot() -> None:
    resync = named("resync", "200-0", {"after": "200-0", "reason": "trimmed"})
    snapshot = named("snapshot", "200-0", {**TASK, "seq": 9, "status": "done"})
    hand = Hand(STREAM, resync, snapshot)

    hand.carry_out(events("t1", "100-1", hand.retrying))

    assert last_ids(hand.sent) == ["100-1"]
    assert [(event.event, event.seq, event.status) for event in hand.received] == [("snapshot", 9, "done")]


def test_a_client_that_was_too_slow_continues_from_the_given_id() -> None:
    slow = named("resync", "150-0", {"after": "150-0", "reason": "slow"})
    hand = Hand(STREAM, slow, None, STREAM, message(4, "done", "done"))

    hand.carry_out(events("t1", None, hand.retrying))

    assert last_ids(hand.sent) == [None, "150-0"]


@pytest.mark.parametrize("follow_it", [events, follow_log])
def test_a_task_that_is_gone_is_not_asked_for_again(follow_it: Any) -> None:
    gone = b'event: gone\ndata: {"kind":"task-not-found","detail":"no task has the id"}\n\n'
    hand = Hand(STREAM, gone, NEVER_SENT)

    with pytest.raises(TaskNotFound):
        hand.carry_out(follow_it("t1", None, hand.retrying))

    assert len(hand.sent) == 1


def test_there_is_nothing_behind_the_end() -> None:
    hand = Hand(Answer(204, {}))

    hand.carry_out(events("t1", "100-4", hand.retrying))

    assert hand.received == []


def test_a_log_goes_on_behind_its_last_line() -> None:
    def line(text: str) -> bytes:
        document = {"at": "2026-11-23T12:00:00.250Z", "stream": "stdout", "text": text}
        return f"id: at-{text}\ndata: {json.dumps(document)}\n\n".encode()

    end = named("end", "at-b", {"status": "done"})
    hand = Hand(STREAM, b"retry: 2000\n\n" + line("a"), b": keep-alive\n\n", None, STREAM, line("b") + end)

    hand.carry_out(follow_log("t1", None, hand.retrying))

    assert last_ids(hand.sent) == [None, "at-a"]
    assert [each.text for each in hand.received] == ["a", "b"]
    assert not any(math.isinf(pause) for pause in hand.slept)
