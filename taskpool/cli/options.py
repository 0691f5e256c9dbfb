"""Flags made from the table of settings, and what a command makes of them: settings, an environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

from taskpool.setting import SettingField
from taskpool.settings import CLIENT_SETTINGS, SETTING_FIELDS, Settings

F = TypeVar("F", bound=Callable[..., Any])

CONNECTION: Final = ("redis_url", "data_dir")
"""The settings of every command that talks to Redis."""

_SERVICE: Final = frozenset({row.name for row in SETTING_FIELDS} - CLIENT_SETTINGS)

_METAVARS: Final = {
    "integer": "N",
    "seconds": "S",
    "list": "A,B",
    "queues": "A,B",
    "targets": "A,B",
    "networks": "A,B",
    "url": "URL",
    "http": "URL",
    "path": "PATH",
    "text": "TEXT",
    "choice": "WORD",
}


def settings_flags(*names: str) -> Callable[[F], F]:
    """Give a command the flags of these settings, in the table's order; no names: of all that a service has.

    Their values arrive in the keyword `flags`, ready for `load_settings`.
    """
    rows = [row for row in SETTING_FIELDS if row.name in (names or _SERVICE)]

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


class SettingOption(click.Option):
    """A flag that is a setting."""


class Command(click.Command):
    """A command that lists its settings apart from its own options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; `--no-builtins` is short for `--builtins=false`."""
        return super().parse_args(ctx, ["--builtins=false" if arg == "--no-builtins" else arg for arg in args])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both lists."""
        own: list[tuple[str, str]] = []
        settings: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            # Arguments stand in the line of usage, and the text says what they are.
            if isinstance(parameter, click.Option) and (row := parameter.get_help_record(ctx)) is not None:
                (settings if isinstance(parameter, SettingOption) else own).append(row)
        with formatter.section("Options"):
            formatter.write_dl(own)
        if settings:
            with formatter.section("Settings (each is a variable too: --data-dir is TASKPOOL_DATA_DIR)"):
                formatter.write_dl(settings)


def _flag(row: SettingField) -> Callable[[F], F]:
    default = _text(row.default)
    words = [row.help, f"One of {', '.join(row.choices)}." if row.choices else "", f"[{default}]" if default else ""]
    help = " ".join(word for word in words if word)
    if row.kind == "builtins":  # alone it stands for all
        return click.option(
            row.flag, row.name, cls=SettingOption, metavar="[A,B]", is_flag=False, flag_value="true", help=help
        )
    multiple = row.is_list
    return click.option(
        row.flag, row.name, cls=SettingOption, metavar=_METAVARS[row.kind], multiple=multiple, help=help
    )


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return ",".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
