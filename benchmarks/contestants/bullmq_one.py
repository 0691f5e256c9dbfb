"""BullMQ with its default concurrency of 1: each worker runs one job at a time."""

from __future__ import annotations

from benchmarks.contestants import bullmq


class Queue(bullmq.Queue):
    speed = 3_000
    concurrency = 1
