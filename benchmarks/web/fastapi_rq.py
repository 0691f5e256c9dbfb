"""FastAPI and RQ as their docs have them: a model for the body, `Queue.enqueue` in a handler, `Job.fetch` in one."""

from __future__ import annotations

import os
from typing import Any

import redis
import rq
from fastapi import FastAPI
from pydantic import BaseModel
from rq.job import Job

from benchmarks.increment import increment

connection = redis.Redis.from_url(os.environ["BENCHMARK_REDIS_URL"])
queue = rq.Queue(connection=connection)
app = FastAPI()


class Payload(BaseModel):
    n: int


class Submission(BaseModel):
    type: str
    payload: Payload


@app.post("/tasks", status_code=202)
def submit(submission: Submission) -> dict[str, Any]:
    """Put it in."""
    job = queue.enqueue(increment, n=submission.payload.n)
    return {"id": job.id, "status": job.get_status(refresh=False)}


@app.get("/tasks/{id}")
def get(id: str) -> dict[str, Any]:
    """How it stands."""
    job = Job.fetch(id, connection=connection)
    return {"id": job.id, "status": job.get_status(refresh=False), "kwargs": job.kwargs, "created_at": job.created_at}
