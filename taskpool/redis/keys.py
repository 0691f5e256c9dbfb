"""Every Redis key and channel, and every number that scripts share with Python. Each is written only here.

A Lua script writes `KEY.job` for `JOB`, `STATUS.done` for the word of a status, and so on: see SCRIPT_CONSTANTS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from taskpool.types import (
    ANSWER_S,
    DEFAULT_FAILURE_TTL_S,
    EVENT_OF,
    MOST_ASKED,
    RETRYABLE,
    RQ_STATUS,
    STATUSES,
    TERMINAL,
    TaskStatus,
)
from taskpool.types.control import OperationStatus

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
WORKER: Final = "rq:worker:"  # + name: hash; + name + ":executions": set of "id:attempt_id" that have had a heartbeat
EXECUTION: Final = "rq:execution:"  # + id:attempt_id: hash
COMMANDS: Final = "rq:pubsub:"  # + worker name: channel of RQ's commands
SUSPENDED: Final = "rq:suspended"  # exists while `rq suspend` holds
RQ_DEPENDENTS: Final = ":dependents"  # JOB + id + this: set of RQ jobs that wait for that one
EXECUTIONS: Final = "rq:executions:"  # + id: zset of RQ's executions of a job
INTERMEDIATE: Final = ":intermediate"  # QUEUE + queue + this: list of ids that a plain RQ worker took, not started yet
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
POOLS_KNOWN: Final = "taskpool:pools:known"  # zset pool id -> last heartbeat, ms: live pools, and those that went away
POOL_KNOWN: Final = "taskpool:pool:known:"  # + pool id: JSON of its last PoolInfo, with a TTL of POOL_KNOWN_S
STACK: Final = "taskpool:stack:"  # + token: JSON of the stack of a running task, with a TTL
SWITCHES: Final = (
    "taskpool:switches"  # hash "all", "queue:" + queue or "pool:" + pool id -> JSON: it is paused, by whom
)
BY_TYPE: Final = "taskpool:type:"  # + type: zset of ids, all with score 0 (ids sort by time)
BY_TAG: Final = "taskpool:tag:"  # + tag: zset of ids, all with score 0
TAGS: Final = "taskpool:tags"  # set of tags in use
DEPENDENTS: Final = "taskpool:dependents:"  # + id: set of the ids that wait for it
FOLLOWERS: Final = "taskpool:followers:"  # + ref: set of "on:id": the tasks that wait for how it ends (edges.lua)
NEEDED: Final = "taskpool:needed:"  # + ref: set of the ids that no longer wait for it, but may still read its outcome
REVIVABLE: Final = "taskpool:revivable:"  # + ref: set of the ids that were canceled because of how it ended
HELD: Final = "taskpool:held"  # zset id -> when to look whether its record is still kept for others, s
ADDED: Final = "taskpool:added:"  # + id: set of the ids of the tasks that its attempts added; with a TTL
OUTBOX: Final = "taskpool:outbox"  # set of refs that have ended, or were retried, with tasks that depend on them
SWEPT: Final = "taskpool:swept:"  # + queue: string, where the sweep of its waiting tasks goes on; with a TTL
UNIQUE: Final = "taskpool:unique"  # hash unique key -> the task that took it last, and until when if for a time
ONCE: Final = "taskpool:once:"  # + digest of an idempotency key: what its call was answered, with a TTL
USED: Final = "taskpool:used:"  # + queues, tags or unique_keys + ":" + project: set of the names that it used first
EMPTY_QUEUES: Final = "taskpool:queues:empty"  # zset queue -> when it was first seen empty and without workers, ms
ONCE_COUNT: Final = "taskpool:once:count:"  # + project: string, how many idempotency keys it used; with a TTL
CONFIRMATIONS: Final = "taskpool:confirmations"  # zset id -> when the default answer counts, s: they wait for a person
EXPIRING: Final = "taskpool:expiring"  # zset id -> when it expires if not started, s
BUILDS: Final = "taskpool:builds"  # zset build of task modules -> when a pool with it was first seen, ms
COUNTERS: Final = "taskpool:counters"  # hash of the metrics' running totals, up to the minutes in STATS_OPEN
STATS_OPEN: Final = "taskpool:stats:open"  # set of the minutes since 1970 that are to be added to the totals
STATS_SUBMITTED: Final = "taskpool:stats:submitted:"  # + minute: hash "type|queue" -> tasks submitted in that minute
STATS_COUNTED: Final = "taskpool:stats:counted:"  # + minute: hash field of COUNTERS + "|" + build -> what it added
STATS_REPORTED: Final = "taskpool:stats:reported:"  # + worker: string, the number of its last report; with a TTL
STATS_MINUTES: Final = "taskpool:stats:minutes"  # hash minute since 1970 -> what happened in it (insight/history.py)
STATS_TENS: Final = "taskpool:stats:tens"  # the same by ten minutes
STATS_HOURS: Final = "taskpool:stats:hours"  # the same by hour
STATS_DAYS: Final = "taskpool:stats:days"  # the same by day
STATS_PAIRS: Final = "taskpool:stats:pairs"  # set of "type|queue" with totals of their own
STATS_TURN: Final = "taskpool:stats:turn:"  # + minute: string, there if a pool has taken it in hand; with a TTL
HOUSEKEEPER: Final = "taskpool:housekeeper:"  # + digest of settings: string, the pool that has the turn; with a TTL
ATTEMPTS: Final = "taskpool:attempts:"  # + worker: set of "id:attempt_id": the attempts that it has claimed
UNSEEN: Final = "taskpool:unseen:"  # + worker: hash of its attempts -> "list ms" or "unseen" (unseen.lua); with a TTL
CLOCK: Final = "taskpool:clock"  # hash: since when writes have worked, and by how much Redis's clock was stepped
BUCKET: Final = "taskpool:bucket:"  # + caller: string "tokens ms", with a TTL: its token bucket
RQ_OUTBOX: Final = "taskpool:outbox:rq"  # set of ended RQ jobs whose dependents in RQ are still to be queued
STUCK: Final = "taskpool:stuck:"  # + id: when first seen in an intermediate list, ms, and its `enqueued_at`
FOREIGN: Final = "taskpool:foreign:"  # + queue: hash of settings -> how far its front was found to be foreign jobs
FOREIGN_QUEUES: Final = "taskpool:foreign"  # zset of queues -> when foreign jobs were last found there, s
SECRETS_INDEX: Final = "taskpool:secrets"  # zset of the ids that have secrets, all with score 0
SECRETS: Final = "taskpool:secrets:"  # + id: string, what was taken out of the payload; with a TTL
CHECKPOINT: Final = "taskpool:checkpoint:"  # + id: string, the state that the task kept last, as JSON
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
WEBHOOKS_FAILING: Final = "taskpool:webhooks:failing:"  # + lane: its last attempt as JSON, if that failed; expires
DELIVERY: Final = "taskpool:delivery:"  # + id: hash
DELIVERIES_DEAD: Final = "taskpool:deliveries:dead:"  # + endpoint: zset of deliveries that aren't tried any more
DELIVERIES_ALL_DEAD: Final = DELIVERIES_DEAD + "all"  # zset of the dead deliveries of all endpoints
DELIVERIES_OF_TASK: Final = "taskpool:deliveries:task:"  # + id: zset of the deliveries about a task
DELIVERIES: Final = "taskpool:deliveries:"  # + endpoint: zset of deliveries, all with score 0 (ids sort by time)
SCHEDULES: Final = "taskpool:schedules"  # zset of the ids of all schedules, all with score 0
SCHEDULES_DUE: Final = "taskpool:schedules:due"  # zset schedule -> when pools look at it next, s
SCHEDULE: Final = "taskpool:schedule:"  # + id: hash. The id is the name, of a project's schedule "project:name"
OCCURRENCES: Final = "taskpool:occurrences:"  # + id: list of what became of a schedule's occurrences, newest first
DECLARED: Final = "taskpool:declared:"  # + module: set of the ids of the schedules that it declares
DECLARING: Final = "taskpool:declaring:"  # + module: hash of declarations -> when each was first seen, ms
API_KEYS: Final = "taskpool:keys"  # hash key id -> JSON of its ApiKey, with hashes of its secrets
API_KEYS_USED: Final = "taskpool:keys:used"  # hash key id -> when it was last used, ms
TICKET: Final = "taskpool:ticket:"  # + hash of a ticket: the id of the key that it stands for, with a TTL
SESSION: Final = "taskpool:session:"  # + hash of a cookie: the key's id and the hash of its secret, with a TTL
AUDIT: Final = "taskpool:audit"  # capped stream of what was done with keys and webhooks, one JSON document each
AUDIT_TASKS: Final = "taskpool:audit:tasks"  # the same of what was done to tasks
AUDIT_SUBMITTED: Final = "taskpool:audit:submitted"  # the same of submissions
BY_PROJECT: Final = "taskpool:project:"  # + project: zset of ids, all with score 0
PROJECTS: Final = "taskpool:projects"  # set of projects in use
WORKFLOW: Final = "taskpool:workflow:"  # + id: hash, the workflow: status, counts of its members
WORKFLOW_COUNTED: Final = ":counted"  # WORKFLOW + id + this: string, how each member was last counted, one byte each
WORKFLOW_EXPANDING: Final = ":expanding"  # WORKFLOW + id + this: list of the tokens whose chunks are to be stored
WORKFLOW_NODES: Final = ":nodes"  # WORKFLOW + id + this: hash node -> JSON of its first member, size, and edges
WORKFLOW_ORDER: Final = ":order"  # WORKFLOW + id + this: zset node -> the number of its first member
WORKFLOW_REVIVING: Final = ":reviving"  # WORKFLOW + id + this: list of the numbers of members that are to run again
WORKFLOWS: Final = "taskpool:workflows"  # zset of workflows, all with score 0 (ids sort by time)
WORKFLOWS_OF: Final = "taskpool:workflows:project:"  # + project: the same of a project
WORKFLOWS_OPEN: Final = "taskpool:workflows:open"  # zset of the workflows that haven't ended, all with score 0
WORKFLOWS_ENDED: Final = "taskpool:workflows:ended"  # zset ended workflow -> when it is removed with its members, s
WORKFLOWS_STOPPING: Final = "taskpool:workflows:stopping"  # zset stopping workflow -> number of the member to look at
WORKFLOWS_REVIVING: Final = "taskpool:workflows:reviving"  # set of the workflows with members that are to run again
SWEPT_OF: Final = ":swept"  # WORKFLOWS or WORKFLOWS_OPEN + this: string, where the sweep goes on; with a TTL
COUNTED_LETTERS: Final = "dnwcfsr"  # the letters in WORKFLOW_COUNTED of members that have ended
FAILURE_LETTERS: Final = "cfsr"  # those of failures
EXPANDING: Final = "taskpool:workflows:expanding"  # zset of workflows with chunks to store -> last progress, ms
STAGED: Final = "taskpool:staged:"  # + token: list of the chunks of tasks of a workflow; expires unless committed
FAILURES: Final = "taskpool:failures"  # zset fingerprint -> when a task last failed with it, ms
FAILURE: Final = "taskpool:failure:"  # + fingerprint: hash, the group of failures with it
REDRIVES: Final = "taskpool:redrives"  # set of the fingerprints whose redrive runs
REDRIVE: Final = "taskpool:redrive:"  # + fingerprint: hash, its last redrive; with a TTL once it has ended
REDRIVE_WAITING: Final = (
    ":waiting"  # REDRIVE + fingerprint + this: hash task -> its `seq` before the redrive retried it
)
REDRIVE_REFUSED: Final = ":refused"  # REDRIVE + fingerprint + this: set of the tasks that it couldn't retry
OPERATION: Final = "taskpool:operation:"  # + id: hash, an operation on many tasks
OPERATION_TASKS: Final = ":tasks"  # OPERATION + id + this: list of the ids of the tasks that it has found
OPERATIONS: Final = "taskpool:operations"  # zset of the ids of operations, all with score 0 (ids sort by time)
OPERATIONS_OF: Final = "taskpool:operations:project:"  # + project: the same of a project
OPERATIONS_RUNNING: Final = "taskpool:operations:running"  # set of those that haven't ended
TRASH: Final = "taskpool:trash:"  # + a key that went with a removed task, while the removal can be undone; with a TTL
NOTHING: Final = "taskpool:nothing"  # never exists: deleting it is the write that Redis never refuses

ENTRY_POINT: Final = "taskpool.runner.run"  # what RQ's job of a task calls, with the type and the payload
UNKNOWN_TYPE: Final = "unknown"  # the type of an RQ job that isn't a task
NOT_ANSWERED: Final = "canceled while it waited for an answer"  # the same of one that has asked
NOT_STARTED: Final = "canceled before it started"  # the error of a task that a person canceled
EXPIRED: Final = "canceled: it was not started before it expired"

# --- how long, and how much -----------------------------------------------------------------------------
# The record of an ended task stays at least LEAST_TTL_S: a submission whose reply was lost is sent again, up to two
# reply timeouts later, and recognized by the record of its task, which may have ended meanwhile.
LEAST_TTL_S: Final = 30
FAILURE_TTL_S: Final = DEFAULT_FAILURE_TTL_S  # for a task that ended badly, if its record holds no number
# Housekeeping removes a record when its entry in the registry is due. The key expires
# later by EXPIRY_SLACK_S, in case no worker pool runs.
EXPIRY_SLACK_S: Final = 60
HELD_LOOK_S: Final = 300  # how often housekeeping checks whether a record is still kept for tasks that depend on it
NEEDED_STEP: Final = 500  # how many dependents one such check reads; the next one reads the rest
ADDED_TTL_S: Final = 30 * 86_400  # how long after its last addition a task's list ADDED is kept; its end is the purge's
LOG_IDLE_TTL_S: Final = 30 * 86_400  # from a log's last line on; the log of an ended task stays as long as its record
HISTORY_CAP: Final = 20  # how many ended attempts a record keeps, the last ones
REPORTED_TTL_S: Final = 86_400  # how long a worker process may send a report of counts again
TURN_TTL_S: Final = 3600  # how long it is remembered that a pool has closed the minutes before this one
BUILDS_KEPT: Final = 100  # how many builds are known, the newest ones
EVENTS_MAXLEN: Final = 10_000  # about how many events the stream keeps for clients that resume
AUDIT_MAXLEN: Final = 10_000  # about how many entries each stream of the audit log keeps
WITHOUT_PROJECT: Final = 10  # all tasks without a project share a cap that is this many times that of a project
USED_SAMPLE: Final = 100  # at a cap, this many of the project's names are checked; names out of use make room
# `rq info` and RQ's maintenance fail every task whose score in `rq:wip:*` has passed. So WIP_GRACE_S is added to the
# end of the lease; the reaper takes a task back long before that.
WIP_GRACE_S: Final = 3600
# A task may die together with others this often before the crash counts as its own. Suspects run alone, so a task gets
# there only if it ends other processes than its own.
MOST_SUSPICIONS: Final = 10
NONE_CHARGED: Final = "; any of its tasks may have been the cause, so none is charged, and this one runs alone next"
ASIDE_BYTES: Final = 1024  # the largest result that is sent with the event of its end
POOL_KNOWN_S: Final = 86_400  # how long a pool that went away without draining is listed
POOLS_KNOWN_MOST: Final = 1000  # how many pools are remembered, those with the newest heartbeats
DOORBELL_CAP: Final = 64  # most idle workers of a queue that are woken at once; each claims again after its task
QUEUE_KEPT_S: Final = 300  # how long an empty queue without workers stays in RQ's set of queues
QUEUE_PAGE_BYTES: Final = 512 * 1024  # a page of a queue ends with the record that brings it to this size
QUEUE_PAGE_NEWER: Final = 10_000  # a page may begin where the last one ended if no more tasks than this came in front
STAGED_TTL_S: Final = 3600  # how long the chunks of a workflow wait for its commit, and unique keys for the chunks
EXPANDED_AFTER_MS: Final = 2000  # housekeeping stores a workflow's chunks when their sender hasn't for so long
WORKFLOW_MOST: Final = 1_000_000  # members of a workflow in all, with those that running tasks add
SWEPT_TASKS: Final = 200  # how many waiting tasks one step of the sweep reads
SWEPT_TTL_S: Final = 3600  # how long the position of a sweep is kept without another step

FAILURES_MOST: Final = 1000  # groups of failures that are kept, those that failed last
FAILURE_NAMES_MOST: Final = 20  # types, builds, queues and workers that each group counts; the rest counts together
REDRIVE_KEPT_S: Final = 7 * 86_400  # how long a redrive is shown after its end

OPEN_S: Final = ANSWER_S  # how long a person has to answer, if a record doesn't say
QUESTIONS_MOST: Final = MOST_ASKED  # how often a task may ask in one life
OF_PEOPLE: Final = (
    ":"  # what stands in the place of a queue for the tasks that wait for a person. No queue has this name
)
OCCURRENCES_KEPT: Final = 100  # how many occurrences of a schedule are listed, the last ones
DECLARATIONS_KEPT: Final = 20  # how many declarations of a module are known, the newest and those of live pools
DECLARATIONS_TTL_S: Final = 90 * 86_400  # how long they are kept when no pool has loaded the module
SCHEDULE_KEPT_S: Final = 7 * 86_400  # how long a schedule without further runs is kept after its last one

OPERATION_RUNNING: Final = OperationStatus.RUNNING.value
OPERATION_CANCELED: Final = OperationStatus.CANCELED.value
OPERATIONS_KEPT: Final = 1000  # how many operations are listed, the last ones; of each project as well
OPERATION_KEPT_S: Final = 7 * 86_400  # how long an operation is kept after its end
OPERATIONS_NOTED: Final = 10  # how many operations a task's record names, the last ones that changed it
TAKE_WINDOW: Final = 500  # how far around the expected place tasks are looked for in a queue: a batch has one time
TAKE_US: Final = 2500  # how long a call that changes several tasks may take; the last task may add to it
TAKE_PASSED: Final = 50  # how many ids LREM passes in a microsecond
TAKE_PLACES: Final = 2  # how many such places of a queue are remembered
UNDO_S: Final = 600  # how long an operation can be undone after its end
TRASH_S: Final = 1200  # how long a removed record is kept, so that the removal can be undone

# --- next to RQ -----------------------------------------------------------------------------------------
ATTEMPTS_KEPT_S: Final = 86_400  # how long the list of a worker's attempts is kept after its last heartbeat
UNSEEN_KEPT_S: Final = 3600  # how long a worker's marks are kept after the last list
FOREIGN_KEPT_S: Final = 3600  # then the search for tasks behind foreign jobs begins at the head of the queue again
RQ_SCHEDULER_S: Final = 15  # how long a foreign job that is due is left to RQ's scheduler, which looks each second
JUDGED_S: Final = 20  # a failure by a plain RQ worker counts for dependents after this time, or once it was judged
FIRST_SEEN_SLACK_S: Final = 3600  # how much longer than needed FIRST_SEEN is kept

# --- the clock ------------------------------------------------------------------------------------------
SOON_MS: Final = 1000  # housekeeping looks for due tasks this often, and is notified of a task that is due earlier
SEEN_OFTEN_MS: Final = 1500  # pools read Redis's clock each second: a time further from the last may be stepped
TURN_MS: Final = 1500  # how long a pool has the housekeeping, unless it goes on with it: each round takes it anew
STEPS_KEPT: Final = 60  # how many steps of Redis's clock are kept in the hash CLOCK
LEASES_AT_ONCE: Final = 20_000  # leases and waiting webhooks that are corrected after a step; further ones aren't

# --- webhooks -------------------------------------------------------------------------------------------
WEBHOOKS_FAILING_S: Final = 300  # how long a lane counts as failing after an attempt that failed
WEBHOOKS_OUTBOX_MAX: Final = 100_000  # most events that wait to be sorted; further ones are dropped and counted
WEBHOOKS_LANE_MAX: Final = 10_000  # most deliveries that wait in a lane; further ones are dropped and counted
DELIVERIES_MAX: Final = 1000  # most deliveries that are listed for one endpoint or task, the last ones
DELIVERY_KEPT_S: Final = 7 * 86_400  # how long a delivery is kept after its last attempt, unless it arrived
DELIVERED_KEPT_S: Final = 86_400  # how long one that arrived is kept, if it is one of its endpoint's last ones
DELIVERY_LEASE_MS: Final = 30_000  # how long a supervisor may take to send a webhook: twice what an attempt may take

# --- what scripts read of the statuses (see prelude.lua) ------------------------------------------------
REGISTRY_OF: Final[Mapping[TaskStatus, str]] = {
    status: globals()[facts.registry] for status, facts in STATUSES.items() if facts.registry
}
"""The list or sorted set that holds the tasks with a status: its key without the queue at the end."""

_USED: Final = frozenset(REGISTRY_OF)
# The statuses in which `cancel.lua` can cancel a task.
CANCELABLE: Final = frozenset(status for status in _USED if TaskStatus.CANCELED in STATUSES[status].moves)
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

RQ_MAP: Final[Mapping[str, Mapping[str, str]]] = {
    "registry": {RQ_STATUS[status]: REGISTRY_OF[status] for status in STATUSES if status in TERMINAL},
}
"""Values by RQ's words. `registry`: the sorted set that holds the ended tasks with a status."""

SCRIPT_CONSTANTS: Final[Mapping[str, Mapping[str, object]]] = {
    "KEY": {name.lower(): value for name, value in globals().items() if isinstance(value, str | int)},
    "TEXT": {name.lower(): str(value) for name, value in globals().items() if isinstance(value, int)},
    "STATUS": {status.value: status.value for status in STATUSES},
    "RQ": {status.value: word for status, word in RQ_STATUS.items()},
    "EVENT": {status.value: event for status, event in EVENT_OF.items()},
    "RQ_SET": RQ_SET,
    "RQ_MAP": RQ_MAP,
}
"""The constants of scripts, by namespace and name: `KEY.job`, `STATUS.done`, `RQ_SET.terminal`."""

# --- the fields of COUNTERS, which /metrics reads --------------------------------------------------------
#
# Worker processes report about once a second, into STATS_COUNTED of the minute; insight/history.py adds a minute to the
# totals once it is over. A field is a metric's name and its labels, joined by `|`. All values are integers that only
# grow.
#
#     submitted|{type}|{queue}            tasks that were submitted
#     tasks|{outcome}|{type}|{queue}      attempts by how they ended, and tasks that ended without one
#     wait_bucket|{type}|{queue}|{le}     attempts that waited in the queue for at most `le` seconds
#     wait_us_sum|{type}|{queue}          the sum of microseconds waited
#     run_bucket|{type}|{queue}|{le}      attempts that ran for at most `le` seconds
#     run_us_sum|{type}|{queue}           the sum of microseconds run
#     webhooks|{outcome}                  attempts to send webhooks, and lost events
#
# An attempt ends `done`, `failed`, `stopped`, `retried` (it failed and runs again), `snoozed` (it runs again, and
# didn't fail), `crashed` (its process died), `given_back` (at a shutdown), `asked` (it waits for a person),
# `lease_lost` (its process may still run) or `lost` (such a process ended after all, and its outcome was discarded). A
# task that hasn't started ends `canceled` or `expired`. A bucket doesn't include the buckets below it; the reader adds
# them up. The count of a histogram is the sum of its buckets. A `|` or `%` in a label is percent-encoded.

SUBMITTED: Final = "submitted"
TASKS: Final = "tasks"
OUTCOMES: Final = (
    "done", "failed", "retried", "snoozed", "asked", "stopped", "crashed", "lease_lost", "lost", "given_back",
    "canceled", "expired",
)  # fmt: skip
WAIT_BUCKET: Final = "wait_bucket"
WAIT_US_SUM: Final = "wait_us_sum"
RUN_BUCKET: Final = "run_bucket"
RUN_US_SUM: Final = "run_us_sum"
WEBHOOK_ATTEMPTS: Final = "webhooks"

# Upper ends of the buckets, in seconds; above the last one comes "+Inf".
BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
BUCKET_LABELS: Final = (*(f"{bound:g}" for bound in BUCKETS_S), "+Inf")

# `failed` is tried again, `dead` isn't. `dropped`: too many deliveries wait already. `lost`: the outbox was full.
WEBHOOK_OUTCOMES: Final = ("delivered", "failed", "dead", "dropped", "lost")


def field_name(metric: str, *labels: str) -> str:
    """The field of a metric with these labels."""
    return "|".join((metric, *(label.replace("%", "%25").replace("|", "%7C") for label in labels)))


def split_name(field: str) -> tuple[str, ...]:
    """The metric and the labels of a field."""
    metric, *labels = field.split("|")
    return (metric, *(label.replace("%7C", "|").replace("%25", "%") for label in labels))
