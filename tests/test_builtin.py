"""The built-in task types, run inline."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from taskpool import InvalidPayload, Registry, TaskContext, TaskStatus, TaskStopped
from taskpool.tasks import builtin
from taskpool.tasks.builtin import LARGEST_FILE_BYTES, LongTask
from taskpool.testing import InlinePool, RecordingSink
from taskpool.url_guard import Address, Resolver

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


def test_without_a_files_root_no_file_is_read(
    pool: InlinePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("here")
    monkeypatch.chdir(tmp_path)

    record = pool.run("word_count", {"path": "a.txt"})

    assert record.error == "PermissionError: this worker reads no files: TASKPOOL_FILES_ROOT isn't set"


@pytest.mark.parametrize(
    "path", ["/proc/self/environ", "/proc/self/cmdline", "/proc/version", "/sys/kernel/mm/ksm/run"]
)
def test_what_the_kernel_makes_up_is_no_file(pool: InlinePool, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("TASKPOOL_FILES_ROOT", "/")

    record = pool.run("word_count", {"path": path})

    assert record.status is S.FAILED
    assert "is no file" in str(record.error) or not Path(path).exists()


@pytest.mark.parametrize("swapped", ["sub", "sub/deep", "sub/deep/a.txt"])
def test_a_link_that_is_put_on_the_way_while_the_file_is_opened_is_not_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    for top, text in ((root, "inside"), (tmp_path / "outside", "secret")):
        (top / "sub" / "deep").mkdir(parents=True)
        (top / "sub" / "deep" / "a.txt").write_text(text)
    walk = builtin._walk

    def swap_then_walk(base: Path, parts: tuple[str, ...]) -> int:
        (root / swapped).rename(root / "away")
        (root / swapped).symlink_to(tmp_path / "outside" / swapped)
        return walk(base, parts)

    monkeypatch.setattr(builtin, "_walk", swap_then_walk)

    with pytest.raises(OSError, match=r"Not a directory|Too many levels of symbolic links"):
        builtin.open_below(root, "sub/deep/a.txt")


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
            case "/charset":
                self.answer(200, b"answer", f"text/plain; charset={self.path.partition('?')[2]}")
            case "/credentials":
                self.answer(200, (self.headers["authorization"] or "").encode(), "text/plain")
            case "/bomb":
                self.answer(200, gzip.compress(bytes(1 << 24)), "text/plain", **{"content-encoding": "gzip"})
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
def server_url() -> Iterator[str]:
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


@pytest.fixture
def url(server_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's, which requests may reach."""
    monkeypatch.setenv("TASKPOOL_WEBHOOK_ALLOW", "127.0.0.1")
    return server_url


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
        ("/broken", "RequestFailed: GET {url}/broken: no answer: what it sent isn't HTTP"),
        ("/hang", "RequestFailed: GET {url}/hang: no complete response within 0.05 s"),
    ],
)  # fmt: skip
def test_an_answer_of_400_and_more_and_none_at_all_fail_the_task(
    pool: InlinePool, url: str, path: str, error: str
) -> None:
    timeout_s = 0.05 if path == "/hang" else 30

    record = pool.run("http_request", {"url": url + path, "timeout_s": timeout_s})

    assert (record.status, record.error) == (S.FAILED, error.format(url=url))


@pytest.mark.usefixtures("url")
def test_a_refused_connection_fails_the_task_without_showing_the_password(pool: InlinePool) -> None:
    record = pool.run("http_request", {"url": "http://user:secret@127.0.0.1:1/x?key=secret"})

    assert (record.status, record.error) == (
        S.FAILED,
        "RequestFailed: GET http://127.0.0.1:1/x: can't connect: connection refused",
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


# --- where http_request may go --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "[::]", "[::1]", "localhost",
        "LocalHost.", "a.localhost", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
        "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "168.63.129.16", "224.0.0.1",
        "255.255.255.255", "[fe80::1]", "[fd00:ec2::254]", "[ff02::1]", "１２７.0.0.1", "①27.0.0.1", "127。0。0。1",
        "user@127.0.0.1", "example.org@127.0.0.1", "127.0.0.1%00.example.org",
    ],
)  # fmt: skip
def test_a_request_reaches_nothing_inside(pool: InlinePool, server_url: str, host: str) -> None:
    record = pool.run("http_request", {"url": f"http://{host}:{server_url.rpartition(':')[2]}/echo"})

    assert record.status is S.FAILED
    assert record.error is not None
    assert "not allowed: " in record.error or "isn't one that can be sent to" in record.error
    assert "user@" not in record.error


@pytest.mark.parametrize("answers", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["64:ff9b::7f00:1"]])
def test_a_name_that_leads_inside_is_looked_up_once_and_not_followed(
    pool: InlinePool, server_url: str, monkeypatch: pytest.MonkeyPatch, answers: list[str]
) -> None:
    asked = resolving(monkeypatch, answers, ["8.8.8.8"])

    record = pool.run("http_request", {"url": f"http://rebinding.example:{server_url.rpartition(':')[2]}/echo"})

    assert str(record.error).endswith("not allowed: its host resolves to an address that isn't public")
    assert asked == ["rebinding.example"]


def test_a_request_goes_to_the_address_that_was_checked(
    pool: InlinePool, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("TASKPOOL_WEBHOOK_ALLOW", "127.0.0.0/8")
    asked = resolving(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])

    record = pool.run("http_request", {"url": f"http://name.example:{url.rpartition(':')[2]}/echo"})

    assert (record.error, asked) == (None, ["name.example"])


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Gives the next of these answers each time a name is looked up; returns the list of what was asked for."""
    asked: list[str] = []
    left = list(answers)

    async def resolve(self: Resolver, host: str, port: int) -> list[Address]:
        asked.append(host)
        return [ip_address(address) for address in left.pop(0)]

    monkeypatch.setattr(Resolver, "resolve", resolve)
    return asked


@pytest.mark.parametrize("name", ["Host", " host ", "Content-Length", "Transfer-Encoding", "Connection", "UPGRADE"])
def test_where_a_request_goes_and_ends_is_not_for_its_headers_to_say(pool: InlinePool, url: str, name: str) -> None:
    record = pool.run("http_request", {"url": f"{url}/echo", "headers": {name: "x"}})

    assert f"the header {name!r} can't be given" in str(record.error)


def test_a_netrc_gives_no_password_and_a_url_does(
    pool: InlinePool, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login operator password of-the-operator\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))

    plain = pool.run("http_request", {"url": f"{url}/credentials"})
    given = pool.run("http_request", {"url": f"{url}/credentials".replace("//", "//me:it%40s@")})

    assert (plain.result["body"], given.result["body"]) == ("", "Basic " + base64.b64encode(b"me:it@s").decode())


def test_an_answer_in_a_packed_form_is_not_unpacked(pool: InlinePool, url: str) -> None:
    result = pool.run("http_request", {"url": f"{url}/bomb", "headers": {"Accept-Encoding": "gzip"}}).result

    assert (result["encoding"], result["headers"]["content-encoding"]) == ("base64", "gzip")
    assert len(result["body"]) < 100_000


@pytest.mark.parametrize(
    "charset", ["zlib", "bz2", "hex", "rot13", "punycode", "idna", "undefined", "unicode_escape", "x-none"]
)
def test_an_answer_in_what_is_no_charset_is_base64(pool: InlinePool, url: str, charset: str) -> None:
    result = pool.run("http_request", {"url": f"{url}/charset?{charset}"}).result

    assert (result["encoding"], result["body"]) == ("base64", base64.b64encode(b"answer").decode())


@pytest.mark.parametrize(
    ("url_of", "error"),
    [
        ("http://127.0.0.1:PORT\\@evil.example/", "GET: the URL isn't one that can be sent to"),
        ("http://127.0.0.1:PORT/\r\nHost: x", "GET: the URL isn't one that can be sent to"),
        ("http://user:s3cret:9@127.0.0.1:99999/", "the port 99999 doesn't exist"),
        ("http://8.8.8.8:22/", "the port must be 80, 443 or from 1024 up, not 22"),
    ],
)
def test_the_refusal_of_a_url_does_not_contain_what_may_be_secret(
    pool: InlinePool, url: str, url_of: str, error: str
) -> None:
    record = pool.run("http_request", {"url": url_of.replace("PORT", url.rpartition(":")[2])})

    assert str(record.error).endswith(error)
    assert "s3cret" not in str(record.error)


@pytest.mark.parametrize("headers", [{"X": "a\r\nHost: evil"}, {"X: a\r\nHost": "evil"}, {"": "a"}, {"X": "é"}])
def test_a_header_that_http_does_not_allow_is_not_sent(pool: InlinePool, url: str, headers: dict[str, str]) -> None:
    record = pool.run("http_request", {"url": f"{url}/echo", "headers": headers})

    assert "a header isn't" in str(record.error)
