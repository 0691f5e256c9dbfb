"""The OpenAPI document as a contract: what the API answers in any test fits it, and all that it promises is seen.

Each answer of an application in the test's own process, and each stream that `StreamClient` reads, is compared with the
document: the status must be there for the operation, media type and body must fit, and the headers must be those that
the document names. A run of the whole suite fails if the document has an answer, a kind of problem, an event or a
header that no test has seen.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

import jsonschema_rs
import pytest
from starlette.datastructures import Headers

Object = dict[str, Any]

ANYWHERE: Final = {
    *("cache-control", "connection", "content-encoding", "content-length", "content-security-policy", "content-type"),
    *("cross-origin-resource-policy", "date", "referrer-policy", "server", "transfer-encoding", "vary"),
    *("x-accel-buffering", "x-content-type-options"),
}
"""Headers of HTTP and for browsers: no operation names them."""
OF_EVERY_OPERATION: Final = ("RateLimit", "RateLimit-Policy", "Retry-After")
"""Headers that come from one place: they must be seen with each status, not with each operation."""
PROBLEM: Final = "application/problem+json"
EVENTS: Final = "text/event-stream"


class Answer(NamedTuple):
    """One answer of the API. The body of a stream is what was read of it."""

    method: str
    path: str
    status: int
    headers: Headers
    body: bytes


class Promise(NamedTuple):
    """Something that the document says of an operation: an answer `what` (a media type, the kind of a problem, an
    event of a stream, or "nothing"), or one of its headers."""

    operation: str
    status: str
    what: str


class Contract:
    """A document, and which of its promises were kept."""

    def __init__(self, document: Object) -> None:
        self.kept: set[Promise] = set()
        self._components = document["components"]
        self._closed = {name: _closed(schema) for name, schema in self._components["schemas"].items()}
        self._paths = {
            re.compile(re.sub(r"{\w+}", "[^/]+", path.replace("{file}", ".+"))): {
                method: {
                    "id": operation["operationId"],
                    "responses": {
                        status: self._referred("responses", response)
                        for status, response in operation["responses"].items()
                    },
                }
                for method, operation in methods.items()
            }
            for path, methods in document["paths"].items()
        }

    def promises(self) -> set[Promise]:
        """All that the document says of answers."""
        return {
            _promise(operation["id"], status, what)
            for methods in self._paths.values()
            for operation in methods.values()
            for status, response in operation["responses"].items()
            for what in _promised(response)
        }

    def check(self, answer: Answer) -> None:
        """Compare an answer with the document.

        Raises:
            AssertionError: it doesn't fit.
        """
        methods = next((methods for path, methods in self._paths.items() if path.fullmatch(answer.path)), {})
        operation = methods.get("get" if answer.method == "HEAD" else answer.method.lower())
        if operation is None:
            return
        status, body = str(answer.status), answer.body.decode(errors="replace")
        try:
            assert status in operation["responses"], "the document has no such status"
            response = operation["responses"][status]
            seen = {*self._check_headers(response, answer.headers), *self._check_body(response, answer, body)}
        except (AssertionError, jsonschema_rs.ValidationError) as fault:
            raise AssertionError(
                f"{operation['id']} ({answer.method} {answer.path}) answered {answer.status}, and that isn't as the"
                f" OpenAPI document says: {fault}\n{answer.headers}\n{body[:500]}"
            ) from None
        self.kept |= {_promise(operation["id"], status, what) for what in seen}

    def _check_headers(self, response: Object, given: Headers) -> Iterator[str]:
        named = {name.lower(): name for name in response.get("headers", {})}
        unknown = {name for name in given if not name.startswith("access-control-")} - ANYWHERE - named.keys()
        assert not unknown, f"the document doesn't have the headers {unknown}"
        for lower, name in named.items():
            header = self._referred("headers", response["headers"][name])
            assert lower in given or not header.get("required"), f"there is no {name}"
            if lower in given:
                is_number = header["schema"].get("type") == "integer"
                jsonschema_rs.validate(header["schema"], int(given[lower]) if is_number else given[lower])
                yield f"header {name}"

    def _check_body(self, response: Object, answer: Answer, body: str) -> Iterator[str]:
        if answer.method == "HEAD" and not body:
            return
        if "content" not in response:
            assert not body, "there should be no body"
            yield "nothing"
            return
        media_type = answer.headers["content-type"].partition(";")[0]
        assert media_type in response["content"], f"the document doesn't have {media_type}"
        schema = response["content"][media_type]["schema"]
        if media_type == EVENTS:
            yield from self._check_events(schema, body)
            return
        value: Any = json.loads(body) if media_type.endswith("json") else body
        self._validator(json.dumps(schema)).validate(value)
        yield value["type"] if media_type == PROBLEM else media_type

    def _check_events(self, schema: Object, body: str) -> Iterator[str]:
        assert re.match(r"retry: \d+\n", body), "a stream should begin with retry:"
        known = {each["properties"]["event"]["const"]: each for each in schema["oneOf"]}
        for block in body.partition("\n")[2].split("\n\n")[:-1]:
            lines = [line for line in block.splitlines() if not line.startswith(":")]
            if lines:
                event = {"event": "message", **dict(line.split(": ", 1) for line in lines)}
                assert event["event"] in known, f"the document has no event {event['event']!r}"
                described = known[event["event"]]
                self._validator(json.dumps(described)).validate(event)
                data = described["properties"]["data"]["contentSchema"]
                self._validator(json.dumps(data)).validate(json.loads(event["data"]))
                yield f"event {event['event']}"

    def _referred(self, kind: str, part: Object) -> Object:
        """A part of the document, or the component of this kind that it refers to."""
        name = part.get("$ref", "").rpartition("/")[2]
        found: Object = self._components[kind][name] if name else part
        return found

    @cache  # noqa: B019  # there is one contract in each process
    def _validator(self, text: str) -> Any:
        """The validator of a schema, which allows no field that the schema doesn't name."""
        schema = json.loads(text)
        whole = {"components": {"schemas": self._closed}, **schema, "unevaluatedProperties": False}
        if schema == {"type": "object"} or "additionalProperties" in schema:
            del whole["unevaluatedProperties"]
        return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def _promise(operation: str, status: str, what: str) -> Promise:
    return Promise("any operation" if what.removeprefix("header ") in OF_EVERY_OPERATION else operation, status, what)


def _promised(response: Object) -> Iterator[str]:
    yield from (f"header {name}" for name in response.get("headers", {}))
    if "content" not in response:
        yield "nothing"
    for media_type, content in response.get("content", {}).items():
        if media_type == PROBLEM:
            yield from content["schema"]["properties"]["type"]["enum"]
        elif media_type == EVENTS:
            yield from (f"event {each['properties']['event']['const']}" for each in content["schema"]["oneOf"])
        else:
            yield media_type


def _closed(schema: Object) -> Object:
    """The schema of an object without room for fields that it doesn't name; a problem's is closed where it is used."""
    if schema.get("title") in ("Problem", "ProblemDocument") or "properties" not in schema:
        return schema
    return {"additionalProperties": False, **schema}


@cache
def contract() -> Contract:
    """The contract of this process: the document without the task types of users."""
    from api.app import create_app
    from api.openapi.document import describe
    from taskpool.settings import Settings

    routes = create_app(Settings(redis_url="redis://nowhere")).routes
    return Contract(json.loads(json.dumps(describe(routes, []))))


# --- in a run of the tests -----------------------------------------------------------------------------------------

ANSWERS: Final[list[Answer]] = []
"""Those of the present test."""
MISSING: Final = pytest.StashKey[list[Promise]]()


@pytest.fixture(autouse=True)
def answers_fit_the_document(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test in which the API answered what the document doesn't have."""
    if "api.app" not in sys.modules:
        yield
        return
    from api.app import Application

    serve: Any = Application.__call__

    async def recorded(self: Any, scope: Any, receive: Any, send: Any) -> None:
        body = bytearray()
        start: Object = {}

        async def note(message: Any) -> None:
            start.update(message if message["type"] == "http.response.start" else {})
            body.extend(message.get("body", b""))
            await send(message)

        if scope["type"] != "http":
            await serve(self, scope, receive, send)
            return
        try:
            await serve(self, scope, receive, note)
        finally:
            if start:
                headers = Headers(raw=list(start["headers"]))
                ANSWERS.append(Answer(scope["method"], scope["path"], start["status"], headers, bytes(body)))

    ANSWERS.clear()
    Application.__call__ = recorded  # type: ignore[method-assign]
    yield
    Application.__call__ = serve  # type: ignore[method-assign]
    if request.node.get_closest_marker("undocumented") is None:
        for answer in ANSWERS:
            contract().check(answer)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Side by side: the process that ran the tests gets what each of the others has seen."""
    contract().kept |= {Promise(*each) for each in getattr(node, "workeroutput", {}).get("kept", ())}


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run of the whole suite fails if something that the document promises was never seen."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["kept"] = sorted(map(tuple, contract().kept))
        return
    option = config.option
    is_part = option.keyword or option.markexpr or option.deselect or option.collectonly
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and not is_part and not exitstatus:
        config.stash[MISSING] = sorted(contract().promises() - contract().kept)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if config.stash[MISSING] else session.exitstatus


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says what was never seen."""
    if missing := config.stash.get(MISSING, []):
        terminalreporter.section("The OpenAPI document promises what no test has seen", red=True)
        for promise in missing:
            terminalreporter.line(" ".join(promise))
