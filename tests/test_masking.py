"""Masking finds a value in every form that programs write it in, and changes nothing else."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from collections.abc import Callable
from itertools import product
from urllib.parse import quote, quote_plus

import pytest

from taskpool.text import MANY_FORMS, MASK, Masker

PLAIN = "hunter2hunter2"
ODD = "a\"b'c\\d/e <f>&g%h+ü€😀\tz"

ESCAPES: dict[str, Callable[[str], str]] = {
    "json": json.dumps,
    "json of UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "json, every character": lambda text: "".join(f"\\u{ord(each):04X}" if each < "\uffff" else each for each in text),
    "repr": repr,
    "ascii": ascii,
    "repr of bytes": lambda text: repr(text.encode()),
    "url": quote,
    "url, all": lambda text: quote(text, safe=""),
    "url, lower case": lambda text: re.sub("%..", lambda found: found[0].lower(), quote(text, safe="")),
    "url, mixed case": lambda text: re.sub("%(.)(.)", lambda found: f"%{found[1].lower()}{found[2]}", quote(text)),
    "url, every byte": lambda text: "".join(f"%{each:02x}" for each in text.encode()),
    "web form": quote_plus,
    "html": html.escape,
    "xml": lambda text: html.escape(text).encode("ascii", "xmlcharrefreplace").decode(),
    "html, every character": lambda text: "".join(f"&#x{ord(each):X};" for each in text),
    "shell": shlex.quote,
}  # fmt: skip


@pytest.mark.parametrize("value", [PLAIN, ODD, "two words", "漢字かな交じり文"])
def test_an_escaped_value_is_masked_also_where_it_is_escaped_twice(value: str) -> None:
    masker = Masker([value])
    for names in [*product(ESCAPES), *product(ESCAPES, ESCAPES)]:
        text = value
        for name in names:
            text = ESCAPES[name](text)

        hidden = masker.hide(f"before {text} behind")

        assert re.fullmatch(rf"before .*{re.escape(MASK)}.* behind", hidden), names
        assert not any(part in hidden for part in re.findall(r"\w{4,}", value)), names


@pytest.mark.parametrize("value", [PLAIN, ODD, "four", "seven77"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_of_a_value_between_others_is_masked(value: str, encode: Callable[[bytes], bytes]) -> None:
    masker = Masker([value])
    for before, behind in product(["", "u", "us", "user:", "é:"], ["", "x", "xy", ', "b": 2}']):
        packed = encode((before + value + behind).encode()).decode()
        for written in {packed, packed.rstrip("=")}:
            head, mask, tail = masker.hide(f"Basic {written}, and more").partition(MASK)

            assert (head[:6], mask, tail[-10:]) == ("Basic ", MASK, ", and more")
            # What is left holds nothing but what stands around the value.
            assert len(head[6:]) * 6 <= len(before.encode()) * 8
            assert (len(tail[:-10].rstrip("=")) - 1) * 6 < len(behind.encode()) * 8


@pytest.mark.parametrize("outer", ["json", "url, all", "html", "web form"])
def test_a_packed_value_that_is_escaped_is_masked(outer: str) -> None:
    packed = base64.b64encode(b"user:" + b"\xff\xff>>>???".decode("latin-1").encode() + PLAIN.encode()).decode()

    assert MASK in Masker([PLAIN]).hide(ESCAPES[outer](f"Basic {packed}"))


@pytest.mark.parametrize("value", [PLAIN, ODD])
def test_hexadecimal_of_a_value_is_masked(value: str) -> None:
    for between in ("", ":", " "):
        digits = value.encode().hex(*between)

        assert Masker([value]).hide(f"0x{digits}; {digits.upper()}.") == f"0x{MASK}; {MASK}."


@pytest.mark.parametrize("quotes", ["'", '"'])
def test_a_value_whose_quotes_are_written_twice_is_masked(quotes: str) -> None:
    value = 'it\'s "hunter2"'

    written = f"{quotes}{value.replace(quotes, quotes * 2)}{quotes}"

    assert Masker([value]).hide(f"VALUES (1, {written})") == f"VALUES (1, {quotes}{MASK}{quotes})"


def test_a_value_with_colours_in_it_is_masked() -> None:
    text = "\x1b[32mtoken=\x1b[1;36mhunter\x1b[0m2\x1b[33mhunter2\x1b[0m, and \x1b[31mmore\x1b[0m"

    assert Masker([PLAIN]).hide(text) == f"\x1b[32mtoken=\x1b[1;36m{MASK}, and \x1b[31mmore\x1b[0m"


def test_what_is_no_value_stays_as_it_is() -> None:
    text = '{"a": "\\u00e9\\n", "b": "%41+%zz", "c": "&amp;&nothing;"} dXNlcjpub3RoaW5n \\ % & + \'"\'"\''

    assert Masker([PLAIN, ODD, "two words"]).hide(text) == text


def test_values_within_one_another_leave_one_mask() -> None:
    assert Masker(["abcdef", "cdefgh", "cd"]).hide("abcdefgh abcdef cd") == f"{MASK} {MASK} cd"


def test_many_values_are_found_as_few_are() -> None:
    values = [f"{number:03}-value-{number:03}" for number in range(MANY_FORMS)]
    text = " ".join([*values, json.dumps(ODD), "000-value-001"])

    assert Masker([*values, ODD]).hide(text) == " ".join([*[MASK] * len(values), f'"{MASK}"', "000-value-001"])


@pytest.mark.parametrize("text", ["\\" * 50_000, "%25" * 20_000, "&amp;" * 20_000, "%5C%26&#92;\\u0025" * 3000])
def test_a_text_full_of_escapes_comes_to_an_end(text: str) -> None:
    assert Masker([PLAIN, ODD]).hide(text + PLAIN) == text + MASK
