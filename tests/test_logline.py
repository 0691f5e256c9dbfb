"""How output becomes lines: complete, numbered, within limits, and spooled at once."""

from __future__ import annotations

import threading

import pytest

from taskpool.tasks.log_lines import Lines, LogLine, decode_line, plain_text
from taskpool.text import Secrets
from taskpool.types import LogLimits

SMALL = LogLimits(lines=20, bytes=100_000, line_chars=10)


def taken(lines: Lines) -> list[tuple[int, LogLine]]:
    """All that is there to be sent, in the order of sending."""
    found = []
    while lines:
        first, batch = lines.peek(3, 1000)
        found += [(first + n, decode_line(line)) for n, line in enumerate(batch)]
        lines.drop(first + len(batch) - 1)
    return found


def texts(lines: Lines) -> list[str]:
    return [line.text for _, line in taken(lines)]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["one\ntwo\n"], ["one", "two"]),
        (["o", "ne\nt", "wo"], ["one", "two"]),
        (["\n\n"], ["", ""]),
        (["one\r\n", "two\r", "\n"], ["one", "two"]),
        (["10 %\r", "20 %\r30", " %\n"], ["30 %"]),
        (["\r10 %", "\r20 %"], ["20 %"]),
        (["a\x0bb\u2028c\n"], ["a\x0bb\u2028c"]),
        (["\x1b[1mbold\n"], ["\x1b[1mbold"]),
        (["\ud800\n"], ["?"]),
        ([""], []),
    ],
)
def test_a_stream_ends_its_lines_itself(parts: list[str], expected: list[str]) -> None:
    lines = Lines(1, LogLimits())

    for part in parts:
        lines.write("stdout", part)
    lines.end()

    assert texts(lines) == expected


def test_what_comes_in_two_ways_does_not_mix_within_a_line() -> None:
    lines = Lines(1, LogLimits())

    lines.write("stderr", "half ", "a")
    lines.write("stderr", "whole\n", "b")
    lines.write("stderr", "a line\nand the ", "a")
    lines.write("stderr", "next", "b")
    lines.write("stderr", "last", "a")
    lines.end()

    assert texts(lines) == ["whole", "half a line", "and the last", "next"]


def test_streams_do_not_mix_within_a_line() -> None:
    lines = Lines(1, SMALL)

    lines.write("stdout", "out")
    lines.write("stderr", "err\n")
    lines.add("log", "said\nmore\n")
    lines.write("stdout", "put\n")

    assert [(line.stream, line.text) for _, line in taken(lines)] == [
        ("stderr", "err"), ("log", "said"), ("log", "more"), ("stdout", "output"),
    ]  # fmt: skip


@pytest.mark.parametrize("length", [10, 11, 20, 25, 100])
def test_a_long_line_is_split_and_makes_itself_up_again(length: int) -> None:
    text = "".join(str(n % 10) for n in range(length))
    lines = Lines(1, LogLimits(line_chars=10))

    lines.write("stdout", text[:13])
    lines.write("stdout", text[13:] + "\nnext\n")
    lines.add("log", text)

    found = [line for _, line in taken(lines)]
    assert max(len(line.text) for line in found) <= 10
    assert plain_text(found) == f"{text}\nnext\n{text}\n"


@pytest.mark.parametrize("count", [18, 19, 20, 21, 100])
def test_of_too_many_lines_the_first_and_the_last_are_kept(count: int) -> None:
    lines = Lines(1, SMALL)

    for number in range(1, count + 1):
        lines.add("log", str(number))
    before_the_end = [line.text for _, line in taken(lines)]
    lines.end()
    tail = taken(lines)

    kept = min(count, 17)
    assert before_the_end[:kept] == [str(n) for n in range(1, kept + 1)]
    assert [number - 1 for number, _ in tail] == [n for n in range(count - 1, count + 1) if n > 17]
    assert [line.text for _, line in tail] == [str(n) for n in range(count - 1, count + 1) if n > 17]
    assert len(before_the_end) == kept + (count > 17)


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_it_does_not_matter_in_how_many_parts_a_flood_comes(at_once: int) -> None:
    kept: list[int] = []
    lines = Lines(1, SMALL, spool=lambda number, line: kept.append(number))
    written = [f"{n}\r\n" for n in range(1, 701)]

    for start in range(0, 700, at_once):
        lines.write("stdout", "".join(written[start : start + at_once]))
    lines.add("log", "".join(written).removesuffix("\n"))
    lines.end()
    found = taken(lines)

    assert [line.text for _, line in found if line.stream != "taskpool"] == [str(n) for n in (*range(1, 18), 699, 700)]
    assert [number for number, _ in found] == [*range(1, 19), 1400, 1401]
    assert len(kept) == len(set(kept)) <= (1401 if at_once == 1 else 1000)


def test_bytes_are_limited_as_well_as_lines() -> None:
    lines = Lines(1, LogLimits(lines=1000, bytes=10_000, line_chars=1000))

    for _ in range(200):
        lines.add("log", "é" * 400)
    lines.end()
    found = taken(lines)

    assert sum(len(line.text.encode()) for _, line in found) < 10_000
    assert sum(line.stream == "taskpool" for _, line in found) == 1


def test_the_spool_gets_every_line_at_once_also_one_that_has_not_ended() -> None:
    kept: list[tuple[int, str]] = []
    lines = Lines(1, SMALL, spool=lambda number, line: kept.append((number, decode_line(line).text)))

    lines.write("stdout", "on")
    lines.write("stdout", "e\n")
    for number in range(2, 30):
        lines.add("log", str(number))

    assert kept[:3] == [(0, "on"), (1, "one"), (2, "2")]
    assert kept[-1][1] == "29"
    assert len({number for number, _ in kept}) == len(kept)


def test_secrets_are_masked_before_anything_else_sees_them() -> None:
    kept: list[bytes] = []
    mask = Secrets([(("token",), "hunter2hunter2")]).hide
    lines = Lines(1, SMALL, mask=mask, spool=lambda number, line: kept.append(line))

    lines.write("stdout", "the token is hunter2hunter2, and")
    lines.write("stdout", " once more: hunter2hunter2\n")
    lines.add("log", "hunter2hunter2")
    lines.end()

    assert "hunter2" not in plain_text([line for _, line in taken(lines)])
    assert not any(b"hunter2" in line for line in kept)


@pytest.mark.parametrize("size", [*range(1, 16)])
def test_a_secret_that_is_written_in_parts_into_a_line_without_an_end_is_masked(size: int) -> None:
    secrets = Secrets([(("token",), "hunter2hunter2")])
    kept: list[bytes] = []
    lines = Lines(
        1,
        LogLimits(line_chars=20),
        mask=secrets.hide,
        reach=secrets.masker.reach,
        spool=lambda _, line: kept.append(line),
    )
    text = "-" * 100 + "hunter2hunter2" + "-" * 7 + "hunter2%68unter2" + "-" * 100

    for start in range(0, len(text), size):
        lines.write("stdout", text[start : start + size])
    lines.end()

    found = [line for _, line in taken(lines)]
    assert plain_text(found) == "-" * 100 + "***" + "-" * 7 + "***" + "-" * 100 + "\n"
    assert {len(line.text) for line in found[:-1]} == {20}
    assert not any(b"hunter2hunter2" in line for line in kept)


def test_threads_that_write_at_once_lose_nothing() -> None:
    lines = Lines(1, LogLimits(lines=10_000))

    def write(name: str) -> None:
        for number in range(200):
            lines.add("log", f"{name} {number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = taken(lines)
    assert [number for number, _ in found] == list(range(1, 801))
    assert len({line.text for _, line in found}) == 800
