"""What the headers of a submission ask for, read strictly or ignored as their RFCs say."""

from __future__ import annotations

import pytest

from api.http.problems import Problem
from api.http.query import NO_PREFERENCES, preferences_of
from api.http.responses import tagged


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        (b"wait=10", 10),
        (b"Wait = 10", 10),
        (b'wait="10"', 10),
        (b"respond-async, wait=10", 10),
        (b"respond-async;x=1,wait=0", 0),
        (b"wait=999999", 50),
        (b"wait=-1", None),
        (b"wait=1.5", None),
        (b"wait", None),
        (b"await=10", None),
        (b"wait=99999999999999999999", None),
        (b"", None),
    ],
)
def test_a_preference_is_understood_or_ignored(prefer: bytes, wait_s: int | None) -> None:
    assert preferences_of([(b"prefer", prefer)]).wait_s == wait_s


def test_a_preference_may_come_in_several_lines() -> None:
    assert preferences_of([(b"prefer", b"respond-async"), (b"prefer", b"wait=5")]).wait_s == 5


def test_most_requests_ask_for_nothing() -> None:
    assert preferences_of([(b"host", b"x"), (b"accept", b"*/*")]) is NO_PREFERENCES


@pytest.mark.parametrize("key", [b"k", b"x" * 255, b'"8e03978e-40d5-43dd-bc93-6894a57f9324"'])
def test_a_key_is_taken_as_it_is(key: bytes) -> None:
    assert preferences_of([(b"idempotency-key", key)]).idempotency_key == key.decode()


@pytest.mark.parametrize("keys", [[b""], [b"x" * 256], [b"a b"], [b"\xe9"], [b"a\x7f"], [b"a", b"a"]])
def test_what_cant_be_a_key_is_refused(keys: list[bytes]) -> None:
    with pytest.raises(Problem) as refusal:
        preferences_of([(b"idempotency-key", key) for key in keys])

    assert refusal.value.kind == "invalid-header"


def test_a_tag_is_found_among_others_weak_or_strong() -> None:
    tag = dict(tagged({}, ()).raw_headers)[b"etag"]

    assert tagged({}, [(b"if-none-match", tag)]).status_code == 304
    assert tagged({}, [(b"if-none-match", b'"x", W/' + tag)]).status_code == 304
    assert tagged({}, [(b"if-none-match", b"*")]).status_code == 304
    assert tagged({}, [(b"if-none-match", b'"x"'), (b"etag", tag)]).status_code == 200
    assert dict(tagged([], ()).raw_headers)[b"etag"] != tag
