"""Each task option, from its declaration through HTTP, Python, the command line, the record, its document, the client
and the docs; and that a new option is declared in one file."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from click.testing import CliRunner

from api.app import create_app
from api.openapi.document import describe
from taskpool import InvalidTask, Registry, Task, TaskPool, TaskRecord, TaskSpec
from taskpool.cli.__main__ import main
from taskpool.client import values
from taskpool.client.request import Answer
from taskpool.operations.documents import TaskDocument
from taskpool.settings import Settings
from taskpool.types import OPTIONS, Confirm, TaskOptions, TypeKeywords, TypeOptions
from taskpool.validation import Declared, Duration
from tests.api_client import api, publish_types

ROOT = Path(__file__).parent.parent
PARENT = "the ID of another task"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Example:
    """A value of an option, another option that it needs, and what the record shows: the same value, or `shown`."""

    value: Any
    needs: tuple[str, Any] | None = None
    is_shown: bool = True
    shown: Any = None


EXAMPLES = {
    "queue": Example("images"),
    "timeout_s": Example(7.5),
    "max_attempts": Example(3),
    "backoff_s": Example(0.0),
    "backoff_max_s": Example(9.0),
    "on_lost_lease": Example("kill"),
    "result_ttl_s": Example(60),
    "failure_ttl_s": Example(61),
    "tags": Example(["a", "b"], shown=("a", "b")),
    "depends_on": Example([PARENT], shown=(PARENT,)),
    "confirm": Example("Go?", shown=Confirm("Go?")),
    "callback_url": Example("https://hooks.example/in"),
    "callback_events": Example(["failed"], needs=("callback_url", "https://hooks.example/in"), shown=("failed",)),
    "unique_key": Example("key"),
    "unique_for_s": Example(3600.0, needs=("unique_key", "key")),
    "traceparent": Example(TRACE),
    "tracestate": Example("vendor=1", needs=("traceparent", TRACE)),
    "delay": Example("1h30m", is_shown=False),
    "delay_s": Example(3600.0, is_shown=False),
    "run_at": Example("2199-12-24T18:00:00Z", shown=datetime(2199, 12, 24, 18, tzinfo=UTC)),
    "front": Example(True, is_shown=False),
    "expires_in_s": Example(60.0, is_shown=False),
    "unique_until": Example("start", needs=("unique_key", "key")),
    "on_conflict": Example("return", needs=("unique_key", "key"), is_shown=False),
}
WRONG: dict[Any, Any] = {str: 5, float: -1, int: 0, bool: "yes", datetime: "tomorrow", Duration: "soon"}

each_option = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    publish_types(redis_url)
    with TaskPool(redis_url, registry=Registry(builtins=True)) as pool:
        yield pool


@pytest.fixture
def parent(pool: TaskPool) -> str:
    return pool.add_task("echo", {"message": "first"}).id


def given(option: Declared, parent: str) -> dict[str, Any]:
    """The options of a submission in JSON: the example, and what it needs."""
    example = EXAMPLES[option.name]
    value = [parent] if example.value == [PARENT] else example.value
    return {option.name: value} | dict([example.needs] if example.needs else [])


def check_shown(record: TaskRecord, option: Declared, parent: str) -> None:
    example = EXAMPLES[option.name]
    if example.is_shown:
        expected = example.value if example.shown is None else example.shown
        assert getattr(record, option.name) == ((parent,) if expected == (PARENT,) else expected)


def test_every_option_has_an_example() -> None:
    assert EXAMPLES.keys() == {option.name for option in OPTIONS}


@pytest.mark.parametrize(("options", "keywords"), [(TypeOptions, TypeKeywords), (TaskSpec, TaskOptions)])
def test_the_keyword_arguments_are_the_options(options: type, keywords: type) -> None:
    fields = get_type_hints(options)

    assert get_type_hints(keywords) == {name: fields[name] for name in fields.keys() - {"type", "payload"}}


def test_a_task_class_may_set_each_option_of_a_type() -> None:
    assert vars(Task).keys() >= set(TypeOptions.__struct_fields__)


@each_option
async def test_http_takes_each_option(option: Declared, pool: TaskPool, parent: str) -> None:
    submission = {"type": "echo", "payload": {"message": 1}, **given(option, parent)}
    async with api(pool.redis_url) as client:
        accepted = await client.post("/tasks", json=submission)
        task = await client.get(accepted.headers["location"])

    check_shown(values.record(Answer(task.status_code, {}, task.content)), option, parent)


@each_option
async def test_http_refuses_a_wrong_value_with_a_pointer(option: Declared, pool: TaskPool) -> None:
    wrong = {"type": "echo", "payload": {"message": 1}, option.name: WRONG.get(option.type, 5)}
    async with api(pool.redis_url) as client:
        refused = await client.post("/tasks", json=wrong)

    assert refused.status_code == 422
    assert option.name in {error["pointer"].split("/")[1] for error in refused.json()["errors"]}


@each_option
def test_python_takes_each_option_and_the_record_shows_it(option: Declared, pool: TaskPool, parent: str) -> None:
    options: Any = given(option, parent)
    if option.type is datetime:
        options[option.name] = EXAMPLES[option.name].shown

    record = pool.add_task("echo", {"message": 1}, **options)

    check_shown(record, option, parent)
    assert record == pool.get(record.id)


@each_option
def test_python_refuses_a_wrong_value_with_a_pointer(option: Declared, pool: TaskPool) -> None:
    if option.type is bool:
        return  # any value is true or false

    with pytest.raises(InvalidTask) as refused:
        pool.add_task("echo", {"message": 1}, **{option.name: WRONG.get(option.type, 5)})

    assert option.name in {error.pointer.split("/")[1] for error in refused.value.errors}


@each_option
def test_the_command_line_has_a_flag_for_each_option(option: Declared, pool: TaskPool, parent: str) -> None:
    flags = {each.name: each.flag for each in OPTIONS}
    arguments = []
    for name, value in given(option, parent).items():
        for each in value if isinstance(value, list) else [value]:
            arguments += [flags[name]] if each is True else [flags[name], str(each)]

    result = CliRunner().invoke(main, ["submit", "echo", "message=1", *arguments, "--redis-url", pool.redis_url])

    assert result.exit_code == 0, result.output
    check_shown(pool.get(result.stdout.strip()), option, parent)


@each_option
def test_the_help_of_a_flag_is_the_description(option: Declared) -> None:
    helps = {parameter.name: getattr(parameter, "help", "") for parameter in main.commands["submit"].params}
    first = re.match(r"[^.`]*", option.about.description)

    assert first is not None
    assert helps[option.name].startswith(first[0])


@each_option
def test_a_document_becomes_the_same_record_in_the_client(option: Declared, pool: TaskPool, parent: str) -> None:
    spec = msgspec.convert({"type": "echo", "payload": {"message": 1}, **given(option, parent)}, TaskSpec)
    record = pool.add_spec(spec)

    document = msgspec.json.encode(TaskDocument.of(record))

    times = {name: _to_ms(getattr(record, name)) for name in ("created_at", "enqueued_at", "run_at", "expires_at")}
    assert values.record(Answer(200, {}, document)) == msgspec.structs.replace(record, **times)


def _to_ms(moment: datetime | None) -> datetime | None:
    return moment and moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def test_the_openapi_document_and_the_docs_describe_each_option() -> None:
    routes = create_app(Settings(redis_url="redis://nowhere")).routes
    properties = describe(routes, [])["components"]["schemas"]["TaskSpec"]["properties"]
    table = (ROOT / "docs" / "api.md").read_text()

    for option in OPTIONS:
        assert properties[option.name]["description"].startswith(option.about.description)
        assert f"\n| `{option.name}` | " in table


NEW_OPTION = """    note: Annotated[str | None, Field("A note for people.", takes="a text", stored="note")] = None
"""
NEW_KEYWORD = "    note: str | None\n"

USE_OF_IT = """
import asyncio, sys
from click.testing import CliRunner
from api.app import create_app
from api.openapi.document import describe
from taskpool import InvalidTask, Registry, TaskPool
from taskpool.cli.__main__ import main
from taskpool.settings import Settings
from tests.api_client import api

url = sys.argv[1]
pool = TaskPool(url, registry=Registry(builtins=True))
record = pool.add_task("echo", {"message": 1}, note="by Python")
assert record.note == "by Python" and pool.get(record.id) == record
try:
    pool.add_task("echo", {"message": 1}, note=5)
except InvalidTask as refused:
    assert [error.pointer for error in refused.errors] == ["/note"]

async def over_http():
    async with api(url) as client:
        accepted = await client.post("/tasks", json={"type": "echo", "payload": {"message": 1}, "note": "by HTTP"})
        task = await client.get(accepted.headers["location"])
        refused = await client.post("/tasks", json={"type": "echo", "note": 5})
        return task.json()["note"], refused.json()["errors"][0]["pointer"]

assert asyncio.run(over_http()) == ("by HTTP", "/note")
result = CliRunner().invoke(main, ["submit", "echo", "message=1", "--note", "by hand", "--redis-url", url])
assert pool.get(result.stdout.strip()).note == "by hand", result.output
schemas = describe(create_app(Settings(redis_url=url)).routes, [])["components"]["schemas"]
assert schemas["TaskSpec"]["properties"]["note"]["description"] == "A note for people."
assert schemas["Task"]["properties"]["note"]["type"] == "string"
"""


def test_a_new_option_on_which_no_script_acts_is_declared_in_one_file(pool: TaskPool, tmp_path: Path) -> None:
    for folder in ("taskpool", "api", "workers", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("openapi_clients"))
    file = tmp_path / "taskpool" / "types" / "__init__.py"
    text, options = re.subn(r"(class RecordedOptions\(.*\n    .*\n\n)", rf"\1{NEW_OPTION}", file.read_text())
    text, keywords = re.subn(r"(class TaskOptions\(.*\n    .*\n\n)", rf"\1{NEW_KEYWORD}", text)
    assert (options, keywords) == (1, 1)
    file.write_text(text)

    used = subprocess.run(
        [sys.executable, "-c", USE_OF_IT, pool.redis_url], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert used.returncode == 0, used.stderr
