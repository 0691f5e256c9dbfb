"""Query parameters: read strictly, and refused by name."""

from __future__ import annotations

import msgspec
import pytest

from api.http.problems import Problem
from api.http.query import EventsQuery, ListQuery, NoQuery, QueueQuery, TaskQuery, read_query
from taskpool.types import TaskStatus


def test_none_means_the_defaults() -> None:
    assert read_query(b"", ListQuery) == ListQuery()
    assert read_query(b"", TaskQuery).wait == 0


def test_each_is_read_as_what_it_is() -> None:
    query = read_query(b"status=in_progress&queue=null&type=t&tag=a%3Ab&cursor=x%20y&limit=7", ListQuery)

    expected = ListQuery(status=TaskStatus.IN_PROGRESS, queue="null", type="t", tag="a:b", cursor="x y", limit=7)
    assert query == expected


@pytest.mark.parametrize(
    ("query", "wanted", "parameter", "says"),
    [
        (b"wait=1", NoQuery, "wait", "there are none"),
        (b"wat=1", TaskQuery, "wat", "did you mean 'wait'?"),
        (b"x=1", EventsQuery, "x", "known: status, queue, type, tag, last_event_id"),
        (b"wait=1&wait=2", TaskQuery, "wait", "given twice"),
        (b"wait=316224001", TaskQuery, "wait", "<= 316224000"),
        (b"wait=-1", TaskQuery, "wait", ">= 0"),
        (b"wait=", TaskQuery, "wait", "must be a number"),
        (b"wait", TaskQuery, "wait", "must be a number"),
        (b"wait=nan", TaskQuery, "wait", ">= 0"),
        (b"wait=inf", TaskQuery, "wait", "<= 316224000"),
        (b"wait=1e999", TaskQuery, "wait", "out of range"),
        (b"wait=null", TaskQuery, "wait", "must be a number"),
        (b"limit=0", QueueQuery, "limit", ">= 1"),
        (b"limit=1000001", QueueQuery, "limit", "<= 1000000"),
        (b"limit=1.5", QueueQuery, "limit", "must be a whole number"),
        (b"limit=99999999999999999999999", QueueQuery, "limit", "<= 1000000"),
        (b"status=runing", ListQuery, "status", "no such status"),
        (b"status=cancelled", ListQuery, "status", "did you mean 'canceled'?"),
        (b"status=null", ListQuery, "status", "known: queued, "),
        (b"status=", ListQuery, "status", "known: queued, "),
        (b"queue=", EventsQuery, "queue", "length >= 1"),
        (b"tag=" + b"x" * 129, EventsQuery, "tag", "length <= 128"),
    ],
)
def test_what_is_wrong_is_named(query: bytes, wanted: type[msgspec.Struct], parameter: str, says: str) -> None:
    with pytest.raises(Problem) as refusal:
        read_query(query, wanted)

    (error,) = refusal.value.errors
    assert refusal.value.kind == "invalid-query"
    assert error["parameter"] == parameter
    assert says in error["detail"]


@pytest.mark.parametrize("query", [b"a=1&" * 40, b"\xff=\xfe&%00=%ff", b"&&=&=", b"%zz=%"])
def test_odd_ones_are_refused_too(query: bytes) -> None:
    with pytest.raises(Problem):
        read_query(query, TaskQuery)
