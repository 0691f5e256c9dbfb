"""/docs: a page that needs no other host, whatever its files refer to."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from api.openapi.document import FILES
from tests.api_client import ROOT, api


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with api(redis_url) as client:
        yield client


async def test_the_door_leads_to_all_that_can_be_read_without_knowing_more(client: httpx.AsyncClient) -> None:
    links = (await client.get("/")).json()["links"]

    assert set(links) == {
        "tasks", "events", "ws", "queues", "types", "workers", "openapi.json", "asyncapi.json", "docs", "keys", "audit",
        "webhooks", "workflows", "schedules", "livez", "readyz", "metrics", "session", "failures", "findings",
        "operations", "stats", "pools", "storage", "live", "waits",
    }  # fmt: skip
    assert all(path == f"/{name}" for name, path in links.items())
    described = set((await client.get("/openapi.json")).json()["paths"])
    assert set(links.values()) - {"/ws"} <= described


async def test_the_door_leads_to_the_page_and_the_page_to_its_files(client: httpx.AsyncClient) -> None:
    links = (await client.get("/")).json()["links"]

    page = await client.get(links["docs"])

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    referred = set(re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text))
    assert referred == {f"docs/{name}" for name in FILES}
    for path in referred:
        assert (await client.get("/" + path)).status_code == 200


async def test_the_page_runs_no_code_but_that_of_its_files(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")

    assert "unsafe" not in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert re.findall(r"<script(?! src)|<style| style=| on\w+=|https?://", page.text) == []


@pytest.mark.parametrize("name", ["", *FILES])
async def test_a_file_comes_compressed_once_and_then_not_at_all(name: str, client: httpx.AsyncClient) -> None:
    raw = (ROOT / "api" / "docs" / (name or "index.html")).read_bytes()
    path = f"/docs/{name}".rstrip("/")

    plain = await client.get(path, headers={"accept-encoding": "identity"})
    packed = await client.get(path, headers={"accept-encoding": "gzip"})
    again = await client.get(path, headers={"if-none-match": plain.headers["etag"]})

    assert plain.content == packed.content == raw
    assert (packed.headers["content-encoding"], "content-encoding" in plain.headers) == ("gzip", False)
    assert int(packed.headers["content-length"]) == len(gzip.compress(raw, mtime=0))
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["index.html", "README.md", "..%2fapp.py", "%00", "docs"])
async def test_there_are_no_other_files(name: str, client: httpx.AsyncClient) -> None:
    assert (await client.get(f"/docs/{name}")).status_code == 404
