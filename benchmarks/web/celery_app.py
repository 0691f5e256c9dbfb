"""Celery with Redis as its broker and for its results: what Flower's API puts tasks into."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks import increment as task

url = os.environ["BENCHMARK_REDIS_URL"]
app = Celery("benchmark", broker=url, backend=url)
increment = app.task(name="increment")(task.increment)
