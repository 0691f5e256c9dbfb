"""An async task: asks many web addresses at once, a bounded number at a time.

    taskpool up --tasks examples/check_links.py --slots 20
    taskpool submit check_links --json '{"urls": ["https://example.org"]}' --wait 30

With --slots each worker process runs that many async tasks at once; this one waits more than it computes.
"""

from __future__ import annotations

import asyncio

import httpx

from taskpool import TaskContext, task


@task("check_links", timeout_s=300, max_attempts=3)
async def check_links(ctx: TaskContext, urls: list[str], at_once: int = 10, timeout_s: float = 10) -> dict[str, str]:
    """Say of each address what it answers: a status such as "200", or why there is no answer."""
    turns = asyncio.Semaphore(at_once)
    answers: dict[str, str] = {}

    async def check(client: httpx.AsyncClient, url: str) -> None:
        async with turns:
            if ctx.cancelled:
                return
            try:
                response = await client.head(url, follow_redirects=True)
                answers[url] = str(response.status_code)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                answers[url] = f"{type(error).__name__}: {error}"
            ctx.progress(len(answers), len(urls), note=url)

    async with httpx.AsyncClient(timeout=timeout_s) as client, asyncio.TaskGroup() as group:
        for url in dict.fromkeys(urls):
            group.create_task(check(client, url))
    ctx.raise_if_cancelled()
    return {url: answers[url] for url in urls}
