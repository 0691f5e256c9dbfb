"""Which task types a process knows: loading modules, files and directories, and the errors when that fails."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import ConfigurationError, DuplicateType, Registry, task
from taskpool.tasks import hooks
from taskpool.validation import BUILTIN_TYPES

Write = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what is imported from it is forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def write(project: Path) -> Write:
    """Writes a file of the project: its path, then its lines."""

    def write(path: str, *lines: str) -> Path:
        file = project / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
        return file

    return write


def a_task(name: str, function: str = "run") -> tuple[str, ...]:
    return ("from taskpool import task", f'@task("{name}")', f"def {function}(): ...")


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("plain", ["plain"]),
        ("plain.py", ["plain"]),
        ("./plain.py", ["plain"]),
        ("app", ["app.mail", "app.root"]),
        ("app.mail", ["app.mail"]),
        ("app/mail.py", ["app.mail"]),
        ("app/", ["app.mail", "app.root"]),
        ("folder/", ["one", "two"]),
        ("folder/one.py", ["one"]),
        ("with space.py", ["spaced"]),
    ],
)
def test_an_entry_is_a_module_a_file_a_package_or_a_directory(write: Write, entry: str, names: list[str]) -> None:
    write("plain.py", *a_task("plain"))
    write("with space.py", *a_task("spaced"))
    write("app/__init__.py", "from app.mail import run as mail", *a_task("app.root"))
    write("app/mail.py", *a_task("app.mail"))
    write("app/not_imported.py", *a_task("hidden"))
    write("folder/one.py", "import two", *a_task("one"))
    write("folder/two.py", *a_task("two"))
    write("folder/test_one.py", *a_task("tested"))
    write("folder/_private.py", *a_task("private"))
    write("folder/settings_of_mine.py", "X = 1")

    registry = Registry([entry])

    assert registry.names() == names


def test_a_registry_knows_its_types_their_queues_and_their_files(write: Write) -> None:
    file = write("tasks.py", *a_task("b"), '@task("a", queue="slow")', "def a(): ...", "class X: ...", "alias = a")

    registry = Registry(["tasks"])

    assert (len(registry), registry.names(), [each.name for each in registry]) == (2, ["a", "b"], ["b", "a"])
    assert registry.queues() == ["default", "slow"]
    assert registry.files() == [str(file)]
    assert registry.get("nothing") is None
    found = registry.get("a")
    assert found is not None
    assert (found.queue, found.where) == ("slow", "tasks.py:4")


def test_the_same_place_may_come_again(write: Write) -> None:
    write("tasks.py", *a_task("a"))

    registry = Registry(["tasks", "tasks.py", "./tasks.py"])
    importlib.reload(sys.modules["tasks"])
    registry.load(["tasks"])

    assert registry.names() == ["a"]


def test_a_task_counts_where_it_is_written(write: Write) -> None:
    write("images.py", *a_task("resize", "resize"))
    write("mail.py", "from images import resize", "from taskpool import Task", *a_task("mail"))

    assert Registry(["mail"]).names() == ["mail"]
    assert Registry(["mail", "images"]).names() == ["mail", "resize"]


def test_two_files_of_one_name_are_two_modules(write: Write) -> None:
    write("one/tasks.py", *a_task("one"))
    write("two/tasks.py", *a_task("two"))
    write("json.py", *a_task("json"))

    registry = Registry(["one/tasks.py", "two/tasks.py", "json.py"])

    assert registry.names() == ["json", "one", "two"]
    assert len(registry.files()) == 3
    assert hasattr(sys.modules["json"], "dumps")


def test_a_class_that_others_derive_from_needs_no_type(write: Write) -> None:
    write(
        "tasks.py",
        "from taskpool import Task",
        "class Common(Task):",
        "    def run(self, ctx): ...",
        "class One(Common):",
        "    type = 'one'",
        "class Two(Common):",
        "    type = 'two'",
    )

    assert Registry(["tasks"]).names() == ["one", "two"]


def test_a_proxy_without_an_object_does_not_disturb(write: Write) -> None:
    write(
        "tasks.py",
        "class Proxy:",
        "    def __getattr__(self, name): raise RuntimeError('working outside of a request')",
        "    __call__ = None",
        "    __module__ = property(lambda self: self.module)",
        "request = Proxy()",
        *a_task("a"),
    )

    assert Registry(["tasks"]).names() == ["a"]


A_CLASS = ("from taskpool import Task", "class X(Task):", "    type = 'x'", "    def run(self): ...")


@pytest.mark.parametrize(
    ("files", "places"),
    [
        ({"a.py": a_task("x"), "b.py": ("", *a_task("x"))}, ("a.py:2", "b.py:3")),
        ({"a.py": (*a_task("x"), *a_task("x", "other"))}, ("a.py:2", "a.py:5")),
        ({"a.py": a_task("x"), "b.py": A_CLASS}, ("a.py:2", "b.py:2")),
    ],
)
def test_a_type_registered_twice_is_refused_with_both_places(
    write: Write, files: dict[str, tuple[str, ...]], places: tuple[str, str]
) -> None:
    for name, lines in files.items():
        write(name, *lines)

    with pytest.raises(DuplicateType) as refused:
        Registry(list(files))

    assert str(refused.value) == f"the task type 'x' is registered twice: at {places[0]} and at {places[1]}"


def test_a_task_may_be_added_without_a_module() -> None:
    @task("a")
    def one() -> None: ...

    @task("a")
    def other() -> None: ...

    registry = Registry()
    added = registry.add(one)

    assert registry.get("a") is added
    with pytest.raises(DuplicateType, match=r"'a' is registered twice: at tests/test_registry.py:\d+ and at"):
        registry.add(other)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("taks", "no module 'taks' in {project} or elsewhere on sys.path; did you mean 'tasks'?"),
        ("pkg.imges", "no module 'pkg.imges' in {project} or elsewhere on sys.path; did you mean 'pkg.images'?"),
        ("qqq.rrr", "no module 'qqq.rrr' in {project} or elsewhere on sys.path"),
        ("taks.py", "no task file 'taks.py' in {project}; did you mean 'tasks.py'?"),
        ("pkg/imges.py", "no task file 'pkg/imges.py' in {project}; did you mean 'pkg/images.py'?"),
        ("no/where.py", "no task file 'no/where.py' in {project}"),
        ("a-b", "'a-b' is neither a module, a .py file nor a directory"),
        ("empty/", "the directory 'empty/' has no task files (*.py)"),
        ("none.py", "'none.py' has no tasks; mark a function with @task, or derive a class from taskpool.Task"),
        ("borrowed", "'borrowed' has no tasks of its own; it imports tasks.py:2, which is in 'tasks': name that one"),
        ("broken.py", "{failed}: SyntaxError: invalid syntax ({project}/broken.py:2)"),
        ("fails", "{failed}: KeyError: 'no_such_key' ({project}/deeper.py:3)"),
        ("needs", "{failed}: ModuleNotFoundError: No module named 'tensorwobble' ({project}/needs.py:1)"),
        ("library", "{failed}: JSONDecodeError: Expecting value: line 1 column 1 (char 0) ({project}/library.py:2)"),
        ("exits.py", "{failed}: it exits when imported (SystemExit: 3) ({project}/exits.py:2)"),
        ("faulty", "faulty.py:2: task 'a' takes *args, but a payload has named fields; name the parameters"),
        ("nameless", "nameless.py:2: the task class A has no name; give it type = \"...\""),
        ("method", "method.py:3: the method A.run can't be the task 'a'; {method}"),
        ("around", "around.py:2: @around_attempt got a generator; put @contextmanager below it"),
        ("around_async", "around_async.py:3: @around_attempt needs a plain context manager, not an async one"),
        ("starts", "starts.py:2: @on_process_start got a generator; a hook can't use yield"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_reported_on_one_line(write: Write, project: Path, entry: str, fault: str) -> None:
    write("tasks.py", *a_task("a"))
    write("pkg/__init__.py")
    write("pkg/images.py", *a_task("i"))
    write("empty/notes.txt")
    write("none.py", "X = 1")
    names = "from taskpool import around_attempt, on_process_start"
    write("around.py", names, "@around_attempt", "def around(ctx): yield")
    other = "from contextlib import asynccontextmanager"
    write("around_async.py", names, other, "@around_attempt", "@asynccontextmanager", "async def around(ctx): yield")
    write("starts.py", names, "@on_process_start", "async def start(): yield")
    write("borrowed.py", "from tasks import run")
    write("broken.py", "x = 1", "def def")
    write("fails.py", "import deeper")
    write("deeper.py", "", "def look():", "    return {}['no_such_key']", "look()")
    write("needs.py", "import tensorwobble")
    write("library.py", "import json", "json.loads('')")
    write("exits.py", "import sys", "sys.exit(3)")
    write("faulty.py", "from taskpool import task", "@task('a')", "def a(*args): ...")
    write("nameless.py", "from taskpool import Task", "class A(Task):", "    def run(self, ctx): ...")
    write("method.py", "from taskpool import task", "class A:", "    @task('a')", "    def run(self): ...")

    with pytest.raises(ConfigurationError) as refused:
        Registry([entry])

    assert str(refused.value) == fault.format(
        project=project,
        failed=f"can't load tasks from {entry!r}",
        method="write a function at the module's top level, or derive the class from taskpool.Task",
    )


def test_a_file_with_hooks_alone_is_a_task_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "starts", [])
    write("hooks.py", "from taskpool import on_process_start", "@on_process_start", "def start(): ...")

    assert Registry(["hooks.py"], builtins=False).names() == []
    assert [hook.__name__ for hook in hooks.starts] == ["start"]


def test_a_file_that_fails_leaves_no_module_behind(write: Write) -> None:
    write("json.py", "1 / 0")
    before = set(sys.modules)

    with pytest.raises(ConfigurationError, match="ZeroDivisionError"):
        Registry(["json.py"])

    assert set(sys.modules) == before


def test_the_built_in_types_are_loaded_by_name_and_cost_no_heavy_import() -> None:
    look = (
        "import sys, taskpool\n"
        "assert not {'taskpool.tasks.builtin', 'taskpool.pool'} & set(sys.modules)\n"
        "print(taskpool.Registry(builtins=True).names())\n"
        "print(sorted({'rq', 'redis', 'httpx', 'starlette', 'pydantic'} & set(sys.modules)))\n"
        "taskpool.TaskPool, taskpool.AsyncTaskPool"
    )

    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)

    assert ran.stdout == "['echo', 'http_request', 'long_task', 'word_count', 'word_merge']\n[]\n"
    assert set(BUILTIN_TYPES.values()) == {"taskpool.tasks.builtin"}


@pytest.mark.parametrize(
    ("builtins", "known"),
    [
        (None, []),
        (False, []),
        (["word_count", "echo"], ["echo", "word_count"]),
        (True, ["echo", "http_request", "long_task", "word_count", "word_merge"]),
    ],
)
def test_only_the_built_in_types_that_are_named_are_there(builtins: Any, known: list[str]) -> None:
    assert Registry(builtins=builtins).names() == known
