"""Flags made from the table of settings: each command has those it concerns, and they arrive."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from taskpool.cli.__main__ import main
from taskpool.cli.options import SettingOption, environment, load_settings
from taskpool.settings import CLIENT_SETTINGS, SETTING_FIELDS, Settings
from taskpool.types import Exit

LONGEST = "3660d"


def settings_of(command: str) -> set[str]:
    found = main.commands[command]
    return {option.name or "" for option in found.params if isinstance(option, SettingOption)}


def test_up_has_every_setting() -> None:
    assert settings_of("up") == {row.name for row in SETTING_FIELDS} - CLIENT_SETTINGS


def test_the_halves_have_every_setting_between_them() -> None:
    assert settings_of("api") | settings_of("worker") | {"redis_server"} == settings_of("up")
    assert settings_of("api") & settings_of("worker") >= {"redis_url", "data_dir", "log_level"}


@pytest.mark.parametrize(
    "command", ["submit", "get", "watch", "logs", "queue", "types", "workers", "stop", "retry", "pause", "drain"]
)
def test_commands_that_use_redis_or_an_api_have_flags_for_the_address(command: str) -> None:
    assert settings_of(command) == {"redis_url", "data_dir", "server", "api_key"}


@pytest.mark.parametrize("command", ["queue", "types", "workers", "pools", "get", "watch"])
def test_what_reads_can_print_json(command: str) -> None:
    assert "--json" in {name for option in main.commands[command].params for name in option.opts}


def test_flags_arrive_as_values() -> None:
    flags = {"port": "9000", "tasks": ("a.py,b", "c"), "queues": (), "builtins": False, "redis_url": None}

    settings = load_settings(flags)

    assert settings == Settings(port=9000, tasks=("a.py", "b", "c"), builtins=False)


def test_another_process_gets_the_same_settings() -> None:
    settings = Settings(
        host="::1",
        port=0,
        queues=("a", "b"),
        data_dir="/d",
        redis_url="unix:///s",
        tasks=("t.py",),
        max_result_bytes=1,
        lease_s=1.5,
        timeout_s=123456.789,
        builtins=False,
        log_level="debug",
    )

    assert Settings.load(environment(settings)) == settings
    assert Settings.load(environment(Settings())) == Settings()


@pytest.mark.parametrize("name", [None, *main.commands])
def test_help_is_there_and_fits(name: str | None) -> None:
    result = CliRunner().invoke(main, [*([name] if name else []), "--help"], terminal_width=100)

    assert result.exit_code == Exit.DONE
    assert max(map(len, result.stdout.splitlines())) <= 100
    if name not in (None, "workers"):
        assert "Example" in result.stdout


def test_every_command_is_in_the_list_with_what_it_does() -> None:
    lines = [line.split() for line in CliRunner().invoke(main, ["--help"]).stdout.splitlines()]

    for name, command in main.commands.items():
        assert isinstance(command, click.Command)
        assert any(words[:1] == [name] and len(words) > 2 for words in lines)


def test_a_misspelt_command_is_named_with_the_right_one() -> None:
    result = CliRunner().invoke(main, ["submti"])

    assert result.exit_code == Exit.USAGE
    assert "submit" in result.stderr.splitlines()[-1]


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout.startswith("taskpool ")


@pytest.mark.parametrize(
    ("arguments", "flag", "most"),
    [
        (("stop", "x", "--grace"), "--grace", "1d"),
        (("watch", "x", "--timeout"), "--timeout", LONGEST),
        (("submit", "echo", "--wait"), "--wait", LONGEST),
        (("submit", "echo", "--delay"), "--delay", LONGEST),
        (("submit", "echo", "--timeout"), "--timeout", LONGEST),
        (("submit", "echo", "--expires-in"), "--expires-in", LONGEST),
        (("keys", "rotate", "x", "--grace"), "--grace", "366d"),
    ],
)
@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e300"])
def test_seconds_that_can_not_be_are_refused_with_those_that_can(
    arguments: tuple[str, ...], flag: str, most: str, seconds: str
) -> None:
    result = CliRunner().invoke(main, [*arguments, seconds])

    assert result.exit_code == Exit.USAGE
    assert re.search(f"'{flag}': must be a duration from (0s|1ms) to {most}: .*, not '{seconds}'$", result.stderr, re.M)


@pytest.mark.parametrize("arguments", [*([name] for name in main.commands), ["keys", "create"], ["keys", "rotate"]])
def test_the_help_has_no_line_without_a_text(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, [*arguments, "--help"])

    listed = result.stdout.partition("Options:\n")[2].partition("\n\n")[0].splitlines()
    assert listed
    assert all(line.lstrip().startswith("-") or line.startswith("    ") for line in listed)
