"""Every task in a task module is registered, or loading fails and names the place."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import ConfigurationError, DuplicateType, Registry, TaskContext
from taskpool.testing import RecordingSink

Write = Callable[..., Path]

DECORATORS = """
import functools
from taskpool import Task, task

def without_wraps(function):
    def wrapper(*args, **kwargs):
        return ["wrapped", function(*args, **kwargs)]
    return wrapper

def same_parameters(function):
    def wrapper(a: int = 0):
        return ["wrapped", function(a)]
    return wrapper

def with_wraps(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return ["wrapped", function(*args, **kwargs)]
    return wrapper

class Decorator:
    def __init__(self, function):
        self.function = function
    def __call__(self, a: int = 0):
        return ["wrapped", self.function(a)]

def make(name, offset=0):
    @task(name)
    def made(a: int = 0):
        return a + offset
    return made

def make_wrapped(name):
    @with_wraps
    @task(name)
    def made(a: int = 0):
        return a
    return made

def make_class(name_):
    class Made(Task):
        type = name_
        class Payload:
            a: int = 0
        def run(self, ctx):
            return self.payload.a
    return Made

def replace(function):
    return 5
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a file into an empty current directory; what is imported from it is forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    write("decorators.py", DECORATORS)
    yield write
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def result_of(registry: Registry, name: str, payload: Any) -> Any:
    """What a task of this registry returns."""
    found = registry.get(name)
    assert found is not None
    return found.bind(found.decode(payload), TaskContext(RecordingSink(), id="t", type=name))()


HEAD = "from decorators import *\nfrom taskpool import Task, task\nimport functools\n"


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("@task('x')\n@same_parameters\ndef f(a: int): return a", {"x": ["wrapped", 1]}),
        ("@task('x')\n@with_wraps\ndef f(a: int): return a", {"x": ["wrapped", 1]}),
        ("@task('x')\n@Decorator\ndef f(a: int): return a", {"x": ["wrapped", 1]}),
        ("@with_wraps\n@task('x')\ndef f(a: int): return a", {"x": ["wrapped", 1]}),
        ("@with_wraps\n@with_wraps\n@task('x')\ndef f(a: int): return a", {"x": ["wrapped", ["wrapped", 1]]}),
        ("x = make('x')\ny = make('y', 1)", {"x": 1, "y": 2}),
        ("make('x')", {"x": 1}),
        ("ALL = [make(name, at) for at, name in enumerate('xyz')]", {"x": 1, "y": 2, "z": 3}),
        ("ALL = {'tasks': [make_wrapped('x')]}", {"x": ["wrapped", 1]}),
        ("x = make_wrapped('x')", {"x": ["wrapped", 1]}),
        ("class Tasks:\n    x = make_wrapped('x')\n    y = make('y')", {"x": ["wrapped", 1], "y": 1}),
        ("for name in 'xy':\n    @task(name)\n    def f(a: int): return a\n    globals()[name] = f", {"x": 1, "y": 1}),
        ("for name in 'xy':\n    @task(name)\n    def f(a: int): return a", {"x": 1, "y": 1}),
        ("f = make('x')\ng = same_parameters(f)", {"x": 1}),
        ("def g():\n    @task('x')\n    def f(a: int): return a\n    return lambda: f\nh = g()", {"x": 1}),
        ("def g(name):\n    @task(name)\n    def f(a: int): return a\ng('x')\ng('y')", {"x": 1, "y": 1}),
        ("def f(a: int): return a\ntask('x')(f)\ntask('y')(f)", {"x": 1, "y": 1}),
        ("@task('x')\ndef f(a: int): return a\ndel f", {"x": 1}),
        ("@task('x')\ndef f(a: int): return a\ng = with_wraps(f)", {"x": 1}),
        ("task('x')(lambda a: a)", {"x": 1}),
        ("f = task('x')(lambda a: a)", {"x": 1}),
        ("def f(a: int, b: int): return a + b\ng = task('x')(functools.partial(f, b=2))", {"x": 3}),
        ("def f(b: int, a: int): return a + b\ntask('x')(functools.partial(f, 2))", {"x": 3}),
        ("class C:\n    def __call__(self, a: int): return a\nc = task('x')(C())", {"x": 1}),
        ("f = task('x')(functools.lru_cache(lambda a: a))", {"x": 1}),
        ("make_class('x')", {"x": 1}),
        ("ALL = [make_class(name) for name in 'xy']", {"x": 1, "y": 1}),
        ("class A:\n    class X(Task):\n        type = 'x'\n        def run(self): return 1", {"x": 1}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("entry", ["tasks", "tasks.py"])
def test_a_task_is_registered_wherever_its_function_comes_from_and_goes(
    write: Write, entry: str, text: str, results: dict[str, Any]
) -> None:
    write("tasks.py", HEAD + text)

    registry = Registry([entry])

    assert registry.names() == sorted(results)
    for name, result in results.items():
        payload = {} if "class X(Task)" in text else {"a": 1}
        assert result_of(registry, name, payload) == result
    assert {each.where.partition(":")[0] for each in registry} <= {"tasks.py", "decorators.py"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("@same_parameters\n@task('x')\ndef f(a: int): ...",
         "tasks.py:4: the task 'x' is the function 'f', but in its module that name stands for another object"),
        ("@Decorator\n@task('x')\ndef f(a: int): ...", "tasks.py:4: the task 'x' is the function 'f'"),
        ("@replace\n@task('x')\ndef f(a: int): ...", "put @task on top, or use functools.wraps in the decorator"),
        ("@task('x')\ndef f(a: int): ...\ndef f(): ...", "tasks.py:4: the task 'x' is the function 'f'"),
        ("@task('x')\n@without_wraps\ndef f(a: int): ...", "tasks.py:4: task 'x' takes *args"),
        ("@task('x')\n@without_wraps\ndef f(a: int): ...", "(of the function at decorators.py:6; a decorator"),
        ("task('x')(len)", "tasks.py:4: the task 'x': <built-in function len> can't be marked"),
        ("class C:\n    def m(self): ...\ntask('x')(C().m)", "tasks.py:6: the task 'x': <bound method C.m"),
        ("@task('x')\nclass C:\n    def __call__(self): ...", "tasks.py:4: the task 'x': C is a class; for a class"),
        ("task('x')(5)", "tasks.py:4: the task 'x': 5 can't be called"),
        ("class C:\n    @task('x')\n    @staticmethod\n    def m(): ...", "the method C.m can't be the task 'x'"),
        ("ALL = [same_parameters(make('x'))]", "wraps the task 'x': 'same_parameters.<locals>.wrapper'"),
        ("@task('x')\n@functools.singledispatch\ndef f(a: int): ...", "tasks.py:4: functools.singledispatch looks at"),
        ("class C:\n    async def __call__(self):\n        yield\ntask('x')(C())", "it can't be a generator (yield)"),
    ],
)  # fmt: skip
def test_what_cannot_be_registered_as_it_is_meant_is_refused_with_its_place(
    write: Write, text: str, fault: str
) -> None:
    write("tasks.py", HEAD + text)

    with pytest.raises(ConfigurationError) as refused:
        Registry(["tasks"])

    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("make('x')\nmake('x', 1)", ("tasks.py:4", "tasks.py:5")),
        ("ALL = [make('x', at) for at in range(2)]", ("tasks.py:4", "tasks.py:4")),
        ("make('x')\n@task('x')\ndef f(): ...", ("tasks.py:4", "tasks.py:5")),
        ("make('x')\nmake_class('x')", ("tasks.py:4", "decorators.py:41")),
    ],
)
def test_two_tasks_of_one_name_in_a_module_are_refused_with_both_places(
    write: Write, text: str, places: tuple[str, str]
) -> None:
    write("tasks.py", HEAD + text)

    with pytest.raises(DuplicateType) as refused:
        Registry(["tasks"])

    assert str(refused.value) == f"the task type 'x' is registered twice: at {places[0]} and at {places[1]}"


def test_two_modules_that_make_a_task_of_one_name_are_refused_with_both_places(write: Write) -> None:
    write("one.py", HEAD + "make('x')")
    write("two.py", HEAD + "make('x')")

    with pytest.raises(DuplicateType, match=r"at one\.py:4 and at two\.py:4"):
        Registry(["one", "two"])


def test_a_task_belongs_to_the_module_whose_import_makes_it(write: Write) -> None:
    write("helpers.py", HEAD + "inner = make('inner')\n@task('own')\ndef own(): ...")
    write("tasks.py", HEAD + "from helpers import inner, own\nx = make('x')\nALL = [inner, own]")
    write("app/__init__.py", HEAD + "from app.mail import send\nmake('root')")
    write("app/mail.py", HEAD + "send = make('send')")

    assert Registry(["tasks"]).names() == ["x"]
    assert Registry(["helpers"]).names() == ["inner", "own"]
    assert Registry(["app"]).names() == ["root", "send"]


def test_one_file_under_two_names_is_one_place(write: Write) -> None:
    write("app/__init__.py", "")
    write("app/tasks.py", HEAD + "@task('x')\ndef f(): ...\nmake('y')")
    sys.path.insert(0, str(Path("app").resolve()))

    registry = Registry(["app.tasks", "tasks"])

    assert registry.names() == ["x", "y"]
    assert sys.modules["tasks"] is not sys.modules["app.tasks"]


def test_a_class_that_a_decorator_makes_anew_is_registered_once_and_the_new_one(write: Write) -> None:
    write(
        "tasks.py",
        HEAD
        + "import dataclasses\n@dataclasses.dataclass(slots=True)\nclass X(Task):\n    type = 'x'\n    n: int = 7\n"
        "    def run(self): return self.n, hasattr(self, '__slots__')\n",
    )

    registry = Registry(["tasks"])

    assert result_of(registry, "x", {}) == (7, True)


def test_a_reload_forgets_what_the_module_no_longer_makes(write: Write) -> None:
    file = write("tasks.py", HEAD + "make('x')\nmake('y')")
    Registry(["tasks"])

    file.write_text(HEAD + "make('x', 10)\n# a longer file than before, so that it is compiled again")
    importlib.invalidate_caches()
    importlib.reload(sys.modules["tasks"])
    registry = Registry(["tasks"])

    assert registry.names() == ["x"]
    assert result_of(registry, "x", {"a": 1}) == 11


def test_a_module_that_was_imported_before_has_the_same_tasks(write: Write) -> None:
    write("tasks.py", HEAD + "make('x')")
    sys.path.insert(0, "")
    importlib.import_module("tasks")

    assert Registry(["tasks"]).names() == Registry(["tasks"]).names() == ["x"]


def test_a_task_that_is_made_while_the_program_runs_is_in_no_module(write: Write) -> None:
    write("tasks.py", HEAD + "make('x')\ndef later(): return make('later')")
    registry = Registry(["tasks"])

    later = sys.modules["tasks"].later()

    assert Registry(["tasks"]).names() == registry.names() == ["x"]
    registry.add(later)
    assert registry.names() == ["later", "x"]
