"""The parts that pages share, each with what it gets at worst."""

from __future__ import annotations

from typing import Any

import pytest

HELPERS = """async () => {
  const part = (name) => import(new URL(`parts/${name}.js`, document.querySelector('script').src));
  const { render, html } = await part('preact');
  const show = (component) => {
    const place = document.querySelector('main').appendChild(document.createElement('div'));
    render(component, place);
    return place;
  };
  Object.assign(window, { part, html, show });
}"""


@pytest.fixture
def parts(page: Any) -> Any:
    """A page whose scripts reach the modules of parts/ with `part`, and show something with `show`."""
    page.goto("/")
    page.wait_for_selector("main h1")
    page.evaluate(HELPERS)
    return page


def test_numbers_keep_their_digits_from_the_api_to_the_screen(parts: Any) -> None:
    text = '{"id": 12345678901234567890, "small": 1.5, "tiny": 1e-400, "exact": 0.1, "list": [9007199254740993]}'

    shown = parts.evaluate(
        """async (text) => {
          const { parseJson, writeJson } = await part('api');
          const { Json } = await part('json');
          const value = parseJson(text);
          return [writeJson(value), show(html`<${Json} value=${value} />`).innerText];
        }""",
        text,
    )

    assert shown[0] == text.replace(" ", "")
    assert "12345678901234567890" in shown[1]
    assert "9007199254740993" in shown[1]


LINES: list[tuple[str, list[list[str]]]] = [
    ("plain", [["plain", ""]]),
    ("\x1b[31mred\x1b[0m off", [["red", "ansi-fg-1"], [" off", ""]]),
    ("\x1b[1;38;5;46mg\x1b[22mh", [["g", "ansi-bold ansi-fg-2"], ["h", "ansi-fg-2"]]),
    ("\x1b[38:2::0:0:255mb\x1b[39mc", [["b", "ansi-fg-4"], ["c", ""]]),
    ("\x1b[48;2;250;10;10;31mb", [["b", "ansi-bg-1"]]),  # on a coloured ground, text keeps its own colour
    ("\x1b[7;32mr", [["r", "ansi-bg-2"]]),
    ("\x1b[2J\x1b]0;title\x07\x1b]8;;http://x\x1b\\gone\x1b[K\x1b(B", [["gone", ""]]),
    ("\x1b[31;?;999mx", [["x", "ansi-fg-1"]]),
    ("<img src=x onerror=alert(1)>", [["<img src=x onerror=alert(1)>", ""]]),
]


def test_colours_of_a_terminal_become_classes_and_other_sequences_nothing(parts: Any) -> None:
    shown = parts.evaluate(
        """async (lines) => {
          const { parseAnsi } = await part('ansi');
          return lines.map((line) => parseAnsi(line).pieces.map(({ text, classes }) => [text, classes]));
        }""",
        [line for line, _ in LINES],
    )

    assert shown == [pieces for _, pieces in LINES]


def test_a_colour_lasts_until_it_is_changed_also_on_later_lines(parts: Any) -> None:
    classes = parts.evaluate(
        """async () => {
          const { parseAnsi } = await part('ansi');
          const { state } = parseAnsi('\\x1b[31mfirst');
          return parseAnsi('second', state).pieces[0].classes;
        }"""
    )

    assert classes == "ansi-fg-1"


def test_hidden_characters_are_named_and_text_is_never_markup(parts: Any) -> None:
    shown = parts.evaluate(
        """async (text) => {
          const { Text } = await part('text');
          return show(html`<${Text} text=${text} />`).innerHTML;
        }""",
        "<b>a\u202eb\x00\u200b\tc",
    )

    named = "".join(f'{before}<span class="hidden-char">{name}</span>' for before, name in
                    [("&lt;b&gt;a", "U+202E"), ("b", "NUL"), ("", "U+200B")])  # fmt: skip
    assert shown == f"<bdi>{named}\tc</bdi>"


BEGUN: dict[str, Any] = {"created_at": "2026-01-01T00:00:00Z", "status": "done", "attempt": 1, "max_attempts": 3}
PAST: dict[str, Any] = {
    "attempt": 1,
    "worker": "w",
    "started_at": "2026-01-01T00:00:01Z",
    "ended_at": "2026-01-01T00:00:03Z",
}
LAST: dict[str, Any] = {"started_at": "2026-01-01T00:00:05Z", "ended_at": "2026-01-01T00:00:06Z"}
TIMELINES: list[tuple[str, dict[str, Any], list[list[Any]]]] = [
    ("it ran at once", {**BEGUN, **LAST}, [["queued", 0, 5], ["attempt", 5, 6]]),
    (
        "it failed before",
        {**BEGUN, **LAST, "history": [{**PAST, "outcome": "failed"}]},
        [["queued", 0, 1], ["attempt", 1, 3], ["backoff", 3, 5], ["attempt", 5, 6]],
    ),
    (
        "it asked, and was answered a second before it went on",
        {
            **BEGUN,
            **LAST,
            "history": [{**PAST, "outcome": "asked"}],
            "answers": [{"question": "q", "text": "?", "at": "2026-01-01T00:00:04Z"}],
        },
        [["queued", 0, 1], ["attempt", 1, 3], ["confirmation", 3, 4], ["queued", 4, 5], ["attempt", 5, 6]],
    ),
    (
        "its last attempt is in the history, too",
        {
            **BEGUN,
            "started_at": PAST["started_at"],
            "ended_at": PAST["ended_at"],
            "history": [{**PAST, "outcome": "failed"}],
        },
        [["queued", 0, 1], ["attempt", 1, 3]],
    ),
    (
        "it runs",
        {**BEGUN, "status": "in_progress", "started_at": LAST["started_at"]},
        [["queued", 0, 5], ["attempt", 5, 10]],
    ),
    ("it waits", {**BEGUN, "status": "waiting", "attempt": 0, "depends_on": ["a"]}, [["waiting", 0, 10]]),
    (
        "it waits for its next attempt",
        {**BEGUN, "status": "scheduled", "started_at": PAST["started_at"], "history": [{**PAST, "outcome": "failed"}]},
        [["queued", 0, 1], ["attempt", 1, 3], ["backoff", 3, 10]],
    ),
    (
        "it was confirmed, then due, then queued",
        {
            **BEGUN,
            **LAST,
            "confirm": {"text": "?"},
            "run_at": "2026-01-01T00:00:04Z",
            "confirmation": {"decision": "confirmed", "at": "2026-01-01T00:00:02Z"},
        },
        [["confirmation", 0, 2], ["scheduled", 2, 4], ["queued", 4, 5], ["attempt", 5, 6]],
    ),
    (
        "it was canceled",
        {**BEGUN, "status": "canceled", "attempt": 0, "ended_at": LAST["ended_at"]},
        [["queued", 0, 6]],
    ),
]


def test_the_life_of_a_task_is_told_without_gaps(parts: Any) -> None:
    found = parts.evaluate(
        """async (records) => {
          const { timelineOf } = await part('../pages/task/timeline');
          const from = Date.parse(records[0].created_at);
          const seconds = (at) => (at - from) / 1000;
          return records.map((record) =>
            timelineOf(record, from + 10000).spans.map((span) => [span.kind, seconds(span.from), seconds(span.to)]));
        }""",
        [record for _, record, _ in TIMELINES],
    )

    told = dict(zip([name for name, *_ in TIMELINES], found, strict=True))
    assert told == {name: spans for name, _, spans in TIMELINES}


def test_an_attempt_that_took_no_time_is_seen_at_the_end_of_a_timeline(parts: Any) -> None:
    lane, span, text = parts.evaluate(
        """async (record) => {
          const { timelineOf } = await part('../pages/task/timeline');
          const { TimeAxis } = await part('../pages/task/time_axis');
          const timeline = timelineOf(record, Date.parse(record.ended_at));
          const place = show(html`<${TimeAxis} timeline=${timeline} lineTimes=${[]} seenAt=${null} />`);
          const [lane, span] = ['.timeline-lane', '.span-attempt'].map((name) => place.querySelector(name));
          return [...[lane, span].map((each) => each.getBoundingClientRect().toJSON()), span.innerText];
        }""",
        {**BEGUN, **LAST, "ended_at": LAST["started_at"]},
    )

    assert span["width"] == 4
    assert span["left"] == lane["right"] - 4
    assert text == ""


TRACEBACK = """Traceback (most recent call last):
  File "/usr/lib/python3.11/runpy.py", line 1, in run
    code()
  File "/srv/app/images.py", line 41, in resize
    width = data["width"]
            ~~~~^^^^^^^^^
  File "/srv/app/.venv/lib/python3.11/site-packages/pil/image.py", line 7, in open
    raise KeyError(name)
KeyError: 'width'
"""


def test_the_users_frame_of_a_traceback_is_found_and_those_of_libraries_are_folded(parts: Any) -> None:
    frame, kinds = parts.evaluate(
        """async (text) => {
          const { folded, innermost, parseTraceback } = await part('traceback');
          const parsed = parseTraceback(text);
          return [innermost(parsed), folded(parsed).map((each) => each.kind)];
        }""",
        TRACEBACK,
    )

    assert (frame["file"], frame["line"], frame["name"]) == ("/srv/app/images.py", 41, "resize")
    assert frame["code"] == 'width = data["width"]\n        ~~~~^^^^^^^^^'
    assert kinds == ["text", "folded", "frame", "folded", "text"]


QUERIES: list[tuple[str, dict[str, str]]] = [
    ("status:failed type:resize", {"status": "failed", "type": "resize"}),
    ("took:5s attempts:2", {"min_duration": "5s", "attempts": "2"}),
    ('error:"no such (file" more text', {"error": "no such (file", "text": "more text"}),
    ('error:"say \\"hi\\" c:\\\\x"', {"error": 'say "hi" c:\\x'}),
    ("unknown:word https://example.org/x", {"text": "unknown:word https://example.org/x"}),
    ('"status:failed"', {"text": "status:failed"}),
    ("d217r8m2n3aolstf2ch5", {"text": "d217r8m2n3aolstf2ch5"}),
    ('error:"half', {"error": "half"}),
    ("", {}),
]


def test_a_search_means_a_query_and_is_written_so_that_it_means_the_same(parts: Any) -> None:
    parsed = parts.evaluate(
        """async (texts) => {
          const { parse, format } = await part('search');
          return texts.map((text) => [parse(text), parse(format(parse(text).filter))]);
        }""",
        [text for text, _ in QUERIES],
    )

    assert parsed == [[{"filter": query, "faults": []}] * 2 for _, query in QUERIES]


def test_a_search_that_means_nothing_says_why(parts: Any) -> None:
    told = parts.evaluate(
        "async (texts) => texts.map((await part('search')).parse).map(({ faults }) => faults)",
        ["status:", "type:a type:b"],
    )

    assert told == [["status: needs a value, such as status:failed"], ["type is given twice"]]


OFFERED: list[tuple[str, int, list[str]]] = [
    ("sta", 3, ["status:"]),
    ("status:fa", 9, ["status:failed "]),
    ("type:a b", 6, ['type:"a b" ']),
    ("status:failed ty", 16, ["type:"]),
    ("since:1", 7, ["since:15m ", "since:1h "]),
    ("nothing:", 8, []),
]
"""A text, where the cursor is, and what is offered there."""


def test_words_and_their_values_are_completed(parts: Any) -> None:
    offered = parts.evaluate(
        """async (begun) => {
          const { complete } = await part('search');
          const known = { types: ['a b', 'resize'], statuses: ['failed', 'done'] };
          return begun.map(([text, at]) => complete(text, at, known).items.map(({ insert }) => insert));
        }""",
        [[text, at] for text, at, _ in OFFERED],
    )

    assert offered == [items for *_, items in OFFERED]


FIGURES = [
    ("duration(230)", "230 ms"),
    ("duration(4900)", "4.9 s"),
    ("duration(724000)", "12 min 4 s"),
    ("duration(3600000)", "1 h"),
    ("clock(6000)", "0:06"),
    ("figure(18240)", "18,240"),
    ("figure(124300)", "124k"),
    ("figure(1240000)", "1.2M"),
    ("bytes(3400000)", "3.4 MB"),
    ("percent(112, 1000)", "11%"),
    ("percent(0, 0)", "0%"),
    ("many(1, 'task')", "1 task"),
    ("relative(1000, 15000)", "14 s ago"),
    ("relative(200000, 20000)", "in 3 min"),
]


def test_figures_are_short(parts: Any) -> None:
    calls = ", ".join(f"time.{call}" for call, _ in FIGURES)

    assert parts.evaluate(f"part('time').then((time) => [{calls}])") == [shown for _, shown in FIGURES]


def test_a_run_is_compared_with_others_if_there_are_enough(parts: Any) -> None:
    durations = {"count": 100, "p50_ms": 1000, "buckets": [[1, 50], [2, 40], [None, 10]]}

    told = parts.evaluate(
        """async (all) => {
          const { comparedTo } = await part('../pages/task/facts');
          return all.map((each) => comparedTo(each, 3000));
        }""",
        [durations, {**durations, "count": 2}],
    )

    assert told == ["usually 1 s (slower than 90%)", ""]
