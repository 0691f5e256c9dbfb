"""The built-in task types, run inline."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from taskpool import InvalidPayload, Registry, TaskContext, TaskStatus, TaskStopped
from taskpool.builtin.files import LARGEST_FILE_BYTES
from taskpool.builtin.simple import LongTask
from taskpool.testing import InlinePool, RecordingSink

S = TaskStatus


@pytest.fixture
def pool() -> Iterator[InlinePool]:
    with InlinePool() as pool:
        yield pool


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that word_count may read."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("TASKPOOL_FILES_ROOT", str(root))
    return root


@pytest.mark.parametrize("message", [None, "text", 1.5, [1, {"a": None}], {}])
def test_echo_gives_back_any_json(pool: InlinePool, message: Any) -> None:
    assert pool.run("echo", {"message": message}).result == message


# --- long_task ------------------------------------------------------------------------------------------


def test_a_long_task_reports_its_progress_and_ends(pool: InlinePool) -> None:
    record = pool.run("long_task", {"duration_s": 0.02})

    assert (record.status, record.result) == (S.DONE, {"slept_s": 0.02})
    assert record.progress == {"done": 0.02, "total": 0.02, "note": None}
    assert [event.data["progress"] for event in pool.events(record.id) if event.event == "progress"] == [
        {"done": 0, "total": 0.02, "note": "0.02 s to go"},
        {"done": 0.02, "total": 0.02, "note": None},
    ]


def test_a_long_task_stops_when_asked_to() -> None:
    of = Registry(builtins=True).get("long_task")
    assert of is not None
    ctx = TaskContext(sink := RecordingSink(is_stopped=True), id="t1", type="long_task")

    with pytest.raises(TaskStopped):
        of.bind(of.decode({}), ctx)()

    assert sink.reports == []


@pytest.mark.parametrize("duration_s", [-1, 86_401, "5", None])
def test_a_long_task_lasts_a_day_at_most(pool: InlinePool, duration_s: Any) -> None:
    with pytest.raises(InvalidPayload) as refused:
        pool.add_task(LongTask.type, {"duration_s": duration_s})

    assert [fault.pointer for fault in refused.value.errors] == ["/payload/duration_s"]


# --- word_count, word_merge -----------------------------------------------------------------------------

TEXT = "The cat's hat, the HAT; 3 hats. Über-straße ’n"
COUNTED = {
    "words": 9,
    "distinct": 7,
    "counts": {"hat": 2, "the": 2, "cat's": 1, "hats": 1, "n": 1, "straße": 1, "über": 1},
    "omitted": 0,
}


def test_words_of_a_text_and_of_a_file_are_counted_alike(pool: InlinePool, root: Path) -> None:
    (root / "sub").mkdir()
    file = root / "sub" / "a.txt"
    file.write_text("\ufeff" + TEXT)
    (root / "link.txt").symlink_to(file)

    payloads = [{"text": TEXT}, {"path": "sub/a.txt"}, {"path": str(file)}, {"path": "link.txt"}]
    records = [pool.run("word_count", payload) for payload in payloads]

    assert [record.result for record in records] == [COUNTED] * 4
    assert list(records[0].result["counts"]) == list(COUNTED["counts"])  # type: ignore[call-overload]
    size = file.stat().st_size
    assert [record.progress for record in records] == [None, *[{"done": size, "total": size, "note": None}] * 3]


def test_a_file_larger_than_a_chunk_is_counted_whole(pool: InlinePool, root: Path) -> None:
    (root / "large.txt").write_text("one two\n" * 100_000)

    record = pool.run("word_count", {"path": "large.txt"})

    assert record.result == {"words": 200_000, "distinct": 2, "counts": {"one": 100_000, "two": 100_000}, "omitted": 0}
    assert len([event for event in pool.events(record.id) if event.event == "progress"]) > 1


def test_a_file_that_is_not_utf8_is_counted_as_far_as_it_can_be(pool: InlinePool, root: Path) -> None:
    (root / "latin.txt").write_bytes("caf\xe9 two two".encode("latin-1"))

    assert pool.run("word_count", {"path": "latin.txt"}).result["counts"] == {"two": 2, "caf": 1}


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../secret.txt", "PermissionError: '../secret.txt' isn't below files_root"),
        ("{outside}/secret.txt", "PermissionError: '{outside}/secret.txt' isn't below files_root"),
        ("link.txt", "PermissionError: 'link.txt' isn't below files_root"),
        ("linked/secret.txt", "PermissionError: 'linked/secret.txt' isn't below files_root"),
        ("missing.txt", "FileNotFoundError: [Errno 2] No such file or directory: '{outside}/root/missing.txt'"),
        (".", "ValueError: '.' is no file"),
        ("pipe", "ValueError: 'pipe' is no file"),
        ("binary", "ValueError: the file isn't text"),
        ("huge", f"ValueError: 'huge' is larger than {LARGEST_FILE_BYTES:,} bytes"),
        ("nul\0", "ValueError: 'nul\\x00' is no file"),
    ],
)
def test_only_text_files_below_the_root_are_read(
    pool: InlinePool, root: Path, tmp_path: Path, path: str, error: str
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "linked").symlink_to(tmp_path)
    (root / "binary").write_bytes(b"a\0b")
    os.mkfifo(root / "pipe")
    with (root / "huge").open("wb") as huge:
        huge.truncate(LARGEST_FILE_BYTES + 1)

    record = pool.run("word_count", {"path": path.format(outside=tmp_path)})

    assert (record.status, record.error) == (S.FAILED, error.format(outside=tmp_path))


@pytest.mark.parametrize("payload", [{}, {"path": "a", "text": "b"}, {"path": ""}, {"text": None}, {"txt": "a"}])
def test_exactly_one_of_path_and_text_is_given(payload: dict[str, Any]) -> None:
    of = Registry(builtins=True).get("word_count")
    assert of is not None

    with pytest.raises(InvalidPayload):
        of.decode(payload)

    assert not jsonschema_rs.is_valid(of.schema, payload)


def test_counts_that_would_be_too_large_a_result_are_cut_and_say_so(
    pool: InlinePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKPOOL_MAX_RESULT_BYTES", "2000")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b + "éé" for a in letters for b in letters]

    record = pool.run("word_count", {"text": " ".join([*words, "most most"])})

    kept = record.result["counts"]
    assert record.result == {"words": 678, "distinct": 677, "counts": kept, "omitted": 677 - len(kept)}
    assert list(kept)[:3] == ["most", "aaéé", "abéé"]
    assert 900 < len(json.dumps(record.result).encode()) < 2000


def test_a_merge_adds_up_what_its_parents_counted(pool: InlinePool) -> None:
    parents = [pool.add_task("word_count", {"text": text}).id for text in ("a b", "b c")]

    record = pool.run("word_merge", depends_on=parents)
    above = pool.run("word_merge", depends_on=[record.id, parents[0]])

    assert record.result == {
        "words": 4, "distinct": 3, "counts": {"b": 2, "a": 1, "c": 1}, "omitted": 0, "parents": 2,
    }  # fmt: skip
    assert list(record.result["counts"]) == ["b", "a", "c"]
    assert record.progress == {"done": 2, "total": 2, "note": None}
    assert above.result["counts"] == {"b": 3, "a": 2, "c": 1}


# --- http_request ---------------------------------------------------------------------------------------


class Answer(BaseHTTPRequestHandler):
    """Answers by the path; /echo gives back what it was sent."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        match self.path.split("?")[0]:
            case "/echo":
                sent = {"method": self.command, "type": self.headers["content-type"], "x": self.headers["x-token"]}
                self.answer(200, json.dumps({**sent, "body": body.decode()}).encode(), "application/json")
            case "/binary":
                self.answer(200, b"\xff\x00\x01", "application/octet-stream")
            case "/latin":
                self.answer(200, "é".encode("latin-1"), "text/plain; charset=latin-1")
            case "/controls":
                self.answer(200, b"\x01" * 1000, "text/plain")
            case "/large":
                self.answer(200, "é".encode() * 2_000_000, "text/plain")
            case "/moved":
                self.answer(302, b"", "text/plain", location="/echo")
            case "/broken":
                self.wfile.write(b"nonsense\r\n\r\n")
            case "/hang":
                hangs.wait(10)
            case _:
                self.answer(404, b"no such thing", "text/plain")

    do_POST = do_HEAD = do_PUT = do_GET

    def answer(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has seen enough

    def log_message(self, format: str, *args: Any) -> None: ...


hangs = threading.Event()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A web server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    hangs.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("payload", "seen"),
    [
        ({}, {"method": "GET", "type": None, "x": None, "body": ""}),
        (
            {"method": "POST", "body": {"a": 1}, "headers": {"X-Token": "t"}},
            {"method": "POST", "type": "application/json", "x": "t", "body": '{"a":1}'},
        ),
        ({"method": "PUT", "body": "plain"}, {"method": "PUT", "type": None, "x": None, "body": "plain"}),
    ],
)
def test_a_request_is_sent_as_it_says(pool: InlinePool, url: str, payload: Any, seen: Any) -> None:
    record = pool.run("http_request", {"url": f"{url}/echo", **payload})

    assert (record.status, record.error) == (S.DONE, None)
    assert json.loads(record.result["body"]) == seen
    assert record.result["headers"]["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "method", "answer"),
    [
        ("/latin", "GET", {"status": 200, "body": "é", "encoding": "text", "truncated": False}),
        (
            "/binary",
            "GET",
            {"status": 200, "body": base64.b64encode(b"\xff\0\1").decode(), "encoding": "base64", "truncated": False},
        ),
        ("/moved", "GET", {"status": 302, "body": "", "encoding": "text", "truncated": False}),
        ("/echo", "HEAD", {"status": 200, "body": "", "encoding": "text", "truncated": False}),
    ],
)
def test_an_answer_is_text_or_base64(
    pool: InlinePool, url: str, path: str, method: str, answer: dict[str, Any]
) -> None:
    result = pool.run("http_request", {"url": url + path, "method": method}).result

    assert {key: value for key, value in result.items() if key != "headers"} == answer


def test_a_body_larger_than_a_result_may_be_is_cut(pool: InlinePool, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPOOL_MAX_RESULT_BYTES", "1001")

    large = pool.run("http_request", {"url": f"{url}/large"})
    controls = pool.run("http_request", {"url": f"{url}/controls"})

    assert large.result["truncated"]
    assert (large.result["encoding"], large.result["body"]) == ("text", "é" * 250)
    assert (controls.result["encoding"], len(controls.result["body"])) == ("base64", 668)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/nothing?token=x", "RequestFailed: GET {url}/nothing: answered 404 Not Found: no such thing"),
        ("/broken", "RequestFailed: GET {url}/broken: RemoteProtocolError: illegal status line: {line}"),
        ("/hang", "RequestFailed: GET {url}/hang: no whole answer within 0.05 s"),
    ],
)  # fmt: skip
def test_an_answer_of_400_and_more_and_none_at_all_fail_the_task(
    pool: InlinePool, url: str, path: str, error: str
) -> None:
    timeout_s = 0.05 if path == "/hang" else 30

    record = pool.run("http_request", {"url": url + path, "timeout_s": timeout_s})

    assert (record.status, record.error) == (S.FAILED, error.format(url=url, line="bytearray(b'nonsense')"))


def test_a_refused_connection_fails_the_task_without_telling_the_password(pool: InlinePool) -> None:
    record = pool.run("http_request", {"url": "http://user:secret@127.0.0.1:1/x?key=secret"})

    assert (record.status, record.error) == (
        S.FAILED,
        "RequestFailed: GET http://127.0.0.1:1/x: ConnectError: All connection attempts failed",
    )
    assert "secret" not in str(record.failure)


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({}, "/payload/url"),
        ({"url": "ftp://a"}, "/payload/url"),
        ({"url": "file:///etc/passwd"}, "/payload/url"),
        ({"url": "http://a", "method": "get"}, "/payload/method"),
        ({"url": "http://a", "timeout_s": 0}, "/payload/timeout_s"),
        ({"url": "http://a", "headers": {"a": 1}}, "/payload/headers"),
    ],
)
def test_a_request_that_cannot_be_is_refused(pool: InlinePool, payload: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidPayload) as refused:
        pool.add_task("http_request", payload)

    assert [fault.pointer for fault in refused.value.errors] == [pointer]


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://a:b/"])
def test_a_url_that_is_none_fails_the_task_with_a_reason(pool: InlinePool, url: str) -> None:
    record = pool.run("http_request", {"url": url})

    assert record.status is S.FAILED
    assert (record.error or "").startswith("RequestFailed: ")


async def test_requests_of_one_process_run_at_once(url: str) -> None:
    of = Registry(builtins=True).get("http_request")
    assert of is not None
    ctx = TaskContext(RecordingSink(), id="t1", type="http_request")

    results = await asyncio.gather(*(of.bind(of.decode({"url": f"{url}/echo"}), ctx)() for _ in range(5)))

    assert [result["status"] for result in results] == [200] * 5
