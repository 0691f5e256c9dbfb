"""Every Redis key and channel, and every number that scripts share with Python. Each is written only here.

A Lua script writes `KEY.job` for `JOB`, `STATUS.done` for the word of a status, and so on: see SCRIPT_CONSTANTS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from taskpool.types import DEFAULT_FAILURE_TTL_S, EVENT_OF, RETRYABLE, RQ_STATUS, STATUSES, TERMINAL, TaskStatus

# --- RQ 3's layout, which our scripts keep true so that RQ's tools can read it --------------------------
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
FIREHOSE: Final = CHANNEL + "*"  # the pattern of all task channels. It costs nothing while no client listens
SOON: Final = "taskpool:soon"  # channel: in how many ms a task that was just scheduled is due, if that is below SOON_MS
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
USED: Final = "taskpool:used:"  # + queues, tags or unique_keys + ":" + project: set of the names that it used first
EMPTY_QUEUES: Final = "taskpool:queues:empty"  # zset queue -> when it was first seen empty and without workers, ms
ONCE_COUNT: Final = "taskpool:once:count:"  # + project: string, how many idempotency keys it used; with a TTL
EXPIRING: Final = "taskpool:expiring"  # zset id -> when it expires if not started, s
COUNTERS: Final = "taskpool:counters"  # hash of the metrics' running totals
CLOCK: Final = "taskpool:clock"  # hash: since when writes have worked, and by how much Redis's clock was stepped
BUCKET: Final = "taskpool:bucket:"  # + caller: string "tokens ms", with a TTL: its token bucket
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
WEBHOOKS_LANES: Final = "taskpool:webhooks:lanes"  # zset lane -> when it has something to send next, ms
WEBHOOKS_WAITING: Final = "taskpool:webhooks:waiting:"  # + lane: zset delivery -> when it is due, ms
WEBHOOKS_SENDING: Final = "taskpool:webhooks:sending:"  # + lane: zset delivery -> end of its lease, ms
WEBHOOKS_FAILING: Final = "taskpool:webhooks:failing:"  # + lane: there while its last attempt failed; expires
DELIVERY: Final = "taskpool:delivery:"  # + id: hash
DELIVERIES_DEAD: Final = "taskpool:deliveries:dead:"  # + endpoint: zset of deliveries that aren't tried any more
DELIVERIES_ALL_DEAD: Final = DELIVERIES_DEAD + "all"  # zset of the dead deliveries of all endpoints
DELIVERIES_OF_TASK: Final = "taskpool:deliveries:task:"  # + id: zset of the deliveries about a task
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
"""The function that every RQ job of a task calls. Its arguments are the type and the payload."""

UNKNOWN_TYPE: Final = "unknown"
"""The type of an RQ job that isn't a task."""

FOREIGN_KEPT_S: Final = 3600
"""After this time, the search for tasks behind foreign jobs begins at the head of the queue again."""

RQ_SCHEDULER_S: Final = 15
"""How long a due job of another program is left to RQ's scheduler, which takes due jobs each second."""

JUDGED_S: Final = 20
"""A task that a plain RQ worker failed counts as ended for its dependents after this time, or once it was judged."""

WIP_GRACE_S: Final = 3600
"""Added to the end of a lease in ``rq:wip:*``, because `rq info` and RQ's maintenance fail every task whose score has
passed. The reaper takes a task back as soon as its lease ends, which is long before that."""

WITHOUT_PROJECT: Final = 10
"""All tasks without a project share a cap that is this many times the cap of one project."""

QUEUE_KEPT_S: Final = 300
"""How long an empty queue without workers stays in RQ's set of queues."""

USED_SAMPLE: Final = 100
"""When a project has reached a cap, this many of its names are checked. Names that are no longer used make room."""

EVENTS_MAXLEN: Final = 10_000
"""About how many events the stream keeps for clients that resume."""

AUDIT_MAXLEN: Final = 10_000
"""About how many entries each stream of the audit log keeps."""

LEAST_TTL_S: Final = 30
"""The record of an ended task stays at least this long. A submission whose reply was lost is sent again, up to two
reply timeouts later. It is recognized by the record of its task, which may have ended meanwhile."""

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
"""The record of a done task may be kept this much longer than its own retention, because a task that depends on it may
still read its result."""

HELD_LOOK_S: Final = 300
"""How often housekeeping checks whether such a record is still needed."""

NEEDED_STEP: Final = 500
"""How many dependents one check reads. The next check reads the rest."""

SWEPT_TASKS: Final = 200
"""How many waiting tasks one step of the sweep reads."""

SWEPT_TTL_S: Final = 3600
"""How long the position of a sweep is kept without another step."""

LOG_IDLE_TTL_S: Final = 30 * 86_400
"""How long the log of a task is kept after its last line. The log of an ended task is kept as long as its record."""

MOST_SUSPICIONS: Final = 10
"""How often a task may die together with others before the crash counts as its own. Suspects run alone, so a task gets
there only if it ends other processes than its own."""

HISTORY_CAP: Final = 20
"""How many ended attempts a record keeps, the last ones."""

WEBHOOKS_OUTBOX_MAX: Final = 100_000
"""The most events that wait to be sorted for webhooks. Further events are dropped and counted."""

WEBHOOKS_LANE_MAX: Final = 10_000
"""The most deliveries that wait for one endpoint or callback host. Further ones are dropped and counted."""

DELIVERIES_MAX: Final = 1000
"""The most deliveries that are listed for one endpoint or task, the last ones."""

DELIVERY_KEPT_S: Final = 7 * 86_400
"""How long a delivery is kept after its last attempt, unless it arrived."""

DELIVERED_KEPT_S: Final = 86_400
"""How long a delivery that arrived is kept, as long as it is one of its endpoint's last ones."""

SOON_MS: Final = 1000
"""Housekeeping looks for due tasks once a second. It is notified of a task that is due earlier."""

SEEN_OFTEN_MS: Final = 1500
"""Pools read Redis's clock each second. A time that is further from the last reading may be that of a stepped clock."""

STEPS_KEPT: Final = 60
"""How many steps of Redis's clock are kept in the hash CLOCK."""

DELIVERY_LEASE_MS: Final = 30_000
"""How long a supervisor may take to send a webhook: twice what an attempt may take."""

LEASES_AT_ONCE: Final = 20_000
"""How many leases and waiting webhooks are corrected after a step of Redis's clock. Further ones keep their time."""

DOORBELL_CAP: Final = 64
"""The most idle workers of one queue that are woken at once. Each of them claims again after its task."""

QUEUE_PAGE_BYTES: Final = 512 * 1024
"""A page of a queue ends with the record that brings it to this size."""

QUEUE_PAGE_NEWER: Final = 10_000
"""The next page begins where the last one ended, unless more tasks than this came to the front meanwhile."""


# --- what scripts read of the statuses (see prelude.lua) ------------------------------------------------
REGISTRY_OF: Final[Mapping[TaskStatus, str]] = {
    status: globals()[facts.registry] for status, facts in STATUSES.items() if facts.registry
}
"""The list or sorted set that holds the tasks with a status: its key without the queue at the end."""

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
"""Sets of RQ's words. `not_deferred`: if a task in DEFERRED has such a status, the entry is stale."""

SCRIPT_CONSTANTS: Final[Mapping[str, Mapping[str, object]]] = {
    "KEY": {name.lower(): value for name, value in globals().items() if isinstance(value, str | int)},
    "STATUS": {status.value: status.value for status in STATUSES},
    "RQ": {status.value: word for status, word in RQ_STATUS.items()},
    "EVENT": {status.value: event for status, event in EVENT_OF.items()},
    "RQ_SET": RQ_SET,
}
"""The constants of scripts, by namespace and name: `KEY.job`, `STATUS.done`, `RQ_SET.terminal`."""

# --- the fields of COUNTERS, which workers add to about once a second, and which /metrics reads ---------
#
# A field is a metric's name and its labels, joined by `|`. All values are integers that only grow.
#
#     tasks|{outcome}|{type}|{queue}      attempts by how they ended (see OUTCOMES)
#     wait_bucket|{type}|{queue}|{le}     attempts that waited in the queue for at most `le` seconds
#     wait_us_sum|{type}|{queue}          the sum of microseconds waited
#     run_bucket|{type}|{queue}|{le}      attempts that ran for at most `le` seconds
#     run_us_sum|{type}|{queue}           the sum of microseconds run
#     webhooks|{outcome}                  attempts to send webhooks, and lost events (see WEBHOOK_OUTCOMES)
#
# A bucket doesn't include the buckets below it; the reader adds them up. The count of a histogram is the sum of its
# buckets. A `|` or `%` in a label is percent-encoded.

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
"""How an attempt may end. `retried`: it runs again later. `crashed`: its process died. `given_back`: it was put back at
a shutdown. `lease_lost`: its lease ended, and its process may still run. `lost`: such a process ended its attempt after
all, and the outcome was discarded."""

WEBHOOK_OUTCOMES: Final = ("delivered", "failed", "dead", "dropped", "lost")
"""How an attempt to send a webhook may end. `failed` is tried again, `dead` isn't. `dropped`: too many deliveries wait
already. `lost`: the outbox of events was full."""


def field_name(metric: str, *labels: str) -> str:
    """The field of a metric with these labels."""
    return "|".join((metric, *(label.replace("%", "%25").replace("|", "%7C") for label in labels)))


def split_name(field: str) -> tuple[str, ...]:
    """The metric and the labels of a field."""
    metric, *labels = field.split("|")
    return (metric, *(label.replace("%7C", "|").replace("%25", "%") for label in labels))
