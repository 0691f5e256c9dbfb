"""Flags made from the table of settings and from the declared options of a task, and how their values are read.

A payload is given as `key=value` pairs, or as JSON from a file, from stdin or as the text itself. A value that is
JSON is taken as JSON, any other as a string. A field that the type's schema declares as a string stays one
(`name=123`).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast, get_args, get_origin

import click

from taskpool.settings import CLIENT_SETTINGS, SETTING_FIELDS, SettingField, Settings
from taskpool.types import OPTIONS, TaskOptions
from taskpool.validation import LONGEST_S, Declared, accepted, default_in_words, is_seconds

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


class Seconds(click.types.FloatParamType):
    """A number of seconds from `least_s` to `most_s`."""

    name = "seconds"

    def __init__(self, least_s: float = 0, most_s: float = LONGEST_S) -> None:
        self._least_s = least_s
        self._most_s = most_s

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; click says which flag it was when it is none."""
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not is_seconds(number, self._least_s, self._most_s):
            self.fail(f"{str(value)[:80]!r} is not {accepted(self._least_s, self._most_s)}", param, ctx)
        return number


def option_flags(command: F) -> F:
    """Give a command a flag for each option of a submission. Only the given ones arrive, in the keyword `options`."""
    for option in reversed(OPTIONS):
        command = _option_flag(option)(command)
    return command


def given_options(options: Mapping[str, Any]) -> TaskOptions:
    """The options whose flags were given."""
    given = {name: value for name, value in options.items() if not (value is None or value is False or value == ())}
    return cast(TaskOptions, given)


def _option_flag(option: Declared) -> Callable[[F], F]:
    about, default = option.about, default_in_words(option)
    words = [about.description, "May be repeated." if option.is_list else ""]
    if option.type is datetime:
        words.append("Without a time zone it is local time.")
    words.append(f"[{default}]" if default and option.type is not bool else "")
    settings: dict[str, Any] = {"help": _in_flags(" ".join(word for word in words if word))}
    if option.type is bool:
        settings["is_flag"] = True
    elif option.is_list:
        settings |= {"multiple": True, "metavar": about.metavar}
        settings |= {"type": click.Choice(about.choices)} if about.choices else {}
    else:
        settings |= _value_of(option)
    return click.option(option.flag, option.name, **settings)


def _value_of(option: Declared) -> dict[str, Any]:
    """The type and the metavar of a flag with one value."""
    about = option.about
    if option.type is float:
        return {"type": Seconds(about.least or 0, about.most), "metavar": "S"}
    if option.type is int:
        return {"type": int, "metavar": "N"}
    if option.type is datetime:
        return {"type": Time(), "metavar": "TIME"}
    if get_origin(option.type) is Literal:
        return {"type": click.Choice(get_args(option.type))}
    return {"metavar": about.metavar or "TEXT"}


def _in_flags(text: str) -> str:
    """A description with the flags of the options that it names."""
    flags = {option.name: option.flag for option in OPTIONS}
    return re.sub("`([^`]*)`", lambda match: flags.get(match[1], match[1]), text)


class Time(click.ParamType[datetime]):
    """A time; without a zone it is in this machine's zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time; click says which flag it was when it is none."""
        try:
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} isn't a time like 2026-12-24T18:00:00Z", param, ctx)


def read_json(source: str) -> Any:
    """The JSON value that `source` is, or that the file of that name holds; `-` is stdin.

    Raises:
        click.BadParameter: it is neither.
    """
    if source == "-":
        return _parse(sys.stdin.read(), "stdin")
    try:
        return json.loads(source, parse_constant=_refuse_constant)
    except ValueError:
        pass  # not JSON itself: a file's name
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name or text isn't readable"
        raise click.BadParameter(f"{source!r} is neither JSON nor a readable file ({reason})") from None
    return _parse(text, source)


def read_pairs(pairs: Sequence[str], schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The payload that `key=value` pairs spell, each value read as the `schema` (JSON Schema) wants it.

    Raises:
        click.BadParameter: a pair has no `=` or no key, or a key comes twice.
    """
    payload: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} isn't key=value")
        if key in payload:
            raise click.BadParameter(f"{key!r} is given twice")
        payload[key] = _value(text, _field_schema(schema or {}, key))
    return payload


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text
    accepted = _accepted(schema)
    if "string" in accepted and _json_type(value) not in accepted:
        return text
    return value


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _accepted(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types a field's schema names; empty where it accepts anything."""
    kinds = schema.get("type", [])
    accepted = {kinds} if isinstance(kinds, str) else set(kinds)
    for branch in [*schema.get("anyOf", []), *schema.get("oneOf", [])]:
        accepted |= _accepted(branch)
    for value in schema.get("enum", []):
        accepted.add(_json_type(value))
    return {"number" if kind == "integer" else kind for kind in accepted}


def _field_schema(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    whole = schema
    field = _resolve(whole, schema).get("properties", {}).get(key, {})
    return _resolve(whole, field)


def _resolve(whole: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow `$ref` inside the document; a reference that leads nowhere says nothing about the field."""
    for _ in range(8):
        ref = schema.get("$ref")
        if not isinstance(ref, str):
            break
        schema = whole
        for step in ref.removeprefix("#/").split("/"):
            schema = schema.get(step.replace("~1", "/").replace("~0", "~"), {})
    return schema


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise click.BadParameter(f"{where} isn't JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} isn't JSON")
