"""The examples do what they say."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from taskpool import InvalidPayload, Registry, TaskStatus
from taskpool.testing import InlinePool

S = TaskStatus
EXAMPLES = Path(__file__).parent.parent / "examples"
GUIDE = EXAMPLES.parent / "docs" / "tasks.md"


def test_every_example_loads_beside_the_others() -> None:
    registry = Registry([str(EXAMPLES)], builtins=True)

    own = [each for each in registry if each.where.startswith("examples/")]
    assert [(each.name, each.queue, each.is_async) for each in own] == [
        ("archive", "files", False),
        ("check_links", "default", True),
        ("shrink", "images", False),
    ]
    assert all(each.description for each in own)


def test_the_guides_task_passes_the_guides_test(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["taskpool.testing"]\n')
    (tmp_path / "test_fixture.py").write_text(
        "from images import resize\n"
        "def test_fixture(inline_pool):\n"
        "    inline_pool.use(resize)\n"
        "    assert inline_pool.run('resize', {'url': 'u'}).result['width'] == 80\n"
    )

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert [name for name, _ in blocks] == ["images.py", "test_images.py"]
    assert "5 passed" in ran.stdout, ran.stdout + ran.stderr


def test_the_shops_own_tests_pass(tmp_path: Path) -> None:
    """As a reader runs them; none of them needs Redis."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"),
            f"--basetemp={tmp_path / 't'}",
        ],
        cwd=EXAMPLES / "shop",
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout


@pytest.mark.parametrize(
    ("pixels", "factor", "shrunk"),
    [
        ([[0, 8, 5], [8, 16, 7]], 2, [[8, 6]]),
        ([[1, 2], [3, 4]], 1, [[1, 2], [3, 4]]),
        ([[1], [2], [4]], 2, [[2], [4]]),
        ([], 2, []),
    ],
)
def test_shrink_averages_squares(pixels: Any, factor: int, shrunk: Any) -> None:
    with InlinePool(str(EXAMPLES / "shrink.py")) as pool:
        assert pool.run("shrink", {"pixels": pixels, "factor": factor}).result == shrunk


def test_shrink_refuses_what_is_no_picture() -> None:
    with InlinePool(str(EXAMPLES / "shrink.py")) as pool:
        with pytest.raises(InvalidPayload, match="/payload/pixels/0/1: Expected `int` <= 255"):
            pool.add_task("shrink", {"pixels": [[1, 256]]})
        with pytest.raises(InvalidPayload, match="/payload/factor: Expected `int` >= 1"):
            pool.add_task("shrink", {"pixels": [], "factor": 0})

        record = pool.run("shrink", {"pixels": [[1, 2], [3]]})

    assert (record.status, record.error) == (S.FAILED, "ValueError: the rows differ in length")


def test_check_links_reports_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        match request.url.host:
            case "good":
                return httpx.Response(200)
            case "moved":
                return httpx.Response(301, headers={"location": "http://good/"})
            case "gone":
                return httpx.Response(410)
            case "nowhere":
                raise httpx.InvalidURL("no such place")
            case _:
                raise httpx.ConnectError("no route")

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(httpx, "AsyncClient", functools.partial(httpx.AsyncClient, transport=transport))
    urls = ["http://good/", "http://moved/", "http://gone/", "http://dead/", "http://nowhere/", "http://good/"]

    with InlinePool(str(EXAMPLES / "check_links.py")) as pool:
        record = pool.run("check_links", {"urls": urls, "at_once": 2})

    assert record.result == {
        "http://good/": "200",
        "http://moved/": "200",
        "http://gone/": "410",
        "http://dead/": "ConnectError: no route",
        "http://nowhere/": "InvalidURL: no such place",
    }
    assert (record.progress or {})["done"] == 5


def test_check_links_stops_between_two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with InlinePool(str(EXAMPLES / "check_links.py")) as pool:
        task = pool.add_task("check_links", {"urls": ["http://a/", "http://b/"], "at_once": 1})
        transport = httpx.MockTransport(lambda request: httpx.Response(200, text=pool.kill_task(task.id).status))
        monkeypatch.setattr(httpx, "AsyncClient", functools.partial(httpx.AsyncClient, transport=transport))

        record = pool.wait(task.id)

    assert record.status is S.STOPPED
    assert record.progress == {"done": 1, "total": 2, "note": "http://a/"}


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        (folder / name).write_text(name)
    return folder


def test_archive_packs_every_file(documents: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.zip"

    with InlinePool(str(EXAMPLES / "archive.py")) as pool:
        record = pool.run("archive", {"directory": str(documents), "to": str(target)})
        log = pool.log_of(record.id)

    assert record.result == {"files": 3, "bytes": target.stat().st_size}
    assert zipfile.ZipFile(target).namelist() == ["a.txt", "b.txt", "sub/c.txt"]
    assert log == ["packed 3 files"]
    assert record.progress == {"done": 2, "total": 3, "note": "c.txt"}


def test_a_stopped_archive_leaves_nothing_behind(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with InlinePool(str(EXAMPLES / "archive.py")) as pool:
        task = pool.add_task("archive", {"directory": str(documents), "to": str(tmp_path / "out.zip")})
        monkeypatch.setattr(zipfile.ZipFile, "write", lambda *_: pool.kill_task(task.id))

        record = pool.wait(task.id)

    assert record.status is S.STOPPED
    assert [path.name for path in tmp_path.iterdir()] == ["documents"]
