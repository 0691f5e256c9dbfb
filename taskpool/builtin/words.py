"""Built-in task types `word_count` and `word_merge`: real input, one task a file and one that merges."""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from taskpool.builtin.files import LARGEST_FILE_BYTES, open_below
from taskpool.context import TaskContext
from taskpool.settings import Settings
from taskpool.task import Task, task

CHUNK_CHARS: Final = 256 * 1024
RESERVED_BYTES: Final = 1024  # of a result, for what stands around the counts

_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


class WordInput(msgspec.Struct, forbid_unknown_fields=True):
    """Where the text is: exactly one of a file's `path` and the `text` itself."""

    path: Annotated[str, Meta(min_length=1, description="A text file below the workers' files root.")] | UnsetType = (
        UNSET
    )
    text: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if (self.path is UNSET) == (self.text is UNSET):
            raise ValueError("give either path or text")


class WordCount(Task):
    """Count the words of a text file, or of a text; case doesn't matter, and numbers aren't words."""

    type = "word_count"
    Payload = Annotated[
        WordInput,
        Meta(
            examples=[{"text": "one and one is two"}],
            extra_json_schema={"oneOf": [{"required": ["path"]}, {"required": ["text"]}]},
        ),
    ]

    def run(self, ctx: TaskContext) -> dict[str, Any]:
        settings = Settings.load(os.environ)
        counts: Counter[str] = Counter()
        if self.payload.text is not UNSET:
            counts.update(words_in(self.payload.text))
        else:
            if settings.files_root is None:
                raise PermissionError("this worker reads no files: TASKPOOL_FILES_ROOT isn't set")
            with open_below(Path(settings.files_root), self.payload.path) as file:
                for chunk in _text_chunks(file, ctx):
                    counts.update(words_in(chunk))
        return summary(counts, settings.max_result_bytes)


@task("word_merge")
def word_merge(ctx: TaskContext) -> dict[str, Any]:
    """Add up the counts of the word_count tasks this one depends on."""
    counts: Counter[str] = Counter()
    omitted = 0
    for done, parent in enumerate(ctx.parents.values(), start=1):
        ctx.raise_if_cancelled()
        counts.update(parent["counts"])
        omitted += parent["omitted"]
        ctx.progress(done, len(ctx.parents))
    merged = summary(counts, Settings.load(os.environ).max_result_bytes)
    return {**merged, "omitted": merged["omitted"] + omitted, "parents": len(ctx.parents)}


def words_in(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters, with an apostrophe inside."""
    return _WORD.findall(text.lower())


def summary(counts: Counter[str], max_result_bytes: int) -> dict[str, Any]:
    """The result: `counts` with the most frequent first, as many as fit, and how many were `omitted`."""
    left = max_result_bytes - RESERVED_BYTES
    kept = {}
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        left -= len(json.dumps(word)) + len(str(count)) + 2
        if left < 0:
            break
        kept[word] = count
    return {"words": counts.total(), "distinct": len(counts), "counts": kept, "omitted": len(counts) - len(kept)}


def _text_chunks(file: BinaryIO, ctx: TaskContext) -> Iterator[str]:
    """The text in chunks that end with a line, with progress in bytes."""
    size = os.fstat(file.fileno()).st_size
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace") as text:
        while lines := text.readlines(CHUNK_CHARS):
            ctx.raise_if_cancelled()
            chunk = "".join(lines)
            if "\0" in chunk:
                raise ValueError("the file isn't text")
            if file.tell() > LARGEST_FILE_BYTES:
                raise ValueError(f"the file has grown larger than {LARGEST_FILE_BYTES:,} bytes")
            yield chunk
            ctx.progress(file.tell(), size)
