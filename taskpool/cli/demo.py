"""`taskpool demo`: real input through the whole service, in a minute."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from taskpool.cli.instance import answers_ready, cancelled_by_signals, local_url
from taskpool.cli.options import Command, load_settings, settings_flags
from taskpool.cli.output import Failure, command_name, console, count_bars, print_table, say
from taskpool.types import Exit

if TYPE_CHECKING:
    from taskpool.cli.counting import Counted, Counting
    from taskpool.cli.instance import Instance
    from taskpool.client.async_client import AsyncClient
    from taskpool.settings import Settings

MOST_FILES: Final = 5000
HTTP_TIMEOUT_S: Final = 60.0
DRAW_S: Final = 0.1

EPILOG = """\b
Examples:
  taskpool demo
  taskpool demo ~/documents --top 20

It uses the Taskpool that runs at --host and --port, when its workers may read
PATH, and else starts one of its own in a temporary directory.
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("path", type=click.Path(exists=True, path_type=Path), default=".")
@click.option("--top", type=click.IntRange(1, 100), default=10, show_default=True, metavar="N", help="Words to show.")
@settings_flags("host", "port", "workers")
def demo(path: Path, top: int, **flags: Any) -> None:
    """Count the words of the text below PATH, a task a file.

    PATH is a directory or a file; default: the current directory.
    """
    from taskpool.cli.textfiles import find_text_files

    settings, root = load_settings(flags), path.resolve()
    found = find_text_files(root, limit=MOST_FILES)
    if not found.paths:
        raise Failure(f"there is no text file below {root}", Exit.USAGE)
    left_out = [
        f"; {found.skipped:,} others are no text, generated or too large" if found.skipped else "",
        f"; {found.beyond:,} are beyond the {MOST_FILES:,} that it takes" if found.beyond else "",
    ]
    say(f"{_files(len(found.paths))} below {root}" + "".join(left_out))
    asyncio.run(_demo(settings, root, found.paths, top))


async def _demo(settings: Settings, root: Path, files: Sequence[Path], top: int) -> None:
    with cancelled_by_signals(again=lambda: None):
        try:
            async with _api_that_reads(settings, root, files) as (api, instance):
                counted = await (_count(api, files) if instance is None else instance.during(_count(api, files)))
        except asyncio.CancelledError:
            raise SystemExit(Exit.INTERRUPTED) from None
    _report(counted, len(files), top)
    _next(local_url(settings.host, settings.port) if instance is None else None, counted)


@asynccontextmanager
async def _api_that_reads(
    settings: Settings, root: Path, files: Sequence[Path]
) -> AsyncIterator[tuple[AsyncClient, Instance | None]]:
    """The API that runs here, when its workers may read the files, and else one of our own, with its instance."""
    from taskpool.cli.counting import Counting

    url = local_url(settings.host, settings.port)
    if await asyncio.to_thread(answers_ready, url):
        async with _client(url, settings.api_key) as api:
            if await Counting(api, files).reads_files():
                say(f"Using the Taskpool at {url}")
                yield api, None
                return
        say(f"The Taskpool at {url} can't read these files (`up --files-root DIR` lets it), or is too busy to.")
    async with _own_instance(settings, root) as instance, _client(instance.url) as api:
        yield api, instance


@asynccontextmanager
async def _own_instance(settings: Settings, root: Path) -> AsyncIterator[Instance]:
    from taskpool.cli.instance import Instance

    say(f"Starting a Taskpool for this: Redis, {settings.workers} workers, the API ... ", nl=False)
    base = root if root.is_dir() else root.parent
    with tempfile.TemporaryDirectory(prefix="taskpool-demo-") as directory:
        mine = replace(
            settings, host="127.0.0.1", public_address=None, port=0, redis_url=None, data_dir=directory,
            files_root=str(base), queues=(), tasks=(), slots=1, builtins=("word_count", "word_merge"), grace_s=0,
        )  # fmt: skip
        instance = Instance(mine)
        try:
            await instance.start()
            say("ready.")
            yield instance
        finally:
            await instance.stop()


def _client(url: str, api_key: str | None = None) -> AsyncClient:
    from taskpool.client.async_client import AsyncClient

    return AsyncClient(url, api_key, timeout_s=HTTP_TIMEOUT_S)


async def _count(api: AsyncClient, files: Sequence[Path]) -> Counted:
    """Count, drawing how far it is."""
    from taskpool.cli.counting import Counting

    counting = Counting(api, files)
    with count_bars(console(), counting.total) as show:
        drawing = asyncio.create_task(_draw(show, counting))
        try:
            return await counting.run()
        finally:
            drawing.cancel()
            show(counting.submitted, counting.counted)


async def _draw(show: Callable[[int, int], None], counting: Counting) -> None:
    while True:
        show(counting.submitted, counting.counted)
        await asyncio.sleep(DRAW_S)


def _report(counted: Counted, files: int, top: int) -> None:
    """The most frequent words, and how fast it went."""
    result = counted.result
    rows = [(word, f"{count:,}") for word, count in list(result["counts"].items())[:top]]
    say()
    print_table(("word", ">times"), rows, nothing="not one word")
    say()
    say(f"{_files(files)}, {result['words']:,} words, {result['distinct']:,} different ones.")
    pace = counted.tasks / counted.took_s
    say(f"{counted.tasks:,} tasks in {counted.took_s:.2f} s, through the HTTP API: {pace:,.0f} tasks a second.")


def _files(count: int) -> str:
    return f"{count:,} text file{'s' if count != 1 else ''}"


def _next(url: str | None, counted: Counted) -> None:
    """Where to look now: the tasks where they still are, else how to have them."""
    say("\nWhere to look next")
    if url is None:
        lines = [
            (f"{command_name()} up --files-root .", "a Taskpool that stays; the demo beside it uses that one"),
            (f"{command_name()} new resize", "a task of your own, with its test"),
        ]
    else:
        lines = [
            (f"curl -s {url}/tasks/{counted.merge_id}", "the merge"),
            (f"curl -s '{url}/tasks?type=word_count&limit=3'", "the last files"),
            (f"curl -s {url}/types", "what else it runs"),
        ]
    lines.append(("README.md", "the tour"))
    width = max(len(command) for command, _ in lines)
    for command, what in lines:
        say(f"  {command.ljust(width)}  {what}")
