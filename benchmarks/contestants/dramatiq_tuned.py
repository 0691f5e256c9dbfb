"""dramatiq with the settings that made it quickest on two cores: 2 threads a process, 100 messages prefetched."""

from __future__ import annotations

from types import MappingProxyType

from benchmarks.contestants import dramatiq


class Queue(dramatiq.Queue):
    speed = 6_000
    threads = 2
    environment = MappingProxyType({"dramatiq_queue_prefetch": "100"})


serve = dramatiq.serve
