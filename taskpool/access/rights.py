"""What a caller may do with tasks: every effect of an operation or option, and what a key needs for it.

An operation is judged by what it does and to which task, not by its name: a submission that replaces another task
cancels that one. docs/security.md shows these tables. Whatever the effect, another project's task doesn't exist for a
key that has a project.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from taskpool.access.apikey import Scope


class Effect(StrEnum):
    """What an operation does to a task."""

    READ = "reads"
    """Shows more of it than its id and status: to the caller, to a URL that the caller chooses, or to a task of it."""
    START = "starts"
    """Makes it run: a new task, or an ended one again."""
    STOP = "stops"
    """Cancels it, stops it, or removes its record."""


class Right(NamedTuple):
    """What a key needs for an effect. `is_bound`: its `types` and `queues` must have the affected task's."""

    scope: Scope
    is_bound: bool


RIGHTS: Final = {
    Effect.READ: Right(Scope.READ, is_bound=False),
    Effect.START: Right(Scope.WRITE, is_bound=True),
    Effect.STOP: Right(Scope.STOP, is_bound=True),
}


class OptionEffect(NamedTuple):
    """What an option of a submission does to tasks beside the submitted one, if it is given (with this value)."""

    option: str
    value: str | None
    effect: Effect


OPTIONS: Final = (
    OptionEffect("depends_on", None, Effect.READ),  # the submitted task reads the results of its parents
    OptionEffect("callback_url", None, Effect.READ),  # messages have the result of the task
    OptionEffect("on_conflict", "return", Effect.READ),  # the answer names the task that holds the unique key
    OptionEffect("on_conflict", "replace", Effect.STOP),  # cancels the task that holds the unique key
)
