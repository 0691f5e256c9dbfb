"""What both public faces share: the settings' defaults, the known types, and submission as a plan."""

from __future__ import annotations

import os
from collections.abc import Sequence

from taskpool.access.audit import Actor
from taskpool.errors import ConfigurationError
from taskpool.lifecycle import HoldsConnections
from taskpool.operations import queue
from taskpool.operations.catalog import Catalogue
from taskpool.operations.queue import Submitted
from taskpool.operations.specs import check_spec, patience_s
from taskpool.operations.submit import Checked, Defaults, check_task
from taskpool.redis.add_script import Caps, Once
from taskpool.redis.calls import Plan
from taskpool.settings import Settings, resolve_redis_url
from taskpool.tasks.registry import Registry
from taskpool.types import TaskRecord, TaskSpec


class Face(HoldsConnections):
    """The part of a task pool that neither blocks nor awaits."""

    def __init__(self, redis_url: str | None, settings: Settings | None, registry: Registry | None) -> None:
        """Without a URL, Redis is looked for where the commands look: in the settings or, without these too, in the
        TASKPOOL_* variables, then in the data directory of a running `taskpool up`.

        Raises:
            ConfigurationError: there is none, or a variable is wrong.
        """
        if redis_url is None:
            settings = settings or Settings.load(os.environ)
            redis_url = resolve_redis_url(settings)
        settings = settings or Settings()
        self.settings = settings
        self.redis_url = redis_url
        self.registry = registry
        self.catalogue = Catalogue(type_grace_s=settings.type_grace_s)
        self.defaults = Defaults(
            timeout_s=settings.timeout_s,
            result_ttl_s=settings.result_ttl_s,
            failure_ttl_s=settings.failure_ttl_s,
            max_attempts=settings.max_attempts,
            secret_ttl_s=settings.secret_ttl_s,
            max_queue_depth=settings.max_queue_depth,
            caps=Caps(settings.max_queues, settings.max_tags, settings.max_unique_keys, settings.max_idempotency_keys),
            webhook_allow=settings.webhook_allow,
        )

    def adding(self, spec: TaskSpec) -> Plan[TaskRecord]:
        """The plan that adds one task."""
        return queue.add_task(spec, self.catalogue, self.registry, self.defaults)

    def submitting(self, spec: TaskSpec, once: Once | None = None, by: Actor | None = None) -> Plan[Submitted]:
        """The plan that adds one task for who needs only its id and status; with `once`, once for a key; in the name
        of `by`."""
        return queue.submit(spec, self.catalogue, self.registry, self.defaults, once, by=by)

    def submitting_many(
        self, specs: Sequence[TaskSpec], once: Once | None = None, by: Actor | None = None, start: str = ""
    ) -> Plan[Submitted]:
        """The plan that adds a thousand at most in the same way; the faults' pointers begin with `start`."""
        return queue.submit_many(specs, self.catalogue, self.registry, self.defaults, once, by=by, start=start)

    def checking(self, spec: TaskSpec, by: Actor | None = None) -> Plan[Checked]:
        """The plan that checks one task as adding it, in the name of `by`, would."""
        return check_task(spec, self.catalogue, self.registry, self.defaults, by=by)

    def check_wait(self, spec: TaskSpec, wait_s: float | None) -> None:
        """Return if this may be submitted and waited for, as far as can be told before it is checked further.

        Raises:
            InvalidTask: it is no `TaskSpec`, or `wait_s` can't be.
        """
        check_spec(spec)
        patience_s("wait_s", wait_s)

    def adding_many(self, specs: Sequence[TaskSpec]) -> Plan[list[TaskRecord]]:
        """The plan that adds many."""
        return queue.add_tasks(specs, self.catalogue, self.registry, self.defaults)

    def known_types(self) -> Registry:
        """The registry given to this pool: what it can run.

        Raises:
            ConfigurationError: none was given.
        """
        if self.registry is None:
            raise ConfigurationError("to run tasks, give the pool a registry of their types")
        return self.registry
