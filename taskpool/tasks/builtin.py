"""The built-in task types: `echo`, `long_task`, `word_count`, `word_merge` and `http_request`.

`word_count` reads files only below the setting `files_root`, also through links.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import functools
import io
import json
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from taskpool.errors import ConfigurationError
from taskpool.settings import Settings
from taskpool.tasks.context import TaskContext
from taskpool.tasks.task import Task, task
from taskpool.text import own_version
from taskpool.url_guard import Allowed, NotSent, Resolver, Target, parse_target, shown, system_tls

if TYPE_CHECKING:
    import httpx

# --- echo and long_task --------------------------------------------------------------------------------------

STOP_CHECK_S: Final = 0.1


@task("echo")
def echo(message: Any) -> Any:
    """Return the message, any JSON value."""
    return message


class LongTask(Task):
    """Sleep for `duration_s` seconds with progress each second, and stop when asked to."""

    type = "long_task"

    class Payload:
        duration_s: Annotated[float, Meta(ge=0, le=86_400, description="Seconds to sleep.")] = 180

    def run(self, ctx: TaskContext) -> dict[str, float]:
        duration_s = self.payload.duration_s
        start = time.monotonic()
        reported_s = -1
        while (slept_s := time.monotonic() - start) < duration_s:
            ctx.raise_if_cancelled()
            if int(slept_s) > reported_s:
                reported_s = int(slept_s)
                ctx.progress(reported_s, duration_s, note=f"{duration_s - reported_s:g} s to go")
            time.sleep(min(STOP_CHECK_S, duration_s - slept_s))
        ctx.progress(duration_s, duration_s)
        return {"slept_s": duration_s}


# --- word_count and word_merge -------------------------------------------------------------------------------

LARGEST_FILE_BYTES: Final = 32 * 1024 * 1024
VIRTUAL_FILE_SYSTEMS: Final = frozenset(
    {"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "pstore", "bpf", "nsfs",
     "selinuxfs", "efivarfs", "binfmt_misc", "fusectl", "mqueue", "devpts"}
)  # fmt: skip
"""File systems without stored files: the kernel generates what a program reads there."""


def check_root(root: Path) -> None:
    """Raise ConfigurationError unless `root` is a directory that can be read."""
    try:
        os.close(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(
            f"can't use the files root {root}: {reason}; TASKPOOL_FILES_ROOT names a directory for word_count; "
            "without it word_count reads no files"
        ) from None


def open_below(root: Path, path: str) -> BinaryIO:
    """Open a regular file that is below `root` after all links are followed.

    Raises: PermissionError when it isn't below `root`, ValueError when it is too large or not a file; OSError.
    """
    if "\0" in path:
        raise ValueError(f"{path!r} is no file")
    base = root.resolve()
    full = (base / path).resolve()
    if not full.is_relative_to(base):
        raise PermissionError(f"{path!r} isn't below files_root")
    try:
        descriptor = _walk(base, full.relative_to(base).parts)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(full)) from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST_FILE_BYTES and not _is_virtual(found.st_dev):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    is_large = stat.S_ISREG(found.st_mode) and found.st_size > LARGEST_FILE_BYTES
    raise ValueError(f"{path!r} is {f'larger than {LARGEST_FILE_BYTES:,} bytes' if is_large else 'no file'}")


def _walk(base: Path, parts: tuple[str, ...]) -> int:
    """Open the file, directory by directory. A resolved path has no links, so O_NOFOLLOW refuses one that was put there
    afterwards. O_NONBLOCK is for pipes."""
    *directories, name = parts or (".",)
    passing = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
    with ExitStack() as opened:
        at = os.open(base, passing)
        opened.callback(os.close, at)
        for each in directories:
            at = os.open(each, passing | os.O_NOFOLLOW, dir_fd=at)
            opened.callback(os.close, at)
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=at)


def _is_virtual(device: int) -> bool:
    """Whether the kernel generates the files of this device, such as /proc, which has secrets of processes."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # not Linux
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    rows = [line.split(" ") for line in mounts]
    return any(row[2] == number and row[row.index("-") + 1] in VIRTUAL_FILE_SYSTEMS for row in rows)


CHUNK_CHARS: Final = 256 * 1024
RESERVED_BYTES: Final = 1024  # of a result, for everything except the counts

_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


class WordInput(msgspec.Struct, forbid_unknown_fields=True):
    """Exactly one of a file's `path` and the `text` itself."""

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


# --- http_request --------------------------------------------------------------------------------------------

LONGEST_URL: Final = 8192
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Url = Annotated[
    str, Meta(pattern="^[hH][tT][tT][pP][sS]?://", max_length=LONGEST_URL, examples=["https://example.com/"])
]
Timeout = Annotated[float, Meta(gt=0, le=3600, description="Seconds for the whole request.")]

CONNECT_S: Final = 10.0
SHOWN_CHARS: Final = 200
RESERVED_HEADERS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect"})
"""Headers that follow from the URL and the body."""

NO_CHARSETS: Final = frozenset({
    "idna", "punycode", "unicode-escape", "raw-unicode-escape", "base64", "bz2", "hex", "quopri", "rot-13",
    "uu", "zlib",
})  # fmt: skip
"""Python encodings that aren't charsets. Some take very long, or make a long text of a short one."""

_resolver: Final = Resolver()
_tls: Final = functools.cache(system_tls)
"""One per process."""


class RequestFailed(Exception):
    """Raised when there was no response, or one with a status of 400 or above."""


@task("http_request")
async def http_request(
    url: Url, method: Method = "GET", headers: dict[str, str] | None = None, body: Any = None, timeout_s: Timeout = 30
) -> dict[str, Any]:
    """Send an HTTP request; the result has status, headers and body. A status of 400 or above fails the task.

    It can reach public addresses and those in the worker's TASKPOOL_WEBHOOK_ALLOW. A body that is text is sent as it
    is, any other JSON value as JSON. Redirects aren't followed. The body of the response is text, or base64 if
    `encoding` says so. It is cut to half of the largest result if `truncated` is true.
    """
    # These imports take a fifth of a second and megabytes: only processes that send a request pay for them.
    import httpcore
    import httpx

    from taskpool import url_guard

    settings = Settings.load(os.environ)
    allowed = Allowed(settings.webhook_allow)
    request, target = _request(method, url, headers, body, allowed)
    shown_request = _shown(method, target)
    limit = settings.max_result_bytes // 2
    try:
        async with asyncio.timeout(timeout_s), AsyncExitStack() as opened:
            response = await url_guard.send(
                method, target, request.headers.raw, request.content, allowed=allowed, resolve=_resolver.resolve,
                tls=_tls(), connect_s=CONNECT_S, opened=opened,
            )  # fmt: skip
            content = bytearray()
            async for chunk in response.aiter_stream():
                content += chunk
                if len(content) > limit:
                    break  # the rest isn't fetched
    except TimeoutError:
        raise RequestFailed(f"{shown_request}: no complete response within {timeout_s:g} s") from None
    except NotSent as error:
        raise RequestFailed(f"{shown_request}: {error}") from None
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        raise RequestFailed(f"{shown_request}: {shown('no complete response', error)}") from None
    answered = httpx.Response(response.status, headers=response.headers, extensions=response.extensions)
    answer = _body(bytes(content), answered.charset_encoding, limit)
    if answered.status_code >= 400:
        start = f": {answer['body'][:SHOWN_CHARS]}" if answer["body"] and answer["encoding"] == "text" else ""
        raise RequestFailed(
            f"{shown_request}: answered {answered.status_code} {answered.reason_phrase}{start}".rstrip()
        )
    return {"status": answered.status_code, "headers": dict(answered.headers), **answer}


def _request(
    method: str, url: str, headers: dict[str, str] | None, body: Any, allowed: Allowed
) -> tuple[httpx.Request, Target]:
    """The request and its target. The URL is checked in the form in which it is sent.

    Raises: RequestFailed when the request is invalid or not allowed.
    """
    import httpx

    if refused := sorted({name for name in headers or {} if name.strip().lower() in RESERVED_HEADERS}):
        raise RequestFailed(f"{method}: the header {refused[0]!r} can't be given: it follows from the URL and the body")
    try:
        if "\\" in url:
            raise httpx.InvalidURL("readers of URLs disagree about what a backslash means")
        parsed = httpx.URL(url)
        target = parse_target(str(parsed.copy_with(userinfo=b"", fragment=None)), allowed, longest=3 * LONGEST_URL)
    except (httpx.InvalidURL, UnicodeError):
        raise RequestFailed(f"{method}: the URL isn't one that can be sent to") from None
    except ValueError as fault:
        where = f"{parsed.scheme}://{parsed.netloc.decode()}{parsed.path}"
        raise RequestFailed(f"{method} {where}: not allowed: {fault}") from None
    sent = {"accept": "*/*", "accept-encoding": "identity", "user-agent": f"taskpool/{own_version()}"}
    if parsed.userinfo:
        user = f"{parsed.username}:{parsed.password}".encode()
        sent["authorization"] = f"Basic {base64.b64encode(user).decode()}"
    sent |= {name.strip().lower(): value for name, value in (headers or {}).items()}
    sent |= {"host": target.authority, "connection": "close"}
    content, document = (body, None) if isinstance(body, str) else (None, body)
    try:
        return httpx.Request(method, "http://host/", headers=sent, content=content, json=document), target
    except UnicodeError:
        raise RequestFailed(f"{_shown(method, target)}: a header isn't ASCII") from None


def _body(content: bytes, charset: str | None, limit: int) -> dict[str, Any]:
    is_cut = len(content) > limit
    content = content[:limit]
    try:
        # The cut may be inside of a character, which isn't an error.
        decoder = codecs.lookup(charset or "utf-8")
        text = None if decoder.name in NO_CHARSETS else decoder.incrementaldecoder().decode(content, final=not is_cut)
    except (LookupError, UnicodeError):
        text = None
    # Control characters take six bytes each in JSON: base64 is shorter for a binary body that happens to be text.
    if text is not None and len(msgspec.json.encode(text)) <= max(limit * 3 // 2, 2 * len(content)):
        return {"body": text, "encoding": "text", "truncated": is_cut}
    return {"body": base64.b64encode(content).decode(), "encoding": "base64", "truncated": is_cut}


def _shown(method: str, target: Target) -> str:
    """The request for messages, without its query string, which often contains a token."""
    return f"{method} {target.scheme}://{target.authority}{target.path.partition('?')[0]}"
