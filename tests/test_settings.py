"""Settings: one table, every fault named at once with what is accepted, no password ever shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from taskpool.errors import ConfigurationError
from taskpool.settings import SETTING_FIELDS, SettingField, Settings, redact_url


def faults(env: dict[str, str], **overrides: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        Settings.load(env, **overrides)
    return str(raised.value).splitlines()


def test_nothing_set_means_the_defaults() -> None:
    assert Settings.load({"PATH": "/bin", "TASKPOOLER": "x"}) == Settings()


NO_BUILTIN = (
    "'http_requests' is not true (all), false (none), or some of echo, long_task, word_count, word_merge, "
    "http_request, separated by commas; did you mean http_request?"
)


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("TASKPOOL_HOST", "0.0.0.0", "host", "0.0.0.0"),
        ("TASKPOOL_PORT", " 9000 ", "port", 9000),
        ("TASKPOOL_QUEUES", "urgent, default,", "queues", ("urgent", "default")),
        ("TASKPOOL_TASKS", "shop.tasks,more.py", "tasks", ("shop.tasks", "more.py")),
        ("TASKPOOL_LEASE_S", "2.5", "lease_s", 2.5),
        (
            "TASKPOOL_WEBHOOK_ALLOW",
            "hooks.internal, 10.0.0.0/8,::1",
            "webhook_allow",
            ("hooks.internal", "10.0.0.0/8", "::1"),
        ),
        ("TASKPOOL_BUILTINS", "No", "builtins", False),
        ("TASKPOOL_BUILTINS", "1", "builtins", True),
        ("TASKPOOL_BUILTINS", "echo, long_task,echo", "builtins", ("echo", "long_task")),
        ("TASKPOOL_LOG_LEVEL", "DEBUG", "log_level", "debug"),
        ("TASKPOOL_REDIS_URL", "rediss://u:p@h:6380/1", "redis_url", "rediss://u:p@h:6380/1"),
        ("TASKPOOL_REDIS_URL", "unix:///run/redis.sock?db=2", "redis_url", "unix:///run/redis.sock?db=2"),
        ("TASKPOOL_SERVER", "https://tasks.example.org/v1", "server", "https://tasks.example.org/v1"),
    ],
)
def test_a_variable_sets_its_field(variable: str, text: str, name: str, value: object) -> None:
    settings = Settings.load({variable: text})

    assert dataclasses.asdict(settings) == {**dataclasses.asdict(Settings()), name: value}


def test_a_flag_takes_precedence_over_its_variable() -> None:
    assert Settings.load({"TASKPOOL_PORT": "1", "TASKPOOL_WORKERS": "2"}, port="9", workers=None).port == 9


def test_flags_may_be_values_instead_of_text() -> None:
    settings = Settings.load({}, port=9, queues=["a", "b"], builtins=False, lease_s=3)

    assert (settings.port, settings.queues, settings.builtins, settings.lease_s) == (9, ("a", "b"), False, 3.0)


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.load({"TASKPOOL_REDIS_URL": "", "TASKPOOL_PORT": ""}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "fault"),
    [
        ("TASKPOOL_PORT", "http", "'http' is not a whole number from 0 to 65535"),
        ("TASKPOOL_PORT", "65536", "'65536' is not a whole number from 0 to 65535"),
        ("TASKPOOL_WORKERS", "0", "'0' is not a whole number from 1 to 1024"),
        ("TASKPOOL_MAX_CRASHES", "1.5", "'1.5' is not a whole number of 1 or more"),
        (
            "TASKPOOL_MAX_CRASHES",
            "9" * 400,
            f"'{'9' * 400}' is not a whole number of 1 or more; the largest is {2**63 - 1}",
        ),
        ("TASKPOOL_GRACE_S", "-1", "'-1' is not a number of seconds from 0 to 316224000"),
        ("TASKPOOL_GRACE_S", "inf", "'inf' is not a number of seconds from 0 to 316224000"),
        ("TASKPOOL_GRACE_S", "nan", "'nan' is not a number of seconds from 0 to 316224000"),
        ("TASKPOOL_GRACE_S", "1e300", "'1e300' is not a number of seconds from 0 to 316224000"),
        ("TASKPOOL_RESULT_TTL_S", "9" * 30, f"'{'9' * 30}' is not a whole number from 1 to 316224000"),
        (
            "TASKPOOL_QUEUES",
            "images,a/b",
            "'a/b' can't be the name of a queue: 1 to 64 letters, digits, '_', '-' or '.' (ASCII)",
        ),
        (
            "TASKPOOL_BUILTINS",
            "echo,http_requests",
            NO_BUILTIN,
        ),
        (
            "TASKPOOL_WEBHOOK_ALLOW",
            "hooks.internal,10.0.0.0/33",
            "'10.0.0.0/33' is neither the name of a host nor an address nor a network like 10.0.0.0/8",
        ),
        (
            "TASKPOOL_WEBHOOK_ALLOW",
            "2130706433",
            "'2130706433' is neither the name of a host nor an address nor a network like 10.0.0.0/8",
        ),
        ("TASKPOOL_HOST", " ", "'' is not text"),
        (
            "TASKPOOL_LOG_LEVEL",
            "warn",
            "'warn' is not one of debug, info, warning, error; did you mean warning?",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(variable: str, text: str, fault: str) -> None:
    assert faults({variable: text}) == [f"{variable}: {fault}"]


def test_a_wrong_flag_is_named_as_the_flag_it_is() -> None:
    assert faults({"TASKPOOL_MAX_CRASHES": "3"}, max_crashes="x") == [
        "--max-crashes: 'x' is not a whole number of 1 or more"
    ]


def test_an_unknown_variable_is_named_with_the_nearest_right_one() -> None:
    assert faults({"TASKPOOL_WORKER": "5"}) == ["TASKPOOL_WORKER: no such setting; did you mean TASKPOOL_WORKERS?"]
    assert faults({"TASKPOOL_ZZZ": "5"}) == ["TASKPOOL_ZZZ: no such setting"]


def test_every_fault_is_listed_at_once() -> None:
    listed = faults({"TASKPOOL_PROT": "1", "TASKPOOL_SLOTS": "many"}, port="x", prot=1)

    assert [fault.split(":")[0] for fault in listed] == ["TASKPOOL_PROT", "prot", "--port", "TASKPOOL_SLOTS"]


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis+cluster://:hunter2@h/0", "the scheme 'redis+cluster' is not supported"),
        ("http://:hunter2@h", "the scheme 'http' is not supported"),
        ("localhost", "the scheme '' is not supported"),
        ("redis://:hunter2@", "names no host"),
        ("redis://:hunt/er2@h", "not a URL"),
        ("redis://:hunter2@h:port", "not a URL"),
        ("redis://[hunter2", "not a URL"),
        ("unix://", "names no path"),
    ],
)
def test_a_wrong_redis_url_is_refused_without_showing_its_password(url: str, fault: str) -> None:
    accepted = (
        "redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix:///PATH or redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB"
    )

    assert faults({"TASKPOOL_REDIS_URL": url}) == [f"TASKPOOL_REDIS_URL: {fault}; accepted: {accepted}"]


def test_the_repr_shows_no_password() -> None:
    assert "hunter2" not in repr(Settings(redis_url="redis://:hunter2@h", api_key="tp_hunter2"))


@pytest.mark.parametrize("url", ["localhost:8080", "redis://h", "http://", "http://:hunter2@h", "http://h:hunter2"])
def test_a_wrong_server_is_refused_without_showing_its_password(url: str) -> None:
    (fault,) = faults({"TASKPOOL_SERVER": url})

    assert fault.startswith("TASKPOOL_SERVER: ")
    assert "hunter2" not in fault


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user@host", "redis://user@host"),
        ("redis://user:hunter2@host:1/0", "redis://user:***@host:1/0"),
        ("redis://:hun/t#er@2@host", "redis://:***@host"),
        ("unix:///a@b/redis.sock?db=1&password=hunter2", "unix:///a@b/redis.sock?db=1&password=***"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_each_row_of_the_table_reads_its_own_default_back() -> None:
    for row in SETTING_FIELDS:
        if row.default not in (None, ()):
            text = ",".join(row.default) if row.kind.is_list else str(row.default)

            assert Settings.load({row.env: text}) == Settings(), row.name


def test_each_row_of_the_table_says_what_it_is_for() -> None:
    for row in SETTING_FIELDS:
        assert row.help.endswith("."), row.name
        assert row.kind.accepts, row.name
        assert (row.env, row.flag) == (f"TASKPOOL_{row.name.upper()}", f"--{row.name.replace('_', '-')}")


def test_each_duration_and_size_has_its_unit_in_its_name_and_its_help() -> None:
    for row in SETTING_FIELDS:
        assert (row.kind.metavar == "S" or "Seconds" in row.help) == row.name.endswith("_s"), row.name
        assert ("bytes" in row.help) == row.name.endswith("_bytes"), row.name


def documented(row: SettingField) -> str:
    """The row's line in docs/settings.md."""
    default = ",".join(row.default) if row.kind.is_list else str(row.default if row.default is not None else "")
    default = f"`{default}`" if default else ""
    return f"| `{row.env}` | `{row.flag}` | {default} | {row.help} | {row.kind.accepts} |"


def test_the_documentation_has_the_whole_table() -> None:
    text = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()

    assert [line for line in text.splitlines() if line.startswith("| `")] == list(map(documented, SETTING_FIELDS))
