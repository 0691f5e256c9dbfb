"""What a task sees of the tasks that it depends on: `ctx.parents`, their results, and `ctx.outcomes`, how they ended.

A map of a workflow is one of them, too: a sequence that is read in pages, because it may have very many tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, overload

import msgspec

from taskpool.errors import ParentNotDone, ParentResultGone
from taskpool.types import TaskStatus

PAGE: Final = 200
"""The tasks of a map that are read in one round trip."""


class TaskOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How something that a task depends on has ended: a task, or a whole workflow, which has no result.

    `status` is None if its record is gone: removed, or expired. `error` says why it isn't done, or why its result can't
    be read."""

    id: str
    status: TaskStatus | None = None
    result: Any = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """True if it is done, and its result can be read."""
        return self.status is TaskStatus.DONE and self.error is None

    def value(self) -> Any:
        """The result. Raises: ParentNotDone, ParentResultGone."""
        if self.ok:
            return self.result
        if self.status is None or self.status is TaskStatus.DONE:
            raise ParentResultGone(self.id, self.error or "it is no longer stored")
        raise ParentNotDone(self.id, f"it has none, its status is {self.status}")


class GroupOutcomes(Sequence[TaskOutcome]):
    """How the tasks of a map have ended, in their order. Reading it again reads Redis again."""

    def __init__(self, size: int, read: Callable[[int, int], Sequence[TaskOutcome]]) -> None:
        self._size, self._read = size, read

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[TaskOutcome]:
        for at in range(0, self._size, PAGE):
            yield from self._read(at, min(at + PAGE, self._size))

    @overload
    def __getitem__(self, index: int) -> TaskOutcome: ...
    @overload
    def __getitem__(self, index: slice) -> list[TaskOutcome]: ...
    def __getitem__(self, index: int | slice) -> TaskOutcome | list[TaskOutcome]:
        if isinstance(index, slice):
            return [self[at] for at in range(self._size)[index]]
        at = range(self._size)[index]
        return self._read(at, at + 1)[0]

    def __repr__(self) -> str:
        return f"<the outcomes of {self._size} tasks>"


class GroupResults(Sequence[Any]):
    """The results of the tasks of a map, in their order. Reading one that isn't done raises ParentNotDone."""

    def __init__(self, outcomes: Sequence[TaskOutcome]) -> None:
        self._outcomes = outcomes

    def __len__(self) -> int:
        return len(self._outcomes)

    def __iter__(self) -> Iterator[Any]:
        return (each.value() for each in self._outcomes)

    def __getitem__(self, index: Any) -> Any:
        found = self._outcomes[index]
        return found.value() if isinstance(found, TaskOutcome) else [each.value() for each in found]

    def __repr__(self) -> str:
        return f"<the results of {len(self)} tasks>"


MOST_NAMED: Final = 10
"""How many names the error about an unknown one lists."""

AnyOutcome = TaskOutcome | Sequence[TaskOutcome]


class Outcomes(Mapping[str, Any]):
    """The outcomes of what a task depends on: by name in a workflow, else by id. An id is found either way."""

    def __init__(self, by_ref: Mapping[str, AnyOutcome], names: Mapping[str, str] | None = None) -> None:
        """`names`: the refs of those that have a name."""
        self._by_ref = by_ref
        self._names = {name: ref for name, ref in (names or {}).items() if ref in by_ref}
        self._name_of = {ref: name for name, ref in self._names.items()}

    def __getitem__(self, key: str) -> Any:
        ref = self._names.get(key, key)
        found = self._by_ref.get(ref if ref in self._by_ref else f"{key}:")
        if found is None:
            raise KeyError(f"the task doesn't depend on {key!r}, but on {list(islice(self, MOST_NAMED))}")
        return found

    def __iter__(self) -> Iterator[str]:
        return (self._name_of.get(ref) or ref.removesuffix(":") for ref in self._by_ref)

    def __len__(self) -> int:
        return len(self._by_ref)

    def __repr__(self) -> str:
        return f"Outcomes({dict(self)!r})"


class Results(Mapping[str, Any]):
    """The results of what a task depends on. Reading that of a task that isn't done raises ParentNotDone; one that is
    gone, ParentResultGone. So a task can't take it for the result None."""

    def __init__(self, outcomes: Mapping[str, AnyOutcome]) -> None:
        self._outcomes = outcomes

    def __getitem__(self, key: str) -> Any:
        found = self._outcomes[key]
        return found.value() if isinstance(found, TaskOutcome) else GroupResults(found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)

    def __contains__(self, key: object) -> bool:
        return key in self._outcomes

    def __repr__(self) -> str:
        return f"Results({dict(self._outcomes)!r})"


def results_of(outcomes: Mapping[str, AnyOutcome]) -> Mapping[str, Any]:
    """The results: a plain dict if all are there, under their ids, and none is that of a map."""
    if type(outcomes) is dict and all(isinstance(each, TaskOutcome) and each.ok for each in outcomes.values()):
        return {key: each.result for key, each in outcomes.items() if isinstance(each, TaskOutcome)}
    return Results(outcomes)
