"""What flags take for a span of time: seconds that can be meant. Whatever else is typed is refused with what can."""

from __future__ import annotations

from typing import Any

import click

from taskpool.seconds import LONGEST_S, accepted, is_seconds


class Seconds(click.types.FloatParamType):
    """A number of seconds from `least_s` to `most_s`."""

    name = "seconds"

    def __init__(self, least_s: float = 0, most_s: float = LONGEST_S) -> None:
        self._least_s = least_s
        self._most_s = most_s

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; click says which flag it was when it is none."""
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not is_seconds(number, self._least_s, self._most_s):
            self.fail(f"{str(value)[:80]!r} is not {accepted(self._least_s, self._most_s)}", param, ctx)
        return number
