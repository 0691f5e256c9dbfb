"""Values that programs give and that can't be: each is refused, by every face alike, before anything is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from taskpool import AsyncTaskPool, Client, InvalidTask, Registry, TaskNotFound, TaskPool, TaskSpec, task
from taskpool.operations.listing import LONGEST_PAGE
from taskpool.types import TaskStatus
from taskpool.validation import LONGEST_S, seconds_fault

NAN, INF = float("nan"), float("inf")
NO_SERVER = "http://127.0.0.1:9"


@task("note")
def note(text: str = "") -> str:
    """Give it back."""
    return text


class Awaited:
    """An AsyncTaskPool that blocks."""

    def __init__(self, url: str, registry: Registry) -> None:
        self._runner = asyncio.Runner()
        self._pool = AsyncTaskPool(url, registry=registry)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._pool, name)
        return lambda *arguments, **options: self._runner.run(method(*arguments, **options))

    def close(self) -> None:
        self._runner.run(self._pool.close())
        self._runner.close()


@pytest.fixture(params=[TaskPool, Awaited])
def pool(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Any]:
    registry = Registry()
    registry.add(note)
    pool = request.param(redis_url, registry=registry)
    yield pool
    pool.close()


@pytest.fixture
def client() -> Iterator[Client]:
    """A client of an address where nothing listens, so that any request fails."""
    with Client(NO_SERVER, retries=0) as client:
        yield client


def refusal(do: Callable[[], object]) -> tuple[str, str]:
    """The pointer and the text of what is refused."""
    with pytest.raises(InvalidTask) as refused:
        do()
    (fault,) = refused.value.errors
    assert str(refused.value).endswith(fault.detail)
    return fault.pointer, fault.detail


@pytest.mark.parametrize(
    "value", [NAN, INF, -INF, -1, 1e300, 10**400, pytest.param(10**5000, id="huge"), "5", None, True, []]
)
def test_a_wrong_duration_raises_with_the_allowed_range(value: object) -> None:
    assert str(seconds_fault(value)).startswith("must be a number of seconds from 0 to 316224000, not ")


@pytest.mark.parametrize("value", [0, 0.001, 1, LONGEST_S])
def test_a_span_of_time_is_taken(value: float) -> None:
    assert seconds_fault(value) is None


@pytest.mark.parametrize("grace_s", [NAN, INF, -1, 1e300, "x", None])
def test_a_task_is_stopped_with_no_grace_that_can_not_be(pool: Any, client: Client, grace_s: Any) -> None:
    id = pool.add_task("note").id

    refusals = {refusal(lambda: face.kill_task(id, grace_s=grace_s)) for face in (pool, client)}  # noqa: B023

    assert refusals == {("/grace_s", f"must be a number of seconds from 0 to 86400, not {grace_s!r}")}
    assert pool.get(id).status is TaskStatus.QUEUED


@pytest.mark.parametrize("timeout_s", [NAN, INF, 1e300, "x"])
def test_an_impossible_waiting_time_is_refused_at_once(pool: Any, client: Client, timeout_s: Any, redis: Redis) -> None:
    id = pool.add_task("note").id
    keys = redis.dbsize()

    refusals = {refusal(lambda: face.wait(id, timeout_s=timeout_s)) for face in (pool, client)}  # noqa: B023
    submitted = refusal(lambda: pool.add_and_wait(TaskSpec(type="note"), wait_s=timeout_s))

    text = f"must be a number of seconds from 0 to 316224000, not {timeout_s!r}"
    assert (refusals, submitted) == ({("/timeout_s", text)}, ("/wait_s", text))
    assert redis.dbsize() == keys


@pytest.mark.parametrize("lease_s", [NAN, 0, -1, 10**400, "x"])
def test_a_task_is_claimed_for_no_time_that_can_not_be(pool: Any, lease_s: Any) -> None:
    id = pool.add_task("note").id

    pointer, _ = refusal(lambda: pool.run_task(["default"], worker="w", attempt_id="1", lease_s=lease_s))

    assert (pointer, pool.get(id).status) == ("/lease_s", TaskStatus.QUEUED)


@pytest.mark.parametrize(("queues", "place"), [("default", "/queues"), (["default", "no queue"], "/queues/1")])
def test_a_task_is_claimed_from_no_queue_that_can_not_be(pool: Any, queues: Any, place: str) -> None:
    id = pool.add_task("note").id

    pointer, _ = refusal(lambda: pool.run_task(queues, worker="w", attempt_id="1"))

    assert (pointer, pool.get(id).status) == (place, TaskStatus.QUEUED)


@pytest.mark.parametrize("limit", [0, -3, 2.5, "5", None, True])
def test_a_page_has_one_task_or_more(pool: Any, limit: Any) -> None:
    id = pool.add_task("note").id

    refusals = {
        refusal(lambda: pool.list_tasks(limit=limit)),
        refusal(lambda: pool.get_queue(limit=limit)),
        refusal(lambda: pool.logs(id, limit=limit)),
    }

    assert refusals == {("/limit", f"must be a whole number of 1 or more, not {limit!r}")}
    assert pool.list_tasks(limit=10 * LONGEST_PAGE).items == (pool.get(id),)


def test_tasks_are_listed_by_a_status_or_its_word_and_by_no_other(pool: Any) -> None:
    added = pool.add_task("note")

    pointer, text = refusal(lambda: pool.list_tasks(status="quened"))

    assert pool.list_tasks(status="queued").items == (pool.get(added.id),)
    assert pointer == "/status"
    assert text.startswith("must be one of queued, ")
    assert text.endswith(", not 'quened'")


@pytest.mark.parametrize("name", ["queue", "type", "tag"])
def test_tasks_are_listed_by_names(pool: Any, name: str) -> None:
    assert refusal(lambda: pool.list_tasks(**{name: 5})) == (f"/{name}", "must be a name, not 5")


@pytest.mark.parametrize("cursor", [5, b"x"])
def test_a_cursor_is_a_text(pool: Any, cursor: Any) -> None:
    assert refusal(lambda: pool.list_tasks(cursor=cursor))[0] == "/cursor"


@pytest.mark.parametrize("name", [None, 5, "\ud800"])
def test_a_queue_and_a_type_have_names(pool: Any, name: Any) -> None:
    assert refusal(lambda: pool.get_queue(name))[0] == "/name"
    assert refusal(lambda: pool.add_task(name))[0] == "/type"


@pytest.mark.parametrize("given", [{"type": "note"}, "note", None])
def test_what_is_submitted_is_a_spec(pool: Any, client: Client, given: Any, redis: Redis) -> None:
    text = f"must be a TaskSpec, not {type(given).__name__}"
    specs = [TaskSpec(type="note"), given]

    assert refusal(lambda: pool.submit(given)) == ("", text)
    assert refusal(lambda: pool.add_and_wait(given)) == ("", text)
    assert refusal(lambda: pool.add_tasks(specs)) == ("/1", text)
    assert refusal(lambda: pool.submit_many(specs)) == ("/1", text)
    assert refusal(lambda: client.add_tasks(specs)) == ("/1", text)
    assert redis.dbsize() == 0


@pytest.mark.parametrize("given", [5, "note"])
def test_many_are_submitted_as_a_list(pool: Any, given: Any) -> None:
    text = f"must be a list of TaskSpecs, not {type(given).__name__}"

    assert refusal(lambda: pool.add_tasks(given)) == ("", text)


def test_a_generator_of_specs_is_submitted_whole(pool: Any) -> None:
    specs = (TaskSpec(type="note", payload={"text": str(n)}) for n in range(3))

    assert [each.payload["text"] for each in pool.add_tasks(specs)] == ["0", "1", "2"]


def test_nothing_is_submitted_as_nothing(pool: Any) -> None:
    assert pool.add_tasks([]) == []
    assert pool.submit_many([]).receipts == ()


@pytest.mark.parametrize("id", [None, 5, 10**400, b"x", "\ud800"])
@pytest.mark.parametrize("ask", ["get", "wait", "remove_task", "kill_task", "retry_task", "logs"])
def test_what_can_be_no_id_is_no_tasks(pool: Any, client: Client, ask: str, id: Any) -> None:
    for face in (pool, client):
        with pytest.raises(
            TaskNotFound, match="no task has the id" if isinstance(id, str) else "a task's id is a text, not"
        ):
            getattr(face, ask)(id)


@pytest.mark.parametrize(
    ("given", "named", "advice"),
    [
        (("note", {}), {"delaay": 3}, "has no option 'delaay'; did you mean 'delay'?"),
        (
            ("note",),
            {"text": "a"},
            "has no option 'text'; fields of the payload go into one object, its second argument",
        ),
        ((TaskSpec(type="note"),), {"tag": ["a"]}, "has no option 'tag'; did you mean 'tags'?"),
    ],
)
def test_an_option_that_does_not_exist_is_named_with_a_guess(
    pool: Any, client: Client, given: tuple[Any, ...], named: dict[str, Any], advice: str
) -> None:
    for face in (pool, client):
        with pytest.raises(TypeError) as refused:
            face.add_task(*given, **named)

        assert str(refused.value) == f"add_task() {advice}"
