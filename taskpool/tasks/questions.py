"""What a task asks a person in the middle of its work, and the state that it keeps for its next attempt.

A task that asks ends its attempt: `Parked` leaves its code, and the worker stores the question as it stores an outcome.
The task runs again when there is an answer, and then `ctx.ask` returns it. So no worker waits for a person.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET

from taskpool.errors import NonRetryable
from taskpool.tasks.context import Asking
from taskpool.tasks.payload.encode import encode_value
from taskpool.text import Secrets, hidden
from taskpool.types import Answer
from taskpool.types.people import LONGEST_TEXT, TEXT, TEXT_TAKES
from taskpool.validation import LEAST_S, is_text, seconds_of

NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
NAME_TAKES: Final = "1 to 64 letters, digits or `_.:-`"
MOST_QUESTION_BYTES: Final = 16 * 1024
MOST_STATE_BYTES: Final = 64 * 1024

_encode: Final = msgspec.json.Encoder(order="deterministic").encode
_decode: Final = msgspec.json.Decoder().decode


class Parked(BaseException):
    """Raised in a task when it asks a person: its attempt ends here. `question` is JSON, as `ask.lua` takes it."""

    def __init__(self, question: bytes) -> None:
        super().__init__("the task waits for an answer")
        self.question = question


class NotAnswered(NonRetryable):
    """Raised by `ctx.ask` if there was no answer in time and the question has no default. A task that doesn't catch it
    fails and isn't retried."""


class Asked:
    """A question as a task asks it."""

    def __init__(self, asking: Asking) -> None:
        """Raises: ValueError; TypeError, if the schema is a type that has no JSON Schema."""
        name, text, schema, timeout, default, secrets = asking
        if not (is_text(name) and NAME.fullmatch(name)):
            raise ValueError(f"ask: the name of a question must be {NAME_TAKES}, not {name!r}")
        if not (is_text(text) and len(text) <= LONGEST_TEXT and TEXT.fullmatch(text)):
            raise ValueError(f"ask: the question must be {TEXT_TAKES}")
        self.name, self.text = name, hidden(text, secrets)[:LONGEST_TEXT]
        self._type = None if schema is None or isinstance(schema, Mapping) else schema
        try:
            question: dict[str, Any] = {"name": name, "text": self.text, "timeout": seconds_of(timeout, LEAST_S)}
        except ValueError as error:
            raise ValueError(f"ask: the timeout {error}") from None
        validator = None
        if self._type is not None:
            question["schema"] = msgspec.json.schema(self._type)
        elif schema is not None:
            question["schema"], validator = schema, _validator(schema)
        if default is not UNSET:
            question["default_json"] = _without(secrets, encode_value(default)).decode()
            value = _decode(question["default_json"])
            if validator is not None and not validator.is_valid(value):
                raise ValueError(f"ask: the default {question['default_json']} doesn't fit the schema")
            question["default"] = self._read(value, "default")
        self.document = _encode(question)
        if len(self.document) > MOST_QUESTION_BYTES:
            raise ValueError(f"ask: a question with its schema may have {MOST_QUESTION_BYTES:,} bytes of JSON")

    def answer_in(self, given: Sequence[Answer]) -> Any:
        """The answer among those that the task has got. A changed text is another question.
        Raises: Parked (there is none yet), NotAnswered."""
        last = next((each for each in reversed(given) if each.question == self.name), None)
        if last is None or last.text != self.text:
            raise Parked(self.document)
        if last.how == "timeout":
            raise NotAnswered(f"no answer to {self.name!r} in time: {self.text}")
        return self._read(last.answer, "answer")

    def _read(self, value: Any, what: str) -> Any:
        if self._type is None:
            return value
        try:
            return msgspec.convert(value, self._type)
        except msgspec.ValidationError as error:
            raise ValueError(f"ask: the {what} doesn't fit the type: {error}") from None


def _validator(schema: Mapping[str, Any]) -> Any:
    from taskpool.tasks.payload.json_schema import validator_for  # here, because few worker processes need it

    try:
        return validator_for(schema)
    except ValueError as error:
        raise ValueError(f"ask: the schema can't be used: {error}") from None


def _without(secrets: Secrets | None, document: bytes) -> bytes:
    """JSON with masks for secrets."""
    return document if secrets is None else _encode(secrets.hide_in(_decode(document)))


def state_document(state: Any, secrets: Secrets | None) -> bytes:
    """A state as it is kept: JSON, with masks for secrets. Raises: ValueError."""
    document = _without(secrets, encode_value(state))
    if len(document) > MOST_STATE_BYTES:
        raise ValueError(f"checkpoint: a state may have {MOST_STATE_BYTES:,} bytes of JSON, not {len(document):,}")
    return document
