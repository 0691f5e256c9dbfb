"""The worker pools: those that live, and those that went away without draining."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from taskpool.operations.catalog import PoolInfo, pool_info_of
from taskpool.redis import keys, pause_scripts, scripts
from taskpool.redis.calls import Call, Plan, readable, times_of, tolerant
from taskpool.types import utc
from taskpool.types.fleet import Pause, PoolRecord, PoolState


def list_pools() -> Plan[list[PoolRecord]]:
    """The worker pools by name; those that went away within the last day are `gone`."""
    live, known, paused = yield (_seen(keys.POOLS), _seen(keys.POOLS_KNOWN), pause_scripts.paused())
    seen = {**known, **live}
    if not seen:
        return []
    announced, last = yield (_documents(keys.POOL, seen), _documents(keys.POOL_KNOWN, seen))
    infos = {**last, **announced}
    runs = yield [tolerant(scripts.attempts_of(worker), []) for info in announced.values() for worker in info.workers]
    left = iter(runs)
    # A process may have claimed more tasks than it runs at once.
    busy = {id: sum([min(len(next(left)), info.slots) for _ in info.workers]) for id, info in announced.items()}
    return [_record(infos[id], seen[id], busy.get(id), paused.get(pause_scripts.POOL + id)) for id in sorted(infos)]


def _record(info: PoolInfo, seen_ms: int, busy: int | None, pause: Pause | None) -> PoolRecord:
    """`busy`: how many tasks a live pool runs; None: it has gone."""
    if busy is None:
        state = PoolState.GONE
    elif info.is_draining or (pause is not None and pause.drains):
        state = PoolState.DRAINING
    else:
        state = PoolState.RUNNING if pause is None else PoolState.PAUSED
    return PoolRecord(
        name=info.id,
        host=info.host,
        state=state,
        started_at=None if info.started_ms is None else utc(info.started_ms),
        last_seen_ms=seen_ms,
        processes=len(info.workers),
        slots=info.slots,
        busy=busy or 0,
        queues=info.queues,
        version=info.version,
        memory_bytes=info.memory_bytes,
        paused=pause,
    )


def _seen(key: str) -> Call[Mapping[str, int]]:
    """The ids of pools, each with its last heartbeat in ms."""
    return tolerant(Call(("ZRANGE", key, 0, -1, "WITHSCORES"), times_of, again=True), {})


def _documents(prefix: str, ids: Collection[str]) -> Call[Mapping[str, PoolInfo]]:
    """The announcements of pools, by id."""

    def read(reply: Sequence[bytes | None]) -> Mapping[str, PoolInfo]:
        pairs = [(id, document) for id, document in zip(ids, reply, strict=True) if document is not None]
        return readable(pairs, pool_info_of, "worker pool")

    return Call(("MGET", *[prefix + id for id in ids]), read, again=True)
