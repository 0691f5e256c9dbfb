"""How the graph of a workflow is drawn: five nodes, ten thousand, a long chain, many edges."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import Any

import click
from rich.console import Console

from taskpool.cli.graph import MOST_ROWS, draw, progress
from taskpool.cli.workflows import live_graph
from taskpool.operations.flow.values import NodeRecord, WorkflowRecord, WorkflowStatus
from taskpool.tasks.node import After
from taskpool.types import TaskStatus as S


def node(name: str, status: S | None = S.DONE, after: Sequence[str | After] = (), **more: Any) -> NodeRecord:
    edges = tuple(each if isinstance(each, After) else After(each) for each in after)
    return NodeRecord(name=name, status=status, after=edges, id=more.pop("id", f"t{name}"), **more)


def rows(name: str, size: int, after: Sequence[str | After] = (), added_by: str = "", **counts: int) -> NodeRecord:
    return node(name, None, after, id=None, size=size, counts=counts, added_by=added_by or None)


def drawn(*nodes: NodeRecord, **options: Any) -> list[str]:
    return [click.unstyle(line) for line in draw(nodes, **options)]


def test_a_small_graph_shows_every_node_below_the_last_that_it_waits_for() -> None:
    lines = drawn(
        node("import"),
        rows("rows", 10_000, ["import"], done=9_990, failed=3),
        node("summary", S.WAITING, [After("rows", "any"), "audit"]),
        node("audit", S.WAITING_CONFIRMATION, ["import"]),
        node("mail", S.CANCELED, [After("import", "failure")]),
    )

    assert lines == [
        "✓ import         done                  timport",
        "├─ ▶ rows        10,000 tasks: 9,990 done, 3 failed",
        "├─ ? audit       waiting_confirmation  taudit",
        "│  └─ · summary  waiting               tsummary  (rows: any, audit)",
        "└─ – mail        canceled              tmail  (import: failure)",
    ]


def test_what_a_task_added_is_below_it() -> None:
    lines = drawn(
        node("first"),
        node("import", after=["first"]),
        rows("rows", 2, done=2, added_by="timport"),
        node("end", S.QUEUED, ["rows"], added_by="timport"),
        node("other", added_by="tgone"),
    )

    assert lines == [
        "✓ first         done    tfirst",
        "└─ ✓ import     done    timport",
        "   └─ ✓ rows    2 tasks: 2 done",
        "      └─ · end  queued  tend",
        "✓ other         done    tother",
    ]


def test_a_map_has_the_worst_status_of_its_tasks() -> None:
    assert [line[0] for line in drawn(
        rows("a", 3), rows("b", 3, done=1), rows("c", 3, done=3), rows("d", 3, done=2, failed=1),
        rows("e", 3, done=2, canceled=1), rows("f", 3, removed=3), rows("g", 3, removed=1, done=2), rows("h", 0),
        node("i", None),
    )] == ["·", "▶", "✓", "✗", "–", "○", "✓", "✓", "○"]  # fmt: skip


def test_of_ten_thousand_nodes_the_important_ones_are_shown() -> None:
    nodes = [node("start"), *(node(f"n{at}", S.DONE if at < 6_000 else S.WAITING, ["start"]) for at in range(10_000))]
    nodes[501] = node("bad", S.FAILED, ["start"])
    nodes[4_001] = node("running", S.IN_PROGRESS, ["start"])

    lines = drawn(*nodes)

    assert len(lines) < 2 * MOST_ROWS
    assert [line for line in lines if "bad" in line or "running" in line] == [
        "├─ ✗ bad      failed       tbad",
        "├─ ▶ running  in_progress  trunning",
    ]
    assert lines[0].startswith("✓ start")
    assert lines[-1].startswith("└─ · n9999")
    assert any(line.startswith("⋮ ") and ": 3,997 waiting, " in line and line.endswith(" done") for line in lines)


def test_a_long_chain_stays_on_the_screen() -> None:
    nodes = [node(f"n{at}", S.DONE, [f"n{at - 1}"] if at else []) for at in range(10_000)]

    every = drawn(*nodes, most=None)

    assert len(every) == 10_000
    assert max(map(len, every)) < 100
    assert len(drawn(*nodes)) < 2 * MOST_ROWS


def test_many_edges_are_shortened() -> None:
    nodes = [node(f"n{at}") for at in range(9)]

    lines = drawn(*nodes, node("end", S.WAITING, [each.name for each in nodes]))

    assert lines[-1].endswith("(n0, n1, n2, n3, 5 more)")


def test_names_from_elsewhere_and_cycles_do_no_harm() -> None:
    assert drawn(node("a", after=["gone"]), node("\x1b[2Jb", S.DONE, id="")) == ["✓ a  done  ta", "✓ b  done"]
    assert drawn(node("a", after=["b"]), node("b", after=["a"])) == []


def test_progress_in_words() -> None:
    record = WorkflowRecord(
        id="w",
        name="import",
        status=WorkflowStatus.IN_PROGRESS,
        total=1_000,
        ended=903,
        counts={"failed": 3, "done": 900},
    )

    assert progress(record) == "903 of 1,000 ended (90 %): 900 done, 3 failed"


def test_a_terminal_shows_the_graph_again_as_it_changes() -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=60, height=20)
    nodes = [node("first", S.IN_PROGRESS), *(node(f"n{at}", S.WAITING, ["first"]) for at in range(100))]

    with live_graph(console) as show:
        for ended, status in ((0, WorkflowStatus.IN_PROGRESS), (101, WorkflowStatus.DONE)):
            show(
                WorkflowRecord(
                    id="w", name="import", status=status, total=101, ended=ended, counts={}, nodes=tuple(nodes)
                )
            )

    lines = click.unstyle(screen.getvalue()).splitlines()
    assert any("import done: 101 of 101 ended (100 %)" in line for line in lines)
    assert any("▶ first" in line for line in lines)
    assert any(" more: " in line for line in lines)
    assert max(map(len, lines)) <= 60
