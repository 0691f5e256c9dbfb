"""Flags made from the table of settings, and what a command makes of them: settings, an environment, a pool."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from taskpool.settings import SETTING_FIELDS, SettingField, Settings, resolve_redis_url

if TYPE_CHECKING:
    from taskpool.pool import TaskPool

F = TypeVar("F", bound=Callable[..., Any])

CONNECTION: Final = ("redis_url", "data_dir")
"""The settings of every command that talks to Redis."""

_METAVARS: Final = {"integer": "N", "seconds": "S", "list": "A,B", "url": "URL", "text": "TEXT"}


def settings_flags(*names: str) -> Callable[[F], F]:
    """Give a command the flags of these settings, in the table's order; no names: of all of them.

    Their values arrive in the keyword `flags`, ready for `load_settings`.
    """
    rows = [row for row in SETTING_FIELDS if not names or row.name in names]

    def decorate(command: F) -> F:
        for row in reversed(rows):
            command = _flag(row)(command)
        return command

    return decorate


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """The settings of these flags and of the environment.

    Raises:
        ConfigurationError: a variable is unknown or a value is wrong; every fault is listed.
    """
    given = {
        name: ",".join(value) if isinstance(value, tuple) else value for name, value in flags.items() if value != ()
    }
    return Settings.load(os.environ, **given)


def environment(settings: Settings, **changed: str) -> dict[str, str]:
    """This process's environment with every setting in it, for a process that is to have the same ones."""
    values = {row.env: _text(getattr(settings, row.name)) for row in SETTING_FIELDS}
    return os.environ | values | {f"TASKPOOL_{name.upper()}": value for name, value in changed.items()}


@contextmanager
def open_pool(flags: Mapping[str, Any]) -> Iterator[TaskPool]:
    """A connection to the Redis of these flags: a given one, or the embedded one of a running `taskpool up`.

    Raises:
        ConfigurationError: a setting is wrong, or nothing runs in the data directory.
        RedisUnavailable: Redis can't be reached.
    """
    from taskpool.pool import TaskPool

    settings = load_settings(flags)
    with TaskPool(resolve_redis_url(settings), settings=settings) as pool:
        yield pool


def _flag(row: SettingField) -> Callable[[F], F]:
    default = _text(row.default)
    help = f"{row.help} [{row.env}{'; ' + default if default else ''}]"
    if row.kind == "switch":
        return click.option(f"{row.flag}/--no-{row.flag.removeprefix('--')}", row.name, default=None, help=help)
    metavar = "|".join(row.choices) or _METAVARS[row.kind]
    return click.option(row.flag, row.name, metavar=metavar, multiple=row.kind == "list", help=help)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
