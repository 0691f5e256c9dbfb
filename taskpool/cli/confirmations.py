"""The commands for what people decide: `confirm`, `reject` and `answer`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.cli.options import read_value
from taskpool.cli.output import age, print_json, print_move, print_table
from taskpool.cli.service import service_command
from taskpool.operations.documents import TaskDocument
from taskpool.types import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskpool.cli.service import Service
    from taskpool.types import TaskRecord

CONFIRM_EPILOG: Final = """\b
Examples:
  taskpool confirm                                    what waits for a person
  taskpool confirm d217r8m2n3aolstf2ch5 --comment "as discussed"
  taskpool confirm --json | jq -r '.tasks[].id'

A task that asks in the middle of its work is answered with `taskpool answer`.
"""

REJECT_EPILOG: Final = """\b
Example:
  taskpool reject d217r8m2n3aolstf2ch5 --comment "wrong file"

The task is canceled. `taskpool retry` asks again.
"""

ANSWER_EPILOG: Final = """\b
Examples:
  taskpool answer d217r8m2n3aolstf2ch5 true
  taskpool answer "$id" '{"keep": 100}' --question delete

A value that is JSON is sent as JSON, any other as text; if the question wants a
text, it stays text. `taskpool confirm` lists what tasks ask.
"""

PAGE: Final = 100

comment = click.option("--comment", metavar="TEXT", help="Why: for the task's record and the audit.")


@service_command(epilog=CONFIRM_EPILOG, json="Print JSON.")
@click.argument("id", required=False)
@comment
def confirm(service: Service, id: str | None, comment: str | None, as_json: bool) -> None:
    """Let a task start that waits for a confirmation. Without ID, list what waits for a person."""
    if id is not None:
        print_move(service.confirm(id, comment=comment), as_json=as_json)
        return
    waiting = list(_waiting(service))
    if as_json:
        print_json({"tasks": [TaskDocument.of(record) for record in waiting]})
        return
    now = datetime.now(UTC)
    rows = [
        (
            record.id,
            record.type,
            age((now - record.asked_at).total_seconds() if record.asked_at else None),
            age((record.answer_by - now).total_seconds() if record.answer_by else None),
            "confirm" if record.question is None else "answer",
            _text(record),
        )
        for record in waiting
    ]
    print_table(("id", "type", ">asked", ">left", "command", "question"), rows, nothing="nothing waits for a person")


def _waiting(service: Service) -> Iterator[TaskRecord]:
    cursor: str | None = None
    while True:
        page = service.list_tasks(status=TaskStatus.WAITING_CONFIRMATION, cursor=cursor, limit=PAGE)
        yield from page.items
        if (cursor := page.next_cursor) is None:
            return


def _text(record: TaskRecord) -> str:
    asked = record.question or record.confirm
    return "" if asked is None else asked.text if record.question is None else f"{record.question.name}: {asked.text}"


@service_command(epilog=REJECT_EPILOG, json="Print the task as JSON.")
@click.argument("id")
@comment
def reject(service: Service, id: str, comment: str | None, as_json: bool) -> None:
    """Cancel a task that waits for a confirmation."""
    print_move(service.reject(id, comment=comment), as_json=as_json)


@service_command(epilog=ANSWER_EPILOG, json="Print the task as JSON.")
@click.argument("id")
@click.argument("value")
@click.option("--question", metavar="NAME", help="The name of the question that is meant. [the one that is asked now]")
@comment
def answer(service: Service, id: str, value: str, question: str | None, comment: str | None, *, as_json: bool) -> None:
    """Answer what a task asks, with VALUE."""
    asked = service.get(id).question
    schema: Any = None if asked is None or question not in (None, asked.name) else asked.schema
    given = read_value(value, schema)
    if question is None and asked is not None:
        question = asked.name
    print_move(service.answer(id, given, question=question, comment=comment), as_json=as_json)
