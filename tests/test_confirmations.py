"""What people decide, through every face: the pools, the clients, HTTP with keys, and the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskpool import AsyncTaskPool, Confirm, InvalidTask, NotAllowed, TaskConflict, TaskNotFound, TaskPool, TaskStatus
from taskpool.access.api_key import Scope
from taskpool.cli.__main__ import main
from taskpool.redis import people_scripts
from taskpool.redis.people_scripts import By
from taskpool.webhooks.endpoint import message_body, read_entry
from tests.api_client import api
from tests.client_kinds import KINDS, client_of
from tests.keys import bearer, id_of, make_key
from tests.states import World

S = TaskStatus
QUESTION = (
    b'{"name":"delete","text":"Delete 3,120 rows?","timeout":1000,"schema":{"type":"object","required":["keep"]}}'
)


class _Awaited:
    """An `AsyncTaskPool` whose methods block."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*given: Any, **named: Any) -> Any:
            async with AsyncTaskPool(self._url) as pool:
                return await getattr(pool, name)(*given, **named)

        return lambda *given, **named: asyncio.run(call(*given, **named))


@pytest.fixture(params=["pool", "async pool", *KINDS])
def face(request: pytest.FixtureRequest, world: World, api_url: str) -> Iterator[Any]:
    """A pool or a client of each kind."""
    match request.param:
        case "pool":
            with TaskPool(world.url) as pool:
                yield pool
        case "async pool":
            yield _Awaited(world.url)
        case kind:
            with client_of(kind, api_url) as client:
                yield client


def ask(world: World, id: str = "a", question: bytes = QUESTION) -> None:
    assert world.run(people_scripts.ask(world.start(id, attempt_id=f"of-{id}"), question)) == "ok"


def test_a_confirmed_task_can_run_and_a_second_decision_must_be_the_same(face: Any, world: World) -> None:
    world.add("a", confirm="Go?")

    record = face.confirm("a", comment="looks right")

    assert (record.status, record.confirmation.decision, record.confirmation.comment) == (
        S.QUEUED, "confirmed", "looks right",
    )  # fmt: skip
    assert face.confirm("a").confirmation.comment == "looks right"
    with pytest.raises(TaskConflict, match="confirmed before"):
        face.reject("a")


def test_a_rejected_task_is_canceled_and_a_retry_asks_again(face: Any, world: World) -> None:
    world.add("a", confirm="Go?")
    world.add("child", depends_on=["a"])

    record = face.reject("a", comment="wrong file")

    assert (record.status, record.reason, record.error) == (S.CANCELED, "rejected", "rejected: wrong file")
    assert world.get("child").status is S.CANCELED
    assert face.retry_task("a").status is S.WAITING_CONFIRMATION


def test_an_answer_continues_the_task_and_has_to_fit_the_schema(face: Any, world: World) -> None:
    ask(world)
    assert face.get("a").question.text == "Delete 3,120 rows?"
    with pytest.raises(InvalidTask) as refused:
        face.answer("a", {})
    assert [fault.pointer for fault in refused.value.errors] == ["/answer/keep"]

    record = face.answer("a", {"keep": 100}, question="delete", comment="enough")

    assert record.status is S.QUEUED
    (given,) = record.answers
    assert (given.question, given.answer, given.comment) == ("delete", {"keep": 100}, "enough")
    assert face.answer("a", {"keep": 100}).status is S.QUEUED
    with pytest.raises(TaskConflict, match="another answer"):
        face.answer("a", {"keep": 200})
    with pytest.raises(TaskConflict, match="doesn't ask"):
        face.answer("a", {"keep": 100}, question="other")


def test_the_inbox_lists_what_waits_for_a_person(face: Any, world: World) -> None:
    world.add("plain")
    world.add("parent")
    world.add("child", depends_on=["parent"])
    world.add("unconfirmed", confirm="Go?")
    ask(world)

    waiting = face.list_tasks(status=S.WAITING_CONFIRMATION).items

    assert {record.id for record in waiting} == {"unconfirmed", "a"}
    assert [record.id for record in face.list_tasks(status=S.WAITING).items] == ["child"]


@pytest.mark.parametrize("move", ["confirm", "reject", "answer"])
def test_a_task_that_is_gone_or_asks_nothing(face: Any, world: World, move: str) -> None:
    arguments = (True,) if move == "answer" else ()
    world.add("plain")

    with pytest.raises(TaskConflict):
        getattr(face, move)("plain", *arguments)
    with pytest.raises(TaskNotFound):
        getattr(face, move)("gone", *arguments)
    with pytest.raises(InvalidTask) as refused:
        getattr(face, move)("plain", *arguments, comment="x" * 2001)

    assert [fault.pointer for fault in refused.value.errors] == ["/comment"]


@pytest.mark.parametrize("answer", [float("nan"), "x" * 17_000, {1, 2}.__iter__, "\ud800"])
def test_an_answer_that_isnt_short_json_is_refused(face: Any, world: World, answer: Any) -> None:
    ask(world)

    with pytest.raises(InvalidTask) as refused:
        face.answer("a", answer)

    assert [fault.pointer for fault in refused.value.errors] == ["/answer"]
    assert world.get("a").status is S.WAITING_CONFIRMATION


# --- keys ---------------------------------------------------------------------------------------------------


async def test_the_record_and_the_audit_say_which_key_decided_and_why(world: World) -> None:
    ann = make_key(world.url, "Ann", Scope.CONFIRM, Scope.READ)
    admin = make_key(world.url, "admin", Scope.ADMIN)
    world.add("a", confirm=Confirm("Go?", who=["Ann"]))
    world.add("b", confirm="Go?")
    ask(world, "c")
    async with api(world.url) as client:
        for path, body in (
            ("a/confirm", {"comment": "ok"}), ("b/reject", {"comment": "no"}), ("c/answer", {"answer": {"keep": 1}}),
        ):  # fmt: skip
            answered = await client.post(f"/tasks/{path}", json=body, headers=bearer(ann))
            assert answered.status_code == 200, answered.text
        entries = (await client.get("/audit", headers=bearer(admin))).json()["entries"]

    decided = world.get("a").confirmation
    assert decided is not None
    assert (decided.by, decided.key, decided.comment) == ("Ann", id_of(ann), "ok")
    assert world.get("c").answers[0].key == id_of(ann)
    found = {entry["what"]: (entry["about"], entry["by"]["name"], entry.get("comment")) for entry in entries[:3]}
    assert found == {
        "task.confirmed": ("a", "Ann", "ok"),
        "task.rejected": ("b", "Ann", "no"),
        "task.answered": ("c", "Ann", None),
    }


@pytest.mark.parametrize("named", ["name", "id"])
async def test_only_the_keys_that_a_task_names_may_decide(world: World, named: str) -> None:
    ann, bob = (make_key(world.url, name, Scope.CONFIRM, Scope.READ) for name in ("Ann", "Bob"))
    world.add("a", confirm=Confirm("Go?", who=["Ann" if named == "name" else id_of(ann)]))
    async with api(world.url) as client:
        refused = await client.post("/tasks/a/confirm", headers=bearer(bob))
        assert (refused.status_code, world.get("a").status) == (403, S.WAITING_CONFIRMATION)
        assert (await client.post("/tasks/a/confirm", headers=bearer(ann))).status_code == 200


@pytest.mark.parametrize("path", ["confirm", "reject", "answer"])
async def test_http_refuses_a_decision_that_the_task_does_not_wait_for(world: World, path: str) -> None:
    world.add("plain")
    async with api(world.url) as client:
        refused = await client.post(f"/tasks/plain/{path}", json={"answer": 1} if path == "answer" else {})

    assert (refused.status_code, refused.json()["type"]) == (409, "urn:taskpool:problem:task-conflict")


async def test_without_keys_the_decision_is_nobodys(world: World) -> None:
    world.add("a", confirm="Go?")
    async with api(world.url) as client:
        document = (await client.post("/tasks/a/confirm")).json()

    assert document["confirmation"].keys() == {"decision", "at"}


def test_a_client_learns_that_it_may_not_decide(world: World, api_url: str) -> None:
    bob = make_key(world.url, "Bob", Scope.CONFIRM)
    world.add("a", confirm=Confirm("Go?", who=["Ann"]))

    with client_of("blocking", api_url, bob) as client, pytest.raises(NotAllowed, match="names who may answer"):
        client.confirm("a")


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("confirm", {"comment": 5}, "/comment"),
        ("reject", {"why": "no"}, "/why"),
        ("answer", {}, "/answer"),
        ("answer", {"answer": 1, "question": 5}, "/question"),
        ("answer", {"answer": 1}, "/answer"),
    ],
)
async def test_a_wrong_body_is_refused_with_the_place(world: World, path: str, body: Any, pointer: str) -> None:
    ask(world)
    async with api(world.url) as client:
        refused = await client.post(f"/tasks/a/{path}", json=body)

    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == [pointer]


def test_the_question_goes_to_a_webhook(world: World) -> None:
    callback = {"callback_url": "http://127.0.0.1:1/", "callback_events": ["waiting_confirmation"]}
    world.add("a", confirm="Import 10,000 rows?", **callback)

    (entry,) = world.redis.xrange("taskpool:webhooks:outbox")

    read = read_entry("1-0", [part for item in entry[1].items() for part in item])
    assert read is not None
    message = json.loads(message_body(read, None))
    assert message["type"] == "taskpool.task.waiting_confirmation"
    assert message["data"]["text"] == "Import 10,000 rows?"
    record = world.get("a")
    assert record.answer_by is not None
    assert message["data"]["answer_by"][:19] == record.answer_by.isoformat()[:19]


# --- the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def run(way: list[str]) -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(main, [*arguments, *way])


def test_the_command_line_lists_and_decides(run: Callable[..., Result], world: World) -> None:
    assert run("confirm").stderr == "nothing waits for a person\n"
    for id in ("a", "b"):
        world.add(id, confirm=f"Go {id}?")
    ask(world, "c")

    listed = run("confirm")
    assert {line.split()[0] for line in listed.stdout.splitlines()} == {"ID", "a", "b", "c"}
    assert "Go a?" in listed.stdout
    assert "delete: Delete 3,120 rows?" in listed.stdout
    assert {task["id"] for task in json.loads(run("confirm", "--json").stdout)["tasks"]} == {"a", "b", "c"}

    assert run("confirm", "a", "--comment", "fine").stdout == "queued\n"
    assert run("reject", "b").stdout == "canceled\n"
    assert run("answer", "c", '{"keep": 1}').stdout == "queued\n"

    assert "fine" in run("get", "a").stdout
    assert 'delete: {"keep": 1}' in run("get", "c").stdout
    assert world.get("c").answers[0].answer == {"keep": 1}


def test_the_command_line_says_what_it_refuses(run: Callable[..., Result], world: World) -> None:
    world.add("a")
    ask(world, "c")

    world.add("b", confirm="Go?")

    conflict, gone, wrong = run("confirm", "a"), run("reject", "gone"), run("answer", "c", "{}")
    other, unasked = run("confirm", "c"), run("answer", "b", "true")

    assert (conflict.exit_code, gone.exit_code, wrong.exit_code) == (6, 3, 2)
    assert (other.exit_code, unasked.exit_code) == (6, 6)
    assert "/answer/keep" in wrong.stderr
    assert "asks 'delete' in the middle of its work: answer it" in other.stderr
    assert "it waits to be confirmed or rejected" in unasked.stderr
    assert all(result.stderr.count("\n") == 1 for result in (conflict, gone, wrong, other, unasked))


def test_an_answer_that_must_be_a_text_stays_one(run: Callable[..., Result], world: World) -> None:
    ask(world, question=b'{"name":"n","text":"Which?","timeout":60,"schema":{"type":"string"}}')

    assert run("answer", "a", "123").exit_code == 0

    assert world.get("a").answers[0].answer == "123"


def test_the_name_of_the_person_at_the_command_line_is_recorded(world: World) -> None:
    world.add("a", confirm="Go?")

    CliRunner().invoke(main, ["confirm", "a", "--redis-url", world.url])

    decided = world.get("a").confirmation
    assert decided is not None
    assert decided.by is not None
    assert decided.by.startswith("taskpool (")


def test_an_answer_between_the_question_and_its_repetition_agrees(world: World) -> None:
    """A request that is sent again, because its response was lost, finds its own answer."""
    ask(world)
    step = int(world.redis.hget("rq:job:a", "seq"))
    call = people_scripts.answer("a", step, b'{"keep":1}', By())
    world.run(call)
    ask_again = world.claim(attempt_id="2")
    world.run(people_scripts.ask(ask_again, QUESTION.replace(b"delete", b"next")))

    assert call.again
    assert world.run(call) == "ok"
    assert world.get("a").status is S.WAITING_CONFIRMATION
