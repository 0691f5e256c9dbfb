"""The messages that are sent, as the OpenAPI document describes them: those to endpoints and those to callbacks."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import msgspec
import pytest

from api.app import create_app
from api.openapi.document import describe
from taskpool.settings import Settings
from taskpool.types import ENDS, WEBHOOK_EVENTS, TaskStatus
from taskpool.webhooks.delivery import outbox_page
from taskpool.webhooks.endpoint import Webhook, message_body, new_secret, signed_headers, trial_body
from tests.states import World

URL = "https://hooks.example/in"


@pytest.fixture(scope="module")
def described() -> Any:
    routes = create_app(Settings(redis_url="redis://nowhere")).routes
    return msgspec.json.decode(msgspec.json.encode(describe(routes, [])))


def validator(document: Any, message: Any) -> jsonschema_rs.Draft202012Validator:
    """Of a message's body; it has no room for members that the document doesn't name."""
    schema = message["requestBody"]["content"]["application/json"]["schema"]
    schemas = {
        name: each if name == "Message" else {**each, "additionalProperties": False}
        for name, each in document["components"]["schemas"].items()
    }
    whole = {**schema, "unevaluatedProperties": False, "components": {"schemas": schemas}}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def callback_of(document: Any, path: str) -> tuple[str, Any]:
    """Where the callbacks of a submission are sent, and what."""
    ((where, item),) = document["paths"][path]["post"]["callbacks"]["step"].items()
    return where, item["post"]


def test_the_operation_of_a_submission_describes_its_callback(described: Any) -> None:
    assert callback_of(described, "/tasks")[0] == "{$request.body#/callback_url}"
    assert callback_of(described, "/tasks/batch")[0] == "{$request.body#/tasks/0/callback_url}"
    assert [path for path, item in described["paths"].items() if "callbacks" in str(item.get("post", {}).keys())] == [
        "/tasks",
        "/tasks/batch",
    ]


def test_every_message_is_as_it_is_described(described: Any, world: World) -> None:
    ends = {TaskStatus.DONE, TaskStatus.FAILED, TaskStatus.STOPPED}
    for status in ends:
        world.end(status, status, tags=["x"], callback_url=URL, callback_events=WEBHOOK_EVENTS)
    world.add("later", delay_s=60, callback_url=URL, callback_events=WEBHOOK_EVENTS)
    world.cancel("later")

    entries = world.run(outbox_page("s", hold_ms=1000, limit=100)).entries
    bodies = [message_body(entry, b'{"a": 1}' if entry.event["event"] == "done" else None) for entry in entries]

    assert {msgspec.json.decode(body)["type"] for body in bodies} == {
        f"taskpool.task.{event}" for event in ("queued", "scheduled", "started", *ENDS)
    }
    for message in (described["webhooks"]["task"]["post"], callback_of(described, "/tasks")[1]):
        for body in bodies:
            validator(described, message).validate(msgspec.json.decode(body))


def test_endpoints_alone_are_sent_trials(described: Any) -> None:
    trial = msgspec.json.decode(trial_body(Webhook(id="wh_1", url=URL, secret=new_secret()), 0))

    assert validator(described, described["webhooks"]["task"]["post"]).is_valid(trial)
    assert not validator(described, callback_of(described, "/tasks")[1]).is_valid(trial)


def test_a_message_has_the_headers_that_are_described(described: Any) -> None:
    headers = signed_headers("msg_1", 1_795_435_200, b"{}", [new_secret(), new_secret()])

    parameters = {each["name"]: each for each in described["webhooks"]["task"]["post"]["parameters"]}
    assert parameters.keys() == headers.keys()
    for name, value in headers.items():
        jsonschema_rs.validate(parameters[name]["schema"], value)
