"""The fields of ``taskpool:counters``: what workers add to about once a second, and the API's /metrics reads.

A field is a metric's name and its labels, joined by `|`. All values are whole numbers that only grow.

    tasks|{outcome}|{type}|{queue}      attempts by how they ended (see OUTCOMES)
    wait_bucket|{type}|{queue}|{le}     attempts that waited in the queue at most `le` seconds
    wait_us_sum|{type}|{queue}          microseconds waited, summed
    run_bucket|{type}|{queue}|{le}      attempts that ran at most `le` seconds
    run_us_sum|{type}|{queue}           microseconds run, summed

    webhooks|{outcome}                  attempts to send webhooks, and what of them was lost (see WEBHOOK_OUTCOMES)

A bucket counts only what the one below it doesn't: the reader adds them up. The count of a histogram is the sum
of its buckets. A `|` or `%` in a label is percent-encoded.
"""

from __future__ import annotations

from typing import Final

TASKS: Final = "tasks"
WAIT_BUCKET: Final = "wait_bucket"
WAIT_US_SUM: Final = "wait_us_sum"
RUN_BUCKET: Final = "run_bucket"
RUN_US_SUM: Final = "run_us_sum"

WEBHOOKS: Final = "webhooks"

BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper ends of the buckets, in seconds; above the last one comes "+Inf"."""
BUCKET_LABELS: Final = (*(f"{bound:g}" for bound in BUCKETS_S), "+Inf")

OUTCOMES: Final = ("done", "failed", "stopped", "retried", "crashed", "given_back", "lost", "lease_lost")
"""How an attempt may end. `retried` runs again later, `crashed` died, `given_back` was put back at a shutdown.
`lease_lost` was given up because its lease ended; its process may still run. `lost` is counted by such a process when
its attempt ends after all: nothing of it is kept."""


WEBHOOK_OUTCOMES: Final = ("delivered", "failed", "dead", "dropped", "lost")
"""How an attempt to send a webhook may end: `failed` is tried again, `dead` isn't. `dropped` are deliveries for which
too many waited already, `lost` are events for which the outbox had no room."""


def field_name(metric: str, *labels: str) -> str:
    """The counter's field of a metric with these labels."""
    return "|".join((metric, *(label.replace("%", "%25").replace("|", "%7C") for label in labels)))


def split_name(field: str) -> tuple[str, ...]:
    """The metric and the labels of a field: what `field_name` was given."""
    metric, *labels = field.split("|")
    return (metric, *(label.replace("%7C", "|").replace("%25", "%") for label in labels))
