"""Strict JSON: what is refused and where, and that nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.http.body import MAX_DEPTH, decode
from api.http.problems import Problem

REFUSED = {
    "nothing": (b"", "too early", None),
    "spaces": (b"  ", "too early", None),
    "no JSON": (b"hello", "malformed", None),
    "two documents": (b"{} {}", "trailing", None),
    "a comma too many": (b"[1,]", "trailing comma", None),
    "single quotes": (b"{'a':1}", "malformed", None),
    "a comment": (b"{} // x", "malformed", None),
    "a byte order mark": (b"\xef\xbb\xbf{}", "malformed", None),
    "NaN": (b'{"a":NaN}', "malformed", None),
    "Infinity": (b'{"a":Infinity}', "malformed", None),
    "minus Infinity": (b'{"a":-Infinity}', "malformed", None),
    "a leading zero": (b"[01]", "invalid number", None),
    "more than a double holds": (b"[1e999]", "out of range", None),
    "less than a double holds": (b"[-1e999]", "out of range", None),
    "more than 64 bits": (b"[18446744073709551616]", "64 bits", None),
    "less than 64 bits": (b"[-9223372036854775809]", "64 bits", None),
    "thousands of digits": (b"[" + b"9" * 6000 + b"]", "out of range", None),
    "a control character": (b'["\x01"]', "malformed", None),
    "a raw NUL": (b'["\x00"]', "malformed", None),
    "not UTF-8": (b'["\xff"]', "UTF-8", None),
    "not UTF-8 in a name": (b'{"\xff":1}', "UTF-8", None),
    "an encoded surrogate": (b'["\xed\xa0\x80"]', "UTF-8", None),
    "UTF-16": ('{"a":1}'.encode("utf-16"), "malformed", None),
    "the first half of a surrogate pair": (b'["\\ud800"]', "surrogate", None),
    "the second half of a surrogate pair": (b'["\\udc00 and more text"]', "surrogate", None),
    "the wrong second half": (b'["\\ud800\\u0041"]', "surrogate", None),
    "lists too deep": (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested", None),
    "objects too deep": (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested", None),
    "far too deep": (b"[" * 100_000, "nested", None),
    "a name twice": (b'{"a":1,"a":2}', "'a' occurs twice", "/a"),
    "a name twice, with spaces": (b'{"a" \n:1,"a"\t:2}', "'a' occurs twice", "/a"),
    "a name twice, one escaped": (b'{"a":1,"\\u0061":2}', "'a' occurs twice", "/a"),
    "a name twice, further down": (b'{"x":[0,{"y/z":{"a~":1,"b":2,"a~":3}}]}', "'a~' occurs twice", "/x/1/y~1z/a~0"),
    "a name twice, among texts that look like names": (b'{"a":":","b":"\\": ","a":1}', "'a' occurs twice", "/a"),
    "an empty name twice": (b'{"":1,"":1}', "'' occurs twice", "/"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_readers_would_disagree_on_is_refused(case: str) -> None:
    raw, says, pointer = REFUSED[case]

    with pytest.raises(Problem, match=says) as refusal:
        decode(raw)

    assert [error["pointer"] for error in refusal.value.errors] == ([] if pointer is None else [pointer])


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[18446744073709551615, -9223372036854775808, 1e308, 0.1, -0, 1E-400]",
        b'{"a":":","b":"\\":","c":"\\"  :","d":{"a":1},"e":[{"a":1},{"a":2}]}',
        b'"text"',
        b"null",
        '{"\\ud83d\\ude00":"😀","":"\\u0000"}'.encode(),
    ],
)
def test_what_is_left_is_read_as_any_reader_would(raw: bytes) -> None:
    assert decode(raw) == json.loads(raw)


NAMES = st.sampled_from(["a", "b", ":", '":', 'x": ', "", "é", "\\"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(NAMES, inner), max_size=3).map(tuple),
    max_leaves=10,
)


@given(VALUES, st.sampled_from([":", " :", ": ", "\n:\t"]))
@example((("a", 1), ("a", 2)), ":")
def test_names_are_found_twice_exactly_when_they_are_there_twice(value: Any, colon: str) -> None:
    raw = _written(value, colon).encode()

    if _repeats(value):
        with pytest.raises(Problem, match="occurs twice"):
            decode(raw)
    else:
        assert decode(raw) == json.loads(raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_either_read_or_refused(raw: bytes) -> None:
    try:
        value = decode(raw)
    except Problem:
        return

    assert value == json.loads(raw)


def _written(value: Any, colon: str) -> str:
    """As JSON; a tuple is an object, written member by member, whatever their names."""
    if isinstance(value, tuple):
        return "{" + ",".join(json.dumps(name) + colon + _written(item, colon) for name, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_written(item, colon) for item in value) + "]"
    return json.dumps(value)


def _repeats(value: Any) -> bool:
    if isinstance(value, tuple):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(_repeats(item) for _, item in value)
    return isinstance(value, list) and any(_repeats(item) for item in value)
