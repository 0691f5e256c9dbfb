"""`taskpool new`: a task file and its test, ready to run and to be filled in."""

from __future__ import annotations

import importlib.util
import keyword
from pathlib import Path
from shlex import quote
from string import Template
from typing import Final

import click

from taskpool.cli.output import command_name, say
from taskpool.errors import ConfigurationError

TASK: Final = Template('''\
"""The task `$name`: say here what it does."""

from __future__ import annotations

from taskpool import TaskContext, task


@task("$name", timeout_s=60, max_attempts=3)
def $name(ctx: TaskContext, names: list[str], greeting: str = "Hello") -> dict[str, list[str]]:
    """Greet everybody. The arguments are the payload; what is returned is the result."""
    greetings = []
    for number, person in enumerate(names, start=1):
        ctx.raise_if_cancelled()
        greetings.append(f"{greeting}, {person}!")
        ctx.progress(number, len(names))
    return {"greetings": greetings}
''')

EPILOG = """\b
Example:
  taskpool new resize
  pytest test_resize.py
  taskpool up --tasks resize.py --reload
"""

TEST: Final = Template('''\
"""What `$name` must do. It runs in this process: no Redis, no worker. Needs: pip install "taskpool-jobs[testing]"."""

from __future__ import annotations

from taskpool.testing import InlinePool

from $name import $name


def test_everybody_is_greeted() -> None:
    with InlinePool($name) as pool:
        ended = pool.run("$name", {"names": ["Ada", "Grace"]})

    assert ended.error is None
    assert ended.result == {"greetings": ["Hello, Ada!", "Hello, Grace!"]}


def test_no_names_is_no_greeting() -> None:
    with InlinePool($name) as pool:
        ended = pool.run("$name", {"names": []})

    assert ended.result == {"greetings": []}
''')


@click.command(epilog=EPILOG)
@click.argument("name")
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), default=".", metavar="DIR",
              help="Where to put them; made when it isn't there. Default: here.")  # fmt: skip
def new(name: str, directory: Path) -> None:
    """Write a task file NAME.py and its test."""
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        raise ConfigurationError(f"{name!r} can't be the name of a Python function: take letters, digits and _")
    if name.startswith("test_"):
        raise ConfigurationError(f"pytest would take the task {name!r} for a test: take another name")
    files = {directory / f"{name}.py": TASK, directory / f"test_{name}.py": TEST}
    for file in files:
        if file.exists():
            raise ConfigurationError(f"{file} exists already; nothing was written")
    if any((directory / name).glob("*.py")):
        raise ConfigurationError(
            f"{directory / name} is a package, and only one of it and {name}.py can be imported: take another name"
        )
    if importlib.util.find_spec(name) is not None:
        raise ConfigurationError(f"there is a module {name!r} already, and a file {name}.py would hide it")
    directory.mkdir(parents=True, exist_ok=True)
    for file, template in files.items():
        file.write_text(template.substitute(name=name), encoding="utf-8")
        say(f"wrote {file}")
    task_file, test_file = files
    is_complete = all(importlib.util.find_spec(each) for each in ("pytest", "fakeredis"))
    needs = "" if is_complete else '  # needs: pip install "taskpool-jobs[testing]"'
    say(f"\nNow: {command_name('pytest', module='pytest')} {quote(str(test_file))}{needs}")
    say(f"     {command_name()} up --tasks {quote(str(task_file))} --reload")
    say(f"""     {command_name()} submit {name} names='["Ada"]' --wait""")
