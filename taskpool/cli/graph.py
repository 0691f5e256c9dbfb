"""Draws the graph of a workflow in a terminal, as a tree: each node below the last of the nodes that it comes after, or
below the one whose task added it.

Of a large graph, the nodes that matter most are shown, and runs of others become one line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple

import click

from taskpool.cli.output import STATUS_COLOURS
from taskpool.operations.flow.graph import in_order
from taskpool.operations.flow.values import REMOVED, NodeRecord, WorkflowRecord
from taskpool.tasks.node import After
from taskpool.text import printable
from taskpool.types import TaskStatus

MOST_ROWS: Final = 40
DEEPEST: Final = 16
"""Deeper nodes aren't indented further."""
ALWAYS: Final = 3
"""The first and the last rows of a graph, which are always shown."""

S = TaskStatus
SIGNS: Final[Mapping[TaskStatus | None, str]] = {
    S.DONE: "✓", S.FAILED: "✗", S.STOPPED: "✗", S.CANCELED: "–", S.IN_PROGRESS: "▶", S.STOPPING: "▶",
    S.WAITING_CONFIRMATION: "?", None: "○",
}  # fmt: skip
"""What stands before a node. Others have `·`: they haven't started."""
FIRST: Final = (S.FAILED, S.WAITING_CONFIRMATION, S.STOPPED, S.STOPPING, S.IN_PROGRESS)
"""The statuses of the nodes that are shown first, if not all can be."""


class _Row(NamedTuple):
    node: NodeRecord
    prefix: str
    status: TaskStatus | None


def draw(nodes: Sequence[NodeRecord], *, most: int | None = MOST_ROWS) -> Iterator[str]:
    """The lines of the graph, with colours: about `most` at most (None: any number)."""
    rows = list(_rows(nodes))
    shown = set(range(len(rows))) if most is None or len(rows) <= most else _chosen(rows, most)
    width = max((len(rows[at].prefix) + len(printable(rows[at].node.name)) for at in shown), default=0)
    words = max((len(rows[at].status or "") for at in shown if rows[at].node.size is None), default=0)
    for is_shown, run in groupby(range(len(rows)), key=shown.__contains__):
        if is_shown:
            yield from (_line(rows[at], width, words) for at in run)
        else:
            yield _collapsed([rows[at] for at in run])


def progress(record: WorkflowRecord) -> str:
    """How far a workflow is, in words: `3 of 4 ended (75 %): 2 done, 1 failed`."""
    share = f" ({100 * record.ended // record.total} %)" if record.total else ""
    words = counted(record.counts)
    return f"{record.ended:,} of {record.total:,} ended{share}" + (f": {words}" if words else "")


def counted(counts: Mapping[str, int]) -> str:
    """Numbers of tasks by status, in the order of the statuses: `3 done, 1 failed`."""
    words = [*(status.value for status in TaskStatus), REMOVED]
    return ", ".join(f"{counts[word]:,} {word}" for word in dict.fromkeys([*words, *counts]) if counts.get(word))


def status_of(node: NodeRecord) -> TaskStatus | None:
    """The status of a node: of its task, or the worst one of its map. None if nothing is left of it."""
    if node.size is None:
        return node.status
    counts = node.counts or {}
    if sum(counts.values()) < node.size:
        return S.IN_PROGRESS if counts else S.QUEUED
    if node.size and counts.get(REMOVED) == node.size:
        return None
    return next((status for status in (S.FAILED, S.STOPPED, S.CANCELED) if counts.get(status)), S.DONE)


def _rows(nodes: Sequence[NodeRecord]) -> Iterator[_Row]:
    """The nodes in the order of the tree, each with the lines that lead to it."""
    names = {node.id: node.name for node in nodes if node.id}
    edges = [[*node.after, *([After(names[node.added_by])] if node.added_by in names else [])] for node in nodes]
    order = in_order([(node.name, edges[place]) for place, node in enumerate(nodes)])
    places = {nodes[at].name: place for place, at in enumerate(order)}
    below: dict[int, list[int]] = {}
    for place, at in enumerate(order):
        parent = max((places[edge.name] for edge in edges[at] if edge.name in places), default=-1)
        below.setdefault(parent, []).append(place)
    waiting = [(place, "", "") for place in reversed(below.get(-1, ()))]  # a stack: chains may be long
    while waiting:
        place, lead, prefix = waiting.pop()
        node = nodes[order[place]]
        yield _Row(node, prefix, status_of(node))
        children = below.get(place, [])
        for child in reversed(children):
            is_last = child == children[-1]
            if len(lead) >= DEEPEST * 3:
                waiting.append((child, lead, lead[:-3] + "└─ "))
            else:
                waiting.append((child, lead + ("   " if is_last else "│  "), lead + ("└─ " if is_last else "├─ ")))


def _chosen(rows: Sequence[_Row], most: int) -> set[int]:
    """The places of the rows to show."""
    rank = {status: number for number, status in enumerate(FIRST)}

    def importance(at: int) -> tuple[int, int]:
        is_edge = at < ALWAYS or at >= len(rows) - ALWAYS
        return (-1 if is_edge else rank.get(rows[at].status or S.DONE, len(FIRST)), at)

    return set(sorted(range(len(rows)), key=importance)[:most])


def _line(row: _Row, width: int, words: int) -> str:
    node, status = row.node, row.status
    colour = STATUS_COLOURS.get(status or "")
    name = printable(node.name).ljust(width - len(row.prefix))
    parts = [f"{click.style(row.prefix, dim=True)}{click.style(SIGNS.get(status, '·'), fg=colour)} {name}"]
    if node.size is None:
        word = (status.value if status else "gone").ljust(words if node.id else 0)
        parts += [click.style(word, fg=colour), *([printable(node.id)] if node.id else [])]
    else:
        ended = counted(node.counts or {})
        parts.append(click.style(f"{node.size:,} tasks" + (f": {ended}" if ended else ""), fg=colour))
    if len(node.after) > 1 or any(edge.on != "success" for edge in node.after):
        edges = [edge.name + ("" if edge.on == "success" else f": {edge.on}") for edge in node.after]
        more = f", {len(edges) - 4:,} more" if len(edges) > 5 else ""
        parts.append(click.style(f"({', '.join(edges[: 4 if more else 5])}{more})", dim=True))
    return "  ".join(parts).rstrip()


def _collapsed(rows: Sequence[_Row]) -> str:
    """One line for rows that aren't shown."""
    counts = Counter(row.status.value if row.status else REMOVED for row in rows)
    return click.style(f"{rows[0].prefix[:-3]}⋮ {len(rows):,} more: {counted(counts)}", dim=True)
