"""What people are asked about tasks, and what they answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec.structs import force_setattr

from taskpool.types.base import Document
from taskpool.validation import DURATION, LEAST_S, Duration, Field, seconds_of

ANSWER_S: Final = 7 * 86_400
"""How long a person has to answer, if nothing else is said."""
MOST_ASKED: Final = 100
"""How often a task may ask in the middle of its work, from its submission or a retry by hand on."""
TEXT: Final = re.compile(r"[^\t-\r ][\s\S]*")  # not \S: regular expressions of other languages know other blanks
LONGEST_TEXT: Final = 2000
TEXT_TAKES: Final = "a text of 1 to 2,000 characters, no blank first"
CONFIRM_TEXT: Final = "Run this task?"
MOST_CONFIRMERS: Final = 100


class Confirm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question that a person has to answer before a task starts: ``Confirm("Import 10,000 rows?", timeout="3d")``."""

    text: Annotated[str, Field("What the person is asked.", pattern=TEXT, most=LONGEST_TEXT, takes=TEXT_TAKES)] = (
        CONFIRM_TEXT
    )
    who: Annotated[
        Sequence[str],
        Field(
            "The ids or names of the API keys that may answer.",
            default="every key with the scope `tasks:confirm`",
            most=MOST_CONFIRMERS,
            pattern=re.compile(r"[^\t-\r ](?:.{0,62}[^\t-\r ])?"),
            takes="the id or the name of an API key",
        ),
    ] = ()
    timeout: Annotated[
        Duration,
        Field(
            "How long the question is open, from the time at which it is asked: a number of seconds, or a text like"
            " `3d`. Then the default counts.",
            default="`7d`",
            least=LEAST_S,
            pattern=DURATION,
        ),
    ] = ANSWER_S
    default: Annotated[Literal["confirm", "reject"], Field("The answer that counts if there is none in time.")] = (
        "reject"
    )

    def __post_init__(self) -> None:
        if isinstance(self.who, list):
            force_setattr(self, "who", tuple(self.who))
        with suppress(ValueError):
            force_setattr(self, "timeout", seconds_of(self.timeout))


def confirm_of(value: Any) -> Any:
    """What is given in the place of a `Confirm`, as one: a text, true, false for None, or an object of JSON. Anything
    else stays as it is."""
    if isinstance(value, bool):
        return Confirm() if value else None
    if isinstance(value, str):
        return Confirm(value)
    try:
        return msgspec.convert(value, Confirm) if isinstance(value, Mapping) else value
    except msgspec.ValidationError:
        return value


class Confirmation(Document, frozen=True, kw_only=True):
    """Who confirmed or rejected a task, when and why."""

    decision: Literal["confirmed", "rejected"]
    at: datetime
    by: Annotated[str | None, Field("The name of the API key.")] = None
    key: Annotated[str | None, Field("The id of the API key.")] = None
    comment: str | None = None
    by_default: Annotated[bool, Field("Nobody answered in time.")] = False


class Question(Document, frozen=True, kw_only=True):
    """What a task asks in the middle of its work."""

    name: str
    text: str
    timeout: Annotated[float, Field("How long the question is open, in seconds.", least=0)]
    schema: Annotated[Mapping[str, Any] | None, Field("The JSON Schema of the answer.")] = None
    default: Annotated[Any, Field("The answer that counts if there is none in time.")] = None


class Answer(Document, frozen=True, kw_only=True):
    """The answer to a question that a task has asked."""

    question: Annotated[str, Field("The name of the question.")]
    text: str
    at: datetime
    answer: Any = None
    how: Annotated[
        str,
        Field("`answered` by a person, or, if there was no answer in time, the `default` or a `timeout` without one."),
    ] = "answered"
    by: Annotated[str | None, Field("The name of the API key.")] = None
    key: Annotated[str | None, Field("The id of the API key.")] = None
    comment: str | None = None
