"""`add_task` with the task function itself: what it submits, and what a type checker reports."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from taskpool import AsyncTaskPool, InvalidTask, Registry, Task, TaskContext, TaskPool, TaskRecord, TaskSpec, task
from taskpool.testing import RecordingSink
from taskpool.types import Page, PastAttempt, QueuedTask, TaskStatus, utc


@task("resize")
def resize(ctx: TaskContext, url: str, width: int = 80) -> dict[str, Any]:
    return {"url": url, "width": width}


@task("render")
async def render(page: str, queue: str = "a", payload: str = "b", type: str = "c") -> str:
    """Its parameters have the names of options, and of the parameters of `add_task`."""
    return page + queue + payload + type


@task("collect")
def collect(**found: int) -> int:
    return sum(found.values())


class Sleeps(Task):
    type = "sleeps"

    class Payload:
        duration_s: float = 1.0

    def run(self, ctx: TaskContext) -> None: ...


@dataclass
class Picture:
    url: str
    width: int = 7


class Sized(msgspec.Struct):
    url: str
    width: int = 8


REGISTRY = Registry()
for each in (resize, render, collect, Sleeps):
    REGISTRY.add(each)


@pytest.fixture(params=["blocking", "awaiting"])
def add(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Callable[..., TaskRecord]]:
    """`add_task` of either kind of pool."""
    if request.param == "blocking":
        with TaskPool(redis_url, registry=REGISTRY) as pool:
            yield pool.add_task
        return
    awaiting = AsyncTaskPool(redis_url, registry=REGISTRY)
    yield lambda *given, **named: asyncio.run(awaiting.add_task(*given, **named))


URL = {"url": "a"}


@pytest.mark.parametrize(
    ("given", "named", "payload"),
    [
        ([resize], {"url": "a"}, URL),
        ([resize], {"url": "a", "width": 3}, {**URL, "width": 3}),
        ([resize, "a"], {}, URL),
        ([resize, "a", 3], {}, {**URL, "width": 3}),
        ([resize, "a"], {"width": 3}, {**URL, "width": 3}),
        ([resize, URL], {}, URL),
        ([resize, Picture("a")], {}, {**URL, "width": 7}),
        ([resize, Sized("a")], {}, {**URL, "width": 8}),
        ([resize], {"payload": URL}, URL),
        ([resize.spec(url="a")], {}, URL),
        ([render], {"page": "p", "payload": "x", "type": "y"}, {"page": "p", "payload": "x", "type": "y"}),
        ([render.spec(page="p", queue="x")], {}, {"page": "p", "queue": "x"}),
        ([render, {"page": "p", "queue": "x"}], {}, {"page": "p", "queue": "x"}),
        ([collect], {"a": 1, "b": 2}, {"a": 1, "b": 2}),
        ([resize.spec("a", width=3)], {}, {**URL, "width": 3}),
        ([render.spec(page="p", type="y")], {}, {"page": "p", "type": "y"}),
        ([collect.spec(a=1, b=2)], {}, {"a": 1, "b": 2}),
        ([Sleeps.spec(duration_s=2.0)], {}, {"duration_s": 2.0}),
        ([Sleeps.spec({"duration_s": 2.0})], {}, {"duration_s": 2.0}),
        ([Sleeps.spec()], {}, {}),
        ([Sleeps], {}, {}),
        ([Sleeps, {"duration_s": 2.0}], {}, {"duration_s": 2.0}),
        ([], {"type": "resize", "payload": URL}, URL),
        (["sleeps"], {}, {}),
    ],
)
def test_what_is_given_becomes_the_payload(
    given: list[Any], named: dict[str, Any], payload: Mapping[str, Any], add: Callable[..., TaskRecord]
) -> None:
    assert add(*given, **named).payload == payload


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([resize, URL], {"queue": "big", "tags": ["x"]}),
        ([resize], {"url": "a", "queue": "big", "tags": ["x"]}),
        ([resize.spec(url="a")], {"queue": "big", "tags": ["x"]}),
        ([render, {"page": "p", "queue": "small"}], {"queue": "big", "tags": ["x"]}),
        ([render.spec(page="p", queue="small")], {"queue": "big", "tags": ["x"]}),
        ([Sleeps], {"queue": "big", "tags": ["x"]}),
    ],
)
def test_options_go_with_it(given: list[Any], named: dict[str, Any], add: Callable[..., TaskRecord]) -> None:
    added = add(*given, **named)

    assert (added.queue, added.tags) == ("big", ("x",))


def test_a_name_that_could_be_both_is_refused_with_the_ways_out(add: Callable[..., TaskRecord]) -> None:
    with pytest.raises(InvalidTask, match=r"'queue' is both a parameter of the task 'render' and .*task\.spec\("):
        add(render, page="p", queue="x")


@pytest.mark.parametrize(
    ("given", "named", "fault"),
    [
        ([print], {"a": 1}, "print is not a task: mark the function with @task"),
        ([int], {}, "int is not a task"),
        ([resize, "a"], {"url": "b"}, "/payload/url: is given twice"),
        ([resize, "a", 1, 2], {}, "takes 2 values, not 3"),
        ([resize], {}, "url"),
        ([resize], {"uri": "a"}, "uri"),
        ([resize], {"url": 5}, "/url"),
    ],
)
def test_a_wrong_argument_is_reported(
    given: list[Any], named: dict[str, Any], fault: str, add: Callable[..., TaskRecord]
) -> None:
    with pytest.raises(InvalidTask, match=re.escape(fault)):
        add(*given, **named)


@pytest.mark.parametrize(("given", "named"), [([], {}), (["resize", {}, 1], {}), ([resize.spec(url="a"), {}], {})])
def test_arguments_that_are_missing_or_too_many_are_a_type_error(
    given: list[Any], named: dict[str, Any], add: Callable[..., TaskRecord]
) -> None:
    with pytest.raises(TypeError, match="add_task"):
        add(*given, **named)


# --- the function and its spec -------------------------------------------------------------------------------


def test_the_function_stays_a_plain_function() -> None:
    assert inspect.isfunction(resize)
    assert inspect.iscoroutinefunction(render)
    assert list(inspect.signature(resize).parameters) == ["ctx", "url", "width"]
    assert pickle.loads(pickle.dumps(resize)) is resize
    assert copy.deepcopy(resize) is resize
    assert resize(TaskContext(RecordingSink(), id="a", type="resize"), "x")["url"] == "x"


def test_its_spec_is_a_submission_with_a_place_for_options(add: Callable[..., TaskRecord]) -> None:
    spec = resize.spec("a", width=3)

    assert spec == TaskSpec(type="resize", payload={"url": "a", "width": 3})
    assert msgspec.structs.replace(spec, queue="x").queue == "x"
    assert add(spec, delay="5m").status is TaskStatus.SCHEDULED


def test_a_wrapper_of_the_function_has_its_spec() -> None:
    @functools.wraps(resize)
    def wrapper(*args: Any, **named: Any) -> Any:
        return resize(*args, **named)

    assert vars(wrapper)["spec"](url="a") == resize.spec(url="a")


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: resize.spec("a", 1, 2), "takes 2 values, not 3"),  # type: ignore[call-overload]
        (lambda: resize.spec("a", url="b"), "/payload/url: is given twice"),  # type: ignore[call-overload]
        (lambda: collect.spec(1), "takes 0 values, not 1"),  # type: ignore[call-arg]
    ],
)
def test_wrong_arguments_of_a_spec_are_refused(make: Callable[[], Any], fault: str) -> None:
    with pytest.raises(InvalidTask, match=re.escape(fault)):
        make()


def test_the_context_is_no_field_of_a_spec() -> None:
    context = TaskContext(RecordingSink(), id="a", type="resize")

    with pytest.raises(InvalidTask, match="url: is given twice"):
        resize.spec(context, url="a")


def test_a_task_class_takes_its_payload_in_one_way() -> None:
    with pytest.raises(TypeError, match="as one object or as fields, not both"):
        Sleeps.spec({"duration_s": 1.0}, duration_s=2.0)


# --- what a type checker says --------------------------------------------------------------------------------

USERS_FILE = """
from collections.abc import Callable
from typing import Any
from taskpool import AsyncClient, AsyncTaskPool, Client, Spec, Task, TaskContext
from taskpool import TaskPool, TaskRecord, WorkflowRecord, task

@task("resize")
def resize(ctx: TaskContext, url: str, width: int = 80) -> dict[str, Any]:
    return {}

@task("plain")
async def plain(n: int, names: list[str] | None = None) -> int:
    return n

@task("later")
async def later(ctx: TaskContext, n: int) -> str:
    return "x"

@task("row")
def row(row: dict[str, int], n: int = 0) -> int:
    return n

@task("any_later")
async def any_later(message: object, n: int) -> str:
    return "x"

@task("nothing")
def nothing() -> None: ...

@task("either")
def either(message: Any) -> float:
    return 1.0

class Sleeps(Task):
    type = "sleeps"

def blocking(pool: TaskPool, client: Client, ctx: TaskContext) -> TaskRecord:
    pool.add_task(resize, url="x", width=3)
    pool.add_task(resize, "x")
    pool.add_task(resize, {"url": "x"}, delay_s=3)
    pool.add_task(plain, n=3, names=["x"])
    pool.add_task(Sleeps, {"duration_s": 3}, queue="x")
    pool.add_task("resize", {"url": "x"}, queue="x")
    pool.add_task(resize.spec(url="x"), queue="x", delay="5m")
    pool.add_tasks([resize.spec(url="x"), plain.spec(3)])
    pool.add_and_wait(resize.spec("x", 80))
    client.add_tasks([resize.spec("x", width=80), Sleeps.spec(duration_s=3)])
    found: Spec[dict[str, Any]] = resize.spec("x")
    number: Spec[int] = plain.spec(n=3, names=["x"])
    anything: Spec[float] = either.spec(message=b"x")
    late: Spec[str] = later.spec(n=1)
    late = any_later.spec(message="x", n=1)
    many: list[Spec[int]] = [row.spec({"a": 1}), row.spec(row={}, n=3)]
    nothing.spec()
    resize(ctx=ctx, url="x")
    function: Callable[[TaskContext, str], Any] = resize
    function(ctx, resize.__name__)
    client.add_task(resize, url="x").is_existing
    with pool.workflow("import") as w, client.workflow("other") as other:
        rows = w.map("rows", (plain.spec(n=n) for n in range(3)))
        w.add("end", resize.spec(url="x"), after=rows.any(), confirm=True, delay="5m")
        other.add("type", "resize", {"url": "x"}, after=["a", rows, rows.failure()])
    record: WorkflowRecord = pool.wait_workflow(w.id)
    pool.batch([plain.spec(1)], on_done=resize.spec("x")).nodes[0].counts
    client.batch([plain.spec(1)]).status.is_terminal
    return pool.add_task(resize, url="x")

async def awaiting(pool: AsyncTaskPool, client: AsyncClient) -> TaskRecord:
    (await client.add_task(resize, url="x")).is_existing
    async with pool.workflow("import") as w, client.workflow("other") as other:
        rows = w.map("rows", [plain.spec(n=3)])
        other.add("end", resize.spec(url="x"), after=rows)
    record: WorkflowRecord = await client.wait_workflow(w.id)
    return await pool.add_task(plain, n=3)

def wrong(pool: TaskPool, client: Client) -> None:
    pool.add_task(resize, url=5)  # wrong
    pool.add_task(resize)  # wrong
    pool.add_task(resize, url="x", weight=3)  # wrong
    pool.add_task(plain, n="3")  # wrong
    pool.add_task(resize, {"url": "x"}, delays=3)  # wrong
    pool.add_task("resize", {"url": "x"}, delay_s="x")  # wrong
    client.add_task(resize, url=5)  # wrong
    plain.spec(n="3")  # wrong
    resize.spec(url=5)  # wrong
    resize.spec()  # wrong
    plain.spec()  # wrong
    row.spec()  # wrong
    row.spec(n=3)  # wrong
    later.spec()  # wrong
    any_later.spec(message="x")  # wrong
    nothing.spec(n=3)  # wrong
    resize.spec("x", weight=3)  # wrong
    later.spec(n=None)  # wrong
    text: Spec[str] = plain.spec(3)  # wrong
    pool.add_task(resize.spec("x"), delays=3)  # wrong
    with pool.workflow("import") as w:
        w.add("end", resize.spec("x"), delays=3)  # wrong
        w.add("end", resize.spec(url=5))  # wrong
        w.add("end", resize)  # wrong
        w.add("end", resize.spec("x"), after=7)  # wrong
        w.map("rows", [resize])  # wrong
    pool.batch([plain.spec(1)], on_done=resize)  # wrong

async def wrong_too(pool: AsyncTaskPool, client: AsyncClient) -> None:
    await pool.add_task(resize, url=5)  # wrong
    await client.add_task(plain, m=5)  # wrong
"""


MYPY = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "users.py"]
PYRIGHT = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "users.py"]


@pytest.mark.parametrize("command", [MYPY, PYRIGHT], ids=["mypy", "pyright"])
def test_type_checkers_find_the_installed_package_and_report_wrong_arguments_alone(
    tmp_path: Path, command: list[str]
) -> None:
    """The environment is that of `scripts/environment`: it installs the package so that type checkers find it."""
    if command is PYRIGHT:
        pytest.importorskip("pyright")
        if shutil.which("node") is None:
            pytest.skip("pyright would download Node.js")
    (tmp_path / "users.py").write_text(USERS_FILE)
    wrong = {number for number, line in enumerate(USERS_FILE.splitlines(), 1) if line.endswith("# wrong")}

    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)

    reported = {int(line.split(":")[1]) for line in checked.stdout.splitlines() if " error: " in line}
    assert reported == wrong, checked.stdout + checked.stderr


# --- records as answers of web frameworks --------------------------------------------------------------------

RECORD = TaskRecord(
    id="a",
    type="resize",
    status=TaskStatus.DONE,
    queue="default",
    payload={"url": "x"},
    created_at=utc(0),
    tags=("t",),
    history=(PastAttempt(attempt=1, worker="w", started_at=utc(0), ended_at=utc(0), outcome="failed"),),
)


def test_a_record_as_a_dict_has_json_values_alone() -> None:
    document = RECORD.to_dict()

    assert dict(RECORD) == document
    assert msgspec.json.decode(msgspec.json.encode(document)) == msgspec.json.decode(msgspec.json.encode(RECORD))
    assert (document["status"], document["created_at"]) == ("done", "1970-01-01T00:00:00Z")
    assert document["history"][0]["outcome"] == "failed"


@pytest.mark.anyio
async def test_fastapi_answers_with_records() -> None:
    app = FastAPI()
    queued = QueuedTask(RECORD, 1, 2.0)

    @app.get("/annotated")
    def annotated() -> TaskRecord:
        return RECORD

    @app.get("/plain")
    async def plain():  # type: ignore[no-untyped-def]
        return RECORD

    @app.get("/nested")
    def nested():  # type: ignore[no-untyped-def]
        return {"task": RECORD, "queued": queued}

    @app.get("/page")
    def page() -> Page[TaskRecord]:
        return Page((RECORD,))

    @app.get("/queued")
    def in_queue() -> QueuedTask | None:
        return queued

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        found = {
            path: (await client.get(path)).json() for path in ("/annotated", "/plain", "/nested", "/page", "/queued")
        }
        described = (await client.get("/openapi.json")).json()

    document = RECORD.to_dict()
    assert found["/annotated"] == found["/plain"] == document
    assert found["/nested"] == {"task": document, "queued": {"record": document, "position": 1, "wait_s": 2}}
    assert found["/page"] == {"items": [document], "next_cursor": None, "looked_at": None}
    assert found["/queued"]["record"] == document
    assert described["paths"].keys() == found.keys()
