"""What the operations of the API answer when all is well, and refusals that only some of them have."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from api.events import hub
from taskpool.access import keyring
from taskpool.access.api_key import KeySpec, Scope
from taskpool.redis import keys
from taskpool.redis.scripts import log
from taskpool.tasks.log_lines import LogLine, encode_line
from taskpool.types import DEFAULT_LIMITS, TaskStatus
from tests.api_client import run_next
from tests.api_walk import BODIES, Walk, answers_of, refusal_of
from tests.keys import ME, bearer, make_key


@answers_of("open_door", "is_alive", "is_ready", "list_queues", "list_workers", "get_openapi", "get_asyncapi")
@answers_of("create_ticket", "list_keys")
async def one_answer(walk: Walk, id: str) -> None:
    await walk.ask(id)


@answers_of("get_metrics")
async def in_both_forms(walk: Walk, id: str) -> None:
    walk.world.end("a")
    await walk.ask(id)
    await walk.ask(id, headers={"accept": "application/openmetrics-text; version=1.0.0"})


@answers_of("show_docs", "list_types")
async def once_and_not_again(walk: Walk, id: str) -> None:
    first = await walk.ask(id)
    await walk.ask(id, headers={"if-none-match": first.headers["etag"]})


@answers_of("get_docs_file")
async def a_script_and_a_style(walk: Walk, id: str) -> None:
    await walk.ask(id, at="docs.js")
    first = await walk.ask(id, at="docs.css")
    await walk.ask(id, at="docs.css", headers={"if-none-match": first.headers["etag"]})


# --- submissions ----------------------------------------------------------------------------------------------


@answers_of("submit_task")
async def a_task(walk: Walk, id: str) -> None:
    unique = {**BODIES[id], "unique_key": "u", "on_conflict": "return"}
    once = {"idempotency-key": "1"}

    await walk.ask(id, headers={**once, "prefer": "wait=0"})
    await walk.ask(id, headers=once)
    run_next(walk.redis_url, result=b"1")
    await walk.ask(id, headers={**once, "prefer": "wait=1"})
    await walk.ask(id, json=unique)
    assert (await walk.ask(id, json=unique)).status_code == 200


@answers_of("submit_batch")
async def a_batch(walk: Walk, id: str) -> None:
    for _ in range(2):
        await walk.ask(id, headers={"idempotency-key": "1"})


def _submission(id: str, **options: Any) -> dict[str, Any]:
    task = {**BODIES["submit_task"], **options}
    return task if id == "submit_task" else {"tasks": [task]}


@refusal_of("unknown-type", "submit_task", "submit_batch")
async def of_no_type(walk: Walk, id: str) -> httpx.Response:
    return await walk.ask(id, json=_submission(id, type="ecco"))


@refusal_of("invalid-payload", "submit_task", "submit_batch")
async def with_a_wrong_payload(walk: Walk, id: str) -> httpx.Response:
    return await walk.ask(id, json=_submission(id, payload={"massage": 1}))


@refusal_of("unknown-dependency", "submit_task", "submit_batch")
async def after_nobody(walk: Walk, id: str) -> httpx.Response:
    return await walk.ask(id, json=_submission(id, depends_on=["nobody"]))


@refusal_of("queue-full", "submit_task", "submit_batch")
async def to_a_full_queue(walk: Walk, id: str) -> httpx.Response:
    walk.world.add("a")
    return await walk.ask(id, await walk.server(max_queue_depth=1))


@refusal_of("cap-reached", "submit_task", "submit_batch", "create_webhook")
async def beyond_a_cap(walk: Walk, id: str) -> httpx.Response:
    capped = await walk.server(max_tags=1, max_webhooks=1)
    if id == "create_webhook":
        hook = {**BODIES[id], "project": "p"}
        await walk.ask(id, capped, json=hook)
        return await walk.ask(id, capped, json=hook)
    project = bearer(make_key(walk.redis_url, project="p"))
    return await walk.ask(id, capped, json=_submission(id, tags=["a", "b"]), headers=project)


@refusal_of("unique-conflict", "submit_task", "submit_batch")
async def with_a_key_that_is_held(walk: Walk, id: str) -> httpx.Response:
    await walk.ask(id, json=_submission(id, unique_key="u"))
    return await walk.ask(id, json=_submission(id, unique_key="u"))


@refusal_of("idempotency-key-reused", "submit_task", "submit_batch")
async def another_one_by_the_same_key(walk: Walk, id: str) -> httpx.Response:
    await walk.ask(id, headers={"idempotency-key": "1"})
    return await walk.ask(id, json=_submission(id, front=True), headers={"idempotency-key": "1"})


@refusal_of("forbidden", "submit_task", "submit_batch")
async def a_type_that_is_not_for_this_key(walk: Walk, id: str) -> httpx.Response:
    await walk.ask(id, headers=bearer(make_key(walk.redis_url, "reader", Scope.READ)))
    return await walk.ask(id, headers=bearer(make_key(walk.redis_url, "k", types=("wait",))))


# --- tasks ----------------------------------------------------------------------------------------------------


@answers_of("get_task")
async def a_task_as_it_is(walk: Walk, id: str) -> None:
    for status in (TaskStatus.FAILED, TaskStatus.STOPPED):
        walk.world.end(status, status)
        await walk.ask(id, at=status)
    await walk.ask("submit_task", json={**BODIES["submit_task"], "tags": ["a"], "unique_key": "u", "delay_s": 60})
    walk.world.end("a")
    first = await walk.ask(id, at="a", params={"wait": "1"})
    await walk.ask(id, at="a", params={"wait": "1"}, headers={"if-none-match": first.headers["etag"]})


@answers_of("list_tasks", "get_queue", "list_queues")
async def two_pages(walk: Walk, id: str) -> None:
    for name in ("a", "b"):
        walk.world.add(name)
    walk.world.add("c", queue="other")
    first = await walk.ask(id, at="default", params={"limit": "1"})
    await walk.ask(id, at="default", params={"cursor": first.json()["next_cursor"]})


@answers_of("remove_task")
async def canceled_and_then_purged(walk: Walk, id: str) -> None:
    walk.world.add("a")
    for _ in range(2):
        await walk.ask(id, at="a")


@refusal_of("task-conflict", "remove_task")
async def it_runs(walk: Walk, id: str) -> httpx.Response:
    walk.world.start("a")
    return await walk.ask(id, at="a")


@answers_of("stop_task")
async def with_and_without_grace(walk: Walk, id: str) -> None:
    for name in ("a", "b"):
        walk.world.start(name)
    await walk.ask(id, at="a")
    await walk.ask(id, at="b", json={"force": True, "grace_s": 0})


@refusal_of("task-conflict", "stop_task")
async def it_has_ended(walk: Walk, id: str) -> httpx.Response:
    walk.world.end("a")
    return await walk.ask(id, at="a")


@answers_of("retry_task")
async def after_a_failure(walk: Walk, id: str) -> None:
    walk.world.end("a", TaskStatus.FAILED)
    await walk.ask(id, at="a")


@refusal_of("task-conflict", "retry_task")
async def it_waits(walk: Walk, id: str) -> httpx.Response:
    walk.world.add("a")
    return await walk.ask(id, at="a")


@answers_of("task_logs")
async def in_every_form(walk: Walk, id: str) -> None:
    running = walk.world.start("a")
    lines = [LogLine(at_ms=0, text=text, attempt=1, stream="stdout", level="info", logger="l") for text in "123"]
    assert walk.world.run(log("a", "1", [encode_line(line) for line in lines], DEFAULT_LIMITS)) == "ok"
    await walk.ask(id, at="a", params={"limit": "1"})
    await walk.ask(id, at="a", params={"limit": "1", "format": "text"})
    await walk.ask(id, at="a", params={"follow": "1"})
    walk.world.finish(running)
    told = await walk.ask(id, at="a", params={"follow": "1"}, headers={"accept": "text/event-stream"})
    last = told.text.rpartition("id: ")[2].partition("\n")[0]
    await walk.ask(id, at="a", params={"follow": "1", "format": "events"}, headers={"last-event-id": last})
    walk.world.add("b")
    await _that_goes(walk, id, "b", params={"follow": "1", "format": "events"})


async def _that_goes(walk: Walk, id: str, at: str, **how: Any) -> None:
    """Follow a task that has nothing to tell and whose record is deleted meanwhile."""
    walk.patch.setattr(hub, "MARK_S", 0.01)
    walk.patch.setattr(hub, "CHECK_S", 0.0)
    following = asyncio.create_task(walk.ask(id, at=at, **how))
    async with asyncio.timeout(30):
        while not walk.world.redis.pubsub_numsub(keys.CHANNEL + at)[0][1]:
            await asyncio.sleep(0.01)
    walk.world.redis.delete(keys.JOB + at)
    await following


@answers_of("follow_task")
async def to_the_end_and_no_more(walk: Walk, id: str) -> None:
    walk.world.end("a")
    told = await walk.ask(id, at="a")
    last = told.text.rpartition("id: ")[2].partition("\n")[0]
    await walk.ask(id, at="a", headers={"last-event-id": "0-0"})
    await walk.ask(id, at="a", headers={"last-event-id": last})
    walk.world.add("b")
    newest = walk.world.redis.xrevrange(keys.EVENTS, count=1)[0][0].decode()
    await _that_goes(walk, id, "b", params={"last_event_id": newest})
    walk.world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)
    await walk.ask(id, at="a", params={"last_event_id": "0-1"})


@answers_of("follow_tasks")
async def after_the_first_event_and_after_one_that_is_gone(walk: Walk, id: str) -> None:
    walk.world.end("a")
    await walk.ask(id, params={"last_event_id": "0-0"})
    walk.world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)
    await walk.ask(id, params={"last_event_id": "0-1"})


# --- keys -----------------------------------------------------------------------------------------------------


def _key(walk: Walk) -> str:
    key, _ = walk.world.store.carry_out(keyring.create(KeySpec(name="k", scopes=(Scope.ADMIN,)), ME))
    return key.id


@answers_of("create_key")
async def a_key_of_any_form(walk: Walk, id: str) -> None:
    await walk.ask(id)
    admin = bearer(make_key(walk.redis_url, "admin", Scope.ADMIN))
    bound = {"name": "n", "scopes": ["tasks:write"], "project": "p", "types": ["echo"], "expires_in_s": 60}
    await walk.ask(id, await walk.server(max_streams=9), json=bound, headers=admin)


@answers_of("rotate_key", "revoke_key")
async def of_a_key(walk: Walk, id: str) -> None:
    await walk.ask(id, await walk.server(auth="off"), at=_key(walk))


@answers_of("read_audit")
async def two_pages_of_the_audit(walk: Walk, id: str) -> None:
    for _ in range(2):
        _key(walk)
    off = await walk.server(auth="off")
    first = await walk.ask(id, off, params={"limit": "1"})
    await walk.ask(id, off, params={"cursor": first.json()["next_cursor"]})
    since, until = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00+01:00"
    await walk.ask(id, off, params={"what": "key.created", "since": since, "until": until, "limit": "1"})
    await walk.ask(id, off, params={"key": "0" * 12, "project": "none", "what": "task.submitted"})
    await walk.ask(id, off, params={"since": until, "until": since})
