"""`added_by`, the task that has added one: over HTTP, by the clients and on the command line."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from taskpool import TaskPool, TaskSpec
from taskpool.access.api_key import Scope
from taskpool.access.audit import Actor
from taskpool.cli.__main__ import main
from taskpool.types import Exit, TaskRecord
from tests.api_client import api
from tests.client_kinds import KINDS, client_of
from tests.keys import bearer, make_key
from tests.tasks_for_adding import leaf
from tests.test_add_from_task import REGISTRY, Adds, claim


def add_from_task(redis_url: str, project: str | None = None) -> TaskRecord:
    """A task that has added three; they are its result."""
    Adds.code = staticmethod(lambda ctx: [each.id for each in ctx.add_tasks([leaf.spec(n=n) for n in range(3)])])
    with TaskPool(redis_url, registry=REGISTRY) as pool:
        id = pool.submit(TaskSpec(type="adds", front=True), by=Actor(None, "", project, "")).receipts[0].id
        pool.execute_task(claim(pool))
        return pool.get(id)


async def test_the_api_shows_and_finds_what_a_task_has_added(redis_url: str) -> None:
    parent = add_from_task(redis_url)
    async with api(redis_url) as client:
        child = (await client.get(f"/tasks/{parent.result[0]}")).json()
        found = (await client.get("/tasks", params={"added_by": parent.id})).json()
        first = (await client.get("/tasks", params={"added_by": parent.id, "limit": 2})).json()
        more = {"added_by": parent.id, "limit": 2, "cursor": first["next_cursor"]}
        second = (await client.get("/tasks", params=more)).json()
        refused = await client.get("/tasks", params={"added_by": ""})
        previewed = await client.post(
            "/operations", json={"action": "cancel", "preview": True, "filter": {"added_by": parent.id}}
        )

    assert child["added_by"] == parent.id
    assert [task["id"] for task in found["tasks"]] == sorted(parent.result, reverse=True)
    assert found["complete"] is True
    assert (first["tasks"] + second["tasks"], first["complete"]) == (found["tasks"], False)
    assert (refused.status_code, refused.json()["errors"][0]["parameter"]) == (400, "added_by")
    assert (previewed.json()["count"], previewed.json()["is_exact"]) == (3, True)


async def test_a_key_of_a_project_finds_only_what_was_added_in_it(redis_url: str) -> None:
    own, other = add_from_task(redis_url, "shop"), add_from_task(redis_url)
    key = make_key(redis_url, "k", Scope.READ, project="shop")
    async with api(redis_url) as client:
        answers = [
            (await client.get("/tasks", params={"added_by": each.id}, headers=bearer(key))).json()["tasks"]
            for each in (own, other)
        ]

    assert [{task["id"] for task in tasks} for tasks in answers] == [{*own.result}, set()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_clients_find_it(kind: str, redis_url: str, api_url: str) -> None:
    parent = add_from_task(redis_url)
    with client_of(kind, api_url) as client, TaskPool(redis_url) as pool:
        found = client.list_tasks(added_by=parent.id)

        assert found == pool.list_tasks(added_by=parent.id)
        assert {task.id for task in found.items} == {*parent.result}
        assert client.get(parent.result[0]).added_by == parent.id


def test_the_command_lists_it(redis_url: str, way: list[str]) -> None:
    parent = add_from_task(redis_url)

    def listed(*criteria: str) -> set[str]:
        result = CliRunner().invoke(main, ["list", *criteria, "--json", *way])
        assert result.exit_code == Exit.DONE, result.output
        return {task["id"] for task in json.loads(result.stdout)["tasks"]}

    assert listed("--added-by", parent.id) == listed("--where", f"added_by={parent.id}") == {*parent.result}
    assert listed("--added-by", parent.id, "--type", "adds") == set()
    shown = CliRunner().invoke(main, ["get", parent.result[0], *way])
    assert re.search(rf"^added by +{parent.id}$", shown.stdout, re.MULTILINE)
