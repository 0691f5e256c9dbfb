"""The commands' flags, made from the table of settings and from the declared options of a task, and how their values
are read.

A payload is given as `key=value` pairs, or as JSON from a file, from stdin or as the text itself. A value that is
JSON is taken as JSON, any other as a string. A field that the type's schema declares as a string stays one
(`name=123`).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import click

from taskpool.settings import BUILTINS, SETTING_FIELDS, SettingField, Settings
from taskpool.tasks.payload.secret_fields import expanded
from taskpool.types import OpenEnum
from taskpool.types.dependency import Dependency, Parent
from taskpool.validation import LONGEST_S, Declared, Duration, default_in_words, seconds_of, time_of

Flags = Mapping[str, Any]
"""The values of a command's flags for settings, by the settings' names."""


def load_settings(flags: Flags) -> Settings:
    """The settings of these flags and of the environment. Raises: ConfigurationError, which lists every fault."""
    return Settings.load(os.environ, **{name: value for name, value in flags.items() if value != ()})


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment with every setting in it, for a process that is to have the same ones."""
    return os.environ | {row.env: _text(getattr(settings, row.name)) for row in SETTING_FIELDS}


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return ",".join(value) if isinstance(value, tuple) else str(value)


class SettingOption(click.Option):
    """The flag of a setting."""

    def __init__(self, row: SettingField) -> None:
        default = _text(row.default)
        words = [row.help]
        if row.choices:
            words.append(f"One of {', '.join(row.choices)}.")
        if default:
            words.append(f"[{default}]")
        # `--builtins` without a value stands for all.
        alone: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if row.kind is BUILTINS else {}
        names, help = [row.flag, row.name], " ".join(words)
        super().__init__(names, metavar=row.kind.metavar, multiple=row.kind.is_list, help=help, **alone)


class Command(click.Command):
    """A command with the flags of some settings. What `opens` makes of these flags is the first argument of its
    function, and is closed behind it. `json` is the help of its flag --json. `options` are declared fields for which
    it has flags too; the function gets those that are given in `**options`."""

    def __init__(
        self,
        *given: Any,
        settings: Collection[str],
        opens: Callable[[Flags], AbstractContextManager[Any]],
        json: str = "",
        options: Collection[Declared] = (),
        **named: Any,
    ) -> None:
        super().__init__(*given, **named)
        self._opens = opens
        self._options = [option.name for option in options]
        flags = {option.name: option.flag for option in options}
        self.params += [_option(option, flags) for option in options]
        if json:
            self.params.append(click.Option(["--json", "as_json"], is_flag=True, help=json))
        self.params += [SettingOption(row) for row in SETTING_FIELDS if row.name in settings]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; `--no-builtins` is short for `--builtins=false`."""
        return super().parse_args(ctx, ["--builtins=false" if arg == "--no-builtins" else arg for arg in args])

    def invoke(self, ctx: click.Context) -> Any:
        """Call the function."""
        assert self.callback is not None
        names = [option.name or "" for option in self.params if isinstance(option, SettingOption)]
        for name in self._options:
            if (value := ctx.params[name]) is None or value is False or value == ():
                del ctx.params[name]
        with self._opens({name: ctx.params.pop(name) for name in names}) as opened:
            return ctx.invoke(self.callback, opened, **ctx.params)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, and its settings apart from them."""
        # Arguments stand in the line of usage, and the text says what they are.
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        for title, is_setting in (
            ("Options", False),
            ("Settings (each is a variable too: --data-dir is TASKPOOL_DATA_DIR)", True),
        ):
            rows = [each.get_help_record(ctx) for each in options if isinstance(each, SettingOption) == is_setting]
            with formatter.section(title):
                formatter.write_dl([row for row in rows if row is not None])


def _option(option: Declared, flags: Mapping[str, str]) -> click.Option:
    """The flag of a declared field. `flags` are those of the fields that its description may name."""
    about, default = option.about, default_in_words(option)
    words, choices = [about.description], about.choices
    details: dict[str, Any] = {"metavar": about.metavar or "TEXT"}
    if option.is_list:
        words.append("May be repeated.")
        details["multiple"] = True
        if get_args(option.type) == (Parent,):
            details["type"] = read_dependency
    elif option.name == "confirm":
        details["type"] = read_confirm
    elif option.type is bool:
        details, default = {"is_flag": True}, ""
    elif option.type in (float, Duration):
        details = {"type": seconds(about.least or 0, about.most), "metavar": "S"}
    elif option.type is int:
        details = {"type": int, "metavar": "N"}
    elif option.type is datetime:
        words.append("Without a time zone it is local time; 02:00 is the next such time.")
        details = {"type": read_time, "metavar": "TIME"}
    elif get_origin(option.type) is Literal:
        choices = get_args(option.type)
    elif isinstance(option.type, type) and issubclass(option.type, OpenEnum):
        choices = [*option.type]
    if choices:
        details |= {"type": click.Choice([*map(str, choices)]), "metavar": about.metavar or None}
    text = " ".join([*words, *([f"[{default}]"] if default else [])])
    help = re.sub("`([^`]*)`", lambda match: flags.get(match[1], match[1]), text)
    return click.Option([option.flag, option.name], help=help, **details)


def seconds(least_s: float = 0, most_s: float = LONGEST_S) -> Callable[[Any], float]:
    """The function that reads a duration in this range, as a number of seconds."""

    def read(value: Any) -> float:
        try:
            return float(seconds_of(value, least_s, most_s))
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read


def read_dependency(text: str) -> str | Dependency:
    """What a task is to depend on: ``ID``, ``ID:any``, ``workflow:ID``. Raises: click.BadParameter."""
    try:
        return Dependency.parse(text)
    except ValueError as error:
        raise click.BadParameter(f"{text[:80]!r}: {error}") from None


def read_confirm(text: str) -> Any:
    """A question: a text, or an object or `true` in JSON. Its parts aren't checked. Raises: click.BadParameter."""
    if text == "true":
        return True
    if not text.startswith("{"):
        return text
    try:
        return _decode(text)
    except ValueError as error:
        raise click.BadParameter(f"{text[:80]!r} isn't JSON: {error}") from None


def read_time(text: str) -> datetime:
    """A time, as `time_of` reads it. Raises: click.BadParameter."""
    try:
        return time_of(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} isn't a time like 2026-12-24T18:00:00Z or 02:00") from None


def read_json(source: str) -> Any:
    """The JSON value that `source` is, or that the file `source` holds; `-` is stdin. Raises: click.BadParameter."""
    if source == "-":
        where, text = "stdin", sys.stdin.read()
    else:
        try:
            return _decode(source)
        except ValueError:
            pass  # not JSON itself: a file's name
        try:
            where, text = source, Path(source).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "its name or text isn't readable"
            raise click.BadParameter(f"{source!r} is neither JSON nor a readable file ({reason})") from None
    try:
        return _decode(text)
    except ValueError as error:
        raise click.BadParameter(f"{where} isn't JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} isn't JSON")


_decode: Final = json.JSONDecoder(parse_constant=_refuse_constant).decode


def read_pairs(pairs: Sequence[str], schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The payload that `key=value` pairs spell, each value read as the `schema` (JSON Schema) wants it.

    Raises: click.BadParameter, when a pair has no `=` or no key, or a key comes twice.
    """
    whole = schema or {}
    properties = [part.get("properties", {}) for part in expanded(whole, whole)]
    payload: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} isn't key=value")
        if key in payload:
            raise click.BadParameter(f"{key!r} is given twice")
        schemas = [part for fields in properties for part in expanded(whole, fields.get(key))]
        payload[key] = _value(text, {kind for part in schemas for kind in _kinds(part)})
    return payload


def read_value(text: str, schema: Mapping[str, Any] | None) -> Any:
    """The JSON value that a text is, read as the `schema` (JSON Schema) wants it. What isn't JSON is a string."""
    whole = schema or {}
    return _value(text, {kind for part in expanded(whole, whole) for kind in _kinds(part)})


def _value(text: str, accepted: Collection[str]) -> Any:
    try:
        value = _decode(text)
    except ValueError:
        return text
    return text if "string" in accepted and _kind(value) not in accepted else value


def _kind(value: Any) -> str:
    """The JSON type of a value, as schemas name it."""
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def _kinds(schema: Mapping[str, Any]) -> Iterator[str]:
    """The JSON types that a schema names itself."""
    named = schema.get("type", [])
    for kind in [named] if isinstance(named, str) else named:
        yield "number" if kind == "integer" else kind
    yield from map(_kind, schema.get("enum", []))
