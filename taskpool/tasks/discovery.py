"""Finds and imports the user's task modules: dotted names, .py files and directories.

Each fault is reported in one line with its place in the user's file, without a traceback.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from taskpool.errors import ConfigurationError

_SKIPPED = re.compile(r"_.*|test_.*|.*_test|conftest|setup")


def import_tasks(entry: str) -> list[ModuleType]:
    """Import what one entry of TASKPOOL_TASKS names, and return the modules to look for tasks in.

    Of a package these are the package and those of its modules that it imports. A .py file is imported as a module of
    its package if it has one. Of a directory, all .py files are imported, except tests and those that start with "_".
    The current directory is importable.

    Raises: ConfigurationError when nothing has that name, and when the import fails.
    """
    make_cwd_importable()
    path = Path(entry)
    if entry.endswith(".py") or os.sep in entry or (path.is_dir() and not entry.isidentifier()):
        return _import_path(path, entry)
    if not all(part.isidentifier() for part in entry.split(".")):
        raise ConfigurationError(f"{entry!r} is neither a module, a .py file nor a directory")
    return _import_named(entry)


def _import_path(path: Path, entry: str) -> list[ModuleType]:
    if path.is_file() and path.suffix == ".py":
        return [_import_file(path.resolve(), entry)]
    if not path.is_dir():
        raise ConfigurationError(f"no task file {entry!r}{_did_you_mean(path.name, _neighbours(path), path.parent)}")
    if (path / "__init__.py").is_file():
        return _import_named(_dotted_name(path.resolve() / "__init__.py"))
    files = sorted(file for file in path.resolve().glob("*.py") if not _SKIPPED.fullmatch(file.stem))
    if not files:
        raise ConfigurationError(f"the directory {entry!r} has no task files (*.py)")
    return [_import_file(file, str(path / file.name)) for file in files]


def _import_named(name: str) -> list[ModuleType]:
    module = _import(name, name)
    if not hasattr(module, "__path__"):
        return [module]
    return [module, *(sys.modules[key] for key in sorted(sys.modules) if key.startswith(f"{name}."))]


def _import_file(file: Path, entry: str) -> ModuleType:
    for module in list(sys.modules.values()):
        if _is_file_of(file, getattr(module, "__file__", None)):
            return module
    name = _dotted_name(file)
    if "." not in name:
        # Last on the path: the files beside it can be imported, but can't hide modules of the standard library.
        _make_importable(file.parent, first=False)
        found = importlib.util.find_spec(name) if name.isidentifier() else None
        if found is None or not _is_file_of(file, found.origin):
            return _import_as(f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}", file, entry)
    return _import(name, entry)


def _dotted_name(file: Path) -> str:
    """The module's full name, with the root of its outermost package made importable."""
    parts = [] if file.name == "__init__.py" else [file.stem]
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if len(parts) > 1 or file.name == "__init__.py":
        _make_importable(folder, first=False)
    return ".".join(parts)


def _import(name: str, entry: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise _failed(entry, error) from error
        raise ConfigurationError(f"no module {entry!r} to load tasks from{_near_modules(missing)}") from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise _failed(entry, error) from error


def _import_as(name: str, file: Path, entry: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{entry!r} isn't a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # as above; an incomplete module must not stay behind
        del sys.modules[name]
        raise _failed(entry, error) from error
    return module


def _failed(entry: str, error: BaseException) -> ConfigurationError:
    if isinstance(error, ConfigurationError):  # its text has the place
        return error
    return ConfigurationError(f"can't load tasks from {entry!r}: {fault_text(error)}")


def fault_text(error: BaseException) -> str:
    """What a user's module raised when it was imported, and where, on one line."""
    if isinstance(error, SystemExit):
        what = f"it exits when imported (SystemExit: {error.code})"
    else:
        what = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".splitlines()[0]
    return f"{what} ({_user_place(error)})"


def _user_place(error: BaseException) -> str:
    """The last place in the user's code in the traceback: not in Python's library, installed packages or Taskpool."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    foreign = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(Path(__file__).parents[1]), "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(foreign)] or frames
    return f"{users[-1].filename}:{users[-1].lineno}" if users else "place unknown"


def _near_modules(missing: str) -> str:
    parent, _, last = missing.rpartition(".")
    places = getattr(sys.modules.get(parent), "__path__", None) if parent else [str(Path.cwd())]
    names = [module.name for module in pkgutil.iter_modules(list(places or []))]
    near = difflib.get_close_matches(last, names, n=1)
    return f"; did you mean {'.'.join([parent, near[0]] if parent else near)!r}?" if near else ""


def _neighbours(path: Path) -> list[str]:
    return [each.name for each in path.parent.glob("*") if each.suffix == ".py" or each.is_dir()]


def _did_you_mean(name: str, names: Sequence[str], folder: Path) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {str(folder / near[0])!r}?" if near else ""


def make_cwd_importable() -> None:
    """Make the modules in the current directory importable, as a Python script's own are."""
    _make_importable(Path.cwd(), first=True)


def _make_importable(folder: Path, *, first: bool) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0 if first else len(sys.path), str(folder))


def _is_file_of(file: Path, module_file: object) -> bool:
    return isinstance(module_file, str) and Path(module_file).resolve() == file
