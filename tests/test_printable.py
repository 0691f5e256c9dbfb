"""Texts from tasks, clients and Redis are printed without terminal commands and invisible characters."""

from __future__ import annotations

import ast
import json
import logging
import math
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from taskpool.text import LogFormatter, coloured, json_text, log_formatter, log_json, printable, printable_lines

ROOT = Path(__file__).parent.parent

ORDERS = {
    "clipboard": "\x1b]52;c;aGk=\x07",
    "title": "\x1b]0;mine\x1b\\\\",
    "link": "\x1b]8;;http://a\x1b\\\\text\x1b]8;;\x1b\\\\",
    "DCS": "\x1bP+q544e\x1b\\\\",
    "APC": "\x1b_Gf=24\x1b\\\\",
    "PM": "\x1b^x\x1b\\\\",
    "SOS": "\x1bXx\x1b\\\\",
    "cursor": "\x1b[1;1H\x1b[10A",
    "erase": "\x1b[2J\x1b[K",
    "report": "\x1b[6n\x1b[c\x1b[>c",
    "mode": "\x1b[?1049h\x1b[?25l",
    "print screen": "\x1b[5i",
    "reset": "\x1bc\x1b[!p",
    "character set": "\x1b(0\x0e\x0f",
    "C1": "\x90\x9b2J\x9d0;t\x9c\x85\x84",
    "C0": "a\bb\rc\x07\x0b\x0c\x00\x7f",
    "hidden": "\x1b[8mhidden\x1b[5mblinks\x1b[7m",
    "too many": "\x1b[" + "1;" * 500 + "1m",
    "no number": "\x1b[999999999m\x1b[38;5;9999m\x1b[38m\x1b[31;8m\x1b[?31m\x1b[>4;2m\x1b[31 m",
    "cut": "\x1b[31é\x1b",
    "nested": "\x1b\x1b[K[2J\x1b[\x1b[31m2J",
    "direction": "\u202eabc\u202c\u2066x\u2069\u200f\u061c",
    "unseen": "a\u200bb\u2060\ufeff\u00ad\u3164\U000e0041\u034f",
    "half": "\ud800",
}


@pytest.mark.parametrize("order", ORDERS)
def test_only_colours_are_left_of_orders_to_a_terminal(order: str) -> None:
    text = f"before {ORDERS[order]} behind"

    for shown in (printable(text), printable_lines(text), coloured(text)):
        assert shown.startswith("before ")
        assert shown.removesuffix("\x1b[0m").endswith(" behind")
        assert not [each for each in re.sub(r"\x1b\[[0-9;]{0,40}m", "", shown) if unseen(each)]
        assert shown.encode()
    assert "\x1b" not in printable(text)
    colours = re.findall(r"\x1b\[([0-9;]*)m", re.sub(r"[34]8;5;\d+", "", coloured(text)))
    assert not {"5", "6", "7", "8", "28"} & {number for each in colours for number in each.split(";")}


def unseen(character: str) -> bool:
    """Whether Unicode counts it among those that aren't seen; the joiners are needed."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\u200c\u200d"


def test_no_character_that_is_not_seen_is_left() -> None:
    visible_signs = {"\u0600", "\u0601", "\u0602", "\u0603", "\u0604", "\u0605", "\u06dd", "\u070f", "\u0890", "\u0891",
                     "\u08e2", "\U000110bd", "\U000110cd", *map(chr, range(0x13430, 0x13440))}  # fmt: skip
    left = {each for each in map(chr, range(sys.maxunicode + 1)) if printable(each) == each and unseen(each)}

    assert left <= visible_signs


def test_what_people_write_stays_as_it_is() -> None:
    for text in ("", "plain", "é ß 漢字 العربية हिन्दी נא 👩‍👩‍👧 ☀️ नी‍", "a\u00a0b", "C:\\new \\x1b", "~!@#$%^&*()"):
        assert printable(text) == printable_lines(text) == coloured(text) == text


def test_colours_stay_where_they_may_and_end_with_their_line() -> None:
    for numbers in ("31", "1;32", "01;31", "38;5;208", "48;2;1;2;3", "97;40", "2;3;4"):
        colour = f"\x1b[{numbers}m"
        assert coloured(f"a{colour}b\x1b[0mc") == f"a{colour}b\x1b[0mc"
        assert coloured(f"a{colour}b\x1b[mc") == f"a{colour}b\x1b[mc"
        assert coloured(f"a{colour}b") == f"a{colour}b\x1b[0m"
        assert printable(f"a{colour}b") == printable_lines(f"a{colour}b") == "ab"


def test_a_part_of_a_line_has_no_line_feed_and_no_tab() -> None:
    assert printable("a\nb\tc\r\n") == "a\\nb\\tc\\r\\n"
    assert printable_lines("a\nb\tc\r\n") == "a\nb\tc\\r\n"
    assert coloured("a\nb\tc") == "a\\nb\tc"


@pytest.mark.parametrize("order", ORDERS)
def test_json_means_the_same_and_has_nothing_unseen(order: str) -> None:
    document = {ORDERS[order]: [ORDERS[order], "é👩‍👩‍👧"]}

    encoded = json_text(json.dumps(document, ensure_ascii=False, indent=2))

    assert json.loads(encoded) == document
    assert not [each for each in encoded if unseen(each) and each != "\n"]
    assert "é👩‍👩‍👧" in encoded


def test_a_record_of_a_log_begins_one_line_whatever_is_in_it() -> None:
    try:
        raise ValueError("bad\n2026-11-29 12:00:00,000 INFO forged\x1b[2J\x1b]0;t\x07")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "the name %s", ("a\r\nb\x85c",), info)

    first, *more = LogFormatter("%(levelname)s %(message)s").format(record).splitlines()

    assert first == "ERROR the name a\\r"
    assert more
    assert all(line.startswith("    ") for line in more)
    assert "\x1b" not in "".join(more)


def test_every_command_prints_through_the_filter() -> None:
    """`say` is the one place; what is printed past it isn't looked at by anybody."""
    found = []
    for path in (ROOT / "taskpool" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write"):
                found.append((path.name, name))

    assert found == [("output.py", "click.echo")]


def record_of(message: str, *arguments: Any, level: int = logging.WARNING, **extra: Any) -> logging.LogRecord:
    made = logging.getLogger("shop").makeRecord("shop", level, "a.py", 1, message, arguments, None, extra=extra or None)
    made.created = 0.5
    return made


def test_a_log_record_as_json_has_its_exception_and_extras() -> None:
    record = record_of("dear %s", "hunter2", order=7, user="hunter2", ratio=math.nan, message_id=None, about={"a": 1})
    try:
        raise LookupError("no hunter2")
    except LookupError:
        record.exc_info = sys.exc_info()

    document = json.loads(log_json(record, lambda text: text.replace("hunter2", "***"), task_id="t1"))

    assert "no ***" in document.pop("exception")
    assert document == {
        "time": "1970-01-01T00:00:00.500Z", "level": "warning", "logger": "shop", "message": "dear ***",
        "task_id": "t1", "order": 7, "user": "***", "ratio": None, "message_id": None, "about": "{'a': 1}",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "is_terminal", "start"),
    [
        ("text", True, "WARNING"), ("text", False, "WARNING"), ("json", True, "{"), ("json", False, "{"),
        ("auto", True, "\x1b[33mWARNING\x1b[0m"), ("auto", False, "{"),
    ],
)  # fmt: skip
def test_auto_is_coloured_on_a_terminal_and_json_elsewhere(kind: str, is_terminal: bool, start: str) -> None:
    formatter = log_formatter(kind, "%(levelname)s %(message)s", is_terminal=is_terminal)

    text = formatter.format(record_of("WARNING: two\nlines"))

    assert text.startswith(start)
    assert len(text.splitlines()) == (1 if start == "{" else 2)
