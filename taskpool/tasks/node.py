"""The nodes of a workflow as users write them: what a task or a map of tasks is called, and what runs after it.

rows = w.map("rows", specs)
w.add("summary", summary.spec(), after=rows.any())
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec

from taskpool.types.dependency import On
from taskpool.validation import Field

NODE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NODE_TAKES: Final = "a name: 1 to 64 letters, digits, '_', '-' or '.' (ASCII)"


class After(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node of the same workflow that must have ended before."""

    name: Annotated[str, Field("The node's name.", pattern=NODE_NAME, takes=NODE_TAKES)]
    on: Annotated[
        On,
        Field("How it must have ended: done (`success`), not done (`failure`), or in whatever way (`any`)."),
    ] = "success"


class Node(msgspec.Struct, frozen=True):
    """A node that was added to a workflow, to be named in `after`. By itself it means `success()`."""

    name: str

    def success(self) -> After:
        """After it is done; for a map: after all of its tasks are."""
        return After(self.name)

    def failure(self) -> After:
        """After it ended without being done."""
        return After(self.name, "failure")

    def any(self) -> After:
        """After it ended, in whatever way."""
        return After(self.name, "any")


Afters = str | Node | After | Iterable[str | Node | After]
"""What `after` takes: names, nodes and their `success()`, `failure()`, `any()`; one of them, or a list."""


def afters(after: Afters) -> tuple[After, ...]:
    """What `after` means. Anything of another kind stays as it is: the checks of a workflow refuse it."""
    if isinstance(after, str | Node | After) or not isinstance(after, Iterable):
        return (_after(after),)
    return tuple([_after(each) for each in after])


def _after(given: Any) -> Any:
    if isinstance(given, Node):
        return given.success()
    return After(given) if isinstance(given, str) else given
