"""Tasks that ask, keep checkpoints, or have to be confirmed, run inline: `ctx.ask`, `ctx.checkpoint`, `ctx.state`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from taskpool import Confirm, Every, NotAnswered, Secret, TaskContext, TaskSpec, TaskStatus, WaitTimeout, task
from taskpool.testing import InlinePool, RecordingSink

S = TaskStatus


@dataclass
class Keep:
    rows: int
    why: Literal["audit", "law"] = "law"


@task("clean_up")
def clean_up(ctx: TaskContext, rows: int = 3120) -> str:
    if ctx.ask("delete", f"Delete {rows:,} rows?", schema=bool, timeout="1d", default=False):
        return "deleted"
    return "kept"


@task("clean_up_async")
async def clean_up_async(ctx: TaskContext) -> str:
    await asyncio.sleep(0)
    return "deleted" if ctx.ask("delete", "Delete 3,120 rows?", schema=bool) else "kept"


@task("clean_up_in_group")
async def clean_up_in_group(ctx: TaskContext) -> str:
    async def ask() -> bool:
        return ctx.ask("delete", "Delete 3,120 rows?", schema=bool)

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(ask())
        group.create_task(asyncio.sleep(0.01))
    return "deleted" if asked.result() else "kept"


@pytest.mark.parametrize("function", [clean_up, clean_up_async])
@pytest.mark.parametrize(("answer", "result"), [(True, "deleted"), (False, "kept")])
def test_a_task_continues_with_the_answer(function: Any, answer: bool, result: str) -> None:
    with InlinePool(function) as pool:
        record = pool.add_task(TaskSpec(type=function.__name__))
        (asked,) = pool.run_all()
        assert (asked.status, asked.attempt, asked.question and asked.question.name) == (
            S.WAITING_CONFIRMATION, 0, "delete",
        )  # fmt: skip
        pool.answer(record.id, answer)

        ended = pool.wait(record.id)
        assert (ended.result, ended.attempt) == (result, 1)
        assert [past.outcome for past in ended.history] == ["asked", "done"]


def test_a_coroutine_in_a_group_may_ask() -> None:
    with InlinePool(clean_up_in_group) as pool:
        id = pool.add_task("clean_up_in_group").id
        (asked,) = pool.run_all()
        assert asked.status is S.WAITING_CONFIRMATION

        pool.answer(id, True)

        assert pool.wait(id).result == "deleted"


def test_a_wait_names_the_question() -> None:
    with InlinePool(clean_up) as pool:
        asking = pool.add_task("clean_up")
        with pytest.raises(WaitTimeout, match="'delete': Delete 3,120 rows"):
            pool.wait(asking.id)

        unconfirmed = pool.add_task("clean_up", confirm="Really?")
        with pytest.raises(WaitTimeout, match="confirmation: Really"):
            pool.wait(unconfirmed.id)


def test_time_that_passes_answers_with_the_default() -> None:
    with InlinePool(clean_up) as pool:
        task = pool.add_task("clean_up")
        pool.advance(hours=23)
        assert pool.get(task.id).status is S.WAITING_CONFIRMATION

        pool.advance(hours=2)

        assert pool.get(task.id).result == "kept"
        assert pool.get(task.id).answers[0].how == "default"


def test_a_confirmation_passes_through_the_inline_pool() -> None:
    with InlinePool(clean_up) as pool:
        yes, no, late = (pool.add_task("echo", {"message": 1}, confirm=Confirm(timeout="1h")) for _ in range(3))
        pool.confirm(yes.id)
        pool.reject(no.id)
        pool.advance(hours=2)

        found = [pool.get(each.id) for each in (yes, no, late)]
        assert [record.status for record in found] == [S.DONE, S.CANCELED, S.CANCELED]
        assert [record.confirmation and record.confirmation.by_default for record in found] == [False, False, True]


def test_a_changed_text_asks_anew() -> None:
    rows = iter([3120, 3121, 3121])

    @task("counts")
    def counts(ctx: TaskContext) -> Any:
        return ctx.ask("delete", f"Delete {next(rows)} rows?", schema=Literal["first", "second"])

    with InlinePool(counts) as pool:
        id = pool.add_task("counts").id
        pool.run_all()
        pool.answer(id, "first")
        (asked_again,) = pool.run_all()
        assert asked_again.question is not None
        assert asked_again.question.text == "Delete 3121 rows?"

        pool.answer(id, "second")

        assert pool.wait(id).result == "second"


def test_an_answer_has_the_type_that_the_task_asks_for() -> None:
    @task("keeps")
    def keeps(ctx: TaskContext) -> str:
        keep = ctx.ask("keep", "What to keep?", schema=Keep, timeout="1h", default=Keep(1))
        assert isinstance(keep, Keep)
        return f"{keep.rows} {keep.why}"

    with InlinePool(keeps) as pool:
        one, other = pool.add_task("keeps").id, pool.add_task("keeps").id
        pool.run_all()
        assert pool.get(one).question is not None
        pool.answer(one, {"rows": 7, "why": "audit"})
        pool.advance(hours=2)

        assert [pool.wait(id).result for id in (one, other)] == ["7 audit", "1 law"]


def test_without_a_default_the_task_is_told_that_nobody_answered() -> None:
    @task("told")
    def told(ctx: TaskContext, catches: bool) -> Any:
        try:
            return ctx.ask("name", "Which name?", schema={"type": "string"}, timeout=60)
        except NotAnswered:
            if catches:
                return "nobody"
            raise

    with InlinePool(told) as pool:
        caught, failed = (pool.add_task("told", {"catches": catches}, max_attempts=3) for catches in (True, False))
        pool.advance(minutes=2)

        assert pool.get(caught.id).result == "nobody"
        record = pool.get(failed.id)
        assert (record.status, record.attempt) == (S.FAILED, 1)
        assert "no answer to 'name' in time" in (record.error or "")
        pool.retry_task(failed.id)
        (asked,) = pool.run_all()
        assert asked.status is S.WAITING_CONFIRMATION


def test_a_task_may_ask_a_hundred_times() -> None:
    @task("curious")
    def curious(ctx: TaskContext) -> None:
        for number in range(200):
            ctx.ask(f"q{number}", "Again?")

    with InlinePool(curious) as pool:
        id = pool.add_task("curious").id
        asked = 0
        pool.run_all()
        while pool.get(id).status is S.WAITING_CONFIRMATION:
            asked += 1
            pool.answer(id, asked)
            pool.run_all()

        record = pool.get(id)
        assert (asked, record.status, record.reason) == (100, S.FAILED, "too_many_questions")
        assert len(record.answers) == 100


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": ""}, {"name": "a b"}, {"name": 5}, {"text": ""}, {"text": " x"}, {"text": "x" * 2001}, {"text": 5},
        {"timeout": 0}, {"timeout": "soon"}, {"timeout": None}, {"default": float("nan")}, {"default": object()},
        {"schema": bool, "default": "yes"}, {"schema": {"type": "string", "description": "x" * 17_000}},
        {"schema": asyncio.Lock}, {"schema": {"type": "nothing"}}, {"schema": {"$ref": "http://localhost/schema"}},
        {"schema": {"type": "string"}, "default": 5},
    ],
)  # fmt: skip
def test_a_wrong_question_fails_the_task_and_asks_nothing(arguments: dict[str, Any]) -> None:
    @task("wrong")
    def wrong(ctx: TaskContext) -> None:
        ctx.ask(**{"name": "n", "text": "Go?", **arguments})

    with InlinePool(wrong) as pool:
        record = pool.run("wrong")

        assert (record.status, record.reason) == (S.FAILED, "exception")


def test_secrets_are_masked_in_questions_and_checkpoints() -> None:
    @task("signs_in")
    def signs_in(ctx: TaskContext, password: Secret[str]) -> str:
        ctx.checkpoint({"with": password, "step": 1})
        ctx.ask("go", f"Sign in with {password}?", default=password)
        return str(ctx.state)

    with InlinePool(signs_in) as pool:
        id = pool.add_task("signs_in", {"password": "hunter2-and-more"}).id
        pool.run_all()
        question = pool.get(id).question
        assert question is not None
        assert "hunter2" not in str(question)
        pool.answer(id, True)

        record = pool.wait(id)

        assert record.status is S.DONE, record.error
        assert "hunter2" not in str(record)


@dataclass
class Crash(Exception):
    at: int


def test_the_next_attempt_continues_from_the_checkpoint() -> None:
    seen: list[int] = []

    @task("copies", max_attempts=5, backoff_s=0)
    def copies(ctx: TaskContext) -> list[int]:
        assert ctx.attempt > 1 or ctx.state is None
        for page in range(ctx.state or 0, 5):
            seen.append(page)
            if page == 2 and ctx.attempt == 1:
                raise Crash(page)
            if page == 3:
                ctx.ask("on", "Go on?")
            ctx.checkpoint(page + 1)
            assert ctx.state == page + 1
        return seen

    with InlinePool(copies) as pool:
        id = pool.add_task("copies").id
        pool.run_all()
        pool.answer(id, True)

        assert pool.wait(id).result == [0, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("state", ["x" * 65_535, float("inf"), object(), "\ud800"])
def test_a_state_that_is_too_large_or_no_json_is_refused_in_the_task(state: Any) -> None:
    @task("keeps_too_much")
    def keeps_too_much(ctx: TaskContext) -> str:
        ctx.checkpoint("x" * 65_000)
        with pytest.raises(ValueError, match=r"."):
            ctx.checkpoint(state)
        return str(len(ctx.state))

    with InlinePool(keeps_too_much) as pool:
        assert pool.run("keeps_too_much").result == "65000"


def test_a_task_that_a_test_calls_gets_its_answers_from_the_sink() -> None:
    ctx = TaskContext(sink := RecordingSink(answers={"delete": True}), id="t1", type="clean_up")

    assert clean_up(ctx) == "deleted"
    ctx.checkpoint({"row": 1})
    assert (ctx.state, sink.kept) == ({"row": 1}, {"row": 1})


def test_a_node_of_a_workflow_may_have_to_be_confirmed() -> None:
    with InlinePool(clean_up) as pool:
        with pool.workflow("import") as w:
            first = w.add(
                "import", TaskSpec(type="echo", payload={"message": 1}), confirm=Confirm("Import?", timeout="3d")
            )
            w.add("after", TaskSpec(type="echo", payload={"message": 2}), after=first)
        (asked,) = pool.list_tasks(status=S.WAITING_CONFIRMATION).items
        assert asked.confirm is not None
        assert (asked.node, asked.confirm.text) == ("import", "Import?")

        pool.confirm(asked.id)
        pool.run_all()

        assert pool.get_workflow(w.id).status == "done"


def test_a_rejected_node_fails_its_workflow() -> None:
    with InlinePool(clean_up) as pool:
        with pool.workflow("import") as w:
            w.add("import", TaskSpec(type="echo", payload={"message": 1}), confirm=True)
        (asked,) = pool.list_tasks(status=S.WAITING_CONFIRMATION).items

        pool.reject(asked.id)

        assert pool.get_workflow(w.id).status == "failed"


def test_a_task_of_a_schedule_may_have_to_be_confirmed() -> None:
    with InlinePool(clean_up) as pool:
        pool.set_schedule("nightly", Every("1h"), TaskSpec(type="clean_up", confirm="Tonight?"))
        pool.advance(hours=1)

        (asked, *_) = pool.list_tasks(status=S.WAITING_CONFIRMATION).items

        assert asked.confirm is not None
        assert asked.confirm.text == "Tonight?"


def test_the_error_about_a_timeout_says_whose_it_is() -> None:
    @task("asks_soon")
    def asks_soon(ctx: TaskContext) -> None:
        ctx.ask("go", "Go?", timeout="soon")

    with InlinePool(asks_soon) as pool:
        assert (pool.run("asks_soon").error or "").startswith("ValueError: ask: the timeout must be a duration from ")
