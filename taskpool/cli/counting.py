"""Counting words through the HTTP API: one `word_count` task a file, one `word_merge` that depends on them all."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from taskpool.errors import TaskpoolError

BATCH_TASKS: Final = 1000
BATCH_BYTES: Final = 200_000
"""Below the API's default limit of a body, 256 KiB."""

LOOK_S: Final = 0.1
TRIAL_S: Final = 5
ENDED: Final = frozenset({"done", "failed", "stopped", "canceled"})


class CountingFailed(TaskpoolError):
    """Raised when the API refuses what the demo asks, or a task of it doesn't end well."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What came out: the merge's id and result, how many tasks it took and how long."""

    merge_id: str
    result: dict[str, Any]
    tasks: int
    took_s: float


class Counting:
    """One run over `files`, through `api`; `submitted` and `counted` say how far it is."""

    def __init__(self, api: httpx.AsyncClient, files: Sequence[Path]) -> None:
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
            CountingFailed: the API refused something, or a task failed.
        """
        began_mono = time.monotonic()
        looking = asyncio.create_task(self._look())
        try:
            await self._submit_files()
            merge = await self._merged()
            if merge["status"] != "done":
                raise CountingFailed(await self._why(merge))
        except httpx.HTTPError as error:
            raise CountingFailed(f"the API at {self._api.base_url} doesn't answer: {error}") from error
        finally:
            looking.cancel()
        self.counted = self.total
        return Counted(merge["id"], merge["result"], self.total + 1, time.monotonic() - began_mono)

    async def reads_files(self) -> bool:
        """Whether the workers of this instance may read the files: one may serve another directory or host."""
        try:
            task = await _post(self._api, "/tasks", self._count(self._files[0]))
            ended = await _get(self._api, f"/tasks/{task['id']}?wait={TRIAL_S}")
            await self._api.delete(f"/tasks/{task['id']}")
        except (CountingFailed, httpx.HTTPError):
            return False
        return bool(ended["status"] == "done")

    async def _submit_files(self) -> None:
        for batch in _batches([self._count(file) for file in self._files]):
            answer = await _post(self._api, "/tasks/batch", {"tasks": batch})
            self._ids += [task["id"] for task in answer["tasks"]]

    async def _merged(self) -> dict[str, Any]:
        merge = await _post(self._api, "/tasks", {"type": "word_merge", "tags": [self.tag], "depends_on": self._ids})
        while merge["status"] not in ENDED:
            merge = await _get(self._api, f"/tasks/{merge['id']}?wait=30")
        return dict(merge)

    async def _look(self) -> None:
        try:
            while True:
                self.counted = await self._first_unended(self.counted)
                await asyncio.sleep(LOOK_S)
        except (CountingFailed, httpx.HTTPError):
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
        task = await _get(self._api, f"/tasks/{self._ids[count - 1]}")
        return task["status"] in ENDED

    async def _why(self, merge: dict[str, Any]) -> str:
        """The error of the first file that failed, else the merge's own."""
        failed = await _get(self._api, f"/tasks?tag={self.tag}&type=word_count&status=failed&limit=1")
        for task in failed["tasks"]:
            return f"{task['payload'].get('path')}: {task.get('error')}"
        return f"the merge {merge['status']}: {merge.get('error') or merge.get('reason')}"

    def _count(self, file: Path) -> dict[str, Any]:
        return {"type": "word_count", "payload": {"path": str(file)}, "tags": [self.tag]}


def _batches(tasks: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The tasks in batches that the API takes: not too many, not too long."""
    batch: list[dict[str, Any]] = []
    size = 0
    for task in tasks:
        length = len(json.dumps(task)) + 2
        if batch and (len(batch) == BATCH_TASKS or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += length
    if batch:
        yield batch


async def _post(api: httpx.AsyncClient, path: str, document: Any) -> Any:
    return _answer(await api.post(path, json=document))


async def _get(api: httpx.AsyncClient, path: str) -> Any:
    return _answer(await api.get(path))


def _answer(response: httpx.Response) -> Any:
    if response.is_success:
        return response.json()
    try:
        why = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        why = response.reason_phrase
    raise CountingFailed(f"the API answered {response.status_code} to {response.request.url.path}: {why}")
