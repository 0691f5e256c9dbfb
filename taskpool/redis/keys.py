"""Every Redis key and channel: the one place where a name is spelled.

The first half is RQ 3's layout, kept true by our scripts so that RQ's own tools read it; the second half
is ours, all below ``taskpool:``. The Lua scripts write ``KEY.job`` and get the constant of that name
from here (see ``scripts``), so that no key is spelled twice.

The fields of ``taskpool:counters``: what workers add to about once a second, and the API's /metrics reads.

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

from collections.abc import Mapping
from typing import Final

from taskpool.types import DEFAULT_FAILURE_TTL_S, EVENT_OF, RETRYABLE, RQ_STATUS, STATUSES, TERMINAL, TaskStatus

# --- RQ's -----------------------------------------------------------------------------------------------
QUEUES: Final = "rq:queues"  # set of queue keys
QUEUE: Final = "rq:queue:"  # + queue: list of task ids, head first
JOB: Final = "rq:job:"  # + id: the task's hash
WIP: Final = "rq:wip:"  # + queue: zset "id:attempt_id" -> end of lease + WIP_GRACE_S
FINISHED: Final = "rq:finished:"  # + queue: zset id -> when the record expires
FAILED: Final = "rq:failed:"  # + queue: zset id -> when the record expires (failed and stopped)
CANCELED: Final = "rq:canceled:"  # + queue: zset id -> when the record expires
SCHEDULED: Final = "rq:scheduled:"  # + queue: zset id -> when to queue it
DEFERRED: Final = "rq:deferred:"  # + queue: zset id -> when it was created
RESULTS: Final = "rq:results:"  # + id: stream RQ's dashboards read tracebacks from
WORKERS: Final = "rq:workers"  # set of worker keys
WORKERS_OF: Final = "rq:workers:"  # + queue: set of worker keys
WORKER: Final = "rq:worker:"  # + name: hash; + name + ":executions": set of "id:attempt_id"
EXECUTION: Final = "rq:execution:"  # + id:attempt_id: hash
COMMANDS: Final = "rq:pubsub:"  # + worker name: channel of RQ's commands
SUSPENDED: Final = "rq:suspended"  # exists while `rq suspend` holds
RQ_DEPENDENTS: Final = ":dependents"  # JOB + id + this: set of RQ jobs that wait for that one
EXECUTIONS: Final = "rq:executions:"  # + id: zset of RQ's executions of a job
INTERMEDIATE: Final = (
    ":intermediate"  # QUEUE + queue + this: list of ids that a plain RQ worker popped and hasn't started
)
FIRST_SEEN: Final = ":first_seen:"  # the list's key + this + id: when RQ's maintenance, or ours, first saw the id there

# --- ours -----------------------------------------------------------------------------------------------
EVENTS: Final = "taskpool:events"  # capped stream of every event, one JSON document each
CHANNEL: Final = "taskpool:task:"  # + id: channel of that task's events
FIREHOSE: Final = CHANNEL + "*"  # the pattern of all of them: every event, at no cost while nobody listens
SOON: Final = "taskpool:soon"  # channel: in how many ms a task is due that was just scheduled, if it is below SOON_MS
DOORBELL: Final = "taskpool:doorbell:"  # + queue: capped list that idle workers block on
TYPES: Final = "taskpool:types"  # hash type -> JSON of its TypeInfo
TYPES_SEEN: Final = "taskpool:types:seen"  # zset type -> when a live pool last served it, ms
TYPES_USED: Final = "taskpool:types:used"  # set of the types of the tasks there are
POOLS: Final = "taskpool:pools"  # zset pool id -> last heartbeat, ms
POOL: Final = "taskpool:pool:"  # + pool id: JSON of its PoolInfo, with a TTL
BY_TYPE: Final = "taskpool:type:"  # + type: zset of ids, all with score 0 (ids sort by time)
BY_TAG: Final = "taskpool:tag:"  # + tag: zset of ids, all with score 0
TAGS: Final = "taskpool:tags"  # set of tags in use
DEPENDENTS: Final = "taskpool:dependents:"  # + id: set of the ids that wait for it
NEEDED: Final = "taskpool:needed:"  # + id: set of the ids that no longer wait for it, but may still read its result
OUTBOX: Final = "taskpool:outbox"  # set of ended tasks whose dependents are still to be released
SWEPT: Final = "taskpool:swept:"  # + queue: string, where the sweep of its waiting tasks goes on; with a TTL
UNIQUE: Final = "taskpool:unique"  # hash unique key -> the task that took it last, and until when if for a time
ONCE: Final = "taskpool:once:"  # + digest of an idempotency key: what its call was answered, with a TTL
USED: Final = "taskpool:used:"  # + queues, tags or unique_keys + ":" + project: set of what it was first to use
EMPTY_QUEUES: Final = "taskpool:queues:empty"  # zset queue -> when it was first seen empty and without workers, ms
ONCE_COUNT: Final = "taskpool:once:count:"  # + project: string, how many idempotency keys it used; with a TTL
EXPIRING: Final = "taskpool:expiring"  # zset id -> when it expires if not started, s
COUNTERS: Final = "taskpool:counters"  # hash of the metrics' running totals
CLOCK: Final = "taskpool:clock"  # hash: since when writes work, and by how much Redis's clock was stepped
BUCKET: Final = "taskpool:bucket:"  # + caller: string "tokens ms", with a TTL: what it may still ask for
RQ_OUTBOX: Final = "taskpool:outbox:rq"  # set of ended RQ jobs whose dependents in RQ are still to be queued
STUCK: Final = "taskpool:stuck:"  # + id: when first seen in an intermediate list, ms, and its `enqueued_at`
FOREIGN: Final = "taskpool:foreign:"  # + queue: hash of settings -> how far its front was found to be foreign jobs
FOREIGN_QUEUES: Final = "taskpool:foreign"  # zset of queues -> when foreign jobs were last found there, s
SECRETS_INDEX: Final = "taskpool:secrets"  # zset of the ids that have secrets, all with score 0
SECRETS: Final = "taskpool:secrets:"  # + id: string, what was taken out of the payload; with a TTL
LOG: Final = "taskpool:log:"  # + id: capped stream of the task's log lines
WEBHOOKS: Final = "taskpool:webhooks"  # hash endpoint -> its JSON, secrets and all
WEBHOOKS_WANTED: Final = (
    "taskpool:webhooks:wanted"  # hash ":" + event, or id of a task with a callback -> ",its,events,"
)
WEBHOOKS_OUTBOX: Final = "taskpool:webhooks:outbox"  # stream of wanted events that no supervisor has sorted yet
WEBHOOKS_SORTER: Final = "taskpool:webhooks:sorter"  # string: the supervisor that sorts them, for a second
WEBHOOKS_LANES: Final = "taskpool:webhooks:lanes"  # zset lane -> when it has something to do again, ms
WEBHOOKS_WAITING: Final = "taskpool:webhooks:waiting:"  # + lane: zset delivery -> when it is due, ms
WEBHOOKS_SENDING: Final = "taskpool:webhooks:sending:"  # + lane: zset delivery -> end of its lease, ms
WEBHOOKS_FAILING: Final = "taskpool:webhooks:failing:"  # + lane: there while its last attempt failed; expires
DELIVERY: Final = "taskpool:delivery:"  # + id: hash
DELIVERIES_DEAD: Final = "taskpool:deliveries:dead:"  # + endpoint: zset of those that nobody tries any more
DELIVERIES_ALL_DEAD: Final = DELIVERIES_DEAD + "all"  # zset of those of all endpoints
DELIVERIES_OF_TASK: Final = "taskpool:deliveries:task:"  # + id: zset of those about a task
DELIVERIES: Final = "taskpool:deliveries:"  # + endpoint: zset of deliveries, all with score 0 (ids sort by time)
API_KEYS: Final = "taskpool:keys"  # hash key id -> JSON of its ApiKey, with hashes of its secrets
API_KEYS_USED: Final = "taskpool:keys:used"  # hash key id -> when it was last used, ms
TICKET: Final = "taskpool:ticket:"  # + hash of a ticket: the id of the key that it stands for, with a TTL
AUDIT: Final = "taskpool:audit"  # capped stream of what was done with keys and webhooks, one JSON document each
AUDIT_TASKS: Final = "taskpool:audit:tasks"  # the same of what was done to tasks
AUDIT_SUBMITTED: Final = "taskpool:audit:submitted"  # the same of submissions
BY_PROJECT: Final = "taskpool:project:"  # + project: zset of ids, all with score 0
PROJECTS: Final = "taskpool:projects"  # set of projects in use
NOTHING: Final = "taskpool:nothing"  # never exists: deleting it is the write that Redis never refuses

ENTRY_POINT: Final = "taskpool.runner.run"
"""The one function that a job of ours names; its arguments are the type and the payload."""

UNKNOWN_TYPE: Final = "unknown"
"""The type of a job that is no task of ours."""

FOREIGN_KEPT_S: Final = 3600
"""After that long the search behind a queue's foreign jobs begins at the queue's head again."""

RQ_SCHEDULER_S: Final = 15
"""How long a due job of another program is left to RQ's scheduler, which takes due jobs each second."""

JUDGED_S: Final = 20
"""How long a task that a plain RQ worker failed doesn't count as ended for its dependents, unless it was judged."""

WIP_GRACE_S: Final = 3600
"""Seconds added to the end of a lease in ``rq:wip:*``. `rq info` and RQ's maintenance fail every task whose
score has passed; ours is taken back by the reaper the moment its lease ends, long before that."""

WITHOUT_PROJECT: Final = 10
"""All tasks without a project together may use so many times as many queues, tags and keys as one project."""

QUEUE_KEPT_S: Final = 300
"""How long a queue is known that holds no task and has no worker."""

USED_SAMPLE: Final = 100
"""So many names of a project that has reached a cap are looked at: those that are gone make room."""

EVENTS_MAXLEN: Final = 10_000
"""About how many events the stream keeps, for those who resume."""

AUDIT_MAXLEN: Final = 10_000
"""About how many entries each stream of the audit keeps."""

LEAST_TTL_S: Final = 30
"""How long the record of an ended task stays at least. A submission whose answer was lost is sent again, up to two
reply timeouts later; it is known by the record of its task, which may have run and ended meanwhile."""

EXPIRY_SLACK_S: Final = 60
"""The key of an ended task's record expires so much later than its entry in the registry is due. Housekeeping removes
both when the entry is due; the key's own expiry is for the case that no worker pool runs."""

FAILURE_TTL_S: Final = DEFAULT_FAILURE_TTL_S
"""How long the record of a task that ended badly is kept if it holds no number."""

NOT_STARTED: Final = "canceled before it started"
"""The error of a task that a person canceled."""

FIRST_SEEN_SLACK_S: Final = 3600
"""How much longer than necessary it is remembered when a task was first seen in an intermediate list."""

WEBHOOKS_FAILING_S: Final = 300
"""How long a lane counts as failing after an attempt that failed."""

HELD_MOST_S: Final = 30 * 86_400
"""The longest time for which a done task's record is kept beyond its own retention, because a task that depends on it
may still read its result."""

HELD_LOOK_S: Final = 300
"""How often housekeeping looks whether such a record is still needed."""

NEEDED_STEP: Final = 500
"""How many dependents one look reads. The rest follows with the next look."""

SWEPT_TASKS: Final = 200
"""How many waiting tasks one step of the sweep reads."""

SWEPT_TTL_S: Final = 3600
"""How long the place of a sweep is kept without another step."""

LOG_IDLE_TTL_S: Final = 30 * 86_400
"""How long a log is kept without a further line while its task hasn't ended; then as long as the task."""

MOST_SUSPICIONS: Final = 10
"""How often a task may be among several that died together, without being charged. Suspects run alone, so it doesn't
come to that, unless a task ends other processes than its own."""

HISTORY_CAP: Final = 20
"""How many ended attempts a record tells of, the last ones."""

WEBHOOKS_OUTBOX_MAX: Final = 100_000
"""The most wanted events that wait to be sorted; what comes when there are so many is dropped and counted."""

WEBHOOKS_LANE_MAX: Final = 10_000
"""The most deliveries that wait for one endpoint or callback host; more of them are dropped and counted."""

DELIVERIES_MAX: Final = 1000
"""The most deliveries that are listed for one endpoint or task, the last ones."""

DELIVERY_KEPT_S: Final = 7 * 86_400
"""How long a delivery is kept after its last attempt, unless it arrived."""

DELIVERED_KEPT_S: Final = 86_400
"""How long one is kept that did, as long as it is one of its endpoint's last."""

SOON_MS: Final = 1000
"""What is due before housekeeping looks again by itself, it is told of."""

SEEN_OFTEN_MS: Final = 1500
"""Pools look at Redis's clock each second. A time that is further from what they saw may be that of a stepped clock."""

STEPS_KEPT: Final = 60
"""How many steps of Redis's clock are remembered, in the hash that also holds what else is known of it."""

DELIVERY_LEASE_MS: Final = 30_000
"""How long a supervisor may take to send a webhook: twice what an attempt may take."""

LEASES_AT_ONCE: Final = 20_000
"""How many leases and waiting webhooks are corrected after a step of Redis's clock. What is beyond keeps its time."""

DOORBELL_CAP: Final = 64
"""The most idle workers of one queue that are woken at once; each of them looks again after its task."""

QUEUE_PAGE_BYTES: Final = 512 * 1024
"""A page of a queue ends behind the record with which it has so many bytes."""

QUEUE_PAGE_NEWER: Final = 10_000
"""So many tasks may have come to a queue's front between two pages for the second to begin where the first ended."""


# --- what scripts read of the statuses (see prelude.lua) -------------------------------------------------
REGISTRY_OF: Final[Mapping[TaskStatus, str]] = {
    status: globals()[facts.registry] for status, facts in STATUSES.items() if facts.registry
}
"""Where the tasks with a status stand: the key of a list or a sorted set, without the queue at its end. A status that
this release doesn't set has none."""

_USED: Final = frozenset(REGISTRY_OF)
CANCELABLE: Final = frozenset(status for status in _USED if TaskStatus.CANCELED in STATUSES[status].moves)
"""The statuses in which `cancel.lua` can cancel a task."""

RQ_SET: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(RQ_STATUS[status] for status in statuses)
    for name, statuses in {
        "terminal": TERMINAL,
        "retryable": RETRYABLE,
        "cancelable": CANCELABLE,
        "not_deferred": frozenset(status for status in _USED if REGISTRY_OF[status] != DEFERRED),
    }.items()
}
"""Sets of RQ's words. `not_deferred`: the task of an entry among the deferred ones has moved on."""

SCRIPT_CONSTANTS: Final[Mapping[str, Mapping[str, object]]] = {
    "KEY": {name.lower(): value for name, value in globals().items() if isinstance(value, str | int)},
    "STATUS": {status.value: status.value for status in STATUSES},
    "RQ": {status.value: word for status, word in RQ_STATUS.items()},
    "EVENT": {status.value: event for status, event in EVENT_OF.items()},
    "RQ_SET": RQ_SET,
}
"""By namespace and name: what a script writes as `KEY.job`, `STATUS.done` and so on."""


TASKS: Final = "tasks"
WAIT_BUCKET: Final = "wait_bucket"
WAIT_US_SUM: Final = "wait_us_sum"
RUN_BUCKET: Final = "run_bucket"
RUN_US_SUM: Final = "run_us_sum"

WEBHOOK_ATTEMPTS: Final = "webhooks"

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
