"""Counting words through the HTTP API: one `word_count` task a file, one `word_merge` that depends on them all."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from taskpool.client.values import submission
from taskpool.errors import TaskpoolError, WaitTimeout
from taskpool.types import TaskRecord, TaskSpec, TaskStatus

if TYPE_CHECKING:
    from taskpool.client.async_client import AsyncClient

BATCH_TASKS: Final = 1000
BATCH_BYTES: Final = 200_000
"""Below the API's default limit of a body, 256 KiB."""

LOOK_S: Final = 0.1
TRIAL_S: Final = 5


class CountingFailed(TaskpoolError):
    """Raised when a task of the demo doesn't end well."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What came out: the merge's id and result, how many tasks it took and how long."""

    merge_id: str
    result: dict[str, Any]
    tasks: int
    took_s: float


class Counting:
    """One run over `files`, through `api`; `submitted` and `counted` say how far it is."""

    def __init__(self, api: AsyncClient, files: Sequence[Path]) -> None:
        self.total = len(files)
        self.counted = 0
        self.tag = f"demo-{secrets.token_hex(3)}"
        self._api = api
        self._files = files
        self._ids: list[str] = []

    @property
    def submitted(self) -> int:
        """How many files have been submitted."""
        return len(self._ids)

    async def run(self) -> Counted:
        """Submit, wait for the merge, and return what it found.

        Raises:
            TaskpoolError: the API refused something or is away; CountingFailed when a task failed.
        """
        began_mono = time.monotonic()
        looking = asyncio.create_task(self._look())
        try:
            for batch in _batches([self._count(file) for file in self._files]):
                self._ids += [task.id for task in await self._api.add_tasks(batch)]
            merge = await self._api.add_task("word_merge", tags=[self.tag], depends_on=self._ids)
            merged = await self._api.wait(merge.id)
            if merged.status is not TaskStatus.DONE:
                raise CountingFailed(await self._why(merged))
        finally:
            looking.cancel()
        self.counted = self.total
        return Counted(merged.id, merged.result, self.total + 1, time.monotonic() - began_mono)

    async def reads_files(self) -> bool:
        """Whether the workers of this instance may read the files: one may serve another directory or host."""
        spec = self._count(self._files[0])
        try:
            task = await self._api.add_task(spec.type, spec.payload, tags=spec.tags)
            with suppress(WaitTimeout):
                await self._api.wait(task.id, timeout_s=TRIAL_S)
            ended = await self._api.get(task.id)
            await self._api.remove_task(task.id)
        except TaskpoolError:
            return False
        return ended.status is TaskStatus.DONE

    async def _look(self) -> None:
        try:
            while True:
                self.counted = await self._first_unended(self.counted)
                await asyncio.sleep(LOOK_S)
        except TaskpoolError:
            pass  # this is for show; `run` meets the same trouble and says so

    async def _first_unended(self, start: int) -> int:
        """How many have ended, `start` of them known to have. Tasks start in the order of their submission, so a few
        looks find the place: twice as far each time, then halving."""
        below, step = start, 1
        while below < len(self._ids) and await self._has_ended(above := min(below + step, len(self._ids))):
            below, step = above, 2 * step
        above = min(below + step, len(self._ids))
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if await self._has_ended(middle) else (below, middle)
        return below

    async def _has_ended(self, count: int) -> bool:
        return (await self._api.get(self._ids[count - 1])).status.is_terminal

    async def _why(self, merge: TaskRecord) -> str:
        """The error of the first file that failed, else the merge's own."""
        failed = await self._api.list_tasks(tag=self.tag, type="word_count", status=TaskStatus.FAILED, limit=1)
        for task in failed.items:
            return f"{task.payload.get('path')}: {task.error}"
        return f"the merge {merge.status}: {merge.error or merge.reason}"

    def _count(self, file: Path) -> TaskSpec:
        return TaskSpec(type="word_count", payload={"path": str(file)}, tags=[self.tag])


def _batches(specs: Sequence[TaskSpec]) -> Iterator[list[TaskSpec]]:
    """The tasks in batches that the API takes: not too many, not too long."""
    batch: list[TaskSpec] = []
    size = 0
    for spec in specs:
        length = len(submission(spec)) + 1
        if batch and (len(batch) == BATCH_TASKS or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(spec)
        size += length
    if batch:
        yield batch
