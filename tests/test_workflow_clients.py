"""Workflows in the pools and the clients, against workers and an API: each form does the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from taskpool import AsyncClient, AsyncTaskPool, Client, Dependency, InvalidTask, TaskPool, TaskSpec
from taskpool.errors import WorkflowConflict, WorkflowNotFound, WorkflowTimeout
from taskpool.operations.flow.values import NodeSpec, WorkflowRecord, WorkflowSpec
from taskpool.testing import InlinePool
from tests.client_kinds import KINDS, Service, client_of, service
from tests.support import PATIENCE_S, eventually

ECHO = TaskSpec(type="echo", payload={"message": "hi"})
LATER = TaskSpec(type="echo", payload={"message": "hi"}, delay_s=3600)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service"), redis_binary) as there:
        yield there


def build_blocking(pool: TaskPool | Client) -> str:
    with pool.workflow("import") as w:
        first = w.add("first", "echo", {"message": 1})
        w.map("rows", [ECHO] * 3, after=first)
    return w.id


async def build_awaiting(pool: AsyncTaskPool | AsyncClient) -> WorkflowRecord:
    async with pool, pool.workflow("import") as w:
        first = w.add("first", "echo", {"message": 1})
        w.map("rows", [ECHO] * 3, after=first)
    async with pool:
        return await pool.wait_workflow(w.id, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("kind", ["TaskPool", "Client", "AsyncTaskPool", "AsyncClient"])
def test_a_workflow_runs_to_its_end(there: Service, kind: str) -> None:
    if kind == "AsyncTaskPool":
        record = asyncio.run(build_awaiting(AsyncTaskPool(there.redis_url)))
    elif kind == "AsyncClient":
        record = asyncio.run(build_awaiting(AsyncClient(there.url)))
    else:
        with TaskPool(there.redis_url) if kind == "TaskPool" else Client(there.url) as pool:
            record = pool.wait_workflow(build_blocking(pool), timeout_s=PATIENCE_S)

    assert (record.name, record.status, record.counts) == ("import", "done", {"done": 4})
    assert [(each.name, each.status, each.size) for each in record.nodes] == [
        ("first", "done", None),
        ("rows", None, 3),
    ]
    assert record == there.pool.get_workflow(record.id)


@pytest.mark.parametrize("kind", KINDS)
def test_the_clients_do_what_the_pool_does(there: Service, kind: str) -> None:
    spec = WorkflowSpec(name="later", nodes=[NodeSpec(name="a", task=LATER), NodeSpec(name="b", map=[LATER] * 2)])
    with client_of(kind, there.url) as client:
        id = client.add_workflow(spec).id

        with pytest.raises(WorkflowTimeout) as late:
            client.wait_workflow(id, timeout_s=0)
        with pytest.raises(WorkflowConflict) as early:
            client.remove_workflow(id)
        listed = client.workflows(limit=1, name="later").items
        tasks = client.list_tasks(workflow=id, node="b").items
        stopped = client.stop_workflow(id)
        ended = client.wait_workflow(id, timeout_s=PATIENCE_S)
        again = client.stop_workflow(id)
        client.remove_workflow(id)
        with pytest.raises(WorkflowNotFound) as gone:
            client.get_workflow(id)
        batch = client.batch([ECHO, ECHO], on_done=ECHO)
        done = list(client.follow_workflow(batch.id))[-1]

    assert late.value.record.id == id
    assert (early.value.id, early.value.status) == (id, "in_progress")
    assert [each.id for each in listed] == [id]
    assert [(each.node, each.workflow) for each in tasks] == [("b", id)] * 2
    assert (stopped.id, ended.status, again.status) == (id, "stopped", "stopped")
    assert gone.value.id == id
    assert (done.status, done.total) == ("done", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_faulty_graph_is_refused_before_anything_is_sent(kind: str) -> None:
    spec = WorkflowSpec(name="a", nodes=[NodeSpec(name="a", task=ECHO, after=["a"])])

    with client_of(kind, "http://nowhere.invalid") as client, pytest.raises(InvalidTask) as refused:
        client.add_workflow(spec)

    assert refused.value.errors[0].pointer == "/nodes/0/after/0"


def test_a_fault_of_a_task_has_the_same_place_everywhere(there: Service) -> None:
    spec = WorkflowSpec(name="a", nodes=[NodeSpec(name="b", map=[ECHO, TaskSpec(type="echo", payload={"text": 1})])])
    places = []
    with TaskPool(there.redis_url) as pool, Client(there.url) as client:
        submit: Any
        for submit in (pool.add_workflow, client.add_workflow):
            with pytest.raises(InvalidTask) as refused:
                submit(spec)
            places.append([each.pointer for each in refused.value.errors])

    assert places[0] == places[1]
    assert all(each.startswith("/nodes/0/map/1/payload") for each in places[0])


def test_an_inline_pool_runs_a_workflow_when_it_is_waited_for() -> None:
    with InlinePool() as pool:
        with pool.workflow("import") as w:
            rows = w.map("rows", [ECHO, TaskSpec(type="echo", payload={"message": 2}, delay_s=60)])
            w.add("end", ECHO, after=rows)

        record = pool.wait_workflow(w.id)

    assert (record.status, record.counts) == ("done", {"done": 3})


def test_an_inline_pool_forgets_an_ended_workflow_in_time() -> None:
    with InlinePool() as pool:
        batch = pool.batch([TaskSpec(type="echo", payload={"message": n}, result_ttl_s=3600) for n in range(3)])
        pool.wait_workflow(batch.id)

        pool.advance(minutes=59)
        kept = pool.list_tasks(workflow=batch.id).items
        pool.advance(minutes=2)

        assert len(kept) == 3
        assert (pool.workflows().items, pool.list_tasks().items) == ((), ())
        with pytest.raises(WorkflowNotFound):
            pool.get_workflow(batch.id)


def test_the_record_of_a_node_names_the_map_that_it_waits_for() -> None:
    with InlinePool() as pool:
        with pool.workflow("import") as w:
            rows = w.map("rows", [ECHO, ECHO])
            w.add("end", ECHO, after=rows.any())
        (end,) = pool.list_tasks(workflow=w.id, node="end").items

    assert end.depends_on == (Dependency(workflow=w.id, node="rows", on="any"),)
    assert str(end.depends_on[0]) == "map rows:any"


def test_an_inline_pool_says_that_nothing_is_left_to_run() -> None:
    with InlinePool() as pool:
        with pool.workflow("import") as w:
            w.add("a", ECHO, confirm=True)

        with pytest.raises(WorkflowTimeout, match=r"still in_progress .*: it waits for a person at a$") as waiting:
            pool.wait_workflow(w.id)

    assert waiting.value.record.nodes[0].status == "waiting_confirmation"


def test_stopped_workflows_end(there: Service) -> None:
    with TaskPool(there.redis_url) as pool:
        with pool.workflow("long") as w:
            w.add("long", "long_task", {"duration_s": 600})
            w.add("after", ECHO, after="long")
        eventually(lambda: pool.get_workflow(w.id).nodes[0].status == "in_progress")

        stopping = pool.stop_workflow(w.id, grace_s=0.1)
        ended = pool.wait_workflow(w.id, timeout_s=PATIENCE_S)

    assert stopping.status in ("stopping", "stopped")
    assert (ended.status, ended.counts) == ("stopped", {"stopped": 1, "canceled": 1})
