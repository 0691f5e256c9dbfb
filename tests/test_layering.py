"""The architecture, held: imports run downward and never in a circle, each package knows what it may."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("taskpool", "workers", "api")
MAY_IMPORT_RQ = {"taskpool.redis.rq_job", "taskpool.rq_dashboard", "workers.registration"}
LINES_MAX = 800
ENTRIES_MAX = 20


@dataclass(frozen=True)
class Module:
    """One source file. `imports` are the full names it imports, wherever in the file they stand."""

    name: str
    path: Path
    lines: int
    imports: frozenset[str]


def read_modules(root: Path) -> dict[str, Module]:
    """Every module of the three packages below `root`, by its dotted name."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {module.name: module for module in (read_module(path, root) for path in paths)}


def read_module(path: Path, root: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    text = path.read_text()
    imports = frozenset(imported_names(ast.parse(text), package=name if is_package else name.rpartition(".")[0]))
    return Module(name, path, len(text.splitlines()), imports)


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """The full names that import statements bring in: `a.b.c` for `from a.b import c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def edges(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Module -> the modules of this project that it imports."""
    return {
        module.name: {target for name in module.imports if (target := owner(name, modules))} - {module.name, ""}
        for module in modules.values()
    }


def owner(name: str, modules: Mapping[str, Module]) -> str:
    """The module that `name` is or is defined in; empty when that is none of ours."""
    return next((module for module in (name, name.rpartition(".")[0]) if module in modules), "")


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of `graph` as the names along it, first and last the same; empty when there is none."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if circle := walk(target, [*trail, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(graph) if (circle := walk(name, []))), [])


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    return read_modules(ROOT)


def top(name: str) -> str:
    return name.partition(".")[0]


def room(name: str) -> str:
    """The file or the folder directly below its package that a module is in."""
    return ".".join(name.split(".")[:2])


def test_each_package_is_read(modules: dict[str, Module]) -> None:
    assert {top(name) for name in modules} == set(PACKAGES)


def test_no_import_runs_in_a_circle(modules: dict[str, Module]) -> None:
    assert " -> ".join(find_cycle(edges(modules))) == ""


def test_no_folder_is_in_a_circle_with_its_neighbours(modules: dict[str, Module]) -> None:
    """A folder stands on one floor: what it imports is below it, whichever of its files does."""
    graph: dict[str, set[str]] = {}
    for name, targets in edges(modules).items():
        graph.setdefault(room(name), set()).update(room(target) for target in targets if room(target) != room(name))

    assert " -> ".join(find_cycle(graph)) == ""


@pytest.mark.parametrize(
    ("package", "others"),
    [("taskpool", {"workers", "api"}), ("workers", {"api"}), ("api", {"workers"})],
)
def test_a_package_leaves_the_others_alone(package: str, others: set[str], modules: dict[str, Module]) -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in modules.values()
        if top(module.name) == package
        for name in module.imports
        if top(name) in others
    ]

    assert wrong == []


def test_rq_is_imported_in_three_files_alone(modules: dict[str, Module]) -> None:
    importers = {module.name for module in modules.values() if "rq" in map(top, module.imports)}

    assert importers <= MAY_IMPORT_RQ


def test_no_module_uses_cached_property(modules: dict[str, Module]) -> None:
    """In Python 3.11 it has a lock, and a fork copies the lock as another thread holds it."""
    assert [name for name, module in modules.items() if "functools.cached_property" in module.imports] == []


def test_no_module_imports_tests_or_examples(modules: dict[str, Module]) -> None:
    outside = {"tests", "examples", "benchmarks", "scripts"}

    assert [module.name for module in modules.values() if outside & set(map(top, module.imports))] == []


def test_the_vocabulary_imports_next_to_nothing(modules: dict[str, Module]) -> None:
    graph = edges(modules)

    assert graph["taskpool.text"] == set()
    values = {f"taskpool.types.{name}" for name in ("base", "dependency", "fleet", "people")}
    assert graph["taskpool.types"] == {"taskpool.text", *values, "taskpool.validation"}
    assert graph["taskpool.errors"] == {"taskpool.types", "taskpool.validation"}
    assert graph["taskpool.validation"] == set()
    assert graph["taskpool.url_guard"] == set()
    assert graph["taskpool.types.control"] <= {"taskpool.types", "taskpool.types.dependency", "taskpool.validation"}
    assert graph["taskpool.redis.keys"] == {"taskpool.types", "taskpool.types.control"}


def test_no_file_is_too_long_to_read(modules: dict[str, Module]) -> None:
    assert [f"{module.path}: {module.lines}" for module in modules.values() if module.lines > LINES_MAX] == []


def test_no_folder_has_too_many_entries(modules: dict[str, Module]) -> None:
    entries: dict[Path, set[Path]] = {}
    for module in modules.values():
        for path in (module.path, *module.path.parents):
            if path != ROOT and ROOT in path.parents:
                entries.setdefault(path.parent, set()).add(path)

    assert {str(folder): len(found) for folder, found in entries.items() if len(found) > ENTRIES_MAX} == {}


def test_each_module_opens_with_what_it_owns(modules: dict[str, Module]) -> None:
    silent = [
        module.name
        for module in modules.values()
        if module.lines and not ast.get_docstring(ast.parse(module.path.read_text()))
    ]

    assert silent == []


def test_the_reader_sees_local_and_type_checking_and_relative_imports(tmp_path: Path) -> None:
    package = tmp_path / "taskpool"
    package.mkdir()
    (package / "__init__.py").write_text("from taskpool.a import one\n")
    (package / "a.py").write_text("def one():\n    from .b import two\n")
    (package / "b.py").write_text("if TYPE_CHECKING:\n    from taskpool import a\n")

    graph = edges(read_modules(tmp_path))

    assert graph == {"taskpool": {"taskpool.a"}, "taskpool.a": {"taskpool.b"}, "taskpool.b": {"taskpool.a"}}
    assert find_cycle(graph) == ["taskpool.a", "taskpool.b", "taskpool.a"]
